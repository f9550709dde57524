"""What a precision is, which there are, and which one a machine should try first.

Strategies are values in one table; code branches on their fields, never on their names. `plan` is a pure function of
the request and the facts of the hardware: it returns rungs and the reason. Knows nothing of torch, NeMo or processes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from . import spellings
from .errors import ConfigError, PrecisionError, nearest

Dtype = Literal["float32", "float16", "bfloat16"]
Stored = Literal["float32", "float16", "bfloat16", "int8"]
Phase = Literal["warmup", "draft", "final"]

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
"""Bytes of one weight."""

DTYPES = ("float32", "float16", "bfloat16")

STORED = (*DTYPES, "int8")
"""What a component can be stored as. int8: the weights of linear layers and embeddings, the rest of it bfloat16."""


class Precision(msgspec.Struct, frozen=True):
    """How a model's weights are stored and in what its arithmetic runs.

    `weights` is the "-true" side (storage), `autocast` the "-mixed" side (arithmetic over FP32 storage).
    """

    name: str
    weights: Dtype = "float32"
    """Storage of every component that `parts` does not name. The preprocessor is exempt, see `features`."""
    parts: dict[str, Stored] = {}
    """Component (a child of the model, a dotted path below one, or `norms`) -> its storage and arithmetic."""
    families: dict[str, dict[str, Stored]] = {}
    """Family (ctc, rnnt or aed) -> `parts` for it; a plan is made before a family is known, see `for_family`."""
    features: Literal["float32", "weights"] = "float32"
    """float32: the mel front end stays FP32 and only its output is cast; weights: it is cast with the rest."""
    autocast: Dtype | None = None
    """torch.autocast's dtype around every step; storage stays as it is."""
    trainer: str = ""
    """Lightning's name of the precision; its own plugin then enters the context (`via` the trainer)."""
    phases: dict[Phase, Dtype] = {}
    """Phase -> autocast dtype for that phase only; a phase that is not named runs plainly."""
    quantize: Literal["", "int8"] = ""
    """int8: the weights of linear layers and embeddings, the rest as `weights`."""
    tf32: bool = False
    """Allow TF32 in matrix products and convolutions; off means IEEE FP32 everywhere."""
    summary: str = ""
    """One line for tables and help."""


KINDRED = {"tdt": "rnnt", "hybrid": "rnnt"}
"""Family -> the one that it has its components in common with."""

MATRICES: dict[str, Stored] = {
    "encoder.layers.*.feed_forward?": "bfloat16",
    "encoder.layers.*.self_attn.linear_*": "bfloat16",
    "encoder.layers.*.conv": "bfloat16",
}
"""Nearly all bytes of a FastConformer, at half the error of the whole encoder: what the blocks add up to, their norms,
the scores of attention and the subsampling stay float32. Measured on the shipped models by `compare --components`."""

TABLE: dict[str, Precision] = {
    p.name: p
    for p in (
        Precision("fp32", summary="IEEE FP32 everywhere, TF32 off: the baseline"),
        Precision("tf32", tf32=True, summary="FP32 weights, TF32 matrix products and convolutions"),
        Precision("16-mixed", autocast="float16", trainer="16-mixed", summary="Lightning's plugin around every step"),
        Precision("bf16-mixed", autocast="bfloat16", trainer="bf16-mixed", summary="the same, bfloat16"),
        Precision("half", weights="float16", summary="float16 weights and arithmetic, FP32 features"),
        Precision("bfloat16", weights="bfloat16", summary="bfloat16 weights and arithmetic, FP32 features"),
        Precision("half-naive", weights="float16", features="weights", summary="a bare model.half(), features and all"),
        Precision("autocast-fp16", autocast="float16", summary="torch.autocast over FP32 weights"),
        Precision("autocast-bf16", autocast="bfloat16", summary="the same, bfloat16"),
        Precision(
            "selective",
            parts=MATRICES,  # CTC output, prediction net and joint hold few bytes, and stay
            families={"aed": {**MATRICES, "decoder": "bfloat16"}},
            summary="matrices bfloat16, sums and norms FP32",
        ),
        Precision("phased", phases={"draft": "bfloat16"}, summary="drafts under bfloat16 autocast, final decode FP32"),
        Precision("int8", weights="bfloat16", quantize="int8", summary="int8 matrices and embeddings, rest bfloat16"),
    )
}
"""Every strategy with a name, in the order the report shows them."""

MEMORY = ("out-of-memory", "no-room", "budget")
"""Kinds of failure after which only a rung that needs less can help."""

BASELINE = TABLE["fp32"]


