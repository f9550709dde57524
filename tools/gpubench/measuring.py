"""One worker measured over its wire. Only one holds the card at a time; the others load beside it
on the processors.

A worker that is about to move its model to the card is stopped by a signal until the card is free,
so that what is timed is timed alone. Memory growth is no matter of time and is measured on several
workers at once.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from asrd import protocol
from asrd.audio.format import SAMPLE_RATE
from asrd.engine import verify
from asrd.engine.process import WORKER_ENVIRONMENT, WorkerFailedError, WorkerProcess
from asrd.models import names
from asrd.precision import memory
from asrd.precision.plan import Candidate
from asrd.precision.strategies import STRATEGY_TABLE

from .bare import READY
from .cells import BATCHES, EAGER, LENGTHS, UNTIMED, Cell, Found, Times

COMMAND = (sys.executable, "-P", "-m", "asrd.worker", "--early")
WARM_UP = 3
CAPTURING = 2
"""Batches of a size that are not timed: the first runs as it is, the second is captured."""
PATIENCE = 240.0
"""Seconds until a worker that says nothing is given up."""

Samples = Any


class Sounds(NamedTuple):
    """What every worker hears: float32 at 16 kHz."""

    clips: list[Samples]
    buffers: dict[float, Samples]
    """Seconds -> the first clips, joined."""


class Repeats(NamedTuple):
    """How often."""

    timed: int = 15
    """Buffers of each length."""
    batches: int = 2
    growth: int = 1000
    """Buffers of random length."""
    marks: int = 5
    """Readings while memory may grow."""


class Bench:
    """The card, and the workers that wait for it.

    Args:
        device: cuda:N, or cpu to try the bench itself.
        paths: model -> what a worker is given.
        spares: workers that import NeMo ahead of need.
    """

    def __init__(
        self, device: str, paths: dict[str, str], sounds: Sounds, repeats: Repeats, spares: int
    ) -> None:
        self.device, self.paths, self.sounds, self.repeats = device, paths, sounds, repeats
        self._card = asyncio.Lock()
        self._spares: collections.deque[asyncio.Task[WorkerProcess]] = collections.deque()
        self._wanted = spares

    def prepare(self, left: int) -> None:
        """Start spares, no more than are still needed."""
        while len(self._spares) < min(self._wanted, left):
            self._spares.append(asyncio.create_task(WorkerProcess.spawn(COMMAND)))

    async def close(self) -> None:
        """End the spares."""
        for task in self._spares:
            await (await task).end(0.0)
        self._spares.clear()

    @contextlib.asynccontextmanager
    async def _worker(self) -> AsyncIterator[WorkerProcess]:
        self.prepare(1)
        worker = await self._spares.popleft()
        try:
            yield worker
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.process.pid, signal.SIGCONT)
            await worker.end(1.0)

    async def measure(self, cell: Cell, left: int) -> Found:
        """Return what a cell shows; a failure is part of it.

        Args:
            left: cells that are still to come.
        """
        found = Found(cell)
        try:
            async with contextlib.AsyncExitStack() as card:
                if cell.kind in ("nemo", "naive"):
                    return await self._bare(cell, card)
                async with self._worker() as worker:
                    self.prepare(left)
                    await self._load(worker, cell, found, card)
                    await self._measure(Talk(worker, found), cell)
        except WorkerFailedError as loss:
            found.failure = f"{loss.kind}: {loss.detail}"
        return found

    async def _load(
        self, worker: WorkerProcess, cell: Cell, found: Found, card: contextlib.AsyncExitStack
    ) -> None:
        """Have a worker load; unless it is not timed it has the card for itself from when its model
        moves there."""
        precision = STRATEGY_TABLE[cell.strategy.partition(" ")[0]]
        await worker.send(
            protocol.Start(
                self.paths[cell.model], precision, self.device, graphs=cell.kind != "eager"
            )
        )
        while not isinstance(reply := await worker.receive(PATIENCE), protocol.Ready):
            if isinstance(reply, protocol.Failed):
                raise WorkerFailedError(reply.kind, reply.detail)
            if (
                isinstance(reply, protocol.Progress)
                and reply.stage == "move"
                and cell.kind not in UNTIMED
            ):
                os.kill(worker.process.pid, signal.SIGSTOP)
                await card.enter_async_context(self._card)
                os.kill(worker.process.pid, signal.SIGCONT)
        _introduce(found, reply)
        found.mismatch = verify.mismatch(Candidate(precision, self.device), reply)

    async def _measure(self, talk: Talk, cell: Cell) -> None:
        if cell.kind == "growth":
            return await talk.grow(self.repeats)
        if cell.kind == "words":
            return await talk.hear(self.sounds.clips)
        await talk.time(self.sounds, self.repeats.timed // (3 if cell.kind == "eager" else 1))
        if cell.kind == "strategy" and cell.strategy in EAGER:
            await talk.batches(self.sounds, self.repeats)
        return None

    async def _bare(self, cell: Cell, card: contextlib.AsyncExitStack) -> Found:
        """Have NeMo measured by itself, which waits for the card after its import."""
        with tempfile.TemporaryDirectory() as folder:
            sound, out = os.path.join(folder, "sound.npy"), os.path.join(folder, "found.json")
            np.save(sound, self.sounds.buffers[LENGTHS[0]])
            path = str(names.resolve(self.paths[cell.model]))
            process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-P",
                    "-m",
                    "tools.gpubench.bare",
                    path,
                    self.device,
                    cell.kind,
                    sound,
                    out,
                ),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=os.environ | WORKER_ENVIRONMENT,
            )
            assert process.stdout is not None
            try:
                async with asyncio.timeout(PATIENCE):
                    while (
                        line := await process.stdout.readline()
                    ) and line.strip() != READY.encode():
                        pass
                await card.enter_async_context(self._card)
                async with asyncio.timeout(PATIENCE):
                    _, said = await process.communicate(b"go\n")
            except TimeoutError:
                process.kill()
                await process.wait()
                return Found(cell, f"no answer within {PATIENCE:.0f} s")
            if process.returncode or not os.path.exists(out):
                return Found(
                    cell,
                    (said.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1],
                )
            with open(out, "rb") as stream:
                found = msgspec.json.decode(stream.read(), type=Found)
        found.cell = cell
        return found


def _introduce(found: Found, ready: protocol.Ready) -> None:
    found.weights, found.parameters, found.load_seconds = (
        ready.weights_bytes,
        ready.parameters,
        ready.load_seconds,
    )
    found.effective, found.fallbacks, found.graphs = ready.effective, ready.fallbacks, ready.graphs
    found.ledger, found.load_peak = dict(ready.ledger), ready.load_peak


class Talk:
    """Questions to one worker, and its answers kept."""

    def __init__(self, worker: WorkerProcess, found: Found) -> None:
        self._worker, self._found = worker, found

    async def ask(self, *buffers: Samples, start: int = 0) -> list[protocol.Answer]:
        """Return the answers to buffers that are asked at once. Raises WorkerFailedError."""
        sizes = [protocol.Buffer(start, buffer.nbytes) for buffer in buffers]
        await self._worker.send(
            protocol.Recognize(1, sizes), *(memoryview(buffer).cast("B") for buffer in buffers)
        )
        answers = []
        for _ in buffers:
            reply = await self._worker.receive(PATIENCE)
            if isinstance(reply, protocol.Failed):
                raise WorkerFailedError(reply.kind, reply.detail)
            assert isinstance(reply, protocol.Answer)
            answers.append(reply)
        return answers

    async def measure(self, phase: str) -> memory.Memory:
        """Return a reading of the ledger, kept under its phase. Raises WorkerFailedError."""
        await self._worker.send(protocol.Measure(1, phase))
        reply = await self._worker.receive(PATIENCE)
        if not isinstance(reply, protocol.Reading):
            raise WorkerFailedError("garbage", f"a {type(reply).__name__} where a reading was due")
        self._found.ledger[phase] = reply.memory
        return reply.memory

    async def time(self, sounds: Sounds, repeats: int) -> None:
        """Time single buffers of each length, in turn."""
        for _ in range(WARM_UP):
            for buffer in sounds.buffers.values():
                await self.ask(buffer)
        await self.measure("warm-up")
        for _ in range(repeats):
            for seconds, buffer in sounds.buffers.items():
                times = self._found.times.setdefault(f"{seconds:g}", Times([], [], [], []))
                began = time.perf_counter()
                [answer] = await self.ask(buffer)
                times.round_trip.append(time.perf_counter() - began)
                times.seconds.append(answer.seconds)
                times.encoder.append(answer.encoder_seconds)
                times.tokens.append(answer.tokens)
                self._found.headroom = max(self._found.headroom, answer.headroom or 0.0)
                if seconds == LENGTHS[0]:
                    self._found.text = answer.hypothesis.text
        await self.measure("steady")

    async def hear(self, clips: Sequence[Samples]) -> None:
        """Hear every clip, one at a time, as a user would."""
        self._found.texts = [(await self.ask(clip))[0].hypothesis.text for clip in clips]
        await self.measure("steady")

    async def batches(self, sounds: Sounds, repeats: Repeats) -> None:
        """Time several 10-s buffers at once."""
        buffer = sounds.buffers[LENGTHS[0]]
        for size in BATCHES:
            several = [np.roll(buffer, 997 * number) for number in range(size)]
            calls = [await self.ask(*several) for _ in range(CAPTURING + repeats.batches)]
            self._found.batches[str(size)] = [
                sum(answer.seconds for answer in call) for call in calls[CAPTURING:]
            ]
            self._found.alike[str(size)] = calls[-1][0].hypothesis.text == self._found.text
        await self.measure("batches")

    async def grow(self, repeats: Repeats) -> None:
        """Read the ledger now and then while buffers of random length are heard."""
        dice = random.Random(0)
        noise = np.random.default_rng(0).standard_normal(10 * SAMPLE_RATE).astype(np.float32) * 0.05
        for number in range(1, repeats.growth + 1):
            await self.ask(noise[: dice.randint(SAMPLE_RATE, len(noise))])
            if number % max(1, repeats.growth // repeats.marks) == 0:
                self._found.growth.append((number, await self.measure(f"after {number}")))
