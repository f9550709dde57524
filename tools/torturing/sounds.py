"""What is spoken to the daemons: shipped clips, each taken at most a few times, in an order that
the seed decides."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from .home import SAMPLE_RATE

DATA = Path(__file__).parents[2] / "asrd" / "data" / "eval"

PAUSE_SECONDS = 1.0
"""Silence between two clips: long enough that a segment ends there."""

NOISE_PEAK = 3
"""Of the silence, in steps of 16 bit: a quiet room."""


def clips(shortest: float, longest: float) -> list[np.ndarray]:
    """Return the shipped clean clips of so many seconds, int16."""
    lines = map(json.loads, (DATA / "manifest.jsonl").read_text().splitlines())
    named = [
        DATA / one["audio_filepath"] for one in lines if shortest <= one["duration"] <= longest
    ]
    return [soundfile.read(path, dtype="int16")[0] for path in named]


def endless(draw: random.Random, shortest: float, longest: float) -> Iterator[np.ndarray]:
    """Yield clips for ever, all of them before any comes again."""
    some = clips(shortest, longest)
    while True:
        yield from draw.sample(some, len(some))


def joined(draw: random.Random, parts: list[np.ndarray]) -> np.ndarray:
    """Return clips with a quiet room before, between and behind them."""
    pieces = [room(draw, PAUSE_SECONDS / 2)]
    for part in parts:
        pieces += [part, room(draw, PAUSE_SECONDS)]
    return np.concatenate(pieces)


def room(draw: random.Random, seconds: float) -> np.ndarray:
    """Return the sound of a quiet room, int16."""
    dice = np.random.default_rng(draw.getrandbits(32))
    return dice.integers(-NOISE_PEAK, NOISE_PEAK + 1, round(seconds * SAMPLE_RATE)).astype(np.int16)