class Preset(msgspec.Struct, frozen=True):
    """A bound on the price and the strategies that may be tried under it, cheapest memory first."""

    name: str
    candidates: tuple[str, ...]
    max_wer_delta: float
    """Absolute points of WER that a candidate may cost against FP32."""


PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset("conservative", ("tf32", "fp32"), 0.0),
        Preset("default", ("bfloat16", "selective", "tf32", "fp32"), 0.5),
        Preset("aggressive", ("int8", "bfloat16", "half", "selective", "tf32", "fp32"), 1.0),
    )
}


ON_CPU = ("int8", "bfloat16", "fp32")
"""Candidates that make sense on a processor: it has no TF32, and halves of float16 only by way of float32."""


class Evidence(msgspec.Struct, frozen=True):
    """What was measured on this machine, as far as a plan needs it."""

    chosen: str
    """The strategy that `auto` found best."""
    reason: str
    """By what figures, one clause."""
    refused: dict[str, str] = {}
    """Strategy -> why it did not qualify; no rung falls to it."""
    stale: str = ""
    """Why it does not hold any more; it then decides nothing and is only told."""


class Gpu(msgspec.Struct, frozen=True):
    """The facts of one card that a plan needs, as NVML tells them."""

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


class Rung(msgspec.Struct, frozen=True):
    """One thing to try: a precision on a device."""

    precision: Precision
    device: str
    """cpu, or cuda:N."""

    @property
    def name(self) -> str:
        """The strategy, with the device where it is not the obvious one."""
        return self.precision.name if self.device != "cpu" else f"{self.precision.name} on cpu"


def index_of(device: str) -> int:
    """Return which card a device is: N of cuda:N; 0 of cuda."""
    return int(device.partition(":")[2] or 0)


class Rejected(msgspec.Struct, frozen=True):
    """A rung that was not taken, or did not hold, and why."""

    rung: str
    kind: str
    """Why it is not in service.

    hardware, budget, no-room or measured before it was tried; that of a wire.Failed, or died, stalled, garbage, dtypes;
    or one of the triggers': empty, failures, slow, memory, budget, changed.
    """
    detail: str
    hint: str = ""
    """What helps; empty where nothing is known to."""
    figures: dict[str, float] = {}
    """What a trigger decided by."""


class Need(msgspec.Struct, frozen=True):
    """What a strategy needs of a card."""

    bytes: int
    """Of the whole process: weights, activations, the CUDA context and its libraries."""
    measured: bool = False
    """True where `asrd compare` measured it on this card, False where it is an estimate."""

    def __str__(self) -> str:
        return f"{self.bytes / (1 << 20):.0f} MiB ({'measured' if self.measured else 'estimated'})"


class Plan(msgspec.Struct, frozen=True):
    """Rungs in the order to try, and why they are these."""

    requested: str
    rungs: tuple[Rung, ...]
    reason: str
    rejected: tuple[Rejected, ...] = ()
    smaller: tuple[Rung, ...] = ()
    """What the preset allows beside the rungs; taken where memory is short and they need less."""
    needs: dict[str, Need] = {}
    """Strategy -> what it needs of the card, as far as that is known."""


def canonical(name: str) -> str:
    """Return the strategy's own name for what a person calls it ("fp16", "BF16"); an unknown word as it came."""
    return spellings.strategy(name, (*TABLE, "auto"))


def find(name: str) -> Precision:
    """Return the strategy called `name`, or by another spelling of it. Raises ConfigError naming the nearest one."""
    if (own := canonical(name)) in TABLE:
        return TABLE[own]
    raise ConfigError(f"unknown strategy {name!r}", nearest(name, (*TABLE, "auto", *ALSO), LISTING))


def select(names: str) -> list[Precision]:
    """Return the strategies for "a,b", without repeats, in the order given; `all` and presets may stand among them.

    Raises ConfigError.
    """
    groups = {name: preset.candidates for name, preset in PRESETS.items()} | {"all": tuple(TABLE)}
    known = (*TABLE, *groups)
    words = [spellings.strategy(word, (*known, "auto")) for word in names.split(",") if word.strip()]
    if not words:
        raise ConfigError("no strategy is named", f"name some, or a preset ({', '.join(PRESETS)}), or all")
    for word in words:
        if word == "auto":  # which it is there, is what a comparison is to find out
            raise ConfigError("auto cannot be compared", f"name strategies, a preset ({', '.join(PRESETS)}), or all")
        if word not in known:
            raise ConfigError(f"unknown strategy {word.strip()!r}", nearest(word, (*known, *ALSO), LISTING))
    return [TABLE[name] for name in dict.fromkeys(name for word in words for name in groups.get(word, (word,)))]


