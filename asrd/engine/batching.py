"""Buffers of several callers that wait for the one worker, and which of them are asked together.

Runs on the event loop of the engine; knows no process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from asrd import protocol
from asrd.audio.format import SAMPLE_RATE
from asrd.errors import AudioError, UnansweredError

MAX_BUFFERS = {"cpu": 1, "cuda": 8}
"""Buffers of several callers that a device computes at once; a card replays so many together, as
`cuda_graphs.ROWS` says.

A processor is as fast with one after the other.
"""

MAX_PADDING_RATIO = 1.25
"""How much longer than the sum of its buffers a batch may be, each being padded to the longest."""


class WaitingBuffer:
    """A buffer that a caller waits for."""

    def __init__(
        self,
        audio: memoryview,
        start: int,
        phase: str,
        context: protocol.DecodingContext | None = None,
    ) -> None:
        self.audio, self.start, self.phase, self.context = audio, start, phase, context
        self.samples = len(audio) // 4
        self.seconds = self.samples / SAMPLE_RATE
        self.answer: asyncio.Future[protocol.Answer] = asyncio.get_running_loop().create_future()


def select_batch(waiting: Sequence[WaitingBuffer], limit: int) -> list[WaitingBuffer]:
    """Return what is asked next: the first final buffer, else the first, and up to `limit` in all
    that go with it.

    Of one phase, and so alike in length that padding them costs little. Who came first goes first,
    but a partial one, which is replaced soon, waits for every final buffer that is there.
    """
    found: list[WaitingBuffer] = []
    ordered = sorted(waiting, key=lambda one: one.phase == "partial")
    for one in ordered:
        if one.phase == ordered[0].phase and _alike([*found, one]):
            found.append(one)
        if len(found) >= limit:
            break
    return found


def _alike(buffers: Sequence[WaitingBuffer]) -> bool:
    """Return whether padding these to the longest of them costs little."""
    seconds = [one.seconds for one in buffers]
    return max(seconds) * len(seconds) <= MAX_PADDING_RATIO * sum(seconds)


class BatchQueue:
    """Buffers of several callers: who waits while the worker answers is asked next, several together.

    Args:
        ask: returns the answers of buffers that go together, in order.
        limit: returns how many may go together now.
        lock: held while `ask` runs.
        on_answer: called with the seconds, the phase and the answer of each buffer.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[WaitingBuffer]], Awaitable[Sequence[protocol.Answer]]],
        limit: Callable[[], int],
        lock: asyncio.Lock,
        on_answer: Callable[[float, str, protocol.Answer], None],
    ) -> None:
        self._ask, self._limit, self._lock, self._on_answer = ask, limit, lock, on_answer
        self._waiting: list[WaitingBuffer] = []
        self._asked: list[WaitingBuffer] = []
        self._turn: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is asked."""
        return self._turn is None

    @property
    def asked(self) -> Sequence[WaitingBuffer]:
        """What the worker computes now."""
        return self._asked

    async def answer(self, buffer: WaitingBuffer) -> protocol.Answer:
        """Return the answer for a buffer. Raises as `ask`.

        A caller that is cancelled leaves the others theirs; one that was alone ends the request.
        """
        self._waiting.append(buffer)
        self._begin()
        try:
            return await buffer.answer
        except asyncio.CancelledError:
            await self._abandon(buffer)
            raise

    def _begin(self) -> None:
        if self._turn is None and self._waiting:
            self._turn = asyncio.create_task(self._take_turns())

    async def _take_turns(self) -> None:
        """Ask for all that is waited for, turn by turn."""
        try:
            while self._waiting:
                async with self._lock:
                    if self._waiting:
                        await self._take_turn()
        finally:
            self._turn = None

    async def _take_turn(self) -> None:
        self._asked = select_batch(self._waiting, self._limit())
        self._waiting = [one for one in self._waiting if one not in self._asked]
        try:
            await self._answer(self._asked)
        finally:
            self._asked = []

    async def _answer(self, asked: Sequence[WaitingBuffer]) -> None:
        """Give each caller its answer, or the error that stands for one."""
        try:
            answers = await self._ask(asked)
        except Exception as error:
            if len(asked) > 1 and isinstance(error, AudioError | UnansweredError):
                for one in asked:  # only one of them may be to blame
                    await self._answer([one])
                return
            for one in asked:
                if not one.answer.done():
                    one.answer.set_exception(error)
        else:
            for one, answer in zip(asked, answers, strict=True):
                self._on_answer(one.seconds, one.phase, answer)
                if not one.answer.done():
                    one.answer.set_result(answer)

    async def _abandon(self, mine: WaitingBuffer) -> None:
        """Let go of a buffer whose caller was cancelled; no other answer is touched."""
        if mine in self._waiting:
            self._waiting.remove(mine)
        if mine not in self._asked or not all(one.answer.done() for one in self._asked):
            return
        # The caller waits for the worker's end, however often it is cancelled meanwhile.
        turn = self._turn
        while turn is not None and not turn.done():
            turn.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([turn])
        self._begin()
