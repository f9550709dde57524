"""The sample clock: sound at any rate, in pieces of any size -> blocks at 16 kHz that follow each
other.

Knows nothing of where the sound came from. Runs on the daemon's side, on the event loop only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import soxr

from asrd.audio.blocks import AudioBlock, Samples
from asrd.audio.format import SAMPLE_RATE

BLOCK_SAMPLES = SAMPLE_RATE // 50
"""Samples of a block (20 ms), or of its parts where it may be longer; the last before `finish` may
be shorter."""

MIN_GAP_SAMPLES = 15 * BLOCK_SAMPLES
"""Zeros that stand for lost sound at least (0.3 s): words before and after it are never joined."""

MAX_GAP_SAMPLES = 30 * SAMPLE_RATE
"""And at most; a device that was away for longer leaves the clock behind by the rest."""


class Resampler:
    """Takes in sound and hands out blocks. The first block starts at 0, each other one where the
    last one stopped.

    Args:
        on_block: is given every block, in order.
        most: samples of a block at most; what comes at once then goes on at once, to the last whole
            20 ms.
    """

    def __init__(self, on_block: Callable[[AudioBlock], None], most: int = BLOCK_SAMPLES) -> None:
        self._on_block, self._most = on_block, most
        self._at = 0
        self._rest: Samples = np.zeros(0, np.float32)
        self._resampler: Any = None
        self._lost = False
        self._zeros = 0

    def splice(self, rate: int) -> None:
        """Say at which rate the sound to come is, in hertz; what an earlier rate left in the
        resampler comes out."""
        self._drain()
        self._resampler = (
            None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, "float32")
        )

    def push(self, mono: Samples) -> None:
        """Take in samples at the rate of `splice`. What is not finite counts as silence; beyond 1
        it is clipped."""
        if len(mono) and not np.abs(mono).max() <= 1.0:  # false for a NaN too
            mono = np.clip(np.nan_to_num(mono, nan=0.0, posinf=0.0, neginf=0.0), -1.0, 1.0)
        self._cut(mono if self._resampler is None else self._resampler.resample_chunk(mono))

    def lose(self, seconds: float = 0.0) -> None:
        """Say that sound is missing here: all that was heard goes out, then zeros; the next block
        tells of it.

        Said again before the next sound it makes the zeros as long as it says by then, in all.

        Args:
            seconds: how long the missing sound was, as far as that is known.
        """
        wanted = min(max(round(seconds * SAMPLE_RATE), MIN_GAP_SAMPLES), MAX_GAP_SAMPLES)
        if not self._lost:
            self._drain()
            self._cut(np.zeros(-len(self._rest) % BLOCK_SAMPLES, np.float32))
            self._zeros = 0
        self._lost = False
        more = max(0, wanted - self._zeros) // BLOCK_SAMPLES * BLOCK_SAMPLES
        self._cut(np.zeros(more, np.float32))
        self._zeros += more
        self._lost = self._at > 0

    def finish(self) -> None:
        """Hand out what is left; nothing may follow."""
        self._drain()
        if len(self._rest):
            self._give(self._rest)
            self._rest = self._rest[:0]

    def _drain(self) -> None:
        """Take out of the resampler what it still holds; it starts afresh."""
        if self._resampler is not None:
            self._cut(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            self._resampler.clear()

    def _cut(self, sound: Samples) -> None:
        if len(self._rest):
            sound = np.concatenate([self._rest, sound])
        whole = len(sound) - len(sound) % BLOCK_SAMPLES
        for start in range(0, whole, self._most):
            self._give(sound[start : min(start + self._most, whole)])
        self._rest = sound[whole:]

    def _give(self, samples: Samples) -> None:
        block = AudioBlock(self._at, samples, self._lost)
        self._at, self._lost = block.stop, False
        self._on_block(block)
