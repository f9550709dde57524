"""The cleanup of a recording once its text is out: its audio is read for the shadow, then deleted or
kept; old recordings are deleted.

How long that takes grows with the recording: the kernel gives back each page of a file that is
deleted. So it is done in threads, and neither the text nor the next recording waits for it. A
process that is killed before it is done leaves a recording that is delivered by what lies beside
it; the next start puts it away. Runs in the daemon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from asrd.dictation.activity import Activity
from asrd.dictation.recording import Dictation, DictationResult
from asrd.dictation.shadow import Shadow
from asrd.recordings.store import RecordingStore

log = logging.getLogger("asrd")

REPLY_SECONDS = 0.05
"""Time that the text gets to reach whoever waits for it: deleting an hour takes a core a tenth of a
second."""


class Cleanup:
    """The recordings that are being put away.

    Args:
        shadow: is offered those that became text.
        activity: counts a recording until it is put away.
        on_change: called when one has been put away.
    """

    def __init__(self, shadow: Shadow, activity: Activity, on_change: Callable[[], None]) -> None:
        self._shadow, self._activity, self._on_change = shadow, activity, on_change
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, dictation: Dictation, result: DictationResult, spool: RecordingStore) -> None:
        """Put away a recording, by what became of it."""
        task = asyncio.create_task(self._put_away(dictation, result, spool))
        self._tasks.add(task)
        self._activity.begin_text()
        task.add_done_callback(self._done)

    async def finish(self) -> None:
        """Return when all is put away."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _put_away(
        self, dictation: Dictation, result: DictationResult, spool: RecordingStore
    ) -> None:
        if result.outcome != "kept":  # a kept recording is not deleted
            await asyncio.sleep(REPLY_SECONDS)
        if result.outcome in ("delivered", "empty"):
            await self._shadow.offer(dictation)
            await asyncio.to_thread(spool.finish_delivered, dictation.recording, result.text)
        elif result.outcome != "kept":
            await asyncio.to_thread(spool.discard, dictation.recording)
        if result.outcome == "kept" or spool.keep == "always":
            await asyncio.to_thread(spool.prune)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a recording could not be put away: %s", error, exc_info=error)
        self._activity.end_text()  # the shadow may have something to compare
        self._on_change()
