"""Worker: Canary's decoder in tensors of one size, so that reading a token is the same work for every place.

What `attention.Memory` keeps grows with each token; here there is room for the longest text from the start, and what is
not yet written is masked. The token that was found is read from where it was written, on the device, and the host,
which decides when a text ends, looks on from one step behind: the device never waits for it, and one step at most is
for nothing. Tokens, their probabilities and the attention are those of `CachedDecoder.step`.

Knows tensors and token ids. Runs in the worker: on a card replayed as graphs, on a CPU in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .attention import MASKED, CachedDecoder, Pair
from .graphs import Recorder, Work, arithmetic

STEP = 128
"""Encoder frames from one size to the next. One size serves a window of ten seconds: the sound costs little a token."""

LONGEST = 384
"""Encoder frames that there is a size for: those of the longest window a user can set."""

APART = 0.3
"""Nats that a replayed token's probability may be from that of the same work done plainly; garbage is far further."""


class Steps:
    """One size of the decoder: a buffer of up to `frames`, a text of up to `room` tokens, prompt included.

    Args:
        decoder: what reads.
        prompt: token ids [1, P] that every text begins with.
        known: token ids from here on are never said.
        sound: what the decoder listens to, for its width, dtype and device.
    """

    def __init__(
        self, decoder: CachedDecoder, prompt: Tensor, known: int, sound: Tensor, frames: int, room: int
    ) -> None:
        device = sound.device
        self.frames, self.room = frames, room
        self.sound: list[Pair] = []
        self.own: list[Pair] = []
        self.padding: Tensor | None = None
        self.begin: Work = self._begin
        self.step: Work = self._step
        self._decoder, self._prompt, self._known = decoder, prompt.to(device), known
        self._input = sound.new_zeros(1, frames, sound.shape[2])
        self._count, self._place = (torch.zeros(1, dtype=torch.long, device=device) for _ in range(2))
        self._token = torch.zeros(1, 1, dtype=torch.long, device=device)
        self._found = torch.zeros(2, device=device)
        self._rows = torch.zeros(room, frames, device=device)
        self._places, self._columns = self._place, torch.arange(room, device=device)
        self._each = torch.arange(frames, device=device)
        cuda = device.type == "cuda"
        self._host = torch.zeros(2, 2, pin_memory=cuda)
        self._events = [torch.cuda.Event() for _ in range(2)] if cuda else []
        self._heard = self._read = 0

    def said(self, sound: Tensor, limit: int) -> Iterator[tuple[int, float]]:
        """Yield token ids as they are found, `limit` at most, each with its log probability; nobody looks for an end.

        Args:
            sound: what the decoder listens to [1, T, D], T at most `frames`.
            limit: tokens, at most `room` less the prompt's.
        """
        self.listen(sound)
        self._send(self.begin(), 0)
        self._read = self._prompt.shape[1]
        for number in range(limit):
            if number + 1 < limit:
                self._send(self.step(), number + 1)
                self._read += 1
            yield self._receive(number)

    def listen(self, sound: Tensor) -> None:
        """Take in what the decoder is to listen to."""
        self._heard = sound.shape[1]
        self._input[:, : self._heard].copy_(sound)
        self._input[:, self._heard :].zero_()
        self._count.fill_(self._heard)

    def paid(self) -> NDArray[np.float32]:
        """Return the attention of every token read so far [tokens, frames], the mean over layers and heads.

        There may be one token more than were taken from `said`.
        """
        rows: NDArray[np.float32] = self._rows[: self._read, : self._heard].cpu().numpy()
        return rows

    def append(self, layer: int, fresh: Pair) -> Pair:
        """Keep a layer's keys and values of the tokens that are being read and return those of the whole room."""
        if not self.own:
            heads, width = fresh.keys.shape[1], fresh.keys.shape[3]
            shape = (len(self._decoder.decoder.layers), 2, 1, heads, self.room, width)
            self._store = fresh.keys.new_zeros(shape)
            self.own = [Pair(keys, values) for keys, values in self._store]
        for kept, new in zip(self.own[layer], fresh, strict=True):
            kept.index_copy_(2, self._places, new)
        return self.own[layer]

    def _begin(self) -> Tensor:
        """Forget the last text, project the sound and read the prompt; return the first token as `_look` does."""
        pairs = self._decoder.project(self._input)
        if self.padding is None:
            self.sound = [Pair(*(torch.zeros_like(part).contiguous() for part in pair)) for pair in pairs]
            self.padding = torch.zeros(self.frames, dtype=pairs[0].keys.dtype, device=self._each.device)
        for kept, new in zip(self.sound, pairs, strict=True):
            kept.keys.copy_(new.keys)
            kept.values.copy_(new.values)
        self.padding.copy_((self._each >= self._count) * MASKED)
        if self.own:
            self._store.zero_()  # what is masked counts nothing, but nothing times what is not finite is not nothing
        self._place.zero_()
        return self._look(self._prompt)

    def _step(self) -> Tensor:
        """Read the token that was found last; return the next one as `_look` does."""
        return self._look(self._token)

    def _look(self, ids: Tensor) -> Tensor:
        """Read tokens [1, N]; return the one that follows, and its log probability, as float32 [2]."""
        self._places = self._place + self._columns[: ids.shape[1]]
        mask = (self._columns > self._places[:, None]) * MASKED
        mask = mask.to(self.own[0].keys.dtype) if self.own else mask
        logits, paid = self._decoder.read(self, ids, self._place, mask)
        self._rows.index_copy_(0, self._places, paid.float().mean((0, 1)))
        token = logits[-1, : self._known].argmax().view(1)
        sure = torch.log_softmax(logits[-1], -1).gather(0, token)
        self._token.copy_(token.view(1, 1))
        self._place.add_(ids.shape[1])
        return self._found.copy_(torch.cat((token.float(), sure)))  # exact: no vocabulary has 2^24 tokens

    def _send(self, found: Tensor, number: int) -> None:
        self._host[number % 2].copy_(found, non_blocking=True)
        if self._events:
            self._events[number % 2].record()

    def _receive(self, number: int) -> tuple[int, float]:
        if self._events:
            self._events[number % 2].synchronize()
        token, sure = self._host[number % 2].tolist()
        return int(token), sure


