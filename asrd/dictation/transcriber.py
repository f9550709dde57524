"""The queue of recordings: each becomes text, one after the other, by the engine in the slot.

Recordings wait here from their first block on, so decoding goes along with speech and what is said
while a model still loads is transcribed afterwards. Whatever fails, the audio stays on disk. Knows
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

from asrd import journal
from asrd.audio.blocks import AudioBlock
from asrd.audio.files import blocks
from asrd.config.settings import Settings
from asrd.dictation import metrics
from asrd.dictation.cleanup import MOMENT_SECONDS, Cleanup
from asrd.dictation.engine_slot import EngineSlot
from asrd.dictation.recording import Dictation, DictationResult, as_part, sound_of, standing
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
"""Seconds of clear speech without a word after which a take is kept, where FP32 was not asked."""

REST = 3.0
"""A draft leaves the worker free for so many times as long as one took."""

T = TypeVar("T")

Deliver = Callable[[Deliveries, int], Awaitable[list[str]]]
"""Sends a part of a recording's text everywhere and returns why single places did not take it."""


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
        self.watched = 0
        """How many look at the draft; without one there is none."""
        self.last = DictationResult("", "", "empty", "nothing was said since the daemon started")
        self.level = metrics.LevelAlert(slot.listeners.on_warning)
        self._alert = metrics.Alert()
        self._deliver, self._changed = deliver, slot.listeners.on_change
        self._activity = slot.activity
        self._cleanup = Cleanup(slot.shadow, slot.activity, self._changed)
        self._queue: collections.deque[Dictation] = collections.deque()
        self._retrying = 0
        self._work = asyncio.Event()

    @property
    def settings(self) -> Settings:
        """Those in force."""
        return self.slot.settings

    @property
    def waiting(self) -> int:
        """Recordings that have ended and are not text yet."""
        return sum(one.ended for one in self._open)

    @property
    def busy(self) -> bool:
        """Whether there is anything between a key press, or a wish to try again, and its text; or
        files to put away."""
        return self._activity.texts > 0

    @property
    def owes_text(self) -> bool:
        """Whether somebody waits for a text; one that is out may still have figures to come."""
        return bool(self._open or self._retrying)

    @property
    def _open(self) -> list[Dictation]:
        """Recordings whose fate is not known; the first in the queue may be there for its figures
        only."""
        return [one for one in self._queue if not one.told.done()]

    def add(self, recording: Dictation) -> None:
        """Take on a recording, best before its first block."""
        self._activity.begin_text()
        self.slot.renew()
        recording.era = self.slot.shadow.era
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
            self._activity.end_text()
            self._changed()

    async def _write_down(self, one: Dictation) -> DictationResult:
        """Decode along with the speaker; return what became of it."""
        if not await self._have_model(one):
            return await self._keep(one, choice.UNCHOSEN)
        one.dictation.empty_retry.seconds_before = self.slot.monitor.wordless_seconds
        by_pause = one.settings.deliver == "segment" and not one.private
        try:
            while not one.cancelled:
                whole = one.ended
                one.fresh.clear()
                try:
                    words = await self._decode(one.dictation, by_pause)
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
            self.slot.set_error(error)
            return await self._keep(one, error.message)
        while not one.ended:
            await one.fresh.wait()
            one.fresh.clear()
        if one.cancelled:
            return self._told(one, "cancelled")
        if one.settings.deliver == "take" and not one.private:
            await self._send(one, one.text, whole)
        wordless_seconds = one.dictation.empty_retry.seconds
        self.slot.monitor.wordless_seconds = one.dictation.empty_retry.total_seconds
        if wordless_seconds >= MIN_WORDLESS_SECONDS and not one.text:
            return await self._keep(
                one,
                f"{one.dictation.strategy} found no word in {wordless_seconds:.1f} s of clear speech",
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
        ready, dictation = self.slot.engine.ready is not None, one.dictation
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
            + (f": {reason}" if reason != self.slot.error else "")  # which was said a moment ago
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

    async def retry(self, note: RecordingInfo, record: Deliveries | None = None) -> str:
        """Write down a take that is kept, between whatever else there is to do.

        Args:
            record: what was sent of it already, and stays as it is; what is new is added to it, and
                not sent.

        Raises: as Engine.transcribe; AudioError where the file cannot be read.
        """
        record = record or Deliveries()
        if record.whole is not None:
            return record.whole
        writing = CommandWriter(self.settings.phrases, self.settings.capitals)
        dictation = StreamingSession(self.settings)
        by_segments = self.settings.deliver == "segment"
        if stood := record.standing:
            dictation.resume(stood.words, stood.sealed, stood.until)
            writing.resume(stood.pieces, stood.waiting, stood.case)
            by_segments = True
        # The limit is reached by the first buffer: the candidate that found no word is left at once.
        dictation.empty_retry.seconds_before = self.settings.demote_empty
        self._retrying += 1
        try:
            with self._activity.text():
                async for words in self.transcribe(sound_of(self.spool.path(note)), dictation):
                    writing.push(words)
                    if by_segments and (text := writing.send()):
                        _add(record, text, self.settings, dictation, writing)
        except OSError as error:
            raise AudioError(
                f"recording {note.id} cannot be read: {error.strerror or error}"
            ) from error
        finally:
            self._retrying -= 1
            self._changed()
        writing.finish()
        if text := writing.send() if by_segments else writing.text:
            _add(record, text, self.settings, dictation, writing, whole=True)
        elif record.parts:
            record.end(writing.text)
        return writing.text

    async def transcribe(
        self, sound: Iterable[AudioBlock], dictation: StreamingSession
    ) -> AsyncGenerator[list[Word]]:
        """Decode sound that is all there, between whatever else there is to do, giving words as
        they become final.

        Raises: as Engine.transcribe; what `sound` raises.
        """
        try:
            with self._activity.guest():
                self.slot.renew()
                async for block in blocks(sound):
                    dictation.push(block)
                    yield await self._decode(dictation)
                    await asyncio.sleep(0)
                dictation.finish()
                yield await self._decode(dictation)
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
            return await session.decode(engine, by_pause, self.slot.fall_back)

    async def finish(self) -> None:
        """Return when all that became text is put away."""
        await self._cleanup.finish()

    async def _account(self, one: Dictation, told: DictationResult) -> None:
        """Read the ledger where that delays nobody, and write the figures of a take to the
        journal."""
        heard = one.dictation.answer is not None
        await self._let_it_out()
        if heard and len(self._queue) == 1:
            await self.slot.measure()
        ready, memory = one.dictation.ready or self.slot.engine.ready, self.slot.memory
        metrics.log_dictation(one, told, self.settings.model, ready, memory)
        self._alert.watch(memory, self.settings)
        if told.outcome != "cancelled":
            self.level.watch(one)
        if heard and self.slot.engine.ready is not None:
            await self.slot.fall_back_if_due()

    async def _let_it_out(self) -> None:
        """Wait until the text is with whoever waits for it, or the next recording is here: figures
        grow with a text."""
        if len(self._queue) > 1:
            return
        self._work.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MOMENT_SECONDS):
                await self._work.wait()


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
