"""Changes of the strategy and of the settings while the daemon runs, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec

from asrd import journal
from asrd.config.loading import Loaded
from asrd.config.settings import ENGINE, FIELDS, Settings
from asrd.daemon import replies, sd_notify
from asrd.daemon.announcements import log_notes
from asrd.daemon.control_server import Answers
from asrd.daemon.daemon import Daemon
from asrd.daemon.jobs import log_failure
from asrd.daemon.status import load_seconds
from asrd.engine.planner import plan_for
from asrd.errors import AsrdError, BusyError, UsageError
from asrd.models import choice
from asrd.precision.strategies import canonical, find
from asrd.text.wording import counted

log = logging.getLogger("asrd")

PROGRESS_SECONDS = 0.5
"""Seconds between two looks at how far a change is that a client waits for."""

FIXED_SETTINGS = frozenset({"socket", "source"})
"""Settings that a running daemon keeps until its next start."""


class SettingsChanges:
    """Change the worker or the settings of a running daemon.

    Args:
        daemon: the daemon.
        reread: returns the settings as they are written now; raises ConfigError.
    """

    def __init__(self, daemon: Daemon, reread: Callable[[], Loaded]) -> None:
        self._daemon, self._transcriber, self._reread = daemon, daemon.transcriber, reread
        self._lock = asyncio.Lock()
        self._holder: asyncio.Task[Any] | None = None
        """The task that holds the lock, or held it last."""

    @property
    def _settings(self) -> Settings:
        return self._daemon.settings

    @contextlib.asynccontextmanager
    async def one_at_a_time(self) -> AsyncIterator[None]:
        """Wait for the change before; each begins from what that one left. Raises UsageError at the
        end."""
        async with self._lock:
            self._daemon.refuse_at_end()
            self._holder = asyncio.current_task()
            yield

    async def followed(self, change: Callable[[], Coroutine[Any, Any, dict[str, Any]]]) -> Answers:
        """Yield how far a change is, and at last its reply; the change goes on without a reader."""
        job, began, shown = asyncio.create_task(change()), time.monotonic(), ""
        self._daemon.jobs.keep(job)
        try:
            while not job.done():
                waits = self._lock.locked() and self._holder is not job
                text = self._progress(waits, time.monotonic() - began)
                if text != shown:
                    yield {"progress": text, "waits": waits, "more": True}
                    shown = text
                await asyncio.wait([job], timeout=PROGRESS_SECONDS)
            yield job.result()
        finally:
            if not job.done():  # nobody reads its error any more
                job.add_done_callback(log_failure)

    def _progress(self, waits: bool, seconds: float) -> str:
        """Return what a client waits for that asked for another worker."""
        step = replies.loading_words(self._transcriber.slot.loading) or "looking at the model"
        if waits:
            return f"waiting for another change of the settings: {step}"
        return f"{step}, {seconds:.0f} s"

    async def use(self, strategy: str) -> dict[str, Any]:
        """Change the strategy; return the reply. Raises UsageError, BusyError, and what a worker's
        start raises."""
        if not strategy:
            raise UsageError("asrd use needs a strategy", "asrd plan lists them")
        strategy = canonical(strategy)
        if strategy != "auto":
            find(strategy)  # refuses a word that is no strategy before any card is asked
        choice.require(self._settings, self._daemon.file)
        self._refuse_while_downloading()
        async with self.one_at_a_time():
            wanted = msgspec.structs.replace(self._settings, strategy=strategy)
            await self._transcriber.slot.replace(wanted, strict=strategy != "auto")
        note = self._transcriber.slot.precision_note
        message = f"now on {self._transcriber.slot.engine.candidate.name}"
        if note:
            message += f"; but {note}"
        return self._reply(message, load_seconds=load_seconds(self._transcriber))

    def _refuse_while_downloading(self) -> None:
        """Raise BusyError while a reload downloads a model: that may take an hour."""
        download = self._transcriber.slot.download
        if download is not None and self._lock.locked():
            raise BusyError(
                f"the daemon is downloading {download.model}",
                "ask again when asrd status shows no download",
            )

    async def tuned(self) -> dict[str, Any]:
        """Go by a new result of `asrd tune` as soon as nobody waits for text; return the reply."""
        if self._settings.strategy != "auto":
            asked = self._settings.strategy
            return {"message": f"the daemon stays on {asked}, which it was told to use"}
        now = self._transcriber.slot.engine.plan.candidates[0]
        first = plan_for(self._settings).candidates[0]
        if first == now:
            return {"message": f"the daemon stays on {now.name}"}
        self._daemon.jobs.spawn(self.retune())
        return {"message": f"the daemon goes from {now.name} to {first.name} when it is idle"}

    async def retune(self) -> None:
        """Change to the worker that `auto` chooses now, between recordings."""
        while self._transcriber.slot.suspended or self._daemon.state in (
            "LISTENING",
            "FLUSHING",
            "LOADING",
        ):
            await self._daemon.wait_for_change(None)
        try:
            async with self.one_at_a_time():
                await self._transcriber.slot.retune()
        except AsrdError as error:
            log.error("the worker stays as it was: %s", replies.complaint(error))
        self._daemon.announcements.auto()

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again; return the reply. What needs another worker gets one.

        Raises: AsrdError; then the settings and the worker stay as they were.
        """
        async with self.one_at_a_time():
            sd_notify.reloading()
            try:
                changed = await self._take_over()
            finally:
                sd_notify.ready(self._daemon.status_line())
        message = self._describe(changed)
        journal.event("reloaded", f"configuration read again: {message}")
        if changed & set(ENGINE) and self._transcriber.slot.engine.ready is not None:
            now = f"{self._settings.model} runs as {self._transcriber.slot.engine.candidate.name}"
            seconds = load_seconds(self._transcriber)
            return self._reply(message, now=now, load_seconds=seconds)
        return self._reply(message)

    async def _take_over(self) -> set[str]:
        """Read the settings and go by them; return those that differ. Raises as `reload`."""
        loaded, changed = None, set[str]()
        try:
            loaded = self._reread()
            log_notes(loaded, logging.WARNING)
            new, old = loaded.settings, self._settings
            changed = {key for key in FIELDS if getattr(new, key) != getattr(old, key)}
            kept = {key: getattr(old, key) for key in changed & FIXED_SETTINGS}
            new = msgspec.structs.replace(new, **kept)
            if changed & set(ENGINE):
                await self._transcriber.slot.replace(new)
            await self._daemon.apply_settings(new)
        except AsrdError as error:
            raise replies.unchanged(error, loaded, sorted(changed & set(ENGINE))) from error
        return changed

    def _describe(self, changed: set[str]) -> str:
        """Return which settings changed, and what follows from it."""
        message = ", ".join(sorted(changed - FIXED_SETTINGS)) or "nothing changed"
        if fixed := sorted(changed & FIXED_SETTINGS):
            message += f"; {' and '.join(fixed)} at the next start"
        if "model" in changed:
            message += self._describe_model()
        return message

    def _describe_model(self) -> str:
        """Return what another model is, and which recordings it can make text of."""
        self._daemon.announcements.other_model()
        note = choice.note(self._settings, self._daemon.file)
        waiting = len(self._transcriber.spool.waiting())
        text = f"; {note}" if note else ""
        if waiting and self._settings.model:
            wait = "waits" if waiting == 1 else "wait"
            text += f"; {counted(waiting, 'recording')} {wait}"
            text += ": asrd retry --all makes text of them"
        return text

    async def reload_quietly(self) -> None:
        """Read the configuration again, as SIGHUP asks; an error is logged."""
        try:
            await self.reload()
        except AsrdError as error:
            log.error("%s", replies.complaint(error))

    def _reply(self, message: str, **more: Any) -> dict[str, Any]:
        return {"message": message, "state": self._daemon.state, **more}
