"""Other spellings of strategies, dtypes and devices, as other programs have them (pure).

Knows words only; which strategies there are is `precision`'s to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

STRATEGY_SPELLINGS = {
    "fp32": (
        "float32",
        "float",
        "single",
        "full",
        "full-precision",
        "f32",
        "32",
        "32-true",
        "fp32-true",
    ),
    "half": ("fp16", "float16", "f16", "16", "16-true", "fp16-true"),
    "bfloat16": ("bf16", "bf16-true", "b16", "brain16"),
    "16-mixed": ("fp16-mixed", "float16-mixed", "half-mixed", "16mixed"),
    "bf16-mixed": ("bfloat16-mixed", "bf16mixed"),
    "half-naive": ("fp16-naive", "float16-naive"),
    "autocast-fp16": ("autocast-float16", "autocast-half", "amp", "amp-fp16"),
    "autocast-bf16": ("autocast-bfloat16", "amp-bf16"),
    "tf32": ("tensorfloat32", "tensorfloat-32", "tf-32"),
    "int8": ("i8", "int-8", "8bit", "8-bit", "w8", "w8a16"),
}
"""Strategy -> what else it is called."""

DTYPE_SPELLINGS = {
    "float32": ("fp32", "f32", "single", "float", "full", "32"),
    "float16": ("fp16", "f16", "half", "16"),
    "bfloat16": ("bf16", "b16"),
    "int8": ("i8", "int-8", "8bit", "8-bit"),
}
"""Dtype -> what else it is called."""


def folded(word: str) -> str:
    """Return a word without the differences that mean nothing: case, spaces around it, `_` for
    `-`."""
    return word.strip().lower().replace("_", "-")


def squeezed(word: str) -> str:
    """Return the letters and digits of a word: "FP 16", "float_16" and "16-bit" are "fp16",
    "float16" and "16"."""
    plain = re.sub(r"[\s_-]+", "", word.lower()).removeprefix("torch.")
    return plain.removesuffix("bit")


def resolve_spelling(
    word: str, names: Iterable[str], others: dict[str, tuple[str, ...]] | None = None
) -> str:
    """Return the name that a word spells otherwise; the word itself where it spells none.

    Args:
        names: the names there are.
        others: name -> other words for it.
    """
    exact = {folded(name): name for name in names}
    loose = {squeezed(name): name for name in exact.values()}
    for name, spellings in (others or {}).items():
        if name in exact.values():
            for spelling in spellings:
                loose.setdefault(squeezed(spelling), name)
    return exact.get(folded(word)) or loose.get(squeezed(word)) or word


def strategy(word: str, names: Iterable[str]) -> str:
    """Return the name of the strategy that a word means; the word itself where it means none."""
    return resolve_spelling(word, names, STRATEGY_SPELLINGS)


def dtype(word: str, names: Iterable[str]) -> str:
    """Return the name of the dtype that a word means; the word itself where it means none."""
    return resolve_spelling(word, names, DTYPE_SPELLINGS)


def device(word: str) -> str:
    """Return a device as the settings have it: "GPU", "gpu:1" and "cuda1" are "cuda", "cuda:1" and
    "cuda:1"."""
    plain = folded(word)
    for prefix in ("gpu", "cuda"):
        rest = plain.removeprefix(prefix).lstrip(":")
        if plain == prefix:
            return "cuda"
        if plain.startswith(prefix) and rest.isdecimal() and rest.isascii():
            return f"cuda:{int(rest)}"
    if plain in ("auto", "cpu"):
        return plain
    return word.strip()
