"""Rows under headings, as verbs that list things print them: no name is broken or cut on a narrow
terminal.

Where a table has no room, each row becomes a name and, below it, what belongs to it. A pipe gets
whole lines.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import textwrap
from collections.abc import Sequence

from rich.cells import cell_len

from asrd.terminal.output import one_line, tell, tell_line

GAP = 2
"""Columns between two columns."""

INDENT = "    "
"""Before what belongs to a name that stands on a line of its own."""

PIPE_COLUMNS = 100
"""Columns that text is folded to in a pipe."""

MAX_COLUMNS = 120
"""Columns that text is folded to on a wide terminal."""


Row = Sequence[Sequence[str]]
"""Cells, each as its lines."""


def show(headings: Sequence[str], rows: Sequence[Sequence[str]], name: str = "") -> None:
    """Print rows under headings, those that start with ">" to the right.

    Args:
        headings: one for each column.
        rows: as many cells each; a cell may have several lines.
        name: the heading of the column that names a row; the first one where none is given.
    """
    right = [heading.startswith(">") for heading in headings]
    titles = [heading.lstrip(">") for heading in headings]
    table = [list(map(_lines, row)) for row in rows]
    heads = [title.split("\n") for title in titles]
    widths = _widths([heads, *table])
    terminal = sys.stdout.isatty()
    if not terminal or sum(widths) + GAP * (len(titles) - 1) <= columns():
        _show_table(heads, table, widths, right, terminal)
        return
    named = 0
    if name:
        named = titles.index(name)
    _show_records(titles, table, named)


def _lines(cell: str) -> list[str]:
    """Return the lines of a cell, each without what a terminal would obey."""
    return list(map(one_line, cell.split("\n")))


def _widths(rows: Sequence[Row]) -> list[int]:
    """Return the width of each column: that of its longest line."""
    widths = [0] * len(rows[0])
    for row in rows:
        for column, lines in enumerate(row):
            widths[column] = max(widths[column], *map(cell_len, lines))
    return widths


def columns() -> int:
    """Return how many columns text may have: the terminal's, or the usual ones in a pipe."""
    if not sys.stdout.isatty():
        return PIPE_COLUMNS
    return max(1, min(shutil.get_terminal_size((PIPE_COLUMNS, 24)).columns, MAX_COLUMNS))


def say(*paragraphs: str) -> None:
    """Print paragraphs, folded between words."""
    for paragraph in paragraphs:
        lines = textwrap.wrap(paragraph, columns(), break_on_hyphens=False, break_long_words=False)
        tell("\n".join(lines))


def _show_table(
    heads: Row, table: Sequence[Row], widths: Sequence[int], right: Sequence[bool], bold: bool
) -> None:
    """Print the rows as a table: headings bold on a terminal."""
    for number, row in enumerate((heads, *table)):
        for cells in itertools.zip_longest(*row, fillvalue=""):
            padded = map(_padded, cells, widths, right)
            text = (" " * GAP).join(padded).rstrip()
            tell_line(text, bold and (number == 0 or text.startswith(">")))


def _padded(text: str, width: int, right: bool) -> str:
    room = " " * (width - cell_len(text))
    if right:
        return room + text
    return text + room


def _show_records(titles: Sequence[str], table: Sequence[Row], named: int) -> None:
    """Print each row as its name and, indented, its other cells behind their headings."""
    for row in table:
        first, *rest = record(titles, row, named, columns())
        tell_line(first, True)
        if rest:
            tell("\n".join(rest))


def record(titles: Sequence[str], row: Row, named: int, width: int) -> list[str]:
    """Return a row as lines of at most `width` columns: its name, and its other cells behind their
    headings.

    Args:
        named: the column of the name; what stands before it comes first.
    """
    marks = [" ".join(row[column]) for column in range(named)]
    name = " ".join(filter(None, [*marks, " ".join(row[named])]))
    parts = []
    for column, cell in enumerate(row):
        text = " ".join(cell).strip()
        if column > named and text:
            parts.append(f"{titles[column]} {text}".strip().replace("\n", " "))
    rest = textwrap.wrap(
        ", ".join(parts), width, initial_indent=INDENT, subsequent_indent=INDENT,
        break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip
    return [name, *rest]


def widest(cell: str, wraps: bool) -> int:
    """Return the columns that a cell needs: of its longest line, or of its longest word where it
    `wraps`."""
    pieces = cell.split("\n")
    if wraps:
        pieces = cell.split()
    return max(map(cell_len, pieces), default=0)
