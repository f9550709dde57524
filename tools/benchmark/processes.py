"""Processes from outside: what they have used, what they hold, and those of the bench itself."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from asrd.engine.process import WORKER_ENVIRONMENT

from .figures import Run

ROOT = Path(__file__).parents[2]


class Holding(NamedTuple):
    """What a process holds."""

    rss: int
    """Bytes, mapped files included."""
    fds: int
    threads: int


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the processor seconds of these processes with all their threads, to the nanosecond.

    Linux makes a clock for each process out of its number: see CPUCLOCK_SCHED in its
    posix-timers.h.
    """
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def holding(pid: int) -> Holding:
    """Return what a process holds now."""
    status = _status(Path(f"/proc/{pid}/status"))
    rss, threads = int(status["VmRSS"].split()[0]) * 1024, int(status["Threads"])
    return Holding(rss, len(os.listdir(f"/proc/{pid}/fd")), threads)


def switches(pids: Iterable[int]) -> int:
    """Return how often the threads of these processes have gone to sleep and been woken."""
    found = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
                found += int(_status(task / "status")["voluntary_ctxt_switches"])
    return found


def interruptions(pid: int) -> int:
    """Return how often the first thread of a process lost its processor to others."""
    return int(_status(Path(f"/proc/{pid}/status"))["nonvoluntary_ctxt_switches"])


def _status(path: Path) -> dict[str, str]:
    return {
        key: value.strip()
        for key, _, value in (line.partition(":") for line in path.read_text().splitlines())
    }


def children(pid: int) -> list[int]:
    """Return the children of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            after = path.read_text().rpartition(")")[2].split()
            if int(after[1]) == pid:
                found.append(int(path.parent.name))
    return found


def environment(threads: int, **more: str) -> dict[str, str]:
    """Return the environment that everything is measured in: asrd's own worker's, with so many
    threads."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("ASRD_")}
    return {
        **ours,
        **WORKER_ENVIRONMENT,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(ROOT),
        **more,
    }


class Host:
    """Contenders in a process of their own. Raises SystemExit with what it said where it does not
    come up.

    Args:
        kind: torch, onnx or many.
        folder: for the export, and for its log.
        model: a shipped name.
        threads: of every contender.
    """

    def __init__(self, kind: str, folder: Path, model: str, threads: int) -> None:
        self._log = folder / f"{kind}-{model}.log"
        command = [
            sys.executable,
            "-P",
            "-m",
            "tools.benchmark.contenders",
            kind,
            str(folder),
            model,
            str(threads),
        ]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(threads),
                stdin=-1,
                stdout=-1,
                stderr=log,
                text=True,
                bufsize=1,
            )
        told = self._answer()
        self.contenders: list[str] = told["contenders"]
        self.versions: dict[str, str] = told["versions"]

    def run(self, who: str, sound: Path) -> Run:
        """Have one contender hear one sound."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"who": who, "sound": str(sound)}) + "\n")
        found = self._answer()
        return Run(found["seconds"], found["cpu"], found["text"].strip())

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"asrd: a contender ended: {self._log.read_text()[-800:]}")
        return dict(json.loads(line))
