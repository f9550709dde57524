"""The engine in service: loaded, replaced, unloaded, suspended, fallen back and restored.

Nothing else assigns the engine, its settings or its callbacks. The slot does not know who uses it.
Runs in the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

from asrd import journal, protocol
from asrd.config.settings import Settings
from asrd.dictation.activity import Activity, ReadWriteLock
from asrd.dictation.engine_loader import EngineLoader, Listeners
from asrd.dictation.fallback_monitor import FallbackMonitor
from asrd.dictation.shadow import Shadow
from asrd.engine.capacity import fits_beside
from asrd.engine.engine import Engine
from asrd.engine.planner import plan_for, start_for
from asrd.errors import AsrdError, AudioError, PrecisionError, UnansweredError, UsageError
from asrd.models import choice
from asrd.precision import fallback
from asrd.precision.memory import Memory
from asrd.precision.plan import Plan
from asrd.text.wording import with_hint

log = logging.getLogger("asrd")


class EngineSlot:
    """Holds the one engine in service, under the settings in force.

    Args:
        settings: model and strategy.
        listeners: are told of changes.
        engine_factory: makes an engine; another one in tests.
    """

    def __init__(
        self,
        settings: Settings,
        listeners: Listeners,
        engine_factory: Callable[..., Engine] = Engine,
    ) -> None:
        self.settings = settings
        self.listeners = listeners
        self.activity = Activity()
        self.lock = ReadWriteLock()
        self.error = "" if settings.model else choice.UNCHOSEN
        """Why there is no text right now; "" while there is no problem."""
        self.suspended = False
        """Between `suspend` and `resume`."""
        self.shadow = Shadow(engine_factory)
        self._coming: Engine | None = None
        """A new engine that is to come into service and tests itself."""
        self._reload_task: asyncio.Task[None] | None = None
        """Starts a worker again after one that a recording ended."""
        self.loader = EngineLoader(
            listeners,
            engine_factory,
            lambda *answer: self.monitor.note_answer(*answer),
            self._on_started,
        )
        self.engine = self.loader.new_engine(settings)
        self.monitor = FallbackMonitor(settings, self.engine, listeners.on_warning)

    @property
    def idle(self) -> bool:
        """Whether nobody needs the engine, and the machine is awake."""
        return self.activity.quiet and not self.suspended

    @property
    def _engines(self) -> list[Engine]:
        """The engine in service, and the one that is to come into service, if there is one."""
        return [self.engine] if self._coming is None else [self.engine, self._coming]

    @property
    def overdue(self) -> bool:
        """Whether the engine in service, or the new one, has not acted on its own deadline."""
        return any(engine.overdue for engine in self._engines)

    @property
    def precision_note(self) -> str:
        """What the worker does not run as asked, and why; "" where it does, or there is none."""
        if self.engine.ready is None:
            return ""
        return protocol.fallback_reasons(self.engine.ready.fallbacks)

    @property
    def bytes_in_use(self) -> int | None:
        """Bytes that the worker holds; 0 while there is none, None where nothing tells."""
        if self.engine.pid is None:
            return 0
        if self.loader.memory is None:
            return None
        return self.loader.memory.process

    @property
    def loading(self) -> str:
        """What a worker does before it can answer; "" when none is starting."""
        return self.loader.loading

    @property
    def download(self) -> protocol.Download | None:
        """How far the download of the model has come; None while nothing is downloaded."""
        return self.loader.download

    @property
    def memory(self) -> Memory | None:
        """The last reading of the ledger of the worker in service."""
        return self.loader.memory

    # -- using the engine

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[Engine]:
        """Give the engine to one of several users; afterwards report what its use did to it.

        Raises: ModelError where no model is chosen; passes on what Engine.transcribe raises.
        """
        async with self.lock.shared():
            choice.require(self.settings)
            engine = self.engine
            if engine.ready is None:
                await self.activity.wait_until_quiet()
            try:
                yield engine
            except (AudioError, UnansweredError):
                self._reload_lost()
                raise
            finally:
                if self._coming is None:  # else the loading that is shown is that of the new engine
                    self.loader.end_loading()
                self.monitor.report_changes(engine)
            if engine.ready is not None:  # without a worker nothing was asked
                self.clear_error()

    async def measure(self) -> None:
        """Read the worker's ledger of memory, where there is a worker."""
        if self.engine.ready is None:
            return
        async with self.lock.shared():
            self.loader.memory = await self.engine.read_ledger("steady")
        self._reload_lost()

    def _reload_lost(self) -> None:
        """Load a lost worker again once nobody uses the engine: the next recording needs it."""
        if self.engine.ready is None and not self.suspended:
            self._reload_task = asyncio.create_task(self.load())

    def set_error(self, error: AsrdError) -> None:
        """Keep an error as the reason why there is no text; log a new one."""
        if error.message != self.error:
            log.error("%s", with_hint(error.message, error.hint))
        self.error = error.message
        self.listeners.on_change()

    def clear_error(self) -> None:
        """There is text again."""
        if self.error:
            self.error = ""
            self.listeners.on_change()

    # -- loading

    def renew(self) -> None:
        """Replace an engine that has no candidate left by a new one: its trouble may be over."""
        if self.suspended or self.engine.candidates:
            return
        try:
            self._serve(self.loader.new_engine(self.settings), self.settings)
        except AsrdError as error:
            self.set_error(error)

    async def load(self) -> None:
        """Have a worker ready; what fails is `error`. Without a chosen model none is started."""
        if not self.settings.model:
            return
        try:
            async with self.lock.alone():
                if self.engine.ready is None:
                    await self.activity.wait_until_quiet()
                    await self.loader.start(self.engine, self.settings)
        except AsrdError as error:
            self.set_error(error)
        else:
            self.clear_error()
        self.activity.settle()

    def _on_started(self, engine: Engine) -> None:
        if engine is self.engine:  # one that is to come is reported when it is in service
            self.monitor.report_changes(engine)

    def _serve(self, engine: Engine, settings: Settings) -> None:
        """Put an engine in service and forget what is known of the one before."""
        self.engine, self.settings = engine, settings
        self.monitor = FallbackMonitor(settings, engine, self.listeners.on_warning)
        self.monitor.report_changes(engine)
        self.shadow.forget()

    # -- replacing

    def apply_settings(self, settings: Settings) -> None:
        """Take over settings that need no other worker."""
        self.settings = settings
        self.monitor.apply_settings(settings)

    async def replace(self, settings: Settings, strict: bool = False) -> None:
        """Replace the engine by one under other settings, next to the old one where memory allows.

        Args:
            strict: refuse a worker that runs on another candidate than the first asked for.

        Raises: what Engine.start raises, PrecisionError; then the old engine stays in service.
        """
        self._require_awake()
        if not settings.model:
            await self._serve_without_model(settings)
            return
        plan = await asyncio.to_thread(plan_for, settings)
        if strict and plan.rejected and plan.candidates[0].name != settings.strategy:
            first = plan.rejected[0]
            raise PrecisionError(
                f"{first.candidate}: {first.detail}", "asrd plan shows what this machine can run"
            )
        with self.activity.guest():  # nothing else starts next to it
            await self._replace(plan, settings, strict)

    async def _replace(self, plan: Plan, settings: Settings, strict: bool) -> None:
        await self.activity.wait_until_quiet()
        new = self._coming = self.loader.engine_for(plan, start_for(settings))
        try:
            await self.loader.fetch(new)
            beside = await asyncio.to_thread(fits_beside, settings, self.bytes_in_use)
            if beside:
                await self.loader.self_test(new, settings, strict)
            async with self.lock.alone():
                self._require_awake()
                old, before = self.engine, self.settings
                if not beside:
                    await self._start_instead(old, new, settings, strict)
                self._serve(new, settings)
        except BaseException:  # also where the caller was cancelled
            if self.engine is not new:
                await new.stop()
            raise
        finally:
            self._coming = None
            self.loader.end_loading()  # the old engine may have restarted its worker meanwhile
        await old.stop()
        self.clear_error()
        self.listeners.on_change()  # the time begins after which an unused model is unloaded
        if before.model:
            was, now = (f"{one.model} under {one.strategy}" for one in (before, settings))
            journal.event("unloaded", f"{was} was unloaded: {now} is in use")

    async def _serve_without_model(self, settings: Settings) -> None:
        """End the worker and start none: the model was taken out of the settings."""
        self.activity.interrupt()
        await self.activity.wait_until_quiet()
        async with self.lock.alone():
            await self.engine.stop()
            self.loader.memory = None
            self._serve(self.loader.new_engine(settings), settings)
            self.error = choice.UNCHOSEN
        self.listeners.on_change()

    async def _start_instead(
        self, old: Engine, new: Engine, settings: Settings, strict: bool
    ) -> None:
        """Start a worker in place of the old one, which is started again if that fails."""
        was_ready = old.ready is not None
        await old.stop()
        try:
            await self.loader.self_test(new, settings, strict)
        except AsrdError:
            if was_ready:
                await self.loader.start(old, self.settings)
            raise

    def _require_awake(self) -> None:
        if self.suspended:
            raise UsageError("the machine is about to sleep", "try again when it has woken up")

    async def retune(self) -> None:
        """Follow a new choice of `auto`; without a worker the next one follows it. Raises as
        `replace`."""
        if self.engine.ready is not None and not self.suspended:
            await self.replace(self.settings)
            return
        async with self.lock.alone():
            await self.engine.stop()
            self._serve(self.loader.new_engine(self.settings), self.settings)

    # -- unloading and suspend

    async def unload(self) -> None:
        """End the worker where nobody needs it, so that it holds no memory."""
        async with self.lock.alone():
            if self.engine.ready is not None and self.activity.quiet:
                await self.engine.stop()
                self.loader.memory = None
                journal.event("unloaded", "the model was unloaded: it was not used for a while")
        self.listeners.on_change()

    async def suspend(self) -> None:
        """End the worker at once, also one that answers, and start none until `resume`.

        What was being asked is asked again after `resume`.
        """
        self.suspended = True
        self.activity.interrupt()
        loaded = self.engine.pid is not None
        await asyncio.gather(*(engine.halt() for engine in self._engines))
        self.loader.memory = None
        if loaded:
            journal.event("unloaded", "the model was unloaded: the machine sleeps")
        self.listeners.on_change()

    async def resume(self) -> None:
        """Have a worker ready again; it tests itself on the known clip."""
        self.suspended = False
        for engine in self._engines:
            engine.go_on()
        await self.load()

    async def stop(self) -> None:
        """End the worker for good."""
        self.activity.interrupt()
        if self._reload_task is not None:
            self._reload_task.cancel()
        await self.engine.stop()

    # -- fallback

    async def fall_back_if_due(self) -> None:
        """Fall back where the figures of the candidate in service exceed a limit, and load the next
        one."""
        engine, monitor = self.engine, self.monitor
        candidate = engine.candidate
        trigger = monitor.judge(engine, self.loader.memory, self.shadow.figures)
        if trigger is None:
            return
        async with self.lock.shared():
            if engine is not self.engine or engine.candidates[:1] != (candidate,):
                return  # the figures are not those of the worker in service
            left = await engine.fall_back(candidate, trigger.kind, trigger.detail, trigger.figures)
            monitor.report_changes(engine)
        if left:
            await self.load()
        else:
            monitor.report_no_help(engine, trigger)

    async def try_restore(self) -> bool:
        """Try the candidates whose trouble may be over: next to the one in service where memory
        allows, else instead.

        Returns whether another candidate is in service now.
        """
        old, monitor, memory = self.engine, self.monitor, self.loader.memory
        plan = fallback.retry_plan(old.plan, old.left, old.candidates, old.rejected)
        if plan is None or not old.candidates:
            monitor.backoff.note_retry(time.monotonic(), held=True)
            return False
        new = self.loader.engine_after(old, plan, self.settings)
        # Without a worker the new engine starts with the next recording; until then no card is
        # asked.
        unloaded = old.pid is None
        beside = unloaded or await asyncio.to_thread(fits_beside, self.settings, self.bytes_in_use)
        taken = False
        try:
            if beside and not unloaded:
                await self.loader.self_test(new, self.settings, strict=False)
            async with self.lock.alone():
                if not beside:
                    await old.stop()
                    await self.loader.self_test(new, self.settings, strict=False)
                taken = self.engine is old and len(new.candidates) > len(old.candidates)
                if taken:
                    self.engine = new
                    if not unloaded:  # else it is reported once it has tested itself
                        monitor.report_restored(new)
                    held = new.candidate == plan.candidates[0]
                    monitor.backoff.note_retry(time.monotonic(), held)
        except AsrdError as error:
            log.info("no better candidate holds: %s", error.message)
        finally:
            if not taken:
                self.loader.memory = memory
            await (old if taken else new).stop()
        if not taken:
            monitor.backoff.note_retry(time.monotonic(), held=False)
        if not (taken or beside):
            await self.load()
        return taken
