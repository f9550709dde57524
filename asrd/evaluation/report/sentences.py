"""What a comparison found, in sentences (pure)."""

from __future__ import annotations

from asrd.evaluation.report.cells import (
    changed_words,
    criterion_text,
    figure,
    indistinct,
    name,
    pair,
    percent,
    value_text,
)
from asrd.evaluation.results import Comparison, Criterion, StrategyResult
from asrd.precision import ledger as precision_ledger
from asrd.precision.memory import Memory

UNDECIDED = (
    "undecided: too little speech to tell whether the words are better, the same or worse; more clips would decide "
    "(compare without --limit, or a --manifest of your own)."
)


def summary(comparison: Comparison) -> str:
    """Return the outcome in one or two sentences."""
    sentence = _outcome(comparison)
    if comparison.partial:
        left = ", ".join(comparison.unfinished) or "the last latency check"
        sentence += f" Interrupted: {left} not measured."
    return sentence


def _outcome(comparison: Comparison) -> str:
    """Return how many strategies pass, or what else was measured."""
    rows = comparison.asked
    if rows:
        good = [row.strategy for row in rows if row.passed]
        count = f"{len(good)} of {len(rows)} strategies meet every criterion"
        return f"{': '.join(filter(None, (count, ', '.join(good))))}."
    if comparison.components:
        return components_sentence(comparison)
    if comparison.partial:
        return "No strategy was measured."
    return "Only FP32 was asked for."


def components_sentence(comparison: Comparison) -> str:
    """Return which components cost words by themselves, beyond what FP32 changes from run to
    run."""
    floor = comparison.noise_floor.changed_per_100 or 0.0
    count, certain, perhaps = 0, [], []
    for row in sorted(comparison.components, key=lambda row: row.strategy):
        if row.changed_per_100 is None:
            continue
        count += 1
        if row.changed_per_100 <= floor:
            continue
        if row.changed_ci is not None and row.changed_ci[0] > floor:
            certain.append(row.strategy)
        else:
            perhaps.append(row.strategy)
    same = count - len(certain) - len(perhaps)
    found = [f"Of {count} components lowered one by one, {same} change no word"]
    if perhaps:
        found.append(f"{len(perhaps)} change so few that only more speech could tell")
    if certain:
        found.append(f"{len(certain)} change some beyond doubt: {', '.join(certain)}")
    return f"{'; '.join(found)}."


def floor_sentence(comparison: Comparison) -> str:
    """Return in words what FP32 differs from itself."""
    floor = comparison.noise_floor
    if floor.wer is None:
        return "Noise floor: not known, as FP32 did not run twice."
    changed = f"{figure(floor.changed_per_100, 2)} {comparison.manifest.units} in 100 changed"
    words = f"{figure(floor.wer, 2)} points of {comparison.metric}, {changed}"
    latency, memory = percent(floor.latency), percent(floor.memory)
    return (
        f"Noise floor, FP32 against itself: {words}, latency {latency}, memory {memory}. "
        "What lies below it is not distinguishable from FP32."
    )


def speech_sentence(comparison: Comparison) -> str:
    """Return on what was compared."""
    speech = comparison.manifest
    counted = f"{speech.words} {speech.units}"
    sentence = (
        f"{speech.utterances} utterances, {counted}, {figure(speech.seconds)} s of {speech.path}"
    )
    if speech.skipped:
        sentence += f", {len(speech.skipped)} lines skipped"
    if speech.metric == "CER":
        sentence += "; CER, as most letters are of a script without spaces"
    return sentence


def device_sentence(comparison: Comparison) -> str:
    """Return model, device and versions."""
    size = f"{figure(comparison.parameters / 1e6)} M parameters"
    model = f"{comparison.model} ({comparison.family}, {size})"
    versions = ", ".join(map(" ".join, comparison.versions.items()))
    return f"{model} on {comparison.device} ({comparison.device_name}); {versions}"


def memory_sentence(comparison: Comparison) -> str:
    """Return what the figures of memory are; "" where there is none."""
    readings: list[Memory] = []
    for row in comparison.rows:
        readings += row.ledger.values()
    sentence = precision_ledger.sources_sentence(readings)
    if not sentence:
        return ""
    return f"{sentence} grew: what it gained from steady to the end of the manifest."


def remarks(comparison: Comparison) -> list[str]:
    """Return a line for what cannot be told from FP32, and for each fall-back, failure, missed
    criterion and partial results."""
    lines = []
    if any(row.verdict == "undecided" for row in comparison.strategies):
        lines.append(UNDECIDED)
    same = [row.strategy for row in comparison.asked if indistinct(row, comparison)]
    if same:
        lines.append(f"Words not distinguishable from FP32: {', '.join(same)}.")
    if comparison.asked and comparison.components:
        lines.append(components_sentence(comparison))
    for row in comparison.rows:
        for remark in (row.failure, row.fallback_reason, _missed(row), _partial(row, comparison)):
            if remark:
                lines.append(f"{name(row)}: {remark}")
    return lines


def _missed(row: StrategyResult) -> str:
    """Return the criteria that a strategy was asked to meet and does not; "" where it does."""
    if row.role != "asked":
        return ""
    return ", ".join(_criterion(one) for one in row.criteria if _is_missed(one, row))


def _is_missed(criterion: Criterion, row: StrategyResult) -> bool:
    """Return whether a criterion is named as missed. A failure explains what was not measured."""
    if criterion.passed or criterion.name == "errors":
        return False
    return criterion.value is not None or not row.failure


def _criterion(criterion: Criterion) -> str:
    """Return a criterion's value and limit."""
    limit = f"limit {criterion_text(criterion)}"
    if not criterion.required:
        limit += ", does not decide"
    return f"{criterion.name} {value_text(criterion)} ({limit})"


def _partial(row: StrategyResult, comparison: Comparison) -> str:
    """Return what partial results cost a strategy that computes them in another dtype; else ""."""
    found = row.partial_results
    if found is None:
        return ""
    before = None
    if comparison.baseline is not None:
        before = comparison.baseline.latency_ms
    latency = f"{pair(found.latency_ms)} ms (FP32: {pair(before)})"
    changed = f"{changed_words(found)} {comparison.manifest.units} in 100"
    errors = f"{comparison.metric} {figure(found.wer, 2)} %"
    return f"partial results need {latency} and change {changed} ({errors})"
