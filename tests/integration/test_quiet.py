"""Quiet speech stays heard: talks that no model was trained on, at -61 dBFS as at -21, through the
real verb."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import soundfile

from asrd.scoring import edits
from tests.helpers import ROOT, load_tool

TALKS = 10
MEMBERS = [(dbfs, noisy) for dbfs in (-21, -41, -61) for noisy in (False, True)]
"""Level of the speech, and whether noise lies 20 dB below it; TALKS of each."""

LIMIT_PERCENT = 4.0
"""Of the words of all talks at one level, at most."""


tool = load_tool("bench-quiet")


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, bool], list[str]]:
    """Return what `asrd transcribe` made of each talk at each level."""
    folder = tmp_path_factory.mktemp("quiet")
    names = []
    for dbfs, noisy in MEMBERS:
        for number, talk in enumerate(tool.talks(TALKS, whispered=False)):
            names.append(f"talk{dbfs}-{noisy}-{number}.wav")
            soundfile.write(
                folder / names[-1],
                tool.recorded(talk, dbfs, noisy, number).samples,
                16_000,
                "PCM_16",
            )
    done = subprocess.run(
        [sys.executable, "-m", "asrd", "transcribe", "--json", "--no-daemon", "--model", "demo", *names],
        cwd=folder, env=os.environ | {"PYTHONPATH": os.fspath(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    texts = [json.loads(line)["text"] for line in done.stdout.splitlines()]
    return {member: texts[n * TALKS : (n + 1) * TALKS] for n, member in enumerate(MEMBERS)}


@pytest.mark.parametrize(("dbfs", "noisy"), MEMBERS)
def test_quiet_speech_is_heard(
    dbfs: int, noisy: bool, heard: dict[tuple[int, bool], list[str]]
) -> None:
    references = [" ".join(talk.texts) for talk in tool.talks(TALKS, whispered=False)]
    assert edits(references, heard[dbfs, noisy]).rate <= LIMIT_PERCENT


def test_a_sound_has_the_level_that_it_was_made_at() -> None:
    [talk] = tool.talks(1, whispered=False)
    sound = tool.recorded(talk, -61, False, 0)
    power = (sound.samples.reshape(-1, tool.FRAME_SAMPLES)[sound.speech] ** 2).mean()
    assert 10 * tool.np.log10(power) == pytest.approx(-61, abs=0.5)
