"""The table and the JSON of a run."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import msgspec

import asrd

from .findings import Round, Row, spread

ROOT = Path(__file__).parents[2]

HEADINGS = (
    "moment",
    "rounds",
    "words",
    "lost",
    "doubled",
    "maybe",
    "left",
    "orphans",
    "locks",
    "odd",
)
WIDTHS = (18, 6, 6, 5, 7, 5, 4, 7, 5, 3)


class Part(msgspec.Struct):
    """One part of a run."""

    name: str
    rows: list[Row]
    planted: list[str]
    """Faults that were planted first, and that the instruments reported exactly."""
    seconds: float
    rounds: list[Round]
    """Those in which something was found; the others are in the rows."""


class Report(msgspec.Struct):
    """One run as its JSON has it."""

    made: str
    commit: str
    seed: int
    quick: bool
    asked: str
    """The command's arguments."""
    machine: dict[str, str]
    versions: dict[str, str]
    parts: list[Part]

    @property
    def clean(self) -> bool:
        """Whether nothing was found in any part."""
        return all(row.clean for part in self.parts for row in part.rows)


def report(seed: int, quick: bool, asked: str, parts: list[Part]) -> Report:
    """Return a run with what it was made on."""
    cpu = next(
        (line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    machine = {
        "cpu": cpu.partition(":")[2].strip() or cpu,
        "cores": str(len(os.sched_getaffinity(0))),
    }
    machine |= {
        "system": f"{platform.system()} {platform.release()}",
        "load": f"{os.getloadavg()[0]:.1f}",
    }
    versions = {"asrd": asrd.__version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in ("torch", "nemo-toolkit", "numpy")}
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Report(made, _commit(), seed, quick, asked, machine, versions, parts)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _commit() -> str:
    """Return the commit that the code is at, with a plus where files are other than in it; ""
    outside a checkout."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=7"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def whole(told: Report) -> str:
    """Return the tables of a run, and what it was made on."""
    machine = f"{told.machine['cpu']}, {told.machine['cores']} cores, load {told.machine['load']} at the end"
    versions = ", ".join(f"{name} {version}" for name, version in told.versions.items())
    foot = f"{machine}; git {told.commit}, seed {told.seed}; {versions}"
    return "\n\n".join([*(table(part) for part in told.parts), foot])


def table(part: Part) -> str:
    """Return the rows of a part as text of at most 100 columns."""
    lines = [_line([*HEADINGS, "sound lost p50/p99/max, s"])]
    lines.append("─" * len(lines[0]))
    lines += [
        _line([*map(str, _cells(row)), _sound(row.sound_lost)])
        for row in [*part.rows, total(part.rows)]
    ]
    return "\n".join(
        [f"{part.name}: {len(part.planted)} planted faults found; {part.seconds:.0f} s", *lines]
    )


def total(table: Iterable[Row]) -> Row:
    """Return all rows as one."""
    whole = Row("all")
    for row in table:
        for name in (
            "words",
            "lost",
            "doubled",
            "maybe",
            "left",
            "orphans",
            "locks",
            "remarks",
            "rounds",
        ):
            setattr(whole, name, getattr(whole, name) + getattr(row, name))
        whole.sound_lost += row.sound_lost
    return whole


def _cells(row: Row) -> tuple[str | int, ...]:
    words = (row.words, row.lost, row.doubled, row.maybe)
    return (row.moment, row.rounds, *words, row.left, row.orphans, row.locks, row.remarks)


def _line(cells: list[str]) -> str:
    first, *others, sound = cells
    figures = [cell.rjust(width) for cell, width in zip(others, WIDTHS[1:], strict=True)]
    return "  ".join([first.ljust(WIDTHS[0]), *figures, sound]).rstrip()


def _sound(seconds: list[float]) -> str:
    found = spread(seconds)
    if found is None:
        return ""
    return "{:.3f} / {:.3f} / {:.3f}".format(*found) + f" of {len(seconds)}"
