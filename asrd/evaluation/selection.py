"""What was measured -> which strategy `auto` takes: the cheapest that qualifies, and why each other
does not.

A strategy qualifies when it answered everything, needs no more memory and time than FP32, and when
even the upper bound of what it costs in words stays within the limit. FP32 always qualifies; what
speech is too short to decide does not.
Pure: starts nothing, stores nothing, reads no clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from asrd.engine.tuned import TunedStrategy
from asrd.evaluation.judging import WordErrors, judge, word_errors
from asrd.evaluation.normalising import metric, normaliser, units
from asrd.evaluation.results import RESOLUTION, NoiseFloor, Run, StrategyResult
from asrd.precision import ledger
from asrd.precision.strategies import FP32_BASELINE, quantizes
from asrd.scoring import FEWEST_UTTERANCES, Edits, upper_bound
from asrd.text.sizes import mib

BUSY = 0.15
"""Part by which FP32's latency may differ from itself before the machine counts as too busy to tell
much."""

REACH = 100_000
"""Words beyond which asking for more is no advice: some ten hours of speech."""


class Choice(msgspec.Struct, frozen=True):
    """What is taken, and everything that speaks for it."""

    chosen: str
    reason: str
    candidates: list[TunedStrategy]
    limit: float
    """Points: the bound, or what FP32 differs from itself where that is more."""
    words: int
    """That the strategies were compared on."""
    hint: str
    metric: str
    """WER, or CER where `words` are characters."""


class _Bounds(msgspec.Struct, frozen=True):
    limit: float
    budget: int | None
    taken: bool
    words: int
    seconds: float
    metric: str

    @property
    def unit(self) -> str:
        """In which a cost is told."""
        return (
            f"{units(self.metric)} in 100 other than FP32's"
            if self.taken
            else f"points of {self.metric}"
        )


def select_strategy(
    measured: Sequence[Run],
    references: Sequence[str] | None,
    seconds: float,
    bound: float,
    language: str = "en",
    again: Run | None = None,
    budget: int | None = None,
) -> Choice:
    """Return the choice among what was measured.

    Args:
        measured: FP32 twice, then the candidates, cheapest memory first, as `compare.measure` fills
            them in.
        references: what was said, one per clip; None where nobody wrote it down. What FP32 heard
            then stands for it and every word heard otherwise counts, which is never less than what
            it can cost in WER.
        seconds: of sound in all clips.
        bound: absolute points of WER that a strategy may cost.
        language: of the text, for the normaliser.
        again: FP32 after everything else.
        budget: bytes that the worker may use.
    """
    said = [text or "" for text in measured[0].texts] if references is None else list(references)
    floor, limits, rows = judge(measured, said, seconds, bound, language, again)
    kind = metric(said, language)
    clean = normaliser(language, kind)
    truth, baseline = (
        [clean(text) for text in said],
        [clean(text or "") for text in measured[0].texts],
    )
    heard = [word_errors(one, truth, baseline, language, kind) for one in measured]
    limit = next(one.limit for one in limits if one.name == "wer_delta")
    words = sum(len(text.split()) for text in truth)
    bounds = _Bounds(limit, budget, references is None, words, seconds, kind)
    whole = _whole(measured, rows, heard, bounds)
    first = heard[0]
    asked = [
        _candidate(one, row, now, first, whole, bounds)
        for one, row, now in zip(measured, rows, heard, strict=True)
        if one.role == "asked" and first is not None
    ]
    candidates = [*asked, whole]
    taken = cheapest([one for one in candidates if not one.refused], floor)
    hint = " ".join(filter(None, (_more(asked, bounds), _busy(floor))))
    return Choice(
        taken.strategy, _reason(taken, candidates, bounds), candidates, limit, words, hint, kind
    )


def cheapest(fit: Sequence[TunedStrategy], floor: NoiseFloor) -> TunedStrategy:
    """Return the one with the least memory, and of those that memory does not tell apart the
    fastest.

    Of those that neither tells apart it is the last, which is nearest to FP32.

    Args:
        fit: those that qualify, FP32 last.
        floor: what FP32 differs from itself.
    """
    base = fit[-1]
    least = min((one.memory for one in fit if one.memory is not None), default=None)
    if base.memory is None or least is None:
        return base
    tolerance = (floor.memory or 0.0) * base.memory
    *light, best = [
        one for one in fit if one.memory is not None and one.memory <= least + tolerance
    ]
    for one in reversed(light):
        best = one if _faster(one, best, 1 + (floor.latency or 0.0)) else best
    return best


def _faster(one: TunedStrategy, other: TunedStrategy, factor: float) -> bool:
    """Return whether a candidate is faster by more than `factor`, on the CPU in processor time too.

    Other programs change how long a buffer takes far more than what it costs.
    """
    pairs = [(one.p50_ms, other.p50_ms), (one.cpu_ms, other.cpu_ms)]
    known = [(now, before) for now, before in pairs if now is not None and before is not None]
    return bool(known) and all(now * factor < before for now, before in known)


# -- one candidate
# ----------------------------------------------------------------------------------------------------


def _whole(
    measured: Sequence[Run],
    rows: Sequence[StrategyResult],
    heard: Sequence[WordErrors | None],
    bounds: _Bounds,
) -> TunedStrategy:
    """Return FP32: its cost as first measured, its words as the second run differs from the
    first."""
    twice = next((place for place, row in enumerate(rows) if row.role == "again"), 0)
    again, first = heard[twice], heard[0]
    cost = _candidate(measured[0], rows[0], again, first, None, bounds)
    row = rows[twice]
    return msgspec.structs.replace(
        cost,
        verdict=_verdict(row, bounds),
        delta=row.wer_delta,
        interval=row.wer_delta_ci,
        refused="",
        missing=0,
    )


def _candidate(
    measured: Run,
    row: StrategyResult,
    now: WordErrors | None,
    first: WordErrors | None,
    whole: TunedStrategy | None,
    bounds: _Bounds,
) -> TunedStrategy:
    steady = measured.ledger.get("steady")
    upper = None
    if now is not None and first is not None and row.wer_delta_ci is not None:
        upper = max(row.wer_delta_ci[1], upper_bound(now.score, first.score))
    found = TunedStrategy(
        strategy=row.strategy,
        refused="",
        verdict=_verdict(row, bounds),
        delta=row.wer_delta,
        interval=row.wer_delta_ci,
        most=upper,
        changed=sum(now.against_baseline.errors) if now is not None else None,
        memory=ledger.largest_bytes(measured.ledger),
        source=ledger.source_of(steady),
        p50_ms=row.latency_ms.p50 if row.latency_ms else None,
        failures=row.errors,
        cpu_ms=row.cpu_ms.p50
        if row.cpu_ms and steady is not None and steady.source == "rss"
        else None,
        effective=row.effective,
    )
    if whole is None:
        return found
    refused, missing = _refusal(found, measured, row, whole, bounds), 0
    if (
        not refused
        and now is not None
        and first is not None
        and not _within(row, now.score, first.score, bounds)
    ):
        missing = _missing(row, now.score, first.score, bounds)
        refused = _dear(found, missing, bounds)
    return msgspec.structs.replace(found, refused=refused, missing=missing)


def _verdict(row: StrategyResult, bounds: _Bounds) -> str:
    return "differs" if bounds.taken and row.verdict == "worse" else row.verdict


def _refusal(
    found: TunedStrategy, measured: Run, row: StrategyResult, whole: TunedStrategy, bounds: _Bounds
) -> str:
    """Return why a candidate is out whatever its words are; "" where it is not."""
    if row.failure:
        return row.failure
    if row.errors:
        return f"{row.errors} utterances without an answer"
    if quantizes(measured.precision) and not any(
        "int8" in dtype for dtype in row.effective.values()
    ):
        return f"does not run as asked: {row.fallback_reason}"
    if found.source != whole.source:
        return f"its memory is {ledger.source_words(found.source)}, FP32's is {ledger.source_words(whole.source)}"
    if bounds.budget is not None and (found.memory or 0) > bounds.budget:
        return f"needs {_memory(found.memory)}; vram_budget allows {_memory(bounds.budget)}"
    for one in row.criteria:
        if one.passed or not one.required or one.name not in ("memory", "latency"):
            continue
        if one.name == "memory":
            return f"needs more memory than FP32: {_memory(found.memory)} against {_memory(whole.memory)}"
        return f"is slower than FP32: {_ms(found.p50_ms)} ms for 10 s against {_ms(whole.p50_ms)}"
    return ""


def _within(row: StrategyResult, now: Edits, before: Edits, bounds: _Bounds) -> bool:
    """Return whether even the upper bounds of what a candidate costs stay within the limit."""
    ci = row.wer_delta_ci
    return (
        ci is not None
        and ci[1] <= bounds.limit
        and upper_bound(now, before) <= max(bounds.limit, RESOLUTION)
    )


def _missing(row: StrategyResult, now: Edits, before: Edits, bounds: _Bounds) -> int:
    """Return how many more words would bring the upper bounds within the limit, at the rates seen;
    0 where none do.

    Rates of too few utterances for an interval say nothing: there it is how many would if no
    further word changed.
    """
    if row.wer_delta is None or not bounds.words:
        return 0
    count, reach = len(before.words), REACH / bounds.words
    if row.wer_delta > bounds.limit:
        least = max(
            upper_bound(now, before) / max(bounds.limit, RESOLUTION), FEWEST_UTTERANCES / count
        )
        return (
            math.ceil(bounds.words * (least - 1))
            if row.wer_delta_ci is None and least < reach
            else 0
        )
    larger = 1.0
    while larger < reach:
        wide = (row.wer_delta_ci[1] - row.wer_delta) / larger**0.5 if row.wer_delta_ci else 0.0
        far = upper_bound(now, before, larger) > max(bounds.limit, RESOLUTION)
        if not far and row.wer_delta + wide <= bounds.limit and count * larger >= FEWEST_UTTERANCES:
            return round(bounds.words * (larger - 1))
        larger *= 1.02
    return 0


# -- in words
# ---------------------------------------------------------------------------------------------------------


def _dear(found: TunedStrategy, missing: int, bounds: _Bounds) -> str:
    """Return why the words speak against a candidate."""
    what = bounds.unit
    limit = f"the limit is {bounds.limit:.2f}"
    enough = f"; about {missing} more {units(bounds.metric)} would tell" if missing else ""
    if found.most is None:
        return f"undecided: too little speech for a bound on what it costs, {limit} {what}{enough}"
    shown = f"at most {_points(found.most)}"
    if missing:
        return f"undecided: {shown} {what}, {limit}{enough}"
    if found.interval is not None and found.interval[0] > bounds.limit:
        return (
            f"costs {_points(found.delta)} {what}, at least {_points(found.interval[0])}; {limit}"
        )
    return f"costs {_points(found.delta)} {what}, {shown}; {limit}"


def _reason(taken: TunedStrategy, candidates: Sequence[TunedStrategy], bounds: _Bounds) -> str:
    """Return by what figures it was chosen, one clause."""
    whole = candidates[-1]
    if taken.strategy == FP32_BASELINE.name:
        others = [one for one in candidates[:-1] if not one.refused]
        if not others:
            return "measured here: no cheaper candidate qualifies"
        names = ", ".join(one.strategy for one in others)
        return f"measured here: FP32 is as cheap, within its own spread, as the others that qualify: {names}"
    what = bounds.unit
    return (
        f"measured here: at most {_points(taken.most)} {what} (limit {bounds.limit:.2f}), {_memory(taken.memory)} "
        f"against FP32's {_memory(whole.memory)} ({ledger.source_words(taken.source)}), "
        f"{_ms(taken.p50_ms)} ms for 10 s against {_ms(whole.p50_ms)}"
    )


def _busy(floor: NoiseFloor) -> str:
    if floor.latency is None or floor.latency <= BUSY:
        return ""
    return (
        f"FP32's own latency differed by {100 * floor.latency:.0f} % between its runs: the machine was busy, and "
        "run asrd tune again while nothing else runs."
    )


def _more(asked: Sequence[TunedStrategy], bounds: _Bounds) -> str:
    """Return how much more speech would decide what is undecided; "" where nothing is."""
    short = [one for one in asked if one.missing]
    if not short:
        return ""
    need = min(one.missing for one in short)
    minutes = bounds.seconds * need / bounds.words / 60
    return (
        f"The {bounds.words} {units(bounds.metric)} there are do not decide "
        f"{', '.join(one.strategy for one in short)}: about {need} more "
        f"({minutes:.0f} minutes of speech like this) would, in a --manifest of your own or as kept --recordings."
    )


def _points(value: float | None) -> str:
    return "?" if value is None else f"{value + 0.0:+.2f}".replace("-", "−")


def _memory(value: int | None) -> str:
    """Return bytes in MiB, or a question mark where they were not measured."""
    if value is None:
        return "? MiB"
    return mib(value)


def _ms(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f}"
