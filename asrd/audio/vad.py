"""Finds speech: blocks -> it opens, pauses, goes on, closes.

Decisions fall on a fixed grid of the sample clock, one for each chunk of 32 ms, so events never
depend on how the sound was cut into blocks. Knows nothing of words. Runs on the daemon's side.
"""

from __future__ import annotations

import array
from bisect import bisect_left
from typing import Literal

import msgspec
import numpy as np

from asrd.audio.blocks import AudioBlock, Samples
from asrd.audio.format import SAMPLE_RATE
from asrd.audio.silero import CHUNK_SAMPLES, Silero

Kind = Literal["open", "pause", "resume", "close"]


class VadEvent(msgspec.Struct, frozen=True):
    """Something changed, on the sample clock."""

    kind: Kind
    """open: speech began; pause: it has rested for `rest` seconds; resume: it went on after that;
    close: it ended."""
    at: int
    """Where: the first sample of interest (open, resume), or one past the last (pause, close)."""
    known_at: int
    """Position at which it was known: one past the last sample that the decision used."""
    sure: bool = True
    """close: whether any of it was surely speech (`VadSettings.sure`); a cough and a chord open,
    but hardly are."""


class VadSettings(msgspec.Struct, frozen=True):
    """When speech opens and closes. Times are seconds, levels are probabilities of speech."""

    threshold: float = 0.5
    """A chunk at or above it may open speech."""
    release: float = 0.35
    """Open speech rests on a chunk below it."""
    minimum: float = 0.06
    """Chunks at or above `release` must last this long before speech opens; a click does not."""
    sure: float = 0.9
    """What has a chunk at or above it is surely speech."""
    pre_roll: float = 0.3
    """Kept before the first chunk of speech: the detector hears soft onsets late."""
    post_roll: float = 0.2
    """Kept after the last chunk of speech."""
    rest: float = 0.2
    """Silence after which a pause is reported."""
    hang_over: float = 0.4
    """Silence after which speech is closed."""

    @property
    def lookback(self) -> int:
        """Samples before `Vad.position` that an event still to come may name."""
        return _samples(self.pre_roll + self.minimum) + 2 * CHUNK_SAMPLES


class Vad:
    """Turns blocks into events. Blocks must follow each other without a gap."""

    def __init__(self, settings: VadSettings | None = None) -> None:
        self.settings = settings or VadSettings()
        self._minimum, self._pre_roll = (
            _samples(self.settings.minimum),
            _samples(self.settings.pre_roll),
        )
        self.position = 0
        """One past the last sample that was judged."""
        self._silero = Silero()
        self._rest: Samples = np.zeros(0, np.float32)
        self._started = False
        self._open = self._paused = False
        self._onset: int | None = None
        self._speech_stop = 0
        self._peak = 0.0
        self._floor = 0
        self._clear = array.array("q")

    @property
    def open(self) -> bool:
        """Whether speech is open, resting or not."""
        return self._open

    @property
    def speaking(self) -> bool:
        """Whether speech is open and does not rest."""
        return self._open and not self._paused

    def clear(self, start: int, stop: int) -> int:
        """Return how many samples from `start` to `stop` were surely speech, chunk by chunk."""
        return CHUNK_SAMPLES * (bisect_left(self._clear, stop) - bisect_left(self._clear, start))

    def push(self, block: AudioBlock) -> list[VadEvent]:
        """Judge one block and return what changed. Raises ValueError for a block that does not
        follow the last one."""
        if not self._started:
            self._started, self.position, self._floor = True, block.start, block.start
        if block.start != self.position + len(self._rest):
            raise ValueError(
                f"block at {block.start} does not follow sample {self.position + len(self._rest)}"
            )
        sound = np.concatenate([self._rest, block.samples]) if len(self._rest) else block.samples
        events: list[VadEvent] = []
        whole = len(sound) - len(sound) % CHUNK_SAMPLES
        if whole:
            for probability in self._silero(sound[:whole]):
                self._step(probability, self.position + CHUNK_SAMPLES, events)
        self._rest = sound[whole:].copy()
        return events

    def finish(self) -> list[VadEvent]:
        """Judge what is left, padded with silence, and close what is open. The detector is then
        spent."""
        events: list[VadEvent] = []
        if len(self._rest):
            stop = self.position + len(self._rest)
            self._step(
                self._silero(np.pad(self._rest, (0, CHUNK_SAMPLES - len(self._rest))))[0],
                stop,
                events,
            )
            self._rest = self._rest[:0]
        if self._open:
            self._close(events)
        return events

    def _step(self, probability: float, stop: int, events: list[VadEvent]) -> None:
        """Take one chunk that ends at `stop` into account."""
        start, self.position = self.position, stop
        s = self.settings
        self._peak = max(self._peak, probability)
        if probability >= s.sure:
            self._clear.append(start)
        if self._open:
            self._inside(probability >= s.release, start, events)
        elif self._onset is None and probability >= s.threshold:
            self._onset, self._peak = start, probability
        elif probability < s.release:
            self._onset = None
        if not self._open and self._onset is not None and stop - self._onset >= self._minimum:
            events.append(VadEvent("open", max(self._floor, self._onset - self._pre_roll), stop))
            self._open, self._paused, self._onset, self._speech_stop = True, False, None, stop

    def _inside(self, speech: bool, start: int, events: list[VadEvent]) -> None:
        """Follow open speech over one chunk."""
        if speech:
            if self._paused:
                events.append(VadEvent("resume", start, self.position))
            self._paused, self._speech_stop = False, self.position
            return
        silence = self.position - self._speech_stop
        if not self._paused and silence >= _samples(self.settings.rest):
            self._paused = True
            events.append(VadEvent("pause", self._speech_stop, self.position))
        if silence >= _samples(self.settings.hang_over):
            self._close(events)

    def _close(self, events: list[VadEvent]) -> None:
        self._open = False
        self._floor = min(self.position, self._speech_stop + _samples(self.settings.post_roll))
        events.append(
            VadEvent("close", self._floor, self.position, self._peak >= self.settings.sure)
        )


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)
