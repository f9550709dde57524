"""What the daemon remembers of the candidates that it left: who is notified, and when each may return.

The figures go to `fallback_triggers`, which judges them. Each step is written to the journal and
shown to a person once. The status says when another candidate runs than the settings ask for.
Nothing is started here. Runs in the daemon.
"""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from asrd import journal, protocol
from asrd.config.amounts import budget
from asrd.config.settings import Settings
from asrd.dictation import fallback_triggers, metrics
from asrd.dictation.fallback_triggers import Trigger
from asrd.engine import baseline
from asrd.engine.baseline import BaselineFigures
from asrd.engine.engine import Engine
from asrd.errors import AsrdError
from asrd.precision import fallback, gpus
from asrd.precision.memory import Memory
from asrd.precision.plan import Candidate, Plan, Rejected
from asrd.precision.strategies import FP32_BASELINE, index_of
from asrd.text.wording import with_hint

FAILURE_WINDOW_BUFFERS = 500
"""Buffers after which failures are counted anew: old failures say little of today."""

Warn = Callable[[str, str], None]
"""Shows a person a summary and a sentence."""


class FallbackMonitor:
    """Remembers figures and steps of the engine in service.

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
        recent = 4 * fallback_triggers.RECENT_BUFFERS
        self._costs: collections.deque[tuple[str, float, float]] = collections.deque(maxlen=recent)
        self._buffers, self._failures_before = 0, engine.failures
        self._without_help: set[tuple[str, str]] = set()

    def apply_settings(self, settings: Settings) -> None:
        """Use the limits of changed settings; what is remembered stays."""
        self.settings = settings
        self.backoff.minutes = settings.promote_after
        if self._serving != self.wanted:
            self.backoff.wait_from(time.monotonic())

    def note_answer(self, seconds: float, phase: str, answer: protocol.Answer) -> None:
        """Count an answer of the worker."""
        self._buffers += 1
        if phase == "final":
            self._costs.append((answer.hypothesis.precision, seconds, answer.seconds))

    def judge(
        self, engine: Engine, memory: Memory | None, shadow: dict[str, Any]
    ) -> Trigger | None:
        """Return why the candidate in service is to be left, by its figures since it took over.

        Args:
            memory: the last reading of the worker's ledger.
            shadow: the disagreement with FP32 (`shadow.Shadow.figures`).
        """
        candidate, limits = engine.candidate, self.settings
        fp32 = _fp32_figures(limits.model, candidate)
        precision = candidate.precision.name
        costs = [(seconds, spent) for name, seconds, spent in self._costs if name == precision]
        failures, buffers = engine.failures - self._failures_before, self._buffers
        if buffers > FAILURE_WINDOW_BUFFERS:
            self._buffers, self._failures_before = 0, engine.failures
        budget_bytes = _budget(limits, candidate.device)
        found = (
            fallback_triggers.judge_failures(failures, buffers, limits.demote_failures)
            or fallback_triggers.judge_memory(memory, fp32, limits.demote_memory, budget_bytes)
            or fallback_triggers.judge_latency(costs, fp32, limits.demote_slower)
        )
        if found is None and shadow.get("strategy") == precision:
            found = fallback_triggers.judge_words(
                shadow["changed"], shadow["words"], shadow["low"], limits.demote_changed
            )
        if found is None or (candidate.name, found.kind) in self._without_help:
            return None
        return found

    def report_no_help(self, engine: Engine, trigger: Trigger) -> None:
        """Log once that the candidate stays, as no other one would help."""
        name = engine.candidate.name
        self._without_help.add((name, trigger.kind))
        journal.event(
            "rejected",
            f"{name} stays in use, as no other precision would help: {trigger.detail}",
            logging.WARNING,
            strategy=name,
            kind=trigger.kind,
            **trigger.figures,
        )

    def report_changes(self, engine: Engine) -> None:
        """Report the candidate that the engine has left since the last call, or returned to."""
        fresh, before = log_rejected(engine), self._serving
        if not engine.candidates or engine.candidate.name == before:
            return
        cause = _rejection(before, fresh) or _rejection(before, engine.rejected)
        if cause is None:
            # It was not left: a better one may be tried again since the model was unloaded.
            if engine.ready is not None:
                self._note_restored(engine)
                if engine.candidate.name == self.wanted:
                    self.backoff.note_retry(time.monotonic(), held=True)
            return
        self._serving = engine.candidate.name
        self._buffers, self._failures_before = 0, engine.failures
        if fallback.retry_plan(engine.plan, engine.left, engine.candidates, engine.rejected):
            self.backoff.note_failure(time.monotonic())
        to, effective = engine.candidate.name, None
        if engine.ready is not None:
            effective = metrics.dtypes(engine.ready)
        message = f"fell back from {before} to {to}: {cause.detail}"
        journal.event(
            "demoted",
            message,
            logging.WARNING,
            strategy=to,
            before=before,
            wanted=self.wanted,
            kind=cause.kind,
            effective=effective,
            **cause.figures,
        )
        self._warn("Another precision", message)

    def report_restored(self, engine: Engine) -> None:
        """Report that a better candidate is in service again, in an engine of its own."""
        log_rejected(engine)
        self._note_restored(engine)

    def _note_restored(self, engine: Engine) -> None:
        before, self._serving = self._serving, engine.candidate.name
        self._buffers, self._failures_before = 0, engine.failures
        self._costs.clear()  # its costs before it was left say nothing of today
        to = engine.candidate.name
        journal.event(
            "promoted", f"{to} is tried again in place of {before}", strategy=to, before=before
        )

    def fallback(self, engine: Engine) -> dict[str, Any] | None:
        """Return the candidate that was asked for, why it does not run and when it is tried again;
        None where it runs."""
        if not engine.candidates or engine.candidate.name == self.wanted:
            return None
        found: dict[str, Any] = {"wanted": self.wanted, "kind": "", "detail": "", "again_in": None}
        if engine.rejected:
            rejected = _rejection(self.wanted, engine.rejected) or engine.rejected[-1]
            found |= {"kind": rejected.kind, "detail": rejected.detail}
        left = self.backoff.seconds_left(time.monotonic())
        if left is not None:
            found["again_in"] = round(left)
        return found


def wanted(plan: Plan) -> str:
    """Return the candidate that was asked for; the plan may have left it out because of the hardware
    or the budget."""
    if plan.rejected and plan.rejected[0].candidate == plan.requested:
        return plan.requested
    return plan.candidates[0].name


def log_rejected(engine: Engine) -> list[Rejected]:
    """Log and return the candidates that were rejected since the last call."""
    fresh = engine.take_unreported()
    for one in fresh:
        message = f"{one.candidate} is not used: {with_hint(one.detail, one.hint)}"
        fields = {"strategy": one.candidate, "kind": one.kind, **one.figures}
        journal.event("rejected", message, logging.WARNING, **fields)
    return fresh


def _rejection(candidate: str, among: Iterable[Rejected]) -> Rejected | None:
    """Return the first rejection of a candidate."""
    for rejected in among:
        if rejected.candidate == candidate:
            return rejected
    return None


def _fp32_figures(model: str, candidate: Candidate) -> BaselineFigures | None:
    """Return what `asrd compare` measured of FP32 on this device; None for FP32 itself, and where
    nothing was measured."""
    if fallback.is_full_fp32(candidate.precision):
        return None
    measured = baseline.find(model, candidate.device)
    if measured is None:
        return None
    return measured.strategies.get(FP32_BASELINE.name)


def _budget(settings: Settings, device: str) -> int | None:
    """Return the limit on a card's memory in bytes; None without one, and on the CPU."""
    if not settings.vram_budget or device == "cpu":
        return None
    try:
        total = 0
        if settings.vram_budget.strip().endswith("%"):
            total = _card_bytes(index_of(device))
        return budget(settings.vram_budget, total) or None
    except AsrdError:
        return None


def _card_bytes(index: int) -> int:
    """Return the memory of a card in bytes; 0 where it is not there."""
    for card in gpus.gpus():
        if card.index == index:
            return card.total
    return 0
