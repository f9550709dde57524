"""Nobody speaks, and no word comes out: the detector, the window and the shipped models on sounds
that are no speech.

A few minutes of what `tools/bench-invented` does for hours.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asrd import protocol
from asrd.audio.blocks import AudioBlock
from asrd.config.settings import Settings
from asrd.models.names import SHIPPED
from asrd.precision.plan import Candidate
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.protocol import Answer, DecodingContext, Hypothesis, Word
from asrd.streaming.session import StreamingSession
from asrd.streaming.transcript import credible
from asrd.worker.recognizer import Recognizer
from asrd.worker.startup import start_recognizer
from tests import sound
from tests.helpers import ROOT
from tests.sound import RATE

CHORD = (10 ** (-50 / 20) * sound.music(60.0, 1)).astype(np.float32)
"""Music at a level at which the detector takes single chords for something that may be speech."""


class Ear:
    """A model in this process, asked as the engine is; or one that hears one word in whatever it is
    given."""

    candidate = Candidate(STRATEGY_TABLE["fp32"], "cpu")
    ready = None

    def __init__(self, model: str = "", confidence: float | None = None) -> None:
        self.model, self.confidence, self.asked = model, confidence, 0

    async def transcribe(
        self,
        samples: Any,
        start: int = 0,
        phase: str = "final",
        said: DecodingContext | None = None,
    ) -> Answer:
        self.asked += 1
        if self.model:
            return worker(self.model).recognize(samples.tobytes(), start, phase, said)
        words = [Word("word", start, start + len(samples), self.confidence)]
        return Answer(0, Hypothesis("word", words, start, start + len(samples)), 0.0, 0.0, 0.0)


@cache
def worker(model: str) -> Recognizer:
    return start_recognizer(
        protocol.Start(model, STRATEGY_TABLE["fp32"], threads=1, self_test=False), lambda _: None
    )


def heard(ear: Ear, samples: np.ndarray) -> list[str]:
    async def go() -> list[str]:
        dictation = StreamingSession(Settings())
        words: list[Word] = []
        for start in range(0, len(samples), 1600):
            dictation.push(AudioBlock(start, samples[start : start + 1600]))
            words += await dictation.decode(ear)  # type: ignore[arg-type]
        dictation.finish()
        return [word.text for word in words + await dictation.decode(ear)]  # type: ignore[arg-type]

    return asyncio.run(go())


@pytest.mark.parametrize("model", SHIPPED)
@pytest.mark.parametrize(
    "samples",
    [
        sound.silence(60),
        sound.noise(60, 0.1),
        0.1 * sound.pink(60),
        0.1 * sound.pink(60, slope=1.0),
        0.1 * sound.hum(60),
        0.1 * sound.fan(60),
        0.5 * sound.clicks(60),
        0.5 * sound.coughs(60),
        CHORD,
        0.01 * sound.music(60, 2),
    ],
    ids=[
        "silence",
        "white",
        "pink",
        "brown",
        "hum",
        "fan",
        "keyboard",
        "coughs",
        "chords",
        "music",
    ],
)
def test_no_word_comes_out(samples: np.ndarray, model: str) -> None:
    assert heard(Ear(model), samples.astype(np.float32)) == []


def test_what_the_detector_doubts_must_be_heard_clearly() -> None:
    for confidence, said in ((0.69, False), (0.71, True), (None, True)):
        ear = Ear(confidence=confidence)
        assert bool(heard(ear, CHORD)) == said
        assert ear.asked, "the detector opened"


@pytest.mark.parametrize(
    ("confidences", "spoken", "believed"),
    [
        ([0.9], 0.28, False),
        ([0.9], 0.3, True),
        ([0.9, 0.8], 0.1, True),
        ([0.9, 0.3], 0.2, False),
        ([], 9.0, False),
    ],
)
def test_in_a_burst_of_doubtful_speech_it_takes_two_clear_words(
    confidences: list[float], spoken: float, believed: bool
) -> None:
    words = [Word("in", 0, 1, confidence) for confidence in confidences]
    assert credible(Hypothesis("in", words, 0, 1), spoken) is believed


def test_what_is_surely_speech_is_believed_however_unclear_the_words() -> None:
    clear = np.concatenate([sound.silence(1), sound.speech(1.5), sound.silence(1)])
    assert heard(Ear(confidence=0.01), clear) == ["word"]
    assert len(clear) == round(3.5 * RATE)


def test_the_tool_that_listens_for_hours_runs(tmp_path: Path) -> None:
    words = ["--kind", "music", "--minutes", "1", "--json", tmp_path / "found"]
    command = [sys.executable, "tools/bench-invented", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "found").read_text())["music"]
    assert sum(row["opened"] for row in rows.values()) > 0, "else no model was asked"
    assert all(row["words"] == {name: [] for name in SHIPPED} for row in rows.values())
