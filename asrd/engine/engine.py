"""Holds the one worker: starts it on a candidate, asks it, keeps deadlines, and goes to the next
candidate when it fails.

The caller awaits a hypothesis and need not know that the worker died twice on the way. Knows
processes and frames; does not know what a model is. Runs on the event loop of whoever asks; imports
neither torch nor numpy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from asrd import protocol
from asrd.engine import verify
from asrd.engine.batching import TOGETHER, WaitingBuffer, together
from asrd.engine.process import NO_CARD, WorkerFailedError, WorkerProcess, worker_log
from asrd.engine.reception import bounded, received
from asrd.errors import FINAL, AsrdError, AudioError, EngineError, SoundError
from asrd.models import downloader
from asrd.precision import fallback, gpus, ledger
from asrd.precision.memory import Memory
from asrd.precision.plan import Candidate, Plan, Rejected
from asrd.precision.strategies import index_of
from asrd.text.wording import counted, with_hint

log = logging.getLogger("asrd.engine")

WORKER = (sys.executable, "-P", "-m", "asrd.worker")
"""How a worker is started."""

AGAIN = ("killed", "stalled", "died")
"""Kinds that may be bad luck, or came from outside: the same candidate is started once more before
the next is tried."""

BROKEN = ("device-lost", "died")
"""Kinds after which a card's worker is started once more without CUDA graphs before its candidate
is left."""

REFUSED_SECONDS = 10.0
"""How long a model file that was refused counts as refused without another worker; a file that
changes does not."""

PASSING = ("no-room", "device-lost")
"""Kinds that may be over when the worker is started anew after a rest: a neighbour left, a card
came back."""

MIB = 1 << 20


class Deadlines(msgspec.Struct, frozen=True):
    """How long the engine waits before it calls a worker stalled, in seconds."""

    load: float = 300.0
    """Without a sign of progress while loading."""
    answer: float = 60.0
    """For one buffer, plus `per_second` for each second of it."""
    per_second: float = 6.0
    stop: float = 3.0
    """For a worker to end by itself."""


DEADLINES = Deadlines()


class CrowdedError(WorkerFailedError):
    """The device had no room for several buffers at once; it may have for fewer."""


Reply = TypeVar("Reply", protocol.Answer, protocol.Encoded, protocol.Reading)


GRAPHS = "CUDA graphs"
"""What is left before the candidate of a card's worker."""


class Trial:
    """An engine as it was before it was asked for a sound, and the candidates that proved
    themselves and failed at it."""

    def __init__(
        self,
        template: protocol.Start,
        candidates: Sequence[Candidate],
        left: Sequence[Candidate],
        rejected: Sequence[Rejected],
    ) -> None:
        self.template, self.candidates, self.left, self.rejected = (
            template,
            list(candidates),
            list(left),
            list(rejected),
        )
        self.failed: list[Candidate] = []


