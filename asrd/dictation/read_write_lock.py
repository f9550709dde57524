"""Who may use the one engine when: many at once, or one alone who exchanges it. Runs in the
daemon."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class ReadWriteLock:
    """Any number of callers may use the engine at once; whoever starts, ends or exchanges it is
    alone with it."""

    def __init__(self) -> None:
        self._using = 0
        self._alone = asyncio.Lock()
        self._free = asyncio.Event()
        self._free.set()

    @contextlib.asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Use the engine; whoever waits to be alone goes first."""
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
