"""`asrd transcribe`, the real program on real files, and its shapes of output."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
import soxr

from asrd.audio.files import read
from asrd.audio.format import SAMPLE_RATE
from asrd.cli import transcribe as cli_transcribe
from asrd.cli.subtitles import MAX_CUE_LETTERS, MAX_CUE_SECONDS, cues, subtitles
from asrd.config.settings import Settings
from asrd.errors import EngineError, UsageError
from asrd.paths import DATA_FOLDER
from asrd.precision.plan import Candidate
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.protocol import Answer, DecodingContext, Hypothesis, Word
from tests.helpers import ROOT
from tests.sound import silence, speech, tone

EVAL = DATA_FOLDER / "eval"
CLEAN = [
    line
    for line in map(json.loads, (EVAL / "manifest.jsonl").read_text().splitlines())
    if line["sound"] == "clean"
]
FEW = [line for line in CLEAN if line["group"] == "trained voice"][:8]

MEASURED = r"""
import re, sys
from asrd.cli.main import main
code = main(sys.argv[1:])
# Not getrusage: its peak survives exec, so a child of a large process begins with its parent's.
print("peak", re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
sys.exit(code)
"""


def clip(line: dict[str, Any]) -> np.ndarray:
    return read(EVAL / line["audio_filepath"])


def program(*words: str, code: str = MEASURED, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    command = [sys.executable, "-c", code, "transcribe", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, **more)


def children(of: int) -> list[int]:
    """Return the processes whose parent is `of`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == of:
                found.append(int(entry.name))
    return found


# -- one run of the real worker over everything
# -----------------------------------------------------------------------


class Run:
    """What one call over many files gave."""

    def __init__(self, done: subprocess.CompletedProcess[str], folder: Path) -> None:
        self.code, self.errors = done.returncode, done.stderr
        self.by_name = {
            Path(one["path"]).name: one for one in map(json.loads, done.stdout.splitlines())
        }
        self.folder = folder

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self.by_name[name]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Every kind of file in one call."""
    folder = tmp_path_factory.mktemp("files")

    def put(name: str, sound: np.ndarray, rate: int = SAMPLE_RATE, **kind: str) -> None:
        soundfile.write(folder / name, sound, rate, **kind)

    first = clip(FEW[0])
    put("one.flac", first)
    put(
        "stereo48.wav",
        np.stack([soxr.resample(first, SAMPLE_RATE, 48_000)] * 2, axis=1),
        48_000,
        subtype="FLOAT",
    )
    put(
        "five96.wav",
        np.stack([soxr.resample(first, SAMPLE_RATE, 96_000)] * 5, axis=1),
        96_000,
        subtype="DOUBLE",
    )
    put("telephone.wav", soxr.resample(first, SAMPLE_RATE, 8000), 8000)
    put("silence.wav", silence(12))
    put("tone.wav", tone(12))
    put("short.wav", silence(0.001)[:1])
    put("all-nan.wav", np.full(16_000, np.nan, np.float32), subtype="FLOAT")
    put(
        "some-nan.wav",
        np.where(np.arange(len(first)) < 50, np.nan, first).astype(np.float32),
        subtype="FLOAT",
    )
    put("offset.wav", 0.8 * first + 0.2, subtype="FLOAT")
    put("quiet.wav", first / 50, subtype="FLOAT")
    put("clipped.wav", np.clip(4 * first, -1, 1))
    (folder / "text.wav").write_text("this is not sound")
    pieces = []
    for line in FEW:
        pieces += [clip(line), silence(0.8)]
    put("long.flac", np.concatenate(pieces))
    put("no-pause.flac", np.concatenate([clip(line) for line in FEW]))
    with soundfile.SoundFile(folder / "hour.flac", "w", 8000, 1) as out:
        for minute in range(60):
            spoken = (
                soxr.resample(clip(FEW[minute // 20]), SAMPLE_RATE, 8000)
                if minute % 20 == 10
                else silence(0)
            )
            out.write(spoken)
            out.write(np.zeros(60 * 8000 - len(spoken), np.float32))
    names = [
        *(
            "one.flac",
            "stereo48.wav",
            "five96.wav",
            "telephone.wav",
            "absent.wav",
            "silence.wav",
            "tone.wav",
        ),
        *("offset.wav", "quiet.wav", "clipped.wav"),
        *(
            "short.wav",
            "all-nan.wav",
            "some-nan.wav",
            "text.wav",
            "long.flac",
            "no-pause.flac",
            "hour.flac",
        ),
    ]
    return Run(
        program("--json", "--model", "demo-ctc", *(str(folder / name) for name in names)), folder
    )


def test_each_file_is_one_object_with_every_key(run: Run) -> None:
    one = run["one.flac"]
    assert set(one) == {
        "path", "text", "words", "duration", "rtfx", "strategy", "device", "model", "complete", "warning"
    }  # fmt: skip
    assert one["duration"] == pytest.approx(FEW[0]["duration"], abs=0.001)
    assert (one["strategy"], one["device"], one["model"]) == ("fp32", "cpu", "demo-ctc") or one[
        "device"
    ] != "cpu"
    assert one["complete"] is True
    assert one["rtfx"] > 0
    assert one["text"] == " ".join(word["text"] for word in one["words"])
    assert jiwer.wer(FEW[0]["text"], one["text"]) < 0.2


def test_words_lie_in_order_within_the_file(run: Run) -> None:
    for name in ("one.flac", "long.flac", "no-pause.flac", "hour.flac"):
        times = [t for word in run[name]["words"] for t in (word["start"], word["stop"])]
        assert times == sorted(times), name
        assert times[-1] <= run[name]["duration"] + 0.001, name
        assert times[0] > 0, name
        assert all(0 <= word["confidence"] <= 1 for word in run[name]["words"]), name


def test_channels_and_rates_do_not_change_the_words(run: Run) -> None:
    expected = run["one.flac"]["text"]
    for name in ("stereo48.wav", "five96.wav", "some-nan.wav"):
        assert jiwer.wer(expected, run[name]["text"]) <= 0.15, name
    assert run["telephone.wav"]["complete"]


def test_a_bad_microphone_changes_few_words(run: Run) -> None:
    expected = run["one.flac"]["text"]
    for name in ("offset.wav", "quiet.wav", "clipped.wav"):
        assert jiwer.wer(expected, run[name]["text"]) <= 0.15, (name, expected, run[name]["text"])


def test_no_speech_is_no_text_and_no_error(run: Run) -> None:
    for name, seconds in (("silence.wav", 12), ("tone.wav", 12), ("short.wav", 0.0)):
        assert run[name]["text"] == ""
        assert run[name]["words"] == []
        assert run[name]["duration"] == pytest.approx(seconds, abs=0.001)


def test_a_long_file_has_the_words_of_its_parts(run: Run) -> None:
    spoken = " ".join(line["text"] for line in FEW)
    assert jiwer.wer(spoken, run["long.flac"]["text"]) < 0.2
    assert jiwer.wer(spoken, run["no-pause.flac"]["text"]) < 0.5


def test_what_cannot_be_read_is_one_line_each_and_the_rest_goes_on(run: Run) -> None:
    assert run.code == 65
    every = [line for line in run.errors.splitlines() if not line.startswith("peak")]
    silent = [line for line in every if line.endswith(": no speech was found in it")]
    lines = [line for line in every if line not in silent]
    told = {
        name: [line for line in lines if name in line]
        for name in ("absent", "all-nan", "text", "some-nan")
    }
    assert told["absent"] == [f"asrd: no such file: {run.folder}/absent.wav"]
    assert [
        line.startswith(f"asrd: {run.folder}/text.wav: is not an audio file")
        for line in told["text"]
    ] == [True]
    assert "holds no audio (not one of its samples" in told["all-nan"][0]
    assert "50 samples" in told["some-nan"][0]
    assert len(lines) == 4, lines
    for name in ("silence.wav", "tone.wav", "short.wav"):
        assert f"asrd: {run.folder}/{name}: no speech was found in it" in silent
    assert len(run.by_name) == 14


def test_an_hour_needs_no_more_memory_than_a_minute(run: Run) -> None:
    hour = run["hour.flac"]
    assert hour["duration"] == 3600
    peak = int(re.search(r"peak (\d+)", run.errors)[1])  # type: ignore[index]
    assert peak < 200_000, "KiB; an hour of sound is 230 MB"
    for minute in (10, 30, 50):
        times = [
            word["start"] - 60 * minute
            for word in hour["words"]
            if abs(word["start"] - 60 * minute) < 30
        ]
        assert times, f"nothing heard at minute {minute}"
        assert -0.5 < min(times) < max(times) < 8


# -- other shapes, and what comes from outside
# ------------------------------------------------------------------------


def test_standard_input_gives_plain_text_and_no_progress() -> None:
    with (EVAL / FEW[1]["audio_filepath"]).open("rb") as stream:
        done = program(
            "-",
            "--model",
            "demo-ctc",
            code="from asrd.cli.main import main; raise SystemExit(main())",
            stdin=stream,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert jiwer.wer(FEW[1]["text"], done.stdout) < 0.3


def test_marks_and_lines_that_a_voice_speaks_are_written_and_what_it_takes_back_is_not(
    tmp_path: Path,
) -> None:
    said = {
        "marks": "call helen at noon, comma, bring the letter tomorrow, full stop, new line, open the door, full stop",
        "taken-back": "remind me to open a window. new paragraph. save the file. delete that. call maria",
    }
    files = [str(tmp_path / f"{name}.wav") for name in said]
    for file, text in zip(files, said.values(), strict=True):
        subprocess.run(["flite", "-voice", "slt", "-t", text, "-o", file], check=True)
    done = program("--json", *files, env=os.environ | {"ASRD_COMMANDS": "true"})
    heard = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["text"] for one in heard] == [
        "call helen at noon, bring the letter tomorrow.\nopen the door.",
        "remind me to open a window\n\ncall maria",
    ]


def test_a_missing_file_alone_starts_no_worker(tmp_path: Path) -> None:
    began = time.monotonic()
    done = program(str(tmp_path / "gone.wav"), "--model", "demo-ctc")
    assert done.returncode == 65
    assert done.stdout == ""
    assert "no such file: " in done.stderr
    assert "gone.wav" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 30


def test_interrupted_it_prints_what_it_has_and_leaves_no_child(tmp_path: Path) -> None:
    part = np.concatenate([clip(FEW[0]), silence(1)])
    with soundfile.SoundFile(tmp_path / "long.flac", "w", SAMPLE_RATE, 1) as out:
        for _ in range(400):
            out.write(part)
    command = [
        sys.executable,
        "-m",
        "asrd",
        "transcribe",
        EVAL / FEW[0]["audio_filepath"],
        tmp_path / "long.flac",
    ]
    with subprocess.Popen(
        [*map(str, command), "--json", "--model", "demo-ctc"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        workers = children(process.pid)
        assert workers
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert first["complete"] is True
    assert all(json.loads(line)["complete"] is False for line in rest.splitlines())
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert not list(tmp_path.glob("asrd-worker-*"))


# -- shapes, with an engine that answers at once
# ----------------------------------------------------------------------


class ScriptedEngine:
    """An engine that hears one word a second; `fails_at` makes it fail at that sample."""

    fails_at = 10**12
    stopped = 0
    max_together = 1
    most = now = 0
    ready = None

    def __init__(self, *_: Any, **__: Any) -> None:
        self.candidate = Candidate(STRATEGY_TABLE["fp32"], "cpu")

    async def start(self) -> None: ...

    async def stop(self) -> None:
        ScriptedEngine.stopped += 1

    async def fall_back(self, *_: Any, **__: Any) -> bool:
        raise AssertionError("every word was there")

    async def transcribe(
        self, samples: np.ndarray, start: int, phase: str, said: DecodingContext | None
    ) -> Answer:
        stop = start + len(samples)
        assert len(samples) <= 160_000
        ScriptedEngine.now += 1
        ScriptedEngine.most = max(ScriptedEngine.most, ScriptedEngine.now)
        await asyncio.sleep(0)
        ScriptedEngine.now -= 1
        if stop > ScriptedEngine.fails_at:
            raise EngineError("no candidate is left that could answer", "try again")
        seconds = range(-(-start // SAMPLE_RATE), -(-stop // SAMPLE_RATE))
        words = [
            Word(f"w{n}", n * SAMPLE_RATE, min(stop, n * SAMPLE_RATE + 8000), 0.5) for n in seconds
        ]
        return Answer(1, Hypothesis("", words, start, stop), 0.0, 0.0, 0.0)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[ScriptedEngine]]:
    monkeypatch.setattr(cli_transcribe, "Engine", ScriptedEngine)
    ScriptedEngine.fails_at, ScriptedEngine.stopped = 10**12, 0
    yield ScriptedEngine
    assert ScriptedEngine.stopped == 1


def call(*words: str, **settings: Any) -> int:
    parser = argparse.ArgumentParser()
    cli_transcribe.transcribe_arguments(parser)
    return cli_transcribe.transcribe(parser.parse_args(words), Settings(**settings))


@pytest.fixture
def spoken(tmp_path: Path) -> str:
    """34.6 seconds of a voice, after 5 of silence."""
    path = tmp_path / "voice.wav"
    soundfile.write(path, np.concatenate([silence(5), speech(34.6), silence(2)]), SAMPLE_RATE)
    return str(path)


def test_every_word_of_a_long_voice_comes_once(
    engine: type[ScriptedEngine], spoken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(spoken) == 0
    out = capsys.readouterr().out
    assert out == " ".join(f"w{n}" for n in range(5, 40)) + "\n"


def test_several_files_have_headings(
    engine: type[ScriptedEngine], spoken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(spoken, spoken) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == out[3] == f"==> {spoken} <=="
    assert out[1] == out[4]
    assert out[2] == ""


def test_commands_change_the_text_and_not_the_words(
    engine: type[ScriptedEngine], spoken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {
        "commands": True,
        "spoken": {"w6": "^,", "w8": "^\n^", "w30": "{delete}"},
        "capitals": True,
    }
    assert call("--json", spoken, **asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == "W5, w7\n" + "W31 " + " ".join(f"w{n}" for n in range(32, 40))
    assert [word["text"] for word in found["words"]] == [f"w{n}" for n in range(5, 40)]


def test_a_device_that_computes_several_at_once_gets_several_files(
    engine: type[ScriptedEngine],
    spoken: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ScriptedEngine, "max_together", 3)
    monkeypatch.setattr(ScriptedEngine, "most", 0)
    assert call("--json", *[spoken] * 5, "absent.wav") == 65
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(printed) == 5
    assert len({each["text"] for each in printed}) == 1
    assert ScriptedEngine.most == 3


def test_words_are_a_table(
    engine: type[ScriptedEngine], spoken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--words", spoken) == 0
    assert capsys.readouterr().out.splitlines()[0] == "5.00\t5.50\t0.500\tw5"


@pytest.mark.parametrize("shape", ["--srt", "--vtt"])
def test_subtitles_are_of_one_file(shape: str, spoken: str) -> None:
    with pytest.raises(UsageError, match="one file"):
        call(shape, spoken, spoken)


def test_what_is_known_is_printed_when_no_worker_is_left(
    engine: type[ScriptedEngine], spoken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.fails_at = 30 * SAMPLE_RATE
    with pytest.raises(EngineError):
        call("--json", spoken)
    partial = json.loads(capsys.readouterr().out)
    assert partial["complete"] is False
    assert partial["text"].startswith("w5 w6 w7")


def said(*words: tuple[str, float, float]) -> list[Word]:
    return [
        Word(text, round(start * SAMPLE_RATE), round(stop * SAMPLE_RATE))
        for text, start, stop in words
    ]


def test_subtitles_in_both_formats() -> None:
    words = said(("Meet", 3723.5, 3723.9), ("Alice.", 3724.0, 3724.5), ("Now", 3724.6, 3725.0))
    assert subtitles(words, "srt") == (
        "1\n01:02:03,500 --> 01:02:04,500\nMeet Alice.\n\n2\n01:02:04,600 --> 01:02:05,000\nNow\n"
    )
    assert subtitles(words[2:], "vtt") == "WEBVTT\n\n1\n01:02:04.600 --> 01:02:05.000\nNow\n"
    assert subtitles([], "srt") == ""


def test_subtitles_break_at_silence_length_and_time() -> None:
    words = said(*[("word", i * 0.3, i * 0.3 + 0.2) for i in range(100)], ("late", 40, 40.5))
    for cue in cues(words):
        text = " ".join(word.text for word in cue)
        assert len(text) <= MAX_CUE_LETTERS
        assert (cue[-1].stop - cue[0].start) / SAMPLE_RATE <= MAX_CUE_SECONDS
    assert cues(words)[-1] == words[-1:]
    assert [w for cue in cues(words) for w in cue] == words
    for block in subtitles(words, "srt").split("\n\n"):
        assert all(len(line) <= 45 for line in block.splitlines())


def test_a_terminal_sees_progress_that_a_pipe_does_not(spoken: str, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "import tests.cli.test_transcribe as t, asrd.cli.transcribe as v\n"
        "v.Engine = t.ScriptedEngine\nraise SystemExit(t.call(sys.argv[1], model='demo'))"
    )
    root = str(ROOT)
    ours, theirs = os.openpty()
    seen = bytearray()

    def drain() -> None:
        try:
            while piece := os.read(ours, 4096):
                seen.extend(piece)
        except OSError:
            return

    reader = threading.Thread(target=drain)
    reader.start()
    done = subprocess.run(
        [sys.executable, "-c", code, root, spoken],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        timeout=120,
        env=os.environ | {"COLUMNS": "200"},  # room for the whole path, which is cut otherwise
    )
    os.close(theirs)
    reader.join()
    os.close(ours)
    assert done.returncode == 0
    assert b"voice.wav" in seen
    assert done.stdout.startswith("w5 w6")
    quiet = subprocess.run(
        [sys.executable, "-c", code, root, spoken], capture_output=True, text=True, timeout=120
    )
    assert quiet.stderr == ""
    assert quiet.stdout == done.stdout