class Engine:
    """The one worker, whatever happens to it.

    Args:
        plan: candidates to try, in order. Candidates only shrink until `stop`, which gives what may
            have passed another chance.
        start: what the worker is started with; its precision and device are those of the candidate.
        on_progress: called with each wire.Progress while a worker loads.
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
        deadlines: Deadlines = DEADLINES,
        command: Sequence[str] = WORKER,
        download: Callable[
            [str, Callable[[protocol.Progress], None]], Awaitable[Path]
        ] = downloader.fetch,
    ) -> None:
        self.plan = plan
        self.ready: protocol.Ready | None = None
        """What the worker in service said of itself; None while there is none."""
        self.rejected: list[Rejected] = list(plan.rejected)
        """Every candidate that was not taken or did not hold, and why."""
        self.left: list[Candidate] = []
        """Candidates that were left for the next, in order."""
        self.failures = 0
        """Times that a buffer or a start cost the worker, forgiven ones as well."""
        self._candidates = list(plan.candidates)
        self._unreported: list[Rejected] = []
        self._template = start
        self._on_progress = on_progress or (lambda progress: None)
        self._on_answer = on_answer or (lambda seconds, phase, answer: None)
        self._deadlines = deadlines
        self._command = tuple(command)
        self._download = download
        self._worker: WorkerProcess | None = None
        self._lock = asyncio.Lock()
        self._allowed = asyncio.Event()
        self._allowed.set()
        self._number = 0
        self._waiting: list[WaitingBuffer] = []
        self._asked: list[WaitingBuffer] = []
        self._turn: asyncio.Task[None] | None = None
        self._most = max(TOGETHER.values())
        self._due: float | None = None
        self._ends: list[float] = []
        self._tried: tuple[int, ...] = ()
        """What the file system says of the model's file that the last worker was started with."""
        self._refusal: tuple[tuple[int, ...], float, WorkerFailedError] | None = None
        """File, time and reason of the last refusal of a model."""

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def candidate(self) -> Candidate:
        """The candidate in service, or the next to be tried. Raises EngineError when none is
        left."""
        if not self._candidates:
            raise self._exhausted()
        return self._candidates[0]

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The candidate in service and what is left behind it."""
        return tuple(self._candidates)

    @property
    def template(self) -> protocol.Start:
        """What a worker is started with; the candidate fills in precision and device."""
        return self._template

    @property
    def on_card(self) -> bool:
        """Whether a worker is in service that holds a card, which is then awake."""
        return self.ready is not None and self.ready.device != "cpu"

    @property
    def pid(self) -> int | None:
        """The worker's process number; None while there is none."""
        return self._worker.process.pid if self._worker else None

    @property
    def together(self) -> int:
        """How many buffers of several callers are computed at once, at most, on the candidate in
        service."""
        return min(self._most, TOGETHER[self.candidate.device.partition(":")[0]])

    @property
    def overdue(self) -> bool:
        """Whether a deadline has passed without being acted upon, which only a fault of this
        program can cause."""
        now = asyncio.get_running_loop().time()
        return any(now > due + 5.0 for due in (self._due, *self._ends) if due is not None)

    async def download(self) -> Path:
        """Return the file of the model, downloading it where it is not here.

        Raises:
            ModelError, NetworkError, DiskError, UsageError: it cannot be had.
        """
        return await self._download(self._template.model, self._on_progress)

    async def start(self) -> protocol.Ready:
        """Start a worker if none is in service, and wait until it has proved itself.

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
        was alone takes the worker along.

        Args:
            samples: float32, mono, 16 kHz, one-dimensional and contiguous: anything with the buffer
                protocol.
            start: sample index of its first sample.
            phase: warmup, draft or final.
            context: what is final already of the speech that goes on in it.

        Raises: as `start`.
        """
        mine = WaitingBuffer(memoryview(samples).cast("B"), start, phase, context)
        self._waiting.append(mine)
        if self._turn is None:
            self._turn = asyncio.create_task(self._take_turns())
        try:
            return await mine.answer
        except asyncio.CancelledError:
            await self._abandon(mine)
            raise

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
        self._asked = together(self._waiting, self.together if self._candidates else 1)
        self._waiting = [one for one in self._waiting if one not in self._asked]
        try:
            await self._answer(self._asked)
        finally:
            self._asked = []

    async def _answer(self, asked: Sequence[WaitingBuffer]) -> None:
        """Give each caller its answer, or the error that stands for one."""
        try:
            answers = await self._persist(lambda: self._recognize(asked), sound=True)
        except Exception as error:
            if len(asked) > 1 and isinstance(error, AudioError | SoundError):
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
        """Let go of a buffer whose caller was cancelled; nobody else's answer is touched."""
        if mine in self._waiting:
            self._waiting.remove(mine)
        if mine not in self._asked or not all(one.answer.done() for one in self._asked):
            return
        turn = self._turn
        while (
            turn is not None and not turn.done()
        ):  # the worker's end, and however often the caller is cancelled
            turn.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([turn])
        if self._waiting and self._turn is None:
            self._turn = asyncio.create_task(self._take_turns())

    async def _recognize(self, asked: Sequence[WaitingBuffer]) -> list[protocol.Answer]:
        """Ask the worker for buffers, as many at once as it can hold; return their answers in
        order."""
        answers: list[protocol.Answer] = []
        await self._service()
        while len(answers) < len(asked):
            part = asked[len(answers) : len(answers) + self.together]
            self._number += 1
            buffers = [protocol.Buffer(one.start, len(one.sound), one.context) for one in part]
            message = protocol.Recognize(self._number, buffers, part[0].phase)
            deadline = self._deadlines.answer + self._deadlines.per_second * sum(
                one.seconds for one in part
            )
            try:
                found = await self._ask(
                    message, protocol.Answer, deadline, *(one.sound for one in part)
                )
            except WorkerFailedError as loss:
                if loss.kind == "out-of-memory" and len(part) > 1:
                    raise CrowdedError(loss.kind, loss.detail) from None
                raise
            answers += [
                bounded(answer, one.start, one.samples)
                for answer, one in zip(found, part, strict=True)
            ]
        return answers

    async def encode(self, samples: Any) -> bytes:
        """Return what the worker's encoder puts out for samples, as wire.Encoded holds it. Raises:
        as `start`."""

        async def ask() -> bytes:
            await self._service()
            self._number += 1
            sound = memoryview(samples).cast("B")
            message = protocol.Encode(self._number, len(sound))
            return (await self._ask(message, protocol.Encoded, self._deadlines.answer, sound))[
                0
            ].values

        async with self._lock:
            found: bytes = await self._persist(ask)
        return found

    async def measure(self, phase: str) -> Memory:
        """Return a reading of the worker's ledger. Raises: as `start`."""

        async def ask() -> Memory:
            await self._service()
            return await self._measured(phase)

        async with self._lock:
            return await self._persist(ask)

    async def read_ledger(self, phase: str) -> Memory | None:
        """Return a reading of the ledger of the worker in service; None where there is none, or it
        is lost.

        No other worker is started for figures: that takes as long as a start, and nobody waits for
        it.

        Args:
            phase: as of `measure`.
        """
        async with self._lock:
            if self.ready is None:
                return None
            try:
                return await self._measured(phase)
            except WorkerFailedError as loss:
                await self._retire(0.0)
                if self._allowed.is_set():  # else `halt` ended it, which says nothing about it
                    self.failures += 1
                    sentence = with_hint(loss.detail, loss.hint)
                    log.warning("%s: %s: %s", self.candidate.name, loss.kind, sentence)
                return None
            except asyncio.CancelledError:
                await self._retire(0.0)  # an unread answer would be taken for the next one's
                raise

    async def _measured(self, phase: str) -> Memory:
        """Ask the worker for a reading. Raises WorkerFailedError."""
        self._number += 1
        message = protocol.Measure(self._number, phase)
        readings = await self._ask(message, protocol.Reading, self._deadlines.answer)
        return readings[0].memory

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
            if not self._candidates or self._candidates[0] != candidate:
                return bool(self._candidates)
            if not fallback.after(self.plan, self._candidates, kind):
                return False
            self._leave(kind, detail, figures=figures)
            await self._retire(self._deadlines.stop)
            return True

    def take_unreported(self) -> list[Rejected]:
        """Return what was rejected since this was asked last, whether or not it may be tried again
        by now."""
        fresh, self._unreported = self._unreported, []
        return fresh

    def mark_inherent(self, kind: str, names: Collection[str]) -> None:
        """Say of candidates that were left for `kind` that FP32 did no better: the sound was to
        blame, they may return."""
        because = "; FP32 heard nothing either"

        def marked(one: Rejected) -> Rejected:
            if one.kind != kind or one.candidate not in names:
                return one
            return msgspec.structs.replace(one, kind="silent", detail=one.detail + because)

        self.rejected = [marked(one) for one in self.rejected]

    async def stop(self) -> None:
        """End the worker; the engine can be started again, and then tries what failed for a reason
        that may be over."""
        await self._retire(self._deadlines.stop)
        lasting = [one for one in self.rejected if one.kind not in PASSING]
        if len(lasting) < len(self.rejected):
            out = {one.candidate for one in lasting}
            self.rejected, self._candidates = (
                lasting,
                [candidate for candidate in self.plan.candidates if candidate.name not in out],
            )
            self.left = [candidate for candidate in self.left if candidate.name in out]

    async def halt(self) -> None:
        """End the worker at once and start none until `go_on`; what is being asked is asked again
        then."""
        self._allowed.clear()
        await self._retire(0.0)

    def go_on(self) -> None:
        """Allow workers again after `halt`."""
        self._allowed.set()

    async def _persist(self, act: Callable[[], Any], sound: bool = False) -> Any:
        """Do `act` until it succeeds, demoting after each failure that is the candidate's.

        Args:
            sound: `act` asks for a sound. One that FP32 cannot answer either costs no candidate:
                see `_acquit`.
        """
        forgiven: set[str] = set()
        trial = Trial(self._template, self._candidates, self.left, self.rejected)
        while True:
            candidate = self.candidate
            try:
                return await act()
            except CrowdedError as loss:
                await self._retire(0.0)
                self._most = max(1, self.together // 2)
                most = counted(self._most, "buffer")
                log.warning(
                    "%s: %s: at most %s at once from now on", candidate.name, loss.kind, most
                )
            except WorkerFailedError as loss:
                ran, proved = self._worker is not None, self.ready is not None
                await self._retire(0.0)
                if not self._allowed.is_set():
                    continue  # it was ended by `halt`, which says nothing about the candidate
                if loss.kind in FINAL:
                    self._note_refusal(loss)
                    raise self._translated(loss) from None
                self.failures += 1
                log.warning(
                    "%s: %s: %s", candidate.name, loss.kind, with_hint(loss.detail, loss.hint)
                )
                if (
                    ran
                    and loss.kind in BROKEN
                    and self._template.graphs
                    and candidate.device != "cpu"
                ):
                    self._leave_graphs(loss)
                    continue
                if loss.kind in AGAIN and candidate.name not in forgiven:
                    forgiven.add(candidate.name)
                    continue
                self._leave(loss.kind, loss.detail, loss.component, hint=loss.hint)
                if sound and proved:
                    trial.failed.append(candidate)
                if not self._candidates and any(
                    fallback.plain(one.precision) for one in trial.failed
                ):
                    raise self._acquit(trial) from None
            except asyncio.CancelledError:
                # A half-written frame or an unread answer would be taken for the next one's.
                await self._retire(0.0)
                raise

    def _note_refusal(self, loss: WorkerFailedError) -> None:
        """Remember that a worker refused a model's file, so that nobody else starts one for it at
        once."""
        known = self._refusal is not None and self._refusal[2] is loss
        if loss.kind == "model" and self._tried and not known:
            self._refusal = self._tried, asyncio.get_running_loop().time(), loss

    def _look_at(self, path: Path) -> None:
        """Note the file that a worker is to load. Raises LostError where one has just refused
        it."""
        try:
            facts = path.stat()
            self._tried = facts.st_mtime_ns, facts.st_size, facts.st_ino
        except OSError:
            self._tried = ()
        if self._refusal is None or not self._tried:
            return
        tried, when, loss = self._refusal
        if tried == self._tried and asyncio.get_running_loop().time() - when < REFUSED_SECONDS:
            raise loss

    def _acquit(self, trial: Trial) -> AsrdError:
        """Put back every candidate that failed at one sound, FP32 among them: the sound was the
        fault. Return the error."""
        names = {candidate.name for candidate in trial.failed} | {GRAPHS}
        blamed = [one for one in self.rejected[len(trial.rejected) :] if one.candidate in names]
        self.rejected = [one for one in self.rejected if one not in blamed]
        self._unreported = [one for one in self._unreported if one not in blamed]
        out = {one.candidate for one in self.rejected}
        self._template, self._candidates = (
            trial.template,
            [candidate for candidate in trial.candidates if candidate.name not in out],
        )
        self.left = trial.left + [
            candidate for candidate in self.left[len(trial.left) :] if candidate.name in out
        ]
        tried = "; ".join(f"{one.candidate}: {one.detail}" for one in blamed)
        log.warning(
            "no precision could answer for one recording (%s); the one before stays in use", tried
        )
        if all(one.kind == "non-finite" for one in blamed):
            return AudioError(
                f"no precision makes text of this sound ({tried})",
                "other recordings are not concerned",
            )
        return SoundError(
            f"no worker could answer for this sound ({tried})", "other recordings are not concerned"
        )

    def _leave_graphs(self, loss: WorkerFailedError) -> None:
        """Go without CUDA graphs from here on, as they may be what lost the worker, and try the
        candidate once more."""
        self._template = msgspec.structs.replace(self._template, graphs=False)
        hint = "graphs = false does without from the start"
        self._reject(Rejected(GRAPHS, loss.kind, loss.detail, hint))

    def _leave(
        self,
        kind: str,
        detail: str,
        component: str = "",
        hint: str = "",
        figures: dict[str, float] | None = None,
    ) -> None:
        """Go on to the next candidate that may help; what lies between is left as well."""
        here, *rest = self._candidates
        self._reject(Rejected(here.name, kind, detail, hint, figures or {}))
        out = {one.candidate for one in self.rejected}
        self._candidates = list(fallback.after(self.plan, self._candidates, kind, component, out))
        self.left += [here, *(candidate for candidate in rest if candidate not in self._candidates)]

    def _reject(self, one: Rejected) -> None:
        self.rejected.append(one)
        self._unreported.append(one)

    async def _service(self) -> protocol.Ready:
        """Return what the worker in service said of itself, starting one on the present candidate
        if there is none."""
        if self._worker is not None and self.ready is not None:
            return self.ready
        path = await self.download()
        self._look_at(path)
        await self._allowed.wait()
        candidate = self.candidate
        if (
            candidate.device != "cpu"
        ):  # a card that slept needs seconds to wake up, and the key must not wait for it
            await asyncio.to_thread(_look_for_room, self.plan, candidate)
        log.info("starting a worker: %s on %s", candidate.precision.name, candidate.device)
        began = asyncio.get_running_loop().time()  # what a person waits for is the imports as well
        worker = self._worker = await WorkerProcess.spawn(
            self._command, NO_CARD if candidate.device == "cpu" else {}
        )
        if not self._allowed.is_set():
            raise WorkerFailedError("killed", "the worker was ended while it started")
        own = {"precision": candidate.precision, "device": candidate.device, "path": str(path)}
        await worker.send(msgspec.structs.replace(self._template, **own))
        while True:
            reply = await self._reply(worker, self._deadlines.load)
            if isinstance(reply, protocol.Progress):
                self._on_progress(reply)
            elif isinstance(reply, protocol.Failed):
                raise WorkerFailedError(
                    reply.kind, reply.detail, reply.hint, reply.trace, reply.component
                )
            elif isinstance(reply, protocol.Ready) and reply.protocol == protocol.PROTOCOL:
                if worker is not self._worker:
                    raise WorkerFailedError("killed", "the worker was ended while it loaded")
                _hold_to_limit(reply, self._template.vram_limit)
                if wrong := verify.mismatch(candidate, reply):
                    raise WorkerFailedError("dtypes", wrong)
                load_seconds = asyncio.get_running_loop().time() - began
                self.ready = reply = msgspec.structs.replace(reply, load_seconds=load_seconds)
                for remark in reply.remarks:
                    log.info("%s: %s", self._template.model, remark)
                _tell_idle_wishes(self._template, reply.family)
                return reply
            else:
                raise WorkerFailedError(
                    "garbage", f"{type(reply).__name__} of another protocol while loading"
                )

    async def _ask(
        self,
        message: protocol.Recognize | protocol.Encode | protocol.Measure,
        kind: type[Reply],
        deadline: float,
        *payload: memoryview,
    ) -> list[Reply]:
        """Return what answers a message, one of `kind` for each of its buffers."""
        worker = self._worker
        if worker is None:
            raise WorkerFailedError("killed", "the worker was ended before it was asked")
        await worker.send(message, *payload)
        replies: list[Reply] = []
        while len(replies) < max(1, len(payload)):
            reply = await self._reply(worker, deadline)
            if isinstance(reply, protocol.Failed):
                raise WorkerFailedError(
                    reply.kind, reply.detail, reply.hint, reply.trace, reply.component
                )
            if not isinstance(reply, kind):
                raise WorkerFailedError(
                    "garbage", f"a {type(reply).__name__} where {kind.__name__} was due"
                )
            if reply.id != message.id:
                raise WorkerFailedError(
                    "garbage", f"an answer to {reply.id}, asked was {message.id}"
                )
            replies.append(reply)
        return replies

    async def _reply(self, worker: WorkerProcess, deadline: float) -> protocol.Reply:
        self._due = asyncio.get_running_loop().time() + deadline
        try:
            return received(await worker.receive(deadline))
        finally:
            self._due = None

    async def _retire(self, patience: float) -> None:
        worker, self._worker, self.ready = self._worker, None, None
        if worker is None:
            return
        due = asyncio.get_running_loop().time() + worker.longest(patience)
        self._ends.append(due)
        try:
            await worker.end(patience)
        finally:
            self._ends.remove(due)

    def _translated(self, loss: WorkerFailedError) -> AsrdError:
        if loss.trace:
            worker_log.debug("%s", loss.trace)
        return FINAL[loss.kind](loss.detail, loss.hint)

    def _exhausted(self) -> EngineError:
        tried = (
            "; ".join(f"{r.candidate}: {r.detail}" for r in self.rejected) or "the plan had none"
        )
        return EngineError(
            f"no precision is left that could answer ({tried})",
            "run with --debug to see what the worker prints",
        )


def _tell_idle_wishes(start: protocol.Start, family: str) -> None:
    """Say what was asked for and only Canary can do."""
    wishes = ["translation"] if start.source_lang != start.target_lang else []
    wishes += ["pnc"] if start.pnc is not None else []
    if wishes and family != "aed":
        log.warning(
            "only Canary knows %s; this %s model writes what it was trained to",
            " and ".join(wishes),
            family,
        )


@gpus.opened
def _look_for_room(plan: Plan, candidate: Candidate) -> None:
    """Refuse a candidate whose card is gone or has too little memory free now. Raises LostError:
    device-lost, no-room."""
    free = gpus.free_bytes(index_of(candidate.device))
    if free is None and (gone := gpus.lost()):
        raise WorkerFailedError(
            "device-lost",
            gone[0],
            "nvidia-smi; sudo dmesg | grep -i nvrm; a restart may bring it back",
        )
    need = plan.needs.get(candidate.precision.name)
    if free is not None and need is not None and need.bytes > free:
        raise WorkerFailedError(
            "no-room", f"would need {need}; {free / MIB:.0f} MiB of the card are free", "nvidia-smi"
        )


def _hold_to_limit(ready: protocol.Ready, limit: int) -> None:
    """Refuse a worker that holds more of the card than it may. Raises LostError: budget."""
    memory = ready.ledger.get("ready")
    if (
        not limit
        or ready.device == "cpu"
        or memory is None
        or memory.process is None
        or memory.process <= limit
    ):
        return
    holds, allowed = (
        f"{memory.process / MIB:.0f} MiB ({ledger.words(memory.source)})",
        f"{limit / MIB:.0f} MiB",
    )
    said = f"the worker holds {holds}; vram_budget allows {allowed}"
    if memory.source == "nvml":
        raise WorkerFailedError("budget", said, "asrd plan lists what each strategy needs")
    log.warning("%s; other processes disturb that figure, so the worker stays", said)
