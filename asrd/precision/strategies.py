"""Precision strategies as values: dtypes, storage, phases, presets and their names (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

import msgspec

from asrd.errors import ConfigError, nearest
from asrd.precision import spellings

Dtype = Literal["float32", "float16", "bfloat16"]
Stored = Literal["float32", "float16", "bfloat16", "int8"]
Phase = Literal["warmup", "partial", "final"]

WEIGHT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
"""Bytes of one weight."""

FLOAT_DTYPES = ("float32", "float16", "bfloat16")

STORAGE_DTYPES = (*FLOAT_DTYPES, "int8")
"""What a component can be stored as. int8: the weights of linear layers and embeddings, the rest of
it bfloat16."""


class Precision(msgspec.Struct, frozen=True):
    """How a model's weights are stored and in what its arithmetic runs.

    `weights` is the "-true" side (storage), `autocast` the "-mixed" side (arithmetic over FP32
    storage).
    """

    name: str
    weights: Dtype = "float32"
    """Storage of every component that `parts` does not name. The preprocessor is exempt, see
    `features`."""
    parts: dict[str, Stored] = {}
    """Component (a child of the model, a dotted path below one, or `norms`) -> its storage and
    arithmetic."""
    families: dict[str, dict[str, Stored]] = {}
    """Family (ctc, rnnt or aed) -> `parts` for it; a plan is made before the family is read, see
    `for_family`."""
    features: Literal["float32", "weights"] = "float32"
    """float32: the mel front end stays FP32 and only its output is cast; weights: it is cast with
    the rest."""
    autocast: Dtype | None = None
    """torch.autocast's dtype around every step; storage stays as it is."""
    trainer: str = ""
    """Lightning's name of the precision; its own plugin then enters the context (`via` the
    trainer)."""
    phases: dict[Phase, Dtype] = {}
    """Phase -> autocast dtype for that phase only; a phase that is not named runs plainly."""
    quantize: Literal["", "int8"] = ""
    """int8: the weights of linear layers and embeddings, the rest as `weights`."""
    tf32: bool = False
    """Allow TF32 in matrix products and convolutions; off means IEEE FP32 everywhere."""
    summary: str = ""
    """One line for tables and help."""


RELATED_FAMILIES = {"tdt": "rnnt", "hybrid": "rnnt"}
"""Family -> the one that it has its components in common with."""

MATRIX_PARTS: dict[str, Stored] = {
    "encoder.layers.*.feed_forward?": "bfloat16",
    "encoder.layers.*.self_attn.linear_*": "bfloat16",
    "encoder.layers.*.conv": "bfloat16",
}
"""Nearly all bytes of a FastConformer, at half the error of the whole encoder: what the blocks add
up to, their norms, the scores of attention and the subsampling stay float32. Measured on the
shipped models by `compare --components`."""

Named = TypeVar("Named", "Precision", "Preset")


def _by_name(entries: Iterable[Named]) -> dict[str, Named]:
    return {one.name: one for one in entries}


STRATEGY_TABLE: dict[str, Precision] = _by_name(
    (
        Precision("fp32", summary="IEEE FP32 everywhere, TF32 off: the baseline"),
        Precision("tf32", tf32=True, summary="FP32 weights, TF32 matrix products and convolutions"),
        Precision(
            "16-mixed",
            autocast="float16",
            trainer="16-mixed",
            summary="Lightning's plugin around every step",
        ),
        Precision(
            "bf16-mixed", autocast="bfloat16", trainer="bf16-mixed", summary="the same, bfloat16"
        ),
        Precision(
            "half", weights="float16", summary="float16 weights and arithmetic, FP32 features"
        ),
        Precision(
            "bfloat16", weights="bfloat16", summary="bfloat16 weights and arithmetic, FP32 features"
        ),
        Precision(
            "half-naive",
            weights="float16",
            features="weights",
            summary="a bare model.half(), features and all",
        ),
        Precision("autocast-fp16", autocast="float16", summary="torch.autocast over FP32 weights"),
        Precision("autocast-bf16", autocast="bfloat16", summary="the same, bfloat16"),
        Precision(
            "selective",
            parts=MATRIX_PARTS,  # CTC output, prediction net and joint hold few bytes, and stay
            families={"aed": {**MATRIX_PARTS, "decoder": "bfloat16"}},
            summary="matrices bfloat16, sums and norms FP32",
        ),
        Precision(
            "phased",
            phases={"partial": "bfloat16"},
            summary="partial results under bfloat16 autocast, final ones FP32",
        ),
        Precision(
            "int8",
            weights="bfloat16",
            quantize="int8",
            summary="int8 matrices and embeddings, rest bfloat16",
        ),
    )
)
"""Every strategy with a name, in the order the report shows them."""

FP32_BASELINE = STRATEGY_TABLE["fp32"]


