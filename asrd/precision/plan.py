"""Which precision a machine should try first, and which follow it.

Code branches on the fields of a strategy, never on its name. `plan` is a
pure function of the request and the facts of the hardware: it returns candidates and the reason.
Knows nothing of torch, NeMo or processes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from asrd.errors import PrecisionError
from asrd.precision.strategies import (
    AUTO_PRESETS,
    CPU_CANDIDATES,
    FP32_BASELINE,
    RELATED_FAMILIES,
    STRATEGY_TABLE,
    Precision,
    dtypes,
    find,
    quantizes,
)
from asrd.text.sizes import mib


class Evidence(msgspec.Struct, frozen=True):
    """What was measured on this machine, as far as a plan needs it."""

    chosen: str
    """The strategy that `auto` found best."""
    reason: str
    """By what figures, one clause."""
    refused: dict[str, str] = {}
    """Strategy -> why it did not qualify; no candidate falls to it."""
    stale: str = ""
    """Why it does not hold any more; it then decides nothing and is only shown."""


class Gpu(msgspec.Struct, frozen=True):
    """The facts of one card that a plan needs, as NVML reports them."""

    index: int
    name: str
    capability: tuple[int, int]
    total: int
    """Bytes on the card."""
    free: int
    """Bytes free now."""
    driver: str = ""
    uuid: str = ""
    """GPU-... or, of a part of a card, MIG-...: unlike its name, it belongs to no other."""
    mode: Literal["", "exclusive", "prohibited"] = ""
    """Compute mode, where it is not for everybody: one process at a time, or none."""

    @property
    def bfloat16(self) -> bool:
        """Native bfloat16; older cards only emulate it, and torch's own check says True there."""
        return self.capability >= (8, 0)

    @property
    def tf32(self) -> bool:
        """TF32 tensor cores."""
        return self.capability >= (8, 0)


class Candidate(msgspec.Struct, frozen=True):
    """One thing to try: a precision on a device."""

    precision: Precision
    device: str
    """cpu, or cuda:N."""

    @property
    def name(self) -> str:
        """The strategy, with the device where it is not the obvious one."""
        if self.device == "cpu":
            return f"{self.precision.name} on cpu"
        return self.precision.name


class Rejected(msgspec.Struct, frozen=True):
    """A candidate that was not tried, or that failed, and why."""

    candidate: str
    kind: str
    """Why it is not in service.

    hardware, budget, no-room or measured before it was tried; that of a protocol.Failed, or died,
    stalled, garbage, dtypes; or one of the triggers': empty, failures, slow, memory, budget,
    changed.
    """
    detail: str
    hint: str = ""
    """What helps; empty where there is no advice."""
    figures: dict[str, float] = {}
    """What a trigger decided by."""


class Need(msgspec.Struct, frozen=True):
    """What a strategy needs of a card."""

    bytes: int
    """Of the whole process: weights, activations, the CUDA context and its libraries."""
    measured: bool = False
    """True where `asrd compare` measured it on this card, False where it is an estimate."""

    def __str__(self) -> str:
        source = "measured" if self.measured else "estimated"
        return f"{mib(self.bytes)} ({source})"


class Plan(msgspec.Struct, frozen=True):
    """Candidates in the order to try, and why they are these."""

    requested: str
    candidates: tuple[Candidate, ...]
    reason: str
    rejected: tuple[Rejected, ...] = ()
    smaller: tuple[Candidate, ...] = ()
    """What the preset allows beside the candidates; used where memory is short and they need
    less."""
    needs: dict[str, Need] = {}
    """Strategy -> what it needs of the card, as far as there are figures."""

    def need_of(self, candidate: Candidate) -> Need | None:
        """Return what a candidate needs of the card; None without a figure."""
        return self.needs.get(candidate.precision.name)


def names_of(rejected: Iterable[Rejected]) -> set[str]:
    """Return the names of the candidates that were rejected."""
    return {one.candidate for one in rejected}


def without(candidates: Iterable[Candidate], names: Collection[str]) -> list[Candidate]:
    """Return the candidates whose name is none of these, in order."""
    return [candidate for candidate in candidates if candidate.name not in names]


def with_names(candidates: Iterable[Candidate], names: Collection[str]) -> list[Candidate]:
    """Return the candidates whose name is one of these, in order."""
    return [candidate for candidate in candidates if candidate.name in names]


def elsewhere(candidates: Iterable[Candidate], device: str) -> list[Candidate]:
    """Return the candidates of all other devices, in order."""
    return [candidate for candidate in candidates if candidate.device != device]


def for_family(precision: Precision, family: str) -> Precision:
    """Return the precision as it is for models of one family, as `checkpoint` names it; `families`
    is empty then."""
    parts = precision.families.get(RELATED_FAMILIES.get(family, family), precision.parts)
    return msgspec.structs.replace(precision, parts=parts, families={})


