"""Memory: every figure says what it is wherever it is shown, and growth after the steady state is
shown and judged."""

from __future__ import annotations

import os
import random

import msgspec
import pytest

from asrd.cli import journal_history, report, status_page
from asrd.dictation import fallback_triggers, metrics
from asrd.engine.baseline import BaselineFigures
from asrd.evaluation import judging, selection
from asrd.evaluation.report import cells, documents, page, plots, sentences
from asrd.evaluation.report import table as report_table
from asrd.evaluation.results import Comparison
from asrd.precision import ledger
from asrd.precision import readings as precision_readings
from asrd.precision.memory import Memory
from tests.cli.test_control import STATUS
from tests.cli.test_report import take
from tests.evaluation.test_table import comparison, measured

MIB = 1 << 20

SOURCES = {
    "rss": ("anonymous", "anonymous", "without the pages of libraries"),
    "nvml": ("gpu", "GPU, by NVML", "of the GPU"),
    "meminfo": ("gpu-change", "change of the whole GPU", "other programs disturb it"),
}
"""Instrument -> key, words beside a figure, part of the sentence."""


def compared(source: str) -> Comparison:
    readings = {phase: Memory(process=900 * MIB, source=source) for phase in ledger.WORKING_PHASES}
    return comparison(measured("half", ledger=readings))


@pytest.mark.parametrize("source", SOURCES)
def test_a_figure_says_what_it_is_wherever_it_is_shown(source: str) -> None:
    key, words, part = SOURCES[source]
    memory = Memory(process=900 * MIB, source=source, kind=key)
    fields = msgspec.structs.asdict(memory)
    status = STATUS | {"memory": fields}
    shown = {
        "status": status_page.page(status),
        "waybar": str(status_page.waybar(status)["tooltip"]),
        "trigger": str(
            fallback_triggers.judge_memory(
                memory, BaselineFigures(500 * MIB, source, None, None, None), 10.0, None
            )
        ),
        "report": "\n".join(
            report.described(journal_history.history([take(process_bytes=9, memory_source=source)]))
        ),
        "tune": selection.ledger.source_words(source),
    }
    for where, text in shown.items():
        assert words in text, where
    assert metrics.ledger(memory)["memory_kind"] == fields["kind"] == key
    assert journal_history.history(
        [take(process_bytes=9, memory_source=source)]
    ).all.memory_kinds == [key]
    found = compared(source)
    for told in (report_table.table(found, 160), page.html(found)):
        assert part in " ".join(told.split())
    assert words in plots._memory_caption(found).replace(" or anonymous", "").replace(
        "anonymous or ", ""
    )


def test_a_reading_of_this_process_is_anonymous_and_smaller_than_what_is_resident() -> None:
    memory = precision_readings.read(os.getpid(), "cpu")
    assert (memory.kind, memory.source) == ("anonymous", "rss")
    assert memory.process is not None
    assert memory.resident is not None
    assert 0 < memory.process < memory.resident
    assert "with the libraries and files that it shares" in ledger.reading_text(
        msgspec.structs.asdict(memory)
    )


def growths() -> list[tuple[int, int, bool]]:
    """Return (MiB that FP32 gains, MiB that half gains, whether that is within the bound), from a
    seed."""
    draw = random.Random(15)
    pairs = [(draw.randrange(-20, 90), draw.randrange(-30, 320)) for _ in range(22)]
    edges = [(0, 64), (0, 65), (30, 94), (30, 95), (-5, 64), (-5, 65)]
    return [(whole, half, half <= max(0, whole) + 64) for whole, half in pairs + edges]


@pytest.mark.parametrize(("whole", "half", "within"), growths())
def test_growth_is_shown_and_judged(whole: int, half: int, within: bool) -> None:
    def gaining(mib: int) -> dict[str, Memory]:
        return {"steady": Memory(process=900 * MIB), "after": Memory(process=(900 + mib) * MIB)}

    runs = [
        measured("fp32", "baseline", ledger=gaining(whole)),
        measured("fp32", "again", ledger=gaining(whole)),
    ]
    references = [str(text) for text in runs[0].texts]
    floor, bounds, rows = judging.judge(
        [*runs, measured("half", ledger=gaining(half))], references, 400.0, 1.5, "en"
    )
    row = rows[-1]
    judged = next(one for one in row.criteria if one.name == "growth")
    assert row.growth_bytes == half * MIB
    assert judged.passed is within
    assert within or "growth" in cells.outcome(row)
    found = msgspec.structs.replace(comparison(), rows=rows, criteria=bounds, noise_floor=floor)
    signed = f"{half:+d}".replace("-", "−") if half else "0"
    for width in (80, 100, 116, 120, 160):
        assert signed in report_table.table(found, width).split(), width
    assert f'<td class="n">{signed}</td>' in page.html(found)
    assert f'"growth_bytes": {half * MIB}' in documents.to_json(found).decode()
    assert within or f"growth {signed} MiB (limit ≤ " in " ".join(sentences.remarks(found))


def test_memory_is_judged_at_its_largest() -> None:
    late = {"steady": Memory(process=900 * MIB), "after": Memory(process=960 * MIB)}
    row = comparison(measured("half", ledger=late)).rows[-1]
    assert next(one for one in row.criteria if one.name == "memory").value == pytest.approx(
        960 / 900
    )


@pytest.mark.parametrize(
    ("steady", "after", "grew"),
    [
        (Memory(process=5), Memory(process=9), 4),
        (Memory(allocated=5), Memory(allocated=3), -2),
        (Memory(process=5), Memory(process=9, source="nvml"), None),
        (Memory(process=5), Memory(allocated=9), None),
        (Memory(), Memory(), None),
    ],
)
def test_two_instruments_are_never_subtracted(
    steady: Memory, after: Memory, grew: int | None
) -> None:
    assert ledger.growth_bytes({"steady": steady, "after": after}) == grew
