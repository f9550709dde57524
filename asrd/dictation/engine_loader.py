"""Engines for the slot: made by a plan, started, tested, and how far a start has come.

Runs in the daemon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from asrd import journal, protocol
from asrd.config.settings import Settings
from asrd.dictation import fallback_monitor, metrics
from asrd.dictation.fallback_monitor import Warn
from asrd.engine.engine import Engine
from asrd.engine.planner import plan_for, start_for
from asrd.errors import EngineError
from asrd.models import choice
from asrd.precision.memory import Memory
from asrd.precision.plan import Plan


def _warn_nobody(summary: str, body: str) -> None:
    """Show nothing: no person is there."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told what happens to the engine."""

    on_change: Callable[[], None]
    """Called when there is something new to show."""
    on_warning: Warn = _warn_nobody
    """Shows a person a summary and a sentence."""


class EngineLoader:
    """Makes engines and starts their workers, one after the other.

    Args:
        listeners: are told of changes.
        engine_factory: makes an engine; another one in tests.
        on_answer: is called by an engine with seconds of audio, phase and answer.
        on_started: is called with an engine whose start has ended, also where it failed.
    """

    def __init__(
        self,
        listeners: Listeners,
        engine_factory: Callable[..., Engine],
        on_answer: Callable[[float, str, protocol.Answer], None],
        on_started: Callable[[Engine], None],
    ) -> None:
        self.loading = ""
        """What a worker does before it can answer; "" when none is starting."""
        self.download: protocol.Download | None = None
        """How far the download of the model has come; None while nothing is downloaded."""
        self.memory: Memory | None = None
        """The last reading of the ledger of the worker in service."""
        self._on_change = listeners.on_change
        self._engine_factory = engine_factory
        self._on_answer, self._on_started = on_answer, on_started
        self._announced = ""
        """The last model whose download the journal told of."""

    def new_engine(self, settings: Settings) -> Engine:
        """Return an engine by what this machine has now."""
        if not settings.model:  # nothing will be loaded, so no card is asked
            settings = msgspec.structs.replace(settings, device="cpu")
        return self.engine_for(plan_for(settings), start_for(settings))

    def engine_for(self, plan: Plan, start: protocol.Start) -> Engine:
        """Return an engine that reports to this loader."""
        return self._engine_factory(
            plan, start, on_progress=self._on_progress, on_answer=self._on_answer
        )

    def engine_after(self, old: Engine, plan: Plan, settings: Settings) -> Engine:
        """Return an engine for another plan, under the memory limit of an old one.

        The limit in bytes is known; to compute it again would wake a card that sleeps.
        """
        start = start_for(msgspec.structs.replace(settings, vram_budget=""))
        limit = old.template.vram_limit
        return self.engine_for(plan, msgspec.structs.replace(start, vram_limit=limit))

    async def fetch(self, engine: Engine) -> None:
        """Download the model of an engine, while another one is in service."""
        try:
            await engine.download()
        finally:
            self.end_loading()
            self._on_change()

    async def start(self, engine: Engine, settings: Settings) -> None:
        """Start a worker. Raises as Engine.start; ModelError where no model is chosen."""
        choice.require(settings)
        self.loading = "starting"
        self._on_change()
        try:
            ready = await engine.start()
            self.memory = ready.ledger.get("ready")
        finally:
            self.end_loading()
            self._on_started(engine)
            self._on_change()
        metrics.log_loaded(settings.model, engine.candidate, ready, self.memory)

    async def self_test(self, new: Engine, settings: Settings, strict: bool) -> None:
        """Start the worker of an engine that is not in service yet, which tests itself.

        Raises: as Engine.start; then the worker is stopped again.
        """
        wanted, memory = new.candidate.name, self.memory
        try:
            await self.start(new, settings)
            if strict and new.candidate.name != wanted:
                reason = new.rejected[-1].detail
                raise EngineError(
                    f"{wanted} failed: {reason}", "the previous worker stays in service"
                )
        except BaseException:  # also where the caller was cancelled
            self.memory = memory
            await new.stop()
            fallback_monitor.log_rejected(new)
            raise

    def end_loading(self) -> None:
        """No worker is starting any more."""
        self.loading, self.download = "", None

    def _on_progress(self, progress: protocol.Progress) -> None:
        self.loading = f"{progress.stage} {progress.detail}".rstrip()
        self.download = progress.download
        if self.download is not None and self.download.model != self._announced:
            self._announced = self.download.model
            journal.event(
                "download", f"downloading {self.download.text}", model=self.download.model
            )
        self._on_change()
