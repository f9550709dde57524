"""The dtype that each module of a model is to be stored in, and the cast itself.

A part that a precision names goes before the rest; modules that share a tensor agree on one dtype.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Mapping, Set

import torch
from torch import nn

from asrd.errors import ConfigError, PrecisionError, nearest
from asrd.precision.strategies import Precision, beside_int8
from asrd.protocol import Fallback
from asrd.worker.casting import quantize
from asrd.worker.casting.boundaries import to
from asrd.worker.casting.components import (
    Parts,
    Targets,
    components,
    name_of,
    storage,
)

CANARY_DECODER = ("encoder_decoder_proj", "transf_decoder", "log_softmax")
"""What `decoder` means for Canary, which has no child of that name."""


def asked_dtypes(model: nn.Module, precision: Precision) -> dict[nn.Module, str]:
    """Return the dtype that every module is to be stored in: the deepest module that `parts` names
    decides, the later of equals.

    int8 is asked of a module with all that is in it; which layers can be quantised is seen later.
    """
    asked: dict[nn.Module, str] = {}
    for name, component in components(model).items():
        dtype: str = precision.quantize or precision.weights
        if name == "preprocessor":
            dtype = _features_dtype(precision)
        asked.update(dict.fromkeys(component.modules(), dtype))
    named: list[tuple[str, str]] = []
    for name, dtype in precision.parts.items():
        named += [(path, dtype) for path in _paths(model, name)]
    for path, dtype in sorted(named, key=lambda item: item[0].count(".")):
        asked.update(dict.fromkeys(model.get_submodule(path).modules(), dtype))
    return asked


def _features_dtype(precision: Precision) -> str:
    if precision.features == "weights":
        return precision.weights
    return "float32"


def target_dtypes(asked: Mapping[nn.Module, str], precision: Precision) -> Targets:
    """Return the dtype that every module computes in; of a module that is to be int8, the one
    beside it."""
    targets: Targets = {}
    for module, name in asked.items():
        dtype = name
        if name == "int8":
            dtype = beside_int8(precision)
        targets[module] = getattr(torch, dtype)
    return targets


def _paths(model: nn.Module, name: str) -> list[str]:
    """Return the paths of the modules that a key of `parts` means: a child, a dotted path, a
    pattern of paths, norms or decoder."""
    parts = components(model)
    if name == "norms":  # by the type's name, as NeMo has norms of its own beside torch's
        modules = parts["encoder"].named_modules()
        return [f"encoder.{path}" for path, module in modules if "Norm" in type(module).__name__]
    if name == "decoder" and name not in parts:
        return [child for child in CANARY_DECODER if child in parts]
    paths: list[str] = []
    for child, part in parts.items():
        paths += [f"{child}.{path}".rstrip(".") for path, _ in part.named_modules()]
    found = fnmatch.filter(paths, name)
    if not found:
        raise ConfigError(f"this model has no component {name!r}", _nearest_path(name, paths))
    return found


def _nearest_path(name: str, paths: list[str]) -> str:
    """Return a hint among the siblings at the point where a path leaves the model."""
    words = name.split(".")
    depth = len(words) - 1
    while depth and ".".join(words[:depth]) not in paths:
        depth -= 1
    above = ".".join(words[:depth])
    siblings = [path for path in paths if path.rpartition(".")[0] == above]
    for alias in ("norms", "decoder"):
        if not depth and alias not in siblings:
            siblings.append(alias)
    return nearest(".".join(words[: depth + 1]), siblings)


def agree_on_shared(parts: Parts, targets: Targets) -> list[Fallback]:
    """Give modules that share a weight (Canary's embedding and head) one dtype: float32 where they
    are to differ."""
    fallbacks = []
    for group in _sharing(parts):
        if len({targets[module] for _, module in group}) < 2:
            continue
        names = {name for name, _ in group}
        for name, module in group:
            if targets[module] == torch.float32:
                continue
            others = " and ".join(sorted(names - {name}) or [name])
            reason = f"its {type(module).__name__} shares a weight with {others}, in another dtype"
            fallbacks.append(Fallback(name, name_of(targets[module]), "float32", reason))
            targets[module] = torch.float32
    return fallbacks


def _sharing(parts: Parts) -> list[list[tuple[str, nn.Module]]]:
    """Return the groups of (component, module) that hold one and the same parameter."""
    owners: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
    for name, component in parts.items():
        for module in component.modules():
            for parameter in module.parameters(recurse=False):
                owners[id(parameter)].append((name, module))
    return [group for group in owners.values() if len(group) > 1]


def matrices_of(parts: Parts, asked: Mapping[nn.Module, str]) -> set[nn.Module]:
    """Return the layers whose weight becomes int8: of those that share one, all or none."""
    found: set[nn.Module] = set()
    for layer, name in asked.items():
        if name == "int8" and isinstance(layer, nn.Linear | quantize.Lookup):
            found.add(layer)
    partial: set[nn.Module] = set()
    for group in _sharing(parts):
        modules = {module for _, module in group}
        if not found.issuperset(modules):
            partial |= modules
    return found - partial


def cast_modules(targets: Targets, empty: bool) -> None:
    """Cast each module's own tensors; a shared parameter stays shared, a buffer keeps its place in
    the state dict."""
    for module, dtype in targets.items():
        for parameter in module.parameters(recurse=False):
            if not empty:
                parameter.data = to(parameter.data, dtype)
            elif parameter.is_floating_point() and parameter.dtype != dtype:
                parameter.data = torch.empty_like(parameter.data, dtype=dtype)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, to(buffer, dtype))


def verify(parts: Parts, targets: Targets, matrices: Set[nn.Module]) -> None:
    """Read every stored tensor back. Raises PrecisionError where it is not what was decided."""
    for name, component in parts.items():
        for path, module in component.named_modules():
            decided = {name_of(targets[module])}
            if module in matrices:
                decided.add("int8")
            if wrong := set(storage(module, recurse=False)) - decided:
                where = f"{name}.{path}".rstrip(".")
                raise PrecisionError(
                    f"{where} is stored as {wrong.pop()}, not as {name_of(targets[module])}"
                )
