"""The queue of recordings: each becomes text, one after the other, by the engine in the slot.

Recordings wait here from their first block on, so decoding goes along with speech. What is said
while a model still loads is transcribed afterwards. Whatever fails, the audio stays on disk. Keys,
sockets and microphones are not known here.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

from asrd import journal
from asrd.audio.blocks import AudioBlock
from asrd.audio.files import blocks
from asrd.config.settings import Settings
from asrd.dictation import metrics
from asrd.dictation.cleanup import REPLY_SECONDS, Cleanup
from asrd.dictation.engine_slot import EngineSlot
from asrd.dictation.recording import Dictation, DictationResult, add_part, read_audio
from asrd.engine.engine import Engine
from asrd.errors import (
    AsrdError,
    AudioError,
)
from asrd.models import choice
from asrd.protocol import Word
from asrd.recordings.deliveries import Deliveries
from asrd.recordings.files import RecordingInfo
from asrd.recordings.store import RecordingStore
from asrd.streaming.session import StreamingSession
from asrd.streaming.voice_commands import CommandWriter

log = logging.getLogger("asrd")

MIN_WORDLESS_SECONDS = 0.5
"""Seconds of clear speech without a word after which a recording is kept, where FP32 was not
asked."""

PARTIAL_REST_FACTOR = 3.0
"""After a partial result the worker is free for so many times as long as that result took."""

KEPT_MESSAGES = {"kept": "; asrd retry tries again", "lost": "; it was not kept"}
"""Outcome of a recording that did not become text -> end of its entry in the journal."""

T = TypeVar("T")

Deliver = Callable[[Deliveries, int], Awaitable[list[str]]]
"""Sends a part of a recording's text to every sink; returns why single sinks refused it."""


