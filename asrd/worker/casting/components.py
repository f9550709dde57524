"""A NeMo model as components: which module holds which tensors, their dtypes and their bytes.

It knows torch and the shape of NeMo's models (preprocessor, encoder, and the decoder after it); it
decides nothing.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

NO_WEIGHTS = ("spec_augmentation", "loss", "ctc_loss", "val_loss", "wer", "ctc_wer", "bleu")
"""Children of a NeMo model that serve training and scoring only."""

HIDDEN_MODEL = "timestamps_asr_model"
"""Canary's second model, for timestamps: NeMo keeps it outside the module tree, in float32 under
every precision."""

Parts = Mapping[str, nn.Module]
"""Component -> its module."""

Targets = dict[nn.Module, torch.dtype]
"""Every module of the components -> the dtype of its own tensors and of its arithmetic."""


def components(model: nn.Module) -> dict[str, nn.Module]:
    """Return NeMo's own child name -> child, for the children that hold tensors and serve
    recognition."""
    found = {}
    for name, child in model.named_children():
        if name not in NO_WEIGHTS and holds(child):
            found[name] = child
    return found


def family(model: nn.Module) -> str:
    """Return a model's family by the decoder after its encoder: aed, rnnt (with tdt and hybrids) or
    ctc."""
    children = components(model)
    if "transf_decoder" in children:
        return "aed"
    if "joint" in children:
        return "rnnt"
    return "ctc"


def weights_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, shared ones once, quantised ones as stored
    (scales and all)."""
    own = sum(map(_nbytes, _tensors(model)))
    return own + sum(map(weights_bytes, hidden_models(model).values()))


def first_non_finite(model: nn.Module, act: Callable[[], Any]) -> str:
    """Return the module whose output is the first, while `act` runs, that is not finite; "encoder"
    where none is.

    It looks at the components before the decoder and at their layers: `preprocessor`,
    `encoder.pre_encode`, `encoder.layers.3`.
    """
    found: list[str] = []

    def look(name: str, module: nn.Module, args: Any, output: Any) -> None:
        first = first_of(output)
        if not found and isinstance(first, torch.Tensor) and not bool(torch.isfinite(first).all()):
            found.append(name)

    children = components(model)
    watched: dict[str, nn.Module] = {}
    for name in children.keys() & {"preprocessor", "encoder"}:
        watched[name] = children[name]
        watched.update(_layers(name, children[name]))
    handles = []
    for name, module in watched.items():
        handles.append(module.register_forward_hook(functools.partial(look, name)))
    try:
        act()
    finally:
        for handle in handles:
            handle.remove()
    return next(iter(found), "encoder")


def first_of(output: Any) -> Any:
    """Return a module's output, or the first of several."""
    if isinstance(output, tuple):
        return output[0]
    return output


def _layers(name: str, component: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules with weights right below a component, those of a list one by one."""
    for child, module in component.named_children():
        if isinstance(module, nn.ModuleList):
            yield from _layers(f"{name}.{child}", module)
        elif holds(module):
            yield f"{name}.{child}", module


def name_of(dtype: torch.dtype | torch.Tensor) -> str:
    """Return the name of a dtype, or of that of a tensor, as settings write it: "bfloat16"."""
    if isinstance(dtype, torch.Tensor):
        dtype = dtype.dtype
    return str(dtype).removeprefix("torch.")


def _tensors(module: nn.Module, recurse: bool = True) -> Iterator[torch.Tensor]:
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)


def holds(module: nn.Module, recurse: bool = True) -> bool:
    """Return whether a module has a parameter or a buffer; with `recurse`, anywhere in it."""
    return next(_tensors(module, recurse), None) is not None


def holders(module: nn.Module) -> list[nn.Module]:
    """Return the modules at or below one that hold tensors of their own."""
    return [child for child in module.modules() if holds(child, recurse=False)]


def hidden_models(model: nn.Module) -> dict[str, nn.Module]:
    """Return the models that NeMo keeps beside a model's module tree, by the attribute that holds
    them."""
    hidden = getattr(model, HIDDEN_MODEL, None)
    if not isinstance(hidden, nn.Module):
        return {}
    return {HIDDEN_MODEL: hidden}


def _real(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors that a tensor is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    parts: list[torch.Tensor] = []
    for name in tensor.__tensor_flatten__()[0]:
        parts += _real(getattr(tensor, name))
    return parts


def _nbytes(tensor: torch.Tensor) -> int:
    """Return the bytes of the plain tensors that a tensor is made of."""
    return sum(part.nbytes for part in _real(tensor))


def storage(module: nn.Module, recurse: bool = True) -> Counter[str]:
    """Return dtype -> bytes of a module's parameters, or of its buffers where it has no
    parameter."""
    found: Counter[str] = Counter()
    tensors: list[torch.Tensor] = [*module.parameters(recurse)] or [*module.buffers(recurse)]
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            found[name_of(_real(tensor)[0])] += _nbytes(tensor)
    return found


def mostly(module: nn.Module) -> str:
    """Return the dtype that most bytes of a module are stored in; "" where it stores no floats."""
    for dtype, _ in storage(module).most_common(1):
        return dtype
    return ""
