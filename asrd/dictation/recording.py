"""One recording between the key and its text: its sound on disk, its words so far, and what became
of it.

Taking in sound never waits: neither for the model nor for the disk's or anybody's good will. Knows
nothing of keys and microphones. Runs in the daemon.
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
from asrd.recordings.deliveries import SUFFIX, Deliveries, Standing
from asrd.recordings.files import RecordingWriter, blocks
from asrd.streaming.session import StreamingSession
from asrd.streaming.voice_commands import CommandWriter
from asrd.text.spacing import unspaced_end

log = logging.getLogger("asrd")

NAP = 3 * SAMPLE_RATE // 8
"""Samples of silence that the detector is given at once: most of what it costs is to fetch its
weights each time."""

FILM = SAMPLE_RATE // 5
"""Samples after which the transcriber looks for something to do while speech is open, if the
detector has said nothing."""


class DictationResult(msgspec.Struct, frozen=True):
    """What became of a recording."""

    take: str
    text: str
    outcome: str
    """delivered, empty, cancelled, kept (it failed, the sound waits) or lost (it failed, and
    nothing is kept)."""
    detail: str = ""
    strategy: str = ""
    seconds: float = 0.0
    stop_to_text_ms: float | None = None


class Dictation:
    """One take between the key and its text. `push` never waits.

    Args:
        take: where the sound is kept.
        settings: those in force when it began.
        private: its text goes to whoever waits for `told` and nowhere else.
    """

    def __init__(self, take: RecordingWriter, settings: Settings, private: bool = False) -> None:
        self.take = take
        self.settings = settings
        self.private = private
        self.dictation = StreamingSession(settings)
        self.writing = CommandWriter(settings.phrases, settings.capitals)
        self.deliveries = Deliveries(None if take.problem else take.path.with_suffix(SUFFIX))
        self.told: asyncio.Future[DictationResult] = asyncio.get_running_loop().create_future()
        self.fresh = asyncio.Event()
        """There may be something to decode, or it has ended."""
        self.over = asyncio.Event()
        """Nothing follows."""
        self.cancelled = False
        self.by_key = True
        """Somebody asked for its end; False where it ended by itself, or with its source."""
        self.era = 0
        """Of the shadow (`shadow.Shadow.era`), when it began."""
        self.stopped = 0.0
        """When its end was asked for, on the monotonic clock."""
        self.loudness = Loudness()
        self.device = ""
        """What a person calls the microphone it came from; "" for a file or a pipe, and before its
        end."""
        self.voice = 0
        """Sample up to which speech was heard."""
        self.refused: list[str] = []
        """Why single sinks did not take it."""
        self.began = time.monotonic()
        self.drafted = 0.0
        """When the last draft was ready, on the monotonic clock."""
        self._unheard: list[AudioBlock] = []
        self._origin: int | None = None
        self._last: Samples | None = None
        self._looked = 0
        self._written = 0

    def push(self, block: AudioBlock) -> None:
        """Take in the next block: onto the disk before anything else. Its own clock begins with the
        first one."""
        if self.ended:
            return
        if self._origin is None:
            self._origin = block.start
        block = AudioBlock(block.start - self._origin, block.samples, block.overflow)
        sound = not self.take.problem
        self.take.append(block.samples)
        if sound and self.take.problem:
            log.warning("%s", self.take.problem)
        self._unheard.append(block)
        events = self._listen() if self.dictation.vad.open or self._unheard_samples >= NAP else []
        if self.dictation.vad.speaking:
            self.voice = block.stop
        self._last = block.samples
        if events or (self.dictation.vad.open and block.stop - self._looked >= FILM):
            self._looked = block.stop
            self.fresh.set()

    def _listen(self) -> list[VadEvent]:
        """Give the detector what it has not heard; return what it says."""
        blocks, self._unheard = self._unheard, []
        sound = np.concatenate([block.samples for block in blocks])
        open_before = self.dictation.vad.open
        events = self.dictation.push(AudioBlock(blocks[0].start, sound))
        self.loudness.push(sound, open_before or self.dictation.vad.open)
        return events

    @property
    def level(self) -> float:
        """Peak of the last block, in dB below full scale; minus infinity before the first."""
        if self._last is None:
            return -math.inf
        return 20 * math.log10(max(float(np.abs(self._last).max(initial=0.0)), 1e-6))

    @property
    def _unheard_samples(self) -> int:
        return self._unheard[-1].stop - self._unheard[0].start

    def end(self) -> None:
        """Nothing follows."""
        if self._unheard:
            self._listen()
        self.dictation.finish()
        self.over.set()
        self.fresh.set()

    @property
    def ended(self) -> bool:
        """Nothing follows."""
        return self.over.is_set()

    def write(self, whole: bool) -> None:
        """Make text of the words that became final; `whole` says that they are all."""
        words = self.dictation.transcript.words
        self.writing.push(words[self._written :])
        self._written = len(words)
        if whole:
            self.writing.finish()

    @property
    def text(self) -> str:
        """What is final so far, with spoken commands obeyed."""
        return self.writing.text

    @property
    def draft(self) -> str:
        """The words behind those, as they sound right now; for eyes only."""
        return self.dictation.transcript.draft


def sound_of(path: Path) -> Iterator[AudioBlock]:
    """Yield what is on disk of a recording, with the care that sound files get.

    Raises: OSError; AudioError, at the end, when not one sample was a number.
    """
    seen = bad = 0
    for start, data in blocks(path):
        samples, damaged = clean(np.frombuffer(data, np.float32))
        seen, bad = seen + len(samples), bad + damaged
        yield AudioBlock(start, samples)
    if bad:
        log.warning("recording %s: %d samples are not finite and count as silence", path.stem, bad)
    if bad and bad == seen:
        raise AudioError(
            f"recording {path.stem} holds no sound", "not one of its samples is a finite number"
        )


def standing(
    dictation: StreamingSession, writing: CommandWriter, before: Standing | None
) -> Standing:
    """Return where a text stands, once all that is final of it was sent; of words and pieces those
    after `before`."""
    transcript = dictation.transcript
    words, pieces = (len(before.words), len(before.pieces)) if before else (0, 0)
    return Standing(
        transcript.committed_until,
        transcript.words[words:],
        transcript.sealed,
        writing.sent_after(pieces),
        writing.waiting,
        writing.case,
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
