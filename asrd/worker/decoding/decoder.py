"""What the encoder put out -> timed tokens, for each family of models.

Greedy decoding, and its text is NeMo's own: CTC by collapsing the best path, transducers by NeMo's
greedy_batch whatever strategy their checkpoint names, Canary as `canary` says. NeMo's own CUDA
graphs are switched on by `replay` only, which is for a process that loads nothing more: capturing
one can break torch.load in the whole process.

Knows models, tokens and frames. Knows no sound: NeMo's transcribe() pads what is shorter than a
second with silence on both sides, and who wants its text for such a buffer pads it so before
encoding. Runs in the worker, on any device and in any dtype that casting leaves, in and out of
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

LINGER = 2
"""Frames that a token goes on after its last one where no other follows: a spike is shorter than
what it stands for."""


class Decoder(Protocol):
    """Turns the encoder's output for one buffer into text and timed tokens."""

    family: str
    """ctc, rnnt, tdt, hybrid or aed."""

    def __call__(self, encoded: Tensor, length: Tensor) -> Decoded:
        """Return what was said, for an encoder output [1, D, T] of which `length` [1] frames hold
        sound."""
        ...

    def several(
        self, encoded: Tensor, lengths: Tensor, paths: Sequence[DecoderState | None] = ()
    ) -> list[Decoded]:
        """Return what was said in each of several buffers [B, D, T] of which `lengths` [B] frames
        hold sound.

        Of a buffer that has one of `paths`, what follows that.
        """
        ...

    def after(self, text: str, frames: int) -> DecoderState | None:
        """Return a path by which `text` was said in a buffer's first `frames`; None where nothing
        can go on from it."""
        ...

    def settle(self) -> None:
        """Take the weights to be final: what is made of them may be kept from here on."""
        ...

    def replay(self, recorder: GraphCapture) -> None:
        """From here on replay whole steps as CUDA graphs, as `recorder` allows and tells; it
        changes no text."""
        ...

    def prefer(self, phrases: Sequence[str], weight: float) -> None:
        """From here on prefer these phrases, at least one, where the sound leaves a choice, by a
        weight in nats.

        Raises ConfigError: a phrase that the model cannot write, a model or a search that has no
        room for preferences.
        """
        ...


class DecoderState(NamedTuple):
    """How far greedy decoding has come over a buffer's first `frames`; what follows can be decoded
    from here."""

    frames: int = 0
    ids: tuple[int, ...] = ()
    """CTC: the best token of each frame, blanks too. Transducers: the tokens said."""
    starts: tuple[int, ...] = ()
    """Transducers: the frame of each token."""
    durations: tuple[int, ...] = ()
    """TDT: what the model says of each token's length, in frames."""
    sure: tuple[Any, ...] = ()
    """The probability of each id; None where the decoder gives none."""
    state: Any = None
    """Transducers: NeMo's decoder state, which decoding on from it leaves as it is. CTC: that of
    preferred phrases."""


class Resumable(Decoder, Protocol):
    """A decoder that reads from left to right, and so can go on where it stopped."""

    def resume(self, path: DecoderState, encoded: Tensor) -> DecoderState:
        """Return the path with the frames of an encoder output [1, D, T] behind it; `path` itself
        stays valid."""
        ...

    def read(self, path: DecoderState) -> Decoded:
        """Return what was said up to a path's end."""
        ...


# -- small things of several families
# ---------------------------------------------------------------------------------


def one_by_one(decoder: Decoder, encoded: Tensor, lengths: Tensor) -> list[Decoded]:
    """Return what a decoder of one buffer says of each of several, without the padding behind
    it."""
    counts = [int(count) for count in lengths]
    return [
        decoder(encoded[n : n + 1, :, :count], lengths[n : n + 1]) for n, count in enumerate(counts)
    ]


def recurrent(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return the context that an LSTM needs: without oneDNN where that has none for autocast's
    dtype on this CPU."""
    if tensor.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return nullcontext()
    lacks = not has_lstm(torch.get_autocast_dtype("cpu"))
    return torch.backends.mkldnn.flags(enabled=False) if lacks else nullcontext()
