"""Speech without a pause, by real models whose text has no spaces: none of it is lost at the edges
of the window."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import soundfile

from asrd.evaluation.report.page import html
from asrd.evaluation.report.table import table
from asrd.evaluation.speech import read_manifest
from asrd.scoring import edits
from tests.evaluation.test_table import comparison, measured
from tests.fakes.relabelled import chinese, plain, relabelled
from tests.tools.test_seams import tool


@pytest.fixture(scope="module")
def glued() -> Any:
    """Speech without a pause for nearly three windows."""
    [sound] = tool.sounds("glued", 27, 27)
    return sound


@pytest.mark.parametrize("name", ["demo-ctc", "demo-tdt", "demo"])
def test_a_model_without_spaces_says_what_it_says_with_them(
    name: str, glued: Any, tmp_path: Path
) -> None:
    path = relabelled(name, tmp_path)
    with_spaces = asyncio.run(tool.stream(glued, tool.Ear(name)))
    without = asyncio.run(tool.stream(glued, tool.Ear(str(path))))
    assert not any(map(str.isspace, without))
    assert edits([with_spaces], [plain(without, name)]).rate <= 3


def test_the_verb_gives_all_of_it_with_its_times(glued: Any, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "glued.wav", glued.samples, 16_000, subtype="FLOAT")
    command = [sys.executable, "-m", "asrd", "transcribe", "--no-daemon", "--json", "--model"]
    command += [str(relabelled("demo-tdt", tmp_path)), str(tmp_path / "glued.wav")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(ended.stdout)
    assert found["complete"]
    assert "".join(word["text"] for word in found["words"]) == found["text"]
    assert edits([glued.text], [plain(found["text"], "demo-tdt")]).rate <= 25
    starts = [word["start"] for word in found["words"]]
    assert max(b - a for a, b in pairwise([0.0, *starts, found["duration"]])) < 3, (
        "no window lost its speech"
    )


def test_a_manifest_of_such_a_script_is_counted_in_characters(tmp_path: Path) -> None:
    said = [chinese("i drove to the office", "demo-tdt"), chinese("remind me", "demo-tdt")]
    lines = []
    for number, text in enumerate(said):
        soundfile.write(tmp_path / f"{number}.wav", [0.0] * 16_000, 16_000)
        lines.append(json.dumps({"audio_filepath": f"{number}.wav", "text": text}))
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    _, speech = read_manifest(tmp_path / "m.jsonl", None, "en")
    assert (speech.metric, speech.words) == ("CER", sum(map(len, said)))


def test_a_character_error_rate_is_called_so_everywhere() -> None:
    plain_one = comparison(measured("half", wrong=3))
    manifest = msgspec.structs.replace(plain_one.manifest, metric="CER")
    one = msgspec.structs.replace(plain_one, metric="CER", manifest=manifest)
    for width in (70, 120):
        shown = table(one, width)
        assert "CER" in shown
        assert "WER" not in shown
        assert "280 characters" in shown
    page = html(one).partition("Definitions")[0]
    assert "CER<br>%" in page
    assert "CER against FP32" in page
    assert "WER<br>" not in page
    assert json.loads(msgspec.json.encode(one))["metric"] == "CER"
    assert json.loads(msgspec.json.encode(plain_one))["metric"] == "WER"
