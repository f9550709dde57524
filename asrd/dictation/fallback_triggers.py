"""What of a candidate's figures is reason enough to leave it.

Pure: figures and limits in, a Verdict or None out. Each asks for enough samples, and for a figure
    that a busy neighbour
or one bad moment does not move: a median, or the end of an interval that speaks for the candidate.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import msgspec

from asrd.engine.baseline import BaselineFigures
from asrd.precision import ledger
from asrd.precision.ledger import MEMORY_RESOLUTION
from asrd.precision.memory import Memory
from asrd.scoring import Edits, interval
from asrd.text.sizes import mib

BUFFER = 10.0
"""Seconds of the buffer whose latency `asrd compare` measures."""

LONG = 8.0
"""Seconds that a buffer must have for its cost to count: what a short one costs is mostly the same
for any length."""

ENOUGH = 20
"""Long buffers behind a median."""

RECENT = 60
"""Long buffers that are remembered."""

FEWEST_FAILURES = 3
"""Workers lost below which there is no rate: one may have been ended from outside, and two may be
bad luck."""

Z = 1.96
"""Of a 95 % interval."""


class Trigger(msgspec.Struct, frozen=True):
    """Why a candidate is to be left."""

    kind: str
    """slow, failures, memory, budget or changed."""
    detail: str
    """One sentence with the figures, never a word of what was said."""
    figures: dict[str, float]


def slow(
    costs: Sequence[tuple[float, float]], fp32: BaselineFigures | None, limit: float
) -> Trigger | None:
    """Judge what buffers cost against FP32's median latency for ten seconds.

    Args:
        costs: (seconds of sound, seconds of computing), one for each buffer; only long ones count.
            A buffer counts as ten seconds at least, so that one that is shorter never looks slow
            for that.
        limit: percent; 0 for never.
    """
    if not limit or fp32 is None or not fp32.p50_ms:
        return None
    paces = [
        1000 * compute * BUFFER / max(BUFFER, seconds)
        for seconds, compute in costs
        if seconds >= LONG
    ]
    if len(paces) < ENOUGH:
        return None
    median = statistics.median(paces[-RECENT:])
    if median <= fp32.p50_ms * (1 + limit / 100):
        return None
    return Trigger(
        "slow",
        f"{median:.0f} ms for ten seconds of sound, FP32 took {fp32.p50_ms:.0f} ms when it was measured here",
        {"p50_ms": median, "baseline_p50_ms": fp32.p50_ms, "buffers": len(paces[-RECENT:])},
    )


def failing(failures: int, buffers: int, limit: float) -> Trigger | None:
    """Judge how many of the buffers cost a worker: the low end of the rate's interval must be above
    `limit` percent."""
    if not limit or failures < FEWEST_FAILURES or not buffers:
        return None
    low = 100 * wilson(failures, max(failures, buffers))[0]
    if low <= limit:
        return None
    return Trigger(
        "failures",
        f"{failures} of {buffers} buffers cost a worker, surely more than {low:.1f} in 100",
        {"failures": failures, "buffers": buffers, "low_percent": low},
    )


def heavy(
    memory: Memory | None, fp32: BaselineFigures | None, limit: float, budget: int | None
) -> Trigger | None:
    """Judge the worker's memory: against its budget in bytes, and against FP32's, as the same
    instrument read both.

    Args:
        limit: percent above FP32; 0 for never. What two runs of one program differ by is never
            counted.
    """
    process = memory.process if memory else None
    if memory is None or process is None:
        return None
    if budget is not None and memory.source != "rss" and process > budget:
        return Trigger(
            "budget",
            f"{mib(process)} in use ({ledger.source_words(memory.source)}), vram_budget is {mib(budget)}",
            {"process_bytes": process, "budget_bytes": budget},
        )
    if not limit or fp32 is None or not fp32.process or fp32.source != memory.source:
        return None
    if process <= fp32.process + max(MEMORY_RESOLUTION, fp32.process * limit / 100):
        return None
    return Trigger(
        "memory",
        f"{mib(process)} in use ({ledger.source_words(memory.source)}), "
        f"FP32 held {mib(fp32.process)} when it was measured here",
        {"process_bytes": process, "baseline_process_bytes": fp32.process},
    )


def changing(changed: int, words: int, low: float | None, limit: float) -> Trigger | None:
    """Judge the disagreement with FP32, in words of 100: the low end of its interval must be above
    `limit`."""
    if not limit or low is None or low <= limit:
        return None
    return Trigger(
        "changed",
        f"{changed} of {words} words differ from FP32's, surely more than {low:.1f} in 100",
        {"changed": changed, "words": words, "low_per_100": low},
    )


def disagreement(counts: Iterable[tuple[int, int]]) -> tuple[float, float] | None:
    """Return the 95 % interval of the words changed per 100, by bootstrap over what was counted
    together.

    Args:
        counts: (changed, words of FP32) each. None with fewer than FEWEST of them, unless nothing
            changed at all.
    """
    counts = [(changed, of) for changed, of in counts if of or changed]
    if not counts:
        return None
    of = tuple(of for _, of in counts)
    return interval(Edits(tuple(changed for changed, _ in counts), of), Edits((0,) * len(of), of))


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a rate, in 0..1; the whole range where there is nothing to
    go by."""
    if not of:
        return 0.0, 1.0
    rate, square = hits / of, Z * Z / of
    middle = (rate + square / 2) / (1 + square)
    half = Z * math.sqrt(rate * (1 - rate) / of + square / (4 * of)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)
