"""When a candidate's figures are reason to leave it: by hand, and for figures nobody thought of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrd.dictation.fallback_triggers import (
    MIN_FAILURES,
    MIN_LONG_BUFFERS,
    judge_failures,
    judge_latency,
    judge_memory,
    judge_words,
    wilson,
)
from asrd.engine.baseline import BaselineFigures
from asrd.precision.ledger import MEMORY_RESOLUTION
from asrd.precision.memory import Memory

MIB = 1 << 20
FP32 = BaselineFigures(process=500 * MIB, source="rss", p50_ms=100.0, wer=2.0, wer_delta=None)
COSTS = st.lists(st.tuples(st.floats(0.1, 30), st.floats(0.0001, 10)), max_size=80)


def test_slow_is_a_median_of_long_buffers_against_what_was_measured() -> None:
    assert judge_latency([(10.0, 0.109)] * MIN_LONG_BUFFERS, FP32, 10.0) is None
    found = judge_latency([(10.0, 0.112)] * MIN_LONG_BUFFERS, FP32, 10.0)
    assert found is not None
    assert found.kind == "slow"
    assert found.figures == {
        "p50_ms": pytest.approx(112.0),
        "baseline_p50_ms": 100.0,
        "buffers": MIN_LONG_BUFFERS,
    }
    assert "112 ms" in found.detail


def test_slow_needs_samples_a_baseline_and_a_limit() -> None:
    costs = [(10.0, 9.0)] * MIN_LONG_BUFFERS
    assert judge_latency(costs, FP32, 10.0) is not None
    assert judge_latency(costs[1:], FP32, 10.0) is None
    assert judge_latency(costs, None, 10.0) is None
    assert judge_latency(costs, FP32, 0.0) is None
    assert judge_latency([(2.0, 9.0)] * 100, FP32, 10.0) is None, "short buffers say nothing"


def test_a_busy_neighbour_for_a_while_is_not_slowness() -> None:
    busy = [(10.0, 1.0)] * 9 + [(10.0, 0.09)] * 11
    assert judge_latency(busy, FP32, 10.0) is None


@given(COSTS, st.floats(0.1, 1000), st.floats(0.1, 100))
def test_nothing_that_is_as_fast_as_fp32_is_slow(
    costs: list[tuple[float, float]], p50: float, limit: float
) -> None:
    base = BaselineFigures(None, "rss", p50, None, None)
    fast = [(seconds, min(compute, p50 / 1000)) for seconds, compute in costs]
    assert judge_latency(fast, base, limit) is None
    slowest = [
        (seconds, 2 * (1 + limit / 100) * max(1.0, seconds / 10) * p50 / 1000)
        for seconds, _ in costs
    ]
    enough = sum(seconds >= 8 for seconds, _ in costs) >= MIN_LONG_BUFFERS
    assert (judge_latency(slowest, base, limit) is not None) is enough


def test_failures_are_a_rate_of_which_one_is_sure() -> None:
    assert judge_failures(1, 1, 1.0) is None, "one may have come from outside"
    assert judge_failures(2, 10, 1.0) is None
    assert judge_failures(3, 300, 1.0) is None, "it may be one in a hundred"
    found = judge_failures(3, 50, 1.0)
    assert found is not None
    assert found.figures["low_percent"] == pytest.approx(2.06, abs=0.01)
    assert judge_failures(50, 50, 0.0) is None


@given(st.integers(0, 400), st.integers(0, 400), st.floats(0.1, 99))
def test_more_failures_never_excuse_a_candidate(failures: int, buffers: int, limit: float) -> None:
    if judge_failures(failures, buffers, limit) is not None:
        assert failures >= MIN_FAILURES
        assert 100 * failures / buffers > limit
        assert judge_failures(failures + 1, buffers, limit) is not None


@given(st.integers(0, 500), st.integers(0, 500))
def test_an_interval_holds_its_rate(hits: int, more: int) -> None:
    low, high = wilson(hits, hits + more)
    assert 0 <= low <= high <= 1
    if hits + more:
        assert low - 1e-9 <= hits / (hits + more) <= high + 1e-9


def test_wilson_by_the_book() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)


def test_memory_against_fp32_by_one_instrument_and_beyond_its_resolution() -> None:
    assert judge_memory(Memory(process=549 * MIB), FP32, 10.0, None) is None
    found = judge_memory(Memory(process=551 * MIB), FP32, 10.0, None)
    assert found is not None
    assert (found.kind, found.figures) == (
        "memory", {"process_bytes": 551 * MIB, "baseline_process_bytes": 500 * MIB}
    )  # fmt: skip
    assert judge_memory(Memory(process=551 * MIB, source="nvml"), FP32, 10.0, None) is None
    assert judge_memory(Memory(process=551 * MIB), FP32, 0.0, None) is None
    assert judge_memory(Memory(process=500 * MIB + MEMORY_RESOLUTION), FP32, 0.1, None) is None
    for nothing in (None, Memory()):
        assert judge_memory(nothing, FP32, 10.0, 1) is None


def test_a_budget_is_of_the_cards_memory_and_has_no_tolerance() -> None:
    found = judge_memory(Memory(process=101, source="nvml"), None, 10.0, 100)
    assert found is not None
    assert found.kind == "budget"
    assert judge_memory(Memory(process=100, source="nvml"), None, 10.0, 100) is None
    assert judge_memory(Memory(process=101, source="rss"), None, 10.0, 100) is None


def test_disagreement_counts_by_the_low_end_of_its_interval() -> None:
    assert judge_words(30, 1000, None, 1.0) is None
    assert judge_words(30, 1000, 1.0, 1.0) is None
    assert judge_words(30, 1000, 9.0, 0.0) is None
    found = judge_words(30, 1000, 1.9, 1.0)
    assert found is not None
    assert "30 of 1000 words" in found.detail
