"""A NeMo model as components: who holds which tensors, what they are stored in, and what they
weigh.

Knows torch and the shape of NeMo's models (preprocessor, encoder and what decodes after it);
decides nothing. Runs in the worker only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

NO_WEIGHTS = ("spec_augmentation", "loss", "ctc_loss", "val_loss", "wer", "ctc_wer", "bleu")
"""Children of a NeMo model that serve training and scoring only."""

HIDDEN = "timestamps_asr_model"
"""Canary's second model, for timestamps: NeMo keeps it outside the module tree, in float32,
whatever is cast."""

Parts = Mapping[str, nn.Module]
"""Component -> its module."""

Targets = dict[nn.Module, torch.dtype]
"""Every module of the components -> what its own tensors are stored in, and it computes in."""


def components(model: nn.Module) -> dict[str, nn.Module]:
    """Return NeMo's own child name -> child, for the children that hold tensors and serve
    recognition."""
    return {
        name: child
        for name, child in model.named_children()
        if name not in NO_WEIGHTS and holds(child)
    }


def family(model: nn.Module) -> str:
    """Return a model's family by what decodes its encoder's output: aed, rnnt (with tdt and
    hybrids) or ctc."""
    children = components(model)
    return "aed" if "transf_decoder" in children else "rnnt" if "joint" in children else "ctc"


def weights_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, shared ones once, quantised ones as stored
    (scales and all)."""
    own = sum(part.nbytes for tensor in _tensors(model) for part in _real(tensor))
    return own + sum(weights_bytes(hidden) for hidden in hidden_models(model).values())


def first_non_finite(model: nn.Module, act: Callable[[], Any]) -> str:
    """Return the module whose output is the first, while `act` runs, that is not finite; "encoder"
    where none is.

    Looked at are the components that listen and their layers: `preprocessor`, `encoder.pre_encode`,
    `encoder.layers.3`.
    """
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if not found and isinstance(first, torch.Tensor) and not bool(torch.isfinite(first).all()):
            found.append(name)

    listening = {
        name: part
        for name, part in components(model).items()
        if name in ("preprocessor", "encoder")
    }
    parts = listening | dict(
        item for name, part in listening.items() for item in _layers(name, part)
    )
    handles = [
        module.register_forward_hook(lambda _, args, output, name=name: look(name, output))
        for name, module in parts.items()
    ]
    try:
        act()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "encoder"


def _layers(name: str, component: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules with weights right below a component, those of a list one by one."""
    for child, module in component.named_children():
        if isinstance(module, nn.ModuleList):
            yield from _layers(f"{name}.{child}", module)
        elif holds(module):
            yield f"{name}.{child}", module


def name_of(dtype: torch.dtype | torch.Tensor) -> str:
    """Return the name of a dtype, or of that of a tensor, as settings write it: "bfloat16"."""
    return str(dtype.dtype if isinstance(dtype, torch.Tensor) else dtype).removeprefix("torch.")


def _tensors(module: nn.Module, recurse: bool = True) -> Iterator[torch.Tensor]:
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)


def holds(module: nn.Module, recurse: bool = True) -> bool:
    """Tell whether a module has a parameter or a buffer; with `recurse`, anywhere in it."""
    return any(True for _ in _tensors(module, recurse))


def holders(module: nn.Module) -> list[nn.Module]:
    """Return the modules at or below one that hold tensors of their own."""
    return [child for child in module.modules() if holds(child, recurse=False)]


def hidden_models(model: nn.Module) -> dict[str, nn.Module]:
    """Return the models that NeMo keeps beside a model's module tree, by the attribute that holds
    them."""
    hidden = getattr(model, HIDDEN, None)
    return {HIDDEN: hidden} if isinstance(hidden, nn.Module) else {}


def _real(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors that a tensor is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _real(getattr(tensor, name))]


def storage(module: nn.Module, recurse: bool = True) -> Counter[str]:
    """Return dtype -> bytes of a module's parameters, or of its buffers where it has no
    parameter."""
    found: Counter[str] = Counter()
    tensors: list[torch.Tensor] = [*module.parameters(recurse)] or [*module.buffers(recurse)]
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            parts = _real(tensor)
            found[name_of(parts[0])] += sum(part.nbytes for part in parts)
    return found


def mostly(module: nn.Module) -> str:
    """Return the dtype that most bytes of a module are stored in; "" where it stores no floats."""
    return next((dtype for dtype, _ in storage(module).most_common(1)), "")
