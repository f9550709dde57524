"""The shadow: one recording in N is decoded once more in FP32 while nothing else runs, to count how
many words the precision in service changes.

That is a disagreement, not a word error rate: no reference text exists. The same buffers are decoded
again, so a difference comes from the precision and not from other cuts. Audio and words are in
memory only, bounded, and gone once they are compared; counts stay. Runs in the daemon.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import os
from collections.abc import Callable, Sequence
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
from asrd.text.wording import counted

log = logging.getLogger("asrd")

QUIET_SECONDS = 20.0
"""Time without speech before a recording is decoded again."""

BUSY_RETRY_SECONDS = 60.0
"""Time after which a machine that was busy is looked at again."""

MAX_IDLE_LOAD = 0.5
"""Share of the machine's cores; a machine with more in use is busy."""

MAX_RECORDING_SECONDS = 120.0
"""Length of a recording; a longer one is not decoded again."""

MAX_WAITING_SECONDS = 240.0
"""Audio that waits in memory (16 MB)."""

MAX_COUNTED_BUFFERS = 2000
"""Buffers whose counts make the running figure."""


class WaitingRecording(NamedTuple):
    """A recording that waits for its comparison."""

    id: str
    strategy: str
    audio: Samples
    buffers: list[DecodedBuffer]
    """What the strategy made of each part of the audio."""


class Shadow:
    """Recordings that wait for their comparison, and the counts of those before them.

    Args:
        engine_factory: makes an engine.
    """

    def __init__(self, engine_factory: Callable[..., Engine]) -> None:
        self.generation = 0
        """How often it began anew; a recording of an earlier generation is not compared."""
        self._engine_factory = engine_factory
        self._waiting: collections.deque[WaitingRecording] = collections.deque()
        self._counts: collections.deque[tuple[int, int]] = collections.deque(
            maxlen=MAX_COUNTED_BUFFERS
        )
        """(changed words, words of FP32) of each buffer."""
        self._interval: tuple[float, float] | None = None
        self._strategy = ""
        self._compared = self._offered = 0
        self._crowded = False

    @property
    def waiting(self) -> bool:
        """Whether a recording waits for its comparison."""
        return bool(self._waiting)

    async def offer(self, dictation: Dictation) -> None:
        """Add a recording that became text, if it is its turn; its audio is read before it leaves
        the disk."""
        recording, buffers = dictation.recording, dictation.session.decoded
        strategy = _other_than_fp32(buffers)
        if not strategy or dictation.generation != self.generation or not dictation.settings.shadow:
            return
        self._offered += 1
        if self._offered % dictation.settings.shadow:
            return
        if recording.seconds > MAX_RECORDING_SECONDS or recording.problem:
            return
        try:
            audio = await asyncio.to_thread(_audio, recording.path)
        except (OSError, ValueError) as error:
            log.debug("recording %s has no shadow: %s", recording.id, error)
            return
        if dictation.generation != self.generation:
            return
        self._waiting.append(WaitingRecording(recording.id, strategy, audio, list(buffers)))
        while sum(len(each.audio) for each in self._waiting) > MAX_WAITING_SECONDS * SAMPLE_RATE:
            self._waiting.popleft()

    def forget(self) -> None:
        """Begin anew: another engine is in service."""
        self.generation += 1
        self._waiting.clear()
        self._counts.clear()
        self._strategy, self._compared, self._interval = "", 0, None

    async def compare_waiting(self, settings: Settings, used: int | None, on_card: bool) -> None:
        """Decode all that waits in FP32, in a worker of its own. May be cancelled at any moment; what
        is left waits on.

        Args:
            settings: those in force.
            used: bytes of the worker in service; 0 while there is none, None where they are not
                known.
            on_card: whether that worker holds a card; else a card may sleep, and FP32 runs on the
                CPU.
        """
        device = place_beside(settings, used, self._crowded or not on_card)
        if device is None:
            log.debug("no room for a second worker: the shadow waits")
            return
        start = start_for(msgspec.structs.replace(settings, faults="", vram_budget=""))
        try:
            async with self._engine_factory(fallback.fp32_plan(device), start) as engine:
                while self._waiting:
                    await self._compare(engine, self._waiting[0])
        except AsrdError as error:
            log.warning("the comparison with FP32 failed: %s", error.message)
            self._crowded = self._crowded or device != "cpu"
            self._waiting.clear()

    async def _compare(self, engine: Engine, recording: WaitingRecording) -> None:
        """Decode one recording in FP32, and count the words that differ."""
        references, hypotheses = [], []
        for part in recording.buffers:
            audio = np.ascontiguousarray(recording.audio[part.start : part.stop])
            answer = await engine.transcribe(audio, part.start, context=part.context)
            references.append(" ".join(words(answer.hypothesis.text)))
            hypotheses.append(" ".join(words(part.text)))
        # In a thread, as the first call imports jiwer, and a key must not wait for that.
        difference = await asyncio.to_thread(edits, references, hypotheses)
        if self._waiting and self._waiting[0] is recording:
            self._waiting.popleft()
        if self._strategy != recording.strategy:
            self._counts.clear()
            self._strategy, self._compared = recording.strategy, 0
        self._counts.extend(zip(difference.errors, difference.words, strict=True))
        self._compared += 1
        # In a thread, as a key must not wait for the bootstrap.
        self._interval = await asyncio.to_thread(disagreement, list(self._counts))
        changed, count = sum(difference.errors), sum(difference.words)
        self._log(recording, changed, count, engine.candidate.device)

    def _log(self, recording: WaitingRecording, changed: int, count: int, device: str) -> None:
        figures = self.figures
        journal.event(
            "shadow",
            f"{changed} of {count} words differ from FP32's; {described(figures)}",
            take=recording.id,
            strategy=recording.strategy,
            device=device,
            words=count,
            changed=changed,
            per_100=figures["per_100"],
            low_per_100=figures["low"],
            high_per_100=figures["high"],
        )

    @property
    def figures(self) -> dict[str, Any]:
        """The disagreement so far: recordings, changed, words, and per 100 words the rate and its
        95 % interval."""
        changed = count = 0
        for buffer_changed, buffer_words in self._counts:
            changed += buffer_changed
            count += buffer_words
        rate = low = high = None
        if count:
            rate = round(100 * changed / count, 2)
        if self._interval is not None:
            low, high = round(self._interval[0], 2), round(self._interval[1], 2)
        return {
            "strategy": self._strategy,
            "recordings": self._compared,
            "changed": changed,
            "words": count,
            "per_100": rate,
            "low": low,
            "high": high,
            "waiting": len(self._waiting),
        }


