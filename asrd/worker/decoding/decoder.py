"""The encoder's output -> timed tokens: what the decoder of every family does.

Decoding is greedy, and its text is NeMo's own. CTC collapses the best path. Transducers run NeMo's
greedy_batch, whatever strategy their checkpoint names. Canary is decoded as `canary` describes.
`replay` switches NeMo's own CUDA graphs on. Only a process that loads nothing more may call it:
capturing a graph can break torch.load in the whole process.

A decoder knows models, tokens and frames; it knows no audio. NeMo's transcribe() pads a buffer
shorter than a second with silence on both sides. A caller that wants its text pads the buffer so
before encoding. A decoder runs on any device and in any dtype that casting leaves, in and out of
autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from asrd.worker.casting.capabilities import has_lstm
from asrd.worker.decoding.word_times import Decoded
from asrd.worker.encoder.cuda_graphs import GraphCapture

LINGER_FRAMES = 2
"""Frames that a token goes on after its last one where no other follows: a spike is shorter than
the speech it stands for."""


class Decoder(Protocol):
    """Turns the encoder's output for one buffer into text and timed tokens."""

    family: str
    """ctc, rnnt, tdt, hybrid or aed."""

    def __call__(self, encoded: Tensor, length: Tensor) -> Decoded:
        """Return the text and tokens of an encoder output [1, D, T], of which `length` [1] frames
        are audio and not padding."""
        ...

    def decode_batch(
        self, encoded: Tensor, lengths: Tensor, paths: Sequence[DecoderState | None] = ()
    ) -> list[Decoded]:
        """Return the same for each of several buffers [B, D, T], of which `lengths` [B] frames are
        audio.

        Of a buffer that has one of `paths`, only what follows that.
        """
        ...

    def state_after(self, text: str, frames: int) -> DecoderState | None:
        """Return the state after `text` in a buffer's first `frames`; None where decoding cannot go
        on from it."""
        ...

    def freeze_weights(self) -> None:
        """Keep what is computed from the weights: they may not change from here on."""
        ...

    def replay(self, graphs: GraphCapture) -> None:
        """From here on replay whole steps as CUDA graphs, as `graphs` allows, and note which;
        it changes no text."""
        ...

    def boost_phrases(self, phrases: Sequence[str], weight: float) -> None:
        """Boost these phrases, at least one, from here on by a weight in nats.

        Raises:
            ConfigError: a phrase that the model cannot write, or a model or a search that can boost
                none.
        """
        ...


class DecoderState(NamedTuple):
    """How far greedy decoding has come over a buffer's first `frames`; what follows can be decoded
    from here."""

    frames: int = 0
    ids: tuple[int, ...] = ()
    """CTC: the best token of each frame, blanks too. Transducers: the tokens so far."""
    starts: tuple[int, ...] = ()
    """Transducers: the frame of each token."""
    durations: tuple[int, ...] = ()
    """TDT: the length of each token by the model, in frames."""
    confidences: tuple[Any, ...] = ()
    """The probability of each id; None where the decoder gives none."""
    state: Any = None
    """Transducers: NeMo's decoder state, which decoding on from it leaves as it is. CTC: that of
    boosted phrases."""


class Resumable(Decoder, Protocol):
    """A decoder that reads from left to right, and so can go on where it stopped."""

    def resume(self, path: DecoderState, encoded: Tensor) -> DecoderState:
        """Return the path with the frames of an encoder output [1, D, T] behind it; `path` itself
        stays valid."""
        ...

    def read(self, path: DecoderState) -> Decoded:
        """Return the text up to a path's end."""
        ...


# -- shared by several families
# ---------------------------------------------------------------------------------


def one_by_one(decoder: Decoder, encoded: Tensor, lengths: Tensor) -> list[Decoded]:
    """Return what a decoder of one buffer makes of each of several, without the padding behind
    it."""
    decoded = []
    for row, count in enumerate(map(int, lengths)):
        decoded.append(decoder(encoded[row : row + 1, :, :count], lengths[row : row + 1]))
    return decoded


def recurrent(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return the context that an LSTM needs: without oneDNN where that has none for autocast's
    dtype on this CPU."""
    if tensor.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return nullcontext()
    if has_lstm(torch.get_autocast_dtype("cpu")):
        return nullcontext()
    return torch.backends.mkldnn.flags(enabled=False)
