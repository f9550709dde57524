"""The manual pages say what the parsers and the documentation say, and troff finds no fault in them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from asrd.cli.main import VERBS
from tools import man_pages

PAGES = sorted(man_pages.DOCS.glob("*.md"))
LAYOUT = re.compile(r"cannot adjust line|can't break line|will not fit on one page")
"""What troff says of a long word in a narrow column, and of a long cell."""


def shown(path: Path) -> str:
    """Return a page as `man` shows it, 80 columns wide. Fails where troff complains."""
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    done = subprocess.run(
        ["man", "--local-file", "--warnings", "--no-hyphenation", "--encoding=UTF-8", str(path)],
        capture_output=True, check=True,
        env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    complaints = [line for line in done.stderr.decode().splitlines() if not LAYOUT.search(line)]
    assert not complaints
    return re.sub(".\x08", "", done.stdout.decode())


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse words usage by its version")
def test_the_page_on_the_verbs_is_what_the_parsers_say() -> None:
    assert man_pages.VERBS_PAGE.read_text() == man_pages.verbs_page(), "python -m tools.man_pages"


def test_the_page_on_the_verbs_is_shown() -> None:
    text = shown(man_pages.VERBS_PAGE)
    for verb in VERBS:
        assert f"COMMAND 'asrd {verb}'" in text
    assert "130 interrupted" in text
    assert "asrd-fallback(7)" in text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_of_the_documentation_is_shown_whole(path: Path, tmp_path: Path) -> None:
    page = tmp_path / f"asrd-{path.stem}.7"
    page.write_text(man_pages.topic_page(path))
    text = shown(page)
    flat = "".join(text.split())
    source = path.read_text()
    for heading in re.findall(r"^##+ (.+)$", source, re.MULTILINE):
        assert "".join(heading.replace("`", "").split()) in flat
    for code in re.findall(r"^    (\S.*)$", source, re.MULTILINE):
        assert "".join(code.split()) in flat
    assert "](" not in text
    assert "**" not in text


ROFF = {
    "a line that begins with a dot": ("x\n.hidden y", "x .hidden y"),
    "a line that begins with a quote": ("x\n'hidden y", "x 'hidden y"),
    "a backslash": (r"shows `\xNN` and \\ here", r"shows \xNN and \ here"),
    "hyphens to copy": ("`asrd run --source mic`", "asrd run --source mic"),
    "a tilde and a caret": ("`~/.config` ^x", "~/.config ^x"),
    "a link to a page": ("see [fallback](fallback.md#when).", "see fallback (asrd-fallback(7))."),
    "a link elsewhere": ("[systemd](https://systemd.io)", "systemd (https://systemd.io)"),
    "bold and italics": ("**a** *b* c", "a b c"),
}
"""Markdown that roff could misread -> how it is shown."""


@pytest.mark.parametrize("name", ROFF)
def test_roff_reads_text_as_text(name: str, tmp_path: Path) -> None:
    source, expected = ROFF[name]
    (tmp_path / "page.md").write_text(f"# Title\n\nA summary.\n\n## Part\n\n{source}\n")
    page = tmp_path / "page.7"
    page.write_text(man_pages.topic_page(tmp_path / "page.md"))
    assert expected in " ".join(shown(page).split())


def test_a_command_writes_the_pages(tmp_path: Path) -> None:
    assert man_pages.main([str(tmp_path / "pages")]) == 0
    assert len(list((tmp_path / "pages").iterdir())) == len(PAGES)