ALSO = ("fp16", "bf16", "float16", "float32")
"""Other spellings that a hint may name."""

LISTING = "asrd plan"
"""The command that lists the strategies."""


def with_parts(parts: Mapping[str, str]) -> Precision:
    """Return `selective` with the user's own map of component to dtype. Raises ConfigError for an unknown dtype."""
    own = {component: spellings.dtype(dtype, STORED) for component, dtype in parts.items()}
    for component, dtype in own.items():
        if dtype not in STORED:
            raise ConfigError(f"unknown dtype {dtype!r} for component {component!r}", nearest(dtype, STORED))
    base = TABLE["selective"]
    return msgspec.convert({**msgspec.to_builtins(base), "parts": own, "families": {}}, Precision)


def for_family(precision: Precision, family: str) -> Precision:
    """Return the precision as it is for models of one family, as `checkpoint` names it; `families` is empty then."""
    parts = precision.families.get(KINDRED.get(family, family), precision.parts)
    return msgspec.structs.replace(precision, parts=parts, families={})


def quantizes(precision: Precision) -> bool:
    """Return whether anything is stored as int8."""
    return bool(precision.quantize) or "int8" in _maps(precision)


def beside_int8(precision: Precision) -> Dtype:
    """Return what is computed in, and what is not a matrix stored as, where int8 is asked for."""
    return precision.weights if precision.quantize else "bfloat16"


def dtypes(precision: Precision) -> set[str]:
    """Return every dtype that a precision computes in."""
    used = {precision.weights, *precision.phases.values(), *(_maps(precision) - {"int8"})}
    used |= {beside_int8(precision)} if quantizes(precision) else set()
    return used | ({precision.autocast} if precision.autocast else set())


def _maps(precision: Precision) -> set[str]:
    """Return what the maps of a precision ask for, whatever the family."""
    return {dtype for parts in (precision.parts, *precision.families.values()) for dtype in parts.values()}


def obstacle(precision: Precision, gpu: Gpu | None) -> str:
    """Return why this card, or the CPU, cannot run this precision natively, or "" when it can."""
    if gpu is None:
        return "TF32 is a unit of CUDA cards, and a CPU has none" if precision.tf32 else ""
    capability = ".".join(map(str, gpu.capability))
    if gpu.mode == "prohibited":
        return f"{gpu.name} is in the compute mode prohibited: no process may use it"
    if "bfloat16" in dtypes(precision) and not gpu.bfloat16:
        return f"bfloat16 needs compute capability 8.0; {gpu.name} has {capability} and would only emulate it"
    if precision.tf32 and not gpu.tf32:
        return f"TF32 needs compute capability 8.0; {gpu.name} has {capability}"
    return ""


def _instead(precision: Precision) -> str:
    """Return what the library makes of a precision on a CPU, as a clause to follow a reason; "" where it takes it."""
    mixed = precision.trainer and precision.autocast == "float16"
    return "; on a CPU Lightning makes bfloat16 of its float16" if mixed else ""


def ladder(precision: Precision) -> list[Precision]:
    """Return the precision and what to demote to: towards range and mantissa, never towards float16.

    Automatic demotion from bfloat16 to float16 is the known way to all-NaN logits, so no ladder contains it.
    """
    steps = {"float16": ("bfloat16", "tf32", "fp32"), "bfloat16": ("tf32", "fp32"), "float32": ("fp32",)}
    low = "float16" if "float16" in dtypes(precision) else "bfloat16" if "bfloat16" in dtypes(precision) else "float32"
    down = ("bfloat16", "tf32", "fp32") if quantizes(precision) else steps[low]
    return [precision, *(TABLE[name] for name in down if name != precision.name)]


def candidates(preset: str, gpu: Gpu | None) -> list[Precision]:
    """Return what `auto` may choose among on a card, or on the CPU; FP32 is always one of them and the last."""
    names = [name for name in PRESETS[preset].candidates if gpu is not None or name in ON_CPU]
    return [TABLE[name] for name in dict.fromkeys([*names, BASELINE.name])]


