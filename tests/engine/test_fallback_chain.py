"""The candidates of an engine, without an engine: pure, over random failures."""

from __future__ import annotations

import random

import pytest

from asrd.engine.fallback_chain import GRAPHS_NAME, FallbackChain, Trial
from asrd.engine.process import WorkerFailedError
from asrd.errors import EngineError
from asrd.precision import failures
from asrd.precision.plan import Candidate, Plan
from asrd.precision.strategies import STRATEGY_TABLE

NAMES = ("half", "bfloat16", "tf32", "fp32")
KINDS = [kind for kind, action in failures.FAILURE_ACTIONS.items() if action.error is None]
SEEDS = range(30)


def chain(device: str = "cuda:0", names: tuple[str, ...] = NAMES) -> FallbackChain:
    there = [Candidate(STRATEGY_TABLE[name], device) for name in names]
    if device != "cpu":
        there.append(Candidate(STRATEGY_TABLE["fp32"], "cpu"))
    return FallbackChain(Plan("half", tuple(there), "test"))


def loss(kind: str) -> WorkerFailedError:
    return WorkerFailedError(kind, f"{kind} happened")


def state(one: FallbackChain) -> tuple[object, ...]:
    return one.graphs, list(one.candidates), list(one.left), list(one.rejected)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_way_ends_and_each_step_is_reported_once(seed: int) -> None:
    """Whatever fails: no candidate twice, each either in the order or left, each rejection told."""
    draw = random.Random(seed)
    one = chain(draw.choice(["cuda:0", "cpu"]))
    trial, reported, steps = Trial(one), list[str](), 0
    whole = {candidate.name for candidate in one.plan.candidates}
    while one.candidates and steps < 100:
        steps += 1
        one.settle(loss(draw.choice(KINDS)), trial, started=draw.random() < 0.9, proved=True)
        reported += [each.candidate for each in one.take_unreported()]
        names = [each.name for each in (*one.left, *one.candidates)]
        assert whole <= set(names)
        assert len(set(names)) == len(names)
    assert not one.candidates
    assert steps <= 2 * len(whole) + 2
    assert reported == [each.candidate for each in one.rejected]
    assert len(set(reported)) == len(reported)
    with pytest.raises(EngineError, match="no precision is left"):
        _ = one.candidate


@pytest.mark.parametrize("seed", SEEDS)
def test_a_request_that_fp32_fails_at_as_well_costs_no_candidate(seed: int) -> None:
    draw = random.Random(seed)
    one = chain("cpu" if seed % 2 else "cuda:0")
    for _ in range(draw.randrange(3)):  # what was left before stays left
        one.fall_back("unsupported", "before")
    one.take_unreported()
    before, trial = state(one), Trial(one)
    while one.candidates:
        one.settle(loss(draw.choice(["garbage", "died"])), trial, started=True, proved=True)
    assert trial.inherent
    blamed = one.acquit(trial)
    assert state(one) == before
    assert one.take_unreported() == []
    assert {each.candidate for each in blamed} >= {each.name for each in trial.failed}


def test_a_start_that_fails_everywhere_blames_every_candidate() -> None:
    one = chain()
    trial = Trial(one)
    while one.candidates:
        one.settle(loss("garbage"), trial, started=True, proved=False)
    assert not trial.inherent
    assert len(one.rejected) == len(NAMES) + 1


def test_graphs_go_first_on_a_card_and_once_and_never_on_the_cpu() -> None:
    one = chain()
    one.settle(loss("device-lost"), Trial(one), started=True, proved=True)
    assert (one.graphs, one.candidate.name, one.rejected[-1].candidate) == (
        False,
        "half",
        GRAPHS_NAME,
    )
    one.settle(loss("device-lost"), Trial(one), started=True, proved=True)
    assert one.candidate.name == "bfloat16"
    one = chain("cpu")
    one.settle(loss("device-lost"), Trial(one), started=True, proved=True)
    assert (one.graphs, one.candidate.name) == (True, "bfloat16 on cpu")


def test_a_stop_gives_back_what_may_be_over_and_nothing_else() -> None:
    for kind, action in failures.FAILURE_ACTIONS.items():
        one = chain()
        one.fall_back(kind, "why")
        there = list(one.candidates)
        one.restore_passing()
        back = one.candidates == list(one.plan.candidates)
        assert back == action.over_after_stop, kind
        assert back or one.candidates == there, kind


def test_what_fp32_does_no_better_is_silent_and_only_that() -> None:
    one = chain()
    one.fall_back("empty", "no word")
    one.fall_back("unsupported", "no kernel")
    one.mark_inherent("empty", ["half", "bfloat16"])
    assert [each.kind for each in one.rejected] == ["silent", "unsupported"]
    assert one.rejected[0].detail == "no word; FP32 found no words either"
