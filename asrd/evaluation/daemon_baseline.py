"""What a comparison leaves for the daemon: the baseline that it shows its own figures beside."""

from __future__ import annotations

import logging

from asrd.engine import baseline, tuned
from asrd.errors import DiskError
from asrd.evaluation.results import Comparison, StrategyResult
from asrd.evaluation.runner import ComparisonSpec
from asrd.precision import ledger

log = logging.getLogger("asrd")


def keep_baseline(
    spec: ComparisonSpec, result: Comparison, replace: bool = False
) -> baseline.Baseline | None:
    """Keep a comparison as the daemon's baseline, unless the one that is kept covers more.

    Args:
        spec: what was compared.
        result: what the comparison found.
        replace: replace an earlier baseline even if it covers more.

    Returns: the baseline that stays instead; None where the new one is kept.
    """
    new = _baseline(spec, result)
    old = baseline.find(result.model, result.device)
    names = {row.strategy for row in result.rows}
    if old is not None and not replace and baseline.outweighs(old, new, names):
        return old
    try:
        baseline.keep(result.model, result.device, new)
    except DiskError as error:
        log.warning("%s", error.message)
    return None


def _baseline(spec: ComparisonSpec, result: Comparison) -> baseline.Baseline:
    """Return the figures of a comparison that the daemon needs."""
    strategies = {}
    for row in result.rows:
        figures = _figures(row)
        if row.role in ("baseline", "asked") and not row.failure and figures is not None:
            strategies[row.strategy] = figures
    card = ""
    if result.device != "cpu":
        card = result.device_name
    made = ""
    key = tuned.key_for(spec.settings, spec.gpu)
    if key is not None:
        made = f"{key.size} {key.modified} {key.driver} {key.torch} {key.asrd}"
    return baseline.Baseline(
        measured=result.started,
        strategies=strategies,
        card=card,
        made=made,
        utterances=len(spec.clips),
        repeats=spec.repeats,
    )


def _figures(row: StrategyResult) -> baseline.BaselineFigures | None:
    """Return a strategy's memory, latency and words; None where it never reached `steady`."""
    steady = row.ledger.get("steady")
    if steady is None:
        return None
    held = p50 = None
    if steady.process is not None:  # else the largest reading is of another instrument
        held = ledger.largest_bytes(row.ledger)
    if row.latency_ms is not None:
        p50 = row.latency_ms.p50
    return baseline.BaselineFigures(held, steady.source, p50, row.wer, row.wer_delta)
