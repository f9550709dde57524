"""Wrong verbs, flags and arguments: one sentence and a hint, exit code 2, in asrd and in tools/."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asrd.cli import main
from asrd.errors import UsageError
from asrd.terminal import arguments
from tests.helpers import ROOT, have_own_folders

VERBS = {
    "transcibe": "'transcribe'", "Transcribe": "'transcribe'", "togle": "'toggle'", "comapre": "'compare'",
    "docter": "'doctor'", "history": "asrd report", "daemon": "asrd run",
    "serve": "asrd run", "bench": "asrd compare", "settings": "asrd config", "mics": "asrd devices",
    "restart": "asrd reload", "record": "asrd start", "install": "asrd service", "qqq": "asrd --help lists them all",
    "talk.wav": "asrd transcribe talk.wav", "a.flac": "asrd transcribe a.flac", "modles": "'models'",
    "statsu": "'status'",
}  # fmt: skip
"""A wrong verb -> what the hint says."""

WORDS = {
    "plan --follow": ("no flag --follow", "--follow is a flag of asrd status"),
    "models --gpu x": ("no flag --gpu", "asrd plan"),
    "tune --strategies half": ("no flag --strategies", "asrd compare"),
    "transcribe --html x a.wav": ("no flag --html", "asrd compare"),
    "report --wait": ("no flag --wait", "asrd start"),
    "run --srt": ("no flag --srt", "asrd transcribe"),
    "config --now": ("no flag --now", "asrd service"),
    "status --strategy half": ("no flag --strategy", "and others"),
    "transcribe --jsn a.wav": ("no flag --jsn", "did you mean --json?"),
    "transcribe -json a.wav": ("no flag -json", "did you mean --json?"),
    "plan --Model demo": ("no flag --Model", "did you mean --model?"),
    "plan --stratgy half": ("no flag --stratgy", "did you mean --strategy?"),
    "compare --max_wer_delta 1": ("no flag --max_wer_delta", "did you mean --max-wer-delta?"),
    "run --window 5": ("no flag --window", "ASRD_WINDOW=5"),
    "run --source-lang de": ("no flag --source-lang", 'source_lang = "de"'),
    "plan --language=de": ("no flag --language", 'source_lang = "de"'),
    "toggle --idle 30": ("no flag --idle", "asrd reload"),
    "plan --precision half": ("no flag --precision", "did you mean --strategy?"),
    "run --hotkey F9": ("no flag --hotkey", "the desktop binds keys"),
    "plan --zzz": ("no flag --zzz", "asrd plan --help lists its flags"),
    "plan -q": ("no flag -q", "asrd plan --help"),
    "compare --limit x": ("'x', which is not a whole number", "asrd compare --help"),
    "compare --limit 1.5": ("not a whole number", "asrd compare --help"),
    "compare --max-wer-delta much": ("not a number", "asrd compare --help"),
    "compare --repeats 0": ("--repeats 0 is too few", "1 or more"),
    "compare --limit": ("--limit needs a value", "write --limit N"),
    "transcribe": ("asrd transcribe needs FILE", "asrd transcribe --help"),
    "use": ("asrd use needs STRATEGY", "asrd use --help"),
    "service": ("asrd service needs ACTION", "asrd service --help"),
    "service instal": ("'instal' is no ACTION", "did you mean 'install'?"),
    "service print asrd.servic": ("is no UNIT", "did you mean 'asrd.service'?"),
    "transcribe a --words --json": ("exclude each other", "keep one of them"),
    "report --json=3": ("--json takes no value", "write --json alone"),
    "models foo": ("takes no further word: 'foo'", "asrd models --help"),
    "retry 2026 --all": ("--all takes no recording name; remove 2026", "asrd retry --all, or asrd retry 2026"),
    "use half now": ("takes no further word: 'now'", "asrd use --help"),
    "start --silence nan": ("not a span of time", "asrd start --help"),
    "start --seconds -1": ("not a span of time", "asrd start --help"),
    "start --seconds 9999999999999": ("not a span of time", ""),
    "--json status": ("comes after the verb", "asrd status --json"),
    "-v": ("comes after the verb", "asrd --version"),
    "plan --gpu x": ("describes no card", "NAME:CAPABILITY:GIB"),
}  # fmt: skip
"""Words -> what the sentence says, and the hint."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have_own_folders(tmp_path, monkeypatch)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the sentence and the hint for a wrong command line."""
    assert main.main(words) == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert said.out == ""
    assert len(lines) == 2
    assert lines[0].startswith("asrd: ")
    assert lines[1].startswith("  hint: ")
    assert not re.search(r"invalid|choose from|usage:|unrecognized|argument -", said.err), (
        "argparse's words"
    )
    assert max(map(len, lines)) < 200
    return lines


