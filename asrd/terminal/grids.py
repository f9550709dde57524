"""Tables of figures for a terminal: where one has no room, each row becomes a name and what belongs
to it (pure).

Nothing is cut, and neither a name nor a number is broken, however narrow the terminal.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from asrd.terminal import listing


@dataclass(frozen=True)
class Column:
    """A column of a grid."""

    heading: str
    """May have several lines."""
    right: bool = False
    wraps: bool = False
    """Whether a cell may be folded between its words."""


@dataclass(frozen=True)
class Line:
    """A row of a grid."""

    cells: Sequence[str]
    """One for each column; a cell may have several lines. The first one names the row."""
    style: str = ""
    ends_section: bool = False


@dataclass(frozen=True)
class Grid:
    """A table with a title."""

    title: str
    columns: Sequence[Column]
    lines: Sequence[Line]

    @property
    def least_columns(self) -> int:
        """Columns of a terminal that it needs at least."""
        least = listing.GAP * (len(self.columns) - 1)
        for place, column in enumerate(self.columns):
            widest = listing.widest(column.heading, column.wraps)
            for line in self.lines:
                widest = max(widest, listing.widest(line.cells[place], column.wraps))
            least += widest
        return least


def rendered(parts: Sequence[Grid | str], width: int, colour: bool) -> str:
    """Return tables, and texts folded between words, as text for a terminal of `width` columns."""
    from rich.console import Console
    from rich.text import Text

    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        legacy_windows=False,
    )

    def add(text: str, style: str = "") -> None:
        console.print(Text(text, style, overflow="ignore"), highlight=False, crop=False)

    for part in parts:
        if isinstance(part, str):
            add(part)
            continue
        add(part.title, "bold")
        if part.least_columns <= width:
            console.print(_table(part), highlight=False)
            continue
        for text, style in _records(part, width):
            add(text, style)
    return "\n".join(map(str.rstrip, stream.getvalue().splitlines()))


def _records(grid: Grid, width: int) -> Iterator[tuple[str, str]]:
    """Yield each row as lines of text with their style: its name, then its other cells behind their
    headings."""
    titles = [column.heading for column in grid.columns]
    for line in grid.lines:
        first, *rest = listing.record(titles, [cell.split("\n") for cell in line.cells], 0, width)
        yield first, f"bold {line.style}".strip()
        for text in rest:
            yield text, line.style


def _table(grid: Grid) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in grid.columns:
        justify: Any = "right" if column.right else "left"
        table.add_column(column.heading, justify=justify, no_wrap=not column.wraps)
    for line in grid.lines:
        table.add_row(*line.cells, style=line.style, end_section=line.ends_section)
    return table
