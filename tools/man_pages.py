"""Manual pages: asrd.1 from the parsers of the verbs, asrd-TOPIC.7 from the pages in asrd/docs.

    python -m tools.man_pages          # writes asrd/data/asrd.1 anew; a test holds that it is
    python -m tools.man_pages FOLDER   # writes the pages of section 7 there, to look at: man -l FOLDER/asrd-fallback.7

The wheel makes section 7 while it is built (tools/build_hook.py), for which markdown-it-py is enough. Section 1 needs
asrd's own libraries, which are not there then, so it is a file of the repository.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "asrd" / "docs"
VERBS_PAGE = ROOT / "asrd" / "data" / "asrd.1"

COLUMNS = "80"
"""Width at which argparse breaks the usage lines of the page on the verbs."""

TITLE_TOKENS = 6
"""Tokens of a page's title and of the summary below it."""

FONTS = {
    "strong_open": r"\fB",
    "strong_close": r"\fR",
    "em_open": r"\fI",
    "em_close": r"\fR",
    "softbreak": "\n",
    "hardbreak": "\n.br\n",
}
"""Token inside a paragraph -> what it is in roff."""

BLOCKS = {
    "paragraph_open": ".PP\n",
    "list_item_open": ".IP \\(bu 2\n",
    "bullet_list_open": ".RS 2\n",
    "bullet_list_close": ".RE\n",
    "ordered_list_open": ".RS 2\n",
    "ordered_list_close": ".RE\n",
    "table_close": ".TE\n",
    "th_open": "T{\n",
    "td_open": "T{\n",
    "th_close": "T}\t",
    "td_close": "T}\t",
    "tr_close": "\n",
}
"""Token between paragraphs -> what it is in roff."""


def verbs_page() -> str:
    """Return asrd.1, the page on every verb and its flags."""
    from argparse_manpage.manpage import Manpage

    from asrd.cli.completion import whole_parser
    from asrd.cli.main import every_parser, overview

    os.environ["COLUMNS"] = COLUMNS
    about = {
        "description": "dictation on NVIDIA NeMo speech models",
        "date": " ",
        "manual_title": "asrd",
    }
    page = str(Manpage(whole_parser(every_parser()), _data=about)).replace("\n", "\n.ad l\n", 1)
    codes = overview().partition("exit codes: ")[2]
    pages = ",\n".join(f"asrd-{path.stem}(7)" for path in sorted(DOCS.glob("*.md")))
    return f"{page}.SH EXIT STATUS\n{escaped(codes)}\n.SH SEE ALSO\n{escaped(pages)}\n"


def topic_page(path: Path) -> str:
    """Return a page of the documentation as asrd-TOPIC.7."""
    from markdown_it import MarkdownIt

    text = re.sub(r"^<!-- .* -->\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    name = f"asrd-{path.stem}"
    summary = text.splitlines()[2]
    head = f'\'\\" t\n.TH {name.upper()} 7 " " "asrd" "asrd"\n'
    return (
        f"{head}.SH NAME\n{escaped(name)} \\- {escaped(summary)}\n.ad l\n{''.join(_blocks(tokens))}"
    )


def _blocks(tokens: Sequence[Token]) -> Iterable[str]:
    """Yield the roff of a page's tokens, less its title and its summary, which are in NAME."""
    before = ""
    for place, token in enumerate(tokens):
        if place >= TITLE_TOKENS:
            yield _block(token, tokens[place:], before)
        before = token.type


def _block(token: Token, rest: Sequence[Token], before: str) -> str:
    """Return the roff of one token; `rest` begins with it, `before` is the kind of the last one."""
    match token.type:
        case "heading_open":
            return ".SH " if token.tag == "h2" else ".SS "
        case "fence" | "code_block":
            return f".PP\n.RS 4\n.nf\n{protected(escaped(token.content))}.fi\n.RE\n"
        case "inline":
            return protected(inline(token.children or ())) + "\n"
        case "table_open":
            return ".PP\n.TS\ntab(\t);\n" + _table_layout(rest)
        case "paragraph_open" if before == "list_item_open":
            return ""  # the item's sign and its text stand in one line
    return BLOCKS.get(token.type, "")


def _table_layout(tokens: Sequence[Token]) -> str:
    """Return the layout of the table that begins: its head in bold, its last column with what is left of the width."""
    kinds = [token.type for token in tokens]
    narrow = kinds[: kinds.index("thead_close")].count("th_open") - 1
    return "lB " * narrow + "lBx\n" + "l " * narrow + "lx.\n"


def inline(tokens: Sequence[Token]) -> str:
    """Return the text of a paragraph as roff. A link to another page becomes the name of its manual page."""
    found = []
    link = ""
    for token in tokens:
        if token.type == "link_open":
            link = str(token.attrs["href"])
        elif token.type == "link_close":
            found.append(_reference(link))
        elif token.type == "code_inline":
            found.append(rf"\fB{escaped(token.content)}\fR")
        else:
            found.append(FONTS.get(token.type, escaped(token.content)))
    return "".join(found)


def _reference(link: str) -> str:
    """Return what stands behind the text of a link: a manual page, an address, or nothing."""
    page = re.fullmatch(r"([\w-]+)\.md(#.*)?", link)
    if page is not None:
        return escaped(f" (asrd-{page[1]}(7))")
    if link.startswith("http"):
        return escaped(f" ({link})")
    return ""


def escaped(text: str) -> str:
    """Return a text in which roff sees no escape and no other kind of hyphen."""
    return text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")


def protected(text: str) -> str:
    """Return lines of which none is taken for a request of roff."""
    return re.sub(r"^(?=['.](?!br$))", r"\\&", text, flags=re.MULTILINE)


def write_topics(folder: Path) -> list[Path]:
    """Write every page of section 7 into a folder; return their paths."""
    written = []
    for path in sorted(DOCS.glob("*.md")):
        target = folder / f"asrd-{path.stem}.7"
        target.write_text(topic_page(path), encoding="utf-8")
        written.append(target)
    return written


def main(words: Sequence[str]) -> int:
    """Write the page on the verbs, or the others into the folder that is named; return 0."""
    if words:
        folder = Path(words[0])
        folder.mkdir(parents=True, exist_ok=True)
        write_topics(folder)
    else:
        VERBS_PAGE.write_text(verbs_page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
