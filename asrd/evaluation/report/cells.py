"""The figures of a comparison as short texts, for the cells of a table or of the page (pure)."""

from __future__ import annotations

from collections import Counter

from asrd.evaluation.results import Bound, Comparison, Criterion, PartialFigures, StrategyResult
from asrd.precision import ledger as precision_ledger
from asrd.scoring import Percentiles
from asrd.text.sizes import MIB

DASH = "–"
"""Shown where a figure was not measured."""


SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""Dtypes as a narrow column spells them; the one that contains another comes first."""


INSTRUMENTS = ("allocated", "reserved", "process", "device")


PHASES = ("import", "load", "load peak", "cast", "ready", "warm-up", "steady", "after")


def figure(value: float | None, digits: int = 1, sign: str = "") -> str:
    """Return a figure with a true minus sign and no minus before a zero, or a dash where there is
    none."""
    if value is None:
        return DASH
    rounded = round(value, digits) + 0.0  # -0.0 + 0.0 is 0.0
    return f"{rounded:{sign}.{digits}f}".replace("-", "−")


def mib(value: int | None) -> str:
    """Return bytes in MiB without the unit."""
    if value is None:
        return DASH
    if value < 1000 * MIB:
        return figure(value / MIB)
    return figure(value / MIB, 0)


def percent(share: float | None) -> str:
    """Return a share of 1 in percent."""
    if share is None:
        return DASH
    return f"{figure(100 * share)} %"


def pair(value: Percentiles | None) -> str:
    """Return the median and the 95th percentile."""
    if value is None:
        return DASH
    digits = int(value.p50 < 100)
    if value.p95 == value.p50:  # of one repeat: a percentile of one value says nothing
        return figure(value.p50, digits)
    return f"{figure(value.p50, digits)}/{figure(value.p95, digits)}"


def _interval(row: StrategyResult) -> str:
    if row.wer_delta is None:
        return ""
    if row.wer_delta_ci is None:
        return "no interval"
    low, high = row.wer_delta_ci
    return f"[{figure(low, 2, '+')}, {figure(high, 2, '+')}]"


def delta(row: StrategyResult, joint: str) -> str:
    """Return the WER delta and its interval, with `joint` between them."""
    if row.role == "baseline" or row.wer_delta is None:
        return DASH
    if not row.changed_utterances:
        return "no word changed"
    return f"{figure(row.wer_delta, 2, '+')}{joint}{_interval(row)}"


def steady(row: StrategyResult) -> int | None:
    """Return the bytes that the worker held after the timed buffers."""
    memory = row.ledger.get("steady")
    if memory is None:
        return None
    return precision_ledger.worker_bytes(memory)


def grew(row: StrategyResult) -> str:
    """Return the MiB that a worker gained after `steady`, with their sign."""
    gained = precision_ledger.growth_bytes(row.ledger)
    if gained is None:
        return DASH
    sign = "+" * bool(round(gained / MIB))
    return figure(gained / MIB, 0, sign)


def saved(row: StrategyResult, comparison: Comparison) -> int | None:
    """Return the bytes of weights that a row saves against FP32."""
    base = comparison.baseline
    if base is None or base.weights_bytes is None or row.weights_bytes is None:
        return None
    return base.weights_bytes - row.weights_bytes


def error_text(row: StrategyResult) -> str:
    """Return the error of the encoder's output in percent; two figures that count."""
    error = row.encoder_error
    if error is None:
        return DASH
    return f"{100 * error:.2g}"


def changed_words(one: StrategyResult | PartialFigures, joint: str = " ") -> str:
    """Return the words changed per 100 with their interval."""
    if one.changed_per_100 == 0 or one.changed_ci is None:
        return figure(one.changed_per_100, 2)
    low, high = one.changed_ci
    return f"{figure(one.changed_per_100, 2)}{joint}[{figure(low, 2)}, {figure(high, 2)}]"


def name(row: StrategyResult) -> str:
    """Return the strategy as a row is called: the FP32 runs say which they are."""
    if row.role == "again":
        return f"{row.strategy} again"
    return row.strategy


def effective(row: StrategyResult) -> str:
    """Return the effective dtypes in few words: the most common one, then the components that
    differ."""
    if not row.effective:
        return DASH
    common = Counter(row.effective.values()).most_common(1)[0][0]
    rest: dict[str, list[str]] = {}
    for component, dtype in row.effective.items():
        if dtype != common:
            rest.setdefault(shorten(dtype), []).append(component)
    found = [shorten(common)]
    for dtype, components in rest.items():
        found.append(f"{dtype} {', '.join(components)}")
    return "; ".join(found)


def shorten(dtype: str) -> str:
    """Return a dtype, or a text about dtypes, as a narrow column spells it."""
    for long, short in SHORT.items():
        dtype = dtype.replace(long, short)
    return dtype


def indistinct(row: StrategyResult, comparison: Comparison) -> bool:
    """Return whether a row's words differ from FP32's by no more than FP32's own from one run to
    the next.

    Not where there are too few of them to tell.
    """
    floor = comparison.noise_floor
    if row.role == "baseline" or row.verdict == "undecided" or floor.wer is None:
        return False
    if row.wer_delta is None or row.changed_per_100 is None:
        return False
    return abs(row.wer_delta) <= floor.wer and row.changed_per_100 <= (floor.changed_per_100 or 0.0)


def outcome(row: StrategyResult) -> str:
    """Return pass, FAIL with the criteria that were not met, or "not measured" with those that
    nobody could tell.

    An FP32 baseline is called so.
    """
    if row.role == "baseline":
        return "baseline"
    if row.passed:
        return "pass"
    if failed := _failed(row):
        return f"FAIL: {', '.join(failed)}"
    return f"not measured: {', '.join(_unmeasured(row))}"


def _failed(row: StrategyResult) -> list[str]:
    """Return the required criteria that a row was measured by and does not meet."""
    names = []
    for criterion in row.criteria:
        measured = criterion.value is not None
        if criterion.required and measured and not criterion.passed:
            names.append(criterion.name)
    return names


def _unmeasured(row: StrategyResult) -> list[str]:
    """Return the required criteria of which a row has no figure."""
    names = []
    for criterion in row.criteria:
        if criterion.required and criterion.value is None:
            names.append(criterion.name)
    return names


def mark(row: StrategyResult) -> str:
    """Return how a row stands, as the page's classes call it: base, pass, fail, or open where not
    all was measured."""
    if row.role != "asked":
        return "base"
    if row.passed:
        return "pass"
    if _failed(row):
        return "fail"
    return "open"


def criterion_text(bound: Bound | Criterion) -> str:
    """Return a criterion's limit with its unit."""
    text = _in_unit(bound.name, bound.limit)
    return text if bound.name == "errors" else f"≤ {text}"


def value_text(criterion: Criterion) -> str:
    """Return a criterion's value with its unit."""
    if criterion.value is None:
        return "not measured"
    return _in_unit(criterion.name, criterion.value, "+")


def _in_unit(name: str, value: float, sign: str = "") -> str:
    """Return a figure of a criterion with its unit; a difference has the sign."""
    if name == "errors":
        return f"{value:g}"
    if name == "growth":
        return f"{figure(value, 0, sign)} MiB"
    if name == "wer_delta":
        return f"{figure(value, 2, sign)} points"
    return f"{figure(value, 3)} ×"
