"""The real daemon, with a worker that holds no model and a microphone that plays speech.

    python -m tests.fakes.deaf_daemon VERB

The microphone speaks the shipped self-test clip over and over, in real time. While the file
FAKE_MICROPHONE_LOST is there, it delivers nothing and says so. FAKE_MICROPHONE_DB makes it so many
decibels louder, up to full scale. DIE_AT = "before:N", "torn:N" or "after:N" has the daemon kill
itself with SIGKILL around the Nth line that it writes of its deliveries; "removing:N" before the
Nth recording is removed. FAKE_TORCH = "12.8" is the CUDA that torch is then said to be built for.
FORGET_SHUTDOWN plants a fault: NVML stays open.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asrd.audio.blocks import AudioBlock
from asrd.audio.files import read
from asrd.audio.sources import AudioSource, open_source
from asrd.cli import main, run
from asrd.engine import engine
from asrd.paths import DATA_FOLDER
from asrd.precision import cuda_errors, nvml
from asrd.recordings.deliveries import Deliveries
from asrd.recordings.store import RecordingStore
from tests.fakes.worker import as_it_is

CLIP = DATA_FOLDER / "eval" / "0001.flac"
FIRST = 24_000
"""Sample of the clip at which it begins to speak."""
BLOCK = 320


class Microphone:
    """Speaks for ever, and can be unplugged."""

    def __init__(self) -> None:
        self.name = "fake microphone"
        self.problem = ""
        self.ended = False
        self.code = 0
        self._task: asyncio.Task[None] | None = None

    def open(
        self, on_block: Callable[[AudioBlock], None], on_change: Callable[[], None], *_: Any
    ) -> None:
        self._task = asyncio.create_task(self._speak(on_block, on_change))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _speak(
        self, on_block: Callable[[AudioBlock], None], on_change: Callable[[], None]
    ) -> None:
        now = asyncio.get_running_loop().time
        due, start = now(), 0
        for samples in pieces():
            problem = (
                "nothing comes"
                if os.path.exists(os.environ.get("FAKE_MICROPHONE_LOST", ""))
                else ""
            )
            if problem != self.problem:
                self.problem = problem
                on_change()
            if not problem:
                on_block(AudioBlock(start, samples))
                start += BLOCK
            due += BLOCK / 16_000
            await asyncio.sleep(max(0.0, due - now()))


def pieces() -> Iterator[np.ndarray]:
    """Yield the clip in blocks, for ever."""
    sound = np.concatenate([read(CLIP)[FIRST:], np.zeros(8_000, np.float32)])
    sound = np.pad(sound, (0, -len(sound) % BLOCK))
    sound = np.clip(
        sound * np.float32(10 ** (float(os.environ.get("FAKE_MICROPHONE_DB", "0")) / 20)), -1, 1
    )
    while True:
        yield from sound.reshape(-1, BLOCK)


def dying(when: str, count: int) -> None:
    """Have this process kill itself at a moment that is counted from 1."""
    write, remove, seen = Deliveries._write, RecordingStore.remove, iter(range(1, 1 << 30))

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def writing(record: Deliveries, path: Path, data: bytes) -> None:
        here = next(seen) == count
        if here and when == "before":
            die()
        write(record, path, data[: len(data) // 2] if here and when == "torn" else data)
        if here:
            die()

    def removing(spool: RecordingStore, name: str) -> None:
        if next(seen) == count:
            die()
        remove(spool, name)

    if when == "removing":
        RecordingStore.remove = removing  # type: ignore[method-assign]
    else:
        Deliveries._write = writing  # type: ignore[method-assign]


def listen(spec: str, microphone: str) -> AudioSource:
    return Microphone() if spec == "mic" else open_source(spec, microphone)


if __name__ == "__main__":
    if moment := os.environ.get("DIE_AT"):
        dying(moment.partition(":")[0], int(moment.partition(":")[2]))
    if cuda := os.environ.get("FAKE_TORCH"):
        cuda_errors.torch_build = lambda: cuda_errors.TorchBuild("2.13.0", cuda)
    if os.environ.get("FORGET_SHUTDOWN"):
        type(nvml.opened).__exit__ = lambda *_: None  # type: ignore[method-assign,assignment]  # the planted fault
    hold = functools.partial(
        engine.Engine, command=(sys.executable, "-m", "tests.fakes.worker"), download=as_it_is
    )
    run.run = functools.partial(run.run, hold=hold, listen=listen)
    sys.exit(main.main(sys.argv[1:]))
