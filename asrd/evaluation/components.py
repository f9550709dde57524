"""Which parts of a model can go down by themselves, from the names of its tensors alone.

A few that mean something for each family, or one for each block. Each makes a precision of its own,
with all the rest of the model float32. Pure; opens no weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fnmatch import fnmatchcase

import msgspec

from asrd.errors import ConfigError, nearest
from asrd.models.checkpoint import Header
from asrd.models.memory_estimate import modules, weights_bytes
from asrd.precision import spellings
from asrd.precision.strategies import RELATED_FAMILIES, Precision, Stored

LOW: tuple[Stored, ...] = ("bfloat16", "float16", "int8")
"""What each component is put to where nothing else is asked for."""

BLOCKS = "layers"
"""The word that asks for one component for each block instead."""


class Component(msgspec.Struct, frozen=True):
    """Something of a model that can be stored and computed otherwise than the rest of it."""

    name: str
    keys: tuple[str, ...]
    """The modules that it consists of, as `parts` takes them."""
    apart: bool = True
    """Whether it stands apart from the blocks; false: it is made of them, or of what is in them."""


class ComponentPrecision(msgspec.Struct, frozen=True):
    """One component, put to one dtype, with all the rest float32."""

    component: str
    dtype: Stored
    precision: Precision


FEED_FORWARD = "encoder.layers.*.feed_forward?"
ATTENTION = "encoder.layers.*.self_attn"
MATRICES = "encoder.layers.*.self_attn.linear_*"
CONVOLUTION = "encoder.layers.*.conv"

ENCODER = (
    Component("encoder", ("encoder",), apart=False),
    Component("blocks but sums", (FEED_FORWARD, ATTENTION, CONVOLUTION), apart=False),
    Component("blocks but sums, scores", (FEED_FORWARD, MATRICES, CONVOLUTION), apart=False),
    Component("subsampling", ("encoder.pre_encode",)),
    Component("feed-forward", (FEED_FORWARD,), apart=False),
    Component("attention", (ATTENTION,), apart=False),
    Component("attention but scores", (MATRICES,), apart=False),
    Component("convolution", (CONVOLUTION,), apart=False),
    Component("norms", ("norms",), apart=False),
)
"""Of every FastConformer. Sums: what the blocks add up to, from the first to the last; with them
norms stay float32.
Scores: what attention computes between its matrices."""

AFTER = {
    "ctc": (Component("output", ("decoder",)),),
    "rnnt": (Component("prediction net", ("decoder",)), Component("joint", ("joint",))),
    "aed": (
        Component("decoder", ("decoder",), apart=False),
        Component(
            "decoder self-attention",
            ("transf_decoder._decoder.layers.*.first_sub_layer",),
            apart=False,
        ),
        Component(
            "decoder cross-attention",
            ("transf_decoder._decoder.layers.*.second_sub_layer",),
            apart=False,
        ),
        Component(
            "decoder feed-forward",
            ("transf_decoder._decoder.layers.*.third_sub_layer",),
            apart=False,
        ),
        Component("embedding and output", ("transf_decoder._embedding", "log_softmax")),
        Component("encoder projection", ("encoder_decoder_proj",)),
    ),
}
"""Family -> what comes after the encoder. An embedding and an output layer that share a weight go
together."""

REPEATED = {"encoder block": "encoder.layers", "decoder block": "transf_decoder._decoder.layers"}
"""Name of a block -> the list that holds it."""


def wanted(words: str) -> tuple[tuple[Stored, ...], bool]:
    """Return the dtypes that "a,b" asks for, and whether it asks for blocks. Raises ConfigError for
    another word."""
    given = set()
    for word in filter(None, map(str.strip, words.split(","))):
        given.add(spellings.dtype(word, (*LOW, BLOCKS)))
    if unknown := sorted(given.difference(LOW, [BLOCKS])):
        raise ConfigError(
            f"unknown dtype {unknown[0]!r} for components", nearest(unknown[0], (*LOW, BLOCKS))
        )
    return tuple(dtype for dtype in LOW if dtype in given) or LOW, BLOCKS in given


def derive(header: Header, blocks: bool = False) -> list[Component]:
    """Return the components that a model has: a few that mean something, or one for each block."""
    family = RELATED_FAMILIES.get(header.family, header.family)
    known = modules(header.tensors)
    found = [*ENCODER, *AFTER.get(family, ())]
    if blocks:
        found = [component for component in found if component.apart] + _blocks(known)
    return [component for component in found if _is_there(component, known, family)]


def _is_there(component: Component, known: Sequence[str], family: str) -> bool:
    """Whether a model has all that a component names."""
    return all(_matches(key, known, family) for key in component.keys)


def _matches(key: str, known: Sequence[str], family: str) -> bool:
    if key == "norms" or (key == "decoder" and family == "aed"):
        return True
    return any(fnmatchcase(path, key) for path in known)


def _blocks(known: Sequence[str]) -> list[Component]:
    found = []
    for name, place in REPEATED.items():
        numbers = []
        for path in known:
            parent, _, last = path.rpartition(".")
            if parent == place:
                numbers.append(int(last))
        for number in sorted(numbers):
            found.append(Component(f"{name} {number}", (f"{place}.{number}",)))
    return found


def sweep(header: Header, words: str) -> list[ComponentPrecision]:
    """Return what "a,b" asks to measure of a model: each component at each dtype, component by
    component.

    What holds nothing that int8 could take (norms) is not put to it.

    Raises:
        ConfigError: an unknown word.
    """
    names, blocks = wanted(words)
    found = []
    for component, dtype in itertools.product(derive(header, blocks), names):
        lowered = _put(component, dtype)
        if dtype != "int8" or _shrinks(header, lowered):
            found.append(lowered)
    return found


def _put(component: Component, dtype: Stored) -> ComponentPrecision:
    parts = dict.fromkeys(component.keys, dtype)
    return ComponentPrecision(
        component.name, dtype, Precision(f"{component.name} {dtype}", parts=parts)
    )


def _shrinks(header: Header, one: ComponentPrecision) -> bool:
    """Return whether int8 stores any of a component in fewer bytes than 16 bits do."""
    half: dict[str, Stored] = dict.fromkeys(one.precision.parts, "bfloat16")
    return weights_bytes(header, one.precision) < weights_bytes(header, Precision("", parts=half))
