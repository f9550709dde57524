"""The sounds that everything is measured on: shipped clips, alone and joined, the same in every
run."""

from __future__ import annotations

import itertools
import random
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from asrd.audio import files
from asrd.audio.format import SAMPLE_RATE
from asrd.audio.vad import VadEvent
from asrd.evaluation import manifest
from asrd.evaluation.manifest import Clip
from asrd.streaming.segmenter import on_grid

Samples = NDArray[np.float32]

EVAL = Path(__file__).parents[2] / "asrd" / "data" / "eval" / "manifest.jsonl"

PAUSE = 0.7
"""Seconds of silence between joined clips."""


@dataclass(frozen=True, eq=False)
class Joined:
    """Clips, or sentences, one after the other."""

    samples: Samples
    texts: list[str]
    """What was said, one by one."""
    cuts: list[int]
    """Where each after the first begins, in samples."""


def clips() -> list[Clip]:
    """Return the shipped evaluation clips. Raises ManifestError where they cannot be read."""
    found, skipped = manifest.read(EVAL)
    if skipped:
        raise SystemExit(f"asrd: {EVAL}: {skipped[0].reason}")
    return found


def near(found: list[Clip], seconds: float, count: int) -> list[Clip]:
    """Return the clips whose length is nearest to so many seconds."""
    return sorted(found, key=lambda clip: abs(len(clip.samples) / SAMPLE_RATE - seconds))[:count]


def joined(found: list[Clip], seconds: float, seed: int = 0) -> Joined:
    """Return so many seconds at least of clips, in an order drawn anew for each seed, and again
    from the first."""
    order = random.Random(seed).sample(found, len(found))
    gap = np.zeros(round(PAUSE * SAMPLE_RATE), np.float32)
    parts: list[Samples] = []
    texts: list[str] = []
    while sum(map(len, parts)) < seconds * SAMPLE_RATE:
        clip = order[len(texts) % len(order)]
        parts.append(np.concatenate([clip.samples, gap]))
        texts.append(clip.text)
    return Joined(
        np.concatenate(parts), texts, np.cumsum([len(part) for part in parts])[:-1].tolist()
    )


class Sentence(NamedTuple):
    """A part of speech that went on before and after it."""

    samples: Samples
    text: str


def spoken(seconds: float, seed: int = 0) -> Joined:
    """Return so many seconds at least of sentences that one voice speaks through, without any
    pause."""
    parts: list[Sentence] = []
    for number in itertools.count(1000 * seed):
        if sum(len(part.samples) for part in parts) >= seconds * SAMPLE_RATE:
            break
        parts += breath(number)
    lengths = [len(part.samples) for part in parts]
    cuts = np.cumsum(lengths)[:-1].tolist()
    return Joined(
        np.concatenate([part.samples for part in parts]), [part.text for part in parts], cuts
    )


@cache
def breath(number: int) -> list[Sentence]:
    """Return the sentences of one breath, some 25 s, cut where they meet; none where that cannot be
    told."""
    from tools import demo_speech

    dice = random.Random(number)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "speech.wav"
        texts = [demo_speech.draw_text(dice, "test", "sentence") for _ in range(8)]
        said = phones(" ".join(texts), file)
        samples = files.read(file)
        counts = [len(phones(text, file)) for text in texts]
    if sum(counts) != len(said):  # a word is said otherwise next to another sentence
        return []
    firsts = [said[sum(counts[:n])][0] for n in range(len(texts))]
    edges = [round(SAMPLE_RATE * at) for at in (*firsts, said[-1][1])]
    return [
        Sentence(samples[a:b], text) for a, b, text in zip(edges, edges[1:], texts, strict=False)
    ]


def phones(text: str, file: Path, voice: str = "rms") -> list[tuple[float, float]]:
    """Have flite speak a text into a file and return when each of its phones was, in seconds,
    pauses left out."""
    words = ["flite", "-voice", voice, "-psdur", "-t", text, "-o", str(file)]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    ends = [float(part.rpartition(":")[2]) for part in printed]
    names = [part.rpartition(":")[0] for part in printed]
    return [(a, b) for name, a, b in zip(names, [0.0, *ends], ends, strict=False) if name != "pau"]


def stretches(samples: Samples, events: list[VadEvent]) -> list[Samples]:
    """Return what the detector takes for speech, each stretch from its opening to its end, however
    long it is.

    From the frame, of a decode of all the sound, in which it opens.
    """
    opened = [on_grid(event.at) for event in events if event.kind == "open"]
    closed = [event.at for event in events if event.kind == "close"]
    spans = zip(opened, itertools.pairwise([0, *closed]), strict=True)
    return [samples[max(start, last) : stop] for start, (last, stop) in spans]


def exactly(sound: Samples, seconds: float) -> Samples:
    """Return the last so many seconds, so that a dictation ends where a clip does."""
    return sound[-round(seconds * SAMPLE_RATE) :]


def room(seconds: float) -> Samples:
    """Return a quiet room: white noise of -60 dB below full scale."""
    noise = np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE))
    return (0.001 * noise).astype(np.float32)
