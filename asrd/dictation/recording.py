"""One recording between the key and its text: its audio on disk, its words so far, and its result.

A block of audio never waits: neither for the model nor for a disk that refuses. Keys and microphones
are not known here. Runs in the daemon.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from asrd.audio.blocks import AudioBlock, Samples, clean
from asrd.audio.format import SAMPLE_RATE
from asrd.audio.levels import Loudness
from asrd.audio.vad import VadEvent
from asrd.config.settings import Settings
from asrd.errors import AudioError
from asrd.recordings.deliveries import SUFFIX, Deliveries, TextState
from asrd.recordings.files import RecordingWriter, blocks
from asrd.streaming.session import StreamingSession
from asrd.streaming.voice_commands import CommandWriter
from asrd.text.spacing import unspaced_end

log = logging.getLogger("asrd")

MIN_DETECTOR_SAMPLES = 3 * SAMPLE_RATE // 8
"""Samples of silence that the detector is given at once: each call fetches its weights, and that is
most of its cost."""

CHECK_SAMPLES = SAMPLE_RATE // 5
"""Samples after which the transcriber looks for something to decode while speech goes on, if the
detector has reported nothing."""


class DictationResult(msgspec.Struct, frozen=True):
    """The result of a recording."""

    id: str
    """Its name."""
    text: str
    outcome: str
    """delivered, empty, cancelled, kept (it failed, the audio waits) or lost (it failed, and
    nothing is kept)."""
    detail: str = ""
    strategy: str = ""
    seconds: float = 0.0
    stop_to_text_ms: float | None = None


class Dictation:
    """One recording between the key and its text. `push` never waits.

    Args:
        recording: where the audio is kept.
        settings: those in force when it began.
        private: its text goes to whoever waits for `result` and nowhere else.
    """

    def __init__(
        self, recording: RecordingWriter, settings: Settings, private: bool = False
    ) -> None:
        self.recording = recording
        self.settings = settings
        self.private = private
        self.session = StreamingSession(settings)
        self.writer = CommandWriter(settings.phrases, settings.capitals)
        on_disk = not recording.problem
        self.deliveries = Deliveries(recording.path.with_suffix(SUFFIX) if on_disk else None)
        self.result: asyncio.Future[DictationResult] = asyncio.get_running_loop().create_future()
        self.has_work = asyncio.Event()
        """Set when there may be something to decode, or the recording has ended."""
        self.finished = asyncio.Event()
        """Set when no more audio follows."""
        self.cancelled = False
        self.by_key = True
        """True where a client asked for its end; False where it ended by itself, or with its
        source."""
        self.generation = 0
        """The shadow's generation (`shadow.Shadow.generation`) when the recording began."""
        self.stopped_at = 0.0
        """When its end was asked for, on the monotonic clock."""
        self.loudness = Loudness()
        self.device = ""
        """Name of its microphone; "" for a file or a pipe, and before its end."""
        self.voice_until = 0
        """Sample up to which the detector found speech."""
        self.refusals: list[str] = []
        """Why single sinks refused its text."""
        self.began_at = time.monotonic()
        self.partial_at = 0.0
        """When the last partial result was ready, on the monotonic clock."""
        self._pending: list[AudioBlock] = []
        self._origin: int | None = None
        self._last: Samples | None = None
        self._looked = 0
        self._written = 0

    def push(self, block: AudioBlock) -> None:
        """Add the next block: onto the disk before anything else. The recording's own clock begins
        with its first block."""
        if self.ended:
            return
        if self._origin is None:
            self._origin = block.start
        block = AudioBlock(block.start - self._origin, block.samples, block.overflow)
        self._keep(block)
        self._pending.append(block)
        events: list[VadEvent] = []
        if self.session.vad.open or self._pending_samples >= MIN_DETECTOR_SAMPLES:
            events = self._detect()
        if self.session.vad.speaking:
            self.voice_until = block.stop
        self._last = block.samples
        if events or (self.session.vad.open and block.stop - self._looked >= CHECK_SAMPLES):
            self._looked = block.stop
            self.has_work.set()

    def _keep(self, block: AudioBlock) -> None:
        """Write a block to the disk; log the first problem."""
        on_disk = not self.recording.problem
        self.recording.append(block.samples)
        if on_disk and self.recording.problem:
            log.warning("%s", self.recording.problem)

    def _detect(self) -> list[VadEvent]:
        """Give the detector the blocks that it lacks; return its events."""
        blocks, self._pending = self._pending, []
        audio = np.concatenate([block.samples for block in blocks])
        open_before = self.session.vad.open
        events = self.session.push(AudioBlock(blocks[0].start, audio))
        self.loudness.push(audio, open_before or self.session.vad.open)
        return events

    @property
    def level(self) -> float:
        """Peak of the last block, in dB below full scale; minus infinity before the first."""
        if self._last is None:
            return -math.inf
        return 20 * math.log10(max(float(np.abs(self._last).max(initial=0.0)), 1e-6))

    @property
    def _pending_samples(self) -> int:
        return self._pending[-1].stop - self._pending[0].start

    def end(self) -> None:
        """Note that no more audio follows."""
        if self._pending:
            self._detect()
        self.session.finish()
        self.finished.set()
        self.has_work.set()

    @property
    def ended(self) -> bool:
        """Whether no more audio follows."""
        return self.finished.is_set()

    @property
    def by_pause(self) -> bool:
        """Whether each segment is delivered as soon as it is final."""
        return self.settings.deliver == "segment" and not self.private

    def result_as(self, outcome: str, detail: str = "") -> DictationResult:
        """Return the result under an outcome; `detail` says why or where."""
        stop_to_text_ms = None
        if self.stopped_at and outcome == "delivered":
            stop_to_text_ms = 1000 * (time.monotonic() - self.stopped_at)
        return DictationResult(
            self.recording.id,
            "" if outcome == "cancelled" else self.text,
            outcome,
            detail,
            self.session.strategy,
            self.recording.seconds,
            stop_to_text_ms,
        )

    def write(self, whole: bool) -> None:
        """Make text of the words that became final; `whole` says that they are all."""
        words = self.session.transcript.words
        self.writer.push(words[self._written :])
        self._written = len(words)
        if whole:
            self.writer.finish()

    @property
    def text(self) -> str:
        """What is final so far, with spoken commands obeyed."""
        return self.writer.text

    @property
    def partial_text(self) -> str:
        """The words after the final text, as decoded so far; they may still change."""
        return self.session.transcript.partial_text


