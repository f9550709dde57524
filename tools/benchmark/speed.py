"""asrd's engine beside everything else that runs the same model: what it adds, how it shares, what
it weighs.

R1, R3, R4 and R7 are measured here, on `asrd.engine.Engine` as the daemon uses it.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from asrd import protocol
from asrd.audio.format import SAMPLE_RATE
from asrd.config.settings import Settings
from asrd.engine.engine import Engine
from asrd.engine.planner import plan_for, start_for
from asrd.evaluation.manifest import Clip
from asrd.evaluation.rows import load_peak_ratio

from . import player
from .figures import Block, Run
from .processes import ROOT, Host, cpu_seconds, environment
from .ratios import Crowd
from .service import save

T = TypeVar("T")

WARM = 2
"""Runs of each contender on each clip before anything counts."""

CALLERS = 8

SIDE = 384
"""Of the canary's square matrices."""

LARGE = "large.nemo"


class Ours:
    """asrd's engine on a loop of its own, asked as the daemon asks it.

    Args:
        model: a shipped name, or a .nemo file.
        threads: that it may take, as every contender; how many it does is its own choice, as it is
            for a user.
        strategy: its precision.
        what: is done to its worker on purpose: leak, slow, tidy.
        self_test: leave out where the model was never trained.
    """

    def __init__(
        self, model: str, threads: int, *what: str, strategy: str = "fp32", self_test: bool = True
    ) -> None:
        import msgspec

        settings = Settings(model=model, strategy=strategy, device="cpu", threads=0)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        start = msgspec.structs.replace(start_for(settings), self_test=self_test)
        self._runner = asyncio.Runner()
        self.engine = Engine(plan_for(settings), start, command=player.command(*what))
        self.ready: protocol.Ready = self._runner.run(self.engine.start())

    def run(self, samples: Any) -> Run:
        """Have it hear one sound; the time is that of the awaiting coroutine."""
        return self._runner.run(self._heard(samples))

    def wait(self, act: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the engine's loop."""
        return self._runner.run(act)

    async def _heard(self, samples: Any) -> Run:
        pids = (os.getpid(), self.engine.pid or 0)
        cpu, wall = cpu_seconds(pids), time.perf_counter()
        answer = await self.engine.transcribe(samples)
        seconds = time.perf_counter() - wall
        decoding = answer.seconds - answer.encoder_seconds
        parts = {
            "encoder": answer.encoder_seconds,
            "decoder": decoding,
            "between": seconds - answer.seconds,
        }
        return Run(seconds, cpu_seconds(pids) - cpu, answer.hypothesis.text, parts)

    def shares(
        self, sounds: Sequence[Any], callers: int, seconds: float
    ) -> tuple[float, list[float]]:
        """Have so many callers ask for so long; return what all took in seconds, and each one's
        audio seconds."""
        return self._runner.run(self._shared(sounds, callers, seconds))

    async def _shared(
        self, sounds: Sequence[Any], callers: int, seconds: float
    ) -> tuple[float, list[float]]:
        heard = [0.0] * callers
        began = time.perf_counter()

        async def call(number: int) -> None:
            turn = number
            while time.perf_counter() - began < seconds:
                sound = sounds[turn % len(sounds)]
                await self.engine.transcribe(sound)
                heard[number] += len(sound) / SAMPLE_RATE
                turn += 1

        await asyncio.gather(*(call(number) for number in range(callers)))
        return time.perf_counter() - began, heard

    def close(self) -> None:
        """End its worker."""
        self._runner.run(self.engine.stop())
        self._runner.close()


# -- R1
# ---------------------------------------------------------------------------------------------------------------


def _asked_of(host: Host, name: str, files: Mapping[str, Path]) -> Callable[[str], Run]:
    """Return what has one contender of a host recognise a clip."""
    return lambda clip: host.run(name, files[clip])


def blocks(
    ours: Ours,
    hosts: Sequence[Host],
    clips: Mapping[str, Clip],
    folder: Path,
    count: int,
    tell: Callable[[int], None],
) -> list[Block]:
    """Return so many blocks: every contender hears every clip once, in an order drawn anew for each
    block."""
    files = {name: save(folder, name, clip.samples) for name, clip in clips.items()}
    asked: dict[str, Callable[[str], Run]] = {"G": lambda clip: ours.run(clips[clip].samples)}
    for host in hosts:
        for who in host.contenders:
            asked[who] = _asked_of(host, who, files)
    dice = random.Random(0)
    for who in list(asked) * WARM:
        for clip in clips:
            asked[who](clip)
    canary()
    found, before = [], canary()
    for number in range(count):
        runs: dict[str, dict[str, Run]] = {who: {} for who in asked}
        turns = [(who, clip) for who in asked for clip in clips]
        dice.shuffle(turns)
        for who, clip in turns:
            runs[who][clip] = asked[who](clip)
        after = canary()
        found.append(Block((before, after), runs))
        before = after
        tell(number + 1)
    return found


def canary() -> float:
    """Return the seconds of a fixed matrix product: whether the machine is as fast as before."""
    one = np.linspace(-1, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    times = []
    for _ in range(7):
        began = time.perf_counter()
        for _ in range(8):
            one @ one
        times.append(time.perf_counter() - began)
    return float(np.median(times))


# -- R7
# ---------------------------------------------------------------------------------------------------------------


def crowds(
    ours: Ours,
    clips: Sequence[Clip],
    count: int,
    seconds: float,
    nemo: Callable[[], float] | None = None,
) -> list[Crowd]:
    """Ask so many times with one caller and with eight, which of them first drawn anew, each for so
    long.

    And each time NeMo, which returns its audio seconds a second.
    """
    sounds, dice, found = [clip.samples for clip in clips], random.Random(0), []
    for number in range(count):
        before = nemo() if nemo is not None and number % 2 else None
        rates: dict[int, tuple[float, list[float]]] = {}
        for callers in dice.sample([1, CALLERS], 2):
            spent, heard = ours.shares(sounds, callers, seconds)
            rates[callers] = sum(heard) / spent, heard
        theirs = before if nemo is None or before is not None else nemo()
        found.append(Crowd(rates[1][0], rates[CALLERS][0], tuple(rates[CALLERS][1]), theirs))
    return found


def best_of_many(
    host: Host, clips: Sequence[Clip], folder: Path
) -> tuple[str, Callable[[], float]]:
    """Return the way in which NeMo hears many clips fastest, and what has it do so: audio seconds a
    second."""
    file = folder / "many.npz"
    np.savez(file, *[clip.samples for clip in clips])
    length = sum(len(clip.samples) for clip in clips) / SAMPLE_RATE
    for _ in range(WARM - 1):
        for way in host.contenders:
            host.run(way, file)
    best = min(host.contenders, key=lambda way: host.run(way, file).seconds)
    return best, lambda: length / host.run(best, file).seconds


# -- R3 and R4
# --------------------------------------------------------------------------------------------------------


def sizes(model: str, threads: int, self_test: bool = True) -> tuple[int, int, float | None]:
    """Return the bytes of a model's weights under half and under fp32, and the load peak over them
    under fp32."""
    found = []
    for strategy in ("half", "fp32"):
        ours = Ours(model, threads, strategy=strategy, self_test=self_test)
        found.append(ours.ready)
        ours.close()
    return found[0].weights_bytes, found[1].weights_bytes, load_peak_ratio(found[1])


def large(folder: Path) -> Path:
    """Make a checkpoint of the usual size with random weights, in a process of its own; return the
    file."""
    program = "from tools.benchmark.contenders import grow; import sys; grow(sys.argv[1])"
    file = folder / LARGE
    command = [sys.executable, "-c", program, str(file)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(1), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"asrd: cannot make {file}: {done.stderr[-800:]}")
    return file
