"""The table of failure kinds: each kind's action, through what acts on it."""

from __future__ import annotations

import pytest

from asrd import errors
from asrd.engine.fallback_chain import FallbackChain, Trial
from asrd.engine.process import WorkerFailedError
from asrd.precision import failures, fallback
from asrd.precision.plan import Candidate, Plan
from asrd.precision.strategies import STRATEGY_TABLE

CANDIDATES = tuple(
    Candidate(STRATEGY_TABLE[name], device)
    for name, device in (
        ("half", "cuda:0"), ("bfloat16", "cuda:0"), ("fp32", "cuda:0"), ("fp32", "cpu")
    )
)  # fmt: skip
PLAN = Plan("half", CANDIDATES, "test", smaller=(Candidate(STRATEGY_TABLE["int8"], "cuda:0"),))
NEXT, SMALLER, OFF_CARD = "bfloat16", "int8", "fp32 on cpu"
SAME, NO_GRAPHS = "half", "half without graphs"

ACTIONS = {
    # kind: (what follows first, what follows the second time, may it return)
    "non-finite": ("half(encoder:float32)", "bfloat16", False),
    "self-test": (NEXT, "fp32", False),
    "unsupported": (NEXT, "fp32", False),
    "internal": (NEXT, "fp32", False),
    "no-device": (OFF_CARD, None, False),
    "device-lost": (NO_GRAPHS, NEXT, True),
    "out-of-memory": (SMALLER, OFF_CARD, True),
    "killed": (SAME, NEXT, True),
    "stalled": (SAME, NEXT, True),
    "died": (NO_GRAPHS, SAME, True),
    "garbage": (NEXT, "fp32", False),
    "dtypes": (NEXT, "fp32", False),
    "no-room": (SMALLER, OFF_CARD, True),
    "budget": (SMALLER, OFF_CARD, True),
    "hardware": (NEXT, "fp32", False),
    "measured": (NEXT, "fp32", False),
    "slow": (NEXT, "fp32", True),
    "memory": (NEXT, "fp32", True),
    "changed": (NEXT, "fp32", False),
    "empty": (NEXT, "fp32", False),
    "failures": (NEXT, "fp32", True),
    "silent": (NEXT, "fp32", True),
    "a kind nobody knows": (NEXT, "fp32", False),
}
ERRORS = {
    "model": errors.ModelError, "network": errors.NetworkError, "disk": errors.DiskError,
    "usage": errors.UsageError, "config": errors.ConfigError, "audio": errors.AudioError,
}  # fmt: skip


def test_each_kind_is_in_one_table() -> None:
    assert {*ACTIONS, *ERRORS} - {"a kind nobody knows"} == set(failures.FAILURE_ACTIONS)


def shown(chain: FallbackChain) -> str | None:
    if not chain.candidates:
        return None
    return chain.candidate.name + ("" if chain.graphs or chain.left else " without graphs")


@pytest.mark.parametrize("kind", ACTIONS)
def test_a_kind_leads_to_its_candidate_and_may_return_or_not(kind: str) -> None:
    first, second, returns = ACTIONS[kind]
    chain = FallbackChain(PLAN)
    trial = Trial(chain)
    loss = WorkerFailedError(kind, "why", component="encoder")
    chain.settle(loss, trial, started=True, proved=False)
    assert shown(chain) == first
    if first != OFF_CARD:
        chain.settle(loss, trial, started=True, proved=False)
        again = chain.candidate.name if chain.candidates else None
        assert again == second
    left = [PLAN.candidates[0]]
    rejected = [failures_of(kind)]
    assert bool(fallback.retry_plan(PLAN, left, PLAN.candidates[1:], rejected)) == returns


def failures_of(kind: str) -> fallback.Rejected:
    return fallback.Rejected("half", kind, "why")


@pytest.mark.parametrize("kind", ERRORS)
def test_what_no_precision_cures_is_an_error_and_the_way_back_from_it(kind: str) -> None:
    error = failures.action_of(kind).error
    assert error is ERRORS[kind]
    assert failures.kind_of(error("x")) == kind


def test_every_other_error_has_no_kind() -> None:
    known = tuple(ERRORS.values())
    for one in vars(errors).values():
        if isinstance(one, type) and issubclass(one, errors.AsrdError):
            assert (failures.kind_of(one("x")) != "") == issubclass(one, known)
