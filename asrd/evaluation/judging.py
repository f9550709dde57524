"""The judgement of a comparison: noise floor, criteria, and a row for each strategy (pure).

Used by `compare` and `tune`. Starts nothing, prints nothing, reads no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asrd.evaluation.normalising import metric, normalised
from asrd.evaluation.results import (
    GROWTH_BYTES,
    Bound,
    NoiseFloor,
    Run,
    StrategyResult,
)
from asrd.evaluation.rows import RowContext, WordErrors, median_ms, row_of, word_errors
from asrd.precision import ledger
from asrd.precision.ledger import MEMORY_RESOLUTION
from asrd.precision.memory import Memory
from asrd.scoring import median_uncertainty, percentiles, spread
from asrd.text.sizes import MIB

MAX_HALF_WEIGHTS = 0.55
"""Weights over FP32's that a strategy with 16-bit storage should reach: one half, and some for FP32
norms."""


def judge(
    measured: Sequence[Run],
    references: Sequence[str],
    seconds: float,
    limit: float,
    language: str = "en",
    again: Run | None = None,
) -> tuple[NoiseFloor, list[Bound], list[StrategyResult]]:
    """Return noise floor, bounds and rows of a measurement.

    Args:
        measured: one per worker; the first is the FP32 baseline and complete.
        references: the reference texts, one per clip, as the manifest has them.
        seconds: audio of all clips.
        limit: absolute points of WER that a strategy may cost.
        language: of the text, for the normaliser.
        again: FP32 after everything else, latency and memory only.
    """
    if not measured:
        return NoiseFloor(), [], []
    kind = metric(references, language)
    truth, words = errors_of_all(measured, references, language, kind)
    floor = noise_floor(measured, words, again)
    bounds = _bounds(floor, limit, measured[0].ledger)
    context = RowContext(measured[0], words[0], truth, seconds, floor, bounds, language, kind)
    rows = [row_of(one, its_words, context) for one, its_words in zip(measured, words, strict=True)]
    return floor, bounds, rows


def errors_of_all(
    measured: Sequence[Run], references: Sequence[str], language: str, kind: str
) -> tuple[list[str], list[WordErrors | None]]:
    """Return the references, normalised, and the words of each measurement against them and against
    the first one, which is FP32's."""
    truth = normalised(references, language, kind)
    baseline = normalised(measured[0].texts, language, kind)
    return truth, [word_errors(one, truth, baseline, language, kind) for one in measured]


def noise_floor(
    measured: Sequence[Run], words: Sequence[WordErrors | None], again: Run | None
) -> NoiseFloor:
    """Return the differences between the FP32 runs among `measured`, and the one taken `again` at
    the end."""
    runs: list[Run] = []
    rates: list[float] = []
    changed = None
    for one, its_words in zip(measured, words, strict=True):
        if one.role not in ("baseline", "again"):
            continue
        runs.append(one)
        if its_words is None:
            continue
        if its_words.score.rate is not None:
            rates.append(its_words.score.rate)
        if one.role == "again" and changed is None:
            changed = its_words.against_baseline.rate
    if again is not None:
        runs.append(again)
    wer = None
    if len(rates) > 1:
        wer = max(rates) - min(rates)
    medians: list[float] = []
    for one in runs:
        if (median := median_ms(percentiles(one.latency))) is not None:
            medians.append(median)
    latency = spread(medians)
    if latency is not None:
        latency = max(latency, median_uncertainty(measured[0].latency))
    return NoiseFloor(wer, changed, latency, _memory_floor(measured[0], runs), medians)


def _memory_floor(baseline: Run, runs: Sequence[Run]) -> float | None:
    """Return the relative difference in memory between FP32 runs; None where no memory was read."""
    base = memory_of(baseline.ledger)
    if not base:
        return None
    whole = [one for one in runs if "after" in one.ledger]
    steady = spread([memory_of(one.ledger) for one in runs])
    after = spread([memory_of(one.ledger, "after") for one in whole])
    return max(steady or 0.0, after or 0.0, MEMORY_RESOLUTION / base)


def memory_of(readings: Mapping[str, Memory], phase: str = "steady") -> int | None:
    """Return the bytes that belong to the worker in a phase: process, or torch's own where the
    driver hides it."""
    memory = readings.get(phase)
    if memory is None:
        return None
    return ledger.worker_bytes(memory)


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
            MAX_HALF_WEIGHTS,
            "weights over FP32's, where 16-bit or 8-bit storage was asked for",
            required=False,
        ),
    ]
