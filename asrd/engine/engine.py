"""Holds the one worker: starts it on a candidate, asks it, keeps deadlines, and goes to the next
candidate when it fails.

The caller awaits a hypothesis and need not know that the worker died twice on the way. Knows
processes and frames; does not know what a model is. Runs on the event loop of its callers; imports
neither torch nor numpy.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from asrd import protocol
from asrd.engine import checks, verify
from asrd.engine.batching import MAX_BUFFERS, BatchQueue, WaitingBuffer
from asrd.engine.fallback_chain import FallbackChain, Trial, details, inherent_error
from asrd.engine.process import NO_CARD_ENVIRONMENT, WorkerFailedError, worker_log
from asrd.engine.worker_session import CrowdedError, Deadlines, WorkerSession
from asrd.models import downloader
from asrd.precision.failures import action_of
from asrd.precision.memory import Memory
from asrd.precision.plan import Candidate, Plan, Rejected
from asrd.text.wording import counted, with_hint

log = logging.getLogger("asrd.engine")

WORKER_COMMAND = (sys.executable, "-P", "-m", "asrd.worker")
"""How a worker is started."""

T = TypeVar("T")


DEFAULT_DEADLINES = Deadlines()


class Engine:
    """The one worker, whatever happens to it: starts it, asks it, and starts the next after a
    failure.

    Args:
        plan: candidates to try, in order. Candidates only shrink until `stop`, which gives what may
            have passed another chance.
        start: what the worker is started with; its precision and device are those of the candidate.
        on_progress: called with each protocol.Progress while a worker loads.
        on_answer: called with the seconds, the phase and the answer of each buffer.
        deadlines: when a worker counts as stalled.
        command: the worker's program, for tests.
        download: finds the file of a model, downloading it where it is not here, for tests.
    """

    def __init__(
        self,
        plan: Plan,
        start: protocol.Start,
        *,
        on_progress: Callable[[protocol.Progress], None] | None = None,
        on_answer: Callable[[float, str, protocol.Answer], None] | None = None,
        deadlines: Deadlines = DEFAULT_DEADLINES,
        command: Sequence[str] = WORKER_COMMAND,
        download: Callable[
            [str, Callable[[protocol.Progress], None]], Awaitable[Path]
        ] = downloader.fetch,
    ) -> None:
        self.plan = plan
        self.failures = 0
        """Times that a buffer or a start cost the worker, forgiven ones as well."""
        self._chain = FallbackChain(plan, start.graphs)
        self._template = start
        self._on_progress = on_progress or (lambda progress: None)
        self._session = WorkerSession(command, deadlines, self._on_progress)
        self._download = download
        self._refusals = checks.ModelRefusals()
        self._lock = asyncio.Lock()
        self._allowed = asyncio.Event()
        self._allowed.set()
        self._max_buffers = max(MAX_BUFFERS.values())
        self._queue = BatchQueue(
            self._answer,
            self._buffer_limit,
            self._lock,
            on_answer or (lambda seconds, phase, answer: None),
        )

    def _buffer_limit(self) -> int:
        """Return how many buffers go together now; one where no candidate is left to ask."""
        return self.max_together if self._chain.candidates else 1

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def candidate(self) -> Candidate:
        """The candidate in service, or the next to be tried. Raises EngineError when none is
        left."""
        return self._chain.candidate

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The candidate in service and those behind it."""
        return tuple(self._chain.candidates)

    @property
    def left(self) -> list[Candidate]:
        """Candidates that were left for the next, in order."""
        return self._chain.left

    @property
    def rejected(self) -> list[Rejected]:
        """Every candidate that was not tried or that failed, and why."""
        return self._chain.rejected

    @property
    def template(self) -> protocol.Start:
        """What a worker is started with; the candidate fills in precision and device."""
        return msgspec.structs.replace(self._template, graphs=self._chain.graphs)

    @property
    def on_card(self) -> bool:
        """Whether a worker is in service that holds a card, which is then awake."""
        return self.ready is not None and self.ready.device != "cpu"

    @property
    def ready(self) -> protocol.Ready | None:
        """How the worker in service described itself; None while there is none."""
        return self._session.ready

    @property
    def pid(self) -> int | None:
        """The worker's process number; None while there is none."""
        return self._session.pid

    @property
    def idle(self) -> bool:
        """Whether no caller waits for an answer."""
        return self._queue.idle

    @property
    def max_together(self) -> int:
        """How many buffers of several callers are computed at once, at most, on the candidate in
        service."""
        kind = self.candidate.device.partition(":")[0]
        return min(self._max_buffers, MAX_BUFFERS[kind])

    @property
    def overdue(self) -> bool:
        """Whether a deadline has passed without being acted upon, which only a fault of this
        program can cause."""
        return self._session.overdue

    async def download(self) -> Path:
        """Return the file of the model, downloading it where it is not here.

        Raises:
            ModelError, NetworkError, DiskError, UsageError: it cannot be had.
        """
        return await self._download(self._template.model, self._on_progress)

    async def start(self) -> protocol.Ready:
        """Start a worker if none is in service, and wait until it has passed its self-test.

        Raises:
            ModelError, NetworkError, DiskError, UsageError: what no other candidate would cure.
            EngineError: every candidate was tried and rejected.
        """
        async with self._lock:
            return await self._persist(self._service)

    async def transcribe(
        self,
        samples: Any,
        start: int = 0,
        phase: str = "final",
        context: protocol.DecodingContext | None = None,
    ) -> protocol.Answer:
        """Return the answer for one buffer, from whichever candidate can give it.

        Callers may ask at once: who waits while the worker answers is asked next, several together
        where the device gains by it. A caller that is cancelled leaves the others theirs; one that
        was alone ends the worker too.

        Args:
            samples: float32, mono, 16 kHz, one-dimensional and contiguous: anything with the buffer
                protocol.
            start: sample index of its first sample.
            phase: warmup, draft (a partial buffer) or final.
            context: what is final already of the speech that goes on in it.

        Raises: as `start`.
        """
        audio = memoryview(samples).cast("B")
        return await self._queue.answer(WaitingBuffer(audio, start, phase, context))

    async def _answer(self, asked: Sequence[WaitingBuffer]) -> list[protocol.Answer]:
        """Return the answers for buffers, from whichever candidate can give them."""
        return await self._persist(lambda: self._recognize(asked), is_request=True)

    async def _recognize(self, asked: Sequence[WaitingBuffer]) -> list[protocol.Answer]:
        """Ask the worker for buffers, as many at once as it can hold; return their answers in
        order."""
        answers: list[protocol.Answer] = []
        await self._service()
        while len(answers) < len(asked):
            part = asked[len(answers) : len(answers) + self.max_together]
            answers += await self._session.recognize(part)
        return answers

    async def encode(self, samples: Any) -> bytes:
        """Return what the worker's encoder puts out for samples, as protocol.Encoded holds it. Raises:
        as `start`."""

        async def ask() -> bytes:
            await self._service()
            return await self._session.encode(memoryview(samples).cast("B"))

        async with self._lock:
            return await self._persist(ask)

    async def measure(self, phase: str) -> Memory:
        """Return a reading of the worker's ledger. Raises: as `start`."""

        async def ask() -> Memory:
            await self._service()
            return await self._session.measure(phase)

        async with self._lock:
            return await self._persist(ask)

    async def read_ledger(self, phase: str) -> Memory | None:
        """Return a reading of the ledger of the worker in service; None where there is none, or it
        is lost.

        No other worker is started for figures: that takes as long as a start, and no caller waits for
        it.

        Args:
            phase: as of `measure`.
        """
        async with self._lock:
            if self.ready is None:
                return None
            try:
                return await self._session.measure(phase)
            except WorkerFailedError as loss:
                await self._session.retire(0.0)
                if self._allowed.is_set():  # else `halt` ended it, which says nothing about it
                    self.failures += 1
                    sentence = with_hint(loss.detail, loss.hint)
                    log.warning("%s: %s: %s", self.candidate.name, loss.kind, sentence)
                return None
            except asyncio.CancelledError:
                await self._session.retire(0.0)  # an unread answer would pass for the next one's
                raise

    async def fall_back(
        self, candidate: Candidate, kind: str, detail: str, figures: dict[str, float] | None = None
    ) -> bool:
        """Leave a candidate that answers and yet is not good enough; the next question starts a
        worker on the next.

        Args:
            candidate: the one that is meant; another caller may have left it already.
            kind, detail, figures: as in Rejected.

        Returns:
            Whether another candidate is in service now. False: there is none that would help, and
            this one stays.
        """
        async with self._lock:
            if not self._chain.candidates or self._chain.candidates[0] != candidate:
                return bool(self._chain.candidates)
            if not self._chain.can_fall_back(kind):
                return False
            self._chain.fall_back(kind, detail, figures=figures)
            await self._session.retire(self._session.deadlines.stop)
            return True

    def take_unreported(self) -> list[Rejected]:
        """Return what was rejected since this was asked last, whether or not it may be tried again
        by now."""
        return self._chain.take_unreported()

    def mark_inherent(self, kind: str, names: Collection[str]) -> None:
        """Say of candidates that were left for `kind` that FP32 did no better: they may return."""
        self._chain.mark_inherent(kind, names)

    async def stop(self) -> None:
        """End the worker; the engine can be started again, and then tries what failed for a reason
        that may be over."""
        await self._session.retire(self._session.deadlines.stop)
        self._chain.restore_passing()

    async def halt(self) -> None:
        """End the worker at once and start none until `go_on`; what is being asked is asked again
        then."""
        self._allowed.clear()
        await self._session.retire(0.0)

    def go_on(self) -> None:
        """Allow workers again after `halt`."""
        self._allowed.set()

    async def _persist(self, act: Callable[[], Awaitable[T]], is_request: bool = False) -> T:
        """Do `act` until it succeeds, falling back after each failure that is the candidate's.

        Args:
            is_request: `act` asks for buffers. One that FP32 cannot answer either costs no
                candidate.
        """
        trial = Trial(self._chain)
        while True:
            try:
                return await act()
            except CrowdedError as loss:
                await self._session.retire(0.0)
                self._ask_for_fewer(loss)
            except WorkerFailedError as loss:
                started, proved = self._session.started, self.ready is not None
                await self._session.retire(0.0)
                # A worker that `halt` ended says nothing about its candidate.
                if self._allowed.is_set():
                    self._settle(loss, trial, started, proved and is_request)
            except asyncio.CancelledError:
                # A half-written frame or an unread answer would pass for the next one's.
                await self._session.retire(0.0)
                raise

    def _ask_for_fewer(self, loss: CrowdedError) -> None:
        """Ask for half as many buffers at once from here on."""
        self._max_buffers = max(1, self.max_together // 2)
        most = counted(self._max_buffers, "buffer")
        name = self.candidate.name
        log.warning("%s: %s: at most %s at once from now on", name, loss.kind, most)

    def _settle(self, loss: WorkerFailedError, trial: Trial, started: bool, proved: bool) -> None:
        """Decide what follows a failure. Raises what no other candidate would cure."""
        if error := action_of(loss.kind).error:
            self._refusals.note(loss)
            if loss.trace:
                worker_log.debug("%s", loss.trace)
            raise error(loss.detail, loss.hint) from None
        self.failures += 1
        reason = with_hint(loss.detail, loss.hint)
        log.warning("%s: %s: %s", self.candidate.name, loss.kind, reason)
        self._chain.settle(loss, trial, started=started, proved=proved)
        if not self._chain.candidates and trial.inherent:
            blamed = self._chain.acquit(trial)
            log.warning(
                "no precision could answer for one recording (%s); the one before stays in use",
                details(blamed),
            )
            raise inherent_error(blamed) from None

    async def _service(self) -> protocol.Ready:
        """Return how the worker in service described itself, starting one on the present candidate
        if there is none."""
        if self.ready is not None:
            return self.ready
        path = await self.download()
        self._refusals.check(path)
        await self._allowed.wait()
        candidate = self.candidate
        variables = NO_CARD_ENVIRONMENT
        if candidate.device != "cpu":
            variables = {}
            # A card that slept needs seconds to wake up, and the key must not wait for it.
            await asyncio.to_thread(checks.check_room, self.plan, candidate)
        log.info("starting a worker: %s on %s", candidate.precision.name, candidate.device)
        began = asyncio.get_running_loop().time()  # what a person waits for is the imports as well
        await self._session.spawn(variables)
        if not self._allowed.is_set():
            raise WorkerFailedError("killed", "the worker was ended while it started")
        own = {"precision": candidate.precision, "device": candidate.device, "path": str(path)}
        ready = await self._session.load(msgspec.structs.replace(self.template, **own))
        self._check_ready(candidate, ready)
        load_seconds = asyncio.get_running_loop().time() - began
        ready = msgspec.structs.replace(ready, load_seconds=load_seconds)
        self._session.ready = ready
        for remark in ready.remarks:
            log.info("%s: %s", self._template.model, remark)
        checks.log_idle_wishes(self._template, ready.family)
        return ready

    def _check_ready(self, candidate: Candidate, ready: protocol.Ready) -> None:
        """Refuse a worker that is not what was started. Raises WorkerFailedError: budget,
        dtypes."""
        checks.check_limit(ready, self._template.vram_limit)
        if wrong := verify.mismatch(candidate, ready):
            raise WorkerFailedError("dtypes", wrong)
