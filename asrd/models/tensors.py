"""A tensor of a checkpoint as values: name, shape, dtype and where its numbers lie (pure)."""

from __future__ import annotations

import math

import msgspec

DTYPE_BYTES = {
    "float64": 8,
    "int64": 8,
    "int32": 4,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int16": 2,
}
"""Bytes of one element; one byte where it is not listed."""

EMBEDDING = "transf_decoder._embedding.token_embedding.weight"
HEAD = "log_softmax.mlp.layer0.weight"
"""NeMo's AED model makes its output layer share the embedding's memory, whatever the checkpoint
holds."""

BUFFER_WORDS = (
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "pos_enc",
    "pe",
    "window",
    "fb",
)
"""Last words of tensors that are no parameters; all others are."""


class Tensor(msgspec.Struct, frozen=True):
    """One tensor of a checkpoint."""

    shape: tuple[int, ...]
    dtype: str
    memory: str = ""
    """Where it lies: tensors of one shape that lie in one place are one tensor under several
    names."""
    dense: bool = True
    """Its numbers lie side by side and in order."""

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How long its numbers are."""
        return self.elements * DTYPE_BYTES.get(self.dtype, 1)

    @property
    def floating(self) -> bool:
        """True for what a cast changes; counters are integers and stay."""
        return "float" in self.dtype


class TensorLocation(msgspec.Struct, frozen=True):
    """Where in a .nemo file the numbers of a tensor begin: bytes, at no multiple of anything."""

    tensor: Tensor
    offset: int


def is_buffer(name: str) -> bool:
    """Return whether a tensor of this name is a buffer: statistics, tables and filter banks."""
    return name.rpartition(".")[2] in BUFFER_WORDS


def unique(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as the restored model holds them: those that share memory once, under their
    first name."""
    tied = EMBEDDING in tensors and HEAD in tensors
    seen: set[tuple[str, tuple[int, ...]]] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = (tensor.memory or name, tensor.shape)
        if place in seen or (name == HEAD and tied):
            continue
        seen.add(place)
        kept[name] = tensor
    return kept
