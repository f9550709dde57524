"""NeMo's front end and FastConformer without the masks that one whole buffer does not need.

NeMo computes a batch of padded buffers: every convolution is masked before and after, attention is
masked twice, and features are counted over masks. A buffer that is alone, or in a batch of one
length, has no padding; all masks then multiply by one. Left out here are masks, dropouts, copies
between layouts, the square of a square root, and the projection of relative positions. That depends
only on the length and is kept. The arithmetic is otherwise NeMo's, on NeMo's own modules. Each is
still called as a module, so that cast, quantised and hooked layers work.

`remove_masks` gives a class of this file to each module of a supported kind. A length of None then
means that nothing is padded. A given length, a streaming cache, and modules of any other kind go
NeMo's own way.

Captured work has fixed shapes, so there buffers are padded after all. `real` then holds, on the
device, how much of each is audio. Masks stand only where audio could see padding: before strided
convolutions, before the depthwise ones, and in attention. The frames of audio come out as without
padding; the others mean nothing.

This file knows tensors; it knows no text. It runs in any dtype that casting leaves, in and out of
autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from nemo.collections.asr.modules.conformer_encoder import ConformerEncoder
from nemo.collections.asr.parts.preprocessing.features import FilterbankFeatures
from nemo.collections.asr.parts.submodules.causal_convs import CausalConv1D
from nemo.collections.asr.parts.submodules.conformer_modules import (
    ConformerConvolution,
    ConformerFeedForward,
    ConformerLayer,
)
from nemo.collections.asr.parts.submodules.multi_head_attention import RelPositionMultiHeadAttention
from nemo.collections.asr.parts.submodules.subsampling import ConvSubsampling
from nemo.collections.asr.parts.utils.activations import Swish
from nemo.utils.cast_utils import avoid_float16_autocast_context
from torch import Tensor, nn
from torch.nn import functional as F

MASKED = -10000.0
"""NeMo's INF_VAL: the score of a frame that may not be attended to. Fits float16."""

SUBSAMPLING_STEP_FRAMES, DEPTHWISE_STEP_FRAMES = 64, 16
"""On a CPU convolutions run over multiples of these: feature frames, encoder frames.

oneDNN makes a kernel for each length. A few lengths leave none to make, or to drop for a new one.
Kernels that came and went between the activations kept up to 60 MiB of holes in the heap, and cost
a tenth of the CPU time.
"""