def choose(
    preset: str, gpu: Gpu | None, evidence: Evidence | None = None, why_cpu: str = "no GPU"
) -> tuple[Precision, str]:
    """Return the strategy that `auto` starts from and why: by what was measured, else by hardware alone.

    Args:
        why_cpu: why it is the CPU, where there is no `gpu`.
    """
    options = candidates(preset, gpu)
    if len(options) == 1:
        return BASELINE, f"preset {preset} leaves only FP32 on {gpu.name if gpu else 'the CPU'}"
    if evidence is not None and not evidence.stale:
        for precision in options:
            if precision.name == evidence.chosen and not obstacle(precision, gpu):
                return precision, evidence.reason
    precision, reason = _by_hardware(preset, gpu) if gpu else (BASELINE, f"{why_cpu}, so FP32 on the CPU")
    stale = f"; what was measured is stale: {evidence.stale}" if evidence is not None and evidence.stale else ""
    return precision, f"{reason}; not measured: asrd tune{stale}"


def _by_hardware(preset: str, gpu: Gpu) -> tuple[Precision, str]:
    """Return the first candidate that the card runs and that may be taken unmeasured, float16 and int8 may not."""
    passed: list[str] = []
    for precision in (one for one in candidates(preset, gpu)[:-1] if not obstacle(one, gpu)):
        if "float16" not in dtypes(precision) and not quantizes(precision):
            never = f"; {' or '.join(passed)} must be measured first" if passed else ""
            return precision, f"preset {preset} on {gpu.name}, by hardware alone{never}"
        passed.append(precision.name)
    never = f"; {' or '.join(passed)} must be measured first" if passed else ""
    return BASELINE, f"{gpu.name} has neither native bfloat16 nor TF32{never}"


def device_for(wanted: str, gpus: Iterable[Gpu]) -> Gpu | None:
    """Return the card for "auto", "cuda", "cuda:N", a part of its name or the beginning of its UUID; None for the CPU.

    Of several that fit, the one with the most memory free. Raises PrecisionError where none fits.
    """
    cards = list(gpus)
    if wanted == "cpu" or (wanted == "auto" and not cards):
        return None
    if wanted in ("auto", "cuda") and cards:
        return max(cards, key=lambda card: card.free)
    fitting = [card for card in cards if _means(wanted, card)]
    if fitting:
        return max(fitting, key=lambda card: card.free)
    seen = ", ".join(f"cuda:{card.index} ({card.name})" for card in cards) or "none"
    raise PrecisionError(f"no GPU matches device {wanted!r}", f"visible GPUs: {seen}; device = \"cpu\" always works")


def _means(wanted: str, card: Gpu) -> bool:
    """Return whether a device's index, name or UUID means this card."""
    if wanted.startswith("cuda"):
        return wanted == f"cuda:{card.index}"
    word = wanted.lower()
    return word in card.name.lower() or (word[:4] in ("gpu-", "mig-") and card.uuid.lower().startswith(word))


def width(precision: Precision) -> float:
    """Return roughly the bytes of a weight, which orders strategies by what they need where nothing better is known."""
    if precision.quantize:
        return 1.0
    stored = [BYTES[precision.weights], *(BYTES[dtype] for part, dtype in precision.parts.items() if part != "norms")]
    return sum(stored) / len(stored) + (0.1 if precision.autocast or precision.phases else 0.0)


def needs_less(plan: Plan, rung: Rung, than: Rung) -> bool:
    """Return whether a rung needs less memory than another one on the same device.

    It must store less; a figure can only speak against it, and only beside one of its own kind.
    """
    first, second = plan.needs.get(rung.precision.name), plan.needs.get(than.precision.name)
    if first and second and first.measured == second.measured and first.bytes >= second.bytes:
        return False
    return width(rung.precision) < width(than.precision)


def after(plan: Plan, rungs: Sequence[Rung], kind: str, out: Collection[str] = ()) -> list[Rung]:
    """Return what is left to try when the first of these rungs has failed.

    Most failures lead to the next rung, which is safer. Want of memory leads to the next that needs less, the largest
    of those first: FP32 after bfloat16 would fail the same way. A card that torch cannot use at all is left.

    Args:
        kind: of the failure.
        out: names of rungs that failed before and are not to come back.
    """
    failed, *rest = rungs
    if kind == "no-device":
        return [rung for rung in rest if rung.device != failed.device]
    if kind not in MEMORY or failed.device == "cpu":
        return rest
    known = [*rest, *(rung for rung in plan.smaller if rung not in rest and rung.name not in out)]
    less = [rung for rung in known if rung.device == failed.device and needs_less(plan, rung, failed)]
    return [*_largest_first(plan, less), *(rung for rung in rest if rung.device != failed.device)]


def _largest_first(plan: Plan, rungs: Iterable[Rung]) -> list[Rung]:
    def size(rung: Rung) -> tuple[float, float]:
        need = plan.needs.get(rung.precision.name)
        return width(rung.precision), need.bytes if need else 0.0

    return sorted(rungs, key=size, reverse=True)


