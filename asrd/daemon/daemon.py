"""The daemon's life: start, states, the microphone's events, suspend, and the end.

One event loop; what could hang (a device, a worker, a program that types) is awaited under a limit
of its own. Recording depends on nothing else here: not on the model, the disk, the desktop or the
journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

from asrd import hints, journal
from asrd.audio.sources import AudioSource, open_source
from asrd.config.amounts import idle_seconds
from asrd.config.loading import Loaded
from asrd.config.settings import Settings
from asrd.daemon import sd_notify, status
from asrd.daemon.announcements import Announcements, warn_of_text
from asrd.daemon.control_server import Answers, ControlServer, Request
from asrd.daemon.delivery import Delivery
from asrd.daemon.jobs import BackgroundJobs
from asrd.daemon.logind import SleepInhibitor
from asrd.desktop.notifications import Desktop
from asrd.dictation.engine_loader import Listeners
from asrd.dictation.engine_slot import EngineSlot
from asrd.dictation.idle_tasks import IdleTasks
from asrd.dictation.recorder import Recorder
from asrd.dictation.recording import Dictation
from asrd.dictation.transcriber import Transcriber
from asrd.engine.engine import Engine
from asrd.engine.process import kill_all
from asrd.errors import AudioError, SinkError, UsageError
from asrd.models import choice
from asrd.recordings.index import RecordingIndex
from asrd.recordings.store import RecordingStore, folder

log = logging.getLogger("asrd")

DRAIN_STEP_SECONDS = 5.0
"""Longest wait for a change while the daemon ends; systemd is told after each that it goes on."""

DRAIN_EXTENSION_SECONDS = 15.0
"""Time that systemd is asked for at each of these steps."""


class Daemon:
    """The life of a dictation daemon on the running event loop.

    Args:
        loaded: the settings in force.
        hold: makes an engine, for tests.
        listen: makes a capture, for tests.
    """

    def __init__(
        self,
        loaded: Loaded,
        hold: Callable[..., Engine] = Engine,
        listen: Callable[[str, str], AudioSource] = open_source,
    ) -> None:
        settings = loaded.settings
        self.code = 0
        """The exit code."""
        self.file = loaded.file
        """The configuration file that was named; None for the usual one."""
        self.jobs = BackgroundJobs()
        self.desktop = Desktop(settings.notify, settings.cues)
        self.delivery = Delivery(settings, self.show)
        self.slot = EngineSlot(settings, Listeners(self.changed, self.show), hold)
        self.transcriber = Transcriber(self.slot, spool_for(settings), self.delivery.send)
        self.announcements = Announcements(self.transcriber, self.file, self._notify)
        self.rest = IdleTasks(self.slot)
        self.recorder = Recorder(self.transcriber, listen, self)
        self._logged_state = ""
        self._began = time.monotonic()
        self._ending = asyncio.Event()
        self._pulse = asyncio.Event()
        self._idle: asyncio.TimerHandle | None = None
        self._index = RecordingIndex()
        self._transcribing: asyncio.Task[None] | None = None

    # -- life ----------------------------------------------------------------------------------

    async def serve(
        self,
        line: socket.socket | None,
        answer: Callable[[Request], Answers],
        reload: Callable[[], Coroutine[Any, Any, None]],
    ) -> int:
        """Run until a signal or, with a source that ends, until its text was delivered.

        Args:
            line: the listening control socket; None where nobody is to ask.
            answer: gives the replies to a request.
            reload: reads the configuration again; SIGHUP asks for it.

        Returns:
            The exit code.
        """
        self._handle_signals(reload)
        server = ControlServer(answer)
        if line is not None:
            await server.open(line)
        sleep = SleepInhibitor(self._fall_asleep, self._wake)
        tasks = self._start_tasks()
        if self.recorder.one_shot:
            self.start()
        else:
            await self.recorder.apply_settings()
        self._announce()
        self.jobs.spawn(self._load(self.recorder.current))
        await sleep.start()
        await self._ending.wait()
        await self.drain()
        tasks += self.jobs
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.close()
        await sleep.stop()
        await self.transcriber.finish()
        await self.slot.stop()
        journal.event("stopping", "ended", code=self.code)
        return self.code

    def _handle_signals(self, reload: Callable[[], Coroutine[Any, Any, None]]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.end)
        loop.add_signal_handler(signal.SIGHUP, lambda: self.jobs.spawn(reload()))

    def _start_tasks(self) -> list[asyncio.Task[Any]]:
        """Start what runs as long as the daemon does."""
        self._transcribing = asyncio.create_task(self.transcriber.run())
        beat, rest = asyncio.create_task(self._beat()), asyncio.create_task(self.rest.run())
        return [self._transcribing, beat, rest]

    def _announce(self) -> None:
        """Say that the daemon records from now on, and with what."""
        sd_notify.ready(self.status_line())
        journal.event("ready", f"ready to record; {self.status_line()}")
        self.jobs.spawn(self.announcements.waiting())
        self.announcements.model(quiet=self.recorder.one_shot)
        self.announcements.auto()
        if not self.recorder.one_shot:
            self.announcements.next_step()

    def end(self) -> None:
        """End the recording, make text of it, go. A second call goes at once; the audio is kept."""
        if self._ending.is_set():
            self.transcriber.abandon("asrd was asked twice to end")
            kill_all()
            os._exit(128 + signal.SIGTERM)
        self._ending.set()
        sd_notify.stopping()
        self.changed()

    @property
    def ending(self) -> bool:
        """Whether the daemon is about to end."""
        return self._ending.is_set()

    def refuse_at_end(self) -> None:
        """Raise UsageError where the daemon is about to end."""
        if self.ending:
            raise UsageError("asrd is ending", hints.again())

    async def drain(self) -> None:
        """Make text of what was recorded, before the end."""
        await self.recorder.stop()
        while self.transcriber.busy and not self._waits_for_download:
            sd_notify.extend(DRAIN_EXTENSION_SECONDS)
            await self.wait_for_change(DRAIN_STEP_SECONDS)
        if (download := self.slot.download) is not None and download.bytes:
            log.info("%s", download.kept)
        # Only a download leaves recordings open here, and it may take hours.
        self.transcriber.abandon("asrd ended while its model was downloaded")
        await self.recorder.close()

    @property
    def _waits_for_download(self) -> bool:
        slot = self.slot
        return slot.download is not None and slot.engine.ready is None

    async def _beat(self) -> None:
        """Feed the watchdog while this loop turns and the engine acts on its own deadlines."""
        while limit := sd_notify.watchdog_seconds():
            transcribes = self._transcribing is not None and not self._transcribing.done()
            if transcribes and not self.slot.overdue:
                sd_notify.watchdog()
            await asyncio.sleep(limit / 3)

    # -- state ---------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.slot.settings

    @property
    def state(self) -> str:
        """LOADING, IDLE, LISTENING, FLUSHING, UNLOADED or STOPPING."""
        if self._ending.is_set():
            return "STOPPING"
        if self.recorder.current is not None:
            return "LISTENING"
        if self.transcriber.busy:
            return "FLUSHING"
        if self.slot.loading:
            return "LOADING"
        return "IDLE" if self.slot.engine.ready is not None else "UNLOADED"

    async def status(self) -> status.Status:
        """Return the status, with the kept recordings that wait counted where none goes on."""
        waiting = None
        if self.recorder.current is None:
            waiting = await self._index.waiting(self.transcriber.spool)
        uptime = time.monotonic() - self._began
        return status.status(
            self.state, self.transcriber, self.recorder, self.file, uptime, waiting
        )

    def status_line(self) -> str:
        """Return state, model, strategy, memory and problems as one line."""
        return status.line(self.state, self.transcriber, self.recorder)

    def changed(self) -> None:
        """Tell followers, the service manager and the idle timer that something is new."""
        if (state := self.state) != self._logged_state:
            journal.event("state", state, logging.DEBUG, state=state)
            self._logged_state = state
        self.announcements.loading()
        self._pulse.set()
        self._pulse = asyncio.Event()
        sd_notify.status(self.status_line())
        self._restart_idle_timer()

    @property
    def pulse(self) -> asyncio.Event:
        """The event that the next change sets."""
        return self._pulse

    async def wait_for_change(
        self, seconds: float | None, pulse: asyncio.Event | None = None
    ) -> None:
        """Wait until something is new, or `seconds` are over.

        Args:
            seconds: the longest wait; None for no limit.
            pulse: a `pulse` from before, so that no change since then is missed.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await (pulse or self._pulse).wait()

    def _restart_idle_timer(self) -> None:
        """Have the model unloaded when it was not used for as long as the settings say."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        after = idle_seconds(self.settings.idle)
        if after is not None and self.state == "IDLE" and not self.recorder.one_shot:
            self._idle = asyncio.get_running_loop().call_later(
                after, lambda: self.jobs.spawn(self.slot.unload())
            )

    async def apply_settings(self, new: Settings) -> None:
        """Go by settings that need no other worker."""
        self.slot.apply_settings(new)
        self.transcriber.spool = spool_for(new)
        self.delivery.apply_settings(new)
        self.desktop = Desktop(new.notify, new.cues)
        warn_of_text(new)
        await self.recorder.apply_settings()
        self._restart_idle_timer()

    # -- recording -----------------------------------------------------------------------------

    def start(self, private: bool = False) -> Dictation:
        """Begin a recording, in whatever state the model is.

        Args:
            private: its text goes to whoever waits for it and to no sink.

        Raises: UsageError where a recording goes on, or at the end.
        """
        self.refuse_at_end()
        self.jobs.spawn(self.announcements.no_model())
        choice.check_recording(self.settings, private, self.file)
        one = self.recorder.start(private)
        self.jobs.spawn(self._load(one))
        return one

    async def _load(self, one: Dictation | None) -> None:
        """Have a worker ready.

        A pipe's first audio is awaited for a moment: a file on a pipe is refused without a worker.
        """
        if one is None or self.settings.source != "pipe" or await self.recorder.has_audio(one):
            await self.slot.load()

    async def _end_with_source(self) -> None:
        one = await self.recorder.stop(by_key=False)
        if one is None or not self.recorder.one_shot:
            return
        result = await one.result
        self.code = 0
        if result.outcome not in ("delivered", "empty"):
            self.code = SinkError.exit_code
        if self.recorder.problem:  # the audio before it is text all the same
            self.code = self.code or AudioError.exit_code
        self.code = self.code or self.recorder.code
        self._ending.set()

    # -- the desktop -----------------------------------------------------------------------------

    def show(self, summary: str, body: str, urgency: str = "normal") -> None:
        """Show a notification, without waiting for it."""
        self.jobs.spawn(self.desktop.notify(summary, body, urgency))

    async def _notify(self, summary: str, body: str) -> bool:
        """Show a notification; return whether a service took it. `desktop` changes with the
        settings."""
        return await self.desktop.notify(summary, body)

    def cue(self, name: str) -> None:
        """Play a sound: start, stop or cancel."""
        self.desktop.cue(name)

    def lost(self, device: str, problem: str) -> None:
        """Notify that the microphone gives no audio."""
        self.show("No sound", problem, "critical")

    def ended(self) -> None:
        """End the recording with its source."""
        self.jobs.spawn(self._end_with_source())

    # -- suspend -------------------------------------------------------------------------------

    async def _fall_asleep(self) -> None:
        """Make text of what was recorded, and free the card before it loses its contents."""
        journal.event("suspend", "the machine is about to sleep")
        try:
            await self.recorder.stop()
            while self.transcriber.owes_text:
                await self.wait_for_change(1.0)
        finally:
            # Also when logind waits no longer: what is not text by then becomes it after the sleep.
            await self.slot.suspend()

    async def _wake(self) -> None:
        """Have a worker ready again; it tests itself on the known clip."""
        journal.event("resume", "the machine woke up")
        await self.slot.resume()


def spool_for(settings: Settings) -> RecordingStore:
    """Return where recordings are kept under these settings."""
    return RecordingStore(folder(), settings.keep_audio, settings.takes_days, settings.takes_mb)