class Preset(msgspec.Struct, frozen=True):
    """A bound on the price and the strategies that may be tried under it, cheapest memory first."""

    name: str
    candidates: tuple[str, ...]
    max_wer_delta: float
    """Absolute points of WER that a candidate may cost against FP32."""


AUTO_PRESETS: dict[str, Preset] = _by_name(
    (
        Preset("conservative", ("tf32", "fp32"), 0.0),
        Preset("default", ("bfloat16", "selective", "tf32", "fp32"), 0.5),
        Preset("aggressive", ("int8", "bfloat16", "half", "selective", "tf32", "fp32"), 1.0),
    )
)


CPU_CANDIDATES = ("int8", "bfloat16", "fp32")
"""Candidates that make sense on a processor: it has no TF32, and halves of float16 only by way of
float32."""


def index_of(device: str) -> int:
    """Return which card a device is: N of cuda:N; 0 of cuda."""
    return int(device.partition(":")[2] or 0)


def canonical(name: str) -> str:
    """Return the strategy's own name for what a person calls it ("fp16", "BF16"); an unknown word
    as it came."""
    return spellings.strategy(name, (*STRATEGY_TABLE, "auto"))


def find(name: str) -> Precision:
    """Return the strategy called `name`, or by another spelling of it. Raises ConfigError naming
    the nearest one."""
    if (own := canonical(name)) in STRATEGY_TABLE:
        return STRATEGY_TABLE[own]
    raise ConfigError(
        f"unknown strategy {name!r}",
        nearest(name, (*STRATEGY_TABLE, "auto", *HINT_SPELLINGS), LISTING_COMMAND),
    )


def select(names: str) -> list[Precision]:
    """Return the strategies for "a,b", without repeats, in the order given; `all` and presets may
    stand among them.

    Raises ConfigError.
    """
    groups = {preset.name: preset.candidates for preset in AUTO_PRESETS.values()}
    groups["all"] = tuple(STRATEGY_TABLE)
    allowed = (*STRATEGY_TABLE, *groups)
    words = [
        spellings.strategy(word, (*allowed, "auto")) for word in names.split(",") if word.strip()
    ]
    if not words:
        raise ConfigError(
            "no strategy is named", f"name some, or a preset ({', '.join(AUTO_PRESETS)}), or all"
        )
    found: dict[str, Precision] = {}
    for word in words:
        _check_comparable(word, allowed)
        for name in groups.get(word, (word,)):
            found[name] = STRATEGY_TABLE[name]
    return list(found.values())


def _check_comparable(word: str, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError for a word that names no strategy to compare."""
    if word == "auto":  # which it is there, is what a comparison is to find out
        raise ConfigError(
            "auto cannot be compared",
            f"name strategies, a preset ({', '.join(AUTO_PRESETS)}), or all",
        )
    if word not in allowed:
        raise ConfigError(
            f"unknown strategy {word.strip()!r}",
            nearest(word, (*allowed, *HINT_SPELLINGS), LISTING_COMMAND),
        )


HINT_SPELLINGS = ("fp16", "bf16", "float16", "float32")
"""Other spellings that a hint may name."""

LISTING_COMMAND = "asrd plan"
"""The command that lists the strategies."""


def with_parts(parts: Mapping[str, str]) -> Precision:
    """Return `selective` with the user's own map of component to dtype. Raises ConfigError for an
    unknown dtype."""
    own: dict[str, str] = {}
    for component, word in parts.items():
        dtype = spellings.dtype(word, STORAGE_DTYPES)
        if dtype not in STORAGE_DTYPES:
            raise ConfigError(
                f"unknown dtype {dtype!r} for component {component!r}",
                nearest(dtype, STORAGE_DTYPES),
            )
        own[component] = dtype
    base = STRATEGY_TABLE["selective"]
    return msgspec.convert({**msgspec.to_builtins(base), "parts": own, "families": {}}, Precision)


def quantizes(precision: Precision) -> bool:
    """Return whether anything is stored as int8."""
    return bool(precision.quantize) or "int8" in _maps(precision)


def beside_int8(precision: Precision) -> Dtype:
    """Return what is computed in, and what is not a matrix stored as, where int8 is asked for."""
    if precision.quantize:
        return precision.weights
    return "bfloat16"


def dtypes(precision: Precision) -> set[str]:
    """Return every dtype that a precision computes in."""
    used = {precision.weights, *precision.phases.values(), *_maps(precision)}
    used.discard("int8")
    if quantizes(precision):
        used.add(beside_int8(precision))
    if precision.autocast:
        used.add(precision.autocast)
    return used


def _maps(precision: Precision) -> set[str]:
    """Return the dtypes in the maps of a precision, whatever the family."""
    used: set[str] = set(precision.parts.values())
    for parts in precision.families.values():
        used.update(parts.values())
    return used
