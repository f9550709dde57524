"""Which waiting buffers one request to the worker takes together (pure)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from asrd import protocol
from asrd.audio.format import SAMPLE_RATE

TOGETHER = {"cpu": 1, "cuda": 8}
"""Buffers of several callers that a device computes at once; a card replays so many together, as
`graphs.ROWS` says.

A processor is as fast with one after the other.
"""

WASTE = 1.25
"""How much longer than the sum of its buffers a batch may be, each being padded to the longest."""


class WaitingBuffer:
    """A buffer that a caller waits for."""

    def __init__(
        self,
        sound: memoryview,
        start: int,
        phase: str,
        context: protocol.DecodingContext | None = None,
    ) -> None:
        self.sound, self.start, self.phase, self.context = sound, start, phase, context
        self.samples = len(sound) // 4
        self.seconds = self.samples / SAMPLE_RATE
        self.answer: asyncio.Future[protocol.Answer] = asyncio.get_running_loop().create_future()


def together(waiting: Sequence[WaitingBuffer], limit: int) -> list[WaitingBuffer]:
    """Return what is asked next: the first final buffer, else the first, and up to `limit` in all
    that go with it.

    Of one phase, and so alike in length that padding them costs little. Who came first goes first,
    but a draft, which is replaced soon, waits for every final buffer that is there.
    """
    found: list[WaitingBuffer] = []
    ordered = sorted(waiting, key=lambda one: one.phase == "draft")
    for one in ordered:
        grown = [*found, one]
        longest, whole = (of(each.seconds for each in grown) for of in (max, sum))
        if one.phase == ordered[0].phase and longest * len(grown) <= WASTE * whole:
            found = grown
        if len(found) >= limit:
            break
    return found