def fitted(plan: Plan, limit: int, allowed: str = "vram_budget allows") -> Plan:
    """Return the plan without the rungs on a card that need more than `limit` bytes, by the figures in `needs`.

    Where none is left on the card, what the preset allows and needs less takes their place.

    Args:
        allowed: what the limit is, as in "vram_budget allows", for the sentence.
    """

    def over(rung: Rung) -> str:
        need = plan.needs.get(rung.precision.name)
        if rung.device == "cpu" or need is None or need.bytes <= limit:
            return ""
        return f"would need {need}; {allowed} {limit / (1 << 20):.0f} MiB"

    kept = [rung for rung in plan.rungs if not over(rung)]
    refused = {one.rung for one in plan.rejected}
    smaller = [rung for rung in plan.smaller if not over(rung) and rung not in kept and rung.name not in refused]
    if all(rung.device == "cpu" for rung in kept):
        kept, smaller = [*_largest_first(plan, smaller), *kept], []
    rejected = [Rejected(rung.name, "budget", over(rung)) for rung in plan.rungs if over(rung)]
    first = over(plan.rungs[0])
    return msgspec.structs.replace(
        plan,
        rungs=tuple(kept),
        rejected=(*plan.rejected, *rejected),
        smaller=tuple(smaller),
        reason=f"{plan.rungs[0].name} {first}; {kept[0].name} instead" if first and kept else plan.reason,
    )


def _smaller(precision: Precision, gpu: Gpu, preset: str) -> tuple[Rung, ...]:
    """Return the preset's other candidates that the card can run; float16 is not for falling back to."""
    known = {step.name for step in ladder(precision)}
    able = [TABLE[name] for name in PRESETS[preset].candidates if name not in known]
    able = [other for other in able if not obstacle(other, gpu) and "float16" not in dtypes(other)]
    return tuple(Rung(other, f"cuda:{gpu.index}") for other in able)


def plan(
    requested: str | Precision,
    device: str = "auto",
    gpus: Iterable[Gpu] = (),
    preset: str = "default",
    evidence: Evidence | None = None,
    lack: str = "",
) -> Plan:
    """Return the rungs to try for a request on this hardware.

    Args:
        requested: a strategy's name, `auto`, or a Precision of the user's own making.
        device: auto, cpu, cuda, cuda:N or a part of a card's name.
        gpus: the cards that are there.
        preset: the bounds for `auto`.
        evidence: what was measured of `auto` on this device.
        lack: why none of the cards of this machine can be used, where it has some, and what helps.

    Raises:
        ConfigError: an unknown strategy. PrecisionError: a device that is not there.
    """
    gpu = device_for(device, gpus)
    if requested == "auto":
        why_cpu = "device = cpu" if device == "cpu" else "no usable GPU" if lack else "no GPU"
        precision, reason = choose(preset, gpu, evidence, why_cpu)
    else:
        precision = find(requested) if isinstance(requested, str) else requested
        reason = f"{precision.name} was asked for"
    name = requested if isinstance(requested, str) else requested.name
    if gpu is None:
        return _on_cpu(name, precision, reason, f"; {lack}" if lack else "")
    rungs, rejected = [], []
    unfit = evidence.refused if requested == "auto" and evidence is not None and not evidence.stale else {}
    for step in ladder(precision):
        if why := obstacle(step, gpu):
            rejected.append(Rejected(step.name, "hardware", why))
        elif step.name in unfit and step.name not in (precision.name, BASELINE.name):
            rejected.append(Rejected(step.name, "measured", unfit[step.name]))
        else:
            rungs.append(Rung(step, f"cuda:{gpu.index}"))
    rungs.append(Rung(BASELINE, "cpu"))
    if rejected and rejected[0].rung == precision.name:
        reason = f"{rejected[0].detail}; {rungs[0].name} instead"
    smaller = tuple(rung for rung in _smaller(precision, gpu, preset) if rung.precision.name not in unfit)
    return Plan(name, tuple(rungs), reason, tuple(rejected), smaller)


def _on_cpu(name: str, precision: Precision, reason: str, lack: str) -> Plan:
    """Return the rungs where there is only the CPU: what was asked for, as far as it has that, and FP32."""
    if why := obstacle(precision, None):
        only = Rung(BASELINE, "cpu")
        return Plan(name, (only,), f"{why}; {only.name} instead{lack}", (Rejected(precision.name, "hardware", why),))
    steps = [precision] if precision.name == BASELINE.name else [precision, BASELINE]
    return Plan(name, tuple(Rung(step, "cpu") for step in steps), reason + _instead(precision) + lack)
