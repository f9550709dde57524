"""Canary's decoder in tensors of one size, so that reading a token is the same work at every
place.

The tensors of `kv_cache.KVCache` grow with each token. Here there is room for the longest text from
the start, and places not yet written are masked. The device reads a token from where it wrote it.
The host decides when a text ends, from one step behind. So the device never waits for it, and one
step at most is computed in vain. Several texts are read in step, each with its own audio. One that
has ended is read on, and its tokens are ignored. Tokens, their probabilities and the attention are
those of `CachedDecoder.step`.

This file knows tensors and token ids. On a card its work is replayed as graphs; tests run it on a
CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asrd.worker.decoding.kv_cache import MASKED, CachedDecoder, Pair
from asrd.worker.encoder.cuda_graphs import GraphCapture, Work, arithmetic

STEP_FRAMES = 128
"""Encoder frames from one size to the next. One size serves a window of ten seconds: the audio
costs little a token."""

MAX_FRAMES = 384
"""Encoder frames that there is a size for: those of the longest window a user can set."""

ROWS = 8
"""Texts that are read in step where there is more than one; a step for an empty row costs next to
nothing."""

MAX_DIFFERENCE_NATS = 0.3
"""Nats by which a replayed token's log probability may differ from that of the same work done
plainly; garbage differs by far more."""


class StaticCacheDecoder:
    """One size of the decoder: `rows` buffers of up to `frames`, texts of up to `room` tokens,
    prompt included.

    Args:
        decoder: the decoder whose layers are used.
        prompt: token ids [1, P] that every text begins with.
        vocabulary_size: token ids from here on are never chosen.
        audio: states that the decoder attends to, for their width, dtype and device.
        rows, frames, room: the size.
    """

    def __init__(
        self,
        decoder: CachedDecoder,
        prompt: Tensor,
        vocabulary_size: int,
        audio: Tensor,
        rows: int,
        frames: int,
        room: int,
    ) -> None:
        device = audio.device
        self.rows, self.frames, self.room = rows, frames, room
        self.cross: list[Pair] = []
        self.padding: Tensor | None = None
        self.begin: Work = self._begin
        self.step: Work = self._step
        self._own: Tensor | None = None
        self._decoder, self._prompt = decoder, prompt.to(device).repeat(rows, 1)
        self._vocabulary_size = vocabulary_size
        self._input = audio.new_zeros(rows, frames, audio.shape[2])
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._counts = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._found = torch.zeros(rows, 2, device=device)
        self._attention = torch.zeros(rows, room, frames, device=device)
        self._places, self._columns = self._place, torch.arange(room, device=device)
        self._positions = decoder.positions(room, device)
        self._later = (self._columns > self._columns[:, None]) * MASKED
        self._each = torch.arange(frames, device=device)
        cuda = device.type == "cuda"
        self._host = torch.zeros(2, rows, 2, pin_memory=cuda)
        self._events: list[torch.cuda.Event] = []
        if cuda:
            self._events += [torch.cuda.Event(), torch.cuda.Event()]
        self._lengths: list[int] = []
        self._read = 0

    def decode(self, audios: Sequence[Tensor], limit: int) -> Iterator[list[tuple[int, float]]]:
        """Yield the next token of each text and its log probability, `limit` times at most.

        It does not look for the end of a text.

        Args:
            audios: states that the decoder attends to [1, T, D], T at most `frames`; at most `rows`
                of them.
            limit: tokens of a text, at most `room` less the prompt's.
        """
        self.load(audios)
        self._send(self.begin(), 0)
        self._read = self._prompt.shape[1]
        for number in range(limit):
            if number + 1 < limit:
                self._send(self.step(), number + 1)
                self._read += 1
            yield self._receive(number)[: len(audios)]

    def load(self, audios: Sequence[Tensor]) -> None:
        """Copy in the states that the decoder is to attend to."""
        self._lengths = []
        self._input.zero_()
        self._counts.zero_()
        for row, audio in enumerate(audios):
            count = audio.shape[1]
            self._lengths.append(count)
            self._input[row : row + 1, :count].copy_(audio)
            self._counts[row].fill_(count)

    def attention_rows(self, row: int, limit: int) -> NDArray[np.float32]:
        """Return the attention of every token read so far in a text [tokens, frames], the mean over
        layers and heads.

        There may be tokens more than were taken from `decode`, but none that follows the `limit`'s.
        """
        read = min(self._read, self._prompt.shape[1] + limit - 1)
        attention = self._attention[row, :read, : self._lengths[row]]
        rows: NDArray[np.float32] = attention.cpu().numpy()
        return rows

    def append(self, layer: int, fresh: Tensor) -> Pair:
        """Keep a layer's keys and values of the tokens that are being read and return those of the
        whole room."""
        if self._own is None:
            layers, (two, rows, heads, _, width) = len(self._decoder.decoder.layers), fresh.shape
            self._own = fresh.new_zeros(layers, two, rows, heads, self.room, width)
        return Pair(*self._own[layer].index_copy_(3, self._places, fresh))

    def _begin(self) -> Tensor:
        """Forget the last texts, project the audio and read the prompt; return the first tokens as
        `_next_tokens` does."""
        pairs = self._decoder.project(self._input)
        if self.padding is None:
            self.cross = list(map(_zeros_like, pairs))
            keys = pairs[0].keys
            self.padding = keys.new_zeros(self.rows * keys.shape[1], 1, self.frames)
            self._later = self._later.to(keys.dtype)
        for kept, new in zip(self.cross, pairs, strict=True):
            kept.keys.copy_(new.keys)
            kept.values.copy_(new.values)
        padded = ((self._each >= self._counts) * MASKED)[:, None, None]
        self.padding.view(self.rows, -1, 1, self.frames).copy_(padded)
        if self._own is not None:
            # A masked place has the weight zero, but zero times infinity or NaN is not zero.
            self._own.zero_()
        self._place.zero_()
        return self._next_tokens(self._prompt)

    def _step(self) -> Tensor:
        """Read the tokens that were found last; return the next ones as `_next_tokens` does."""
        return self._next_tokens(self._tokens)

    def _next_tokens(self, ids: Tensor) -> Tensor:
        """Read tokens [rows, N]; return those that follow, and their log probabilities, as float32
        [rows, 2]."""
        self._places = self._place + self._columns[: ids.shape[1]]
        states = self._decoder.embed(ids, self._positions.index_select(0, self._places))
        later = self._later.index_select(0, self._places)
        logits, attention = self._decoder.read(self, states, later)
        self._attention.index_copy_(1, self._places, attention.mean((0, 2), dtype=torch.float32))
        last = logits[:, -1]
        torch.argmax(last[:, : self._vocabulary_size], -1, keepdim=True, out=self._tokens)
        self._found[:, :1].copy_(self._tokens)  # exact: no vocabulary has 2^24 tokens
        torch.gather(
            torch.log_softmax(last, -1, dtype=torch.float32),
            1,
            self._tokens,
            out=self._found[:, 1:],
        )
        self._place.add_(ids.shape[1])
        return self._found

    def _send(self, found: Tensor, number: int) -> None:
        self._host[number % 2].copy_(found, non_blocking=True)
        if self._events:
            self._events[number % 2].record()

    def _receive(self, number: int) -> list[tuple[int, float]]:
        if self._events:
            self._events[number % 2].synchronize()
        return [(int(token), score) for token, score in self._host[number % 2].tolist()]


class DecoderReplay:
    """The sizes of a Canary decoder, each captured when it is first needed.

    Args:
        decoder, prompt, vocabulary_size: as for `StaticCacheDecoder`.
        graphs: captures the work.
        room: encoder frames -> tokens that there may be for them, prompt included.
    """

    def __init__(
        self,
        decoder: CachedDecoder,
        prompt: Tensor,
        vocabulary_size: int,
        graphs: GraphCapture,
        room: Callable[[int], int],
    ) -> None:
        self._given = decoder, prompt, vocabulary_size
        self._graphs, self._room = graphs, room
        self._ready: dict[tuple[int, int, Any], StaticCacheDecoder | None] = {}

    def __call__(self, audios: Sequence[Tensor], room: int) -> StaticCacheDecoder | None:
        """Return the steps that read `room` tokens for each of up to `ROWS` states [1, T, D]; None
        where none are captured."""
        longest = max(audio.shape[1] for audio in audios)
        frames = -(-longest // STEP_FRAMES) * STEP_FRAMES
        if frames > MAX_FRAMES:
            return None
        rows = 1 if len(audios) == 1 else ROWS
        key = rows, frames, arithmetic(audios[0].device)
        if key not in self._ready:
            self._ready[key] = None
            with self._graphs.trying("decoder"):
                self._ready[key] = self._capture(audios, rows, frames)
        steps = self._ready[key]
        if steps is None or room > steps.room:
            return None
        return steps

    def _capture(
        self, audios: Sequence[Tensor], rows: int, frames: int
    ) -> StaticCacheDecoder | None:
        steps = StaticCacheDecoder(*self._given, audios[0], rows, frames, self._room(frames))
        steps.load(audios)
        # The first run also makes all its tensors.
        expected = torch.stack([steps.begin().clone(), steps.step()])
        begin = self._graphs.record("decoder", steps.begin)
        step = self._graphs.record("decoder", steps.step)
        if begin is None or step is None:
            return None
        found = torch.stack([begin().clone(), step()])
        for row in range(len(audios)):
            if _differ(found[:, row].tolist(), expected[:, row].tolist()):
                self._graphs.refuse(
                    "decoder", "a replayed token was not the one that had been captured"
                )
                return None
        steps.begin, steps.step = begin, step
        together = f", {rows} at once" if rows > 1 else ""
        self._graphs.note("decoder", f"texts for up to {frames} encoder frames{together}")
        return steps


def _zeros_like(pair: Pair) -> Pair:
    """Return contiguous keys and values of the same shapes."""
    keys, values = torch.zeros_like(pair.keys), torch.zeros_like(pair.values)
    return Pair(keys.contiguous(), values.contiguous())


def _differ(found: list[list[float]], expected: list[list[float]]) -> bool:
    """Return whether two runs differ by more than rounding.

    Each is a token and its log probability at every step. Tokens that are as likely may change
    places; from there on the runs read different texts.
    """
    for (token, score), (other, other_score) in zip(found, expected, strict=True):
        if not abs(score - other_score) <= MAX_DIFFERENCE_NATS:
            return True
        if token != other:
            return False
    return False
