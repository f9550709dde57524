"""The real daemon, with a microphone that plays what it is told to, and what is done to its worker on purpose.

    python -m tools.benchmark.player run [WHAT...]     verbs and variables as for asrd
    python -m tools.benchmark.player worker WHAT...    the real worker, and: leak, slow, tidy

leak and slow are the faults that the bench has to notice. tidy collects garbage and gives free memory back to the
system before each reading of the ledger, in the daemon after each recording: else the room that loading left in the
heap hides any leak that fits, and what the allocator keeps for later looks like one.

Before each recording one JSON line on standard input says what is heard: {"sound": FILE.npy, "lead": N, "pace": P}. The
first N samples are played P times as fast as they were spoken, the rest in real time; then it is still, as a
microphone is in a quiet room. When the last sample of the sound was delivered, one line is printed.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from asrd import cli, daemon, engine, microphone, systemd, tape
from asrd.audio import AudioBlock
from asrd.capture import Capture
from asrd.wire import SAMPLE_RATE

BLOCK = round(SAMPLE_RATE * microphone.PERIOD) // tape.BLOCK * tape.BLOCK
"""Samples of a block, as the real microphone brings: what wakes the daemon more often would be the bench's cost."""

LEAK = 10 << 10
"""Bytes that a leaking worker keeps of each utterance."""

SLOW = 0.10
"""Of its own time by which a slow worker takes longer."""


class Player:
    """A microphone that hears what standard input said last."""

    def __init__(self, tidy: bool) -> None:
        self.name, self.problem, self.ended = "the bench", "", False
        self._tidy = tidy
        self._task: asyncio.Task[None] | None = None

    def open(
        self,
        on_block: Callable[[AudioBlock], None],
        on_change: Callable[[], None],
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Play; the line was written before the recording was asked for."""
        told = json.loads(sys.stdin.readline())
        self._wanted = wanted
        self._task = asyncio.create_task(self._play(on_block, told["sound"], told["lead"], told["pace"]))

    async def close(self) -> None:
        """Stop where it is."""
        task, self._task = self._task, None  # kept, it and its traceback would keep the recording
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if self._tidy:
            give_back()

    async def _play(self, on_block: Callable[[AudioBlock], None], path: str, lead: int, pace: float) -> None:
        loop, still = asyncio.get_running_loop(), np.zeros(BLOCK, np.float32)
        due, start, playing = loop.time(), 0, True
        with open(path, "rb") as file:  # piece by piece, so that what the bench holds is no part of what it measures
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            while True:
                sound = np.fromfile(file, np.float32, BLOCK) if playing else still
                if not len(sound):
                    playing = False
                    print("played", flush=True)
                    continue
                due += len(sound) / SAMPLE_RATE / (pace if start < lead else 1.0)
                await asyncio.sleep(due - loop.time())
                while start < lead and not self._wanted():
                    await asyncio.sleep(0.001)
                on_block(AudioBlock(start, sound))
                start += len(sound)


def give_back() -> None:
    """Collect what is unreachable, and have glibc return every free page to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def worker(*what: str) -> int:
    """Be a worker that keeps some of each utterance, or takes longer than it has to, or is tidy."""
    from asrd import recognizer

    real, measure = recognizer.Recognizer.recognize_together, recognizer.Recognizer.measure
    introduced, kept = recognizer.Recognizer.introduce, []

    def recognize(self: Any, sounds: Sequence[bytes], *rest: Any) -> Any:
        began = time.perf_counter()
        answers = real(self, sounds, *rest)
        if "leak" in what:
            kept.append(bytearray(b"x" * LEAK * len(sounds)))
        if "slow" in what:
            until = time.perf_counter() + SLOW * (time.perf_counter() - began)
            while time.perf_counter() < until:
                pass
        return answers

    def measured(self: Any) -> Any:
        if "tidy" in what:
            give_back()
        return measure(self)

    def introduce(self: Any) -> Any:
        gc.freeze()  # the million objects of NeMo stay; looking through them for each reading would take a second
        return introduced(self)

    recognizer.Recognizer.introduce = introduce  # type: ignore[method-assign]
    recognizer.Recognizer.recognize_together = recognize  # type: ignore[method-assign, assignment]
    recognizer.Recognizer.measure = measured  # type: ignore[method-assign]
    return recognizer.main()


def command(*what: str) -> tuple[str, ...]:
    """Return how a worker is started: as ever, or with what is done to it on purpose."""
    return (sys.executable, "-m", "tools.benchmark.player", "worker", *what) if what else engine.WORKER


def main(verb: str, *words: str) -> int:
    """Be the worker or the daemon; return the exit code."""
    if verb == "worker":
        return worker(*words)
    systemd.JOURNAL = ""  # these takes are not the user's
    hold = functools.partial(engine.Engine, command=command(*words))

    def listen(spec: str, microphone: str) -> Capture:
        return Player("tidy" in words)

    daemon.run = functools.partial(daemon.run, hold=hold, listen=listen)
    return cli.main([verb])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
