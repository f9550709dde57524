"""What each strategy would need on a card: exact, estimated and measured figures, apart by name
(pure but for `measured`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from asrd.config.settings import Settings
from asrd.engine import baseline
from asrd.engine.baseline import BaselineFigures
from asrd.models.checkpoint import Header
from asrd.models.memory_estimate import CONTEXT, needs
from asrd.precision.plan import Gpu, obstacle
from asrd.precision.strategies import STRATEGY_TABLE, Precision

NOT_MEASURED = BaselineFigures(None, "", None, None, None)


class StrategyEstimate(msgspec.Struct, frozen=True):
    """What one strategy would need. Bytes; `weights` is exact where a file was read, `measured` was
    measured here."""

    strategy: str
    weights: int
    ratio: float
    """Of FP32's weights."""
    load_peak: int
    activations: int
    process: int
    """Estimated: weights, activations, and `context` of the report."""
    measured: int | None
    """What `asrd compare` saw the process hold on this card; None where it did not."""
    source: str
    """The instrument of `measured`: nvml, or meminfo, which other processes disturb; empty without
    one."""
    obstacle: str
    """Why this card cannot run it; empty when it can, or where there is no card."""
    headroom: int | None
    """Bytes left under the limit, measured where that is known; below zero where it does not fit;
    None on the CPU."""

    @property
    def need(self) -> int:
        """Bytes that a plan reckons with: measured where there is such a figure, else estimated."""
        if self.measured is None:
            return self.process
        return self.measured


def measured(settings: Settings, card: Gpu | None) -> dict[str, BaselineFigures]:
    """Return what `asrd compare` measured of this model on this card, by strategy; empty where it
    did not.

    The second model of newer Canary files was not part of that.
    """
    if card is None or settings.timestamps_model:
        return {}
    found = baseline.find(settings.model, "cuda")
    if found is None or found.card not in ("", card.name):
        return {}
    figures: dict[str, BaselineFigures] = {}
    for name, one in found.strategies.items():
        if one.process is not None and one.source != "rss":
            figures[name] = one
    return figures


def context_bytes(header: Header, settings: Settings, before: Mapping[str, BaselineFigures]) -> int:
    """Return what CUDA and its libraries take on this card: the most that a measured process held
    beside its model."""
    beside: list[int] = []
    for name, one in before.items():
        if name in STRATEGY_TABLE:
            model = needs(header, STRATEGY_TABLE[name], settings.window).process
            beside.append((one.process or 0) - model + CONTEXT)
    if not beside:
        return CONTEXT
    return max(0, *beside)


def estimates(
    header: Header,
    strategies: Iterable[Precision],
    settings: Settings,
    card: Gpu | None,
    limit: int | None,
    before: Mapping[str, BaselineFigures],
) -> list[StrategyEstimate]:
    """Return what each strategy needs.

    Args:
        card: the card it would run on; None for the CPU.
        limit: bytes that the worker may use there.
        before: what was measured of the model on that card, by strategy.
    """
    context = context_bytes(header, settings, before)
    return [_estimate(header, one, settings, card, limit, before, context) for one in strategies]


def _estimate(
    header: Header,
    precision: Precision,
    settings: Settings,
    card: Gpu | None,
    limit: int | None,
    before: Mapping[str, BaselineFigures],
    context: int,
) -> StrategyEstimate:
    hidden = settings.timestamps_model
    estimate = needs(header, precision, settings.window, hidden)
    whole = needs(header, STRATEGY_TABLE["fp32"], settings.window, hidden).weights
    figures = NOT_MEASURED
    # A map of the user's own was not measured under the shipped one's name.
    if precision == STRATEGY_TABLE.get(precision.name):
        figures = before.get(precision.name, NOT_MEASURED)
    made = StrategyEstimate(
        strategy=precision.name,
        weights=estimate.weights,
        ratio=round(estimate.weights / whole, 4),
        load_peak=estimate.load_peak,
        activations=estimate.activations,
        process=estimate.process - CONTEXT + context,
        measured=figures.process,
        source=figures.source,
        obstacle=obstacle(precision, card) if card else "",
        headroom=None,
    )
    if limit is None:
        return made
    return msgspec.structs.replace(made, headroom=limit - made.need)
