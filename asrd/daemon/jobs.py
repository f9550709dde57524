"""Background jobs of the daemon: started, kept from the garbage collector, ended together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

log = logging.getLogger("asrd")


class BackgroundJobs:
    """The tasks that nobody awaits."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        return iter(tuple(self._running))

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, job: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine in the background; an error in it is logged."""
        self.keep(asyncio.create_task(job)).add_done_callback(log_failure)

    def keep(self, task: asyncio.Task[Any]) -> asyncio.Task[Any]:
        """Keep a task whose result somebody reads; return it."""
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


def log_failure(task: asyncio.Task[Any]) -> None:
    """Log the error that ended a task, if one did."""
    if not task.cancelled() and (error := task.exception()):
        log.error("a background job failed: %s", error, exc_info=error)
