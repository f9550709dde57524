"""The row of one strategy: its words against FP32's, its figures, criteria and verdict (pure).

numpy and jiwer are imported where they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from asrd.evaluation.normalising import normalised
from asrd.evaluation.results import (
    RESOLUTION,
    Bound,
    Change,
    Criterion,
    NoiseFloor,
    PartialFigures,
    Run,
    StrategyResult,
    Verdict,
)
from asrd.precision import ledger
from asrd.precision.plan import for_family
from asrd.precision.strategies import Precision
from asrd.protocol import Ready, fallback_reasons
from asrd.scoring import (
    Edits,
    Percentiles,
    changed_interval,
    edits,
    interval,
    percentiles,
    upper_bound,
)
from asrd.text.sizes import MIB

CHANGES_KEPT = 20
"""Changed utterances that a row shows word for word."""


def verdict(
    ci: tuple[float, float] | None,
    changed: int | None,
    floor: float | None,
    limit: float,
    upper: float,
) -> Verdict:
    """Return what the words say about a strategy.

    Args:
        ci: interval of the WER delta in points; None where there is none.
        changed: word edits against FP32's hypotheses; None where not every clip was decoded.
        floor: what FP32 differs from itself in WER, points; None counts as 0.
        limit: points of WER that are taken for the same.
        upper: what few changes leave open (`most`), points.
    """
    if changed == 0:
        ci = (0.0, 0.0)
    if ci is None or changed is None:
        return "undecided"
    low, high = ci
    if low > (floor or 0.0):
        return "worse"
    if high < -(floor or 0.0):
        return "better"
    enough = upper <= max(limit, RESOLUTION)
    if enough and -limit <= low and high <= limit:
        return "same"
    return "undecided"


def load_peak_ratio(ready: Ready) -> float | None:
    """Return the load peak over the weights; see DEFINITIONS for the two devices."""
    if not ready.weights_bytes:
        return None
    peak = ready.load_peak
    if ready.device != "cpu":
        on_card = peak.allocated
        if on_card is None:
            on_card = peak.process
        return ratio(on_card, ready.weights_bytes)
    before = ready.ledger.get("import")
    if before is None or before.process is None or peak.process is None:
        return None
    return (peak.process - before.process) / ready.weights_bytes


def median_ms(figures: Percentiles | None) -> float | None:
    """Return the median of a measurement in milliseconds; None without one."""
    return None if figures is None else figures.p50


def ratio(value: float | None, base: float | None) -> float | None:
    """Return value / base, or None where one of them is missing."""
    if value is None or not base:
        return None
    return value / base


def describe(precision: Precision) -> str:
    """Return in words what a precision asks for: storage, arithmetic, exceptions."""
    parts = [f"{precision.weights} weights"]
    if precision.quantize:
        parts = [f"{precision.quantize} matrices and embeddings, other weights {precision.weights}"]
    for component, dtype in precision.parts.items():
        parts.append(f"{component} {dtype}")
    if precision.autocast and precision.trainer:
        parts.append(f"{precision.autocast} autocast by Lightning {precision.trainer}")
    elif precision.autocast:
        parts.append(f"{precision.autocast} autocast")
    for phase, dtype in precision.phases.items():
        parts.append(f"{phase} under {dtype} autocast")
    if precision.tf32:
        parts.append("TF32 matrix products")
    if precision.weights != "float32":
        features: str = precision.weights
        if precision.features == "float32":
            features = "float32"
        parts.append(f"{features} features")
    return ", ".join(parts)


def encoder_error(encoded: bytes, baseline: bytes) -> float | None:
    """Return the relative root mean square of what an encoder's output, in float32, differs from
    FP32's.

    None where one of them was not asked for, or is of another length or not finite.
    """
    import numpy as np

    one = np.frombuffer(encoded, np.float32).astype(np.float64)
    other = np.frombuffer(baseline, np.float32).astype(np.float64)
    if not len(other) or len(one) != len(other) or not np.isfinite(one).all() or not other.any():
        return None
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


class WordErrors(msgspec.Struct, frozen=True):
    """One measurement's words, normalised, against the references and against FP32."""

    texts: list[str]
    score: Edits
    against_baseline: Edits


def word_errors(
    measured: Run, references: Sequence[str], baseline: Sequence[str], language: str, kind: str = ""
) -> WordErrors | None:
    """Return the words of a measurement; None where the worker was lost before the last clip.

    Args:
        references, baseline: normalised.
        kind: WER or CER, as `normalising.metric` returns it.
    """
    if len(measured.texts) < len(references):
        return None
    texts = normalised(measured.texts, language, kind)
    return WordErrors(texts, edits(references, texts), edits(baseline, texts))


def limit_of(bounds: Sequence[Bound], name: str) -> float:
    """Return the limit of a criterion. Raises KeyError."""
    for bound in bounds:
        if bound.name == name:
            return bound.limit
    raise KeyError(name)


class RowContext(msgspec.Struct, frozen=True):
    """What every row of a comparison is judged by."""

    baseline: Run
    words: WordErrors | None
    references: list[str]
    seconds: float
    floor: NoiseFloor
    bounds: list[Bound]
    language: str
    kind: str
    """WER or CER."""

    def limit(self, name: str) -> float:
        """Return the limit of a criterion. Raises KeyError."""
        return limit_of(self.bounds, name)


