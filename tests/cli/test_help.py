"""`asrd help` as a user meets it, from an installed wheel: the list, a page, an unknown topic."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import zipfile
from pathlib import Path

import pytest

from asrd.cli.help import PAGES, TOPICS, find, text_of
from asrd.errors import UsageError
from tests.helpers import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds what the wheel of this checkout installs."""
    folder = tmp_path_factory.mktemp("a wheel")
    own = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    words = ["wheel", "--quiet", "--no-deps", "--disable-pip-version-check", "--retries", "1", *own]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, "--wheel-dir", folder, ROOT],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        if os.environ.get("CI"):
            pytest.fail(done.stderr[-500:])
        pytest.skip(f"pip cannot build the wheel: {done.stderr.strip()[-300:]}")
    with zipfile.ZipFile(next(folder.glob("asrd-*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def command(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "asrd", *words]


def asrd(site: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        cwd=site.parent, capture_output=True, text=True, check=False, timeout=60, encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(site), "PYTHONUTF8": "1", **environment},
    )  # fmt: skip


def test_the_wheel_holds_every_page(installed: Path) -> None:
    shipped = {path.name: path.read_bytes() for path in (installed / "asrd" / "docs").glob("*.md")}
    assert shipped == {path.name: path.read_bytes() for path in PAGES.glob("*.md")}
    assert set(shipped) == {f"{topic}.md" for topic in TOPICS}


def test_help_lists_each_page_in_a_line_that_a_terminal_holds(installed: Path) -> None:
    done = asrd(installed, "help")
    assert (done.returncode, done.stderr) == (0, "")
    for topic in TOPICS:
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"  {topic} ")]
        assert line.endswith(".")
        assert len(line) <= 102
    assert asrd(installed, "help", "--help").stdout == done.stdout


@pytest.mark.parametrize("topic", ["fallback", "transcribe", "service", "journal"])
def test_a_page_is_plain_text_in_a_pipe(installed: Path, topic: str) -> None:
    done = asrd(installed, "help", topic)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == text_of(topic).rstrip() + "\n"
    assert "\x1b" not in done.stdout
    assert "<!--" not in done.stdout
    assert ".md)" not in done.stdout


def test_a_page_fits_an_encoding_without_its_signs(installed: Path) -> None:
    done = asrd(installed, "help", "streaming", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.isascii()


def shown_on_a_terminal(
    installed: Path, pager: str, keys: bytes, words: tuple[str, ...] = ("help", "fallback")
) -> tuple[int, bytes]:
    """Run asrd on a terminal that is 80 columns wide, press keys after the heading of the page;
    return the exit code and what the terminal got."""
    outer, inner = pty.openpty()
    termios.tcsetwinsize(inner, (24, 80))
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONUTF8": "1", "PAGER": pager}
    environment |= {"TERM": "xterm", "LESS": "-RFX"}
    for name in ("MANPAGER", "COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command(*words)],
        stdin=inner, stdout=inner, stderr=inner, env=environment, cwd=installed.parent,
    )  # fmt: skip
    shown = b""
    # `inner` stays open until the process has ended, as a hang-up can discard what is not read.
    while process.poll() is None or select.select([outer], [], [], 0.2)[0]:
        if select.select([outer], [], [], 0.2)[0]:
            shown += os.read(outer, 4096)
        if keys and b"Fallback" in shown:
            os.write(outer, keys)
            keys = b""
    os.close(inner)
    os.close(outer)
    return process.returncode, shown


PAGERS = {
    "cat": (b"", {"first": True, "last": True}),
    "": (b"q", {"first": True, "last": False}),  # pydoc takes less
    "head -n 3": (b"", {"first": True, "last": False}),
    "less": (b"q", {"first": True, "last": False}),
    "no-such-pager": (b"", {"first": True, "last": True}),
}
"""Pagers -> the keys that end them, and the parts of the page that they show."""


@pytest.mark.parametrize("pager", PAGERS)
def test_a_page_goes_through_the_pager_on_a_terminal(installed: Path, pager: str) -> None:
    keys, parts = PAGERS[pager]
    if pager in ("less", "") and shutil.which("less") is None:
        pytest.skip("less is not installed")
    code, shown = shown_on_a_terminal(installed, pager, keys)
    print(shown)
    last = text_of("fallback").split()[-1].encode()
    assert code == 0
    assert b"# Fallback" not in shown
    assert (b"\x1b[1;4mFallback" in shown) is parts["first"]
    assert (last in shown) is parts["last"]


def test_the_help_of_a_verb_has_colours_on_a_terminal_alone(installed: Path) -> None:
    code, shown = shown_on_a_terminal(installed, "", b"", ("transcribe", "--help"))
    plain = asrd(installed, "transcribe", "--help").stdout
    assert code == 0
    assert b"\x1b[36m--no-daemon\x1b[0m" in shown
    assert "\x1b" not in plain
    assert re.sub(rb"\x1b\[[0-9;]*m", b"", shown).split() == plain.encode().split()


def test_the_wheel_has_manual_pages(installed: Path) -> None:
    (wheel,) = installed.parent.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for page in ("man1/asrd.1", *(f"man7/asrd-{topic}.7" for topic in TOPICS)):
        assert any(name.endswith(f".data/data/share/man/{page}") for name in names)


UNKNOWN = {
    "falback": "did you mean 'fallback'?",
    "Fallbacks": "did you mean 'fallback'?",
    "hotkey": "did you mean 'hotkeys'?",
    "configuraton": "did you mean 'configuration'?",
    "strategy": "did you mean 'strategies'?",
    "memry": "did you mean 'memory'?",
    "evaluate": "did you mean 'evaluation'?",
    "voice-command": "did you mean 'voice-commands'?",
    "journals": "did you mean 'journal'?",
    "glosary": "did you mean 'glossary'?",
    "architekture": "did you mean 'architecture'?",
    "streams": "did you mean 'streaming'?",
    "limit": "did you mean 'limits'?",
    "contribute": "did you mean 'contributing'?",
    "changes": "did you mean 'changelog'?",
    "getting started": "did you mean 'getting-started'?",
    "vram_budget": "pages that mention it: asrd help ",
    "keep_audio": "pages that mention it: asrd help ",
    "waybar": "pages that mention it: asrd help ",
    "xclip": "pages that mention it: asrd help ",
    "OOMPolicy": "pages that mention it: asrd help ",
    "xqzzt": "asrd help lists them all",
    "": "asrd help lists them all",
    "../changelog/..": "asrd help",
}
"""What is no page -> how the hint begins."""


@pytest.mark.parametrize("word", UNKNOWN)
def test_an_unknown_topic_has_a_hint(word: str) -> None:
    with pytest.raises(UsageError) as found:
        find(word)
    assert found.value.hint.startswith(UNKNOWN[word]) or word == "../changelog/.."


def test_an_unknown_topic_is_one_sentence_a_hint_and_exit_code_2(installed: Path) -> None:
    done = asrd(installed, "help", "falback")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "asrd: no page of the documentation is called 'falback'\n  hint: did you mean 'fallback'?\n"
    )
    assert asrd(installed, "help", "fallback", "memory").returncode == 2


NAMED = {"privacy": "recordings-and-privacy", "tune": "auto-and-tune", "GPU": "gpu", "voice": "voice-commands",
         "memory.md": "memory", "getting_started": "getting-started", "protocol": "control-protocol"}  # fmt: skip


@pytest.mark.parametrize("word", NAMED)
def test_a_page_is_found_by_one_word_of_its_name(word: str) -> None:
    assert find(word) == NAMED[word]
