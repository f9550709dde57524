"""A comparison as tables for a terminal, with the sentences around them (pure)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from asrd.evaluation.report.cells import (
    DASH,
    changed_words,
    criterion_text,
    delta,
    effective,
    error_text,
    figure,
    grew,
    mark,
    mib,
    name,
    outcome,
    pair,
    saved,
    shorten,
    steady,
)
from asrd.evaluation.report.sentences import (
    device_sentence,
    floor_sentence,
    memory_sentence,
    remarks,
    speech_sentence,
    summary,
)
from asrd.evaluation.results import Comparison, StrategyResult
from asrd.terminal.grids import Column, Grid, Line, rendered

EFFECTIVE_COLUMNS = 116
"""Columns from which a terminal shows the effective dtypes in the table."""

GROWTH_COLUMNS = 120
"""Columns from which growth has a column of its own, and is not below the memory."""

DELTA_COLUMNS = 126
"""Columns from which each delta stands on one line."""

MIN_COLUMNS = 90
"""Columns below which only what decides is shown."""


class CellColumn(NamedTuple):
    """A column of a table of strategies."""

    heading: str
    justify: str
    cell: Callable[[StrategyResult], str]
    narrow: bool = False
    """It is also shown where only what decides is shown."""


def table(comparison: Comparison, width: int = 120, colour: bool = False) -> str:
    """Return the comparison as text for a terminal of `width` columns; below MIN_COLUMNS only what
    decides is shown."""
    grids = [_strategies_grid(comparison, width)]
    if comparison.components:
        grids.append(_components_grid(comparison, width))
    notes = [
        summary(comparison),
        floor_sentence(comparison),
        *remarks(comparison),
        f"Criteria: {_limits(comparison)}",
        memory_sentence(comparison),
        speech_sentence(comparison),
        device_sentence(comparison),
    ]
    return rendered([*grids, *filter(None, notes)], width, colour)


def _limits(comparison: Comparison) -> str:
    """Return the criteria that decide, with their limits."""
    limits = []
    for bound in comparison.criteria:
        if bound.required:
            limits.append(f"{bound.name} {criterion_text(bound)}")
    return "; ".join(limits)


def _strategies_grid(comparison: Comparison, width: int) -> Grid:
    """Return the table of strategies."""
    columns = _columns(width, comparison.metric)
    lines = [Line(_cells(columns, row), _style(row)) for row in comparison.strategies]
    title = f"{comparison.model} on {comparison.device}"
    if comparison.partial:
        title += " (partial)"
    return Grid(title, _heads(columns, "effective"), lines)


def _components_grid(comparison: Comparison, width: int) -> Grid:
    """Return the table of what each component costs by itself."""
    joint = _joint(width, EFFECTIVE_COLUMNS)
    columns = [
        CellColumn("component", "left", lambda row: row.component),
        CellColumn("to", "left", lambda row: shorten(row.dtype)),
        CellColumn("saves\nMiB", "right", lambda row: mib(saved(row, comparison))),
        CellColumn("encoder\nerror %", "right", error_text),
        CellColumn("changed [95 %]\n/100", "left", lambda row: changed_words(row, joint)),
        CellColumn("delta [95 %]\npoints", "left", lambda row: delta(row, joint)),
    ]
    if width >= MIN_COLUMNS:
        columns.append(CellColumn("10 s ms\np50/p95", "right", lambda row: pair(row.latency_ms)))
    lines = []
    rows = comparison.components
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        ends = following is None or following.component != row.component
        lines.append(Line(_cells(columns, row), ends_section=ends))
    return Grid("One component at a time, the rest FP32", _heads(columns, "component"), lines)


def _columns(width: int, metric: str) -> list[CellColumn]:
    """Return the columns that a width has room for."""
    joint = _joint(width, DELTA_COLUMNS)
    columns = [CellColumn("strategy", "left", name, narrow=True)]
    if width >= EFFECTIVE_COLUMNS:
        columns.append(CellColumn("effective", "left", effective))
    columns += [
        CellColumn("weights\nMiB", "right", lambda row: mib(row.weights_bytes), narrow=True),
        CellColumn("load\npeak", "right", lambda row: figure(row.load_peak_over_weights, 2)),
        *_memory_columns(width),
        CellColumn("10 s ms\np50/p95", "right", lambda row: pair(row.latency_ms), narrow=True),
        CellColumn("RTFx", "right", _speed),
        CellColumn(f"{metric}\n%", "right", lambda row: figure(row.wer, 2), narrow=True),
        CellColumn("delta [95 %]\npoints", "left", lambda row: delta(row, joint), narrow=True),
        CellColumn("chg\n/100", "right", lambda row: figure(row.changed_per_100, 1)),
        CellColumn("verdict", "left", _verdict, narrow=True),
        CellColumn("", "left", _standing, narrow=True),
    ]
    if width >= MIN_COLUMNS:
        return columns
    return [column for column in columns if column.narrow]


def _memory_columns(width: int) -> list[CellColumn]:
    """Return the memory in use and what it grew by: side by side, or in one column where there is
    no room."""
    if width >= GROWTH_COLUMNS:
        return [
            CellColumn("steady\nMiB", "right", lambda row: mib(steady(row))),
            CellColumn("grew\nMiB", "right", grew),
        ]
    both = CellColumn(
        "steady\n+grew", "right", lambda row: f"{mib(steady(row))}\n{grew(row)}", True
    )
    return [both]


def _speed(row: StrategyResult) -> str:
    """Return how many times faster than real time a strategy is."""
    digits = int((row.rtfx or 0) < 100)
    return figure(row.rtfx, digits)


def _verdict(row: StrategyResult) -> str:
    if row.role == "baseline":
        return DASH
    return row.verdict


def _standing(row: StrategyResult) -> str:
    """Return pass, FAIL, base or not measured."""
    if row.role == "baseline":
        return "base"
    return outcome(row).partition(":")[0]


def _joint(width: int, one_line: int) -> str:
    """Return what stands between a figure and its interval: a space where the width allows it."""
    if width >= one_line:
        return " "
    return "\n"


def _cells(columns: Sequence[CellColumn], row: StrategyResult) -> list[str]:
    return [column.cell(row) for column in columns]


def _heads(columns: Sequence[CellColumn], flexible: str) -> list[Column]:
    """Return the headings; the column of that name may be folded."""
    heads = []
    for column in columns:
        right = column.justify == "right"
        heads.append(Column(column.heading, right, column.heading == flexible))
    return heads


def _style(row: StrategyResult) -> str:
    """Return the colour of a row: FP32's own runs have none."""
    return {"pass": "green", "fail": "red", "open": "yellow", "base": ""}[mark(row)]
