"""Sound that is made on the spot: tones, noise, and vowels that a detector takes for speech."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATE = 16_000

VOWELS = {"a": (730, 1090, 2440), "i": (270, 2290, 3010), "u": (300, 870, 2240), "e": (530, 1840, 2480)}
"""Formants in hertz (Peterson and Barney, 1952)."""


def silence(seconds: float) -> NDArray[np.float32]:
    """Return digital silence."""
    return np.zeros(round(seconds * RATE), np.float32)


def tone(seconds: float, hertz: float = 440.0, level: float = 0.3, rate: int = RATE) -> NDArray[np.float32]:
    """Return a sine."""
    time = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def noise(seconds: float, level: float = 0.01, seed: int = 0) -> NDArray[np.float32]:
    """Return white noise."""
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def speech(seconds: float, seed: int = 2, level: float = 0.3) -> NDArray[np.float32]:
    """Return syllables of four vowels over a falling pitch: no words, but a voice."""
    random = np.random.default_rng(seed)
    count = round(seconds * RATE)
    time = np.arange(count) / RATE
    pitch = 120 * (1 + 0.1 * np.sin(2 * np.pi * 2.3 * time)) - 10 * time / max(seconds, 1)
    phase = np.cumsum(pitch) / RATE
    sound = np.zeros(count)
    names = random.choice(list(VOWELS), size=max(1, round(seconds * 4)) + 1)
    syllable = np.minimum((time * 4).astype(int), len(names) - 1)
    for harmonic in range(1, 30):
        frequency = harmonic * pitch
        gain = np.zeros(count)
        for name in VOWELS:
            peaks = sum(1 / (1 + ((frequency - formant) / 80) ** 2) for formant in VOWELS[name])
            gain += np.where(names[syllable] == name, peaks, 0)
        sound += gain * np.sin(2 * np.pi * harmonic * phase) / harmonic**0.5
    envelope = 0.15 + 0.85 * np.abs(np.sin(np.pi * 4 * time)) ** 0.5
    sound *= envelope
    return (level * sound / np.abs(sound).max()).astype(np.float32)
