"""Whether a second worker has room beside the one in service, and where: on the card, in its
budget, in main memory.

Reads NVML and the kernel; starts nothing. Runs in the daemon.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from asrd.config.amounts import budget
from asrd.config.settings import Settings
from asrd.engine import planner
from asrd.errors import AsrdError
from asrd.precision import gpus
from asrd.precision.plan import Gpu
from asrd.precision.strategies import FP32_BASELINE


def fits_beside(settings: Settings, used: int | None) -> bool:
    """Return whether what these settings choose fits beside the worker in service; True where
    there are no figures.

    Args:
        used: bytes that the one in service holds, which a budget counts; None where it is not known.
    """
    if settings.device == "cpu":
        return True
    cards = gpus.gpus()
    if not cards:
        return True
    try:
        report = planner.plan_report(settings, cards)
    except AsrdError:
        return False
    if report.card is None:
        return True
    if report.card.mode == "exclusive":
        return False  # the card allows one process, which is the worker in service
    estimate = report.estimate(report.chosen)
    need = estimate.need if estimate else 0
    return _fits(need, report.card, settings, used)


def place_beside(settings: Settings, used: int | None, crowded: bool) -> str | None:
    """Return where FP32 has room as well: on the card of the one in service, else on the CPU; None
    where nowhere.

    Args:
        used: as for `fits_beside`.
        crowded: not to try the card, nor to ask it.
    """
    try:
        if crowded:
            report = _without_card(settings)
        else:
            report = planner.plan_report(settings, gpus.gpus())
    except AsrdError:  # a model whose sizes are not known
        return "cpu"
    fp32 = report.estimate(FP32_BASELINE.name)
    assert fp32 is not None, "FP32 is in the table of strategies"
    need = fp32.process
    if report.card is not None and _fits(need, report.card, settings, used):
        return f"cuda:{report.card.index}"
    if need <= available():
        return "cpu"
    return None


def _without_card(settings: Settings) -> planner.PlanReport:
    """Return what each strategy needs on the CPU. Raises as `planner.plan_report`."""
    return planner.plan_report(msgspec.structs.replace(settings, device="cpu"), [])


def _fits(need: int, card: Gpu, settings: Settings, used: int | None) -> bool:
    limit = budget(settings.vram_budget, card.total)
    if need > card.free:
        return False
    if limit is None:
        return True
    return used is not None and used + need <= limit


def available() -> float:
    """Return the bytes of main memory that a program may still take; all there are where the kernel
    does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return float("inf")
