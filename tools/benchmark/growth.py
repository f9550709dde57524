"""P7: what a worker gains over utterances that each have another length, under every precision,
nothing given back.

    python -m tools.benchmark.growth [--model demo] [--strategies a,b] [--utterances N] [--json
    FILE]

The real worker runs on the CPU. Its anonymous memory is read after each hundred utterances; free
memory stays where the allocator keeps it. Growth counts after the first two hundred. Exit code 3:
some strategy gains more than 1 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from asrd.audio.format import SAMPLE_RATE
from asrd.config.settings import Settings
from asrd.engine import engine, planner
from asrd.precision import kernel_facts, readings
from asrd.precision.plan import Candidate, Plan
from asrd.precision.strategies import STRATEGY_TABLE

from . import sounds

MIB = 1 << 20
SETTLED_UTTERANCES = 200
"""Utterances after which growth counts: by then each store of the libraries is full."""
GOAL_MIB = 1.0
EVERY_UTTERANCES = 100
SHORTEST_SAMPLES, LONGEST_SAMPLES = SAMPLE_RATE // 2, 10 * SAMPLE_RATE


class Growth(msgspec.Struct, frozen=True):
    """What one strategy's worker held on the way."""

    strategy: str
    ready_mib: float
    series: list[tuple[int, float]]
    """(utterances, anonymous MiB)."""
    cpu_ms: float
    """Processor time of an utterance, all threads."""

    @property
    def gained(self) -> float:
        """MiB gained after the first `SETTLED_UTTERANCES`; of a shorter run after its first
        reading."""
        settled = [held for count, held in self.series if count >= SETTLED_UTTERANCES] or [
            self.series[0][1]
        ]
        return self.series[-1][1] - settled[0]


async def measure(strategy: str, model: str, count: int, every: int = EVERY_UTTERANCES) -> Growth:
    """Return what the worker of a strategy holds after each `every` of `count` utterances, no two
    of one length."""
    chosen = STRATEGY_TABLE[strategy]
    sound = np.concatenate([clip.samples for clip in sounds.clips()])
    draw = random.Random(0)
    lengths = draw.sample(range(SHORTEST_SAMPLES, LONGEST_SAMPLES), count)
    plan, series, spent = (
        Plan(strategy, (Candidate(chosen, "cpu"),), "measured by itself"),
        list[tuple[int, float]](),
        0.0,
    )
    async with engine.Engine(plan, planner.start_for(Settings(model=model, device="cpu"))) as one:
        await one.start()
        ready = _anonymous_mib(one)
        for number, length in enumerate(lengths, 1):
            first = draw.randrange(len(sound) - length)
            phase = "partial" if "partial" in chosen.phases and number % 2 else "final"
            answer = await one.transcribe(sound[first : first + length], first, phase)
            spent += answer.cpu_seconds
            if number % every == 0 or number == count:
                series.append((number, _anonymous_mib(one)))
    return Growth(strategy, ready, series, round(1000 * spent / count, 2))


def _anonymous_mib(one: engine.Engine) -> float:
    return round((readings.resident_bytes(one.pid or 0) or 0) / MIB, 2)


def table(found: Sequence[Growth]) -> str:
    """Return one line a strategy: MiB when ready, after the first utterances, at the end, gained;
    CPU time."""
    lines = ["strategy        ready    200th     last   gained   CPU ms"]
    for one in found:
        settled, last = one.series[-1][1] - one.gained, one.series[-1][1]
        held = f"{one.ready_mib:8.1f} {settled:8.1f} {last:8.1f} {one.gained:+8.2f}"
        lines.append(f"{one.strategy:<13} {held} {one.cpu_ms:8.1f}")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 0 where every strategy meets the goal, else 3."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark.growth")
    parser.add_argument("--model", default="demo")
    parser.add_argument(
        "--strategies", default=",".join(name for name in STRATEGY_TABLE if name != "tf32")
    )
    parser.add_argument("--utterances", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(words)
    found = []
    for strategy in args.strategies.split(","):
        found.append(asyncio.run(measure(strategy, args.model, args.utterances)))
        print(found[-1].strategy, f"{found[-1].gained:+.2f} MiB", file=sys.stderr)
    print(table(found))
    if args.json:
        told: dict[str, Any] = {
            "model": args.model,
            "processor": kernel_facts.processor(),
            "utterances": args.utterances,
        }
        rows = [msgspec.to_builtins(one) | {"gained_mib": round(one.gained, 2)} for one in found]
        args.json.write_text(json.dumps(told | {"strategies": rows}, indent=1) + "\n")
    return 0 if all(one.gained <= GOAL_MIB for one in found) else 3


if __name__ == "__main__":
    sys.exit(main())
