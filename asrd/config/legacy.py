"""Older spellings of the precision, folded into `strategy`: autocast_dtype, use_bf16 and use_fp16
(pure).

The explicit dtype goes before the flags.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asrd.errors import ConfigError, nearest
from asrd.precision import spellings
from asrd.precision.strategies import FLOAT_DTYPES, canonical

KEYS = ("autocast_dtype", "use_bf16", "use_fp16")

STRATEGIES = {"bfloat16": "autocast-bf16", "float16": "autocast-fp16", "float32": "fp32"}
"""Dtype of the arithmetic over FP32 weights -> strategy."""

FLAGS = {"use_bf16": "bfloat16", "use_fp16": "float16"}
"""Flag -> dtype that it means."""

TRUE, FALSE = ("1", "true", "yes", "on", "y", "t"), ("0", "false", "no", "off", "n", "f", "")
"""How people write a switch."""


def fold(layer: dict[str, tuple[Any, str]]) -> list[str]:
    """Turn a layer's older spellings into its strategy; return what the log should say of it.

    Args:
        layer: setting -> (value, origin), from one place; it is changed.

    Raises:
        ConfigError: a value that is none, or two that contradict each other.
    """
    given = {key: layer.pop(key) for key in KEYS if key in layer}
    dtype, source, notes = _dtype(given)
    if dtype is None:
        return notes
    strategy, origin = STRATEGIES[dtype], given[source][1]
    asked = layer.get("strategy", (strategy, ""))[0]
    if canonical(str(asked)) != strategy:
        raise ConfigError(
            f"strategy = {asked!r} contradicts {source} ({origin}), which means {strategy!r}",
            f"keep one of the two; {source} is the older spelling",
        )
    layer["strategy"] = (strategy, f"{source}, {origin}")
    return [
        *notes,
        f"{source} ({origin}) is an older spelling; it means strategy = {strategy!r}: "
        f"{dtype} arithmetic over FP32 weights",
    ]


def _dtype(given: Mapping[str, tuple[Any, str]]) -> tuple[str | None, str, list[str]]:
    """Return the dtype that the older spellings mean (None: none), which of them decided, and
    remarks."""
    named, off = [], []
    for key in FLAGS:
        if key not in given:
            continue
        if boolean(key, *given[key]):
            named.append(key)
        else:
            off.append(f"{key} ({given[key][1]}) is an older spelling; off, it does nothing")
    if "autocast_dtype" in given:
        asked, origin = given["autocast_dtype"]
        dtype = spellings.dtype(str(asked), FLOAT_DTYPES)
        if dtype not in FLOAT_DTYPES:
            raise ConfigError(
                f"autocast_dtype = {asked!r} ({origin}) is not a dtype",
                nearest(str(asked), FLOAT_DTYPES),
            )
        notes = []
        for key in named:
            if FLAGS[key] != dtype:
                notes.append(f"autocast_dtype goes before {key}")
        return dtype, "autocast_dtype", notes
    if len(named) == 2:
        raise ConfigError(
            "use_bf16 and use_fp16 contradict each other", "set one of them, or strategy alone"
        )
    if not named:
        return None, "", off
    return FLAGS[named[0]], named[0], []


def boolean(key: str, value: Any, origin: str) -> bool:
    """Return what a switch is set to. Raises ConfigError for what is neither true nor false."""
    word = str(value).strip().lower()
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise ConfigError(
        f"{key} = {value!r} ({origin}) is neither true nor false",
        f"write {key} = true or {key} = false",
    )
