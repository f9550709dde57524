"""One take in N once more in FP32, while all rests: how many words does the precision in service
change?

That is a disagreement, not a word error rate: nobody knows what was really said. The very buffers
that were asked are asked again, so that a difference is the precision's and not that of another
cut. Sound and words are in memory only, bounded, and gone once they are compared; counts stay. Runs
in the daemon.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from asrd import journal
from asrd.audio.blocks import Samples
from asrd.audio.format import SAMPLE_RATE
from asrd.config.settings import Settings
from asrd.dictation.fallback_triggers import disagreement
from asrd.dictation.recording import Dictation
from asrd.engine.capacity import place_beside
from asrd.engine.engine import Engine
from asrd.engine.planner import start_for
from asrd.errors import AsrdError
from asrd.precision import fallback
from asrd.recordings.files import blocks
from asrd.scoring import edits
from asrd.streaming.session import DecodedBuffer
from asrd.text.spacing import bare, parted

log = logging.getLogger("asrd")

QUIET = 20.0
"""Seconds for which nobody has spoken before a take is heard again."""

AGAIN = 60.0
"""Seconds after which a machine that was busy is looked at again."""

BUSY = 0.5
"""Of the machine's cores: with more in use it does not rest."""

LONGEST = 120.0
"""Seconds of a take; a longer one is not heard again."""

MOST = 240.0
"""Seconds of sound that wait in memory (16 MB)."""

KEPT = 2000
"""Buffers whose counts make the running figure."""


class Held(NamedTuple):
    """A take that waits."""

    take: str
    strategy: str
    sound: Samples
    heard: list[DecodedBuffer]


class Shadow:
    """Takes that wait, and what became of those before them.

    Args:
        hold: makes an engine.
    """

    def __init__(self, hold: Callable[..., Engine]) -> None:
        self.era = 0
        """How often it began anew; a take is of the one in which it began."""
        self._hold = hold
        self._waiting: collections.deque[Held] = collections.deque()
        self._counts: collections.deque[tuple[int, int]] = collections.deque(maxlen=KEPT)
        self._interval: tuple[float, float] | None = None
        self._strategy = ""
        self._takes = self._seen = 0
        self._crowded = False

    @property
    def waiting(self) -> bool:
        """Whether there is something to hear again."""
        return bool(self._waiting)

    async def offer(self, one: Dictation) -> None:
        """Take in a take that became text, if it is its turn; its sound is read before it leaves
        the disk."""
        every = one.settings.shadow
        heard = one.dictation.heard
        strategies = {each.strategy for each in heard}
        if (
            one.era != self.era
            or not every
            or not heard
            or strategies & {"fp32"}
            or len(strategies) > 1
        ):
            return
        self._seen += 1
        if self._seen % every or one.take.seconds > LONGEST or one.take.problem:
            return
        try:
            sound = await asyncio.to_thread(_sound, one.take.path)
        except (OSError, ValueError) as error:
            log.debug("take %s has no shadow: %s", one.take.id, error)
            return
        if one.era != self.era:
            return
        self._waiting.append(Held(one.take.id, strategies.pop(), sound, list(heard)))
        while sum(len(held.sound) for held in self._waiting) > MOST * SAMPLE_RATE:
            self._waiting.popleft()

    def forget(self) -> None:
        """Begin anew: another engine is in service."""
        self.era += 1
        self._waiting.clear()
        self._counts.clear()
        self._strategy, self._takes, self._interval = "", 0, None

    async def work(self, settings: Settings, used: int | None, on_card: bool) -> None:
        """Hear all that waits in FP32, in a worker of its own. May be cancelled at any moment; what
        is left waits on.

        Args:
            settings: those in force.
            used: bytes of the worker in service; 0 while there is none, None where nothing tells.
            on_card: whether that worker holds a card; else a card may sleep, and FP32 runs on the
                CPU.
        """
        device = place_beside(settings, used, self._crowded or not on_card)
        if device is None:
            log.debug("no room for a second worker: the shadow waits")
            return
        start = start_for(msgspec.structs.replace(settings, faults="", vram_budget=""))
        try:
            async with self._hold(fallback.fp32_plan(device), start) as engine:
                while self._waiting:
                    await self._hear(engine, self._waiting[0])
        except AsrdError as error:
            log.warning("the shadow cannot be heard: %s", error.message)
            self._crowded = self._crowded or device != "cpu"
            self._waiting.clear()

    async def _hear(self, engine: Engine, held: Held) -> None:
        references, hypotheses = [], []
        for part in held.heard:
            sound = np.ascontiguousarray(held.sound[part.start : part.stop])
            answer = await engine.transcribe(sound, part.start, context=part.said)
            references.append(" ".join(words(answer.hypothesis.text)))
            hypotheses.append(" ".join(words(part.text)))
        # In a thread, as the first call imports jiwer, and a key must not wait for that.
        counted = await asyncio.to_thread(edits, references, hypotheses)
        found = list(zip(counted.errors, counted.words, strict=True))
        if self._waiting and self._waiting[0] is held:
            self._waiting.popleft()
        if self._strategy != held.strategy:
            self._counts.clear()
            self._strategy, self._takes = held.strategy, 0
        self._counts += found
        self._takes += 1
        self._interval = await asyncio.to_thread(
            disagreement, list(self._counts)
        )  # a key must not wait for it
        self._tell(
            held,
            sum(changed for changed, _ in found),
            sum(count for _, count in found),
            engine.candidate.device,
        )

    def _tell(self, held: Held, changed: int, count: int, device: str) -> None:
        figures = self.figures
        low, high = figures["low"], figures["high"]
        journal.event(
            "shadow",
            f"{changed} of {count} words differ from FP32's; {described(figures)}",
            take=held.take,
            strategy=held.strategy,
            device=device,
            words=count,
            changed=changed,
            per_100=figures["per_100"],
            low_per_100=low,
            high_per_100=high,
        )

    @property
    def figures(self) -> dict[str, Any]:
        """Return the disagreement so far: takes, changed, words, and per 100 words the rate and its
        95 % interval."""
        changed, count = sum(c for c, _ in self._counts), sum(n for _, n in self._counts)
        both = self._interval
        return {
            "strategy": self._strategy,
            "takes": self._takes,
            "changed": changed,
            "words": count,
            "per_100": round(100 * changed / count, 2) if count else None,
            "low": None if both is None else round(both[0], 2),
            "high": None if both is None else round(both[1], 2),
            "waiting": len(self._waiting),
        }


def _sound(path: Path) -> Samples:
    """Return what is on disk of a take. Raises OSError; ValueError where that is nothing."""
    return np.concatenate([np.frombuffer(data, np.float32) for _, data in blocks(path)])


def resting() -> bool:
    """Whether the machine has next to nothing to do."""
    return os.getloadavg()[0] < BUSY * (os.cpu_count() or 1)


def described(figures: dict[str, Any]) -> str:
    """Return the running figure in words; "" before there is one."""
    if figures["per_100"] is None:
        return ""
    both = f" [{figures['low']:.1f}, {figures['high']:.1f}]" if figures["low"] is not None else ""
    return (
        f"disagreement of {figures['strategy']} with FP32: {figures['per_100']:.1f}{both} words in 100,"
        f" {figures['takes']} takes of {figures['words']} words"
    )


def words(text: str) -> list[str]:
    """Return words without case and punctuation; in scripts without spaces its letters."""
    return [word for word in (bare(part.text) for part in parted(text)) if word]
