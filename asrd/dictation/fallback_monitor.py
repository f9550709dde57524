"""A candidate was left: who is told, what is remembered, and when it may return.

Gathers the figures that `triggers` judges, tells the journal and a person once for each step, and
says for the status that less runs than was asked for. Decides nothing by itself and starts nothing.
Runs in the daemon.
"""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Callable
from typing import Any

from asrd import journal, protocol
from asrd.config.settings import Settings, budget
from asrd.dictation import fallback_triggers, metrics
from asrd.dictation.fallback_triggers import Trigger
from asrd.engine import baseline
from asrd.engine.engine import Engine
from asrd.errors import AsrdError
from asrd.precision import fallback, gpus
from asrd.precision.memory import Memory
from asrd.precision.plan import Plan, Rejected
from asrd.precision.strategies import FP32_BASELINE, index_of
from asrd.text.wording import with_hint

PERIOD = 500
"""Buffers after which failures are counted anew: what happened long ago says little of today."""

Warn = Callable[[str, str], None]
"""Shows a person a summary and a sentence."""


class FallbackMonitor:
    """What a daemon remembers of the engine in service.

    Args:
        settings: for the limits.
        engine: the one in service.
        warn: called once for each candidate that is left.
    """

    def __init__(self, settings: Settings, engine: Engine, warn: Warn) -> None:
        self.settings, self.wanted = settings, wanted(engine.plan)
        self._serving = engine.plan.candidates[0].name
        self.backoff = fallback.RetryBackoff(settings.promote_after)
        self.wordless_seconds = 0.0
        """Seconds of clear speech since the last word, in recordings that have ended."""
        self._warn = warn
        recent = 4 * fallback_triggers.RECENT
        self._costs: collections.deque[tuple[str, float, float]] = collections.deque(maxlen=recent)
        self._buffers, self._forgiven = 0, engine.failures
        self._in_vain: set[tuple[str, str]] = set()

    def adopt(self, settings: Settings) -> None:
        """Take over limits that were changed; what is remembered stays."""
        self.settings = settings
        self.backoff.minutes = settings.promote_after
        if self._serving != self.wanted:
            self.backoff.wait_from(time.monotonic())

    def heard(self, seconds: float, phase: str, answer: protocol.Answer) -> None:
        """Take an answer into account."""
        self._buffers += 1
        if phase == "final":
            self._costs.append((answer.hypothesis.precision, seconds, answer.seconds))

    def judge(
        self, engine: Engine, memory: Memory | None, shadow: dict[str, Any]
    ) -> Trigger | None:
        """Return why the candidate in service is to be left, by what is known since it took over.

        Args:
            memory: the last reading of the worker's ledger.
            shadow: the disagreement with FP32 (`shadow.Shadow.figures`).
        """
        candidate, limits = engine.candidate, self.settings
        known = (
            baseline.find(limits.model, candidate.device)
            if not fallback.is_full_fp32(candidate.precision)
            else None
        )
        fp32 = known.strategies.get(FP32_BASELINE.name) if known else None
        costs = [
            (seconds, spent)
            for name, seconds, spent in self._costs
            if name == candidate.precision.name
        ]
        failures, buffers = engine.failures - self._forgiven, self._buffers
        if buffers > PERIOD:
            self._buffers, self._forgiven = 0, engine.failures
        found = (
            fallback_triggers.failing(failures, buffers, limits.demote_failures)
            or fallback_triggers.heavy(
                memory, fp32, limits.demote_memory, _budget(limits, candidate.device)
            )
            or fallback_triggers.slow(costs, fp32, limits.demote_slower)
        )
        if found is None and shadow.get("strategy") == candidate.precision.name:
            found = fallback_triggers.changing(
                shadow["changed"], shadow["words"], shadow["low"], limits.demote_changed
            )
        return None if found is None or (candidate.name, found.kind) in self._in_vain else found

    def in_vain(self, engine: Engine, verdict: Trigger) -> None:
        """No candidate would help; that is said once."""
        self._in_vain.add((engine.candidate.name, verdict.kind))
        journal.event(
            "rejected",
            f"{engine.candidate.name} stays in use, as no other precision would help: {verdict.detail}",
            logging.WARNING,
            strategy=engine.candidate.name,
            kind=verdict.kind,
            **verdict.figures,
        )

    def tell(self, engine: Engine) -> None:
        """Tell what the engine in service has left since this was asked last, or come back to."""
        fresh, before = log_rejected(engine), self._serving
        if not engine.candidates or engine.candidate.name == before:
            return
        cause = next((one for one in (*fresh, *engine.rejected) if one.candidate == before), None)
        if (
            cause is None
        ):  # it was not left: a better one may be tried again since the model was parked
            if engine.ready is not None:
                self._come_back(engine)
                if engine.candidate.name == self.wanted:
                    self.backoff.note_retry(time.monotonic(), held=True)
            return
        self._serving = engine.candidate.name
        self._buffers, self._forgiven = 0, engine.failures
        if fallback.retry_plan(engine.plan, engine.left, engine.candidates, engine.rejected):
            self.backoff.note_failure(time.monotonic())
        to = engine.candidate.name
        said = f"fell back from {before} to {to}: {cause.detail}"
        journal.event(
            "demoted",
            said,
            logging.WARNING,
            strategy=to,
            before=before,
            wanted=self.wanted,
            kind=cause.kind,
            effective=metrics.dtypes(engine.ready) if engine.ready else None,
            **cause.figures,
        )
        self._warn("Another precision", said)

    def promoted(self, engine: Engine) -> None:
        """A better candidate is in service again, in an engine of its own."""
        log_rejected(engine)
        self._come_back(engine)

    def _come_back(self, engine: Engine) -> None:
        before, self._serving = self._serving, engine.candidate.name
        self._buffers, self._forgiven = 0, engine.failures
        self._costs.clear()  # what it cost before it was left says nothing of today
        to = engine.candidate.name
        journal.event(
            "promoted", f"{to} is tried again in place of {before}", strategy=to, before=before
        )

    def below(self, engine: Engine) -> dict[str, Any] | None:
        """Return what was asked for, why it does not run and when it is tried again; None where it
        runs."""
        if not engine.candidates or engine.candidate.name == self.wanted:
            return None
        rejected: list[Rejected] = [
            one for one in engine.rejected if one.candidate == self.wanted
        ] or engine.rejected[-1:]
        left = self.backoff.seconds_left(time.monotonic())
        return {
            "wanted": self.wanted,
            "kind": rejected[0].kind if rejected else "",
            "detail": rejected[0].detail if rejected else "",
            "again_in": None if left is None else round(left),
        }


def wanted(plan: Plan) -> str:
    """Return the candidate that was asked for, which the plan may have left out for the hardware's
    sake or the budget's."""
    refused = plan.rejected and plan.rejected[0].candidate == plan.requested
    return plan.requested if refused else plan.candidates[0].name


def log_rejected(engine: Engine) -> list[Rejected]:
    """Write down which candidates are out since this was asked last, and return them."""
    fresh = engine.take_unreported()
    for one in fresh:
        said = f"{one.candidate} is not used: {with_hint(one.detail, one.hint)}"
        journal.event(
            "rejected", said, logging.WARNING, strategy=one.candidate, kind=one.kind, **one.figures
        )
    return fresh


def _budget(settings: Settings, device: str) -> int | None:
    """Return the limit on a card's memory in bytes; None without one, and on the CPU."""
    if not settings.vram_budget or device == "cpu":
        return None
    try:
        index = index_of(device)
        cards = gpus.gpus() if settings.vram_budget.strip().endswith("%") else []
        total = next((card.total for card in cards if card.index == index), 0)
        return budget(settings.vram_budget, total) or None
    except AsrdError:
        return None
