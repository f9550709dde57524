"""Recordings -> text, one after the other, by the one engine; and which engine that is.

Recordings wait here from their first block on, so decoding goes along with speech and what is said
while a model still loads is heard afterwards. Whatever fails, the sound stays on disk. Knows
nothing of keys, sockets and microphones.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

import msgspec

from asrd import journal, protocol
from asrd.audio.blocks import AudioBlock
from asrd.audio.files import blocks
from asrd.config.settings import Settings
from asrd.dictation import fallback_monitor, metrics, shadow
from asrd.dictation.cleanup import MOMENT_SECONDS, Cleanup
from asrd.dictation.fallback_monitor import FallbackMonitor, Warn
from asrd.dictation.read_write_lock import ReadWriteLock
from asrd.dictation.recording import Dictation, DictationResult, as_part, sound_of, standing
from asrd.engine.capacity import fits_beside
from asrd.engine.engine import Engine
from asrd.engine.planner import plan_for as planned
from asrd.engine.planner import start_for
from asrd.errors import (
    AsrdError,
    AudioError,
    EngineError,
    PrecisionError,
    SoundError,
    UsageError,
)
from asrd.models import choice
from asrd.precision.memory import Memory
from asrd.precision.plan import Plan
from asrd.protocol import Word
from asrd.recordings.deliveries import Deliveries
from asrd.recordings.files import RecordingInfo
from asrd.recordings.store import RecordingStore
from asrd.streaming.session import StreamingSession
from asrd.streaming.voice_commands import CommandWriter
from asrd.text.wording import with_hint

log = logging.getLogger("asrd")

UNHEARD = 0.5
"""Seconds of clear speech without a word after which a take is kept, where FP32 was not asked."""

REST = 3.0
"""A draft leaves the worker free for so many times as long as one took."""

T = TypeVar("T")

Deliver = Callable[[Deliveries, int], Awaitable[list[str]]]
"""Sends a part of a recording's text everywhere and returns why single places did not take it."""


