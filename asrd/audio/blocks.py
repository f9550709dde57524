"""AudioBlock: samples with their place on the sample clock; samples made safe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from asrd.audio.format import SAMPLE_RATE

Samples = NDArray[np.float32]
"""1-D, contiguous, nominally -1..1."""


@dataclass(frozen=True, slots=True, eq=False)
class AudioBlock:
    """A run of samples and where it lies on the clock."""

    start: int
    """Sample index of the first sample."""
    samples: Samples
    overflow: bool = False
    """True when the source lost sound just before this block."""

    @property
    def stop(self) -> int:
        """One past the last sample."""
        return self.start + len(self.samples)

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE


MAX_SAMPLE = 2.0**31
"""What a 32-bit sample is that was never scaled; anything beyond it is damage, and would overflow
on its way."""

MIN_SAMPLE = float(np.finfo(np.float32).tiny)
"""Numbers below it are computed slowly, and nobody hears them."""


def clean(samples: Samples) -> tuple[Samples, int]:
    """Return samples without what is no sound, as silence in its place, and how many those were.

    That is NaN, infinity and what is louder than MAX_SAMPLE. What is softer than MIN_SAMPLE becomes
    silence and counts as sound.
    """
    size = np.abs(samples)
    sound = size <= MAX_SAMPLE  # false for a NaN too
    bad = samples.size - int(np.count_nonzero(sound))
    kept = sound & (size >= MIN_SAMPLE)
    return np.where(kept, samples, np.float32(0)), bad


class Source(Protocol):
    """Where sound comes from: yields blocks in order, the first one at `start` 0, without gaps
    unless `overflow`."""

    def __iter__(self) -> Iterator[AudioBlock]: ...
