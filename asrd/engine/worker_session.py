"""The worker in service and what it is asked: one message at a time, each with a deadline.

Knows messages and deadlines; does not know which worker comes next. Runs on the event loop of the
engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from asrd import protocol
from asrd.engine.batching import WaitingBuffer
from asrd.engine.process import WorkerFailedError, WorkerProcess
from asrd.engine.reception import bounded, received
from asrd.precision.failures import action_of
from asrd.precision.memory import Memory


class Deadlines(msgspec.Struct, frozen=True):
    """How long the engine waits before it calls a worker stalled, in seconds."""

    load: float = 300.0
    """Without a sign of progress while loading."""
    answer: float = 60.0
    """For one buffer, plus `per_second` for each second of it."""
    per_second: float = 6.0
    stop: float = 3.0
    """For a worker to end by itself."""


OVERDUE_SECONDS = 5.0
"""How long after a deadline it counts as passed without being acted upon."""


class CrowdedError(WorkerFailedError):
    """The device had no room for several buffers at once; it may have for fewer."""


Reply = TypeVar("Reply", protocol.Answer, protocol.Encoded, protocol.Reading)


class WorkerSession:
    """At most one worker, and the messages to and from it.

    Every method but `retire` raises WorkerFailedError, after which the worker is to be retired.

    Args:
        command: the worker's program.
        deadlines: when a worker counts as stalled.
        on_progress: called with each protocol.Progress while a worker loads.
    """

    def __init__(
        self,
        command: Sequence[str],
        deadlines: Deadlines,
        on_progress: Callable[[protocol.Progress], None],
    ) -> None:
        self.ready: protocol.Ready | None = None
        """How the worker in service described itself; None while there is none."""
        self.deadlines = deadlines
        self._command = tuple(command)
        self._on_progress = on_progress
        self._worker: WorkerProcess | None = None
        self._number = 0
        self._due: float | None = None
        self._ends: list[float] = []

    @property
    def started(self) -> bool:
        """Whether there is a worker, ready or not."""
        return self._worker is not None

    @property
    def pid(self) -> int | None:
        """The worker's process number; None while there is none."""
        if self._worker is None:
            return None
        return self._worker.process.pid

    @property
    def overdue(self) -> bool:
        """Whether a deadline has passed without being acted upon, which only a fault of this
        program can cause."""
        now = asyncio.get_running_loop().time()
        return any(
            now > due + OVERDUE_SECONDS for due in (self._due, *self._ends) if due is not None
        )

    async def spawn(self, variables: Mapping[str, str]) -> None:
        """Start a process, which waits for `load`.

        Args:
            variables: of its environment, beside those of every worker.
        """
        self._worker = await WorkerProcess.spawn(self._command, variables)

    async def load(self, start: protocol.Start) -> protocol.Ready:
        """Return how the worker describes itself once it has loaded its model."""
        worker = self._running("the worker was ended before it was asked")
        await worker.send(start)
        while True:
            reply = await self._reply(worker, self.deadlines.load)
            if isinstance(reply, protocol.Progress):
                self._on_progress(reply)
                continue
            if isinstance(reply, protocol.Failed):
                raise _failed(reply)
            if isinstance(reply, protocol.Ready) and reply.protocol == protocol.PROTOCOL_VERSION:
                break
            name = type(reply).__name__
            raise WorkerFailedError("garbage", f"{name} of another protocol while loading")
        if worker is not self._worker:
            raise WorkerFailedError("killed", "the worker was ended while it loaded")
        return reply

    async def recognize(self, buffers: Sequence[WaitingBuffer]) -> list[protocol.Answer]:
        """Return the answers for buffers that are asked all at once.

        Raises CrowdedError: the device has no room for so many.
        """
        described = [protocol.Buffer(one.start, len(one.audio), one.context) for one in buffers]
        message = protocol.Recognize(self._next_number(), described, buffers[0].phase)
        seconds = sum(one.seconds for one in buffers)
        deadline = self.deadlines.answer + self.deadlines.per_second * seconds
        try:
            payload = [one.audio for one in buffers]
            answers = await self._ask(message, protocol.Answer, deadline, *payload)
        except WorkerFailedError as loss:
            if len(buffers) > 1 and action_of(loss.kind).fewer_at_once:
                raise CrowdedError(loss.kind, loss.detail) from None
            raise
        return [
            bounded(answer, one.start, one.samples)
            for answer, one in zip(answers, buffers, strict=True)
        ]

    async def encode(self, audio: memoryview) -> bytes:
        """Return what the encoder puts out for samples, as protocol.Encoded holds it."""
        message = protocol.Encode(self._next_number(), len(audio))
        answers = await self._ask(message, protocol.Encoded, self.deadlines.answer, audio)
        return answers[0].values

    async def measure(self, phase: str) -> Memory:
        """Return a reading of the worker's ledger."""
        message = protocol.Measure(self._next_number(), phase)
        readings = await self._ask(message, protocol.Reading, self.deadlines.answer)
        return readings[0].memory

    async def retire(self, patience: float) -> None:
        """End the worker, where there is one.

        Args:
            patience: seconds for it to end by itself.
        """
        worker, self._worker, self.ready = self._worker, None, None
        if worker is None:
            return
        due = asyncio.get_running_loop().time() + worker.longest(patience)
        self._ends.append(due)
        try:
            await worker.end(patience)
        finally:
            self._ends.remove(due)

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _running(self, otherwise: str) -> WorkerProcess:
        """Return the worker. Raises WorkerFailedError: killed, `otherwise` says how."""
        if self._worker is None:
            raise WorkerFailedError("killed", otherwise)
        return self._worker

    async def _ask(
        self,
        message: protocol.Recognize | protocol.Encode | protocol.Measure,
        kind: type[Reply],
        deadline: float,
        *payload: memoryview,
    ) -> list[Reply]:
        """Return what answers a message, one of `kind` for each of its buffers."""
        worker = self._running("the worker was ended before it was asked")
        await worker.send(message, *payload)
        replies: list[Reply] = []
        while len(replies) < max(1, len(payload)):
            reply = await self._reply(worker, deadline)
            if isinstance(reply, protocol.Failed):
                raise _failed(reply)
            if not isinstance(reply, kind):
                detail = f"a {type(reply).__name__} where {kind.__name__} was due"
                raise WorkerFailedError("garbage", detail)
            if reply.id != message.id:
                detail = f"an answer to {reply.id}, asked was {message.id}"
                raise WorkerFailedError("garbage", detail)
            replies.append(reply)
        return replies

    async def _reply(self, worker: WorkerProcess, deadline: float) -> protocol.Reply:
        self._due = asyncio.get_running_loop().time() + deadline
        try:
            return received(await worker.receive(deadline))
        finally:
            self._due = None


def _failed(reply: protocol.Failed) -> WorkerFailedError:
    return WorkerFailedError(reply.kind, reply.detail, reply.hint, reply.trace, reply.component)
