"""The strategy that `auto` uses, by its measurements: the cheapest that qualifies, and why each other
does not.

A strategy qualifies when it answered everything and needs no more memory and time than FP32. Even
the upper bound of its cost in words has to stay within the limit. FP32 always qualifies. A strategy
that the speech is too short to judge does not. Pure: starts nothing, stores nothing, reads no clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter

import msgspec

from asrd.engine.tuned import TunedStrategy
from asrd.evaluation.judging import errors_of_all, judge
from asrd.evaluation.normalising import metric, units
from asrd.evaluation.results import RESOLUTION, NoiseFloor, Run, StrategyResult
from asrd.evaluation.rows import WordErrors, limit_of, median_ms
from asrd.precision import ledger
from asrd.precision.strategies import FP32_BASELINE, quantizes
from asrd.scoring import FEWEST_UTTERANCES, Edits, upper_bound
from asrd.text.sizes import mib

MAX_LATENCY_SPREAD = 0.15
"""Relative difference of FP32's latency between its runs from which the machine counts as too busy."""

MAX_USEFUL_WORDS = 100_000
"""Words beyond which a hint to record more is no help: some ten hours of speech."""


class Choice(msgspec.Struct, frozen=True):
    """The chosen strategy, and the figures that led to it."""

    chosen: str
    reason: str
    candidates: list[TunedStrategy]
    limit: float
    """Points: the bound, or the noise floor where that is more."""
    words: int
    """Words on which the strategies were compared."""
    hint: str
    metric: str
    """WER, or CER where `words` are characters."""