class DecoderReplay:
    """The sizes of a Canary decoder, each captured when it is first needed.

    Args:
        decoder, prompt, known: as for Steps.
        recorder: what captures.
        room: encoder frames -> tokens that there may be for them, prompt included.
    """

    def __init__(
        self, decoder: CachedDecoder, prompt: Tensor, known: int, recorder: Recorder, room: Callable[[int], int]
    ) -> None:
        self._given = decoder, prompt, known
        self._recorder, self._room = recorder, room
        self._ready: dict[tuple[int, Any], Steps | None] = {}

    def __call__(self, sound: Tensor, room: int) -> Steps | None:
        """Return what reads `room` tokens for a sound [1, T, D]; None where nothing is captured for that."""
        frames = -(-sound.shape[1] // STEP) * STEP
        if frames > LONGEST:
            return None
        key = frames, arithmetic(sound.device)
        if key not in self._ready:
            self._ready[key] = None
            with self._recorder.trying("decoder"):
                self._ready[key] = self._capture(sound, frames)
        steps = self._ready[key]
        return steps if steps is not None and room <= steps.room else None

    def _capture(self, sound: Tensor, frames: int) -> Steps | None:
        steps = Steps(*self._given, sound, frames, self._room(frames))
        steps.listen(sound)
        expected = [work().clone() for work in (steps.begin, steps.step)]  # also gives it all its tensors
        begin, step = (self._recorder.record("decoder", work) for work in (steps.begin, steps.step))
        if begin is None or step is None:
            return None
        found = [work().clone() for work in (begin, step)]
        if _differ(found, expected):
            self._recorder.refuse("decoder", "a replayed token was not the one that had been captured")
            return None
        steps.begin, steps.step = begin, step
        self._recorder.tell("decoder", f"texts for up to {frames} encoder frames")
        return steps


def _differ(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Return whether two runs part further than rounding does: tokens that are as likely may change places."""
    for (token, sure), (other, likely) in zip(*([t.tolist() for t in run] for run in (found, expected)), strict=True):
        if not abs(sure - likely) <= APART:
            return True
        if token != other:
            return False
    return False
