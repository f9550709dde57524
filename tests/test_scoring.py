"""Word edits, intervals and percentiles against hand-computed values, jiwer and properties."""

from __future__ import annotations

import random

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrd import scoring
from asrd.scoring import FEWEST_UTTERANCES, Edits, edits, interval

WORDS = st.lists(st.sampled_from(["one", "two", "three", "four"]), max_size=8).map(" ".join)
PAIRS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=30)


def test_edits_by_hand() -> None:
    counted = edits(["a b c d", "", "x y", "same"], ["a c d e", "z", "", "same"])
    assert counted == Edits((2, 1, 2, 0), (4, 0, 2, 1))
    assert counted.rate == pytest.approx(100 * 5 / 7)


@given(PAIRS)
def test_the_corpus_rate_is_jiwers(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = [a for a, _ in pairs], [b for _, b in pairs]
    counted = edits(references, hypotheses)
    if sum(counted.words):
        assert counted.rate == pytest.approx(100 * jiwer.wer(references, hypotheses))
    else:
        assert counted.rate is None


@given(PAIRS)
def test_edits_add_up_over_any_split(pairs: list[tuple[str, str]]) -> None:
    whole = edits([a for a, _ in pairs], [b for _, b in pairs])
    single = [edits([a], [b]) for a, b in pairs]
    assert whole.errors == tuple(one.errors[0] for one in single)


def test_interval_of_equal_edits_is_nothing() -> None:
    same = Edits((0, 1, 2), (4, 5, 6))
    assert interval(same, same) == (0.0, 0.0)


def test_interval_of_few_utterances_is_unknown() -> None:
    few = FEWEST_UTTERANCES - 1
    assert interval(Edits((1,) * few, (9,) * few), Edits((0,) * few, (9,) * few)) is None
    assert (
        interval(
            Edits((1,) * FEWEST_UTTERANCES, (9,) * FEWEST_UTTERANCES),
            Edits((0,) * FEWEST_UTTERANCES, (9,) * FEWEST_UTTERANCES),
        )
        is not None
    )


def test_interval_of_a_constant_difference_is_a_point() -> None:
    ones = Edits((1,) * 40, (10,) * 40)
    assert interval(ones, Edits((0,) * 40, (10,) * 40)) == pytest.approx((10.0, 10.0))


def test_interval_agrees_with_the_normal_approximation() -> None:
    """With words all alike, the bootstrap of a mean is known: mean +- 1.96 sd / sqrt(n)."""
    generator = np.random.default_rng(7)
    errors = generator.integers(0, 3, 400)
    low, high = interval(
        Edits(tuple(map(int, errors)), (10,) * 400), Edits((0,) * 400, (10,) * 400)
    ) or (0, 0)
    mean, half = 10 * errors.mean(), 10 * 1.96 * errors.std() / 20
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.05)


def test_interval_keeps_pairs_together() -> None:
    """What is hard for both cancels: large but equal errors must not widen the interval."""
    hard = tuple(10 * (i % 2) for i in range(60))
    candidate = Edits((*(e for e in hard[:-1]), hard[-1] + 1), (10,) * 60)
    low, high = interval(candidate, Edits(hard, (10,) * 60)) or (0, 0)
    assert low == 0
    assert high < 1.0


def test_interval_is_the_same_every_time() -> None:
    one, other = Edits(tuple(i % 3 for i in range(50)), (7,) * 50), Edits((1,) * 50, (7,) * 50)
    interval.cache_clear()
    first = interval(one, other)
    interval.cache_clear()
    assert interval(one, other) == first


def test_interval_with_no_words_at_all() -> None:
    assert interval(Edits((1,) * 30, (0,) * 30), Edits((0,) * 30, (0,) * 30)) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 9)),
        min_size=FEWEST_UTTERANCES,
        max_size=60,
    )
)
@settings(max_examples=30)
def test_swapping_sides_mirrors_the_interval(rows: list[tuple[int, int, int]]) -> None:
    words = tuple(w for *_, w in rows)
    one, other = (
        Edits(tuple(a for a, _, _ in rows), words),
        Edits(tuple(b for _, b, _ in rows), words),
    )
    forth, back = interval(one, other), interval(other, one)
    assert forth is not None
    assert back == pytest.approx((-forth[1], -forth[0]), abs=1e-9)


def test_percentiles_by_hand() -> None:
    taken = scoring.percentiles([i / 1000 for i in range(1, 22)])
    assert taken is not None
    assert (taken.p50, taken.p95) == pytest.approx((11, 20))
    assert scoring.percentiles([]) is None


def test_spread() -> None:
    assert scoring.spread([100, 110, 105]) == pytest.approx(0.1)
    assert scoring.spread([100, None]) is None


def test_the_interval_of_changed_words_needs_no_reference() -> None:
    untouched = scoring.changed_interval(Edits((0,) * 30, (7,) * 30))
    touched = scoring.changed_interval(Edits((1, 0) * 15, (7,) * 30))
    assert untouched == (0.0, 0.0)
    assert touched is not None
    assert 0 < touched[0] < 100 / 14 < touched[1]
    assert scoring.changed_interval(Edits((1,) * 5, (7,) * 5)) is None


def by_recurrence(expected: list[str], heard: list[str]) -> int:
    """Return the edit distance by its definition, without a library."""
    row = list(range(len(heard) + 1))
    for number, word in enumerate(expected, 1):
        before, row[0] = row[0], number
        for place, other in enumerate(heard, 1):
            changed = before + (word != other)
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, changed)
    return row[-1]


def spoilt(seed: int) -> tuple[list[str], list[str]]:
    """Return words, and the same with a few left out, put in and changed."""
    drawn = random.Random(seed)
    words = [
        drawn.choice(["the", "cat", "sat", "on", "今", "कि"]) for _ in range(drawn.randrange(9))
    ]
    heard = list(words)
    for _ in range(drawn.randrange(5)):
        place = drawn.randrange(len(heard) + 1)
        heard[place : place + drawn.randrange(2)] = drawn.choice([[], ["mat"], ["a", "b"]])
    return words, heard


@pytest.mark.parametrize("seed", range(40))
def test_edits_are_the_edit_distance_of_the_words(seed: int) -> None:
    expected, heard = spoilt(seed)
    counted = edits([" ".join(expected)], [" ".join(heard)])
    assert counted == Edits((by_recurrence(expected, heard),), (len(expected),))
