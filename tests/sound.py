"""Sound that is made on the spot: tones, noise, and vowels that a detector takes for speech."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATE = 16_000

VOWELS = {
    "a": (730, 1090, 2440),
    "i": (270, 2290, 3010),
    "u": (300, 870, 2240),
    "e": (530, 1840, 2480),
}
"""Formants in hertz (Peterson and Barney, 1952)."""


def silence(seconds: float) -> NDArray[np.float32]:
    """Return digital silence."""
    return np.zeros(round(seconds * RATE), np.float32)


def tone(
    seconds: float, hertz: float = 440.0, level: float = 0.3, rate: int = RATE
) -> NDArray[np.float32]:
    """Return a sine."""
    time = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def noise(seconds: float, level: float = 0.01, seed: int = 0) -> NDArray[np.float32]:
    """Return white noise."""
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(
        np.float32
    )


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


# -- what a microphone hears when nobody speaks: a minute and longer, seeded, none of it speech
# ------------------------


def pink(seconds: float, seed: int = 0, slope: float = 0.5) -> NDArray[np.float32]:
    """Return noise whose amplitude falls with frequency to the power of `slope`: 0.5 is pink, 1
    brown; RMS 1."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(round(seconds * RATE)))
    shaped = np.fft.irfft(
        spectrum / np.arange(1, len(spectrum) + 1) ** slope, round(seconds * RATE)
    )
    return (shaped / shaped.std()).astype(np.float32)


def hum(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Return a mains hum with its harmonics; RMS about 1."""
    random = np.random.default_rng(seed)
    time, base = np.arange(round(seconds * RATE)) / RATE, random.choice([50.0, 60.0])
    parts = [
        np.sin(2 * np.pi * base * n * time + random.uniform(0, 6)) / n for n in (1, 2, 3, 5, 6, 9)
    ]
    return np.sum(parts, axis=0).astype(np.float32)


def fan(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Return a fan: brown and pink noise that swells with each turn, and the tone of its blades;
    RMS about 1."""
    random = np.random.default_rng(seed)
    time, turns = np.arange(round(seconds * RATE)) / RATE, random.uniform(8, 30)
    air = 0.6 * pink(seconds, seed, 1.0) + 0.4 * pink(seconds, seed + 1)
    blades = 0.3 * np.sin(2 * np.pi * 7 * turns * time) + 0.1 * np.sin(
        2 * np.pi * 14 * turns * time
    )
    return (air * (1 + 0.2 * np.sin(2 * np.pi * turns * time)) + blades).astype(np.float32)


def music(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Return chords of struck strings, four notes of a scale at a time, at the pace of a song; RMS
    about 1."""
    random, count = np.random.default_rng(seed), round(seconds * RATE)
    sound = np.zeros(count + 4 * RATE)
    position = 0
    while position < count:
        length = int(random.choice([0.2, 0.3, 0.4, 0.6, 0.8]) * RATE)
        time = np.arange(min(3 * length, 3 * RATE)) / RATE
        for note in random.choice(
            [0, 2, 4, 5, 7, 9, 11, 12], size=random.integers(1, 5), replace=False
        ):
            pitch = 110 * 2 ** (note / 12 + random.integers(0, 3))
            wobble = 1 + 0.003 * np.sin(2 * np.pi * 5.5 * time)
            tones = sum(np.sin(2 * np.pi * n * pitch * wobble * time) / n**1.3 for n in range(1, 9))
            sound[position : position + len(time)] += tones * np.exp(-2.5 * time)
        position += length
    return (sound[:count] / sound[:count].std()).astype(np.float32)


def clicks(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Return a keyboard: knocks of a few milliseconds in bursts; peak about 1."""
    random, count = np.random.default_rng(seed), round(seconds * RATE)
    sound, position = np.zeros(count + RATE), 0
    while position < count:
        for _ in range(random.integers(1, 12)):
            time = np.arange(RATE // 20) / RATE
            tone = np.sin(2 * np.pi * random.uniform(300, 3000) * time) + random.standard_normal(
                len(time)
            )
            knock = 0.4 * tone * np.exp(-time * random.uniform(100, 500)) * random.uniform(0.3, 1)
            sound[position : position + len(time)] += knock[: max(0, len(sound) - position)]
            position = min(position + int(random.uniform(0.06, 0.3) * RATE), count)
        position += int(random.uniform(0.3, 3.0) * RATE)
    return sound[:count].astype(np.float32)


def coughs(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Return coughs: a burst of breath through a throat, then a weaker one with some voice in it;
    peak about 1."""
    random, count = np.random.default_rng(seed), round(seconds * RATE)
    sound, position = np.zeros(count + 2 * RATE), int(random.uniform(0, 1) * RATE)
    while position < count:
        for strength, length in ((1.0, 0.12), (0.5, 0.25))[: random.integers(1, 3)]:
            time = np.arange(int(length * random.uniform(0.8, 1.4) * RATE)) / RATE
            spectrum = np.fft.rfft(random.standard_normal(len(time)))
            hertz = np.fft.rfftfreq(len(time), 1 / RATE)
            throat = sum(
                1 / (1 + ((hertz - f) / 250) ** 2)
                for f in random.uniform((400, 1200, 2500), (800, 1800, 3500))
            )
            breath = np.fft.irfft(spectrum * throat, len(time))
            voice = np.sin(2 * np.pi * np.cumsum(random.uniform(120, 350) * (1 - time)) / RATE) * (
                strength < 1
            )
            burst = (
                (breath / np.abs(breath).max() + 0.3 * voice)
                * np.exp(-time * 12)
                * np.minimum(1, time * 200)
            )
            sound[position : position + len(time)] += strength * burst
            position += len(time)
        position += int(random.uniform(0.4, 6.0) * RATE)
    return sound[:count].astype(np.float32)
