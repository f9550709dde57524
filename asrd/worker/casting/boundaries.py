"""Where modules of different dtypes meet: casts of the tensors between them, and float32 fenced off
from autocast.

It installs hooks on modules; it knows nothing of strategies.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from asrd.worker.casting.components import Parts, Targets, holders, holds

CONSUMERS = ("joint", "encoder_decoder_proj", "transf_encoder", "transf_decoder", "decoder")
"""Components that may take the encoder's output: the first of these that a model has does."""


def connect(parts: Parts, targets: Targets) -> None:
    """Cast the tensors between components and islands; where dtypes agree nothing is installed.

    Features leave the front end in the dtype of the encoder's first layer, through NeMo's own
    sentinel. The encoder is always entered as a module, so islands in it are cast in and out where
    they stand. Every decoding loop enters the components after it below their own forward
    (`joint.project_encoder`, `decoder.predict`). So there the encoder's output is the boundary, and
    layers are cast one by one where those components differ among each other.
    """
    encoder = parts["encoder"]
    if "preprocessor" in parts:
        inlet = next(encoder.parameters()).dtype
        parts["preprocessor"].dtype_sentinel_tensor = torch.empty(0, dtype=inlet)
    _connect_islands(encoder, targets[encoder], targets)
    consumer = targets[_consumer(parts)]
    if consumer != targets[encoder]:
        _boundary(encoder, None, consumer)
    layers: dict[nn.Module, nn.Module] = {}
    for name, part in parts.items():
        if name not in ("preprocessor", "encoder"):
            layers.update(dict.fromkeys(holders(part), part))
    if len({targets[layer] for layer in layers}) > 1:
        for layer, part in layers.items():
            outside = targets[part]
            _boundary(layer, targets[layer], None if outside == targets[layer] else outside)


def _consumer(parts: Parts) -> nn.Module:
    """Return the component that takes the encoder's output; the encoder where there is none."""
    for name in CONSUMERS:
        if name in parts:
            return parts[name]
    return parts["encoder"]


def _connect_islands(module: nn.Module, around: torch.dtype, targets: Targets) -> None:
    for child in filter(holds, module.children()):
        if isinstance(child, nn.ModuleList | nn.ModuleDict):  # never called itself
            _connect_islands(child, around, targets)
            continue
        if targets[child] != around:
            _boundary(child, targets[child], around)
        _connect_islands(child, targets[child], targets)


def _boundary(module: nn.Module, inside: torch.dtype | None, outside: torch.dtype | None) -> None:
    """Cast a module's input, and its output; None leaves one as it is."""
    if inside is not None:
        module.register_forward_pre_hook(
            lambda _, args, kwargs: to((args, kwargs), inside), with_kwargs=True
        )
    if outside is not None:
        module.register_forward_hook(lambda _, args, output: to(output, outside))


def fence(name: str, component: nn.Module, device_type: str) -> None:
    """Have a component compute in float32, outside any autocast that is on around it."""
    modules = holders(component)
    if name == "encoder":
        modules = [component]
    for module in modules:
        module.forward = _outside_autocast(module.forward, device_type)


def _outside_autocast(forward: Any, device_type: str) -> Any:
    @functools.wraps(forward)
    def plain(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, enabled=False):
            return forward(*to(args, torch.float32), **to(kwargs, torch.float32))

    return plain


def to(value: Any, dtype: torch.dtype, done: dict[int, torch.Tensor] | None = None) -> Any:
    """Return the value with every floating tensor in it cast; lengths, masks and labels stay as
    they are.

    One tensor that stands in it twice is one afterwards too: attention sees by that that it looks
    at itself.
    """
    if done is None:
        done = {}
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point():
            return value
        if id(value) not in done:
            done[id(value)] = value.to(dtype)
        return done[id(value)]
    if isinstance(value, dict):
        return {key: to(item, dtype, done) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(to(item, dtype, done) for item in value)
    return value
