"""Whether a second worker has room beside the one in service, and where: on the card, in its
budget, in main memory.

Reads NVML and the kernel; starts nothing. Runs in the daemon.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from asrd.config.settings import Settings, budget
from asrd.engine import planner
from asrd.errors import AsrdError
from asrd.precision import gpus
from asrd.precision.plan import Gpu
from asrd.precision.strategies import FP32_BASELINE


def fits_beside(settings: Settings, used: int | None) -> bool:
    """Return whether what these settings choose fits beside the worker in service; True where
    nothing is known.

    Args:
        used: bytes that the one in service holds, which a budget counts; None where nothing tells.
    """
    if settings.device == "cpu":
        return True
    cards = gpus.gpus()
    if not cards:
        return True
    try:
        sight = planner.plan_report(settings, cards)
    except AsrdError:
        return False
    if sight.card is None:
        return True
    if sight.card.mode == "exclusive":
        return False  # the card takes one process, and the worker in service is it
    need = next((line.need for line in sight.strategies if line.strategy == sight.chosen), 0)
    return _fits(need, sight.card, settings, used)


def place_beside(settings: Settings, used: int | None, crowded: bool) -> str | None:
    """Return where FP32 has room as well: on the card of the one in service, else on the CPU; None
    where nowhere.

    Args:
        used: as for `fits_beside`.
        crowded: not to try the card, nor to ask it.
    """
    try:
        sight = _without_card(settings) if crowded else planner.plan_report(settings, gpus.gpus())
    except AsrdError:  # a model whose sizes nobody knows
        return "cpu"
    need = next(line.process for line in sight.strategies if line.strategy == FP32_BASELINE.name)
    if sight.card is not None and _fits(need, sight.card, settings, used):
        return f"cuda:{sight.card.index}"
    return "cpu" if need <= available() else None


def _without_card(settings: Settings) -> planner.PlanReport:
    """Return what each strategy needs on the CPU. Raises as `forecast.outlook`."""
    return planner.plan_report(msgspec.structs.replace(settings, device="cpu"), [])


def _fits(need: int, card: Gpu, settings: Settings, used: int | None) -> bool:
    limit = budget(settings.vram_budget, card.total)
    return need <= card.free and (limit is None or (used is not None and used + need <= limit))


def available() -> float:
    """Return the bytes of main memory that a program may still take; all there are where the kernel
    does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(
            1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")
        )
    except (OSError, StopIteration, ValueError):
        return float("inf")
