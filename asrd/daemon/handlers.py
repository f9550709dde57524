"""What each request on the control socket does, and what it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from asrd.audio.files import SoundFile
from asrd.audio.format import SAMPLE_RATE
from asrd.daemon import older_names, replies
from asrd.daemon.control_server import Answers, Request
from asrd.daemon.daemon import Daemon
from asrd.daemon.key_presses import ToggleKey
from asrd.daemon.retry import Retry
from asrd.daemon.settings_changes import SettingsChanges
from asrd.dictation.recording import Dictation, DictationResult
from asrd.errors import SinkError, UsageError
from asrd.models import choice
from asrd.recordings.files import pages
from asrd.streaming.session import StreamingSession
from asrd.text import filenames

PAGE_BYTES = 48 << 10
"""Bytes of recordings in one reply of a list; a single one may be longer."""

LEVEL_SECONDS = 0.1
"""Seconds between two levels that a follower of the status is sent."""


class Handlers:
    """Answer the requests of clients.

    Args:
        daemon: the daemon that they are about.
        changes: changes its worker and its settings.
    """

    def __init__(self, daemon: Daemon, changes: SettingsChanges) -> None:
        self._daemon, self._changes = daemon, changes
        self._transcriber, self._recorder = daemon.transcriber, daemon.recorder
        self._key = ToggleKey(
            self._recorder, lambda: self._begin(Request("toggle"))[1], daemon.jobs.spawn
        )
        self.table: dict[str, Callable[[Request], Answers]] = {
            "toggle": lambda request: _once(self._toggle),
            "start": self._start,
            "stop": lambda request: _once(self._stop),
            "cancel": lambda request: _once(self._cancel),
            "status": self._status,
            "last": lambda request: _once(lambda: self._last(request)),
            "retry": self._retry,
            "takes": self._recordings,
            "recordings": self._recordings,
            "use": self._use,
            "reload": self._reload,
            "tuned": lambda request: _once(changes.tuned),
            "transcribe": self._transcribe,
        }
        """Verb -> what it does; it yields the replies."""

    async def answer(self, request: Request) -> Answers:
        """Yield the replies to one request. Raises AsrdError."""
        # A client that goes lets go of a recording at once: `aclosing` ends what it asked for.
        async with contextlib.aclosing(self.table[request.verb](request)) as answers:
            async for reply in answers:
                yield older_names.with_older(reply)

    # -- the key -------------------------------------------------------------------------------

    async def _toggle(self) -> dict[str, Any]:
        reply = {**await self._key.toggle(), "state": self._daemon.state}
        dictation = self._recorder.current
        if "seconds" in reply:
            return reply | {"message": self._stopped(reply["seconds"])}
        if dictation is not None and "recording" in reply:
            return await self._with_audio(dictation, reply)
        return reply

    async def _start(self, request: Request) -> Answers:
        if not request.wait and self._key.start_repeats():
            message = "ignored: the key was held"
            yield {"message": message, "state": self._daemon.state, "ignored": True}
            return
        dictation, reply = self._begin(request)
        try:
            yield await self._with_audio(dictation, reply) | {"more": request.wait}
            if request.wait:
                yield await self._text_of(dictation)
        except (asyncio.CancelledError, GeneratorExit):
            # The client that waited for the text has gone.
            if request.wait and not dictation.result.done():
                dictation.cancelled = True
                if self._recorder.current is dictation:
                    self._daemon.jobs.spawn(self._recorder.stop(cancelled=True))
            raise

    def _begin(self, request: Request) -> tuple[Dictation, dict[str, Any]]:
        """Begin a recording that a client asked for; return it and the reply."""
        dictation = self._daemon.start(private=request.wait)
        self._daemon.jobs.spawn(
            self._recorder.stop_when_done(dictation, request.silence, request.seconds)
        )
        message = replies.begun(self._daemon.settings, self._daemon.file)
        return dictation, {
            "message": message,
            "state": self._daemon.state,
            "recording": dictation.recording.id,
        }

    async def _with_audio(self, dictation: Dictation, reply: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a client that began a recording, once audio comes in or none does."""
        await self._recorder.wait_for_audio(dictation, replies.SOUND_SECONDS)
        if dictation.recording.samples or self._recorder.current is not dictation:
            return reply
        problem = self._recorder.problem
        message = replies.without_audio(reply["message"], problem)
        return reply | {"message": message, "capture": problem or replies.NO_SOUND}

    async def _text_of(self, dictation: Dictation) -> dict[str, Any]:
        """Return the result of a private recording. Raises SinkError: no text; AudioError: no
        audio."""
        result = await asyncio.shield(dictation.result)
        if result.outcome in ("kept", "lost"):
            hint = "asrd retry tries again" if result.outcome == "kept" else ""
            raise SinkError(result.detail, hint)
        if result.outcome == "empty" and not dictation.recording.samples:
            raise replies.no_audio(self._recorder.problem)
        return _as_reply(result) | {"recording": result.id}

    async def _stop(self) -> dict[str, Any]:
        dictation = await self._recorder.stop()
        if dictation is None:
            return {"message": "nothing was being recorded", "state": self._daemon.state}
        return {
            "message": self._stopped(dictation.recording.seconds),
            "state": self._daemon.state,
            "recording": dictation.recording.id,
            "seconds": dictation.recording.seconds,
        }

    def _stopped(self, seconds: float) -> str:
        daemon = self._daemon
        return replies.stopped(seconds, self._recorder.problem, daemon.settings, daemon.file)

    async def _cancel(self) -> dict[str, Any]:
        # Before the microphone closes: another key may begin the next recording meanwhile.
        dropped = self._transcriber.cancel()
        dictation = await self._recorder.stop(cancelled=True)
        if dictation is not None:
            dropped.append(dictation.recording.id)
        message = "there was nothing to cancel"
        if dropped:
            message = f"dropped {', '.join(dict.fromkeys(dropped))}"
        return {"message": message, "state": self._daemon.state}

    # -- what was recorded ---------------------------------------------------------------------

    async def _last(self, request: Request) -> dict[str, Any]:
        while request.wait and (self._recorder.current is not None or self._transcriber.waiting):
            await self._daemon.wait_for_change(None)
        kept = await asyncio.to_thread(self._transcriber.spool.all)
        result = replies.last(self._transcriber.last, kept)
        recording, busy = self._recorder.current is not None, self._transcriber.waiting
        note = replies.note_of(result, recording, busy, self._transcriber.slot.loading)
        detail = replies.detail_of(result) or result.detail
        # `recording` is a truth value here, so the older name of the identifier is given as well.
        names = {"id": result.id, "take": result.id}
        more = {"note": note, "transcribing": busy, "recording": recording}
        return _as_reply(result) | {"detail": detail} | names | more

    def _retry(self, request: Request) -> Answers:
        """Make text of kept recordings: the newest, the one that is named, or all."""
        daemon = self._daemon
        retry = Retry(self._transcriber, daemon.delivery, request, daemon.file)
        return retry.run()

    async def _recordings(self, request: Request) -> Answers:
        """List what is kept, in replies of a bounded size."""
        notes = await asyncio.to_thread(self._transcriber.spool.all)
        parts = pages(notes, PAGE_BYTES)
        for number, part in enumerate(parts, 1):
            listed = [msgspec.structs.asdict(note) for note in part]
            # An older client finds its list under the verb it asked by.
            yield {request.verb: listed, "more": number < len(parts)}

    async def _transcribe(self, request: Request) -> Answers:
        """Transcribe a file, sending words as they become final; no sink gets them and nothing is
        kept."""
        path = filenames.named(request.path, request.path_bytes)
        if not (os.path.isabs(path) and os.path.isfile(path)):
            raise UsageError(f"{path!r} is not the whole path of a file")
        choice.require(self._daemon.settings, self._daemon.file)
        session = StreamingSession(self._daemon.settings)
        # Off the loop: to open a file can mean to go through all of it, or to wait for a decoder.
        with await asyncio.to_thread(SoundFile, path) as source:
            async with contextlib.aclosing(
                self._transcriber.transcribe(source, session)
            ) as decoded:
                async for words in decoded:
                    if words:
                        yield {"words": words, "more": True}
        yield {
            "words": [],
            "seconds": session.vad.position / SAMPLE_RATE,
            "strategy": session.strategy,
            "device": session.device,
            "warnings": source.warnings,
            "incomplete": not source.complete,
            "more": False,
        }

    # -- the daemon itself -----------------------------------------------------------------------

    async def _status(self, request: Request) -> Answers:
        if not request.follow:
            yield msgspec.to_builtins(await self._daemon.status()) | {"more": False}
            return
        self._transcriber.watchers += 1
        try:
            while True:
                pulse = self._daemon.pulse  # taken first: a change while the client reads is sent
                yield msgspec.to_builtins(await self._daemon.status()) | {"more": True}
                seconds = None if self._recorder.current is None else LEVEL_SECONDS
                await self._daemon.wait_for_change(seconds, pulse)
        finally:
            self._transcriber.watchers -= 1

    def _use(self, request: Request) -> Answers:
        return self._change(request, lambda: self._changes.use(request.strategy))

    def _reload(self, request: Request) -> Answers:
        return self._change(request, self._changes.reload)

    def _change(self, request: Request, change: Callable[[], Any]) -> Answers:
        if request.follow:
            return self._changes.followed(change)
        return _once(change)


async def _once(act: Callable[[], Awaitable[dict[str, Any]]]) -> Answers:
    """Yield the one reply of what ends with it."""
    yield await act()


def _as_reply(result: DictationResult) -> dict[str, Any]:
    return msgspec.structs.asdict(result)