class UnmaskedFeatures(FilterbankFeatures):
    """Log-mel features of buffers of one length, without the frame that NeMo computes after the last
    and masks."""

    @torch.no_grad()
    def forward(
        self, x: Tensor, seq_len: Tensor | None, linear_spec: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return (features [B, mels, frames], None) for samples [B, N] and no lengths."""
        if seq_len is not None or linear_spec:
            found: tuple[Tensor, Tensor] = super().forward(x, seq_len, linear_spec)
            return found
        frames = x.shape[1] // self.hop_length
        if self.preemph is not None:
            x = torch.cat((x[:, :1], torch.sub(x[:, 1:], x[:, :-1], alpha=self.preemph)), dim=1)
        with torch.autocast(x.device.type, enabled=False):
            waves = torch.view_as_real(self.stft(x).transpose(1, 2)[:, :frames])
            real, imaginary = waves.unbind(-1)
            mels = torch.addcmul(real * real, imaginary, imaginary) @ self.fb.to(
                real.dtype
            ).transpose(1, 2)
        guard = self.log_zero_guard_value_fn(mels)
        mels = (
            mels.add_(guard) if self.log_zero_guard_type == "add" else mels.clamp_(min=guard)
        ).log_()
        if self.normalize == "per_feature":
            mels -= mels.mean(1, keepdim=True)
            variance = mels.square().sum(1, keepdim=True) / (frames - 1)
            mels /= variance.sqrt_().add_(1e-5)
        return mels.transpose(1, 2), None


class UnmaskedSubsampling(ConvSubsampling):
    """The strided convolutions, unmasked; on a CPU with the channels last, where depthwise ones
    take a third."""

    def forward(
        self, x: Tensor, lengths: Tensor | None, real: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return ([B, T, D], None) for features [B, frames, mels] and no lengths.

        With `real` [B] frames of audio, how many of T are audio is returned in the place of None.
        """
        if lengths is not None:
            found: tuple[Tensor, Tensor] = super().forward(x, lengths)
            return found
        if real is None and x.device.type == "cpu":
            return self._in_steps(x), None
        x = x[:, None]
        for layer in self.conv:
            if real is not None and _strides(layer):
                x = x.masked_fill(_padding(real, x.shape[2])[:, None], 0.0)
                real = _strided(layer, real)
            x = torch.relu_(x) if type(layer) is nn.ReLU else layer(x)
        return self.out(x.transpose(1, 2).flatten(2)), real

    def _in_steps(self, x: Tensor) -> Tensor:
        """Return [B, T, D] for features [B, frames, mels], computed over the next of few
        lengths."""
        frames = x.shape[1]
        x = filled(x, SUBSAMPLING_STEP_FRAMES)[:, None]
        for layer in self.conv:
            if _strides(layer):
                # A strided convolution sees frames behind the last: to it they must be the zeros of
                # its own padding.
                x[:, :, frames:] = 0.0
                frames = _strided(layer, frames)
            x = torch.relu_(x) if type(layer) is nn.ReLU else layer(x)
        out: Tensor = self.out(x[:, :, :frames].transpose(1, 2).flatten(2))
        return out


class UnmaskedAttention(RelPositionMultiHeadAttention):
    """Attention with relative positions; what the positions are projected to is kept for the
    longest buffer so far."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        pos_emb: Tensor,
        cache: Any = None,
    ) -> Any:
        """Return [B, T, D] for one input [B, T, D]; `mask` [1 or B, 1 or T, T] is True where a
        frame may not look."""
        if cache is not None or query is not key:
            return super().forward(query, key, value, mask, pos_emb, cache)
        if not torch.is_autocast_enabled():
            return self._attend(query, mask, pos_emb)
        with avoid_float16_autocast_context():
            return self._attend(query.float(), mask, pos_emb)

    def _attend(self, x: Tensor, mask: Tensor | None, pos_emb: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query = self.linear_q(x).view(batch, length, self.h, self.d_k)
        keys = self.linear_k(x).view(batch, length, self.h, self.d_k).permute(0, 2, 3, 1)
        values = self.linear_v(x).view(batch, length, self.h, self.d_k).transpose(1, 2)
        by_place = (query + self.pos_bias_v).transpose(1, 2) @ self._positions(pos_emb, length)
        by_place = by_place.contiguous().view(batch * self.h, length, 2 * length)
        # Row i looks at place j - i, which is column length - i + j: a view that starts one earlier
        # in each row.
        by_place = by_place.as_strided(
            (batch * self.h, length, length),
            (2 * length * length, 2 * length - 1, 1),
            by_place.storage_offset() + length,
        )
        by_content = (
            (query + self.pos_bias_u).transpose(1, 2).reshape(batch * self.h, length, self.d_k)
        )
        scale = 1 / self.s_d_k
        scores = torch.baddbmm(
            by_place, by_content, keys.reshape(-1, self.d_k, length), beta=scale, alpha=scale
        )
        scores = scores.view(batch, self.h, length, length)
        if mask is None:
            weights = torch.softmax(scores, -1)
        else:
            mask = mask[:, None]
            weights = torch.softmax(scores.masked_fill_(mask, MASKED), -1).masked_fill_(mask, 0.0)
        attended: Tensor = self.linear_out((weights @ values).transpose(1, 2).flatten(2))
        return attended

    def _positions(self, pos_emb: Tensor, length: int) -> Tensor:
        """Return the projected places [heads, D / heads, 2 * length]: column c stands for place
        length - c."""
        autocast = torch.is_autocast_enabled(pos_emb.device.type)
        kept: dict[bool, Tensor] = self.__dict__.setdefault("_kept", {})
        if autocast not in kept or kept[autocast].shape[2] < 2 * length:
            # Place `length` is never attended to.
            projected = F.pad(self.linear_pos(pos_emb)[0], (0, 0, 1, 0))
            kept[autocast] = (
                projected.view(2 * length, self.h, self.d_k).permute(1, 2, 0).contiguous()
            )
        longest = kept[autocast].shape[2] // 2
        return kept[autocast][:, :, longest - length : longest + length]


class UnmaskedPointwise(nn.Conv1d):
    """A convolution of kernel 1 as the matrix product that it is."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C', T] for [B, C, T], both with the channels last in memory."""
        return F.linear(x.transpose(1, 2), self.weight.squeeze(-1), self.bias).transpose(1, 2)


class UnmaskedDepthwise(CausalConv1D):
    """The depthwise convolution; on a CPU with the channels last."""

    def forward(self, x: Tensor, cache: Any = None) -> Any:
        """Return [B, C, T] for [B, C, T]."""
        if cache is not None or x.device.type != "cpu":
            return super().forward(x, cache)
        frames = x.shape[2]
        if x.stride(1) == 1:
            # In NeMo's own order the layout is another one; a copy of it would round differently.
            x = filled(x.transpose(1, 2), DEPTHWISE_STEP_FRAMES).transpose(1, 2)
        if self._left_padding != self._right_padding:
            x = F.pad(x, (self._left_padding, self._right_padding))
        around = self._left_padding if self._left_padding == self._right_padding else 0
        x, weight = x.unsqueeze(2), self.weight.unsqueeze(2)
        return F.conv2d(x, weight, self.bias, padding=(0, around), groups=self.groups).squeeze(2)[
            :, :, :frames
        ]


class UnmaskedConvolution(ConformerConvolution):
    """The convolution module, in [B, T, C] from end to end."""

    def forward(
        self,
        x: Tensor,
        pad_mask: Tensor | None = None,
        cache: Any = None,
        padding: Tensor | None = None,
    ) -> Any:
        """Return [B, T, D] for [B, T, D], of which the frames that are True in `padding` [B, T, 1]
        are padding."""
        if pad_mask is not None or cache is not None:
            return super().forward(x, pad_mask, cache)
        x = F.glu(self.pointwise_conv1(x.transpose(1, 2)).transpose(1, 2), -1)
        if padding is not None:
            x = x.masked_fill(padding, 0.0)
        x = self.depthwise_conv(x.transpose(1, 2)).transpose(1, 2)
        # BatchNorm1d takes frames as a batch too, and is then one pass over contiguous memory.
        x = (
            self.batch_norm(x)
            if self.norm_type == "layer_norm"
            else self.batch_norm(x.flatten(0, 1)).reshape(x.shape)
        )
        return self.pointwise_conv2(F.silu(x, inplace=True).transpose(1, 2)).transpose(1, 2)


class UnmaskedFeedForward(ConformerFeedForward):
    """The feed-forward module, with its activation in place."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, T, D] for [B, T, D]."""
        out: Tensor = self.linear2(F.silu(self.linear1(x), inplace=True))
        return out


class UnmaskedLayer(ConformerLayer):
    """One block: half a feed-forward, attention, convolution, half a feed-forward, each added to
    its input."""

    def forward(
        self,
        x: Tensor,
        att_mask: Tensor | None = None,
        pos_emb: Tensor | None = None,
        pad_mask: Tensor | None = None,
        cache_last_channel: Any = None,
        cache_last_time: Any = None,
        padding: Tensor | None = None,
    ) -> Any:
        """Return [B, T, D] for [B, T, D], of which the frames that are True in `padding` [B, T, 1]
        are padding."""
        if pad_mask is not None or cache_last_channel is not None or self.is_adapter_available():
            return super().forward(
                x, att_mask, pos_emb, pad_mask, cache_last_channel, cache_last_time
            )
        x = torch.add(x, self.feed_forward1(self.norm_feed_forward1(x)), alpha=self.fc_factor)
        inner = self.norm_self_att(x)
        x = x + self.self_attn(query=inner, key=inner, value=inner, mask=att_mask, pos_emb=pos_emb)
        x = x + (
            self.conv(self.norm_conv(x))
            if padding is None
            else self.conv(self.norm_conv(x), padding=padding)
        )
        x = torch.add(x, self.feed_forward2(self.norm_feed_forward2(x)), alpha=self.fc_factor)
        return self.norm_out(x)


class UnmaskedEncoder(ConformerEncoder):
    """The encoder, where `length` is None."""

    def forward(
        self,
        audio_signal: Tensor,
        length: Tensor | None = None,
        cache_last_channel: Any = None,
        real: Tensor | None = None,
        **streaming: Any,
    ) -> Any:
        """Return (encoded [B, D, T], lengths [B], all of them T) for features [B, mels, frames] and
        no lengths.

        With `real` [B], how many of the frames are audio, `lengths` are how many of T are.
        """
        if length is not None or cache_last_channel is not None or streaming:
            call = dict(
                audio_signal=audio_signal,
                length=length,
                cache_last_channel=cache_last_channel,
                **streaming,
            )
            return super().forward(**call)
        self.update_max_seq_length(seq_length=audio_signal.shape[2], device=audio_signal.device)
        x, real = self.pre_encode(x=audio_signal.transpose(1, 2), lengths=None, real=real)
        batch, frames, _ = x.shape
        lengths = torch.full((batch,), frames, device=x.device)
        x, pos_emb = self.pos_enc(x=x)
        mask = None
        if self.att_context_style != "regular" or list(self.att_context_size) != [-1, -1]:
            _, mask = self._create_masks(self.att_context_size, lengths[:1], frames, None, x.device)
        padding = None
        if real is not None:
            lengths, padding = real, _padding(real, frames)
            later = padding.transpose(1, 2)
            mask = later if mask is None else mask | later
        for layer in self.layers:
            x = layer(x=x, att_mask=mask, pos_emb=pos_emb, padding=padding)
        if self.out_proj is not None:
            x = self.out_proj(x)
        return x.transpose(1, 2), lengths


def frames_of(encoder: Any, features: int) -> int:
    """Return how many frames an encoder that took these classes puts out for so many feature
    frames."""
    for layer in filter(_strides, encoder.pre_encode.conv):
        features = _strided(layer, features)
    return features


def filled(x: Tensor, step: int) -> Tensor:
    """Return x [B, T, ...] with zeros behind it up to the next multiple of `step`; x itself where
    it is one."""
    lack = -x.shape[1] % step
    return F.pad(x, (*(0, 0) * (x.dim() - 2), 0, lack)) if lack else x


def _strides(layer: nn.Module) -> bool:
    return getattr(layer, "stride", (1, 1)) != (1, 1)


def _strided(layer: Any, count: Any) -> Any:
    """Return how many frames a strided convolution makes of a count that is an int, or a tensor on
    the device."""
    causal = hasattr(layer, "_left_padding")
    around = layer._left_padding + layer._right_padding if causal else 2 * layer.padding[0]
    return (count + around - layer.kernel_size[0]) // layer.stride[0] + 1


def _padding(real: Tensor, frames: int) -> Tensor:
    """Return which of `frames` follow the `real` [B] ones [B, frames, 1]."""
    return torch.arange(frames, device=real.device)[:, None] >= real[:, None, None]


def remove_masks(model: Any, device: torch.device, empty: bool = False) -> bool:
    """Give the modules of a restored model, in eval mode, these classes; return whether its encoder
    now takes no lengths.

    No tensor is changed but for its layout in memory on a CPU; of an `empty` model, into which its
    numbers are not read yet, none is copied for that. All or nothing: a model of which one part is
    of another kind stays as it is.
    """
    features, encoder = getattr(model.preprocessor, "featurizer", None), model.encoder
    if not (_plain_features(features) and _plain_encoder(encoder)):
        return False
    features.__dict__.pop("forward", None)  # NeMo keeps its own there, under no_grad
    features.__class__ = UnmaskedFeatures
    encoder.__class__, encoder.pre_encode.__class__ = UnmaskedEncoder, UnmaskedSubsampling
    if device.type == "cpu":
        encoder.pre_encode.conv.to(memory_format=torch.channels_last)
        for linear in (module for module in encoder.modules() if isinstance(module, nn.Linear)):
            turned = linear.weight.data.t()
            turned = (
                torch.empty_like(turned, memory_format=torch.contiguous_format)
                if empty
                else turned.contiguous()
            )
            linear.weight.data = turned.t()  # as the product reads it
    for layer in encoder.layers:
        layer.__class__ = UnmaskedLayer
        layer.feed_forward1.__class__ = layer.feed_forward2.__class__ = UnmaskedFeedForward
        layer.self_attn.__class__, layer.conv.__class__ = UnmaskedAttention, UnmaskedConvolution
        layer.conv.pointwise_conv1.__class__ = layer.conv.pointwise_conv2.__class__ = (
            UnmaskedPointwise
        )
        layer.conv.depthwise_conv.__class__ = UnmaskedDepthwise
    return True


def _plain_features(features: Any) -> bool:
    """Return whether these are log-mel features as UnmaskedFeatures computes them."""
    return (
        type(features) is FilterbankFeatures
        and features.normalize in ("per_feature", "NA", "", None)
        and (features.stft_pad_amount, features.mag_power, features.frame_splicing)
        == (None, 2.0, 1)
        and (features.log, features.use_grads, features.pad_to) == (True, False, 0)
    )


def _plain_encoder(encoder: Any) -> bool:
    """Return whether every module is of exactly the kind that has a class here."""
    return (
        type(encoder) is ConformerEncoder
        and type(encoder.pre_encode) is ConvSubsampling
        and encoder.pre_encode.conv2d_subsampling
        and encoder.pre_encode._subsampling in ("dw_striding", "striding")
        and encoder.pre_encode.subsampling_conv_chunking_factor == 1
        and encoder.reduction_position is None
        and encoder.self_attention_model == "rel_pos"
        and all(_plain_layer(layer) for layer in encoder.layers)
    )


def _plain_layer(layer: Any) -> bool:
    conv = layer.conv
    blocks = (layer, layer.feed_forward1, layer.feed_forward2, layer.self_attn, conv)
    kinds = (
        ConformerLayer,
        ConformerFeedForward,
        ConformerFeedForward,
        RelPositionMultiHeadAttention,
    )
    return (
        tuple(map(type, blocks)) == (*kinds, ConformerConvolution)
        and not layer.is_adapter_available()
        and not layer.self_attn.use_pytorch_sdpa
        and {type(layer.feed_forward1.activation), type(layer.feed_forward2.activation)} == {Swish}
        and conv.pointwise_activation == "glu_"
        and (conv.norm_type, type(conv.batch_norm)) in NORMS
        and tuple(map(type, (conv.pointwise_conv1, conv.depthwise_conv, conv.pointwise_conv2)))
        == (nn.Conv1d, CausalConv1D, nn.Conv1d)
    )


NORMS = (("batch_norm", nn.BatchNorm1d), ("layer_norm", nn.LayerNorm))
"""The norms that a convolution module may have between its depthwise convolution and its
activation."""
