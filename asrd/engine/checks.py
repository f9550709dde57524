"""What is checked around the start of a worker: the model's file, room on the card, its limit, and
what only some models can do."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from asrd import protocol
from asrd.engine.process import WorkerFailedError
from asrd.precision import gpus, ledger, nvml
from asrd.precision.plan import Candidate, Plan
from asrd.precision.strategies import index_of
from asrd.text.sizes import mib

log = logging.getLogger("asrd.engine")

REFUSAL_SECONDS = 10.0
"""How long a model file that was refused counts as refused without another worker; a file that
changes does not."""


class ModelRefusals:
    """Remembers the model file that a worker refused, so that no other one is started for it at
    once."""

    def __init__(self) -> None:
        self._file: tuple[int, ...] = ()
        """What the file system says of the file that the last worker was started with."""
        self._refused: tuple[int, ...] = ()
        self._since = 0.0
        self._loss: WorkerFailedError | None = None

    def check(self, path: Path) -> None:
        """Note the file that a worker is to load. Raises WorkerFailedError where one has just
        refused it."""
        try:
            facts = path.stat()
            self._file = facts.st_mtime_ns, facts.st_size, facts.st_ino
        except OSError:
            self._file = ()
        if self._loss is None or not self._file or self._file != self._refused:
            return
        if asyncio.get_running_loop().time() - self._since < REFUSAL_SECONDS:
            raise self._loss

    def note(self, loss: WorkerFailedError) -> None:
        """Remember a worker's refusal of the file that was checked last."""
        # A refusal that `check` raised again is not a new one: its time would never be over.
        if loss.kind == "model" and self._file and loss is not self._loss:
            self._refused, self._loss = self._file, loss
            self._since = asyncio.get_running_loop().time()


@nvml.opened
def check_room(plan: Plan, candidate: Candidate) -> None:
    """Refuse a candidate whose card is gone or has too little memory free now.

    Raises WorkerFailedError: device-lost, no-room.
    """
    free = gpus.free_bytes(index_of(candidate.device))
    if free is None and (gone := gpus.lost_cards()):
        hint = "nvidia-smi; sudo dmesg | grep -i nvrm; a restart may bring it back"
        raise WorkerFailedError("device-lost", gone[0], hint)
    need = plan.need_of(candidate)
    if free is None or need is None or need.bytes <= free:
        return
    detail = f"would need {need}; {mib(free)} of the card are free"
    raise WorkerFailedError("no-room", detail, "nvidia-smi")


def check_limit(ready: protocol.Ready, limit: int) -> None:
    """Refuse a worker that holds more of the card than it may. Raises WorkerFailedError: budget.

    Args:
        limit: bytes; 0 is no limit.
    """
    memory = ready.ledger.get("ready")
    if not limit or ready.device == "cpu" or memory is None:
        return
    if memory.process is None or memory.process <= limit:
        return
    held = f"{mib(memory.process)} ({ledger.source_words(memory.source)})"
    detail = f"the worker holds {held}; vram_budget allows {mib(limit)}"
    if memory.source == "nvml":
        raise WorkerFailedError("budget", detail, "asrd plan lists what each strategy needs")
    log.warning("%s; other processes disturb that figure, so the worker stays", detail)


def log_idle_wishes(start: protocol.Start, family: str) -> None:
    """Log what was asked for and only Canary can do."""
    if family == "aed":
        return
    wishes: list[str] = []
    if start.source_lang != start.target_lang:
        wishes.append("translation")
    if start.pnc is not None:
        wishes.append("pnc")
    if wishes:
        log.warning(
            "only Canary knows %s; this %s model writes what it was trained to",
            " and ".join(wishes),
            family,
        )
