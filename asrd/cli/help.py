"""Pages of the documentation: listed, and shown in a pager on a terminal or as text in a pipe."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from asrd.errors import UsageError, nearest
from asrd.terminal.output import tell

PAGES = Path(__file__).parents[1] / "docs"
"""The folder of the pages, which is a part of the package."""

TOPICS = (
    "getting-started",
    "hotkeys",
    "configuration",
    "strategies",
    "auto-and-tune",
    "fallback",
    "memory",
    "gpu",
    "evaluation",
    "voice-commands",
    "recordings-and-privacy",
    "files",
    "transcribe",
    "service",
    "journal",
    "control-protocol",
    "architecture",
    "streaming",
    "decisions",
    "performance",
    "reliability",
    "limits",
    "glossary",
    "contributing",
    "changelog",
)
"""The pages in reading order."""

MAX_COLUMNS = 100
"""Columns of a rendered page; longer lines are hard to read."""

MAX_MENTIONS = 3
"""Pages that a hint names."""


def help_pages(words: Sequence[str]) -> int:
    """List the pages, or show the one that is named; return 0. Raises UsageError."""
    if len(words) > 1:
        raise UsageError("asrd help takes one topic", f"asrd help {words[0]}")
    if not words or words[0] in ("-h", "--help"):
        tell(contents())
        return 0
    show(text_of(find(words[0])))
    return 0


def contents() -> str:
    """Return the list of pages, one line each."""
    width = max(map(len, TOPICS))
    lines = [f"  {topic:<{width}}  {summary(topic)}" for topic in TOPICS]
    head = "usage: asrd help [TOPIC]\n\nPages of the documentation:\n"
    foot = "\nasrd --help lists the verbs, asrd VERB --help the flags of one."
    return "\n".join([head, *lines, foot])


def summary(topic: str) -> str:
    """Return a page's second paragraph, which says in one line what it is about."""
    lines = (PAGES / f"{topic}.md").read_text(encoding="utf-8").splitlines()
    return lines[2]


def find(word: str) -> str:
    """Return the topic that a word names, by its whole name or by one word of it. Raises
    UsageError."""
    wanted = word.strip().lower().replace("_", "-").removesuffix(".md")
    if wanted in TOPICS:
        return wanted
    having = [topic for topic in TOPICS if wanted in topic.split("-")]
    if len(having) == 1:
        return having[0]
    raise UsageError(f"no page of the documentation is called {word!r}", _hint(word))


def _hint(word: str) -> str:
    """Return the page that was perhaps meant, the pages that mention a word, or how to list all."""
    close = nearest(word, TOPICS, "asrd help")
    if close.startswith("did you mean"):
        return close
    whole = re.compile(rf"(?<!\w){re.escape(word.strip())}(?!\w)", re.IGNORECASE)
    mentions = [topic for topic in TOPICS if whole.search(text_of(topic))]
    if not word.strip() or not mentions:
        return close
    shown = ", ".join(map("asrd help {}".format, mentions[:MAX_MENTIONS]))
    return f"pages that mention it: {shown}"


def text_of(topic: str) -> str:
    """Return a page without marks for its generators, its links to pages as commands."""
    text = (PAGES / f"{topic}.md").read_text(encoding="utf-8")
    text = re.sub(r"^<!-- .* -->\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]+)\]\(([\w-]+)\.md(?:#[\w-]*)?\)", r"\1 (`asrd help \2`)", text)


def show(text: str) -> None:
    """Show Markdown in a pager on a terminal, else print it as it is."""
    if not sys.stdout.isatty():
        tell(text.rstrip())
        return
    from rich.console import Console
    from rich.markdown import Markdown

    # less: colours as they are, no stop where the page fits, and the page stays on the screen.
    os.environ.setdefault("LESS", "-RFX")
    console = Console()
    console.width = min(console.width, MAX_COLUMNS)
    page = Markdown(text, hyperlinks=False)
    if not _has_pager():
        console.print(page)
        return
    with console.pager(styles=True):
        console.print(page)


def _has_pager() -> bool:
    """Tell whether the pager that the user named is installed, or none is named."""
    pager = os.environ.get("MANPAGER") or os.environ.get("PAGER")
    return not pager or shutil.which(pager.split()[0]) is not None
