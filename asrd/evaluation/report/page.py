"""One comparison as an HTML page (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asrd.evaluation.report.cells import (
    INSTRUMENTS,
    PHASES,
    changed_words,
    criterion_text,
    delta,
    effective,
    error_text,
    figure,
    grew,
    indistinct,
    mark,
    mib,
    name,
    outcome,
    pair,
    saved,
    shorten,
    steady,
    value_text,
)
from asrd.evaluation.report.sentences import (
    device_sentence,
    floor_sentence,
    memory_sentence,
    speech_sentence,
    summary,
)
from asrd.evaluation.results import (
    Comparison,
    StrategyResult,
)
from asrd.paths import DATA_FOLDER
from asrd.precision.memory import Memory
from asrd.text.characters import readable


def _times(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{figure(value, 2)}×"


# -- the page
# ---------------------------------------------------------------------------------------------------------


def html(comparison: Comparison) -> str:
    """Return one self-contained page: no script, no network, readable on a telephone and in the
    dark."""
    from jinja2 import Environment, StrictUndefined

    from asrd.evaluation.report import plots

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        mib=mib,
        figure=figure,
        pair=pair,
        times=_times,
        value=value_text,
        limit=criterion_text,
        short=shorten,
    )
    environment.filters["changed"] = changed_words
    template = environment.from_string((DATA_FOLDER / "report.html.j2").read_text("utf-8"))
    page = template.render(
        c=comparison,
        rows=[_view(row, comparison) for row in comparison.strategies],
        parts=[_part_view(row, comparison) for row in comparison.components],
        summary=summary(comparison),
        floor=floor_sentence(comparison),
        speech=speech_sentence(comparison),
        device=device_sentence(comparison),
        memory=memory_sentence(comparison),
        plots=plots.draw(comparison),
        metric=comparison.metric,
        units=comparison.manifest.units,
    )
    return readable(page)


def _view(row: StrategyResult, comparison: Comparison) -> Mapping[str, Any]:
    """Return what the template shows of a row beside its own fields."""
    columns, phases = _memory_table(row)
    return {
        "row": row,
        "name": name(row),
        "effective": effective(row),
        "steady": steady(row),
        "grew": grew(row),
        "delta": delta(row, " "),
        "outcome": outcome(row),
        "indistinct": indistinct(row, comparison),
        "mark": mark(row),
        "columns": columns,
        "phases": phases,
    }


def _part_view(row: StrategyResult, comparison: Comparison) -> Mapping[str, Any]:
    """Return what the template shows of a component beside its row's own fields."""
    return {
        "row": row,
        "saved": saved(row, comparison),
        "error": error_text(row),
        "changed": changed_words(row),
        "delta": delta(row, " "),
    }


def _phases(row: StrategyResult) -> Sequence[tuple[str, Memory]]:
    """Return the ledger in the order of time, the load peak where it belongs, phases of no known
    place last."""
    ledger = dict(row.ledger)
    if row.load_peak:
        ledger["load peak"] = row.load_peak
    found = []
    for phase in dict.fromkeys([*PHASES, *ledger]):
        if phase in ledger:
            found.append((phase, ledger[phase]))
    return found


def _memory_table(row: StrategyResult) -> tuple[list[str], list[tuple[str, list[int | None]]]]:
    """Return the instruments that read the memory of a row, and (phase, bytes by each) for every
    phase."""
    phases = _phases(row)
    columns = []
    for field in INSTRUMENTS:
        readings = [getattr(memory, field) for _, memory in phases]
        if readings.count(None) < len(readings):
            columns.append(field)
    lines = []
    for phase, memory in phases:
        lines.append((phase, [getattr(memory, field) for field in columns]))
    return columns, lines