def obstacle(precision: Precision, gpu: Gpu | None) -> str:
    """Return why this card, or the CPU, cannot run this precision natively, or "" when it can."""
    if gpu is None:
        return _cpu_obstacle(precision)
    capability = ".".join(map(str, gpu.capability))
    if gpu.mode == "prohibited":
        return f"{gpu.name} is in the compute mode prohibited: no process may use it"
    if "bfloat16" in dtypes(precision) and not gpu.bfloat16:
        return f"bfloat16 needs compute capability 8.0; {gpu.name} has {capability} and would only emulate it"
    if precision.tf32 and not gpu.tf32:
        return f"TF32 needs compute capability 8.0; {gpu.name} has {capability}"
    return ""


def _cpu_obstacle(precision: Precision) -> str:
    """Return why the CPU cannot run this precision; "" when it can."""
    if precision.tf32:
        return "TF32 is a unit of CUDA cards, and a CPU has none"
    return ""


def _instead(precision: Precision) -> str:
    """Return what the library makes of a precision on a CPU, as a clause to follow a reason; ""
    where it runs it as it is."""
    if precision.trainer and precision.autocast == "float16":
        return "; on a CPU Lightning makes bfloat16 of its float16"
    return ""


def fallback_order(precision: Precision) -> list[Precision]:
    """Return the precision and what to fall back to: towards range and mantissa, never towards
    float16.

    A fallback from bfloat16 to float16 is a frequent cause of all-NaN logits, so no fallback order
    contains it.
    """
    order = [precision]
    for name in _safer_names(precision):
        if name != precision.name:
            order.append(STRATEGY_TABLE[name])
    return order


def _safer_names(precision: Precision) -> tuple[str, ...]:
    """Return the strategies with more range or mantissa than the lowest dtype of a precision."""
    used = dtypes(precision)
    if quantizes(precision) or "float16" in used:
        return ("bfloat16", "tf32", "fp32")
    if "bfloat16" in used:
        return ("tf32", "fp32")
    return ("fp32",)


def candidates(preset: str, gpu: Gpu | None) -> list[Precision]:
    """Return what `auto` may choose among on a card, or on the CPU; FP32 is always one of them and
    the last."""
    found: list[Precision] = []
    for name in AUTO_PRESETS[preset].candidates:
        if name != FP32_BASELINE.name and (gpu is not None or name in CPU_CANDIDATES):
            found.append(STRATEGY_TABLE[name])
    return [*found, FP32_BASELINE]


def choose(
    preset: str, gpu: Gpu | None, evidence: Evidence | None = None, why_cpu: str = "no GPU"
) -> tuple[Precision, str]:
    """Return the strategy that `auto` starts from and why: by what was measured, else by hardware
    alone.

    Args:
        why_cpu: why it is the CPU, where there is no `gpu`.
    """
    options = candidates(preset, gpu)
    if len(options) == 1:
        where = gpu.name if gpu else "the CPU"
        return FP32_BASELINE, f"preset {preset} leaves only FP32 on {where}"
    if evidence is not None and not evidence.stale:
        for precision in options:
            if precision.name == evidence.chosen and not obstacle(precision, gpu):
                return precision, evidence.reason
    if gpu is None:
        precision, reason = FP32_BASELINE, f"{why_cpu}, so FP32 on the CPU"
    else:
        precision, reason = _by_hardware(preset, gpu)
    reason += "; not measured: asrd tune"
    if evidence is not None and evidence.stale:
        reason += f"; what was measured is stale: {evidence.stale}"
    return precision, reason


def _by_hardware(preset: str, gpu: Gpu) -> tuple[Precision, str]:
    """Return the first candidate that the card runs and that may be chosen without a measurement.

    float16 and int8 may not.
    """
    passed: list[str] = []
    for precision in candidates(preset, gpu)[:-1]:
        if obstacle(precision, gpu):
            continue
        if "float16" not in dtypes(precision) and not quantizes(precision):
            never = _must_be_measured(passed)
            return precision, f"preset {preset} on {gpu.name}, by hardware alone{never}"
        passed.append(precision.name)
    never = _must_be_measured(passed)
    return FP32_BASELINE, f"{gpu.name} has neither native bfloat16 nor TF32{never}"


def _must_be_measured(names: Sequence[str]) -> str:
    """Return the clause about strategies that were passed over; "" where there are none."""
    if not names:
        return ""
    return f"; {' or '.join(names)} must be measured first"


