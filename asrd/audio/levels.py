"""How loud sound is: the speech in it, what is between, and what was cut off at full scale.

Levels are mean powers in dBFS: 0 is a square wave at full scale, a voice close to a microphone is
at about -25. The level of speech follows the idea of ITU-T P.56: of 20-ms frames only those count
in which somebody is speaking. Memory is constant, however long the sound is. Pure.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from asrd.audio.blocks import Samples
from asrd.audio.format import SAMPLE_RATE

FRAME_SAMPLES = SAMPLE_RATE // 50
"""Samples of one level (20 ms)."""

FLOOR_DBFS = -120
"""What is softer counts as this; 16-bit sound has nothing below -98 but silence."""

ACTIVE_DB = 20
"""So far below the loudest twentieth of its frames a frame still is speech, not a rest between
words."""

QUIET_DBFS = -45.0
"""Speech below it makes asrd warn. The shipped models still hear it; others lose words to noise by
then."""

SILENT_DBFS = -85.0
"""A microphone whose every frame lies below it delivers nothing: the noise of any real one is
louder."""

UNDETECTED_DBFS = -60.0
"""The detector may miss speech whose loudest frame is softer; of the shipped clips it does so from
-65 on."""

AIM_DBFS = -25.0
"""Where a warning leads to."""

CLIPPED_DB = 10
"""Decibels that a microphone that clips is to be turned down."""

FULL_SCALE_SAMPLE = 0.985
"""A sample from here on was cut off: resampling moves what was at 1 a little."""

CLIPPED_SHARE = 0.001
"""Share of samples in speech from which on it clips. The highest peaks of a loud clean voice stay
far below."""


JUDGED_SECONDS = 1.0
"""A shorter recording says nothing of a microphone: the key was pressed by mistake, or one word was
begun."""


class Judgement(msgspec.Struct, frozen=True):
    """What a recording says of its microphone."""

    speech_dbfs: float | None
    noise_dbfs: float | None
    clipped: float
    """Share of the samples in speech that are at full scale, 0..1."""
    kind: str = ""
    """quiet, clipped or silent; "" where all is well."""
    problem: str = ""
    """The end of a sentence that begins with the microphone's name; "" where all is well."""
    advised_db: int = 0
    """Decibels that would mend it; 0 where no volume does."""


class Loudness:
    """The levels of one recording, taken in piece by piece."""

    def __init__(self) -> None:
        self._speech = np.zeros(-FLOOR_DBFS + 10, np.int64)
        self._rest = np.zeros_like(self._speech)
        self._cut = self._spoken = 0

    def push(self, samples: Samples, speech: bool) -> None:
        """Take in a piece; `speech` says whether the detector took it for speech. Less than a frame
        is passed over."""
        frames = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
        if not len(frames):
            return
        powers = np.einsum("ij,ij->i", frames, frames) / FRAME_SAMPLES
        levels = 10 * np.log10(np.maximum(powers, 1e-12)) - FLOOR_DBFS
        bins = np.clip(np.rint(levels).astype(np.int64), 0, len(self._speech) - 1)
        np.add.at(self._speech if speech else self._rest, bins, 1)
        if speech:
            self._spoken += frames.size
            self._cut += int(np.count_nonzero(np.abs(frames) >= FULL_SCALE_SAMPLE))

    @property
    def speech(self) -> float | None:
        """Level of the speech, in dBFS; None where there was none."""
        count = int(self._speech.sum())
        if not count:
            return None
        above = np.cumsum(self._speech[::-1])[::-1]
        loud = int(np.flatnonzero(above >= max(1, count / 20))[-1])
        active = np.arange(len(self._speech)) >= loud - ACTIVE_DB
        counts = self._speech * active
        powers = 10.0 ** ((np.arange(len(counts)) + FLOOR_DBFS) / 10)
        return round(10 * math.log10(float(counts @ powers) / float(counts.sum())), 1)

    @property
    def noise(self) -> float | None:
        """Level of what is not speech: half of its frames are softer, in dBFS; None where there was
        nothing else."""
        count = int(self._rest.sum())
        if not count:
            return None
        return float(np.searchsorted(np.cumsum(self._rest), count / 2) + FLOOR_DBFS)

    @property
    def loudest(self) -> float | None:
        """Level of the loudest frame of all, in dBFS; None before the first."""
        used = np.flatnonzero(self._speech + self._rest)
        return float(used[-1] + FLOOR_DBFS) if len(used) else None

    @property
    def clipped(self) -> float:
        """Share of the samples in speech that are at full scale, 0..1."""
        return self._cut / self._spoken if self._spoken else 0.0


def judge(found: Loudness, spoken: bool = False) -> Judgement:
    """Return what levels say of the microphone that they come from.

    Args:
        spoken: somebody meant to speak, so that sound in which no speech was found may be too soft
            to be speech.
    """
    speech, noise, clipped, loudest = found.speech, found.noise, found.clipped, found.loudest
    if speech is not None and clipped >= CLIPPED_SHARE:
        told = f"is too loud: {100 * clipped:.1f} % of the speech is cut off at full scale"
        return Judgement(speech, noise, clipped, "clipped", told, -CLIPPED_DB)
    if speech is not None and speech < QUIET_DBFS:
        told = f"is very quiet: speech is at {speech:.0f} dBFS"
        return Judgement(
            speech, noise, clipped, "quiet", told, math.ceil((AIM_DBFS - speech) / 5) * 5
        )
    if speech is None and loudest is not None and loudest < SILENT_DBFS:
        return Judgement(speech, noise, clipped, "silent", "delivers only silence")
    if spoken and speech is None and loudest is not None and loudest < UNDETECTED_DBFS:
        told = f"is very quiet: no speech was found, and nothing in it is above {loudest:.0f} dBFS"
        return Judgement(
            speech, noise, clipped, "quiet", told, math.ceil((AIM_DBFS - loudest) / 5) * 5
        )
    return Judgement(speech, noise, clipped)
