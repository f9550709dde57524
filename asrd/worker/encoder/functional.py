"""The encoder on a CPU as one function over its tensors, for models that take milliseconds.

Of a short buffer's time in a small encoder, two fifths are Python's and the dispatcher's: modules
that call modules, weights transposed anew, biases copied so that a product can be added to them.
Here the same arithmetic in float32 runs over tensors that were looked up once. q, k and v are one
product, residuals are added to by the product itself, and BatchNorm is part of the depthwise
convolution before it. The weights are the modules' own and not held twice.

No module is called, so no hook on one runs. `refusal` therefore refuses an encoder that has hooks,
other layers than `conformer.remove_masks` left it, or another dtype. A call under autocast is
refused too. Then the modules do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asrd.worker.encoder import conformer

Block = Callable[[Tensor, int, Tensor], Tensor]
"""A layer: [B * T, D], which it overwrites, B, and the embedded positions -> [B * T, D]."""


class FunctionalEncoder:
    """An encoder that took `conformer.remove_masks`'s classes, for buffers of one length.

    Args:
        model_encoder: model.encoder, as `refusal` has nothing against it.
    """

    def __init__(self, model_encoder: Any) -> None:
        self._encoder = model_encoder
        self._layers = list(map(_layer, model_encoder.layers))

    def __call__(self, features: Tensor, counts: Sequence[int] | None = None) -> Tensor | None:
        """Return [B, D, T] for features [B, mels, frames] as the encoder would; None where the
        encoder must be called.

        Args:
            counts: how many frames of each buffer are audio; None: all of them.
        """
        if torch.is_autocast_enabled("cpu"):
            return None
        if counts is not None and min(counts) != features.shape[2]:
            return None
        whole = self._encoder
        whole.update_max_seq_length(seq_length=features.shape[2], device=features.device)
        x, _ = whole.pre_encode(x=features.transpose(1, 2), lengths=None)
        x, places = whole.pos_enc(x=x)
        batch, frames, width = x.shape
        x = x.reshape(-1, width)
        for layer in self._layers:
            x = layer(x, batch, places)
        x = x.view(batch, frames, width)
        if whole.out_proj is not None:
            x = whole.out_proj(x)
        return x.transpose(1, 2)


def refusal(model_encoder: Any) -> str:
    """Return why an encoder has to be run by its modules, or nothing."""
    if not isinstance(model_encoder, conformer.UnmaskedEncoder):
        return "an encoder of another kind"
    if model_encoder.att_context_style != "regular" or list(model_encoder.att_context_size) != [
        -1,
        -1,
    ]:
        return "attention that may not look everywhere"
    if not all(map(_float32, model_encoder.parameters())):
        return "other than plain float32 on the CPU"
    for module in model_encoder.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
            return "hooked layers"
    if not all(map(_plain, model_encoder.layers)):
        return "layers of another kind"
    return ""


def _float32(tensor: Tensor) -> bool:
    """Return whether a parameter is plain float32; an int8 one has that dtype too."""
    return (
        type(tensor) is nn.Parameter
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
    )


def _plain(layer: Any) -> bool:
    """Return whether a block holds the layers from which its function below takes its tensors."""
    conv = layer.conv
    return (
        type(layer) is conformer.UnmaskedLayer
        and type(conv.pointwise_conv1) is type(conv.pointwise_conv2) is conformer.UnmaskedPointwise
        and type(conv.batch_norm) is nn.BatchNorm1d
        and conv.batch_norm.track_running_stats
        and conv.depthwise_conv._left_padding == conv.depthwise_conv._right_padding
        and all(type(part) is nn.Linear for part in layer.modules() if isinstance(part, nn.Linear))
    )


# -- a layer as closures over its tensors
# -----------------------------------------------------------------------------


def _layer(layer: Any) -> Block:
    """Return a block: half a feed-forward, attention, convolution, half a feed-forward, each added
    to its input."""
    first, second = _half(layer, "feed_forward1"), _half(layer, "feed_forward2")
    attend, convolve, norm = _attention(layer), _convolution(layer), _norm(layer.norm_out)

    def run(x: Tensor, batch: int, places: Tensor) -> Tensor:
        return norm(second(convolve(attend(first(x), batch, places), batch)))

    return run


def _norm(layer: Any) -> Callable[[Tensor], Tensor]:
    shape, weight, bias, eps = layer.normalized_shape, layer.weight, layer.bias, layer.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return a function: x [N, D] -> x times weight [D, D'], plus bias [D']."""
    if bias is None:
        return lambda x: torch.mm(x, weight)
    return lambda x: torch.addmm(bias, x, weight)


