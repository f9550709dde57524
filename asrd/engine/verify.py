"""Whether a worker runs in the precision that it was started with (pure)."""

from __future__ import annotations

from asrd.precision.fallback import storage_of
from asrd.precision.plan import Candidate, for_family
from asrd.precision.strategies import (
    Precision,
    beside_int8,
)
from asrd.protocol import Ready


def mismatch(candidate: Candidate, ready: Ready) -> str:
    """Return where a worker, as it read itself back, is not what its candidate says; "" where it
    is.

    What a Fallback names may be float32 instead. Arithmetic above the storage is no mismatch, below
    it is, unless autocast or TF32 was asked for.
    """
    precision = for_family(candidate.precision, ready.family)
    if (ready.requested, ready.device) != (precision.name, candidate.device):
        return f"a worker for {candidate.name} says that it is {ready.requested} on {ready.device}"
    for component, effective in ready.effective.items():
        stored, _, computed = effective.partition(" as ")
        allowed = _allowed(precision, component)
        for fallback in ready.fallbacks:
            if fallback.component == component:
                allowed.add(fallback.got)
        arithmetic = {"float32"} | allowed | _lowered(precision)
        wrong = _forbidden("stored", stored, allowed) or _forbidden(
            "computed", computed, arithmetic
        )
        if wrong:
            what, dtype, right = wrong
            must = " or ".join(sorted(right))
            return f"{component} is {what} in {dtype} under {candidate.name}, which allows {must}"
        if path := _unmet(precision, ready, component, stored):
            dtype = precision.parts[path]
            return f"nothing of {component} is stored in {dtype} under {candidate.name}, which wants {path} so"
    return ""


def _lowered(precision: Precision) -> set[str]:
    """Return the dtypes below the storage that arithmetic may run in."""
    lower: set[str] = set()
    if precision.autocast or precision.phases:
        lower |= {"float16", "bfloat16"}
    if precision.tf32:
        lower.add("tf32")
    return lower


def _forbidden(what: str, found: str, right: set[str]) -> tuple[str, str, set[str]] | None:
    """Return the first dtype of "X/Y" that is not allowed, with what it is of; None where all
    are."""
    wrong = set(filter(None, found.split("/"))) - right
    if not wrong:
        return None
    return what, wrong.pop(), right


def _unmet(precision: Precision, ready: Ready, component: str, stored: str) -> str:
    """Return a path below a component whose dtype is nowhere in it; "" where there is none."""
    wanted = {fallback.wanted for fallback in ready.fallbacks}
    for path, dtype in precision.parts.items():
        inside = "." in path and not _pattern(path) and path.partition(".")[0] == component
        if inside and dtype not in wanted and dtype not in stored.split("/"):
            return path
    return ""


def _allowed(precision: Precision, component: str) -> set[str]:
    """Return every dtype in which a component, or a module below it, may be stored."""
    if component.startswith("timestamps"):  # a second model, which no precision casts
        return {"float32"}
    found: set[str] = {storage_of(precision, component)}
    for path, dtype in precision.parts.items():
        alias = (path == "norms" and component == "encoder") or (
            path == "decoder" and component != "encoder"
        )
        first = path.partition(".")[0]
        if alias or first == component or _pattern(first):
            found.add(dtype)
    if component != "preprocessor" and (precision.quantize or "int8" in found):
        found |= {"int8", beside_int8(precision)}
    return found


def _pattern(path: str) -> bool:
    """Return whether a key of `parts` is a pattern, which may reach into any component."""
    return not {"*", "?", "["}.isdisjoint(path)
