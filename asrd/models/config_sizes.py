"""The sizes of a config, compared with the tensors that the same file holds (pure)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from asrd.models.config_schema import (
    EXACT_WIDTHS,
    LARGEST_SIZES,
    LAYER_COUNTS,
    MAX_NUMBER,
    MAX_USUAL_PIECES,
    USUAL_WIDTH,
    WIDTH_KEYS,
)
from asrd.models.untrusted_yaml import RefusedError, dotted, shown

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor of the file -> its shape."""


def check_numbers(node: Any, where: tuple[object, ...], widest: int, tensors: int) -> None:
    """Check every number, and the length of every vocabulary."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        here = (*where, key)
        name = next((str(word) for word in reversed(here) if isinstance(word, str)), "")
        if isinstance(value, dict | list):
            if name in ("vocabulary", "labels") and len(value) > max(widest, MAX_USUAL_PIECES):
                raise RefusedError(
                    f"has {len(value)} entries in {dotted(here)}, and no tensor has as many"
                )
            if name == "jasper" and isinstance(value, list) and len(value) > max(tensors, 1):
                raise RefusedError(
                    f"has {len(value)} blocks in {dotted(here)}, and {tensors} tensors"
                )
            check_numbers(value, here, widest, tensors)
        elif isinstance(value, int | float) and not abs(value) <= (
            most := _largest_allowed(name, widest, tensors)
        ):
            if most == MAX_NUMBER and (math.isinf(value) or len(here) == 1):
                continue  # a penalty of NeMo's defaults, or a note of the training: no size
            raise RefusedError(f"has {shown(value)} in {dotted(here)}; at most {most} is allowed")


def _largest_allowed(name: str, widest: int, tensors: int) -> int:
    """Return the largest number that a key may have."""
    if name in WIDTH_KEYS:
        return max(widest, USUAL_WIDTH)
    if name.endswith("layers") or name == "repeat":
        return max(tensors, 1)
    return LARGEST_SIZES.get(name, MAX_NUMBER)


def check_against_tensors(config: dict[str, Any], shapes: Shapes) -> None:
    """Compare layers and widths with the tensors, where it is known how NeMo names them."""
    for section, kind, key, pattern in LAYER_COUNTS:
        said = _setting(config, section, kind, key)
        found = {match[1] for name in shapes if (match := re.fullmatch(pattern, name))}
        # Recurrent layers with a norm have other names, and then there is nothing to compare with.
        if said is not None and said != len(found) and (found or section != "decoder"):
            raise RefusedError(
                f"has {shown(said)} in {section}.{key}; its weights have {len(found)} layers there"
            )
    for section, kind, key, begin in EXACT_WIDTHS:
        said = _setting(config, section, kind, key)
        sizes: set[int] = set()
        for name, shape in shapes.items():
            if name.startswith(begin):
                sizes.update(shape)
        if said is not None and said not in sizes:
            raise RefusedError(
                f"has {shown(said)} in {section}.{key}; no tensor of its weights is that wide"
            )


def _setting(config: dict[str, Any], section: str, kind: str, key: str) -> Any:
    """Return an entry of a section that is of this class; None where it is of another or has no
    such entry."""
    value: Any = config.get(section)
    if not isinstance(value, dict) or str(value.get("_target_")).rpartition(".")[2] != kind:
        return None
    for word in key.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    return value
