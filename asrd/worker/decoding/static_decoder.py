"""Worker: Canary's decoder in tensors of one size, so that reading a token is the same work for
every place.

What `attention.KVCache` keeps grows with each token; here there is room for the longest text from
the start, and what is not yet written is masked. The token that was found is read from where it was
written, on the device, and the host, which decides when a text ends, looks on from one step behind:
the device never waits for it, and one step at most is for nothing. Several texts are read in step,
each to its own sound; one that has ended is read on, and not looked at. Tokens, their probabilities
and the attention are those of `CachedDecoder.step`.

Knows tensors and token ids. Runs in the worker: on a card replayed as graphs, on a CPU in tests.
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

STEP = 128
"""Encoder frames from one size to the next. One size serves a window of ten seconds: the sound
costs little a token."""

LONGEST = 384
"""Encoder frames that there is a size for: those of the longest window a user can set."""

ROWS = 8
"""Texts that are read in step where there is more than one; a step for one that is not there costs
next to nothing."""

APART = 0.3
"""Nats that a replayed token's probability may be from that of the same work done plainly; garbage
is far further."""


class StaticCacheDecoder:
    """One size of the decoder: `rows` buffers of up to `frames`, texts of up to `room` tokens,
    prompt included.

    Args:
        decoder: what reads.
        prompt: token ids [1, P] that every text begins with.
        known: token ids from here on are never said.
        sound: what the decoder listens to, for its width, dtype and device.
        rows, frames, room: the size.
    """

    def __init__(
        self,
        decoder: CachedDecoder,
        prompt: Tensor,
        known: int,
        sound: Tensor,
        rows: int,
        frames: int,
        room: int,
    ) -> None:
        device = sound.device
        self.rows, self.frames, self.room = rows, frames, room
        self.sound: list[Pair] = []
        self.padding: Tensor | None = None
        self.begin: Work = self._begin
        self.step: Work = self._step
        self._own: Tensor | None = None
        self._decoder, self._prompt, self._known = decoder, prompt.to(device).repeat(rows, 1), known
        self._input = sound.new_zeros(rows, frames, sound.shape[2])
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._counts, self._tokens = (
            torch.zeros(rows, 1, dtype=torch.long, device=device) for _ in range(2)
        )
        self._found = torch.zeros(rows, 2, device=device)
        self._paid = torch.zeros(rows, room, frames, device=device)
        self._places, self._columns = self._place, torch.arange(room, device=device)
        self._positions = decoder.positions(room, device)
        self._later = (self._columns > self._columns[:, None]) * MASKED
        self._each = torch.arange(frames, device=device)
        cuda = device.type == "cuda"
        self._host = torch.zeros(2, rows, 2, pin_memory=cuda)
        self._events = [torch.cuda.Event() for _ in range(2)] if cuda else []
        self._heard: list[int] = []
        self._read = 0

    def said(self, sounds: Sequence[Tensor], limit: int) -> Iterator[list[tuple[int, float]]]:
        """Yield what follows next in each text, `limit` times at most; nobody looks for an end.

        That is a token id and its log probability.

        Args:
            sounds: what the decoder listens to [1, T, D], T at most `frames`; at most `rows` of
                them.
            limit: tokens of a text, at most `room` less the prompt's.
        """
        self.listen(sounds)
        self._send(self.begin(), 0)
        self._read = self._prompt.shape[1]
        for number in range(limit):
            if number + 1 < limit:
                self._send(self.step(), number + 1)
                self._read += 1
            yield self._receive(number)[: len(sounds)]

    def listen(self, sounds: Sequence[Tensor]) -> None:
        """Take in what the decoder is to listen to."""
        self._heard = [sound.shape[1] for sound in sounds]
        self._input.zero_()
        self._counts.zero_()
        for row, (sound, count) in enumerate(zip(sounds, self._heard, strict=True)):
            self._input[row : row + 1, :count].copy_(sound)
            self._counts[row].fill_(count)

    def paid(self, row: int, limit: int) -> NDArray[np.float32]:
        """Return the attention of every token read so far in a text [tokens, frames], the mean over
        layers and heads.

        There may be tokens more than were taken from `said`, but none that follows the `limit`'s.
        """
        read = min(self._read, self._prompt.shape[1] + limit - 1)
        rows: NDArray[np.float32] = self._paid[row, :read, : self._heard[row]].cpu().numpy()
        return rows

    def append(self, layer: int, fresh: Tensor) -> Pair:
        """Keep a layer's keys and values of the tokens that are being read and return those of the
        whole room."""
        if self._own is None:
            layers, (two, rows, heads, _, width) = len(self._decoder.decoder.layers), fresh.shape
            self._own = fresh.new_zeros(layers, two, rows, heads, self.room, width)
        return Pair(*self._own[layer].index_copy_(3, self._places, fresh))

    def _begin(self) -> Tensor:
        """Forget the last texts, project the sounds and read the prompt; return the first tokens as
        `_look` does."""
        pairs = self._decoder.project(self._input)
        if self.padding is None:
            self.sound = [
                Pair(*(torch.zeros_like(part).contiguous() for part in pair)) for pair in pairs
            ]
            keys = pairs[0].keys
            self.padding = keys.new_zeros(self.rows * keys.shape[1], 1, self.frames)
            self._later = self._later.to(keys.dtype)
        for kept, new in zip(self.sound, pairs, strict=True):
            kept.keys.copy_(new.keys)
            kept.values.copy_(new.values)
        padded = ((self._each >= self._counts) * MASKED)[:, None, None]
        self.padding.view(self.rows, -1, 1, self.frames).copy_(padded)
        if self._own is not None:
            # what is masked counts nothing, but nothing times what is not finite is not nothing
            self._own.zero_()
        self._place.zero_()
        return self._look(self._prompt)

    def _step(self) -> Tensor:
        """Read the tokens that were found last; return the next ones as `_look` does."""
        return self._look(self._tokens)

    def _look(self, ids: Tensor) -> Tensor:
        """Read tokens [rows, N]; return those that follow, and their log probabilities, as float32
        [rows, 2]."""
        self._places = self._place + self._columns[: ids.shape[1]]
        states = self._decoder.embed(ids, self._positions.index_select(0, self._places))
        logits, paid = self._decoder.read(self, states, self._later.index_select(0, self._places))
        self._paid.index_copy_(1, self._places, paid.mean((0, 2), dtype=torch.float32))
        last = logits[:, -1]
        torch.argmax(last[:, : self._known], -1, keepdim=True, out=self._tokens)
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
        return [(int(token), sure) for token, sure in self._host[number % 2].tolist()]


class DecoderReplay:
    """The sizes of a Canary decoder, each captured when it is first needed.

    Args:
        decoder, prompt, known: as for Steps.
        recorder: what captures.
        room: encoder frames -> tokens that there may be for them, prompt included.
    """

    def __init__(
        self,
        decoder: CachedDecoder,
        prompt: Tensor,
        known: int,
        recorder: GraphCapture,
        room: Callable[[int], int],
    ) -> None:
        self._given = decoder, prompt, known
        self._recorder, self._room = recorder, room
        self._ready: dict[tuple[int, int, Any], StaticCacheDecoder | None] = {}

    def __call__(self, sounds: Sequence[Tensor], room: int) -> StaticCacheDecoder | None:
        """Return what reads `room` tokens for each of up to `ROWS` sounds [1, T, D]; None: nothing
        that is captured."""
        frames = -(-max(sound.shape[1] for sound in sounds) // STEP) * STEP
        if frames > LONGEST:
            return None
        key = 1 if len(sounds) == 1 else ROWS, frames, arithmetic(sounds[0].device)
        if key not in self._ready:
            self._ready[key] = None
            with self._recorder.trying("decoder"):
                self._ready[key] = self._capture(sounds, *key[:2])
        steps = self._ready[key]
        return steps if steps is not None and room <= steps.room else None

    def _capture(
        self, sounds: Sequence[Tensor], rows: int, frames: int
    ) -> StaticCacheDecoder | None:
        steps = StaticCacheDecoder(*self._given, sounds[0], rows, frames, self._room(frames))
        steps.listen(sounds)
        expected = [
            work().clone() for work in (steps.begin, steps.step)
        ]  # also gives it all its tensors
        begin, step = (self._recorder.record("decoder", work) for work in (steps.begin, steps.step))
        if begin is None or step is None:
            return None
        found = [work().clone() for work in (begin, step)]
        if any(
            _differ(*([run[row] for run in both] for both in (found, expected)))
            for row in range(len(sounds))
        ):
            self._recorder.refuse(
                "decoder", "a replayed token was not the one that had been captured"
            )
            return None
        steps.begin, steps.step = begin, step
        together = f", {rows} at once" if rows > 1 else ""
        self._recorder.tell("decoder", f"texts for up to {frames} encoder frames{together}")
        return steps


def _differ(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Return whether two runs part further than rounding does: tokens that are as likely may change
    places."""
    for (token, sure), (other, likely) in zip(
        *([t.tolist() for t in run] for run in (found, expected)), strict=True
    ):
        if not abs(sure - likely) <= APART:
            return True
        if token != other:
            return False
    return False