def row_of(measured: Run, words: WordErrors | None, context: RowContext) -> StrategyResult:
    """Return the row of one measurement.

    Args:
        words: its words; None where the worker was lost before the last clip.
    """
    family = ""
    if measured.ready is not None:
        family = measured.ready.family
    answered = len(measured.texts) - measured.texts.count(None)
    errors = max(len(context.references) - answered, int(bool(measured.failure)))
    figures, upper = _word_fields(words, context)
    ci = figures.get("wer_delta_ci")
    latency = percentiles(measured.latency)
    criteria = _criteria(measured, ci, latency, errors, context)
    changes = _changes(words, context)
    rtfx = None
    if words is not None and measured.compute:
        rtfx = context.seconds / measured.compute
    changed = None
    if words is not None:
        changed = sum(words.against_baseline.errors)
    return StrategyResult(
        strategy=measured.precision.name,
        role=measured.role,
        requested=describe(for_family(measured.precision, family)),
        latency_ms=latency,
        round_trip_ms=percentiles(measured.round_trip),
        cpu_ms=percentiles(measured.cpu),
        rtfx=rtfx,
        utterances=answered,
        words=sum(map(len, map(str.split, context.references))),
        errors=errors,
        failure=measured.failure,
        verdict=verdict(ci, changed, context.floor.wer, context.limit("wer_delta"), upper),
        passed=not any(criterion.required and not criterion.passed for criterion in criteria),
        criteria=criteria,
        changes=changes[:CHANGES_KEPT],
        changed_utterances=len(changes),
        partial_results=_partial_results(measured, context),
        component=measured.component,
        dtype=measured.dtype,
        encoder_error=encoder_error(measured.encoded, context.baseline.encoded),
        growth_bytes=ledger.growth_bytes(measured.ledger),
        **_worker_fields(measured),
        **figures,
    )


WORKER_FIELDS = (
    "weights_bytes",
    "load_peak",
    "load_peak_over_weights",
    "load_seconds",
    "self_test",
)
"""Fields of a row that are None where no worker was ready."""


def _worker_fields(measured: Run) -> dict[str, Any]:
    """Return the fields of a row that its worker reported; they are empty where none was ready."""
    ready = measured.ready
    if ready is None:
        return dict.fromkeys(WORKER_FIELDS) | {"effective": {}, "fallback_reason": "", "ledger": {}}
    return {
        "effective": ready.effective,
        "fallback_reason": fallback_reasons(ready.fallbacks),
        "weights_bytes": ready.weights_bytes,
        "ledger": {**ready.ledger, **measured.ledger},
        "load_peak": ready.load_peak,
        "load_peak_over_weights": load_peak_ratio(ready),
        "load_seconds": ready.load_seconds,
        "self_test": ready.self_test,
    }


def _word_fields(words: WordErrors | None, context: RowContext) -> tuple[dict[str, Any], float]:
    """Return the fields of a row about its words, and the upper bound of its WER delta, in
    points."""
    fields: dict[str, Any] = dict.fromkeys(
        ("wer", "wer_delta", "wer_delta_ci", "changed_per_100", "changed_ci")
    )
    if words is None:
        return fields, float("inf")
    fields["wer"] = words.score.rate
    fields["changed_per_100"] = words.against_baseline.rate
    fields["changed_ci"] = changed_interval(words.against_baseline)
    base = context.words
    if base is None:
        return fields, float("inf")
    fields["wer_delta_ci"] = interval(words.score, base.score)
    if words.score.rate is not None and base.score.rate is not None:
        fields["wer_delta"] = words.score.rate - base.score.rate
    return fields, upper_bound(words.score, base.score)


def _criteria(
    measured: Run,
    ci: tuple[float, float] | None,
    latency: Percentiles | None,
    errors: int,
    context: RowContext,
) -> list[Criterion]:
    base = context.baseline
    values: dict[str, float | None] = {
        "errors": errors,
        "wer_delta": None,
        "memory": ratio(ledger.largest_bytes(measured.ledger), ledger.largest_bytes(base.ledger)),
        "latency": ratio(median_ms(latency), median_ms(percentiles(base.latency))),
    }
    if ci is not None:
        values["wer_delta"] = ci[1]
    if (growth := ledger.growth_bytes(measured.ledger)) is not None:
        values["growth"] = growth / MIB
    precision = measured.precision
    if precision.weights != "float32" or precision.quantize:
        values["weights"] = None
        if measured.ready is not None and base.ready is not None:
            values["weights"] = ratio(measured.ready.weights_bytes, base.ready.weights_bytes)
    criteria = []
    for bound in context.bounds:
        if bound.name in values:
            value = values[bound.name]
            passed = value is not None and value <= bound.limit
            criteria.append(Criterion(bound.name, bound.limit, value, passed, bound.required))
    return criteria


def _changes(words: WordErrors | None, context: RowContext) -> list[Change]:
    if words is None or context.words is None:
        return []
    changes = []
    texts = zip(context.references, context.words.texts, words.texts, strict=True)
    for number, (reference, before, now) in enumerate(texts):
        if before != now:
            changes.append(Change(number, reference, before, now))
    return changes


def _partial_results(measured: Run, context: RowContext) -> PartialFigures | None:
    if not measured.partial_latency and not measured.partial_texts:
        return None
    words = None
    if context.words is not None:
        as_texts = msgspec.structs.replace(measured, texts=list(measured.partial_texts))
        words = word_errors(
            as_texts, context.references, context.words.texts, context.language, context.kind
        )
    latency = percentiles(measured.partial_latency)
    if words is None:
        return PartialFigures(latency, None, None)
    against = words.against_baseline
    return PartialFigures(latency, words.score.rate, against.rate, changed_interval(against))
