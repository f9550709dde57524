"""What a precision is, which there are, and which one a machine should try first.

Strategies are values in one table; code branches on their fields, never on their names. `plan` is a pure function of
the request and the facts of the hardware: it returns rungs and the reason. Knows nothing of torch, NeMo or processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from .errors import PrecisionError, UsageError, nearest

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
the scores of attention and the subsampling stay float32. Measured on both shipped models by `compare --components`."""

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
            parts=MATRICES,  # a CTC output is small; prediction net and joint are not measured and stay float32
            families={"aed": {**MATRICES, "decoder": "bfloat16"}},
            summary="matrices bfloat16, sums and norms FP32",
        ),
        Precision("phased", phases={"draft": "bfloat16"}, summary="drafts under bfloat16 autocast, final decode FP32"),
        Precision("int8", weights="bfloat16", quantize="int8", summary="int8 matrices and embeddings, rest bfloat16"),
    )
}
"""Every strategy with a name, in the order the report shows them."""

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


class Rejected(msgspec.Struct, frozen=True):
    """A rung that was not taken, or did not hold, and why."""

    rung: str
    kind: str
    """hardware or budget before it was tried; otherwise the kind of a wire.Failed, or died, stalled, garbage."""
    detail: str


class Plan(msgspec.Struct, frozen=True):
    """Rungs in the order to try, and why they are these."""

    requested: str
    rungs: tuple[Rung, ...]
    reason: str
    rejected: tuple[Rejected, ...] = ()


def find(name: str) -> Precision:
    """Return the strategy called `name`. Raises UsageError naming the nearest one."""
    if name in TABLE:
        return TABLE[name]
    raise UsageError(f"unknown strategy {name!r}", nearest(name, (*TABLE, "auto")))


def select(names: str) -> list[Precision]:
    """Return the strategies for "a,b", "all" or a preset's name, without repeats, in the order given."""
    if names == "all":
        return list(TABLE.values())
    words = PRESETS[names].candidates if names in PRESETS else [w.strip() for w in names.split(",") if w.strip()]
    if not words:
        raise UsageError("no strategy given", f"known: {', '.join(TABLE)}, all, {', '.join(PRESETS)}")
    return [find(word) for word in dict.fromkeys(words)]


def with_parts(parts: Mapping[str, str]) -> Precision:
    """Return `selective` with the user's own map of component to dtype. Raises UsageError for an unknown dtype."""
    for component, dtype in parts.items():
        if dtype not in STORED:
            raise UsageError(f"unknown dtype {dtype!r} for component {component!r}", nearest(dtype, STORED))
    base = TABLE["selective"]
    return msgspec.convert({**msgspec.to_builtins(base), "parts": dict(parts), "families": {}}, Precision)


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


def obstacle(precision: Precision, gpu: Gpu) -> str:
    """Return why this card cannot run this precision natively, or "" when it can."""
    capability = ".".join(map(str, gpu.capability))
    if "bfloat16" in dtypes(precision) and not gpu.bfloat16:
        return f"bfloat16 needs compute capability 8.0; {gpu.name} has {capability} and would only emulate it"
    if precision.tf32 and not gpu.tf32:
        return f"TF32 needs compute capability 8.0; {gpu.name} has {capability}"
    return ""


def ladder(precision: Precision) -> list[Precision]:
    """Return the precision and what to demote to: towards range and mantissa, never towards float16.

    Automatic demotion from bfloat16 to float16 is the known way to all-NaN logits, so no ladder contains it.
    """
    steps = {"float16": ("bfloat16", "tf32", "fp32"), "bfloat16": ("tf32", "fp32"), "float32": ("fp32",)}
    low = "float16" if "float16" in dtypes(precision) else "bfloat16" if "bfloat16" in dtypes(precision) else "float32"
    down = ("bfloat16", "tf32", "fp32") if quantizes(precision) else steps[low]
    return [precision, *(TABLE[name] for name in down if name != precision.name)]


def choose(preset: str, gpu: Gpu | None) -> tuple[Precision, str]:
    """Return the strategy that `auto` starts from where nothing was measured yet, and why."""
    if gpu is None:
        return BASELINE, "no GPU: FP32 on the CPU"
    for name in PRESETS[preset].candidates:
        precision = TABLE[name]
        if not obstacle(precision, gpu) and "float16" not in dtypes(precision) and not quantizes(precision):
            return precision, f"preset {preset} on {gpu.name}, by hardware alone: not measured on this machine yet"
    return BASELINE, f"{gpu.name} has neither native bfloat16 nor TF32"


def device_for(wanted: str, gpus: Iterable[Gpu]) -> Gpu | None:
    """Return the card for "auto", "cuda", "cuda:N" or a part of its name; None for the CPU. Raises PrecisionError."""
    cards = list(gpus)
    if wanted == "cpu" or (wanted == "auto" and not cards):
        return None
    if wanted in ("auto", "cuda") and cards:
        return max(cards, key=lambda card: card.free)
    for card in cards:
        if wanted == f"cuda:{card.index}" or (not wanted.startswith("cuda") and wanted.lower() in card.name.lower()):
            return card
    seen = ", ".join(f"cuda:{card.index} ({card.name})" for card in cards) or "none"
    raise PrecisionError(f"no GPU matches device {wanted!r}", f"visible GPUs: {seen}; device = \"cpu\" always works")


def plan(requested: str | Precision, device: str = "auto", gpus: Iterable[Gpu] = (), preset: str = "default") -> Plan:
    """Return the rungs to try for a request on this hardware.

    Args:
        requested: a strategy's name, `auto`, or a Precision of the user's own making.
        device: auto, cpu, cuda, cuda:N or a part of a card's name.
        gpus: the cards that are there.
        preset: the bounds for `auto`.

    Raises:
        UsageError: an unknown strategy. PrecisionError: a device that is not there.
    """
    gpu = device_for(device, gpus)
    if requested == "auto":
        precision, reason = choose(preset, gpu)
    else:
        precision = find(requested) if isinstance(requested, str) else requested
        reason = f"{precision.name} was asked for"
    name = requested if isinstance(requested, str) else requested.name
    if gpu is None:
        rungs = [Rung(precision, "cpu")]
        return Plan(name, tuple(rungs + [Rung(BASELINE, "cpu")] * (precision.name != BASELINE.name)), reason)
    rungs, rejected = [], []
    for step in ladder(precision):
        if why := obstacle(step, gpu):
            rejected.append(Rejected(step.name, "hardware", why))
        else:
            rungs.append(Rung(step, f"cuda:{gpu.index}"))
    rungs.append(Rung(BASELINE, "cpu"))
    if rejected and rejected[0].rung == precision.name:
        reason = f"{rejected[0].detail}; {rungs[0].precision.name} instead"
    return Plan(name, tuple(rungs), reason, tuple(rejected))