def _other_than_fp32(buffers: Sequence[DecodedBuffer]) -> str:
    """Return the strategy of all the buffers; "" where they have none, several or FP32."""
    strategies = {buffer.strategy for buffer in buffers}
    if len(strategies) != 1 or "fp32" in strategies:
        return ""
    return strategies.pop()


def _audio(path: Path) -> Samples:
    """Return the audio of a recording on disk. Raises OSError; ValueError where it has none."""
    return np.concatenate([np.frombuffer(data, np.float32) for _, data in blocks(path)])


def machine_is_idle() -> bool:
    """Whether next to nothing runs on the machine."""
    return os.getloadavg()[0] < MAX_IDLE_LOAD * (os.cpu_count() or 1)


def described(figures: dict[str, Any]) -> str:
    """Return the running figure in words; "" before there is one."""
    if figures["per_100"] is None:
        return ""
    rate = f"{figures['per_100']:.1f}"
    if figures["low"] is not None:
        rate += f" [{figures['low']:.1f}, {figures['high']:.1f}]"
    of = f"{counted(figures['recordings'], 'recording')} of {figures['words']} words"
    return f"disagreement of {figures['strategy']} with FP32: {rate} words in 100, {of}"


def words(text: str) -> list[str]:
    """Return words without case and punctuation; in scripts without spaces its letters."""
    return [word for part in parted(text) if (word := bare(part.text))]
