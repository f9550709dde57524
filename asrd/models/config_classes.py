"""What a config would have called, compared with what is admitted at each place (pure)."""

from __future__ import annotations

import re
from typing import Any

from asrd.models.config_schema import (
    ACTIVATIONS,
    CALLING_KEYS,
    CLASSES,
    KEPT_SECTIONS,
    LOSS,
    TARGETS,
    TRAINING_CLASSES,
)
from asrd.models.untrusted_yaml import RefusedError, dotted, shown


def modernised(node: Any) -> Any:
    """Return a mapping as NeMo makes it of Hydra's format before 1.0: `cls` and `params` become
    what they stand for."""
    if not isinstance(node, dict):
        return node
    new = dict(node)
    if "cls" in new and "_target_" not in new:
        new["_target_"] = new.pop("cls")
    if isinstance(new.get("params"), dict):
        new |= new.pop("params")
    return {key: modernised(value) for key, value in new.items()}


def check_calls(node: Any, where: tuple[object, ...]) -> None:
    """Refuse whatever would be called and is not admitted at its place."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        here = (*where, key)
        if isinstance(key, str) and key in CALLING_KEYS:
            _check_call(key, value, where)
        elif isinstance(key, str) and re.fullmatch("_[a-z]+_", key):
            raise RefusedError(
                f"has {dotted(here)}, an instruction of Hydra's that no speech model needs"
            )
        if isinstance(value, dict | list):
            check_calls(value, here)


def _check_call(key: str, value: object, where: tuple[object, ...]) -> None:
    if not where:
        admitted = TARGETS if key == "target" else frozenset[str]()
    elif where[0] in KEPT_SECTIONS:
        admitted = (
            CLASSES.get(".".join(map(str, where)), frozenset())
            if key == "_target_"
            else frozenset()
        )
    else:
        admitted = TRAINING_CLASSES
    if not isinstance(value, str) or value not in admitted:
        raise RefusedError(
            f"names {shown(value)} in {dotted((*where, key))}, which is not admitted there"
        )


def check_sections(config: dict[str, Any]) -> None:
    """Check that each section that NeMo builds from is a mapping, and one of a class names it."""
    for place in CLASSES:
        section: Any = config
        for word in place.split("."):
            section = section.get(word) if isinstance(section, dict) else None
        if section is not None and not isinstance(section, dict):
            raise RefusedError(f"has {place}, which is not a section")
        if section is not None and "_target_" not in section and place != "loss":
            raise RefusedError(f"names no class in {place}")
    activation = (config.get("head") or {}).get("activation", "relu")
    if activation not in ACTIVATIONS:
        raise RefusedError(
            f"names {shown(activation)} in head.activation, which is not admitted there"
        )


def is_plain(value: object) -> bool:
    """Return whether a value is a number, a text, or a list of such."""
    if isinstance(value, list):
        return all(is_plain(one) for one in value)
    return value is not None and not isinstance(value, dict)


def without_training(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without a loss where NeMo builds without one, else with what tells
    transducers apart."""
    loss = config.pop("loss", None)
    if "EncDecMultiTaskModel" in str(config.get("target")):
        return config | {"loss": dict(LOSS)}
    if not isinstance(loss, dict) or "loss_name" not in loss:
        return config
    kept = {
        key: value for key, value in loss.items() if key == "loss_name" or key.endswith("_kwargs")
    }
    return config | {"loss": kept}
