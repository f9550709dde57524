"""Plans for cards and devices as tests name them."""

from __future__ import annotations

from collections.abc import Iterable

from asrd.precision.failures import FAILURE_ACTIONS
from asrd.precision.plan import Evidence, Gpu, Plan, device_for, plan
from asrd.precision.strategies import Precision


def plan_on(
    requested: str | Precision,
    device: str = "auto",
    gpus: Iterable[Gpu] = (),
    preset: str = "default",
    evidence: Evidence | None = None,
) -> Plan:
    """Return the plan for a request on the card that a device means."""
    why_cpu = "device = cpu" if device == "cpu" else "no GPU"
    return plan(requested, device_for(device, gpus), preset, evidence, why_cpu=why_cpu)


def kinds_that(follow: str) -> tuple[str, ...]:
    """Return the kinds after which such a candidate follows."""
    return tuple(kind for kind, action in FAILURE_ACTIONS.items() if action.follow == follow)