class Transcriber:
    """Holds the engine and works through the recordings.

    Args:
        settings: model and strategy.
        spool: where takes go when they became text, or did not.
        deliver: where text goes.
        changed: called whenever there is something new to show.
        hold: makes an engine, for tests.
        warn: shows a person a summary and a sentence.
    """

    def __init__(
        self,
        settings: Settings,
        spool: RecordingStore,
        deliver: Deliver,
        changed: Callable[[], None],
        hold: Callable[..., Engine] = Engine,
        warn: Warn = lambda summary, body: None,
    ) -> None:
        self.settings = settings
        self.spool = spool
        self.trouble = "" if settings.model else choice.UNCHOSEN
        """Why there is no text right now; "" while all is well."""
        self.loading = ""
        """What a worker does before it can answer; "" when none is starting."""
        self.download: protocol.Download | None = None
        """How far the download of the model has come; None while nothing is downloaded."""
        self.memory: Memory | None = None
        """The last reading of the worker's ledger."""
        self.watched = 0
        """How many look at the draft; without one there is none."""
        self.asleep = False
        """Between `sleep` and `wake`."""
        self.last = DictationResult("", "", "empty", "nothing was said since the daemon started")
        self._deliver, self._changed, self._hold, self._warn = deliver, changed, hold, warn
        self.shadow = shadow.Shadow(hold)
        self._cleanup = Cleanup(self.shadow, self._put_away)
        self.engine = self._new_engine(settings)
        self.demotion = FallbackMonitor(settings, self.engine, warn)
        self._queue: collections.deque[Dictation] = collections.deque()
        self._work = asyncio.Event()
        self.turns = ReadWriteLock()
        self._alert, self.level = metrics.Alert(), metrics.LevelAlert(warn)
        self._rewriting = self._guests = 0
        self._announced = ""
        """The last model whose download the journal told of."""
        self._unheard = 0.0
        """Seconds of clear speech since the last word, of which a low precision made none."""
        self._return: asyncio.Task[None] | None = None
        """Brings the engine back that one sound cost its worker."""
        self._coming: Engine | None = None
        """One that is to come into service and proves itself."""
        self.disturb: Callable[[], None] = lambda: None
        """Called when somebody needs the engine: what could wait ends at once."""
        self.undisturbed: Callable[[], Awaitable[None]] = _nothing
        """Called before a worker starts: returns when what was disturbed has given its memory
        back."""
        self.settled: Callable[[], None] = lambda: None
        """Called when nobody may need it any more, or another candidate is in service."""

    def _put_away(self) -> None:
        self.settled()  # the shadow may have something to hear again
        self._changed()

    @property
    def waiting(self) -> int:
        """Recordings that have ended and are not text yet."""
        return sum(one.ended for one in self._open)

    @property
    def busy(self) -> bool:
        """Whether there is anything between a key press, or a wish to try again, and its text; or
        files to put away."""
        return bool(self._queue or self._rewriting or self._cleanup.busy)

    @property
    def owes_text(self) -> bool:
        """Whether somebody waits for a text; one that is out may still have figures to come."""
        return bool(self._open or self._rewriting)

    @property
    def still(self) -> bool:
        """Whether nobody at all needs the engine."""
        return not (self.busy or self._guests or self.asleep)

    @property
    def overdue(self) -> bool:
        """Whether the engine in service, or the one to come, has not acted upon a deadline of its
        own."""
        return self.engine.overdue or (self._coming is not None and self._coming.overdue)

    @property
    def otherwise(self) -> str:
        """What the worker in service does not run as asked, and why; "" where all is, or there is
        none."""
        return protocol.reasons(self.engine.ready.fallbacks) if self.engine.ready else ""

    @property
    def in_use(self) -> int | None:
        """Bytes that the worker in service holds; 0 while there is none, None where nothing
        tells."""
        if self.engine.pid is None:
            return 0
        return self.memory.process if self.memory else None

    @property
    def _open(self) -> list[Dictation]:
        """Recordings whose fate is not known; the first in the queue may be there for its figures
        only."""
        return [one for one in self._queue if not one.told.done()]

    def add(self, recording: Dictation) -> None:
        """Take on a recording, best before its first block."""
        self.disturb()
        self._renew()
        recording.era = self.shadow.era
        self._queue.append(recording)
        self._work.set()

    def cancel(self) -> list[str]:
        """Drop everything that is not delivered yet; return the takes."""
        dropped = self._open
        for one in dropped:
            one.cancelled = True
            one.fresh.set()
        return [one.take.id for one in dropped]

    def abandon(self, reason: str) -> None:
        """Keep the sound of everything that is not text yet; there is no time for more."""
        for one in self._open:
            self.spool.failed(one.take, reason, one.text)

    async def run(self) -> None:
        """Write down one recording after the other, for ever."""
        while True:
            while not self._queue:
                self._work.clear()
                await self._work.wait()
            one = self._queue[0]
            try:
                told = await self._write_down(one)
            except Exception as error:
                log.exception("recording %s", one.take.id)
                told = await self._keep(one, f"internal error: {type(error).__name__}: {error}")
            # A recording without a word, made by mistake perhaps, does not take the last text away.
            if told.outcome != "cancelled" and not (told.outcome == "empty" and self.last.text):
                self.last = told
            if not one.told.done():
                one.told.set_result(told)
            self._cleanup.begin(one, told, self.spool)
            try:
                await self._account(one, told)
            except Exception:  # figures are worth less than the next recording
                log.exception("the figures of recording %s", one.take.id)
            self._queue.popleft()
            self.settled()
            self._changed()

    async def _write_down(self, one: Dictation) -> DictationResult:
        """Decode along with the speaker; return what became of it."""
        if not await self._have_model(one):
            return await self._keep(one, choice.UNCHOSEN)
        one.dictation.unheard_before = self._unheard
        by_pause = one.settings.deliver == "segment" and not one.private
        try:
            while not one.cancelled:
                whole = one.ended
                one.fresh.clear()
                try:
                    words = await self._ask(lambda engine: one.dictation.decode(engine, by_pause))
                    whole = whole and not one.dictation.paused
                finally:  # what became final before a failure is final
                    one.write(whole)
                if words:
                    self._changed()
                if by_pause and not one.cancelled:
                    await self._send(one, one.writing.send(), whole)
                if whole:
                    break
                if (
                    one.dictation.paused
                ):  # a line for each pause, also of what was said while the model loaded
                    continue
                if await self._foresee(one):
                    self._changed()
                await one.fresh.wait()
        except AsrdError as error:
            self._ill(error)
            return await self._keep(one, error.message)
        while not one.ended:
            await one.fresh.wait()
            one.fresh.clear()
        if one.cancelled:
            return self._told(one, "cancelled")
        if one.settings.deliver == "take" and not one.private:
            await self._send(one, one.text, whole)
        unheard = one.dictation.unheard
        self._unheard = one.dictation.unheard_before + unheard
        if unheard >= UNHEARD and not one.text:
            return await self._keep(
                one, f"{one.dictation.strategy} found no word in {unheard:.1f} s of clear speech"
            )
        if one.writing.missed:
            log.warning(
                'what was to be dropped had been delivered, or was not there: deliver = "take" can drop all'
            )
        return self._settle(one)

    async def _have_model(self, one: Dictation) -> bool:
        """Return whether a model is chosen by the time it is needed: one may be while the recording
        goes on."""
        while not (self.settings.model or one.ended or one.cancelled):
            one.fresh.clear()
            await one.fresh.wait()
        return bool(self.settings.model)

    async def _foresee(self, one: Dictation) -> bool:
        """Use the time while nothing is due: for what a seal would give, and for a draft where
        somebody looks on.

        A draft waits so long after the last one that the worker is free most of the time for what
        is final.
        """
        ready, dictation = self.engine.ready is not None, one.dictation
        if not ready or one.cancelled or one.fresh.is_set():
            return False
        if await self._ask(dictation.look_ahead):
            return True
        pace = one.settings.draft_every
        cost = dictation.answer.seconds if dictation.answer else 0.0
        if not (pace and self.watched) or time.monotonic() < one.drafted + max(pace, REST * cost):
            return False
        drafted = await self._ask(dictation.draft)
        one.drafted = time.monotonic()
        return drafted

    async def _send(self, one: Dictation, text: str, whole: bool) -> None:
        """Deliver a text, if there is one; `whole` says that none follows."""
        if text:
            number = _add(one.deliveries, text, one.settings, one.dictation, one.writing, whole)
            one.refused += await self._deliver(one.deliveries, number)
        elif whole and one.deliveries.parts:
            one.deliveries.end(one.text)

    def _settle(self, one: Dictation) -> DictationResult:
        """All of it is text."""
        if one.refused:
            return self._told(
                one, self._failed(one, one.refused[0]), "; ".join(dict.fromkeys(one.refused))
            )
        return self._told(one, "delivered" if one.text else "empty", one.deliveries.instead)

    async def _keep(self, one: Dictation, reason: str) -> DictationResult:
        """It did not become text: what follows is still recorded, and then the sound waits."""
        while not one.ended:
            one.fresh.clear()
            await one.fresh.wait()
        if one.cancelled:
            return self._told(one, "cancelled")
        outcome = self._failed(one, reason)
        journal.event(
            "kept",
            f"recording {one.take.id}, {one.take.seconds:.1f} s, did not become text"
            + (f": {reason}" if reason != self.trouble else "")  # which was said a moment ago
            + ("; asrd retry tries again" if outcome == "kept" else "; it was not kept"),
            logging.WARNING,
            take=one.take.id,
            audio_seconds=one.take.seconds,
        )
        return self._told(one, outcome, reason)

    def _failed(self, one: Dictation, reason: str) -> str:
        """Keep the sound of a recording that is no delivered text, where it is to be kept; return
        what became of it."""
        kept = self.spool.keeps(one.take) and self.spool.failed(one.take, reason, one.text)
        return "kept" if kept else "lost"

    def _told(self, one: Dictation, outcome: str, detail: str = "") -> DictationResult:
        spent = (
            1000 * (time.monotonic() - one.stopped)
            if one.stopped and outcome == "delivered"
            else None
        )
        text = "" if outcome == "cancelled" else one.text
        return DictationResult(
            one.take.id, text, outcome, detail, one.dictation.strategy, one.take.seconds, spent
        )

    # -- the engine
    # ---------------------------------------------------------------------------------------------------

    async def rewrite(self, note: RecordingInfo, record: Deliveries | None = None) -> str:
        """Write down a take that is kept, between whatever else there is to do.

        Args:
            record: what was sent of it already, and stays as it is; what is new is added to it, and
                not sent.

        Raises: as Engine.transcribe; AudioError where the file cannot be read.
        """
        record = record or Deliveries()
        if record.whole is not None:
            return record.whole
        self._rewriting += 1
        writing = CommandWriter(self.settings.phrases, self.settings.capitals)
        dictation = StreamingSession(self.settings)
        by_segments = self.settings.deliver == "segment"
        if stood := record.standing:
            dictation.resume(stood.words, stood.sealed, stood.until)
            writing.resume(stood.pieces, stood.waiting, stood.case)
            by_segments = True
        dictation.unheard_before = (
            self.settings.demote_empty
        )  # the candidate that made no word of it is not asked for long
        try:
            async for words in self.hear(sound_of(self.spool.path(note)), dictation):
                writing.push(words)
                if by_segments and (text := writing.send()):
                    _add(record, text, self.settings, dictation, writing)
        except OSError as error:
            raise AudioError(
                f"recording {note.id} cannot be read: {error.strerror or error}"
            ) from error
        finally:
            self._rewriting -= 1
            self._changed()
        writing.finish()
        if text := writing.send() if by_segments else writing.text:
            _add(record, text, self.settings, dictation, writing, whole=True)
        elif record.parts:
            record.end(writing.text)
        return writing.text

    async def hear(
        self, sound: Iterable[AudioBlock], dictation: StreamingSession
    ) -> AsyncGenerator[list[Word]]:
        """Decode sound that is all there, between whatever else there is to do, giving words as
        they become final.

        Raises: as Engine.transcribe; what `sound` raises.
        """
        self.disturb()
        self._renew()
        self._guests += 1
        try:
            async for block in blocks(sound):
                dictation.push(block)
                yield await self._ask(dictation.decode)
                await asyncio.sleep(0)
            dictation.finish()
            yield await self._ask(dictation.decode)
        finally:
            self._guests -= 1
            self.settled()
            self._changed()

    async def _ask(self, act: Callable[[Engine], Awaitable[T]]) -> T:
        """Have a dictation ask the engine, telling what that did to the worker. Raises as
        Engine.transcribe."""
        async with self.turns.shared():
            choice.require(self.settings)
            engine = self.engine
            if engine.ready is None:
                await self.undisturbed()
            try:
                found = await act(engine)
            except (AudioError, SoundError):
                self._bring_back()
                raise
            finally:
                if self._coming is None:  # else what loads, or is downloaded, is the one to come
                    self._arrived()  # a worker that was started on the way has told how it came up
                self.demotion.tell(engine)
            if engine.ready is not None:  # without a worker nothing was asked, and nothing proved
                self._well()
            return found

    def _bring_back(self) -> None:
        """Have a worker started in the place of a lost one as soon as nobody asks: the next sound needs it."""
        if self.engine.ready is None and not self.asleep:
            self._return = asyncio.create_task(self.load())

    def _renew(self) -> None:
        """Put a fresh engine in the place of one that has no candidate left: what ailed it may be
        over."""
        if self.asleep:
            return
        try:
            _ = self.engine.candidate
        except EngineError:
            try:
                self._serve(self._new_engine(self.settings), self.settings)
            except AsrdError as error:
                self._ill(error)

    async def load(self) -> None:
        """Have a worker ready; what fails is `trouble`. Without a chosen model none is started."""
        if not self.settings.model:
            return
        try:
            async with self.turns.alone():
                if self.engine.ready is None:
                    await self.undisturbed()
                    await self._start(self.engine, self.settings)
        except AsrdError as error:
            self._ill(error)
        else:
            self._well()
        self.settled()

    async def _start(self, engine: Engine, settings: Settings) -> protocol.Ready:
        """Start a worker, telling how it goes and which candidates did not hold. Raises ModelError
        where none is chosen."""
        choice.require(settings)
        self.loading = "starting"
        self._changed()
        try:
            ready = await engine.start()
            self.memory = ready.ledger.get("ready")
        finally:
            self._arrived()
            if engine is self.engine:
                self.demotion.tell(engine)
            self._changed()
        otherwise = protocol.reasons(ready.fallbacks)
        journal.event(
            "loaded",
            f"{settings.model} runs as {engine.candidate.precision.name} on {ready.device_name or ready.device}"
            f" after {ready.load_seconds:.1f} s" + (f"; but {otherwise}" if otherwise else ""),
            logging.WARNING if otherwise else logging.INFO,
            strategy=engine.candidate.precision.name,
            effective=metrics.dtypes(ready),
            fallback=otherwise or None,
            model=settings.model,
            device=ready.device,
            weights_bytes=ready.weights_bytes,
            load_seconds=ready.load_seconds,
            **metrics.ledger(self.memory),
        )
        return ready

    async def use(self, settings: Settings, strict: bool = False) -> None:
        """Exchange the engine for one under other settings, beside the old one where the memory
        allows.

        Args:
            strict: refuse a worker that runs on another candidate than the first asked for.

        Raises: what Engine.start raises, PrecisionError; then the old engine is in service as
            before.
        """
        self._stay_awake()
        if not settings.model:
            await self._go_without(settings)
            return
        plan = await asyncio.to_thread(planned, settings)
        if strict and plan.rejected and plan.candidates[0].name != settings.strategy:
            first = plan.rejected[0]
            raise PrecisionError(
                f"{first.candidate}: {first.detail}", "asrd plan tells what this machine can run"
            )
        self._guests += 1  # nothing else starts beside it
        try:
            await self._exchange(plan, settings, strict)
        finally:
            self._guests -= 1
            self.settled()

    async def _exchange(self, plan: Plan, settings: Settings, strict: bool) -> None:
        self.disturb()
        await self.undisturbed()
        new = self._coming = self.engine_for(plan, settings)
        try:
            await self._have_file(new)
            beside = await asyncio.to_thread(fits_beside, settings, self.in_use)
            if beside:
                await self.prove(new, settings, strict)
            async with self.turns.alone():
                self._stay_awake()
                old, before = self.engine, self.settings
                if not beside:
                    await self._instead(old, new, settings, strict)
                self._serve(new, settings)
        except BaseException:  # whoever asked may have gone
            if self.engine is not new:
                await new.stop()
            raise
        finally:
            self._coming = None
            self._arrived()  # a worker that came again in the old engine meanwhile did not say so
        await old.stop()
        self._well()
        self._changed()  # the time begins after which an unused model leaves memory
        if before.model:
            was, now = (f"{one.model} under {one.strategy}" for one in (before, settings))
            journal.event("unloaded", f"{was} was unloaded: {now} is in use")

    async def _go_without(self, settings: Settings) -> None:
        """End the worker and start none: the model was taken out of the settings."""
        self.disturb()
        await self.undisturbed()
        async with self.turns.alone():
            await self.engine.stop()
            self.memory = None
            self._serve(self._new_engine(settings), settings)
            self.trouble = choice.UNCHOSEN
        self._changed()

    async def _have_file(self, new: Engine) -> None:
        """Have the model of an engine that is to come here, while the one in service goes on."""
        try:
            await new.download()
        finally:
            self._arrived()
            self._changed()

    async def _instead(self, old: Engine, new: Engine, settings: Settings, strict: bool) -> None:
        """Start a worker where the old one was, which comes back if that fails."""
        was_ready = old.ready is not None
        await old.stop()
        try:
            await self.prove(new, settings, strict)
        except AsrdError:
            if was_ready:
                await self._start(old, self.settings)
            raise

    def _stay_awake(self) -> None:
        if self.asleep:
            raise UsageError("the machine is about to sleep", "try again when it has woken up")

    async def retune(self) -> None:
        """Go by what was measured of `auto` meanwhile; where no worker is in service the next one
        does. As `use`."""
        if self.engine.ready is not None and not self.asleep:
            await self.use(self.settings)
            return
        async with self.turns.alone():
            await self.engine.stop()
            self._serve(self._new_engine(self.settings), self.settings)

    async def prove(self, new: Engine, settings: Settings, strict: bool) -> None:
        """Start the worker of an engine that is to be in service. Raises as Engine.start; then it
        is stopped again."""
        wanted, memory = new.candidate.name, self.memory
        try:
            await self._start(new, settings)
            if strict and new.candidate.name != wanted:
                reason = new.rejected[-1].detail
                raise EngineError(
                    f"{wanted} did not hold: {reason}", "the worker before stays in service"
                )
        except BaseException:
            self.memory = memory
            await new.stop()
            fallback_monitor.log_rejected(new)
            raise

    def _new_engine(self, settings: Settings) -> Engine:
        """Return an engine by what this machine has now. Without a model nothing will be loaded: no
        card is asked."""
        meant = settings if settings.model else msgspec.structs.replace(settings, device="cpu")
        return self.engine_for(planned(meant), meant)

    def engine_for(self, plan: Plan, given: Settings | protocol.Start) -> Engine:
        """Return an engine that tells what it does.

        Args:
            given: what a worker is started with, or the settings that say it.
        """
        return self._hold(
            plan,
            given if isinstance(given, protocol.Start) else start_for(given),
            on_progress=self._heard_of,
            on_answer=lambda *answered: self.demotion.heard(
                *answered
            ),  # whichever is in service by then
        )

    def _serve(self, engine: Engine, settings: Settings) -> None:
        """Put an engine in service that owes nothing to the one before."""
        self.engine, self.settings, self._unheard = engine, settings, 0.0
        self.demotion = FallbackMonitor(settings, engine, self._warn)
        self.demotion.tell(engine)
        self.shadow.forget()

    async def park(self) -> None:
        """End the worker, so that it holds no memory at all; the next recording starts it."""
        async with self.turns.alone():
            if self.engine.ready is not None and not (self.busy or self._guests):
                await self.engine.stop()
                self.memory = None
                journal.event("unloaded", "the model was unloaded: it was not used for a while")
        self._changed()

    async def sleep(self) -> None:
        """End the worker at once, whatever it does, and start none until `wake`; then the same is
        asked again."""
        self.asleep = True
        self.disturb()
        loaded = self.engine.pid is not None
        await asyncio.gather(
            *(engine.halt() for engine in (self.engine, self._coming) if engine is not None)
        )
        self.memory = None
        if loaded:
            journal.event("unloaded", "the model was unloaded: the machine sleeps")
        self._changed()

    async def wake(self) -> None:
        """Have a worker ready again; it proves itself on the known clip."""
        self.asleep = False
        for engine in (self.engine, self._coming):
            if engine is not None:
                engine.go_on()
        await self.load()

    async def stop(self) -> None:
        """End the worker for good."""
        self.disturb()
        if self._return is not None:
            self._return.cancel()
        await self._cleanup.finish()
        await self.engine.stop()

    def _heard_of(self, progress: protocol.Progress) -> None:
        self.loading = f"{progress.stage} {progress.detail}".rstrip()
        self.download = progress.download
        if self.download is not None and self.download.model != self._announced:
            self._announced = self.download.model
            journal.event(
                "download", f"downloading {self.download.text}", model=self.download.model
            )
        self._changed()

    def _arrived(self) -> None:
        """Nothing loads any more."""
        self.loading, self.download = "", None

    def _ill(self, error: AsrdError) -> None:
        if error.message != self.trouble:
            log.error("%s", with_hint(error.message, error.hint))
        self.trouble = error.message
        self._changed()

    def _well(self) -> None:
        if self.trouble:
            self.trouble = ""
            self._changed()

    async def _account(self, one: Dictation, told: DictationResult) -> None:
        """Read the ledger where that delays nobody, and write the figures of a take to the
        journal."""
        heard = one.dictation.answer is not None
        await self._let_it_out()
        if heard and self.engine.ready is not None and len(self._queue) == 1:
            async with self.turns.shared():
                self.memory = await self.engine.read_ledger("steady")
            self._bring_back()
        metrics.log_dictation(
            one, told, self.settings.model, one.dictation.ready or self.engine.ready, self.memory
        )
        self._alert.watch(self.memory, self.settings)
        if told.outcome != "cancelled":
            self.level.watch(one)
        if heard and self.engine.ready is not None:
            await self.judge()

    async def _let_it_out(self) -> None:
        """Wait until the text is with whoever waits for it, or the next recording is here: figures
        grow with a text."""
        if len(self._queue) > 1:
            return
        self._work.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MOMENT_SECONDS):
                await self._work.wait()

    async def judge(self) -> None:
        """Leave the candidate in service if its figures are reason enough, and have the next one
        ready."""
        engine, served = self.engine, self.demotion
        candidate, verdict = (
            engine.candidate,
            served.judge(engine, self.memory, self.shadow.figures),
        )
        if verdict is None:
            return
        async with self.turns.shared():
            if engine is not self.engine or not engine.candidates or engine.candidate != candidate:
                return  # another worker has come into service, which the verdict is not of
            left = await engine.fall_back(candidate, verdict.kind, verdict.detail, verdict.figures)
            served.tell(engine)
        if left:
            await self.load()
        else:
            served.in_vain(engine, verdict)


async def _nothing() -> None: ...


def _add(
    record: Deliveries,
    text: str,
    settings: Settings,
    dictation: StreamingSession,
    writing: CommandWriter,
    whole: bool = False,
) -> int:
    """Write down the next part of a text, as it is to be sent; return its number."""
    behind = None if whole else standing(dictation, writing, record.standing)
    before = record.parts[-1].text if record.parts else ""
    part = as_part(text, settings.suffix, before, writing.joined, dictation.transcript.torn)
    return record.add(part, behind, writing.text if whole else None)