def device_for(wanted: str, gpus: Iterable[Gpu]) -> Gpu | None:
    """Return the card for "auto", "cuda", "cuda:N", a part of its name or the beginning of its
    UUID; None for the CPU.

    Of several that fit, the one with the most memory free. Raises PrecisionError where none fits.
    """
    cards = list(gpus)
    if wanted == "cpu" or (wanted == "auto" and not cards):
        return None
    fitting = cards
    if wanted not in ("auto", "cuda"):
        fitting = [card for card in cards if _means(wanted, card)]
    if fitting:
        return max(fitting, key=lambda card: card.free)
    visible = ", ".join(f"cuda:{card.index} ({card.name})" for card in cards) or "none"
    hint = f'visible GPUs: {visible}; device = "cpu" always works'
    raise PrecisionError(f"no GPU matches device {wanted!r}", hint)


def _means(wanted: str, card: Gpu) -> bool:
    """Return whether a device's index, name or UUID means this card."""
    if wanted.startswith("cuda"):
        return wanted == f"cuda:{card.index}"
    word = wanted.lower()
    return word in card.name.lower() or (
        word[:4] in ("gpu-", "mig-") and card.uuid.lower().startswith(word)
    )


def _smaller(
    precision: Precision, gpu: Gpu, preset: str, unfit: Collection[str]
) -> tuple[Candidate, ...]:
    """Return the preset's other candidates that the card can run; float16 is not for falling back
    to.

    Args:
        unfit: names of strategies that a measurement refused.
    """
    order = {step.name for step in fallback_order(precision)}
    found: list[Candidate] = []
    for name in AUTO_PRESETS[preset].candidates:
        other = STRATEGY_TABLE[name]
        if name in order or name in unfit or "float16" in dtypes(other):
            continue
        if not obstacle(other, gpu):
            found.append(Candidate(other, f"cuda:{gpu.index}"))
    return tuple(found)


def plan(
    requested: str | Precision,
    gpu: Gpu | None = None,
    preset: str = "default",
    evidence: Evidence | None = None,
    lack: str = "",
    why_cpu: str = "no GPU",
) -> Plan:
    """Return the candidates to try for a request on this hardware.

    Args:
        requested: a strategy's name, `auto`, or a Precision of the user's own making.
        gpu: the card that is meant; None for the CPU.
        preset: the bounds for `auto`.
        evidence: what was measured of `auto` on this device.
        lack: why none of the cards of this machine can be used, where it has some, and what helps.
        why_cpu: why it is the CPU, where it is, in few words.

    Raises ConfigError: an unknown strategy.
    """
    unfit: dict[str, str] = {}
    if requested == "auto":
        name = requested
        precision, reason = choose(preset, gpu, evidence, why_cpu)
        if evidence is not None and not evidence.stale:
            unfit = evidence.refused
    elif isinstance(requested, str):
        name, precision = requested, find(requested)
        reason = f"{precision.name} was asked for"
    else:
        name, precision = requested.name, requested
        reason = f"{precision.name} was asked for"
    if gpu is None:
        return _on_cpu(name, precision, reason, lack)
    candidates, rejected = _sorted_out(precision, gpu, unfit)
    if rejected and rejected[0].candidate == precision.name:
        reason = f"{rejected[0].detail}; {candidates[0].name} instead"
    smaller = _smaller(precision, gpu, preset, unfit)
    return Plan(name, tuple(candidates), reason, tuple(rejected), smaller)


def _sorted_out(
    precision: Precision, gpu: Gpu, unfit: Mapping[str, str]
) -> tuple[list[Candidate], list[Rejected]]:
    """Return the candidates of a fallback order, FP32 on the CPU as the last, and what is none.

    Args:
        unfit: strategy -> why a measurement refused it.
    """
    candidates: list[Candidate] = []
    rejected: list[Rejected] = []
    for step in fallback_order(precision):
        if why := obstacle(step, gpu):
            rejected.append(Rejected(step.name, "hardware", why))
        elif step.name in unfit and step.name not in (precision.name, FP32_BASELINE.name):
            rejected.append(Rejected(step.name, "measured", unfit[step.name]))
        else:
            candidates.append(Candidate(step, f"cuda:{gpu.index}"))
    candidates.append(Candidate(FP32_BASELINE, "cpu"))
    return candidates, rejected


def _on_cpu(name: str, precision: Precision, reason: str, lack: str) -> Plan:
    """Return the candidates where there is only the CPU: what was asked for, as far as it has that,
    and FP32."""
    if lack:
        lack = f"; {lack}"
    fp32 = Candidate(FP32_BASELINE, "cpu")
    if why := obstacle(precision, None):
        rejected = Rejected(precision.name, "hardware", why)
        return Plan(name, (fp32,), f"{why}; {fp32.name} instead{lack}", (rejected,))
    candidates: tuple[Candidate, ...] = (fp32,)
    if precision.name != FP32_BASELINE.name:
        candidates = (Candidate(precision, "cpu"), fp32)
    return Plan(name, candidates, reason + _instead(precision) + lack)
