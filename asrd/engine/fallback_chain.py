"""The candidates of one engine: the one in service, those behind it, those that were left, and why.

Pure: takes failures, returns candidates; starts no worker and reads no clock.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from asrd.engine.process import WorkerFailedError
from asrd.errors import AsrdError, AudioError, EngineError, UnansweredError
from asrd.precision import fallback
from asrd.precision.failures import action_of
from asrd.precision.plan import Candidate, Plan, Rejected, names_of, with_names, without

GRAPHS_NAME = "CUDA graphs"
"""What is left before the candidate of a card's worker."""


class Trial:
    """One request on its way along a chain: the chain as it was before it, and what failed at it.

    Args:
        chain: the chain before the request was asked.
    """

    def __init__(self, chain: FallbackChain) -> None:
        self.graphs = chain.graphs
        self.candidates = list(chain.candidates)
        self.left = list(chain.left)
        self.rejected = list(chain.rejected)
        self.retried: set[str] = set()
        """Names of candidates that were started once more for this request."""
        self.failed: list[Candidate] = []
        """Candidates that had passed their self-test and failed at it."""

    @property
    def inherent(self) -> bool:
        """Whether FP32 failed as well, so that no precision is to blame."""
        return any(fallback.is_full_fp32(one.precision) for one in self.failed)


class FallbackChain:
    """Candidates in the order to try. They only shrink until `restore_passing`.

    Args:
        plan: the candidates, and what each needs.
        graphs: whether a card's worker may replay CUDA graphs.
    """

    def __init__(self, plan: Plan, graphs: bool = True) -> None:
        self.plan = plan
        self.graphs = graphs
        self.candidates: list[Candidate] = list(plan.candidates)
        """The candidate in service and those behind it."""
        self.left: list[Candidate] = []
        """Candidates that were left for the next, in order."""
        self.rejected: list[Rejected] = list(plan.rejected)
        """Every candidate that was not tried or that failed, and why."""
        self._unreported: list[Rejected] = []

    @property
    def candidate(self) -> Candidate:
        """The candidate in service, or the next to be tried. Raises EngineError when none is
        left."""
        if not self.candidates:
            raise self._exhausted()
        return self.candidates[0]

    def settle(self, loss: WorkerFailedError, trial: Trial, *, started: bool, proved: bool) -> None:
        """Decide what follows a failure: the same candidate once more, without CUDA graphs, or the
        next.

        Args:
            started: whether there was a worker at all.
            proved: whether the worker had passed its self-test and failed at the request.
        """
        candidate, action = self.candidate, action_of(loss.kind)
        replays = self.graphs and candidate.device != "cpu"
        if started and action.without_graphs and replays:
            # The graphs may be what lost the worker, and are the smaller loss.
            self._leave_graphs(loss)
            return
        if action.retry and candidate.name not in trial.retried:
            trial.retried.add(candidate.name)
            return
        self.fall_back(loss.kind, loss.detail, loss.component, hint=loss.hint)
        if proved:
            trial.failed.append(candidate)

    def can_fall_back(self, kind: str) -> bool:
        """Return whether another candidate would help after such a failure."""
        return bool(fallback.candidates_after(self.plan, self.candidates, kind))

    def fall_back(
        self,
        kind: str,
        detail: str,
        component: str = "",
        hint: str = "",
        figures: dict[str, float] | None = None,
    ) -> None:
        """Go on to the next candidate that may help; what lies between is left as well.

        Args:
            component: the module whose output was not finite, where a worker could name one.
            kind, detail, hint, figures: as in Rejected.
        """
        here, *rest = self.candidates
        self._reject(Rejected(here.name, kind, detail, hint, figures or {}))
        out = names_of(self.rejected)
        after = fallback.candidates_after(self.plan, self.candidates, kind, component, out)
        self.left.append(here)
        for candidate in rest:
            if candidate not in after:
                self.left.append(candidate)
        self.candidates = list(after)

    def acquit(self, trial: Trial) -> list[Rejected]:
        """Put back every candidate that failed at one request, FP32 among them; return what they
        were rejected for."""
        names = {GRAPHS_NAME, *(candidate.name for candidate in trial.failed)}
        blamed = [one for one in self.rejected[len(trial.rejected) :] if one.candidate in names]
        self.rejected = _beside(self.rejected, blamed)
        self._unreported = _beside(self._unreported, blamed)
        out = names_of(self.rejected)
        self.graphs = trial.graphs
        self.candidates = without(trial.candidates, out)
        lasting = with_names(self.left[len(trial.left) :], out)
        self.left = trial.left + lasting
        return blamed

    def take_unreported(self) -> list[Rejected]:
        """Return what was rejected since this was asked last, whether or not it may be tried again
        by now."""
        fresh, self._unreported = self._unreported, []
        return fresh

    def mark_inherent(self, kind: str, names: Collection[str]) -> None:
        """Note that FP32 did no better than candidates that were left for `kind`: they may
        return."""
        for place, one in enumerate(self.rejected):
            if one.kind == kind and one.candidate in names:
                self.rejected[place] = _silent(one)

    def restore_passing(self) -> None:
        """Give candidates another chance whose failure may be over now that the worker was
        stopped."""
        lasting = [one for one in self.rejected if not action_of(one.kind).over_after_stop]
        if len(lasting) == len(self.rejected):
            return
        out = names_of(lasting)
        self.rejected = lasting
        self.candidates = without(self.plan.candidates, out)
        self.left = with_names(self.left, out)

    def _leave_graphs(self, loss: WorkerFailedError) -> None:
        self.graphs = False
        hint = "graphs = false does without from the start"
        self._reject(Rejected(GRAPHS_NAME, loss.kind, loss.detail, hint))

    def _reject(self, one: Rejected) -> None:
        self.rejected.append(one)
        self._unreported.append(one)

    def _exhausted(self) -> EngineError:
        tried = details(self.rejected) or "the plan had none"
        return EngineError(
            f"no precision is left that could answer ({tried})",
            "run with --debug to see what the worker prints",
        )


def details(rejected: Sequence[Rejected]) -> str:
    """Return what was tried and how it failed, as one clause."""
    return "; ".join(f"{one.candidate}: {one.detail}" for one in rejected)


def inherent_error(blamed: Sequence[Rejected]) -> AsrdError:
    """Return the error for a recording that every precision failed at."""
    tried, hint = details(blamed), "other recordings are not concerned"
    if all(one.kind == "non-finite" for one in blamed):
        return AudioError(f"no precision makes text of this audio ({tried})", hint)
    return UnansweredError(f"no worker could answer for this audio ({tried})", hint)


def _beside(rejected: Sequence[Rejected], blamed: Sequence[Rejected]) -> list[Rejected]:
    """Return what was rejected beside these."""
    return [one for one in rejected if one not in blamed]


def _silent(one: Rejected) -> Rejected:
    detail = f"{one.detail}; FP32 found no words either"
    return msgspec.structs.replace(one, kind="silent", detail=detail)
