"""Whether a worker runs in the precision that it was started with (pure)."""

from __future__ import annotations

from asrd.precision.fallback import storage_of
from asrd.precision.plan import Candidate, for_family
from asrd.precision.strategies import (
    Precision,
    beside_int8,
)
from asrd.protocol import Ready

# -- what a worker must be
# --------------------------------------------------------------------------------------------


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
        stored, _, ran = effective.partition(" as ")
        allowed = _allowed(precision, component) | {
            f.got for f in ready.fallbacks if f.component == component
        }
        lower = {"float16", "bfloat16"} if precision.autocast or precision.phases else set()
        lower |= {"tf32"} if precision.tf32 else set()
        for what, found, right in (
            ("stored in", stored, allowed),
            ("computed in", ran, {"float32"} | allowed | lower),
        ):
            if wrong := set(filter(None, found.split("/"))) - right:
                must = " or ".join(sorted(right))
                return f"{component} is {what} {wrong.pop()} under {candidate.name}, which allows {must}"
        for path, dtype in precision.parts.items():
            inside = "." in path and not _pattern(path) and path.partition(".")[0] == component
            if inside and dtype not in {*stored.split("/"), *(f.wanted for f in ready.fallbacks)}:
                return f"nothing of {component} is stored in {dtype} under {candidate.name}, which wants {path} so"
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
    """Whether a key of `parts` is a pattern, which may reach into any component."""
    return not {"*", "?", "["}.isdisjoint(path)