class _Bounds(msgspec.Struct, frozen=True):
    limit: float
    budget: int | None
    without_references: bool
    words: int
    seconds: float
    metric: str

    @property
    def unit(self) -> str:
        """The unit of a cost, in words."""
        if self.without_references:
            return f"{units(self.metric)} in 100 other than FP32's"
        return f"points of {self.metric}"


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
        references: the reference texts, one per clip; None where there are none. FP32's texts then
            take their place, and every other word counts as an error; that is never less than the
            true cost in WER.
        seconds: of audio in all clips.
        bound: absolute points of WER that a strategy may cost.
        language: of the text, for the normaliser.
        again: FP32 after everything else.
        budget: bytes that the worker may use.
    """
    texts = references
    if texts is None:
        texts = [text or "" for text in measured[0].texts]
    floor, limits, rows = judge(measured, texts, seconds, bound, language, again)
    kind = metric(texts, language)
    truth, words = errors_of_all(measured, texts, language, kind)
    limit = limit_of(limits, "wer_delta")
    count = sum(map(len, map(str.split, truth)))
    bounds = _Bounds(limit, budget, references is None, count, seconds, kind)
    whole = _whole(measured, rows, words, bounds)
    asked = []
    for one, row, its_words in zip(measured, rows, words, strict=True):
        if one.role == "asked" and words[0] is not None:
            asked.append(_candidate(one, row, its_words, words[0], whole, bounds))
    candidates = [*asked, whole]
    chosen = cheapest(_qualified(candidates), floor)
    hint = " ".join(filter(None, (_more(asked, bounds), _busy(floor))))
    reason = _reason(chosen, candidates, bounds)
    return Choice(chosen.strategy, reason, candidates, limit, count, hint, kind)


def _qualified(candidates: Sequence[TunedStrategy]) -> list[TunedStrategy]:
    return [one for one in candidates if not one.refused]


def cheapest(fit: Sequence[TunedStrategy], floor: NoiseFloor) -> TunedStrategy:
    """Return the one with the least memory; among equal ones the fastest; among equally fast ones the
    last, which is nearest to FP32.

    Figures are equal within the noise floor.

    Args:
        fit: those that qualify, FP32 last.
        floor: what FP32 differs from itself.
    """
    base = fit[-1]
    if base.memory is None:
        return base
    known = [one for one in fit if one.memory is not None]
    least = min(one.memory or 0 for one in known)
    most = least + (floor.memory or 0.0) * base.memory
    *light, best = [one for one in known if (one.memory or 0) <= most]
    for one in reversed(light):
        if _faster(one, best, 1 + (floor.latency or 0.0)):
            best = one
    return best


def _faster(one: TunedStrategy, other: TunedStrategy, factor: float) -> bool:
    """Return whether a candidate is faster by more than `factor`, on the CPU in processor time too.

    Other programs on the machine change the latency of a buffer far more than its processor time.
    """
    compared = 0
    for now, before in ((one.p50_ms, other.p50_ms), (one.cpu_ms, other.cpu_ms)):
        if now is None or before is None:
            continue
        if now * factor >= before:
            return False
        compared += 1
    return compared > 0


# -- one candidate


def _whole(
    measured: Sequence[Run],
    rows: Sequence[StrategyResult],
    words: Sequence[WordErrors | None],
    bounds: _Bounds,
) -> TunedStrategy:
    """Return FP32: its cost as first measured, its words as the second run differs from the
    first."""
    twice = 0
    for place, row in enumerate(rows):
        if row.role == "again":
            twice = place
            break
    cost = _candidate(measured[0], rows[0], words[twice], words[0], None, bounds)
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
    upper = changed = cpu_ms = None
    if now is not None:
        changed = sum(now.against_baseline.errors)
    if now is not None and first is not None and row.wer_delta_ci is not None:
        upper = max(row.wer_delta_ci[1], upper_bound(now.score, first.score))
    if steady is not None and steady.source == "rss":
        cpu_ms = median_ms(row.cpu_ms)
    found = TunedStrategy(
        strategy=row.strategy,
        refused="",
        verdict=_verdict(row, bounds),
        delta=row.wer_delta,
        interval=row.wer_delta_ci,
        most=upper,
        changed=changed,
        memory=ledger.largest_bytes(measured.ledger),
        source=ledger.source_of(steady),
        p50_ms=median_ms(row.latency_ms),
        failures=row.errors,
        cpu_ms=cpu_ms,
        effective=row.effective,
    )
    if whole is None:
        return found
    refused, missing = _refusal(found, measured, row, whole, bounds), 0
    if refused or now is None or first is None:
        return msgspec.structs.replace(found, refused=refused)
    if not _within(row, now.score, first.score, bounds):
        missing = _missing(row, now.score, first.score, bounds)
        refused = _word_refusal(found, missing, bounds)
    return msgspec.structs.replace(found, refused=refused, missing=missing)


def _verdict(row: StrategyResult, bounds: _Bounds) -> str:
    if bounds.without_references and row.verdict == "worse":
        return "differs"
    return row.verdict


def _refusal(
    found: TunedStrategy, measured: Run, row: StrategyResult, whole: TunedStrategy, bounds: _Bounds
) -> str:
    """Return why a candidate is out whatever its words are; "" where it is not."""
    if row.failure:
        return row.failure
    if row.errors:
        return f"{row.errors} utterances without an answer"
    if quantizes(measured.precision) and "int8" not in " ".join(row.effective.values()):
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
    """Return how many more words would bring the upper bounds within the limit, at the rates found;
    0 where no number does.

    Too few utterances for an interval give no rate; there the number is for no further change.
    """
    if row.wer_delta is None or not bounds.words:
        return 0
    count, reach = len(before.words), MAX_USEFUL_WORDS / bounds.words
    if row.wer_delta > bounds.limit:
        least = max(
            upper_bound(now, before) / max(bounds.limit, RESOLUTION), FEWEST_UTTERANCES / count
        )
        if row.wer_delta_ci is None and least < reach:
            return math.ceil(bounds.words * (least - 1))
        return 0
    larger, half_width = 1.0, 0.0
    if row.wer_delta_ci is not None:
        half_width = row.wer_delta_ci[1] - row.wer_delta
    while larger < reach:
        wide = half_width / larger**0.5
        far = upper_bound(now, before, larger) > max(bounds.limit, RESOLUTION)
        if not far and row.wer_delta + wide <= bounds.limit and count * larger >= FEWEST_UTTERANCES:
            return round(bounds.words * (larger - 1))
        larger *= 1.02
    return 0


# -- in words


def _word_refusal(found: TunedStrategy, missing: int, bounds: _Bounds) -> str:
    """Return why the words speak against a candidate."""
    what = bounds.unit
    limit = f"the limit is {bounds.limit:.2f}"
    enough = ""
    if missing:
        enough = f"; about {missing} more {units(bounds.metric)} would tell"
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
        others = _qualified(candidates[:-1])
        if not others:
            return "measured here: no cheaper candidate qualifies"
        names = _names(others)
        return f"measured here: FP32 is as cheap, within its own spread, as the others that qualify: {names}"
    what = bounds.unit
    return (
        f"measured here: at most {_points(taken.most)} {what} (limit {bounds.limit:.2f}), {_memory(taken.memory)} "
        f"against FP32's {_memory(whole.memory)} ({ledger.source_words(taken.source)}), "
        f"{_ms(taken.p50_ms)} ms for 10 s against {_ms(whole.p50_ms)}"
    )


def _busy(floor: NoiseFloor) -> str:
    if floor.latency is None or floor.latency <= MAX_LATENCY_SPREAD:
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
    need = min(map(attrgetter("missing"), short))
    minutes = bounds.seconds * need / bounds.words / 60
    return (
        f"The {bounds.words} {units(bounds.metric)} there are do not decide "
        f"{_names(short)}: about {need} more "
        f"({minutes:.0f} minutes of speech like this) would, in a --manifest of your own or as kept --recordings."
    )


def _names(candidates: Sequence[TunedStrategy]) -> str:
    return ", ".join(map(attrgetter("strategy"), candidates))


def _points(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value + 0.0:+.2f}".replace("-", "−")


def _memory(value: int | None) -> str:
    """Return bytes in MiB, or a question mark where they were not measured."""
    if value is None:
        return "? MiB"
    return mib(value)


def _ms(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:.1f}"