@pytest.mark.parametrize(("verb", "hint"), VERBS.items())
def test_a_wrong_verb_is_told_the_right_one(
    verb: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused([verb, "x"], capsys)
    assert f"unknown verb {verb!r}" in said[0]
    assert hint in said[1]


@pytest.mark.parametrize(("words", "parts"), WORDS.items())
def test_a_wrong_word_is_named_and_hinted_at(
    words: str, parts: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(words.split(), capsys)
    assert parts[0] in said[0]
    assert parts[1] in said[1]


def slips(seed: int = 15) -> list[tuple[str, str, str]]:
    """Return a verb, one of its flags with one letter changed, and the flag; one for each verb,
    seeded."""
    draw, found = random.Random(seed), []
    for verb in main.VERBS:
        parser, _ = main.parser_for(verb)
        flag = draw.choice(sorted(name for name in parser._option_string_actions if len(name) > 6))
        place = draw.randrange(3, len(flag))
        found.append((verb, flag[:place] + draw.choice("qxz") + flag[place + 1 :], flag))
    return found


@pytest.mark.parametrize(("verb", "slip", "flag"), slips())
def test_every_verb_sees_through_a_slip_in_its_flags(
    verb: str, slip: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"did you mean {flag}?" in refused([verb, slip], capsys)[1]


@pytest.mark.parametrize("verb", main.VERBS)
@pytest.mark.parametrize("columns", ["40", "60", "80"])
def test_help_never_breaks_a_name(
    verb: str, columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as end:
        main.main([verb, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert not re.search(r"\w-$", text, re.MULTILINE), "a name is broken at its hyphen"
    assert "{" not in text, "choices are listed in words, once"


ERRORS = {
    "transcribe /nowhere/a.wav": 65, "transcribe --srt a b": 2, "run --source file:/nowhere/a.wav": 65,
    "run --source usb": 78, "compare --strategies x": 78, "compare --limit 0": 2, "compare --components bf17": 78,
    "compare --manifest /nowhere/m.jsonl": 65, "tune --limit 0": 2, "tune --manifest /nowhere/m.jsonl": 65,
    "plan --gpu x": 2, "plan --device cuda:7": 69, "tune --device cuda:7": 69, "compare --device cuda:7": 69,
    "transcribe --device cuda:7 x.wav": 69, "transcribe --strategy x y.wav": 78, "compare --html /": 73,
    "compare --json /nowhere/x/y.json": 73, "run --deliver never": 78, "run --faults x": 78, "tune --strategy x": 78,
}  # fmt: skip
"""Words -> exit code of what is wrong with them."""


@pytest.mark.parametrize(("words", "code"), ERRORS.items())
def test_what_is_wrong_is_said_without_a_word_about_the_model_that_would_run(
    words: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(words.split()) == code
    said = capsys.readouterr().err
    assert said.startswith("asrd: ")
    assert "demo" not in said


TOOLS = ("bench", "bench-canary-cache", "bench-encoder", "bench-hour", "bench-invented", "bench-quiet",
         "bench-seams", "bench-word-times", "demo",
         "gpu-bench", "test", "torture", "train-demo-model")  # fmt: skip


def tool(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    path = ROOT / "tools" / name
    program = (
        [str(path)]
        if path.read_bytes().startswith(b"#!/usr/bin/env bash")
        else [sys.executable, str(path)]
    )
    return subprocess.run(
        [*program, *words], capture_output=True, text=True, check=False, timeout=60, cwd="/"
    )


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_tool_shows_its_help_and_does_nothing_else(name: str, flag: str) -> None:
    done = tool(name, flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"tools/{name}" in done.stdout
    assert "==" not in done.stdout, "nothing is installed or begun"


@pytest.mark.parametrize(
    "name", [name for name in TOOLS if name not in ("bench", "gpu-bench", "test", "torture")]
)
def test_every_tool_refuses_a_wrong_flag(name: str) -> None:
    done = tool(name, "--helf")
    assert done.returncode == 2
    assert re.fullmatch(r"asrd: .*--helf\n  hint: .*--help\??\n", done.stderr)
    assert done.stdout == ""


@pytest.mark.parametrize("module", ["benchmark", "gpubench", "torturing"])
def test_a_wrong_flag_of_a_larger_tool_is_refused(module: str) -> None:
    words = [sys.executable, "-P", "-m", f"tools.{module}", "--quik"]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env=None
    )
    assert done.returncode == 2, done.stderr
    assert "did you mean --quick?" in done.stderr


def test_help_of_torture_lists_moments_columns_and_exit_codes() -> None:
    from tools.torturing import delivery
    from tools.torturing.__main__ import MOMENTS, SOUND
    from tools.torturing.__main__ import arguments as torture

    text = torture().format_help()
    for moment in (*MOMENTS, *SOUND, *delivery.MOMENTS):
        assert re.search(rf"^  {re.escape(moment)}$", text, re.MULTILINE)
    for word in ("orphans", "maybe", "exit codes:", "  130  interrupted"):
        assert word in text


def test_what_argparse_may_say_otherwise_stays_one_line() -> None:
    parser = arguments.Parser("tool")
    with pytest.raises(UsageError) as caught:
        parser.error("something\nnew")
    assert "\n" not in caught.value.message
    assert caught.value.hint == "tool --help"


def test_a_file_whose_name_is_like_a_flag_is_told_how_to_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-dash.wav").touch()
    assert main.main(["transcribe", "-dash.wav"]) == 2
    assert "for the file of that name write ./-dash.wav" in capsys.readouterr().err
