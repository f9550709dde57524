"""Which candidates need less memory than another one, and which fit into a limit (pure)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from asrd.precision.plan import Candidate, Plan, Rejected, elsewhere, names_of, without
from asrd.precision.strategies import WEIGHT_BYTES, Precision
from asrd.text.sizes import mib


def width(precision: Precision) -> float:
    """Return roughly the bytes of a weight, which orders strategies by what they need where no
    figure exists."""
    if precision.quantize:
        return 1.0
    stored = [WEIGHT_BYTES[precision.weights]]
    for part, dtype in precision.parts.items():
        if part != "norms":
            stored.append(WEIGHT_BYTES[dtype])
    mean = sum(stored) / len(stored)
    if precision.autocast or precision.phases:
        return mean + 0.1
    return mean


def needs_less(plan: Plan, candidate: Candidate, than: Candidate) -> bool:
    """Return whether a candidate needs less memory than another one on the same device.

    It must store less; a figure can only speak against it, and only beside one of its own kind.
    """
    first, second = plan.need_of(candidate), plan.need_of(than)
    if first and second and first.measured == second.measured and first.bytes >= second.bytes:
        return False
    return width(candidate.precision) < width(than.precision)


def largest_first(plan: Plan, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return candidates by what they store, then by what they need: the largest first."""

    def size(candidate: Candidate) -> tuple[float, float]:
        need = plan.need_of(candidate)
        return width(candidate.precision), need.bytes if need else 0.0

    return sorted(candidates, key=size, reverse=True)


def smaller_candidates(
    plan: Plan, candidates: Sequence[Candidate], out: Collection[str] = ()
) -> list[Candidate]:
    """Return what is left to try when the first of these candidates had too little memory on its
    card.

    Those that need less come first, the largest of them at the head: FP32 after bfloat16 would fail
    the same way. Then come those of other devices.

    Args:
        out: names of candidates that failed before and are not to come back.
    """
    failed, *rest = candidates
    options = list(rest)
    for candidate in without(plan.smaller, out):
        if candidate not in rest:
            options.append(candidate)
    less: list[Candidate] = []
    for candidate in options:
        if candidate.device == failed.device and needs_less(plan, candidate, failed):
            less.append(candidate)
    return [*largest_first(plan, less), *elsewhere(rest, failed.device)]


def fitted(plan: Plan, limit: int, allowed: str = "vram_budget allows") -> Plan:
    """Return the plan without the candidates on a card that need more than `limit` bytes, by the
    figures in `needs`.

    Where none is left on the card, what the preset allows and needs less takes their place.

    Args:
        allowed: what the limit is, as in "vram_budget allows", for the sentence.
    """

    def over(candidate: Candidate) -> str:
        need = plan.need_of(candidate)
        if candidate.device == "cpu" or need is None or need.bytes <= limit:
            return ""
        return f"would need {need}; {allowed} {mib(limit)}"

    kept: list[Candidate] = []
    rejected = list(plan.rejected)
    for candidate in plan.candidates:
        if why := over(candidate):
            rejected.append(Rejected(candidate.name, "budget", why))
        else:
            kept.append(candidate)
    smaller: list[Candidate] = []
    for candidate in without(plan.smaller, names_of(plan.rejected)):
        if candidate not in kept and not over(candidate):
            smaller.append(candidate)
    if all(candidate.device == "cpu" for candidate in kept):
        kept, smaller = [*largest_first(plan, smaller), *kept], []
    first, reason = plan.candidates[0], plan.reason
    if over(first) and kept:
        reason = f"{first.name} {over(first)}; {kept[0].name} instead"
    return msgspec.structs.replace(
        plan,
        candidates=tuple(kept),
        rejected=tuple(rejected),
        smaller=tuple(smaller),
        reason=reason,
    )
