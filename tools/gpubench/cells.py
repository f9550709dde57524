"""What is measured, in which order, and what is kept of it: values only.

A cell is one fresh process: a model under a strategy, with or without CUDA graphs, or NeMo by
itself. Times are seconds, memory is bytes. Results are one JSON file; a cell that is in it is not
measured again on the same machine, but where the shipped model has become another file since.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from asrd.models.names import SHIPPED as FILES
from asrd.precision.memory import Memory
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.protocol import Fallback

from . import architectures

Kind = Literal["strategy", "eager", "words", "growth", "nemo", "naive"]
"""strategy: a worker, timed; eager: the same without CUDA graphs; words: what it makes of the
shipped clips; growth: its memory over many buffers; nemo: NeMo's own loading and decoding in FP32;
naive: NeMo's, cast by .half() on the card.
"""

UNTIMED = ("words", "growth")
"""Kinds that need not have the card for themselves."""

SHIPPED = ("demo", "demo-ctc", "demo-tdt")
LENGTHS = (10.0, 5.0, 1.0)
"""Seconds of the buffers that are timed."""

BATCHES = (1, 2, 4, 8, 16, 32)
CORE = ("fp32", "tf32", "bfloat16", "half", "int8")
"""Strategies that every architecture is measured under."""

EAGER = ("fp32", "bfloat16", "half", "int8")
"""Strategies that are also measured without CUDA graphs, and with several buffers at once."""

AGAIN = "fp32 again"
"""FP32 once more: what differs there is nobody's doing."""

GROWING = ("fp32", "bfloat16", "int8")


class Cell(NamedTuple):
    """One process."""

    model: str
    strategy: str
    kind: Kind = "strategy"

    @property
    def name(self) -> str:
        """What it is called in the results."""
        return f"{self.model} {self.strategy}" + (
            f" {self.kind}" if self.kind != "strategy" else ""
        )


class Times(msgspec.Struct):
    """What buffers of one length took, one value each."""

    seconds: list[float] = []
    """In the worker, from samples to words."""
    encoder: list[float] = []
    round_trip: list[float] = []
    """Seen from the asking process."""
    tokens: list[int] = []


class Found(msgspec.Struct):
    """What one cell showed."""

    cell: Cell
    failure: str = ""
    code: str = ""
    """Digest of the program that was measured."""
    checkpoint: str = ""
    """Digest of the shipped model's file; "" for random weights."""
    weights: int = 0
    parameters: int = 0
    effective: dict[str, str] = {}
    fallbacks: list[Fallback] = []
    graphs: dict[str, str] = {}
    """What was captured, and what was not and why."""
    ledger: dict[str, Memory] = {}
    load_peak: Memory = Memory()
    load_seconds: float = 0.0
    times: dict[str, Times] = {}
    """Length in seconds -> times of single buffers."""
    batches: dict[str, list[float]] = {}
    """Buffers of 10 s at once -> seconds of each call."""
    alike: dict[str, bool] = {}
    """Buffers at once -> whether the first of them was heard as it was alone."""
    mismatch: str = ""
    """Where the worker is not what its strategy says, as the engine would refuse it; "" where it
    is."""
    growth: list[tuple[int, Memory]] = []
    """After so many buffers of random length."""
    texts: list[str] = []
    """Of the shipped clips, on the shipped models."""
    headroom: float = 0.0
    """Largest |encoder output| over 65504."""
    peaks: dict[str, float] = {}
    """Component -> largest |activation| of any of its layers; inf or nan where one was not
    finite."""
    text: str = ""
    """Of the 10-s buffer."""


class Result(msgspec.Struct):
    """One machine's results: this is the JSON."""

    machine: dict[str, str]
    versions: dict[str, str]
    command: str
    started: str
    clips: list[str]
    """What was said in the shipped clips, in order."""
    seconds_of_speech: float
    cells: dict[str, Found] = {}

    @property
    def key(self) -> tuple[Any, ...]:
        """What has to be the same for results to stand in one file."""
        return tuple(sorted(self.machine.items())), tuple(sorted(self.versions.items()))


def cells(models: list[str], strategies: list[str] | None) -> list[Cell]:
    """Return what is to be measured, the most telling first.

    Args:
        models: short names, shipped or of `architectures`.
        strategies: names; None takes every strategy for the shipped models and the first two
            architectures, the CORE for the others.
    """
    first = list(architectures.NAMES)[:2]
    asked = {
        m: strategies or (list(STRATEGY_TABLE) if m in (*SHIPPED, *first) else list(CORE))
        for m in models
    }
    small, large = ([m for m in models if (m in SHIPPED) is shipped] for shipped in (True, False))
    head = [
        Cell(m, s, "words") for s in ("fp32", AGAIN) for m in small
    ]  # first, as the others build meanwhile
    head += [Cell(m, s, "words") for s in STRATEGY_TABLE for m in small if s in asked[m]]
    body = [Cell(m, s) for m in large[:2] for s in ("fp32", "bfloat16", "half") if s in asked[m]]
    body += [Cell(m, s, "eager") for m in large[:2] for s in EAGER if s in asked[m]]
    body += [Cell(m, "fp32", kind) for m in large[:2] for kind in ("nemo", "naive")]
    body += [Cell(m, s) for s in CORE for m in large if s in asked[m]]
    body += [Cell(m, "fp32", "nemo") for m in models]
    body += [Cell(m, s) for s in STRATEGY_TABLE for m in large if s in asked[m]]
    body += [Cell(m, AGAIN) for m in large[:2]]
    body += [Cell(m, "fp32", "naive") for m in large]
    body += [Cell(m, s) for m in small for s in ("fp32", "bfloat16") if s in asked[m]]
    head += [
        Cell(m, s, "growth") for m in (large[1:2] or models[:1]) for s in GROWING if s in asked[m]
    ]
    return list(dict.fromkeys([*head, *body]))


@cache
def digest(model: str) -> str:
    """Return the digest of a shipped model's file as it is now; "" for random weights."""
    return hashlib.sha256(FILES[model].read_bytes()).hexdigest()[:12] if model in SHIPPED else ""


def read(path: Path) -> Result | None:
    """Return earlier results; None where there are none."""
    return msgspec.json.decode(path.read_bytes(), type=Result) if path.exists() else None


def write(path: Path, result: Result) -> None:
    """Write results whole, or leave what was there."""
    beside = path.with_suffix(".new")
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    beside.replace(path)
