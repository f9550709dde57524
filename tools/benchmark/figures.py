"""Values of the bench and its statistics. Pure: starts nothing, reads no clock, prints nothing.

Times are seconds unless a name says otherwise. Intervals are 95 % bootstrap intervals over the
units that were repeated (blocks, recordings, clips); the same input gives the same interval.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from asrd.scoring import Edits

MIB = 1 << 20

MOVED = 0.10
"""How far a canary may lie from the run's median before its block is dropped."""

FEWEST = 5
"""Blocks that have to be quiet; with fewer, all count and the run says that it was not quiet."""

Interval = tuple[float, float]


class Ratio(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One ratio, held against its goal."""

    value: float | None
    ci: Interval | None
    goal: float
    met: bool
    definition: str
    at_least: bool = False
    """True where more is better."""
    enough: bool = True
    """False: too few repetitions to be held against the goal; `met` is what they come to all the
    same."""
    lengths: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    detail: dict[str, Any] = {}
    """What else was measured on the way, and what of it decides."""

    @property
    def verdict(self) -> str:
        """Met, not met or undecided."""
        return "undecided" if not self.enough else "met" if self.met else "not met"


class Result(msgspec.Struct):
    """All of one run; this is the JSON."""

    ratios: dict[str, Ratio]
    contenders: dict[str, Any]
    """Model -> contender -> its figures."""
    machine: dict[str, Any]
    versions: dict[str, str]

    @property
    def met(self) -> bool:
        """Whether every ratio that was measured often enough reached its goal."""
        return all(ratio.verdict != "not met" for ratio in self.ratios.values())


class Run(msgspec.Struct, frozen=True):
    """One call of one contender."""

    seconds: float
    cpu: float
    """Processor seconds of every process that took part."""
    text: str
    parts: dict[str, float] = {}
    """Of asrd: seconds until the encoder's output, in its decoder, and between the two
    processes."""


class Block(msgspec.Struct):
    """Every contender once on every clip, in random order, between two canaries."""

    canaries: tuple[float, float]
    runs: dict[str, dict[str, Run]] = {}
    """Contender -> clip -> its run."""


# -- statistics
# -------------------------------------------------------------------------------------------------------


def median_interval(values: Sequence[float]) -> tuple[float | None, Interval | None]:
    """Return the median and its interval; no interval for fewer than two values."""
    if len(values) < 2:
        return (values[0] if values else None), None
    import numpy as np
    from scipy.stats import bootstrap

    middle = float(np.median(values))
    if min(values) == max(values):
        return middle, (middle, middle)
    found = bootstrap(
        (values,), np.median, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return middle, (float(found.low), float(found.high))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return ratios of what was measured side by side. Raises ValueError where a side is missing
    one."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, Interval]:
    """Return Theil and Sen's slope of y over x with its 95 % interval."""
    from scipy.stats import theilslopes

    if min(y) == max(y):
        return 0.0, (0.0, 0.0)
    found = theilslopes(y, x)
    return float(found.slope), (float(found.low_slope), float(found.high_slope))


def jain(shares: Sequence[float]) -> float:
    """Return Jain's fairness of shares: 1 where all are alike, 1/n where one has everything."""
    squares = len(shares) * sum(share * share for share in shares)
    return sum(shares) ** 2 / squares if squares else 0.0


def quiet(blocks: Sequence[Block]) -> tuple[list[Block], int]:
    """Return the blocks between whose canaries the machine was as fast as in the median, and how
    many were dropped.

    With fewer than FEWEST of them nothing is dropped, and the number is that of the blocks that
    should have been.
    """
    usual = statistics.median(canary for block in blocks for canary in block.canaries)
    kept = [
        block
        for block in blocks
        if all(abs(canary / usual - 1) <= MOVED for canary in block.canaries)
    ]
    dropped = len(blocks) - len(kept)
    return (list(blocks) if len(kept) < min(FEWEST, len(blocks)) else kept), dropped


def blockwise(
    blocks: Sequence[Block], one: str, other: str, clips: Sequence[str], field: str = "seconds"
) -> list[float]:
    """Return for each block the median over clips of one contender's figure over another's."""
    return [
        statistics.median(
            getattr(b.runs[one][c], field) / getattr(b.runs[other][c], field) for c in clips
        )
        for b in blocks
    ]


def by_clip(references: Sequence[str], text: str, clean: Callable[[str], str]) -> Edits:
    """Return the edits of one long text for each of the clips it was joined from, by one alignment
    of all of it."""
    import jiwer

    said = [clean(reference).split() for reference in references]
    owner = [number for number, words in enumerate(said) for _ in words]
    errors = [0] * len(said)
    whole = [word for words in said for word in words]
    aligned = jiwer.process_words(" ".join(whole), clean(text)).alignments[0]
    for chunk in aligned:
        if chunk.type == "insert":
            at = owner[min(chunk.ref_start_idx, len(owner) - 1)]
            errors[at] += chunk.hyp_end_idx - chunk.hyp_start_idx
        elif chunk.type != "equal":
            for place in range(chunk.ref_start_idx, chunk.ref_end_idx):
                errors[owner[place]] += 1
    return Edits(tuple(errors), tuple(len(words) for words in said))


# -- contenders
# -------------------------------------------------------------------------------------------------------


def table(
    blocks: Sequence[Block], clips: Mapping[str, float], names: Mapping[str, str], ours: str = "G"
) -> dict[str, Any]:
    """Return the figures of every contender.

    Args:
        blocks: quiet ones.
        clips: clip -> its seconds; those above eight are what ratios are made of.
        names: contender -> what it is.
        ours: the contender that the others are held against.
    """
    long = [clip for clip, seconds in clips.items() if seconds > 8]
    found = {}
    for who in sorted(blocks[0].runs):
        over, ci = median_interval(blockwise(blocks, who, "A", long))
        ours_over, ours_ci = median_interval(blockwise(blocks, ours, who, long))
        found[who] = {
            "name": names[who],
            "ms": {
                clip: 1000 * statistics.median(b.runs[who][clip].seconds for b in blocks)
                for clip in clips
            },
            "cpu_ms": {
                clip: 1000 * statistics.median(b.runs[who][clip].cpu for b in blocks)
                for clip in clips
            },
            "over_bare": over,
            "over_bare_ci": ci,
            "cpu_over_bare": median_interval(blockwise(blocks, who, "A", long, "cpu"))[0],
            "asrd_over_it": ours_over,
            "asrd_over_it_ci": ours_ci,
            "asrd_cpu_over_it": median_interval(blockwise(blocks, ours, who, long, "cpu"))[0],
            "flips": flips(blocks, who),
        }
    return found


def flips(blocks: Sequence[Block], who: str) -> list[dict[str, str]]:
    """Return the clips that a contender hears otherwise than the bare model."""
    first = blocks[0].runs
    return [
        {"clip": clip, "bare": run.text, "heard": first[who][clip].text}
        for clip, run in first["A"].items()
        if run.text.split() != first[who][clip].text.split()
    ]