def read_audio(path: Path) -> Iterator[AudioBlock]:
    """Yield the audio of a recording from the disk; samples that are no number count as silence.

    Raises: OSError; AudioError, at the end, when not one sample was a number.
    """
    count = bad = 0
    for start, data in blocks(path):
        samples, damaged = clean(np.frombuffer(data, np.float32))
        count, bad = count + len(samples), bad + damaged
        yield AudioBlock(start, samples)
    if bad:
        log.warning("recording %s: %d samples are not finite and count as silence", path.stem, bad)
    if bad and bad == count:
        raise AudioError(
            f"recording {path.stem} holds no audio", "not one of its samples is a finite number"
        )


def text_state(
    session: StreamingSession, writer: CommandWriter, before: TextState | None
) -> TextState:
    """Return the state of a text once all that is final of it was sent; words and pieces are those
    after `before`."""
    words = pieces = 0
    if before is not None:
        words, pieces = len(before.words), len(before.pieces)
    transcript = session.transcript
    return TextState(
        transcript.committed_until,
        transcript.words[words:],
        transcript.until_pause,
        writer.sent_after(pieces),
        writer.waiting,
        writer.case,
    )


def as_part(
    text: str, suffix: str, before: str = "", joined: bool = False, torn: bool = False
) -> str:
    """Return a text as it is delivered, with what belongs behind it.

    No space follows a line's end, nor a script without spaces or the beginning of a word: there the
    next part begins with it, if it has one before it.

    Args:
        before: the part before as it was delivered; "" where it is the first.
        joined: whether it follows that without a space.
        torn: whether the next part goes on with its last word.
    """
    if not suffix.isspace():
        return text + suffix
    lead = suffix if before and not before[-1].isspace() and not joined else ""
    withheld = text.endswith("\n") or torn or unspaced_end(text)
    return lead + text + suffix * (not withheld)


def add_part(
    record: Deliveries,
    text: str,
    settings: Settings,
    session: StreamingSession,
    writer: CommandWriter,
    whole: bool = False,
) -> int:
    """Add the next part of a text to the record, as it is to be sent; return its number."""
    before = record.parts[-1].text if record.parts else ""
    part = as_part(text, settings.suffix, before, writer.joined, session.transcript.torn)
    if whole:
        return record.add(part, whole=writer.text)
    return record.add(part, text_state(session, writer, record.state))
