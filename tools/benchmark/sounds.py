"""The sounds that everything is measured on: shipped clips, alone and joined, the same in every run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asrd import manifest
from asrd.manifest import Clip
from asrd.wire import SAMPLE_RATE

Samples = NDArray[np.float32]

EVAL = Path(__file__).parents[2] / "asrd" / "data" / "eval" / "manifest.jsonl"

PAUSE = 0.7
"""Seconds of silence between joined clips, where there is to be one."""

LOUD = 0.02
"""A part of the clip's peak; its edges below it are taken off where clips are to follow without a pause."""


@dataclass(frozen=True, eq=False)
class Joined:
    """Clips one after the other."""

    samples: Samples
    texts: list[str]
    """What was said, clip by clip."""
    cuts: list[int]
    """Where each clip after the first begins, in samples."""

    def pieces(self) -> Iterator[Samples]:
        """Yield the clips' own sounds, as nobody could cut them who does not know the joins."""
        yield from np.split(self.samples, self.cuts)


def clips() -> list[Clip]:
    """Return the shipped evaluation clips. Raises ManifestError where they cannot be read."""
    found, skipped = manifest.read(EVAL)
    if skipped:
        raise SystemExit(f"asrd: {EVAL}: {skipped[0].reason}")
    return found


def near(found: list[Clip], seconds: float, count: int) -> list[Clip]:
    """Return the clips whose length is nearest to so many seconds."""
    return sorted(found, key=lambda clip: abs(len(clip.samples) / SAMPLE_RATE - seconds))[:count]


def joined(found: list[Clip], seconds: float, pauses: bool = True, seed: int = 0) -> Joined:
    """Return so many seconds at least of clips, in an order drawn anew for each seed, and again from the first."""
    order = random.Random(seed).sample(found, len(found))
    gap = np.zeros(round(PAUSE * SAMPLE_RATE) if pauses else 0, np.float32)
    parts: list[Samples] = []
    texts: list[str] = []
    length = 0
    while length < seconds * SAMPLE_RATE:
        clip = order[len(texts) % len(order)]
        sound = clip.samples if pauses else trimmed(clip.samples)
        parts.append(np.concatenate([sound, gap]))
        texts.append(clip.text)
        length += len(parts[-1])
    return Joined(np.concatenate(parts), texts, np.cumsum([len(part) for part in parts])[:-1].tolist())


def trimmed(samples: Samples) -> Samples:
    """Return a clip without the silence at its edges."""
    loud = np.flatnonzero(np.abs(samples) > LOUD * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]


def exactly(sound: Samples, seconds: float) -> Samples:
    """Return the last so many seconds, so that a dictation ends where a clip does."""
    return sound[-round(seconds * SAMPLE_RATE) :]


def room(seconds: float) -> Samples:
    """Return a quiet room: white noise of -60 dB below full scale."""
    noise = np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE))
    return (0.001 * noise).astype(np.float32)