class Transcriber:
    """Works through the recordings.

    Args:
        slot: has the engine and the settings in force.
        spool: where recordings go when they became text, or did not.
        deliver: where text goes.
    """

    def __init__(self, slot: EngineSlot, spool: RecordingStore, deliver: Deliver) -> None:
        self.slot = slot
        self.spool = spool
        self.watchers = 0
        """Clients that show the partial text; without one no partial text is computed."""
        self.last = DictationResult(
            "", "", "empty", "there was no recording since the daemon started"
        )
        self.level = metrics.LevelAlert(slot.listeners.on_warning)
        self._memory_alert = metrics.MemoryAlert()
        self._deliver, self._changed = deliver, slot.listeners.on_change
        self._activity = slot.activity
        self._cleanup = Cleanup(slot.shadow, slot.activity, self._changed)
        self._queue: collections.deque[Dictation] = collections.deque()
        self._retrying = 0
        self._work = asyncio.Event()

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.slot.settings

    @property
    def waiting(self) -> int:
        """Recordings that have ended and are not text yet."""
        return sum(dictation.ended for dictation in self._open)

    @property
    def busy(self) -> bool:
        """Whether a recording or a retry has no text yet, or files wait for their cleanup."""
        return self._activity.texts > 0

    @property
    def owes_text(self) -> bool:
        """Whether somebody waits for a text; one that is out may still have figures to come."""
        return bool(self._open or self._retrying)

    @property
    def _open(self) -> list[Dictation]:
        """Recordings without a result; the first in the queue may be there for its figures only."""
        return [dictation for dictation in self._queue if not dictation.result.done()]

    def add(self, dictation: Dictation) -> None:
        """Add a recording to the queue, best before its first block."""
        self._activity.begin_text()
        self.slot.renew()
        dictation.generation = self.slot.shadow.generation
        self._queue.append(dictation)
        self._work.set()

    def cancel(self) -> list[str]:
        """Drop everything that is not delivered yet; return the names of the recordings."""
        names = []
        for dictation in self._open:
            dictation.cancelled = True
            dictation.has_work.set()
            names.append(dictation.recording.id)
        return names

    def abandon(self, reason: str) -> None:
        """Keep the audio of everything that is not text yet; there is no time for more."""
        for dictation in self._open:
            self.spool.keep_for_retry(dictation.recording, reason, dictation.text)

    async def run(self) -> None:
        """Transcribe one recording after the other, for ever."""
        while True:
            while not self._queue:
                self._work.clear()
                await self._work.wait()
            await self._run_one(self._queue[0])
            self._queue.popleft()
            self._activity.end_text()
            self._changed()

    async def _run_one(self, dictation: Dictation) -> None:
        """Set the result of a recording, then write its figures."""
        name = dictation.recording.id
        try:
            result = await self._process(dictation)
        except Exception as error:
            log.exception("recording %s", name)
            reason = f"internal error: {type(error).__name__}: {error}"
            result = await self._keep_audio(dictation, reason)
        # A recording without a word, made by mistake perhaps, does not replace the last text.
        empty = result.outcome == "empty" and self.last.text
        if result.outcome != "cancelled" and not empty:
            self.last = result
        if not dictation.result.done():
            dictation.result.set_result(result)
        self._cleanup.begin(dictation, result, self.spool)
        try:
            await self._log_figures(dictation, result)
        except Exception:  # figures are worth less than the next recording
            log.exception("cannot log cannot log the figures of recording %s", name)

    async def _process(self, dictation: Dictation) -> DictationResult:
        """Decode while the recording goes on; return its result."""
        if not await self._have_model(dictation):
            return await self._keep_audio(dictation, choice.UNCHOSEN)
        empty_retry = dictation.session.empty_retry
        empty_retry.seconds_before = self.slot.monitor.wordless_seconds
        try:
            await self._decode_along(dictation)
        except AsrdError as error:
            self.slot.set_error(error)
            return await self._keep_audio(dictation, error.message)
        await dictation.finished.wait()
        if dictation.cancelled:
            return dictation.result_as("cancelled")
        if not dictation.private and not dictation.by_pause:
            await self._send(dictation, dictation.text, True)
        self.slot.monitor.wordless_seconds = empty_retry.total_seconds
        if empty_retry.seconds >= MIN_WORDLESS_SECONDS and not dictation.text:
            speech = f"{empty_retry.seconds:.1f} s of clear speech"
            reason = f"{dictation.session.strategy} found no word in {speech}"
            return await self._keep_audio(dictation, reason)
        if dictation.writer.missed:
            log.warning(
                'what was to be dropped had been delivered, or was not there: deliver = "take" can drop all'
            )
        return self._final_result(dictation)

    async def _decode_along(self, dictation: Dictation) -> None:
        """Decode until the recording is text to its end, or is cancelled. Raises AsrdError."""
        while not dictation.cancelled:
            whole = dictation.ended
            dictation.has_work.clear()
            try:
                words = await self._decode(dictation.session, dictation.by_pause)
                whole = whole and not dictation.session.paused
            finally:  # what became final before a failure is final
                dictation.write(whole)
            if words:
                self._changed()
            if dictation.by_pause and not dictation.cancelled:
                await self._send(dictation, dictation.writer.send(), whole)
            if whole:
                return
            # A line for each pause, also of what was said while the model loaded.
            if dictation.session.paused:
                continue
            if await self._use_idle_time(dictation):
                self._changed()
            await dictation.has_work.wait()

    async def _have_model(self, dictation: Dictation) -> bool:
        """Return whether a model is chosen by the time it is needed: one may be while the recording
        goes on."""
        while not (self.settings.model or dictation.ended or dictation.cancelled):
            dictation.has_work.clear()
            await dictation.has_work.wait()
        return bool(self.settings.model)

    async def _use_idle_time(self, dictation: Dictation) -> bool:
        """Decode what nothing asks for yet; return whether there is something new to show.

        First comes the final result that the end of the segment would give. Then comes a partial
        result, where a client shows it. After one partial result the worker stays free for a while,
        for what is final.
        """
        session = dictation.session
        if self.slot.engine.ready is None or dictation.cancelled or dictation.has_work.is_set():
            return False
        if await self._ask(session.look_ahead):
            return True
        if not self._partial_is_due(dictation):
            return False
        decoded = await self._ask(session.partial)
        dictation.partial_at = time.monotonic()
        return decoded

    def _partial_is_due(self, dictation: Dictation) -> bool:
        interval, answer = dictation.settings.draft_every, dictation.session.answer
        if not (interval and self.watchers):
            return False
        if answer is not None:
            interval = max(interval, PARTIAL_REST_FACTOR * answer.seconds)
        return time.monotonic() >= dictation.partial_at + interval

    async def _send(self, dictation: Dictation, text: str, whole: bool) -> None:
        """Deliver a text, if there is one; `whole` says that none follows."""
        record = dictation.deliveries
        if text:
            number = add_part(
                record, text, dictation.settings, dictation.session, dictation.writer, whole
            )
            dictation.refusals += await self._deliver(record, number)
        elif whole and record.parts:
            record.end(dictation.text)

    def _final_result(self, dictation: Dictation) -> DictationResult:
        """Return the result of a recording that is text to its end."""
        if dictation.refusals:
            outcome = self._keep_for_retry(dictation, dictation.refusals[0])
            return dictation.result_as(outcome, "; ".join(dict.fromkeys(dictation.refusals)))
        if not dictation.text:
            return dictation.result_as("empty", dictation.deliveries.instead)
        return dictation.result_as("delivered", dictation.deliveries.instead)

    async def _keep_audio(self, dictation: Dictation, reason: str) -> DictationResult:
        """Record to the end and keep the audio, as it did not become text; return the result."""
        await dictation.finished.wait()
        if dictation.cancelled:
            return dictation.result_as("cancelled")
        outcome = self._keep_for_retry(dictation, reason)
        recording = dictation.recording
        message = f"recording {recording.id}, {recording.seconds:.1f} s, did not become text"
        if reason != self.slot.error:  # else the journal has the reason already
            message += f": {reason}"
        message += KEPT_MESSAGES[outcome]
        journal.event(
            "kept",
            message,
            logging.WARNING,
            take=recording.id,
            audio_seconds=recording.seconds,
        )
        return dictation.result_as(outcome, reason)

    def _keep_for_retry(self, dictation: Dictation, reason: str) -> str:
        """Keep the audio of a recording whose text was not delivered, where the settings say so;
        return the outcome."""
        recording = dictation.recording
        kept = self.spool.keeps(recording)
        if kept and self.spool.keep_for_retry(recording, reason, dictation.text):
            return "kept"
        return "lost"

    async def retry(self, note: RecordingInfo, record: Deliveries | None = None) -> str:
        """Return the text of a kept recording, decoded between whatever else there is to do.

        Args:
            record: what was sent of it already, and stays as it is; what is new is added to it, and
                not sent.

        Raises: as Engine.transcribe; AudioError where the file cannot be read.
        """
        record = record or Deliveries()
        if record.whole is not None:
            return record.whole
        writer = CommandWriter(self.settings.phrases, self.settings.capitals)
        session = StreamingSession(self.settings)
        by_segments = self.settings.deliver == "segment"
        if state := record.state:
            session.resume(state.words, state.until_pause, state.until)
            writer.resume(state.pieces, state.waiting, state.case)
            by_segments = True
        # The limit is reached by the first buffer: the candidate that found no word is left at once.
        session.empty_retry.seconds_before = self.settings.demote_empty
        self._retrying += 1
        try:
            with self._activity.text():
                async for words in self.transcribe(read_audio(self.spool.path(note)), session):
                    writer.push(words)
                    if by_segments and (text := writer.send()):
                        add_part(record, text, self.settings, session, writer)
        except OSError as error:
            reason = error.strerror or error
            raise AudioError(f"recording {note.id} cannot be read: {reason}") from error
        finally:
            self._retrying -= 1
            self._changed()
        writer.finish()
        text = writer.send() if by_segments else writer.text
        if text:
            add_part(record, text, self.settings, session, writer, whole=True)
        elif record.parts:
            record.end(writer.text)
        return writer.text

    async def transcribe(
        self, audio: Iterable[AudioBlock], session: StreamingSession
    ) -> AsyncGenerator[list[Word]]:
        """Decode audio that is all there, between whatever else there is to do; yield words as they
        become final.

        Raises: as Engine.transcribe; what `audio` raises.
        """
        try:
            with self._activity.guest():
                self.slot.renew()
                async for block in blocks(audio):
                    session.push(block)
                    yield await self._decode(session)
                    await asyncio.sleep(0)
                session.finish()
                yield await self._decode(session)
        finally:
            self._changed()

    async def _ask(self, act: Callable[[Engine], Awaitable[T]]) -> T:
        """Have a session ask the engine. Raises as Engine.transcribe."""
        async with self.slot.use() as engine:
            return await act(engine)

    async def _decode(self, session: StreamingSession, by_pause: bool = False) -> list[Word]:
        """Return the words that became final. Falls back where clear speech gave no word. Raises as
        Engine.transcribe."""
        async with self.slot.use() as engine:
            return await session.decode(engine, by_pause, engine.fall_back)

    async def finish(self) -> None:
        """Return when all that became text is put away."""
        await self._cleanup.finish()

    async def _log_figures(self, dictation: Dictation, result: DictationResult) -> None:
        """Read the ledger where that delays nobody, and write the figures of a recording to the
        journal."""
        decoded = dictation.session.answer is not None
        await self._wait_until_delivered()
        if decoded and len(self._queue) == 1:
            await self.slot.measure()
        ready, memory = dictation.session.ready or self.slot.engine.ready, self.slot.memory
        metrics.log_dictation(dictation, result, self.settings.model, ready, memory)
        self._memory_alert.watch(memory, self.settings)
        if result.outcome != "cancelled":
            self.level.watch(dictation)
        if decoded and self.slot.engine.ready is not None:
            await self.slot.fall_back_if_due()

    async def _wait_until_delivered(self) -> None:
        """Wait until the text is with whoever waits for it, or the next recording is here: figures
        grow with a text."""
        if len(self._queue) > 1:
            return
        self._work.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPLY_SECONDS):
                await self._work.wait()
