"""The real daemon, with a worker that holds no model and a microphone that plays speech.

    python -m tests.deaf_daemon VERB

The microphone speaks the shipped self-test clip over and over, in real time. While the file FAKE_MICROPHONE_LOST is
there, it delivers nothing and says so.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asrd import cli, daemon, engine
from asrd.audio import AudioBlock, read
from asrd.capture import Capture, capture

CLIP = Path(daemon.__file__).parent / "data" / "eval" / "0001.flac"
FIRST = 24_000
"""Sample of the clip at which it begins to speak."""
BLOCK = 320


class Microphone:
    """Speaks for ever, and can be unplugged."""

    def __init__(self) -> None:
        self.name = "fake microphone"
        self.problem = ""
        self.ended = False
        self._task: asyncio.Task[None] | None = None

    def open(self, on_block: Callable[[AudioBlock], None], on_change: Callable[[], None], *_: Any) -> None:
        self._task = asyncio.create_task(self._speak(on_block, on_change))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _speak(self, on_block: Callable[[AudioBlock], None], on_change: Callable[[], None]) -> None:
        now = asyncio.get_running_loop().time
        due, start = now(), 0
        for samples in pieces():
            problem = "nothing comes" if os.path.exists(os.environ.get("FAKE_MICROPHONE_LOST", "")) else ""
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
    while True:
        yield from sound.reshape(-1, BLOCK)


def listen(spec: str, microphone: str) -> Capture:
    return Microphone() if spec == "mic" else capture(spec, microphone)


if __name__ == "__main__":
    hold = functools.partial(engine.Engine, command=(sys.executable, "-m", "tests.fake_worker"))
    daemon.run = functools.partial(daemon.run, hold=hold, listen=listen)
    sys.exit(cli.main(sys.argv[1:]))
