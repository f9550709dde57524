"""The fallback order at run time: what comes after a candidate that failed, and when a better
candidate may be tried again.

Pure: takes candidates, kinds of failures and times, returns values; starts nothing and reads no
clock.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from asrd.precision.failures import action_of
from asrd.precision.needs import smaller_candidates
from asrd.precision.plan import Candidate, Plan, Rejected, elsewhere, without
from asrd.precision.strategies import (
    FP32_BASELINE,
    Precision,
    Stored,
    dtypes,
    quantizes,
)

MAX_WAIT_SECONDS = 24 * 3600.0
"""How long a candidate stays left at most, however often it came back in vain."""


def is_full_fp32(precision: Precision) -> bool:
    """Return whether a precision stores and computes everything in FP32, TF32 off."""
    return dtypes(precision) == {"float32"} and not quantizes(precision) and not precision.tf32


def candidates_after(
    plan: Plan,
    candidates: Sequence[Candidate],
    kind: str,
    component: str = "",
    out: Collection[str] = (),
) -> tuple[Candidate, ...]:
    """Return what is left to try once the first of `candidates` failed.

    Args:
        plan: what the candidates are of; it knows what each needs.
        kind: of the failure, as in Rejected.
        component: the module whose output was not finite, where a worker could name one.
        out: names of candidates that failed and are not to come back.

    A plan of one candidate is a wish for that one and nothing else: nothing comes after it.
    """
    here, *rest = candidates
    follow = action_of(kind).follow
    if follow == "component" and rest and (softer := restored(here.precision, component)):
        return Candidate(softer, here.device), *rest
    others = elsewhere(rest, here.device)
    if follow == "same device":
        # FP32 is what the others are measured against, and another device would be no cure.
        if is_full_fp32(here.precision) or len(others) == len(rest):
            return ()
        return tuple(rest)
    if follow == "other device":
        return tuple(others)
    if follow == "smaller" and here.device != "cpu":
        return tuple(smaller_candidates(plan, candidates, out))
    return tuple(rest)


def restored(precision: Precision, component: str) -> Precision | None:
    """Return the precision with one component back in float32, or None where that is no smaller
    step.

    First the module that was named (`encoder.layers.3`), then, if that was not enough, the
    component it is a part of. Arithmetic that autocast lowers and weights that are quantised do not
    follow `parts`.
    """
    if not component or precision.quantize or precision.autocast or precision.phases:
        return None
    for path in dict.fromkeys((component, component.partition(".")[0])):
        if storage_of(precision, path) != "float32":
            parts: dict[str, Stored] = {**precision.parts, path: "float32"}
            families = {family: {**own, **parts} for family, own in precision.families.items()}
            name = f"{precision.name.partition('(')[0]}({path}:float32)"
            return msgspec.structs.replace(precision, name=name, parts=parts, families=families)
    return None


def storage_of(precision: Precision, path: str) -> str:
    """Return what `parts` or, where they do not name it or a module above it, `weights` say of a
    module."""
    above = path
    while above:
        if above in precision.parts:
            return precision.parts[above]
        above = above.rpartition(".")[0]
    if path.partition(".")[0] == "preprocessor" and precision.features == "float32":
        return "float32"
    return precision.weights


# -- the way back
# -----------------------------------------------------------------------------------------------------


def retry_plan(
    plan: Plan,
    left: Sequence[Candidate],
    candidates: Sequence[Candidate],
    rejected: Sequence[Rejected],
) -> Plan | None:
    """Return the plan with the candidates whose failure may be over, or None where there is none.

    Args:
        left: candidates that were left.
        candidates: those that are still there; the first is in service.
        rejected: why each of the others is not.
    """
    lasting: set[str] = set()
    for one in rejected:
        if not action_of(one.kind).may_return:
            lasting.add(one.candidate)
    better = without(left, lasting)
    if not better:
        return None
    order = [candidate.name for candidate in plan.candidates]

    def place(candidate: Candidate) -> int:
        base = _base(candidate)
        return order.index(base) if base in order else len(order)

    better.sort(key=place)
    why = tuple(one for one in rejected if one.candidate in lasting)
    return msgspec.structs.replace(plan, candidates=(*better, *candidates), rejected=why)


def _base(candidate: Candidate) -> str:
    """Return the name of the candidate that one with a restored component was made of."""
    before = msgspec.structs.replace(
        candidate.precision, name=candidate.precision.name.partition("(")[0]
    )
    return Candidate(before, candidate.device).name


class RetryBackoff:
    """When a better candidate may be tried again: after `minutes` without a failure, twice as long
    each time that was in vain.

    Args:
        minutes: the first wait; 0: never by itself.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self._vain = 0
        self._due: float | None = None
        self._returned: float | None = None

    def note_failure(self, now: float) -> None:
        """Note that a candidate was left at `now` (seconds)."""
        if self._returned is not None:
            lasted, self._returned = now - self._returned, None
            if lasted > 2 * self.wait:
                self._vain = 0
            else:
                self._vain += 1
        self._begin_wait(now)

    def wait_from(self, now: float) -> None:
        """Begin to wait, unless a wait has begun: a worse candidate than was asked for is in
        service."""
        if self._due is None:
            self._begin_wait(now)

    def note_retry(self, now: float, held: bool) -> None:
        """Note that a better candidate was tried: it is in service now, or it failed again."""
        if held:
            self._returned, self._due = now, None
        else:
            self._vain += 1
            self._begin_wait(now)

    def _begin_wait(self, now: float) -> None:
        """Wait from now on; with `minutes` at 0 there is nothing to wait for."""
        self._due = None
        if self.minutes:
            self._due = now + self.wait

    @property
    def wait(self) -> float:
        """Seconds that the present wait lasts."""
        return min(MAX_WAIT_SECONDS, 60 * self.minutes * 2.0 ** min(self._vain, 30))

    def seconds_left(self, now: float) -> float | None:
        """Return the seconds until a better candidate may be tried; None while there is nothing to
        wait for."""
        if self._due is None or not self.minutes:
            return None
        return max(0.0, self._due - now)


def fp32_plan(device: str) -> Plan:
    """Return the plan of FP32 on a device and nothing else."""
    return Plan(
        FP32_BASELINE.name, (Candidate(FP32_BASELINE, device),), "the reference that a shadow is"
    )
