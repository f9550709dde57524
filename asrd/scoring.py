"""Word edits, percentiles and bootstrap intervals: how texts and figures are compared (pure).

Rates are edits per 100 reference words, intervals are percentage points. numpy and jiwer are
imported by the function that needs them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from jiwer import AlignmentChunk

BOOTSTRAP_RESAMPLES = 10_000
"""Bootstrap resamples behind one interval."""

FEWEST_UTTERANCES = 20
"""Utterances below which a bootstrap interval says nothing: it could only repeat the few it has
seen."""


# -- words
# ------------------------------------------------------------------------------------------------------------


class Edits(msgspec.Struct, frozen=True):
    """Word edits and reference words, per utterance."""

    errors: tuple[int, ...]
    words: tuple[int, ...]

    @property
    def rate(self) -> float | None:
        """Edits per 100 reference words over all utterances; None where there are no words."""
        words = sum(self.words)
        if not words:
            return None
        return 100 * sum(self.errors) / words


def edits(references: Sequence[str], hypotheses: Sequence[str]) -> Edits:
    """Return word edits per utterance (jiwer's alignment); both sides are split at white space as
    they are."""
    import jiwer

    output = jiwer.process_words(list(references), list(hypotheses))
    errors = tuple(sum(map(_chunk_edits, chunks)) for chunks in output.alignments)
    return Edits(errors, tuple(len(reference.split()) for reference in references))


def _chunk_edits(chunk: AlignmentChunk) -> int:
    """Return the edits that one part of an alignment stands for."""
    if chunk.type == "equal":
        return 0
    return max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)


@functools.lru_cache(maxsize=64)
def interval(
    candidate: Edits, baseline: Edits, resamples: int = BOOTSTRAP_RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95 % paired-bootstrap interval of candidate.rate - baseline.rate, in points.

    Utterances are drawn with replacement and keep their pair, so that what is hard for both
    cancels. None with fewer than FEWEST_UTTERANCES utterances, unless both have the same edits in every one.
    The same input gives the same interval.
    """
    import numpy as np

    difference = np.asarray(candidate.errors, float) - np.asarray(baseline.errors, float)
    words = np.asarray(baseline.words, float)
    count = len(difference)
    if not words.sum() or (count < FEWEST_UTTERANCES and difference.any()):
        return None
    generator = np.random.default_rng(seed)
    step = max(1, 4_000_000 // count)
    deltas: list[np.ndarray] = []
    for first in range(0, resamples, step):
        drawn = generator.integers(0, count, (min(step, resamples - first), count))
        totals = words[drawn].sum(axis=1)
        deltas.append(100 * difference[drawn].sum(axis=1) / np.where(totals > 0, totals, 1))
    low, high = np.percentile(np.concatenate(deltas), (2.5, 97.5))
    return float(low), float(high)


def upper_bound(candidate: Edits, baseline: Edits, larger: float = 1.0) -> float:
    """Return the upper 97.5 % bound of candidate.rate - baseline.rate that is left by few changes,
    in points.

    A bootstrap repeats only what it has seen: it calls a change that no utterance happened to show
    impossible. This is the score bound (Wilson's, for the difference of two Poisson counts: words
    made worse, words made better): with no change at all 3.84 edits may have been missed. The
    variance is that of the utterances' sums where edits come in clusters.

    Args:
        larger: what it would be on so many times as much speech with the same rates.
    """
    words = larger * sum(baseline.words)
    if not words:
        return float("inf")
    gained, lost, squares = 0, 0, 0
    for now, before in zip(candidate.errors, baseline.errors, strict=True):
        step = now - before
        gained += max(step, 0)
        lost += max(-step, 0)
        squares += step * step
    clusters = squares / (gained + lost) if squares else 1.0
    worse, better = larger * gained, larger * lost
    low = max(worse - better, 0.0)
    high = low + 4.0
    while not _beyond(high, worse, better, clusters):
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if _beyond(middle, worse, better, clusters):
            high = middle
        else:
            low = middle
    return 100 * high / words


def _beyond(supposed: float, worse: float, better: float, clusters: float) -> bool:
    """Return whether a true net count of `supposed` is refuted by what was counted, one-sided at
    2.5 %."""
    total = 2 * supposed - worse - better
    # The most likely count of words made better, if `supposed` is true.
    improved = (-total + (total * total + 8 * better * supposed) ** 0.5) / 4
    return (supposed - worse + better) ** 2 > 1.96**2 * clusters * (2 * improved + supposed)


def changed_interval(against_baseline: Edits) -> tuple[float, float] | None:
    """Return the 95 % interval of the words changed per 100, as `interval` does, from edits against
    FP32's words."""
    untouched = Edits((0,) * len(against_baseline.words), against_baseline.words)
    return interval(against_baseline, untouched)


# -- figures
# ----------------------------------------------------------------------------------------------------------


class Percentiles(msgspec.Struct, frozen=True):
    """Median and 95th percentile."""

    p50: float
    p95: float


def percentiles(seconds: Sequence[float]) -> Percentiles | None:
    """Return median and 95th percentile in milliseconds; None without a measurement."""
    if not seconds:
        return None
    import numpy as np

    p50, p95 = np.percentile(np.asarray(seconds) * 1000, (50, 95))
    return Percentiles(float(p50), float(p95))


def spread(values: Sequence[float | None]) -> float | None:
    """Return the largest of `values` over the smallest, minus one; None with fewer than two."""
    figures = [value for value in values if value]
    if len(figures) < 2:
        return None
    return max(figures) / min(figures) - 1


def median_uncertainty(seconds: Sequence[float], seed: int = 0) -> float:
    """Return half the width of the 95 % bootstrap interval of the median, relative to it."""
    import numpy as np

    values = np.asarray(seconds, float)
    drawn = np.random.default_rng(seed).integers(0, len(values), (BOOTSTRAP_RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[drawn], axis=1), (2.5, 97.5))
    return float((high - low) / 2 / np.median(values))
