"""Rows under headings, as verbs that list things print them: no name is broken or cut on a narrow
terminal.

Where a table has no room, each row becomes a name and, below it, what belongs to it. A pipe gets
whole lines.
"""

from __future__ import annotations

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


def show(headings: Sequence[str], rows: Sequence[Sequence[str]], name: str = "") -> None:
    """Print rows under headings, those that start with ">" to the right.

    Args:
        headings: one for each column.
        rows: as many cells each; a cell may have several lines.
        name: the heading of the column that names a row; the first one where none is given.
    """
    titles, right = (
        [heading.lstrip(">") for heading in headings],
        [heading.startswith(">") for heading in headings],
    )
    cells = [[one_line(line) for line in cell.split("\n")] for row in rows for cell in row]
    count = len(titles)
    table = [cells[start : start + count] for start in range(0, len(cells), count)]
    heads = [title.split("\n") for title in titles]
    widths = [
        max(cell_len(line) for row in (heads, *table) for line in row[column])
        for column in range(count)
    ]
    terminal = sys.stdout.isatty()
    if terminal and sum(widths) + GAP * (count - 1) > columns():
        _show_records(titles, table, titles.index(name) if name else 0)
        return
    _show_table(heads, table, widths, right, terminal)


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


Row = Sequence[Sequence[str]]
"""Cells, each as its lines."""


def _show_table(
    heads: Row, table: Sequence[Row], widths: Sequence[int], right: Sequence[bool], bold: bool
) -> None:
    """Print the rows as a table: headings bold on a terminal."""
    for number, row in enumerate((heads, *table)):
        for line in range(max(map(len, row))):
            padded = [
                _padded(cell[line] if line < len(cell) else "", width, aligned)
                for cell, width, aligned in zip(row, widths, right, strict=True)
            ]
            text = (" " * GAP).join(padded).rstrip()
            tell_line(text, bold and (number == 0 or text.startswith(">")))


def _padded(text: str, width: int, right: bool) -> str:
    room = " " * (width - cell_len(text))
    return room + text if right else text + room


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
    pieces = cell.split() if wraps else cell.split("\n")
    return max(map(cell_len, pieces), default=0)
