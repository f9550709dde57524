"""Buffers that callers wait for: which of them the worker is asked next, and which is in its pipe already.

Knows who came first and what is urgent; asks nobody. Daemon side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from . import wire
from .worker import Worker

WASTE = 1.25
"""How much longer than the sum of its buffers a batch may be, each being padded to the longest."""


class Waiting:
    """A buffer that a caller waits for."""

    def __init__(self, sound: memoryview, start: int, phase: str) -> None:
        self.sound, self.start, self.phase = sound, start, phase
        self.seconds = len(sound) / 4 / wire.SAMPLE_RATE
        self.answer: asyncio.Future[wire.Answer] = asyncio.get_running_loop().create_future()


class Ahead(NamedTuple):
    """A buffer that is in the pipe to a worker already, behind the one that is being answered."""

    one: Waiting
    message: wire.Recognize
    worker: Worker


def together(waiting: Sequence[Waiting], limit: int) -> list[Waiting]:
    """Return what is asked next: the first final buffer, else the first, and up to `limit` in all that go with it.

    Of one phase, and so alike in length that padding them costs little. Who came first goes first, but a draft, which
    is replaced soon, waits for every final buffer that is there.
    """
    found: list[Waiting] = []
    ordered = sorted(waiting, key=lambda one: one.phase == "draft")
    for one in ordered:
        grown = [*found, one]
        longest, whole = (of(each.seconds for each in grown) for of in (max, sum))
        if one.phase == ordered[0].phase and longest * len(grown) <= WASTE * whole:
            found = grown
        if len(found) >= limit:
            break
    return found
