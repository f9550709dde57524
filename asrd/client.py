"""Asking a daemon that may be busy: again, after pauses that grow, for a bounded time. Imports little."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from .errors import BusyError

BUSY_SECONDS = 10.0
"""Seconds after which a daemon that stays busy is told to the user."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two attempts, about: each pause is twice the one before, and none is exact."""

T = TypeVar("T")


def persistent(ask: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Yield what `ask` gives, and ask again while the daemon is busy.

    A busy daemon has done nothing of a request, so every verb is safe to repeat. Raises BusyError after BUSY_SECONDS,
    and what `ask` raises.
    """
    deadline, pause = time.monotonic() + BUSY_SECONDS, FIRST_PAUSE
    while True:
        try:
            yield from ask()
            return
        except BusyError:
            if time.monotonic() + pause > deadline:
                raise
        import random  # only a crowd needs it

        time.sleep(pause * random.uniform(0.5, 1.5))  # clients that were refused together do not come back together
        pause = min(2 * pause, LONGEST_PAUSE)