def _added(
    weight: Tensor, bias: Tensor | None, factor: float = 1.0
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that adds such a product, times a factor, to its first argument, and
    returns that."""
    if bias is None:
        return lambda x, inner: x.addmm_(inner, weight, alpha=factor)
    bias = factor * bias
    return lambda x, inner: x.add_(bias).addmm_(inner, weight, alpha=factor)


def _half(layer: Any, name: str) -> Callable[[Tensor], Tensor]:
    feed, norm = getattr(layer, name), _norm(getattr(layer, f"norm_{name}"))
    up = _product(feed.linear1.weight.t(), feed.linear1.bias)
    down = _added(feed.linear2.weight.t(), feed.linear2.bias, float(layer.fc_factor))
    return lambda x: down(x, F.silu(up(norm(x)), inplace=True))


def _attention(layer: Any) -> Block:
    attention, norm = layer.self_attn, _norm(layer.norm_self_att)
    heads, depth = attention.h, attention.d_k
    project = _product(*_merged(attention.linear_q, attention.linear_k, attention.linear_v))
    out = _added(attention.linear_out.weight.t(), attention.linear_out.bias)
    by_content, by_place, scale = attention.pos_bias_u, attention.pos_bias_v, 1 / attention.s_d_k

    def attend(x: Tensor, batch: int, pos_emb: Tensor) -> Tensor:
        frames = x.shape[0] // batch
        query, keys, values = (
            project(norm(x)).view(batch, frames, 3, heads, depth).permute(2, 0, 3, 1, 4).unbind()
        )
        query = query.transpose(1, 2)
        rows = batch * heads
        place = torch.matmul(
            (query + by_place).transpose(1, 2), attention._positions(pos_emb, frames)
        )
        # As UnmaskedAttention has it: row i looks at place j - i.
        place = place.view(rows, frames, 2 * frames).as_strided(
            (rows, frames, frames), (2 * frames * frames, 2 * frames - 1, 1), frames
        )
        query = (query + by_content).transpose(1, 2).reshape(rows, frames, depth)
        keys = keys.reshape(rows, frames, depth).transpose(1, 2)
        weights = torch.softmax(torch.baddbmm(place, query, keys, beta=scale, alpha=scale), -1)
        attended = torch.bmm(weights, values.reshape(rows, frames, depth))
        attended = attended.view(batch, heads, frames, depth).transpose(1, 2)
        return out(x, attended.reshape(-1, heads * depth))

    return attend


def _merged(*linears: Any) -> tuple[Tensor, Tensor | None]:
    """Return the weights [D, sum of D'] and biases of layers of one input side by side; theirs
    become parts of them."""
    weights: list[Tensor] = []
    widths: list[int] = []
    biases: list[Tensor | None] = []
    for linear in linears:
        weights.append(linear.weight.t())
        widths.append(linear.out_features)
        biases.append(linear.bias)
    weight = torch.cat(weights, 1)
    parts = weight.split(widths, 1)
    for linear, part in zip(linears, parts, strict=True):
        linear.weight.data = part.t()
    present = [bias for bias in biases if bias is not None]
    if len(present) < len(biases):
        return weight, None
    return weight, torch.cat(present)


def _convolution(layer: Any) -> Callable[[Tensor, int], Tensor]:
    conv, norm = layer.conv, _norm(layer.norm_conv)
    widen = _product(conv.pointwise_conv1.weight[:, :, 0].t(), conv.pointwise_conv1.bias)
    narrow = _added(conv.pointwise_conv2.weight[:, :, 0].t(), conv.pointwise_conv2.bias)
    weight, bias = _folded(conv.depthwise_conv, conv.batch_norm)
    around, groups = (0, conv.depthwise_conv._left_padding), conv.depthwise_conv.groups

    def convolve(x: Tensor, batch: int) -> Tensor:
        inner = F.glu(widen(norm(x)), -1)
        width = inner.shape[1]
        inner = inner.view(batch, -1, width)
        frames = inner.shape[1]
        inner = conformer.filled(inner, conformer.DEPTHWISE_STEP_FRAMES)[:, None].permute(
            0, 3, 1, 2
        )
        inner = F.conv2d(inner, weight, bias, padding=around, groups=groups)[:, :, :, :frames]
        return narrow(x, F.silu(inner.permute(0, 2, 3, 1).reshape(-1, width), inplace=True))

    return convolve


def _folded(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Return weight [C, 1, 1, K] and bias [C] of a depthwise convolution with the BatchNorm behind
    it."""
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight = (conv.weight * factor[:, None, None])[:, :, None]
    shift = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    return weight, norm.bias - shift * factor
