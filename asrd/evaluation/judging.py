"""How a comparison is judged: word edits, intervals, the noise floor, criteria, verdicts.

Pure: takes what was measured and returns values; starts nothing, prints nothing, reads no clock.
    Used by `compare`,
and by the daemon for intervals only; imports numpy, jiwer and the normaliser where they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from asrd.evaluation.normalising import metric, normaliser
from asrd.evaluation.results import (
    GROWTH_BYTES,
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
from asrd.precision.ledger import MEMORY_RESOLUTION
from asrd.precision.memory import Memory
from asrd.precision.plan import for_family
from asrd.precision.strategies import Precision
from asrd.protocol import Ready, fallback_reasons
from asrd.scoring import (
    Edits,
    changed_interval,
    edits,
    interval,
    median_uncertainty,
    percentiles,
    spread,
    upper_bound,
)
from asrd.text.sizes import MIB

HALF = 0.55
"""Weights over FP32's that a strategy with 16-bit storage should reach: one half, and some for FP32
norms."""

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
        changed: word edits against FP32's hypotheses; None where they were not all heard.
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
    return "same" if enough and -limit <= low and high <= limit else "undecided"


def load_peak_ratio(ready: Ready) -> float | None:
    """Return the load peak over the weights; see DEFINITIONS for the two devices."""
    if not ready.weights_bytes:
        return None
    peak = ready.load_peak
    if ready.device != "cpu":
        on_card = peak.process if peak.allocated is None else peak.allocated
        return None if on_card is None else on_card / ready.weights_bytes
    before = ready.ledger["import"].process if "import" in ready.ledger else None
    return (
        None
        if peak.process is None or before is None
        else (peak.process - before) / ready.weights_bytes
    )


def ratio(value: float | None, base: float | None) -> float | None:
    """Return value / base, or None where one of them is missing."""
    return value / base if value is not None and base else None


def memory_of(readings: Mapping[str, Memory], phase: str = "steady") -> int | None:
    """Return the bytes that belong to the worker in a phase: process, or torch's own where the
    driver hides it."""
    memory = readings.get(phase)
    return None if memory is None else ledger.worker_bytes(memory)


def describe(precision: Precision) -> str:
    """Return in words what a precision asks for: storage, arithmetic, exceptions."""
    said = [f"{precision.weights} weights"]
    if precision.quantize:
        said = [f"{precision.quantize} matrices and embeddings, other weights {precision.weights}"]
    said += [f"{component} {dtype}" for component, dtype in precision.parts.items()]
    if precision.autocast:
        said.append(
            f"{precision.autocast} autocast"
            + (f" by Lightning {precision.trainer}" * bool(precision.trainer))
        )
    said += [f"{phase} under {dtype} autocast" for phase, dtype in precision.phases.items()]
    if precision.tf32:
        said.append("TF32 matrix products")
    if precision.weights != "float32":
        said.append(
            "float32 features"
            if precision.features == "float32"
            else f"{precision.weights} features"
        )
    return ", ".join(said)


def encoder_error(encoded: bytes, baseline: bytes) -> float | None:
    """Return the relative root mean square of what an encoder's output, in float32, differs from
    FP32's.

    None where one of them was not asked for, or is of another length or not finite.
    """
    import numpy as np

    one, other = (
        np.frombuffer(values, np.float32).astype(np.float64) for values in (encoded, baseline)
    )
    if not len(other) or len(one) != len(other) or not np.isfinite(one).all() or not other.any():
        return None
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


# -- judgement
# --------------------------------------------------------------------------------------------------------


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
    clean = normaliser(language, kind)
    texts = [clean(text or "") for text in measured.texts]
    return WordErrors(texts, edits(references, texts), edits(baseline, texts))


def judge(
    measured: Sequence[Run],
    references: Sequence[str],
    seconds: float,
    limit: float,
    language: str = "en",
    again: Run | None = None,
) -> tuple[NoiseFloor, list[Bound], list[StrategyResult]]:
    """Return noise floor, bounds and rows for what was measured.

    Args:
        measured: one per worker; the first is the FP32 baseline and complete.
        references: what was said, one per clip, as the manifest has it.
        seconds: audio of all clips.
        limit: absolute points of WER that a strategy may cost.
        language: of the text, for the normaliser.
        again: FP32 after everything else, latency and memory only.
    """
    if not measured:
        return NoiseFloor(), [], []
    kind = metric(references, language)
    clean = normaliser(language, kind)
    truth = [clean(reference) for reference in references]
    baseline = [clean(text or "") for text in measured[0].texts]
    heard = [word_errors(one, truth, baseline, language, kind) for one in measured]
    floor = noise_floor(measured, heard, again)
    bounds = _bounds(floor, limit, measured[0].ledger)
    context = _Context(measured[0], heard[0], truth, seconds, floor, bounds, language, kind)
    return (
        floor,
        bounds,
        [_row(one, words, context) for one, words in zip(measured, heard, strict=True)],
    )


def noise_floor(
    measured: Sequence[Run], heard: Sequence[WordErrors | None], again: Run | None
) -> NoiseFloor:
    """Return what the FP32 runs among `measured`, and the one taken `again` at the end, differ
    in."""
    fp32 = ("baseline", "again")
    pairs = [(one, words) for one, words in zip(measured, heard, strict=True) if one.role in fp32]
    rates = [
        words.score.rate for _, words in pairs if words is not None and words.score.rate is not None
    ]
    changed = [
        words.against_baseline.rate
        for one, words in pairs
        if words is not None and one.role == "again"
    ]
    runs = [one for one, _ in pairs] + ([again] if again else [])
    medians = [p.p50 for p in map(percentiles, (one.latency for one in runs)) if p is not None]
    between = spread(medians)
    whole = [one for one in runs if "after" in one.ledger]
    apart = [
        spread([memory_of(one.ledger) for one in runs]),
        spread([memory_of(one.ledger, "after") for one in whole]),
    ]
    memory = max((one for one in apart if one is not None), default=0.0)
    base = memory_of(measured[0].ledger)
    return NoiseFloor(
        wer=max(rates) - min(rates) if len(rates) > 1 else None,
        changed_per_100=changed[0] if changed else None,
        latency=None if between is None else max(between, median_uncertainty(measured[0].latency)),
        memory=max(memory, MEMORY_RESOLUTION / base) if base else None,
        fp32_p50_ms=medians,
    )


def _bounds(floor: NoiseFloor, limit: float, base: Mapping[str, Memory]) -> list[Bound]:
    growth = (max(0, ledger.growth_bytes(base) or 0) + GROWTH_BYTES) / MIB
    return [
        Bound("errors", 0, "utterances without an answer"),
        Bound(
            "wer_delta",
            max(limit, floor.wer or 0.0),
            "upper end of the interval of the WER delta, points",
        ),
        Bound(
            "memory",
            1 + (floor.memory or 0.0),
            "the worker's largest memory over FP32's, noise floor included",
        ),
        Bound(
            "growth",
            growth,
            "MiB gained from steady to the end of the manifest; FP32's own and 64 may be",
        ),
        Bound(
            "latency",
            1 + (floor.latency or 0.0),
            "median latency over FP32's, noise floor included",
        ),
        Bound(
            "weights",
            HALF,
            "weights over FP32's, where 16-bit or 8-bit storage was asked for",
            required=False,
        ),
    ]


class _Context(msgspec.Struct, frozen=True):
    baseline: Run
    heard: WordErrors | None
    references: list[str]
    seconds: float
    floor: NoiseFloor
    bounds: list[Bound]
    language: str
    kind: str
    """WER or CER."""

    def limit(self, name: str) -> float:
        return next(bound.limit for bound in self.bounds if bound.name == name)


def _row(measured: Run, heard: WordErrors | None, context: _Context) -> StrategyResult:
    ready, base = measured.ready, context.heard
    ci = interval(heard.score, base.score) if heard and base else None
    delta = None
    if heard and base and heard.score.rate is not None and base.score.rate is not None:
        delta = heard.score.rate - base.score.rate
    answered = sum(text is not None for text in measured.texts)
    errors = max(len(context.references) - answered, int(bool(measured.failure)))
    criteria = _criteria(measured, ci, errors, context)
    changed = sum(heard.against_baseline.errors) if heard else None
    upper = upper_bound(heard.score, base.score) if heard and base else float("inf")
    return StrategyResult(
        strategy=measured.precision.name,
        role=measured.role,
        requested=describe(for_family(measured.precision, ready.family if ready else "")),
        effective=ready.effective if ready else {},
        fallback_reason=fallback_reasons(ready.fallbacks) if ready else "",
        weights_bytes=ready.weights_bytes if ready else None,
        ledger={**ready.ledger, **measured.ledger} if ready else {},
        load_peak=ready.load_peak if ready else None,
        load_peak_over_weights=load_peak_ratio(ready) if ready else None,
        load_seconds=ready.load_seconds if ready else None,
        latency_ms=percentiles(measured.latency),
        round_trip_ms=percentiles(measured.round_trip),
        cpu_ms=percentiles(measured.cpu),
        rtfx=context.seconds / measured.compute if heard and measured.compute else None,
        wer=heard.score.rate if heard else None,
        wer_delta=delta,
        wer_delta_ci=ci,
        changed_per_100=heard.against_baseline.rate if heard else None,
        utterances=answered,
        words=sum(len(reference.split()) for reference in context.references),
        errors=errors,
        failure=measured.failure,
        verdict=verdict(ci, changed, context.floor.wer, context.limit("wer_delta"), upper),
        passed=all(criterion.passed for criterion in criteria if criterion.required),
        criteria=criteria,
        changes=_changes(heard, context)[:CHANGES_KEPT],
        changed_utterances=len(_changes(heard, context)),
        self_test=ready.self_test if ready else None,
        partial_results=_partial_results(measured, context),
        component=measured.component,
        dtype=measured.dtype,
        changed_ci=changed_interval(heard.against_baseline) if heard else None,
        encoder_error=encoder_error(measured.encoded, context.baseline.encoded),
        growth_bytes=ledger.growth_bytes(measured.ledger),
    )


def _criteria(
    measured: Run, ci: tuple[float, float] | None, errors: int, context: _Context
) -> list[Criterion]:
    base = context.baseline
    now, before = percentiles(measured.latency), percentiles(base.latency)
    values: dict[str, float | None] = {
        "errors": errors,
        "wer_delta": ci[1] if ci else None,
        "memory": ratio(ledger.largest_bytes(measured.ledger), ledger.largest_bytes(base.ledger)),
        "latency": ratio(now.p50 if now else None, before.p50 if before else None),
    }
    if (growth := ledger.growth_bytes(measured.ledger)) is not None:
        values["growth"] = growth / MIB
    precision = measured.precision
    if precision.weights != "float32" or precision.quantize:
        sizes = [one.ready.weights_bytes if one.ready else None for one in (measured, base)]
        values["weights"] = ratio(sizes[0], sizes[1])
    return [
        Criterion(
            bound.name,
            bound.limit,
            value,
            value is not None and value <= bound.limit,
            bound.required,
        )
        for bound in context.bounds
        if bound.name in values
        for value in (values[bound.name],)
    ]


def _changes(heard: WordErrors | None, context: _Context) -> list[Change]:
    if heard is None or context.heard is None:
        return []
    triples = zip(context.references, context.heard.texts, heard.texts, strict=True)
    return [
        Change(i, said, before, now)
        for i, (said, before, now) in enumerate(triples)
        if before != now
    ]


def _partial_results(measured: Run, context: _Context) -> PartialFigures | None:
    if not measured.partial_latency and not measured.partial_texts:
        return None
    heard = None
    if context.heard is not None:
        as_texts = msgspec.structs.replace(measured, texts=list(measured.partial_texts))
        heard = word_errors(
            as_texts, context.references, context.heard.texts, context.language, context.kind
        )
    latency = percentiles(measured.partial_latency)
    if heard is None:
        return PartialFigures(latency, None, None)
    against = heard.against_baseline
    return PartialFigures(latency, heard.score.rate, against.rate, changed_interval(against))
