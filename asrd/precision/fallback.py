"""The fallback order at run time: what comes after a candidate that did not hold, whether a worker
is what its candidate says, and when a better candidate may be tried again.

Pure: takes candidates, kinds of trouble and times, returns values; starts nothing and reads no
    clock.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from asrd.precision.failures import action_of
from asrd.precision.needs import smaller_candidates
from asrd.precision.plan import Candidate, Plan, Rejected
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
    """Whether a precision stores and computes everything in FP32, TF32 off."""
    return dtypes(precision) == {"float32"} and not quantizes(precision) and not precision.tf32


def candidates_after(
    plan: Plan,
    candidates: Sequence[Candidate],
    kind: str,
    component: str = "",
    out: Collection[str] = (),
) -> tuple[Candidate, ...]:
    """Return what is left to try once the first of `candidates` did not hold.

    Args:
        plan: what the candidates are of; it knows what each needs.
        kind: of the trouble, as in Rejected.
        component: the module whose output was not finite, where a worker could tell.
        out: names of candidates that failed and are not to come back.

    A plan of one candidate is a wish for that one and nothing else: nothing comes after it.
    """
    here, *rest = candidates
    follow = action_of(kind).follow
    if follow == "component" and rest and (softer := restored(here.precision, component)):
        return Candidate(softer, here.device), *rest
    elsewhere = tuple(candidate for candidate in rest if candidate.device != here.device)
    if follow == "same device":
        # FP32 is what the others are measured against, and another device would be no cure.
        stays = is_full_fp32(here.precision) or len(elsewhere) == len(rest)
        return () if stays else tuple(rest)
    if follow == "other device":
        return elsewhere
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
    words = path.split(".")
    above = (".".join(words[:count]) for count in range(len(words), 0, -1))
    exempt = words[0] == "preprocessor" and precision.features == "float32"
    return next(
        (precision.parts[p] for p in above if p in precision.parts),
        "float32" if exempt else precision.weights,
    )


# -- the way back
# -----------------------------------------------------------------------------------------------------


def retry_plan(
    plan: Plan,
    left: Sequence[Candidate],
    candidates: Sequence[Candidate],
    rejected: Sequence[Rejected],
) -> Plan | None:
    """Return the plan with the candidates whose trouble may be over, or None where there is none.

    Args:
        left: candidates that were left.
        candidates: those that are still there; the first is in service.
        rejected: why each of the others is not.
    """
    lasting = {one.candidate for one in rejected if not action_of(one.kind).may_return}
    names = [candidate.name for candidate in plan.candidates]
    better = sorted(
        (candidate for candidate in left if candidate.name not in lasting),
        key=lambda candidate: (
            names.index(_base(candidate)) if _base(candidate) in names else len(names)
        ),
    )
    if not better:
        return None
    why = tuple(one for one in rejected if one.candidate in lasting)
    return msgspec.structs.replace(plan, candidates=(*better, *candidates), rejected=why)


def _base(candidate: Candidate) -> str:
    """Return the name of the candidate that one with a restored component was made of."""
    before = msgspec.structs.replace(
        candidate.precision, name=candidate.precision.name.partition("(")[0]
    )
    return Candidate(before, candidate.device).name


class RetryBackoff:
    """When a better candidate may be tried again: after `minutes` without trouble, twice as long
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
        """A candidate was left at `now` (seconds)."""
        if self._returned is not None:
            lasted, self._returned = now - self._returned, None
            self._vain = 0 if lasted > 2 * self.wait else self._vain + 1
        self._due = now + self.wait if self.minutes else None

    def wait_from(self, now: float) -> None:
        """A worse candidate than was asked for is in service: a better one is waited for, unless it
        is already."""
        if self._due is None and self.minutes:
            self._due = now + self.wait

    def note_retry(self, now: float, held: bool) -> None:
        """A better candidate was tried: it is in service now, or it did not hold."""
        if held:
            self._returned, self._due = now, None
        else:
            self._vain += 1
            self._due = now + self.wait if self.minutes else None

    @property
    def wait(self) -> float:
        """Seconds that the present wait lasts."""
        return min(MAX_WAIT_SECONDS, 60 * self.minutes * 2.0 ** min(self._vain, 30))

    def seconds_left(self, now: float) -> float | None:
        """Return the seconds until a better candidate may be tried; None while there is nothing to
        wait for."""
        return None if self._due is None or not self.minutes else max(0.0, self._due - now)


def fp32_plan(device: str) -> Plan:
    """Return the plan of FP32 on a device and nothing else."""
    return Plan(
        FP32_BASELINE.name, (Candidate(FP32_BASELINE, device),), "the reference that a shadow is"
    )
