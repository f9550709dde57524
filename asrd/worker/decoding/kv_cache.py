"""Canary's transformer decoder with its keys and values kept, and its attention to the audio.

NeMo's TransformerDecoder projects the keys and values of the whole encoder output again for every
token, and those of all earlier tokens too. Here the encoder's are projected once a buffer and the
tokens' once each. The arithmetic is otherwise NeMo's, on NeMo's own modules. They are called as
modules, so that quantised, cast or hooked layers work. This file knows tensors and token ids; it
knows no text, no prompt and no clock.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear

from asrd.errors import ModelError

MASKED = -10000.0
"""NeMo's NEG_INF: the number to add to the score of a later token. Fits float16."""


class Pair(NamedTuple):
    """Keys and values of one attention, each [B, heads, length, width of a head]."""

    keys: Tensor
    values: Tensor


class LayerCache(Protocol):
    """The cache that a decoder's layers read from and write to."""

    cross: list[Pair]
    """Keys and values of the encoder's output, by layer."""
    padding: Tensor | None
    """The number to add to the scores of the encoder's frames [B heads, 1, T], in their dtype;
    None: nothing is padded."""

    def append(self, layer: int, fresh: Tensor) -> Pair:
        """Keep a layer's keys and values of new tokens [2, B, heads, N, width]; return those that
        it attends to."""
        ...


class KVCache:
    """The cache of one buffer's decoding: both attentions' keys and values by layer, and the
    attention to the audio.

    Args:
        cross: keys and values of the encoder's output, by layer.
        room: tokens, prompt included, that there will be at most.
    """

    def __init__(self, cross: list[Pair], room: int) -> None:
        self.cross = cross
        self.padding: Tensor | None = None
        self.own: list[Tensor] = []
        self.length, self.room = 0, room
        self.attention: list[Tensor] = []
        """One [layers, heads, tokens, frames] per step; a token's row is from reading it to predict
        the next one."""

    def attention_rows(self) -> NDArray[np.float32]:
        """Return the attention of every token read so far [tokens, frames], the mean over layers
        and heads."""
        means = [step.float().mean((0, 1)) for step in self.attention]
        rows: NDArray[np.float32] = torch.cat(means).cpu().numpy()
        return rows

    def append(self, layer: int, fresh: Tensor) -> Pair:
        """Keep a layer's fresh keys and values and return all up to them; `length` moves after the
        last layer."""
        if layer == len(self.own):
            self.own.append(fresh.new_empty(*fresh.shape[:3], self.room, fresh.shape[4]))
        stop = self.length + fresh.shape[3]
        self.own[layer][:, :, :, self.length : stop] = fresh
        return Pair(*self.own[layer][:, :, :, :stop])


