"""Completions as the shells themselves give them: bash, zsh and fish read what `asrd completion` prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from asrd.cli.completion import SHELLS, whole_parser
from asrd.cli.help import TOPICS
from asrd.cli.main import VERBS, every_parser
from asrd.precision.strategies import STRATEGY_TABLE
from tests.helpers import ROOT

BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_shtab_asrd asrd "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
"""Asks bash's function as bash does when Tab is pressed behind the words."""

FISH = 'source $argv[1]; complete -C "$argv[2..]"'

ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PROMPT=; autoload -Uz compinit; compinit -u -D; source ${(q)1}; compdef _shtab_asrd asrd"
zpty -w shell "compadd() { builtin compadd -O found \$@; print -l -- \$found >>${(q)2}; builtin compadd \$@ }"
zpty -w shell "echo READ''Y"
zpty -r -m shell seen '*READY*'
zpty -w -n shell ${(j: :)@[3,-1]}$'\t'
repeat 300; do [[ -s $2 ]] && break; sleep 0.1; done
zpty -d shell
"""
"""Presses Tab in a real zsh on a terminal of its own; what it would add is written to a file."""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what `asrd completion` prints for each shell, and a file to propose."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        done = subprocess.run(
            [sys.executable, "-m", "asrd", "completion", shell],
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        assert not done.stderr
        (folder / shell).write_text(done.stdout)
    (folder / "clip.wav").touch()
    return folder


def proposed(scripts: Path, shell: str, *words: str) -> set[str]:
    """Return what a shell proposes for the last of these words."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    found = scripts / "found"
    found.unlink(missing_ok=True)
    script, line = str(scripts / shell), ["asrd", *words]
    command = {
        "bash": ["bash", "-c", BASH, "bash", script, *line],
        "fish": ["fish", "--no-config", "-c", FISH, script, " ".join(line)],
        "zsh": ["zsh", "-f", "-c", ZSH, "zsh", script, str(found), *line],
    }[shell]
    environment = {**os.environ, "HOME": str(scripts), "TERM": "xterm"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd=scripts,
        env=environment,
        timeout=60,
    )
    text = found.read_text() if shell == "zsh" and found.exists() else done.stdout
    return {line.partition("\t")[0] for line in text.splitlines() if line}


LINES = {
    "a verb": (("to",), {"toggle"}),
    "verbs": (("re",), {"recordings", "retry", "reload", "report"}),
    "a flag": (("transcribe", "--no"), {"--no-daemon"}),
    "a strategy": (("run", "--strategy", "bf16"), {"bf16-mixed"}),
    "strategies": (("use", "half"), {"half", "half-naive"}),
    "a preset": (("plan", "--preset", "con"), {"conservative"}),
    "a model": (("run", "--model", "demo-t"), {"demo-tdt"}),
    "a model of the hub": (("plan", "--model", "nvidia/canary-1b-f"), {"nvidia/canary-1b-flash"}),
    "a model's file": (("plan", "--model", "cli"), {"clip.wav"}),
    "a file": (("transcribe", "cli"), {"clip.wav"}),
    "a configuration": (("toggle", "--config", "cli"), {"clip.wav"}),
    "an action": (("service", "un"), {"uninstall"}),
    "a topic": (("help", "fal"), {"fallback"}),
    "a shell": (("completion", "z"), {"zsh"}),
}
"""What is meant -> the words in the line, and what a shell proposes for the last."""


@pytest.mark.parametrize("meant", LINES)
@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_proposes(scripts: Path, shell: str, meant: str) -> None:
    words, expected = LINES[meant]
    assert proposed(scripts, shell, *words) == expected


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_knows_every_verb_topic_and_strategy(scripts: Path, shell: str) -> None:
    assert proposed(scripts, shell, "") >= {*VERBS, "help", "completion"}
    assert proposed(scripts, shell, "help", "") >= {*TOPICS}
    assert proposed(scripts, shell, "use", "") >= {"auto", *STRATEGY_TABLE}


def test_the_whole_parser_takes_what_the_verbs_take() -> None:
    found = whole_parser(every_parser()).parse_args(
        ["compare", "--strategies", "half,int8", "--model", "demo"]
    )
    assert (found.strategies, found.model) == ("half,int8", "demo")


@pytest.mark.parametrize("words", [[], ["tcsh"], ["bash", "zsh"], ["--shell"]])
def test_another_word_gets_a_sentence(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asrd", "completion", *words],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.startswith("asrd: ")
    assert "hint: " in done.stderr
