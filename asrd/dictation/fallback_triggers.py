"""The figures of a candidate that are reason enough to leave it.

Pure: figures and limits in, a Trigger or None out. Each function asks for enough samples. Each uses a
figure that a busy neighbour or one bad moment does not move: a median, or the end of an interval that
speaks for the candidate.
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

BUFFER_SECONDS = 10.0
"""Seconds of the buffer whose latency `asrd compare` measures."""

MIN_LONG_SECONDS = 8.0
"""Length of a buffer from which its cost counts: most of the cost of a short one is the same for any
length."""

MIN_LONG_BUFFERS = 20
"""Long buffers behind a median."""

RECENT_BUFFERS = 60
"""Long buffers that are remembered."""

MIN_FAILURES = 3
"""Workers lost below which no rate is judged: one may have been ended from outside, and two may be
chance."""

Z_95 = 1.96
"""Standard deviations on each side of a 95 % interval."""


class Trigger(msgspec.Struct, frozen=True):
    """Why a candidate is to be left."""

    kind: str
    """slow, failures, memory, budget or changed."""
    detail: str
    """One sentence with the figures, never a word of a recording."""
    figures: dict[str, float]


def judge_latency(
    costs: Sequence[tuple[float, float]], fp32: BaselineFigures | None, limit: float
) -> Trigger | None:
    """Judge the computing time of buffers against FP32's median latency for ten seconds.

    Args:
        costs: (seconds of audio, seconds of computing), one for each buffer; only long ones count.
            A shorter buffer counts as ten seconds, so that its length never makes it look slow.
        limit: percent; 0 for never.
    """
    if not limit or fp32 is None or not fp32.p50_ms:
        return None
    long = [cost for cost in costs if cost[0] >= MIN_LONG_SECONDS]
    if len(long) < MIN_LONG_BUFFERS:
        return None
    latencies = []
    for seconds, compute in long[-RECENT_BUFFERS:]:
        latencies.append(1000 * compute * BUFFER_SECONDS / max(BUFFER_SECONDS, seconds))
    median = statistics.median(latencies)
    if median <= fp32.p50_ms * (1 + limit / 100):
        return None
    return Trigger(
        "slow",
        f"{median:.0f} ms for ten seconds of audio, FP32 took {fp32.p50_ms:.0f} ms when it was measured here",
        {"p50_ms": median, "baseline_p50_ms": fp32.p50_ms, "buffers": len(latencies)},
    )


def judge_failures(failures: int, buffers: int, limit: float) -> Trigger | None:
    """Judge how many of the buffers ended a worker: the low end of the rate's interval must be above
    `limit` percent."""
    if not limit or failures < MIN_FAILURES or not buffers:
        return None
    low = 100 * wilson(failures, max(failures, buffers))[0]
    if low <= limit:
        return None
    return Trigger(
        "failures",
        f"{failures} of {buffers} buffers ended a worker, surely more than {low:.1f} in 100",
        {"failures": failures, "buffers": buffers, "low_percent": low},
    )


def judge_memory(
    memory: Memory | None, fp32: BaselineFigures | None, limit: float, budget: int | None
) -> Trigger | None:
    """Judge the worker's memory: against its budget in bytes, and against FP32's, as the same
    instrument read both.

    Args:
        limit: percent above FP32; 0 for never. A difference within MEMORY_RESOLUTION never
            counts.
    """
    if memory is None or memory.process is None:
        return None
    process = memory.process
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


def judge_words(changed: int, words: int, low: float | None, limit: float) -> Trigger | None:
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
    """Return the 95 % interval of the words changed per 100, by bootstrap over the buffers.

    Args:
        counts: (changed words, words of FP32) of each buffer.

    Returns None with too few buffers (see `scoring.interval`), unless nothing changed at all.
    """
    counts = [pair for pair in counts if any(pair)]
    if not counts:
        return None
    changed, words = zip(*counts, strict=True)
    return interval(Edits(changed, words), Edits((0,) * len(words), words))


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a rate, in 0..1; the whole range where there is nothing to
    go by."""
    if not of:
        return 0.0, 1.0
    rate, square = hits / of, Z_95 * Z_95 / of
    middle = (rate + square / 2) / (1 + square)
    half = Z_95 * math.sqrt(rate * (1 - rate) / of + square / (4 * of)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)
