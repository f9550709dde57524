"""Which candidates need less memory than another one, and which fit into a limit (pure)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from asrd.precision.plan import Candidate, Plan, Rejected
from asrd.precision.strategies import WEIGHT_BYTES, Precision


def width(precision: Precision) -> float:
    """Return roughly the bytes of a weight, which orders strategies by what they need where nothing
    better is known."""
    if precision.quantize:
        return 1.0
    stored = [
        WEIGHT_BYTES[precision.weights],
        *(WEIGHT_BYTES[dtype] for part, dtype in precision.parts.items() if part != "norms"),
    ]
    return sum(stored) / len(stored) + (0.1 if precision.autocast or precision.phases else 0.0)


def needs_less(plan: Plan, candidate: Candidate, than: Candidate) -> bool:
    """Return whether a candidate needs less memory than another one on the same device.

    It must store less; a figure can only speak against it, and only beside one of its own kind.
    """
    first, second = plan.needs.get(candidate.precision.name), plan.needs.get(than.precision.name)
    if first and second and first.measured == second.measured and first.bytes >= second.bytes:
        return False
    return width(candidate.precision) < width(than.precision)


def largest_first(plan: Plan, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return candidates by what they store, then by what they need: the largest first."""

    def size(candidate: Candidate) -> tuple[float, float]:
        need = plan.needs.get(candidate.precision.name)
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
    allowed = [one for one in plan.smaller if one not in rest and one.name not in out]
    less = [
        candidate
        for candidate in (*rest, *allowed)
        if candidate.device == failed.device and needs_less(plan, candidate, failed)
    ]
    elsewhere = [candidate for candidate in rest if candidate.device != failed.device]
    return [*largest_first(plan, less), *elsewhere]


def fitted(plan: Plan, limit: int, allowed: str = "vram_budget allows") -> Plan:
    """Return the plan without the candidates on a card that need more than `limit` bytes, by the
    figures in `needs`.

    Where none is left on the card, what the preset allows and needs less takes their place.

    Args:
        allowed: what the limit is, as in "vram_budget allows", for the sentence.
    """

    def over(candidate: Candidate) -> str:
        need = plan.needs.get(candidate.precision.name)
        if candidate.device == "cpu" or need is None or need.bytes <= limit:
            return ""
        return f"would need {need}; {allowed} {limit / (1 << 20):.0f} MiB"

    too_large = [candidate for candidate in plan.candidates if over(candidate)]
    kept = [candidate for candidate in plan.candidates if not over(candidate)]
    refused = {one.candidate for one in plan.rejected}
    smaller = [
        candidate
        for candidate in plan.smaller
        if not over(candidate) and candidate not in kept and candidate.name not in refused
    ]
    if all(candidate.device == "cpu" for candidate in kept):
        kept, smaller = [*largest_first(plan, smaller), *kept], []
    rejected = [Rejected(one.name, "budget", over(one)) for one in too_large]
    first, reason = plan.candidates[0], plan.reason
    if over(first) and kept:
        reason = f"{first.name} {over(first)}; {kept[0].name} instead"
    return msgspec.structs.replace(
        plan,
        candidates=tuple(kept),
        rejected=(*plan.rejected, *rejected),
        smaller=tuple(smaller),
        reason=reason,
    )
