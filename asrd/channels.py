"""Several channels -> one: their mean, or the loudest where they cancel each other.

A balanced microphone in a stereo jack gives one voice with opposite signs, whose mean is silence. What is lost is
judged on the differences between neighbouring samples: hum and a direct current, which carry most of the power of
a bad recording and none of the speech, then count little. Pure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .wire import SAMPLE_RATE

CANCELS, AGREES = 0.5, 0.8
"""Power of the mean over that of channels which have nothing in common: below the first the mean is left, above the
second it is taken again. It is 1 for two speakers, one for each channel, and 2 for one voice in both."""

LOUDER = 4.0
"""Times the power of the channel that is taken which another one has before it is taken instead."""

AS_LOUD = 0.8
"""Share of the greatest power from which on a channel counts as the loudest: the first such is taken."""

STILL = 0.01
"""Share of the greatest power so far below which a block decides nothing: between words there is only noise."""

FADE_SECONDS = 0.01
"""Of a change from one choice to another."""

CANCELLING = "%s: its channels cancel each other out; channel %d is taken instead of their mean"
"""What a person is told of it: a name, and the channel's number."""

UNPAIRED = 1e-12
"""Power below which a block is silent."""


class Mixer:
    """Makes one channel of the blocks of a stream, in order.

    Args:
        channels: how many there are.
        rate: samples a second of each.
    """

    def __init__(self, channels: int, rate: int = SAMPLE_RATE) -> None:
        self.channels = channels
        self.cancelling = 0
        """Number, from 1, of the channel that was taken instead of a mean that cancels; 0 where none ever was."""
        self._fade = max(1, round(FADE_SECONDS * rate))
        self._chosen: int | None = None
        self._greatest = 0.0
        self._last: NDArray[np.float32] | None = None

    def mix(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return one channel [N], contiguous, of a block [N, channels]; one with a NaN decides nothing."""
        if self.channels == 1:
            return np.ascontiguousarray(block[:, 0])
        if not len(block):
            return np.zeros(0, np.float32)
        before = self._chosen
        self._choose(block)
        mixed = _of(block, self._chosen)
        if before != self._chosen and self._last is not None:
            mixed = self._faded(_of(block, before), mixed)
        self._last = block[-1]
        return mixed

    def _choose(self, block: NDArray[np.float32]) -> None:
        """Decide by a block what it and the next ones are made of: a channel, or None for the mean."""
        with np.errstate(invalid="ignore", over="ignore"):
            steps = np.diff(block, axis=0, prepend=block[:1] if self._last is None else self._last[None])
            powers = np.einsum("ij,ij->j", steps, steps)
        greatest = float(powers.max()) / len(block)
        if not greatest > max(UNPAIRED, STILL * self._greatest):  # true for a NaN too
            return
        self._greatest = max(self._greatest, greatest)
        total = steps.sum(axis=1)
        share = float(total @ total) / float(powers.sum())
        if self._chosen is None and share < CANCELS:
            self._chosen = _loudest(powers)
        elif self._chosen is not None and share > AGREES:
            self._chosen = None
        elif self._chosen is not None and powers.max() > LOUDER * powers[self._chosen]:
            self._chosen = _loudest(powers)
        if self._chosen is not None:
            self.cancelling = self._chosen + 1

    def _faded(self, old: NDArray[np.float32], new: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return `new`, begun as `old`, so that no step between them is a click."""
        length = min(self._fade, len(new))
        rising = np.linspace(0, 1, length, dtype=np.float32)
        faded = new.copy()
        faded[:length] = old[:length] * (1 - rising) + new[:length] * rising
        return faded


def _loudest(powers: NDArray[np.float32]) -> int:
    """Return the first channel that is as loud as any."""
    return int(np.argmax(powers >= AS_LOUD * powers.max()))


def _of(block: NDArray[np.float32], chosen: int | None) -> NDArray[np.float32]:
    """Return one channel of a block, or the mean of all."""
    if chosen is None:
        mean: NDArray[np.float32] = block.mean(axis=1, dtype=np.float32)
        return mean
    return np.ascontiguousarray(block[:, chosen])
