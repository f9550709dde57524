"""Layers that hold a matrix as int8, and how a model comes to have them: torchao's weight-only
quantisation.

Per output channel and symmetric: one byte a weight and a float32 scale a row, arithmetic in the
dtype the weight had. `casting.cast` decides which layers are quantised.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from asrd.errors import PrecisionError


class QuantizedPointwise(nn.Linear):
    """A Conv1d of kernel 1 as the same matrix product, called as the convolution was."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return [B, C', T] for [B, C, T]."""
        return super().forward(features.transpose(1, 2)).transpose(1, 2)


class Lookup(nn.Embedding):
    """An embedding that can read rows of an int8 weight, which may be that of the output layer."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return [..., D] for integers [...]."""
        weight: Any = self.weight
        if not hasattr(weight, "qdata"):
            return super().forward(ids)
        rows: torch.Tensor = weight.qdata[ids] * weight.scale[ids]
        return rows.to(weight.dtype)


def open_up(asked: Mapping[nn.Module, str]) -> None:
    """Replace layers that hold a matrix under another name, and are to be int8, by layers that can
    hold it quantised.

    A pointwise Conv1d becomes a QuantizedPointwise and an Embedding a Lookup, each with the very
    weight it had.
    """
    for parent in list(asked):
        for name, child in list(parent.named_children()):
            if asked.get(child) != "int8":
                continue
            if isinstance(child, nn.Conv1d) and _is_pointwise(child):
                linear = QuantizedPointwise(
                    child.in_channels, child.out_channels, child.bias is not None, device="meta"
                )
                linear.weight = nn.Parameter(child.weight.detach().squeeze(-1), requires_grad=False)
                linear.register_parameter("bias", child._parameters["bias"])
                setattr(parent, name, linear.eval())
            elif type(child) is nn.Embedding:
                rows, width = child.weight.shape
                # Given a weight, it draws no random one.
                lookup = Lookup(rows, width, child.padding_idx, _weight=child.weight)
                lookup.weight = child.weight
                setattr(parent, name, lookup.eval())


def _is_pointwise(layer: nn.Conv1d) -> bool:
    """Return whether a convolution is a matrix product: kernel 1, and nothing around it."""
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.groups)
    return shape == ((1,), (1,), (0,), 1)


def quantize(layers: Iterable[nn.Module]) -> None:
    """Quantise the weights of Linear and Lookup layers one by one, in place; a shared one once, and
    it stays shared.

    Raises:
        PrecisionError: torchao is not there.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise PrecisionError(f"int8 needs torchao: {error}", "pip install 'asrd[int8]'") from error
    config = Int8WeightOnlyConfig(version=2, set_inductor_config=False)
    users: dict[int, list[Any]] = defaultdict(list)
    for layer in layers:
        users[id(layer.weight)].append(layer)
    for sharing in users.values():
        # torchao takes a Linear, whichever layer the weight belongs to.
        carrier = nn.Linear(1, 1, bias=False, device="meta")
        carrier.weight = sharing[0].weight
        quantize_(carrier, config)
        for layer in sharing:
            layer.weight = carrier.weight
