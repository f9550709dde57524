"""The command line as a user meets it: one sentence, a hint, an exit code, never a traceback."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asrd.cli import main
from asrd.paths import DATA_FOLDER
from asrd.text.characters import without_controls
from tests.helpers import ROOT, have_own_folders


def asrd(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ASRD_")}
    return subprocess.run(
        [sys.executable, "-m", "asrd", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**clean, "XDG_CONFIG_HOME": "/nonexistent", **environment},
        timeout=300,
    )


def test_help_lists_every_verb() -> None:
    from asrd.cli.main import VERBS

    done = asrd("--help")
    assert done.returncode == 0
    for verb in VERBS:
        assert f"  {verb}" in done.stdout
    assert asrd().returncode == 2


def test_a_setting_that_does_nothing_is_told_on_each_run_and_a_choice_that_was_made_is_not() -> (
    None
):
    done = asrd("plan", "--model", "demo", ASRD_PARTS='{encoder = "float16"}')
    said = "asrd: parts (ASRD_PARTS) are for strategy selective and do nothing under auto\n"
    assert (done.returncode, done.stderr) == (0, said)
    assert asrd("plan", "--model", "demo", ASRD_USE_BF16="1").stderr == ""


@pytest.mark.parametrize("verb", ["transcribe", "compare", "tune", "plan", "models", "config"])
def test_every_verb_has_help(verb: str) -> None:
    done = asrd(verb, "--help")
    if verb != "transcribe":  # a page of the documentation has this name
        assert asrd("help", verb).stdout == done.stdout
    assert done.returncode == 0, done.stderr
    assert f"usage: asrd {verb}" in done.stdout
    assert "--strategy" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["transcibe", "x.wav"], 2, ["unknown verb 'transcibe'", "'transcribe'"]),
        (["--model", "x", "plan"], 2, ["after the verb"]),
        (
            ["plan", "--strategy", "bflot16"],
            78,
            ["unknown strategy 'bflot16'", "--strategy", "did you mean"],
        ),
        (["plan", "--model", "demoo"], 66, ["demoo", "demo"]),
        (["plan", "--model", "/nowhere/x.nemo"], 66, ["/nowhere/x.nemo"]),
        (["plan", "--device", "cuda:3"], 69, ["cuda:3"]),
        (["plan", "--config", "/nowhere/c.toml"], 78, ["/nowhere/c.toml"]),
        (["transcribe", "/nowhere/a.wav"], 65, ["/nowhere/a.wav"]),
        (["compare", "--strategies", "halv"], 78, ["halv", "'half'"]),
        (["compare", "--manifest", "/nowhere/m.jsonl"], 65, ["/nowhere/m.jsonl"]),
        (["tune", "--manifest", "/nowhere/m.jsonl"], 65, ["/nowhere/m.jsonl"]),
    ],
)
def test_wrong_words(words: list[str], code: int, parts: list[str]) -> None:
    done = asrd(*words)
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr
    assert done.returncode == code
    assert done.stderr.startswith("asrd: ")


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in asrd("plan", "--debug", "--model", "/nowhere/x.nemo").stderr


def test_a_wrong_setting_names_its_place() -> None:
    done = asrd("config", ASRD_STRATGY="half")
    assert done.returncode == 78
    assert "ASRD_STRATGY" in done.stderr
    assert "did you mean ASRD_STRATEGY?" in done.stderr


def test_config_says_where_each_value_came_from(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("use_bf16 = true\n")
    done = asrd(
        "config", "--config", str(tmp_path / "c.toml"), "--model", "demo-ctc", ASRD_PNC="false"
    )
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "autocast-bf16" in lines["strategy"]
    assert "use_bf16" in lines["strategy"]
    assert "--model" in lines["model"]
    assert "ASRD_PNC" in lines["pnc"]
    assert "default" in lines["device"]


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m asrd models | head -1",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["plan", "--model", "demo"], ["models", "--json"]])
def test_output_that_finds_no_room_is_one_sentence(words: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "asrd", *words], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True,
            check=False, env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == 73
    assert done.stderr.startswith(
        "asrd: cannot write all of the output: No space left on device\n  hint: "
    )
    assert len(done.stderr.splitlines()) == 2


def test_ctrl_c_ends_at_once_and_leaves_no_child() -> None:
    clip = next((DATA_FOLDER / "eval").glob("*.flac"))
    words = [sys.executable, "-m", "asrd", "transcribe", str(clip)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child = wait_for_child(process.pid)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in said
    assert not Path(f"/proc/{child}").exists()


def wait_for_child(pid: int) -> int:
    for _ in range(400):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.05)
    raise AssertionError("no worker was started")


def odd_names() -> list[str]:
    """Return seeded file names with characters that a terminal obeys."""
    draw = random.Random(14)
    return [
        "".join(
            draw.choices("ab. \x1b[]2J\x07\r\n\t\x7f\x9b\u202e\u2028\ufeff", k=draw.randint(3, 12))
        )
        + "\x1bx"
        for _ in range(20)
    ]


@pytest.mark.parametrize("name", odd_names())
@pytest.mark.parametrize(
    "words", [("transcribe",), ("compare", "--manifest"), ("doctor", "--"), ("status", "--socket")]
)
def test_no_complaint_quotes_what_a_terminal_obeys(
    name: str,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    have_own_folders(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    try:
        code = main.main([*words, name])
    except SystemExit as end:  # argparse's way out
        code = int(str(end.code))
    assert code
    out, err = capsys.readouterr()
    assert err
    assert not [
        char
        for char in out + err
        if char not in "\n\t" and without_controls(f"x{char}x") != f"x{char}x"
    ]
    assert "\\u001b" in err or "\\x1b" in err
