"""Where modules of different dtypes meet: casts what flows between them, and fences float32 off
from autocast.

Installs hooks on modules; knows nothing of strategies. Runs in the worker only.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from asrd.worker.casting.components import Parts, Targets, holders, holds

CONSUMERS = ("joint", "encoder_decoder_proj", "transf_encoder", "transf_decoder", "decoder")
"""Who takes the encoder's output: the first of these that a model has."""


def connect(parts: Parts, targets: Targets) -> None:
    """Cast what flows between components and islands; where dtypes agree nothing is installed.

    Features leave the front end in the dtype of the encoder's first layer, through NeMo's own
    sentinel. The encoder is always entered as a module, so islands in it are cast in and out where
    they stand. What comes after it is entered below its components by every decoding loop
    (`joint.project_encoder`, `decoder.predict`), so there the encoder's output is the boundary, and
    layers are cast one by one where those components differ among each other.
    """
    encoder = parts["encoder"]
    if "preprocessor" in parts:
        inlet = next(encoder.parameters()).dtype
        parts["preprocessor"].dtype_sentinel_tensor = torch.empty(0, dtype=inlet)
    _connect_islands(encoder, targets[encoder], targets)
    consumer = next((targets[parts[name]] for name in CONSUMERS if name in parts), targets[encoder])
    if consumer != targets[encoder]:
        _boundary(encoder, None, consumer)
    after = [part for name, part in parts.items() if name not in ("preprocessor", "encoder")]
    layers = {layer: part for part in after for layer in holders(part)}
    if len({targets[layer] for layer in layers}) > 1:
        for layer, part in layers.items():
            _boundary(
                layer, targets[layer], targets[part] if targets[part] != targets[layer] else None
            )


def _connect_islands(module: nn.Module, around: torch.dtype, targets: Targets) -> None:
    for child in filter(holds, module.children()):
        if isinstance(child, nn.ModuleList | nn.ModuleDict):  # never called itself
            _connect_islands(child, around, targets)
            continue
        if targets[child] != around:
            _boundary(child, targets[child], around)
        _connect_islands(child, targets[child], targets)


def _boundary(module: nn.Module, inside: torch.dtype | None, outside: torch.dtype | None) -> None:
    """Cast what goes into a module, and what comes out of it."""
    if inside is not None:
        module.register_forward_pre_hook(
            lambda _, args, kwargs: to((args, kwargs), inside), with_kwargs=True
        )
    if outside is not None:
        module.register_forward_hook(lambda _, args, output: to(output, outside))


def fence(name: str, component: nn.Module, device_type: str) -> None:
    """Have a component compute in float32, outside whatever autocast is on around it."""
    for module in [component] if name == "encoder" else holders(component):
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
    done = {} if done is None else done
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point():
            return value
        if id(value) not in done:
            done[id(value)] = value.to(dtype)
        return done[id(value)]
    if isinstance(value, dict):
        return {key: to(item, dtype, done) for key, item in value.items()}
    return (
        type(value)(to(item, dtype, done) for item in value)
        if type(value) in (tuple, list)
        else value
    )
