"""The daemon: states, what a key press does, who is told, and how it ends.

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
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec

from asrd import __version__, hints, journal
from asrd.audio.files import SoundFile
from asrd.audio.format import SAMPLE_RATE
from asrd.audio.sources import AudioSource, open_source
from asrd.config import settings as config_settings
from asrd.config.loading import Loaded
from asrd.config.settings import ENGINE, FIELDS, Settings
from asrd.daemon import replies, sd_notify
from asrd.daemon.control_server import Answers, ControlServer, Request
from asrd.daemon.key_presses import ToggleKey
from asrd.daemon.logind import SleepInhibitor
from asrd.daemon.retry import Retry
from asrd.desktop.notifications import Desktop
from asrd.desktop.sinks import Sink, sinks
from asrd.dictation.idle_tasks import IdleTasks
from asrd.dictation.recorder import Recorder
from asrd.dictation.recording import Dictation
from asrd.dictation.transcriber import Transcriber
from asrd.engine.engine import Engine
from asrd.engine.planner import plan_for
from asrd.engine.process import kill_all
from asrd.errors import (
    AsrdError,
    AudioError,
    BusyError,
    SinkError,
    UncertainError,
    UsageError,
)
from asrd.models import choice
from asrd.precision import ledger
from asrd.precision.strategies import canonical, find
from asrd.recordings import deliveries
from asrd.recordings.deliveries import Deliveries, Taker
from asrd.recordings.files import pages
from asrd.recordings.index import RecordingIndex
from asrd.recordings.store import RecordingStore, folder
from asrd.streaming.session import StreamingSession
from asrd.text import filenames
from asrd.text.wording import counted, said_of

log = logging.getLogger("asrd")

PAGE_BYTES = 48 << 10
"""Bytes of notes in one reply; one note may be longer."""

PROGRESS_SECONDS = 0.5
"""Between two looks at how far a worker is that somebody waits for."""

DOWNLOAD_LINE_SECONDS = 15.0
"""Between two lines about a download, on the terminal in which the daemon runs."""

STATUS_SCHEMA = 1
"""Number of the form of `asrd status --json`; it grows when a key is renamed or removed, not when
one is added."""

LEVELS = 0.1
"""Seconds between two levels that a follower of the status is told."""


class Daemon:
    """A dictation daemon on the running event loop.

    Args:
        loaded: the settings in force.
        reread: gives them anew; raises ConfigError.
        line: the listening control socket; None where nobody is to ask.
        hold: makes an engine, for tests.
        listen: makes a capture, for tests.
    """

    def __init__(
        self,
        loaded: Loaded,
        reread: Callable[[], Loaded],
        line: socket.socket | None,
        hold: Callable[..., Engine] = Engine,
        listen: Callable[[str, str], AudioSource] = open_source,
    ) -> None:
        settings = loaded.settings
        self.code = 0
        self._reread, self._line, self._file = reread, line, loaded.file
        self._notified = False
        """Whether a person was shown that no model is chosen."""
        self._sinks: list[Sink] = sinks(settings)
        self._desktop = Desktop(settings.notify, settings.cues)
        self.transcriber = Transcriber(
            settings, spool_for(settings), self._deliver, self.changed, hold, self._warn
        )
        self.rest = IdleTasks(self.transcriber)
        self.recorder = Recorder(self.transcriber, listen, self)
        self._told_state = self._shown_stage = ""
        self._shown_at = 0.0
        self._key = ToggleKey(self.recorder, lambda: self._begin(Request("toggle"))[1], self._spawn)
        self._began = time.monotonic()
        self._ending = asyncio.Event()
        self._pulse = asyncio.Event()
        self._idle: asyncio.TimerHandle | None = None
        self._exchanging = asyncio.Lock()
        self._exchanger: asyncio.Task[Any] | None = None
        """Which task holds that lock, or held it last."""
        self._index = RecordingIndex()
        self._jobs: set[asyncio.Task[Any]] = set()

    # -- life
    # ---------------------------------------------------------------------------------------------------------

    async def serve(self) -> int:
        """Run until a signal or, with a source that ends, until its text was delivered; return the
        exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload_quietly()))
        server = ControlServer(self.answer)
        if self._line is not None:
            await server.open(self._line)
        transcriber = self._scribing = asyncio.create_task(self.transcriber.run())
        heart, rest = asyncio.create_task(self._beat()), asyncio.create_task(self.rest.run())
        sleep = SleepInhibitor(self._fall_asleep, self._wake)
        if self.recorder.one_shot:
            self.start()
        else:
            await self.recorder.adopt()
        sd_notify.ready(self._line_of_status())
        journal.event("ready", f"ready to record; {self._line_of_status()}")
        self._spawn(self._tell_waiting())
        self._tell_model()
        self._tell_auto()
        if self._in_terminal and not self.recorder.one_shot:
            log.info("%s", replies.next_step(self.settings.socket))
        self._spawn(self._load(self.recorder.one))
        await sleep.start()
        await self._ending.wait()
        await self._drain()
        for task in (heart, rest, transcriber, *self._jobs):
            task.cancel()
        await asyncio.gather(transcriber, heart, rest, *self._jobs, return_exceptions=True)
        await server.close()
        await sleep.stop()
        await self.transcriber.stop()
        journal.event("stopping", "ended", code=self.code)
        return self.code

    @property
    def _in_terminal(self) -> bool:
        """Whether a person started this daemon, and reads what it says."""
        return "NOTIFY_SOCKET" not in os.environ

    @property
    def settings(self) -> Settings:
        """Those in force."""
        return self.transcriber.settings

    @property
    def state(self) -> str:
        """LOADING, IDLE, LISTENING, FLUSHING, PARKED or STOPPING."""
        if self._ending.is_set():
            return "STOPPING"
        if self.recorder.one is not None:
            return "LISTENING"
        if self.transcriber.busy:
            return "FLUSHING"
        if self.transcriber.loading:
            return "LOADING"
        return "IDLE" if self.transcriber.engine.ready is not None else "PARKED"

    def _signalled(self) -> None:
        """First: end the recording, write down what was said, go. Again: go at once, with the takes
        kept."""
        if self._ending.is_set():
            self.transcriber.abandon("asrd was told twice to end")
            kill_all()
            os._exit(128 + signal.SIGTERM)
        self._ending.set()
        sd_notify.stopping()
        self.changed()

    async def _drain(self) -> None:
        """Write down what was said before the end."""
        await self.recorder.stop()
        while self.transcriber.busy and (
            self.transcriber.download is None or self.transcriber.engine.ready is not None
        ):
            sd_notify.extend(15.0)
            await self._moved(5.0)
        if (coming := self.transcriber.download) is not None and coming.bytes:
            log.info("%s", coming.kept)
        self.transcriber.abandon(
            "asrd ended while its model was downloaded"
        )  # which may take hours; nothing is open else
        await self.recorder.close()

    async def _beat(self) -> None:
        """Feed the watchdog while this loop turns and the engine acts on its own deadlines."""
        while limit := sd_notify.watchdog_seconds():
            if not self.transcriber.overdue and not self._scribing.done():
                sd_notify.watchdog()
            await asyncio.sleep(limit / 3)

    def _spawn(self, job: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a background job failed: %s", error, exc_info=error)

    def changed(self) -> None:
        """Something is new: for STATUS, for followers, for the idle timer."""
        if (state := self.state) != self._told_state:
            journal.event("state", state, logging.DEBUG, state=state)
            self._told_state = state
        self._show_loading()
        self._pulse.set()
        self._pulse = asyncio.Event()
        sd_notify.status(self._line_of_status())
        self._rest()

    def _show_loading(self) -> None:
        """Tell a person at a terminal what a start takes its time for: each step once, a download
        now and then."""
        loading = self.transcriber.loading
        stage, at = loading.partition(" ")[0], time.monotonic()
        same = stage == self._shown_stage and (
            stage != "download" or at - self._shown_at < DOWNLOAD_LINE_SECONDS
        )
        if not loading or same or not (self._in_terminal and sys.stderr.isatty()):
            return
        self._shown_stage, self._shown_at = stage, at
        log.info("%s", replies.loading_words(loading))

    async def _moved(self, patience: float | None, pulse: asyncio.Event | None = None) -> None:
        """Wait until something is new, since `pulse` was the present one if it is given."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await (pulse or self._pulse).wait()

    def _rest(self) -> None:
        """Let the model leave memory when nobody has needed it for a while."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        after = config_settings.idle_seconds(self.settings.idle)
        if after is not None and self.state == "IDLE" and not self.recorder.one_shot:
            self._idle = asyncio.get_running_loop().call_later(
                after, lambda: self._spawn(self.transcriber.park())
            )

    async def _tell_waiting(self) -> None:
        """Say what an earlier run left behind, and tidy up; beside the loop, as there may be
        thousands."""
        await asyncio.to_thread(self.transcriber.spool.prune)
        if waiting := await asyncio.to_thread(self.transcriber.spool.waiting):
            seconds = sum(note.seconds for note in waiting)
            journal.event(
                "waiting",
                replies.waiting(waiting),
                logging.WARNING,
                takes=[note.id for note in waiting],
                audio_seconds=seconds,
            )

    def _tell_model(self) -> None:
        """Say that no model is chosen, or that a demo is to recognise a person."""
        note = choice.note(self.settings, self._file)
        if not self.settings.model:
            journal.event("no-model", note, logging.WARNING)
        elif note and not self.recorder.one_shot:
            log.warning("%s", note)

    async def _show_no_model(self) -> None:
        """Show a person once that no model is chosen."""
        if not (self._notified or self.settings.model):
            self._notified = True
            body = f"{choice.CONSEQUENCE}; {choice.hint(self._file)}"
            self._notified = await self._desktop.notify("No model is chosen", body)

    def _tell_auto(self) -> None:
        """Say what `auto` chose and by what; where nothing was measured, that names the verb that
        would."""
        if self.settings.strategy == "auto" and self.settings.model:
            plan = self.transcriber.engine.plan
            strategy = plan.candidates[0].precision.name
            journal.event(
                "auto", f"auto takes {plan.candidates[0].name}: {plan.reason}", strategy=strategy
            )

    # -- recording
    # ----------------------------------------------------------------------------------------------------

    def start(self, private: bool = False) -> Dictation:
        """Begin a recording, in whatever state the model is. Raises UsageError where one is going
        on, or at the end."""
        if self._ending.is_set():
            raise UsageError("asrd is ending", hints.again())
        self._spawn(self._show_no_model())
        choice.check_recording(self.settings, private, self._file)
        one = self.recorder.start(private)
        self._spawn(self._load(one))
        return one

    async def _load(self, one: Dictation | None) -> None:
        """Have a worker ready.

        A pipe's first audio is awaited for a moment: a file on a pipe is refused without a worker.
        """
        if one is None or self.settings.source != "pipe" or await self.recorder.gives_sound(one):
            await self.transcriber.load()

    async def _end_with_source(self) -> None:
        one = await self.recorder.stop(by_key=False)
        if one is not None and self.recorder.one_shot:
            told = await one.told
            self.code = 0 if told.outcome in ("delivered", "empty") else 75
            if self.recorder.problem:  # what came before it is text all the same
                self.code = self.code or AudioError.exit_code
            self.code = self.code or self.recorder.code
            self._ending.set()

    def cue(self, name: str) -> None:
        """Let a person hear what happens: start, stop or cancel."""
        self._desktop.cue(name)

    def _warn(self, summary: str, body: str) -> None:
        """Let a person see that another precision is in service."""
        self._spawn(self._desktop.notify(summary, body))

    def lost(self, device: str, problem: str) -> None:
        """Let a person see that sound stopped coming."""
        self._spawn(self._desktop.notify("No sound", problem, "critical"))

    def ended(self) -> None:
        """End the recording with its source."""
        self._spawn(self._end_with_source())

    async def _deliver(self, record: Deliveries, number: int, again: bool = False) -> list[str]:
        """Send a part of a text to every sink that lacks it; return why single ones did not take
        it."""
        return await deliveries.send(record, number, self._sinks, self._tell_failed, again)

    def _tell_failed(self, sink: Taker, error: SinkError) -> None:
        """Let a person know that a sink did not take a text."""
        uncertain = isinstance(error, UncertainError)
        said = said_of(sink.name, error.message)
        journal.event(
            "sink-failed",
            said,
            logging.WARNING,
            sink=sink.name,
            hint=error.hint or None,
            uncertain=uncertain or None,
        )
        hint = f"{error.message}. The text is safe: asrd last"
        reached = "may not have reached" if uncertain else "did not reach"
        self._spawn(self._desktop.notify(f"The text {reached} {sink.name}", hint, "critical"))

    # -- suspend
    # ------------------------------------------------------------------------------------------------------

    async def _fall_asleep(self) -> None:
        """Write down what was said, and give the card back before it loses its contents."""
        journal.event("suspend", "the machine is about to sleep")
        try:
            await self.recorder.stop()
            while self.transcriber.owes_text:
                await self._moved(1.0)
        finally:  # also when logind's time is up: what is not text by then becomes it after the sleep
            await self.transcriber.sleep()

    async def _wake(self) -> None:
        """Have a worker ready again; it proves itself on the known clip."""
        journal.event("resume", "the machine woke up")
        await self.transcriber.wake()

    # -- what clients ask
    # ---------------------------------------------------------------------------------------------

    async def answer(self, request: Request) -> Answers:
        """Yield the replies to one request. Raises AsrdError."""
        if request.verb == "status":
            if not request.follow:
                yield self.status(await self._count_waiting()) | {"more": False}
                return
            self.transcriber.watched += 1
            try:
                while True:
                    pulse = (
                        self._pulse
                    )  # taken first: what changes while the client reads is told next
                    yield self.status(await self._count_waiting()) | {"more": True}
                    await self._moved(LEVELS if self.recorder.one else None, pulse)
            finally:
                self.transcriber.watched -= 1
        elif request.verb == "start" and not request.wait and self._key.start_repeats():
            yield {"said": "ignored: the key was held", "state": self.state, "ignored": True}
        elif request.verb == "start":
            one, reply = self._begin(request)
            try:
                yield await self._with_sound(one, reply) | {"more": request.wait}
                if request.wait:
                    yield await self._text_of(one)
            except (asyncio.CancelledError, GeneratorExit):
                if request.wait and not one.told.done():  # whoever waited for the text has gone
                    one.cancelled = True
                    if self.recorder.one is one:
                        self._spawn(self.recorder.stop(cancelled=True))
                raise
        elif request.verb in ("use", "reload") and request.follow:
            async with contextlib.aclosing(
                self._watched(getattr(self, f"_do_{request.verb}")(request))
            ) as steps:
                async for reply in steps:
                    yield reply
        elif request.verb in ("retry", "transcribe", "takes"):
            # A client that goes lets go of the recording at once.
            async with contextlib.aclosing(getattr(self, f"_{request.verb}")(request)) as many:
                async for reply in many:
                    yield reply
        else:
            yield await getattr(self, f"_do_{request.verb}")(request)

    def _begin(self, request: Request) -> tuple[Dictation, dict[str, Any]]:
        """Begin a recording that somebody asked for; return it and what is answered."""
        one = self.start(private=request.wait)
        self._spawn(self.recorder.mind(one, request.silence, request.seconds))
        return one, {
            "said": replies.begun(self.settings, self._file),
            "state": self.state,
            "take": one.take.id,
        }

    async def _with_sound(self, one: Dictation, reply: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to whoever began a recording once sound comes in, or that none does."""
        await self.recorder.heard(one, replies.SOUND_SECONDS)
        if one.take.samples or self.recorder.one is not one:
            return reply
        problem = self.recorder.problem
        said = replies.without_sound(reply["said"], problem)
        return reply | {"said": said, "capture": problem or replies.NO_SOUND}

    async def _text_of(self, one: Dictation) -> dict[str, Any]:
        """Return what became of a private recording. Raises SinkError: no text; AudioError: no
        sound."""
        told = await asyncio.shield(one.told)
        if told.outcome in ("kept", "lost"):
            raise SinkError(told.detail, "asrd retry tries again" if told.outcome == "kept" else "")
        if told.outcome == "empty" and not one.take.samples:
            raise replies.silent(self.recorder.problem)
        return msgspec.structs.asdict(told)

    async def _do_toggle(self, request: Request) -> dict[str, Any]:
        reply, one = {**await self._key.toggle(), "state": self.state}, self.recorder.one
        if one is not None and "take" in reply and "seconds" not in reply:
            return await self._with_sound(one, reply)
        return reply | ({"said": self._stopped(reply["seconds"])} if "seconds" in reply else {})

    def _stopped(self, seconds: float) -> str:
        return replies.stopped(seconds, self.recorder.problem, self.settings, self._file)

    async def _do_stop(self, request: Request) -> dict[str, Any]:
        one = await self.recorder.stop()
        if one is None:
            return {"said": "nothing was being recorded", "state": self.state}
        said = self._stopped(one.take.seconds)
        return {"said": said, "state": self.state, "take": one.take.id, "seconds": one.take.seconds}

    async def _do_cancel(self, request: Request) -> dict[str, Any]:
        dropped = (
            self.transcriber.cancel()
        )  # before the microphone closes: another key may begin the next meanwhile
        one = await self.recorder.stop(cancelled=True)
        dropped += [] if one is None else [one.take.id]
        said = (
            f"dropped {', '.join(dict.fromkeys(dropped))}"
            if dropped
            else "there was nothing to cancel"
        )
        return {"said": said, "state": self.state}

    async def _do_last(self, request: Request) -> dict[str, Any]:
        while request.wait and (self.recorder.one is not None or self.transcriber.waiting):
            await self._moved(None)
        told = replies.last(
            self.transcriber.last, await asyncio.to_thread(self.transcriber.spool.all)
        )
        recording, busy = self.recorder.one is not None, self.transcriber.waiting
        note = replies.note_of(told, recording, busy, self.transcriber.loading)
        told = msgspec.structs.replace(told, detail=replies.detail_of(told) or told.detail)
        return msgspec.structs.asdict(told) | {
            "note": note,
            "transcribing": busy,
            "recording": recording,
        }

    async def _watched(self, doing: Coroutine[Any, Any, dict[str, Any]]) -> Answers:
        """Yield how far something is that waits for a worker, and at last its reply; it goes on
        without a reader."""
        job, began, told = asyncio.create_task(doing), time.monotonic(), ""
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        try:
            while not job.done():
                waits = self._exchanging.locked() and self._exchanger is not job
                text = self._progress(waits, time.monotonic() - began)
                if text != told:
                    yield {"progress": text, "waits": waits, "more": True}
                    told = text
                await asyncio.wait([job], timeout=PROGRESS_SECONDS)
            yield job.result()
        finally:
            if not job.done():
                job.add_done_callback(self._reap)

    def _progress(self, waits: bool, seconds: float) -> str:
        """Return what somebody waits for who asked for another worker."""
        here = replies.loading_words(self.transcriber.loading) or "looking at the model"
        return (
            f"waiting for another change of the settings: {here}"
            if waits
            else f"{here}, {seconds:.0f} s"
        )

    async def _do_use(self, request: Request) -> dict[str, Any]:
        if not request.strategy:
            raise UsageError("asrd use needs a strategy", "asrd plan lists them")
        strategy = canonical(request.strategy)
        if strategy != "auto":
            find(strategy)  # a word that is no strategy wakes no card
        choice.require(self.settings, self._file)
        coming = self.transcriber.download
        if (
            coming is not None and self._exchanging.locked()
        ):  # for a reload, and that may take an hour
            raise BusyError(
                f"the daemon is downloading {coming.model}",
                "ask again when asrd status shows no download",
            )
        async with self._alone():
            wanted = msgspec.structs.replace(self.settings, strategy=strategy)
            await self.transcriber.use(wanted, strict=strategy != "auto")
        otherwise = self.transcriber.otherwise
        said = f"now on {self.transcriber.engine.candidate.name}" + (
            f"; but {otherwise}" if otherwise else ""
        )
        return {"said": said, "state": self.state, "load_seconds": self._load_seconds()}

    def _load_seconds(self) -> float | None:
        """Return how long the worker in service took from its start until it was ready; None while
        there is none."""
        ready = self.transcriber.engine.ready
        return round(ready.load_seconds, 1) if ready else None

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Exchange workers or settings one after the other: each begins from what the one before
        left."""
        async with self._exchanging:
            if self._ending.is_set():
                raise UsageError("asrd is ending", hints.again())
            self._exchanger = asyncio.current_task()
            yield

    async def _do_tuned(self, request: Request) -> dict[str, Any]:
        """A verdict for `auto` was found: go by it as soon as nobody waits for text."""
        if self.settings.strategy != "auto":
            return {
                "said": f"the daemon stays on {self.settings.strategy}, which it was told to use"
            }
        now, first = (
            self.transcriber.engine.plan.candidates[0],
            plan_for(self.settings).candidates[0],
        )
        if first == now:
            return {"said": f"the daemon stays on {now.name}"}
        self._spawn(self._move())
        return {"said": f"the daemon goes from {now.name} to {first.name} when it is idle"}

    async def _move(self) -> None:
        """Exchange the worker for the one that `auto` takes now, between recordings."""
        while self.transcriber.asleep or self.state in ("LISTENING", "FLUSHING", "LOADING"):
            await self._moved(None)
        try:
            async with self._alone():
                await self.transcriber.retune()
        except AsrdError as error:
            log.error("the worker stays as it was: %s", replies.complaint(error))
        self._tell_auto()

    async def _do_reload(self, request: Request) -> dict[str, Any]:
        """Read the configuration again. What needs another worker gets one; if that fails, the old
        one stays."""
        async with self._alone():
            sd_notify.reloading()
            loaded, changed = None, set[str]()
            try:
                loaded = self._reread()
                log_notes(loaded, logging.WARNING)
                new = loaded.settings
                changed = {
                    key for key in FIELDS if getattr(new, key) != getattr(self.settings, key)
                }
                fixed = changed & {"socket", "source"}
                new = msgspec.structs.replace(
                    new, **{key: getattr(self.settings, key) for key in fixed}
                )
                if changed & set(ENGINE):
                    await self.transcriber.use(new)
                await self._adopt(new)
            except AsrdError as error:
                raise replies.unchanged(error, loaded, sorted(changed & set(ENGINE))) from error
            finally:
                sd_notify.ready(self._line_of_status())
        said = ", ".join(sorted(changed - fixed)) or "nothing changed"
        if fixed:
            said += f"; {' and '.join(sorted(fixed))} at the next start"
        if "model" in changed:
            said += self._of_model()
        journal.event("reloaded", f"configuration read again: {said}")
        reply: dict[str, Any] = {"said": said, "state": self.state}
        if changed & set(ENGINE) and self.transcriber.engine.ready is not None:
            reply |= {
                "now": f"{self.settings.model} runs as {self.transcriber.engine.candidate.name}"
            }
            reply |= {"load_seconds": self._load_seconds()}
        return reply

    def _of_model(self) -> str:
        """Return what follows from another model: what it is, and which recordings it can make text
        of."""
        self._notified = False
        self._tell_model()
        note, waiting = (
            choice.note(self.settings, self._file),
            len(self.transcriber.spool.waiting()),
        )
        wait = "waits" if waiting == 1 else "wait"
        retry = f"; {counted(waiting, 'recording')} {wait}: asrd retry --all makes text of them"
        return (f"; {note}" if note else "") + (retry if waiting and self.settings.model else "")

    async def _reload_quietly(self) -> None:
        try:
            await self._do_reload(Request("reload"))
        except AsrdError as error:
            log.error("%s", replies.complaint(error))

    async def _adopt(self, new: Settings) -> None:
        """Take over settings that need no other worker."""
        self.transcriber.settings, self.transcriber.spool = new, spool_for(new)
        self.transcriber.demotion.adopt(new)
        self._sinks = sinks(new)
        self._desktop = Desktop(new.notify, new.cues)
        warn_of_text(new)
        await self.recorder.adopt()
        self._rest()

    def _retry(self, request: Request) -> Answers:
        """Write down kept takes: the newest, the one that is named, or all."""
        return Retry(self.transcriber, self._sinks, self._deliver, request, self._file).run()

    async def _takes(self, request: Request) -> Answers:
        """List what is kept, in replies of a bounded size."""
        notes = await asyncio.to_thread(self.transcriber.spool.all)
        parts = pages(notes, PAGE_BYTES)
        for number, part in enumerate(parts, 1):
            yield {
                "takes": [msgspec.structs.asdict(note) for note in part],
                "more": number < len(parts),
            }

    async def _transcribe(self, request: Request) -> Answers:
        """Write down a file for whoever asks, its words as they become final; it goes to no sink
        and is not kept."""
        path = filenames.named(request.path, request.path_bytes)
        if not (os.path.isabs(path) and os.path.isfile(path)):
            raise UsageError(f"{path!r} is not the whole path of a file")
        choice.require(self.settings, self._file)
        dictation = StreamingSession(self.settings)
        # Off the loop: to open a file can mean to go through all of it, or to wait for a decoder.
        with await asyncio.to_thread(SoundFile, path) as source:
            async with contextlib.aclosing(self.transcriber.hear(source, dictation)) as heard:
                async for words in heard:
                    if words:
                        yield {"words": words, "more": True}
        yield {
            "words": [],
            "seconds": dictation.vad.heard / SAMPLE_RATE,
            "strategy": dictation.strategy,
            "device": dictation.device,
            "warnings": source.warnings,
            "incomplete": not source.complete,
            "more": False,
        }

    # -- what is told
    # -------------------------------------------------------------------------------------------------

    async def _count_waiting(self) -> int | None:
        """Return how many recordings wait for another try; None while one is going on."""
        return (
            None
            if self.recorder.one is not None
            else await self._index.waiting(self.transcriber.spool)
        )

    def status(self, waiting: int | None = None) -> dict[str, Any]:
        """Return everything that `asrd status --json` prints; of what waits as `_count_waiting`
        gives it."""
        ready, one = self.transcriber.engine.ready, self.recorder.one
        rejected = [
            f"{candidate.candidate}: {candidate.detail}"
            + (f" ({candidate.hint})" if candidate.hint else "")
            for candidate in self.transcriber.engine.rejected
        ]
        take = None
        if one is not None:
            level = None if one.level == float("-inf") else round(one.level, 1)
            take = {"id": one.take.id, "seconds": round(one.take.seconds, 2), "level": level}
            take |= {"text": one.text, "draft": one.draft, "behind": round(one.dictation.behind, 1)}
        return {
            "schema": STATUS_SCHEMA,
            "state": self.state,
            "model": self.settings.model,
            "model_note": choice.note(self.settings, self._file),
            "requested": self.settings.strategy,
            "engine": {key: getattr(self.settings, key) for key in ENGINE},
            "strategy": self.transcriber.engine.candidate.precision.name if ready else "",
            "effective": ready.effective if ready else {},
            "otherwise": self.transcriber.otherwise,
            "device": ready.device if ready else "",
            "streaming": ready.streaming if ready else "",
            "memory": msgspec.structs.asdict(self.transcriber.memory)
            if self.transcriber.memory
            else None,
            "loading": self.transcriber.loading,
            "load_seconds": self._load_seconds(),
            "download": self._download(),
            "trouble": self.transcriber.trouble,
            "capture": self.recorder.problem,
            "level": self.transcriber.level.last,
            "rejected": rejected,
            "below": self.transcriber.demotion.below(self.transcriber.engine),
            "shadow": self.transcriber.shadow.figures if self.settings.shadow else None,
            "faults": self.settings.faults,
            "take": take,
            "pending": self.transcriber.waiting,
            "waiting": waiting if one is None else None,
            "sinks": list(self.settings.sinks),
            "version": __version__,
            "pid": os.getpid(),
            "uptime": round(time.monotonic() - self._began, 1),
        }

    def _download(self) -> dict[str, Any] | None:
        """Return how far the download of the model has come; None while nothing is downloaded."""
        state = self.transcriber.download
        return {"model": state.model, "bytes": state.bytes, "total": state.total} if state else None

    def _line_of_status(self) -> str:
        """Return state, model, effective strategy and memory as one line."""
        parts = [self.state.lower(), *filter(None, [self.settings.model])]
        if (ready := self.transcriber.engine.ready) is not None:
            parts.append(f"{self.transcriber.engine.candidate.precision.name} on {ready.device}")
        if (memory := self.transcriber.memory) is not None and memory.process is not None:
            parts.append(f"{memory.process / (1 << 20):.0f} MiB {ledger.words(memory.source)}")
        if (below := self.transcriber.demotion.below(self.transcriber.engine)) is not None:
            parts.append(f"below {below['wanted']}: {below['kind']}")
        return ", ".join(
            [
                *parts,
                *filter(
                    None,
                    (self.transcriber.loading, self.transcriber.trouble, self.recorder.problem),
                ),
            ]
        )


def spool_for(settings: Settings) -> RecordingStore:
    """Return where takes go under these settings."""
    return RecordingStore(folder(), settings.keep_audio, settings.takes_days, settings.takes_mb)


def warn_of_text(settings: Settings) -> None:
    if settings.log_text:
        journal.event(
            "log-text", "log_text is on: what you say is written into the journal", logging.WARNING
        )


def log_notes(loaded: Loaded, idle: int = logging.DEBUG) -> None:
    """Log what older spellings mean, and at level `idle` which settings do nothing; a start has
    warned of those."""
    for note in loaded.notes:
        log.log(idle if note in loaded.idle else logging.INFO, "%s", note)
