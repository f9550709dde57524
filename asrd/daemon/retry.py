"""Kept recordings once more: claimed, recognised from where their text ends, and sent to whom it is
missing.

What a sink accepted is not sent to it again. What it may have is said, and sent again only where
that was asked for. Runs in the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from asrd.daemon.control_server import Answers, Request
from asrd.daemon.delivery import Delivery
from asrd.dictation.recording import DictationResult
from asrd.dictation.transcriber import Transcriber
from asrd.errors import (
    AsrdError,
    AudioError,
    ClaimedError,
    SinkError,
    UnansweredError,
    UncertainError,
    UsageError,
)
from asrd.models import choice
from asrd.recordings.deliveries import Deliveries
from asrd.recordings.files import RecordingInfo
from asrd.recordings.sink_names import shown
from asrd.recordings.store import NONE_WAITS
from asrd.text.wording import counted


class Retry:
    """One request to try kept recordings again.

    Args:
        transcriber: turns sound into text, and has the recordings.
        delivery: sends texts to the sinks in force.
        request: which recordings, and what is to be done with their text.
        file: the configuration file that was named.
    """

    def __init__(
        self,
        transcriber: Transcriber,
        delivery: Delivery,
        request: Request,
        file: Path | None = None,
    ) -> None:
        self._transcriber, self._spool = transcriber, transcriber.spool
        self._delivery = delivery
        self._sinks = [sink.key for sink in delivery.sinks]
        self._all, self._again = request.all, request.again
        self._deliver = request.deliver or request.again
        self._name, self._file = request.recording or request.take, file

    async def run(self) -> Answers:
        """Yield the replies for one recording after the other.

        Where all were asked for, one that cannot be had or read, or is refused, costs the others
        nothing. A sink that may have a text or not ends the request: it may be stuck, and no other
        text is to become uncertain.

        Raises: as Engine.transcribe; ModelError where no model is chosen; SinkError where a sink
            refused; NothingError
        where the newest was asked for and none waits; of one that was named ClaimedError,
        UsageError.
        """
        if self._all:
            notes = await asyncio.to_thread(self._spool.waiting, claimed=True)
        else:
            notes = [await asyncio.to_thread(self._spool.find, self._name)]
        if not notes:
            yield {"message": NONE_WAITS, "notes": [NONE_WAITS]}
            return
        choice.require(
            self._transcriber.slot.settings, self._file
        )  # a wrong name is told before that
        failed: list[AsrdError] = []
        for number, note in enumerate(notes, 1):
            more = number < len(notes) or bool(failed)  # the failure is the last reply
            yield {"message": f"recording {note.id}, {note.seconds:.1f} s", "more": True}
            try:
                async with (
                    self._claimed(note),
                    contextlib.aclosing(self._retry(note, more)) as replies,
                ):
                    async for reply in replies:
                        yield reply
            except (AudioError, UnansweredError, SinkError, ClaimedError, UsageError) as error:
                if not self._all or isinstance(error, UncertainError):
                    raise
                if not isinstance(error, ClaimedError | UsageError):
                    failed.append(error)
                message = error.message
                if note.id not in message:
                    message = f"recording {note.id}: {message}"
                yield {"message": message, "notes": [message], "more": more or bool(failed)}
        if failed:
            kept = f"{len(failed)} of {counted(len(notes), 'recording')} could not be finished, and stay"
            raise type(failed[0])(kept, "asrd recordings lists them and says why")

    async def _retry(self, note: RecordingInfo, more: bool) -> Answers:
        """Yield the answer for one recording that is claimed."""
        now = self._spool.reread(note)
        if now is None or (self._all and now.delivered):  # another retry had it before
            raise UsageError(
                f"recording {note.id} was delivered meanwhile", "asrd recordings lists what is kept"
            )
        if now.delivered and self._deliver and not self._again:
            raise UsageError(
                f"recording {note.id} was delivered",
                f"asrd retry {note.id} --again sends it once more",
            )
        record = Deliveries()
        if not now.delivered:
            record = Deliveries.of(self._spool.path(note))
        text = await self._transcriber.retry(note, record)
        uncertain: list[str] = []
        if self._deliver:
            uncertain = await self._sent(now, record, text)
        outcome = "delivered"
        if not text:
            outcome = "empty"
        self._transcriber.last = DictationResult(note.id, text, outcome, seconds=note.seconds)
        if self._deliver and not uncertain:
            await asyncio.to_thread(self._spool.finish_retried, now, text)
        reply = {"recording": note.id, "text": text, "uncertain": uncertain, "more": more}
        yield reply | {"notes": self._notes(note, record, uncertain)}
        if not self._deliver:  # goes on only where somebody has read it
            await asyncio.to_thread(self._spool.finish_retried, now, text)

    @contextlib.asynccontextmanager
    async def _claimed(self, note: RecordingInfo) -> AsyncIterator[None]:
        """Claim a recording; raises as `RecordingStore.claim`. To close a file that is deleted
        takes as long as it is large."""
        with contextlib.ExitStack() as claim:
            claim.enter_context(self._spool.claim(note))
            try:
                yield
            finally:
                await asyncio.to_thread(claim.close)

    async def _sent(self, note: RecordingInfo, record: Deliveries, text: str) -> list[str]:
        """Send what is missing; return the sinks in force that may have some of it, and got no
        more.

        Raises: SinkError where one refused, or none is there for what one that is gone did not
            take.
        """
        failed: list[str] = []
        before = set(record.uncertain)
        for number in range(len(record.parts)):
            failed += await self._delivery.send(record, number, self._again)
        uncertain = [sink for sink in record.uncertain if sink in self._sinks]
        if not self._sinks and (gone := record.gone(())):
            failed.append(f"{_missing(gone)}, and the settings name no other sink")
        if failed:
            self._spool.note_reason(note, failed[0], text)
            hint = f"the recording is still kept: {note.id}"
            if set(record.uncertain) - before:
                raise UncertainError(failed[0], hint)
            raise SinkError(failed[0], hint)
        return [shown([sink], self._sinks) for sink in uncertain]

    def _notes(self, note: RecordingInfo, record: Deliveries, uncertain: list[str]) -> list[str]:
        """Return the notes about a recording beside its text."""
        result = []
        if uncertain:
            names = " and ".join(uncertain)
            result.append(
                f"recording {note.id} may have been delivered to {names};"
                f" asrd retry {note.id} --again sends it once more"
            )
        elif not self._deliver and record.uncertain:
            names = shown(record.uncertain, record.all_sinks)
            result.append(f"recording {note.id} may have been delivered to {names} before")
        if self._deliver and (gone := record.gone(self._sinks)):
            result.append(f"{_missing(gone)}, so it may lack the text of recording {note.id}")
        return result


def _missing(gone: Sequence[str]) -> str:
    """Return that sinks are in the settings no more: a command counts as another sink once a letter
    of it changes."""
    end = "any more"
    if any(sink.startswith("command:") for sink in gone):
        end = "as it was then"
    return f"the settings do not name {shown(gone)} {end}"
