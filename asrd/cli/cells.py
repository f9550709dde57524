"""One cell of a table: a figure as text, or a mark where there is none (pure)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Figure = TypeVar("Figure")

NO_FIGURE = "-"
"""Cell of a figure that was not measured, or does not exist here."""


def shown(figure: Figure | None, form: Callable[[Figure], str]) -> str:
    """Return a figure in the form that `form` gives it, or the mark for none."""
    if figure is None:
        return NO_FIGURE
    return form(figure)