class CachedDecoder:
    """NeMo's TransformerDecoderNM and the head above it, a few tokens at a time.

    Args:
        transformer: model.transf_decoder.
        head: model.log_softmax.

    Raises:
        ModelError: another kind of decoder, or one with adapters.
    """

    def __init__(self, transformer: Any, head: Any) -> None:
        from nemo.collections.asr.modules.transformer.transformer import TransformerDecoderNM

        if not isinstance(transformer, TransformerDecoderNM):
            raise ModelError(
                f"a Canary decoder of kind {type(transformer).__name__} is not supported"
            )
        for layer in transformer.decoder.layers:
            if layer.is_adapter_available():
                raise ModelError(
                    "a Canary decoder with adapters is not supported",
                    "merge the adapters into its weights",
                )
        self.embedding, self.decoder, self.head = transformer.embedding, transformer.decoder, head
        self.max_tokens = int(transformer.max_sequence_length)
        self._norms = list(map(_norms, self.decoder.layers))
        self._joined: list[tuple[Tensor, Tensor] | None] = [None] * len(self.decoder.layers)

    def join(self) -> None:
        """Make query, key and value of a text's token one product, where they can be. No weight may
        change after it."""
        if not any(self._joined):  # a graph may read what was joined
            self._joined = [_joined(layer.first_sub_layer) for layer in self.decoder.layers]

    def new_cache(self, audio: Tensor, room: int) -> KVCache:
        """Return a cache for an encoder output [1, T, D], with room for so many tokens."""
        return KVCache(self.project(audio), room)

    def project(self, audio: Tensor) -> list[Pair]:
        """Return each layer's keys and values of encoder outputs [B, T, D]."""
        return [_pair(layer.second_sub_layer, audio) for layer in self.decoder.layers]

    def step(self, cache: KVCache, ids: Tensor) -> Tensor:
        """Read tokens [1, N] and return float32 logits [N, V], of which row n predicts the token
        after token n."""
        count, mask = ids.shape[1], None
        if count > 1:
            mask = _causal(count, cache.length, ids.device)
        states = self.embedding(input_ids=ids, start_pos=cache.length)
        logits, attention = self.read(cache, states, mask)
        cache.length += count
        cache.attention.append(attention[:, 0])
        return logits[0].float()

    def positions(self, count: int, device: torch.device) -> Tensor:
        """Return the embeddings of the first positions of a text [count, D], for `embed`."""
        # Positions behind the last one are never read.
        numbers = torch.arange(count, device=device).clamp_max_(self.max_tokens - 1)
        embedded: Tensor = self.embedding.position_embedding(numbers)
        return embedded

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Return the output of NeMo's embedding [B, N, D], for tokens [B, N] at embedded positions [N,
        D]."""
        embedded: Tensor = self.embedding.layer_norm(
            self.embedding.token_embedding(ids) + positions
        )
        return embedded

    def read(self, cache: LayerCache, states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Read embedded tokens [B, N, D]; return logits [B, N, V] and the attention to the audio
        [layers, B, heads, N, T].

        Args:
            mask: added to their scores over the tokens that `cache` then keeps.
        """
        weights = []
        for number, layer in enumerate(self.decoder.layers):
            states, attention = self._block(layer, number, states, mask, cache)
            weights.append(attention)
        if self.decoder.final_layer_norm is not None:
            states = self.decoder.final_layer_norm(states)
        with self.head.with_log_softmax_enabled(False) as head:
            logits: Tensor = head(hidden_states=states)
        return logits, torch.stack(weights)

    def _block(
        self, layer: Any, number: int, states: Tensor, mask: Tensor | None, cache: LayerCache
    ) -> tuple[Tensor, Tensor]:
        """Return a TransformerDecoderBlock's output [B, N, D] and its attention to the audio [B,
        heads, N, T].

        Each norm comes before its part, or behind it and the sum.
        """
        own, cross = layer.first_sub_layer, layer.second_sub_layer
        before, behind = self._norms[number]
        query, fresh = self._parts(own, number, before[0](states))
        attended, _ = _attend(own, query, cache.append(number, fresh), mask)
        attended += states
        attended = behind[0](attended)
        query = _split(cross, cross.query_net(before[1](attended)))
        output, attention = _attend(cross, query, cache.cross[number], cache.padding)
        output += attended
        attended = behind[1](output)
        output = layer.third_sub_layer(before[2](attended))
        output += attended
        return behind[2](output), attention

    def _parts(self, own: Any, number: int, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return for states [B, N, D] queries [B, heads, N, width], and keys and values [2, B,
        heads, N, width]."""
        joined = self._joined[number]
        if joined is None:
            return _split(own, own.query_net(states)), torch.stack(_pair(own, states))
        all_three = linear(states, *joined).view(*states.shape[:2], 3, own.num_attention_heads, -1)
        parts = all_three.permute(2, 0, 3, 1, 4)
        return parts[0], parts[1:]


def _norms(layer: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return what a block does before each of its three parts, and what behind each."""
    norms = layer.layer_norm_1, layer.layer_norm_2, layer.layer_norm_3
    nothing = (_unchanged,) * 3
    if layer.pre_ln:
        return norms, nothing
    return nothing, norms


def _unchanged(states: Tensor) -> Tensor:
    return states


def _joined(attention: Any) -> tuple[Tensor, Tensor] | None:
    """Return the weights [3 D, D] of queries, keys and values, of which each net keeps its part,
    and the biases [3 D].

    None where they are not plain numbers of one dtype, or where a net has hooks, as no net would be
    called.
    """
    nets = attention.query_net, attention.key_net, attention.value_net
    plain = (torch.nn.Linear, Tensor, nets[0].weight.dtype, torch.nn.Parameter)
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for net in nets:
        if net._forward_hooks or net._forward_pre_hooks or "forward" in vars(net):
            return None
        if (type(net), type(net.weight.data), net.weight.dtype, type(net.bias)) != plain:
            return None
        weights.append(net.weight.data)
        biases.append(net.bias.data)
    weight, bias = torch.cat(weights), torch.cat(biases)
    for net, rows, offsets in zip(nets, weight.chunk(3), bias.chunk(3), strict=True):
        net.weight.data, net.bias.data = rows, offsets
    return weight, bias


def _attend(
    attention: Any, query: Tensor, pair: Pair, added: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the attention's output [B, N, D] for queries [B, heads, N, width], and its weights [B,
    heads, N, length].

    `added`, which is expanded to [B heads, N, length], is added to the scores.
    """
    keys, values = pair.keys.flatten(0, 1), pair.values.flatten(0, 1)
    if added is None:
        beta, added = 0, query.new_empty(1)
    else:
        beta, added = 1, added.to(query.dtype)
    alpha = attention.attn_scale**-2  # NeMo divides both sides by its root, in a kernel for each
    scores = torch.baddbmm(added, query.flatten(0, 1), keys.transpose(1, 2), beta=beta, alpha=alpha)
    weights = torch.softmax(scores, dim=-1)
    context = (weights @ values).view(query.shape).transpose(1, 2).flatten(2)
    return attention.out_projection(context), weights.view(*query.shape[:3], -1)


def _pair(attention: Any, states: Tensor) -> Pair:
    """Return the keys and values of states [B, N, D]."""
    keys = _split(attention, attention.key_net(states))
    return Pair(keys, _split(attention, attention.value_net(states)))


def _split(attention: Any, states: Tensor) -> Tensor:
    """Return [B, heads, N, D / heads] for [B, N, D]."""
    split: Tensor = states.view(*states.shape[:-1], attention.num_attention_heads, -1).transpose(
        1, 2
    )
    return split


def _causal(count: int, before: int, device: torch.device) -> Tensor:
    """Return the mask to add to the scores of `count` new tokens over themselves and the `before`
    earlier ones."""
    later = torch.ones(count, before + count, device=device, dtype=torch.bool).triu(before + 1)
    return later * MASKED
