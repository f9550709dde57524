"""Which answers without a word stand, over generated recordings against a plain reference."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest

from asrd.precision.plan import Candidate
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.protocol import Answer, Hypothesis
from asrd.streaming.empty_retry import (
    MAX_KEPT_BUFFERS,
    EmptyCheck,
    EmptyRetry,
    ask_next_candidates,
)
from asrd.streaming.segmenter import SegmentBuffer


def answer(text: str, precision: str = "half") -> Answer:
    return Answer(0, Hypothesis(text, [], 0, 100, precision=precision), 0.1, 0.1, 0.1)


def buffer(number: int) -> SegmentBuffer:
    return SegmentBuffer(1000 * number, np.zeros(1000, np.float32), final=True)


TABLE_OF_CHECKS = {
    "a word": (["word"], [1.0], 2.0, 0.0, False, EmptyCheck.KEEP, 0.0),
    "no word, little clear speech": ([""], [1.9], 2.0, 0.0, False, EmptyCheck.KEEP, 1.9),
    "no word at the limit": ([""], [2.0], 2.0, 0.0, False, EmptyCheck.FALL_BACK, 2.0),
    "no word in noise": ([""], [0.0], 2.0, 0.0, False, EmptyCheck.KEEP, 0.0),
    "noise after clear speech": (["", ""], [1.9, 0.0], 2.0, 0.0, False, EmptyCheck.KEEP, 1.9),
    "added up over buffers": (["", ""], [1.0, 1.0], 2.0, 0.0, False, EmptyCheck.FALL_BACK, 2.0),
    "a word between": (["", "word", ""], [1.0, 1.0, 1.0], 2.0, 0.0, False, EmptyCheck.KEEP, 1.0),
    "added up over recordings": ([""], [1.0], 2.0, 1.0, False, EmptyCheck.FALL_BACK, 1.0),
    "a word ends earlier recordings": (
        ["word", ""],
        [1.0, 1.0],
        2.0,
        1.5,
        False,
        EmptyCheck.KEEP,
        1.0,
    ),
    "a limit of 0 never": (["", ""], [9.0, 9.0], 0.0, 9.0, False, EmptyCheck.KEEP, 0.0),
    "FP32 is right": ([""], [9.0], 2.0, 9.0, True, EmptyCheck.KEEP, 0.0),
}
"""Answers, clear seconds, limit, seconds before, whether FP32 is in service -> check of the last
answer, seconds counted."""


@pytest.mark.parametrize("name", TABLE_OF_CHECKS)
def test_each_kind_of_answer_has_its_check(name: str) -> None:
    texts, clear, limit, before, plain, expected, seconds = TABLE_OF_CHECKS[name]
    retry = EmptyRetry(limit)
    retry.seconds_before = before
    for number, (text, each) in enumerate(zip(texts, clear, strict=True)):
        found = retry.check(buffer(number), answer(text), 1000 * number, each, plain)
    assert (found, retry.seconds) == (expected, seconds)


@pytest.mark.parametrize("seed", range(24))
def test_generated_recordings_are_checked_as_by_a_count_of_their_wordless_tail(seed: int) -> None:
    """The reference knows the whole recording: it sums the clear speech behind the last word."""
    chance = random.Random(seed)
    limit, before = chance.choice((0.5, 2.0, 6.0)), chance.choice((0.0, 0.4, 3.0))
    retry = EmptyRetry(limit)
    retry.seconds_before = before
    tail: list[tuple[int, float]] = []
    for number in range(chance.randrange(3, 40)):
        text = "word" if chance.random() < 0.1 else ""
        clear = chance.choice((0.0, 0.2, 0.7))
        found = retry.check(buffer(number), answer(text), 1000 * number, clear, plain=False)
        if text:
            tail, before = [], 0.0
            assert found is EmptyCheck.KEEP
            continue
        tail = [*tail, (number, clear)][-MAX_KEPT_BUFFERS:]
        total = before + sum(each for _, each in tail)
        due = bool(clear) and total >= limit
        assert found is (EmptyCheck.FALL_BACK if due else EmptyCheck.KEEP)
        assert [one.buffer.start for one in retry.wordless] == [1000 * one for one, _ in tail]
        if due and chance.random() < 0.7:
            better = chance.random() < 0.5
            settled = retry.settle(answer(""), [answer("found" if better else "")] * len(tail))
            assert settled.reopen_at == (1000 * tail[0][0] if better else None)
            assert len(settled.answers) == (len(tail) if better else 1)
            tail, before = [], 0.0


class Order:
    """An engine whose candidates find a word from one of them on."""

    def __init__(self, names: list[str], finds: str | None) -> None:
        self._names, self._finds = names, finds
        self.inherent: list[str] = []
        self.asked: list[str] = []

    @property
    def candidate(self) -> Candidate:
        return Candidate(STRATEGY_TABLE[self._names[0]], "cpu")

    async def fall_back(self, candidate: Candidate, kind: str, *_: Any) -> bool:
        assert (candidate, kind) == (self.candidate, "empty")
        if len(self._names) == 1:
            return False
        self._names.pop(0)
        return True

    async def ask(self) -> list[Answer]:
        name = self._names[0]
        self.asked.append(name)
        return [answer("word" if name == self._finds else "", name)] * 2

    def mark_inherent(self, kind: str, names: list[str]) -> None:
        self.inherent = [kind, *names]


ORDER = ["half", "bfloat16", "tf32", "fp32"]


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("finds", ["bfloat16", "tf32", "fp32", None])
def test_the_first_candidate_that_finds_a_word_gives_the_answers(
    at: int, finds: str | None
) -> None:
    """Where none does, those that were left may return: the audio is to blame."""
    names = ORDER[at:]
    engine = Order(list(names), finds)

    async def go() -> list[Answer]:
        return await ask_next_candidates(
            engine,  # type: ignore[arg-type]  # it has what is asked of an engine
            answer("", names[0]),
            3.0,
            engine.fall_back,
            engine.ask,
        )

    found = asyncio.run(go())
    behind = names[1:]
    wanted = behind[: behind.index(finds) + 1] if finds in behind else behind
    assert engine.asked == wanted
    assert [one.hypothesis.text for one in found] == (
        ["word"] * 2 if finds in behind else [""] * (2 if behind else 0)
    )
    silent = ["empty", *(f"{name} on cpu" for name in names[:-1])]
    assert engine.inherent == ([] if finds in behind else silent)
