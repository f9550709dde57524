"""Who needs the engine, who may use it now, and since when nobody does; idle work runs only then.

Runs in the daemon, on its event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

log = logging.getLogger("asrd")


class Activity:
    """Counts who needs the engine, and holds the one job that may run while nobody does."""

    def __init__(self) -> None:
        self.texts = 0
        """Recordings between a key press, or a wish to try again, and the end of their cleanup."""
        self.guests = 0
        """Others that need the engine: files to transcribe, an exchange of the engine."""
        self.quiet_since = time.monotonic()
        """When somebody last began or ended to need the engine."""
        self.idle_job: asyncio.Task[None] | None = None
        """What runs because nobody needs the engine."""
        self._news = asyncio.Event()

    @property
    def quiet(self) -> bool:
        """Whether nobody needs the engine."""
        return not (self.texts or self.guests)

    def begin_text(self) -> None:
        """Count a recording that needs the engine; cancel the idle job."""
        self.texts += 1
        self.interrupt()

    def end_text(self) -> None:
        """Take a recording off the count."""
        self.texts -= 1
        self.settle()

    @contextlib.contextmanager
    def text(self) -> Iterator[None]:
        """Count a recording inside the block."""
        self.begin_text()
        try:
            yield
        finally:
            self.end_text()

    @contextlib.contextmanager
    def guest(self) -> Iterator[None]:
        """Count another user of the engine inside the block; cancel the idle job."""
        self.guests += 1
        self.interrupt()
        try:
            yield
        finally:
            self.guests -= 1
            self.settle()

    def settle(self) -> None:
        """Begin the quiet time anew, and let `wait_for_news` return."""
        self.quiet_since = time.monotonic()
        self._news.set()

    def interrupt(self) -> None:
        """Cancel the idle job, because somebody needs the engine."""
        self.settle()
        if self.idle_job is not None:
            self.idle_job.cancel()

    async def wait_until_quiet(self) -> None:
        """Return when an idle job that was cancelled has ended, and its worker with it."""
        job = self.idle_job
        if job is not None and job.cancelling() and job is not asyncio.current_task():
            await asyncio.wait([job])

    async def wait_for_news(self, seconds: float | None) -> None:
        """Return when the activity changes, at the latest after so many seconds (None: no limit).

        `forget_news` is called before the time to wait is computed, so that no news is lost.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    def forget_news(self) -> None:
        """Have `wait_for_news` wait for what changes from now on."""
        self._news.clear()

    async def run_idle(self, work: Coroutine[Any, Any, None]) -> None:
        """Run one idle job to its end; `interrupt` ends it early. Its failure is logged."""
        job = self.idle_job = asyncio.create_task(work)
        try:
            await asyncio.wait([job])
        finally:  # the daemon ends, or the job did
            if not job.done():
                job.cancel()
                await asyncio.wait([job])
            self.idle_job = None
        if not job.cancelled() and (error := job.exception()):
            log.error("an idle task failed: %s", error, exc_info=error)


class ReadWriteLock:
    """Any number of callers may use the engine at once; who starts, ends or replaces it is
    alone."""

    def __init__(self) -> None:
        self._using = 0
        self._alone = asyncio.Lock()
        self._free = asyncio.Event()
        self._free.set()

    @contextlib.asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Use the engine; a caller that waits to be alone goes first."""
        async with self._alone:
            self._using += 1
            self._free.clear()
        try:
            yield
        finally:
            self._using -= 1
            if not self._using:
                self._free.set()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Wait until nobody uses it, and let nobody in meanwhile."""
        async with self._alone:
            await self._free.wait()
            yield
