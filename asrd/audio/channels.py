"""Several channels -> one: their mean, or the loudest where they cancel each other.

A balanced microphone in a stereo jack gives one voice with opposite signs, whose mean is silence.
What is lost is judged on the differences between neighbouring samples: hum and a direct current,
which carry most of the power of a bad recording and none of the speech, then count little. Pure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from asrd.audio.format import SAMPLE_RATE

CANCELLING_SHARE, AGREEING_SHARE = 0.5, 0.8
"""Power of the mean over that of channels which have nothing in common: below the first the mean is
left, above the second it is taken again. It is 1 for two speakers, one for each channel, and 2 for
one voice in both."""

LOUDER_FACTOR = 4.0
"""Times the power of the channel that is taken which another one has before it is taken instead."""

AS_LOUD_SHARE = 0.8
"""Share of the greatest power from which on a channel counts as the loudest: the first such is
taken."""

STILL_SHARE = 0.01
"""Share of the greatest power so far below which a block decides nothing: between words there is
only noise."""

DECIDED_SECONDS = 0.25
"""Of sound, at most, about which one decision is made."""

FADE_SECONDS = 0.01
"""Of a change from one choice to another."""

CANCELLING_WARNING = "its channels cancel each other out; channel %d is taken instead of their mean"
"""What a person is told of it, behind a name and a colon, with the channel's number."""

SILENT_POWER = 1e-12
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
        """Number, from 1, of the channel that was taken instead of a mean that cancels; 0 where
        none ever was."""
        self._piece = max(1, round(DECIDED_SECONDS * rate))
        self._fade = max(1, round(FADE_SECONDS * rate))
        self._chosen: int | None = None
        self._greatest = 0.0
        self._last: NDArray[np.float32] | None = None

    def mix(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return one channel [N], contiguous, of a block [N, channels]; one with a NaN decides
        nothing."""
        if self.channels == 1:
            return np.ascontiguousarray(block[:, 0])
        # By channel, as numpy takes twenty times as long to add up rows of two.
        rows = np.ascontiguousarray(block.T)
        pieces = [
            self._mix(rows[:, at : at + self._piece]) for at in range(0, len(block), self._piece)
        ]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)

    def _mix(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return one channel of a piece [channels, N] about which one decision is made."""
        before = self._chosen
        with np.errstate(
            invalid="ignore", over="ignore"
        ):  # of samples that are no numbers, which are cleaned later
            self._choose(rows)
            mixed = _of(rows, self._chosen)
        if before != self._chosen and self._last is not None:
            mixed = self._faded(_of(rows, before), mixed)
        self._last = rows[:, -1:].copy()
        return mixed

    def _choose(self, rows: NDArray[np.float32]) -> None:
        """Decide by a piece what it and the next ones are made of: a channel, or None for the
        mean."""
        steps = np.diff(rows, axis=1, prepend=rows[:, :1] if self._last is None else self._last)
        powers = np.array([row @ row for row in steps])
        greatest = float(powers.max()) / rows.shape[1]
        if (
            not max(SILENT_POWER, STILL_SHARE * self._greatest) < greatest < np.inf
        ):  # true for a NaN too
            return
        self._greatest = max(self._greatest, greatest)
        total = steps.sum(axis=0)
        share = float(total @ total) / float(powers.sum())
        if self._chosen is None and share < CANCELLING_SHARE:
            self._chosen = _loudest(powers)
        elif self._chosen is not None and share > AGREEING_SHARE:
            self._chosen = None
        elif self._chosen is not None and powers.max() > LOUDER_FACTOR * powers[self._chosen]:
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
    return int(np.argmax(powers >= AS_LOUD_SHARE * powers.max()))


def _of(rows: NDArray[np.float32], chosen: int | None) -> NDArray[np.float32]:
    """Return one channel, or the mean of all, of a piece [channels, N]."""
    if chosen is None:
        mean: NDArray[np.float32] = rows.mean(axis=0, dtype=np.float32)
        return mean
    return rows[chosen]
