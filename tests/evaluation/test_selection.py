"""What auto may take: planted prices are refused, the same words are the same, and too little
speech decides nothing.

python -m tests.evaluation.test_selection 1000     how often a planted price is accepted, over so
many seeds
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from asrd.engine.tuned import TunedStrategy
from asrd.evaluation.results import NoiseFloor, Role, Run
from asrd.evaluation.selection import Choice, cheapest, select_strategy
from asrd.precision.memory import Memory
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.scoring import Edits, upper_bound
from tests.fakes import engine as fake_engine
from tests.fakes.engine import MIB

WORDS = (
    "open",
    "the",
    "door",
    "of",
    "our",
    "house",
    "and",
    "look",
    "at",
    "every",
    "green",
    "tree",
    "now",
    "please",
)
Texts = Sequence[str | None]

ERRORS = 2.7
"""Words in a hundred that FP32 itself gets wrong."""


def sentences(count: int, length: int, seed: int) -> list[str]:
    draw = random.Random(f"said {seed}")
    return [" ".join(draw.choice(WORDS) for _ in range(length)) for _ in range(count)]


def spoiled(texts: list[str], rate: float, seed: object) -> list[str | None]:
    """Return texts of which each word is another one `rate` times in a hundred."""
    draw = random.Random(f"heard {seed}")
    return [
        " ".join("wrong" if draw.random() < rate / 100 else word for word in text.split())
        for text in texts
    ]


def measured(
    name: str,
    role: Role,
    texts: Texts,
    mib: int = 900,
    ms: float = 100.0,
    source: str = "rss",
    failure: str = "",
) -> Run:
    precision = STRATEGY_TABLE[name]
    steady = {"steady": Memory(process=mib * MIB, source=source)}
    ready = fake_engine.ready(precision)
    return Run(precision, role, ready, steady, [ms / 1000] * 3, texts=list(texts), failure=failure)


def three(heard: Texts, other: Texts, again: Texts | None = None, **more: Any) -> list[Run]:
    """FP32 twice, and one candidate that needs half the memory."""
    return [
        measured("fp32", "baseline", heard),
        measured("fp32", "again", heard if again is None else again),
        measured("bfloat16", "asked", other, **{"mib": 450, **more}),
    ]


def planted(
    price: float, seed: int, count: int = 180, length: int = 11, bound: float = 0.5
) -> Choice:
    """Choose where bfloat16 needs half the memory and truly costs `price` points; speech is as much
    as is shipped."""
    truth = sentences(count, length, seed)
    heard = spoiled(truth, ERRORS, f"{seed} base")
    other = spoiled([text or "" for text in heard], price / (1 - ERRORS / 100), f"{seed} price")
    return select_strategy(three(heard, other), truth, 900.0, bound)


def one(made: Choice, name: str = "bfloat16") -> TunedStrategy:
    return next(each for each in made.candidates if each.strategy == name)


# -- prices
# -----------------------------------------------------------------------------------------------------------


def test_the_same_words_at_half_the_memory_are_taken() -> None:
    truth = sentences(180, 11, 1)
    heard = spoiled(truth, ERRORS, 1)
    made = select_strategy(three(heard, heard), truth, 900.0, 0.5)
    assert made.chosen == "bfloat16"
    assert (one(made).verdict, one(made).refused, one(made).changed) == ("same", "", 0)
    assert one(made).most == pytest.approx(100 * 1.96**2 / 1980, rel=1e-3)
    assert "450 MiB against FP32's 900 MiB (anonymous)" in made.reason


def test_two_identical_runs_of_fp32_are_the_same() -> None:
    truth = sentences(180, 11, 2)
    heard = spoiled(truth, ERRORS, 2)
    made = select_strategy(three(heard, heard)[:2], truth, 900.0, 0.5)
    assert made.chosen == "fp32"
    assert (one(made, "fp32").verdict, one(made, "fp32").delta, one(made, "fp32").interval) == (
        "same",
        0.0,
        (0.0, 0.0),
    )


def test_two_runs_of_fp32_that_differ_by_chance_are_the_same_too() -> None:
    truth = sentences(400, 11, 3)
    heard = spoiled(truth, ERRORS, 3)
    again = list(heard)
    for place in (5, 50, 95):  # a card's atomics: as many words come right as go wrong
        again[place], again[place + 100] = "wrong" + (heard[place] or "")[4:], truth[place + 100]
    made = select_strategy(three(heard, heard, again)[:2], truth, 900.0, 0.5)
    assert one(made, "fp32").verdict == "same"
    assert one(made, "fp32").changed


def test_a_planted_half_point_is_refused() -> None:
    """Each accepted one is an error of at most 2.5 in 100; of 40 more than 4 would happen once in
    300."""
    taken = [seed for seed in range(40) if planted(0.5, seed).chosen != "fp32"]
    assert len(taken) <= 4, taken


def test_a_planted_point_is_always_refused_and_says_its_price() -> None:
    for seed in range(10):
        made = planted(1.0, seed)
        assert made.chosen == "fp32"
        assert "points of WER, " in one(made).refused
        assert "the limit is 0.50" in one(made).refused


def test_what_costs_next_to_nothing_is_taken() -> None:
    assert sum(planted(0.05, seed).chosen == "bfloat16" for seed in range(20)) >= 18


@pytest.mark.parametrize("price", [0.0, 0.5])
def test_too_little_speech_never_decides_for_a_candidate(price: float) -> None:
    for seed in range(10):
        made = planted(price, seed, count=25)
        assert made.chosen == "fp32"
    made = planted(0.0, 1, count=25)
    assert one(made).changed == 0
    assert one(made).verdict == "undecided", (
        "no word changed, and still there is not enough of them"
    )
    assert one(made).refused.startswith("undecided: at most +1.40 points of WER")
    assert 480 <= one(made).missing <= 510
    assert "The 275 words there are do not decide bfloat16: about" in made.hint
    assert "(27 minutes of speech like this)" in made.hint


def test_the_speech_that_is_said_to_be_missing_does_decide() -> None:
    short = planted(0.0, 1, count=25)
    longer = planted(0.0, 1, count=25 + -(-one(short).missing // 11))
    assert longer.chosen == "bfloat16"


def test_a_handful_of_changed_utterances_has_no_interval_and_is_not_taken() -> None:
    truth = sentences(10, 400, 1)
    made = select_strategy(
        three(list(truth), ["wrong" + truth[0][4:], *truth[1:]]), truth, 900.0, 0.5
    )
    assert one(made).interval is None
    assert made.chosen == "fp32"
    assert "undecided" in one(made).refused


@pytest.mark.parametrize("taken", [False, True])
def test_a_few_utterances_of_which_one_changed_are_undecided_and_say_how_much_would_do(
    taken: bool,
) -> None:
    truth = sentences(3, 11, 1)
    made = select_strategy(
        three(list(truth), ["wrong" + truth[0][4:], *truth[1:]]),
        None if taken else truth,
        15.0,
        0.5,
    )
    what = "words in 100 other than FP32's" if taken else "points of WER"
    missing = one(made).missing
    assert one(made).most is None
    assert one(made).refused == (
        f"undecided: too little speech for a bound on what it costs, the limit is 0.50 {what}; "
        f"about {missing} more words would tell"
    )
    assert f"The 33 words there are do not decide bfloat16: about {missing} more" in made.hint
    longer = sentences(3 + -(-missing // 11), 11, 1)
    assert (
        select_strategy(
            three(list(longer), ["wrong" + longer[0][4:], *longer[1:]]), longer, 900.0, 0.5
        ).chosen
        == "bfloat16"
    )


def test_one_utterance_says_how_many_words_decide_too() -> None:
    made = planted(0.0, 1, count=1)
    assert one(made).refused.startswith("undecided: at most +")
    assert 740 <= one(made).missing <= 780


def test_more_speech_is_not_advised_where_it_would_not_help() -> None:
    made = planted(2.0, 1)
    assert (one(made).missing, made.hint) == (0, "")
    assert one(made).refused.startswith("costs +")


def test_a_bound_of_nothing_takes_what_changes_no_word_of_enough() -> None:
    assert planted(0.0, 1, bound=0.0).chosen == "bfloat16"
    assert planted(0.0, 1, count=100, bound=0.0).chosen == "fp32"
    assert planted(0.5, 1, bound=0.0).chosen == "fp32"


def test_what_was_dictated_counts_every_word_heard_otherwise() -> None:
    truth = sentences(180, 11, 4)
    heard = spoiled(truth, ERRORS, 4)
    made = select_strategy(three(heard, list(truth)), None, 900.0, 0.5)
    assert one(made).delta == pytest.approx(ERRORS, abs=1.0), (
        "right against the truth, and other than FP32"
    )
    assert one(made).verdict == "differs"
    assert made.chosen == "fp32"
    assert "words in 100 other than FP32's" in one(made).refused
    assert select_strategy(three(heard, heard), None, 900.0, 0.5).chosen == "bfloat16"


# -- what else decides
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"mib": 950}, "needs more memory than FP32: 950 MiB against 900 MiB"),
        ({"ms": 120.0}, "is slower than FP32: 120.0 ms for 10 s against 100.0"),
        (
            {"failure": "died: the worker ended with exit code 9"},
            "died: the worker ended with exit code 9",
        ),
        ({"source": "meminfo"}, "its memory is change of the whole GPU, FP32's is anonymous"),
    ],
)
def test_a_candidate_that_costs_otherwise_is_refused_with_the_figure(
    more: dict[str, object], why: str
) -> None:
    truth = sentences(180, 11, 5)
    made = select_strategy(three(list(truth), list(truth), **more), truth, 900.0, 0.5)
    assert made.chosen == "fp32"
    assert one(made).refused == why


def test_an_utterance_without_an_answer_refuses() -> None:
    truth = sentences(180, 11, 5)
    made = select_strategy(three(list(truth), [None, *truth[1:]]), truth, 900.0, 50.0)
    assert one(made).refused == "1 utterances without an answer"


def test_the_memory_budget_is_held_against_what_was_measured() -> None:
    truth = sentences(180, 11, 5)
    made = select_strategy(three(list(truth), list(truth)), truth, 900.0, 0.5, budget=400 * MIB)
    assert one(made).refused == "needs 450 MiB; vram_budget allows 400 MiB"


def test_a_busy_machine_is_told() -> None:
    truth = sentences(180, 11, 5)
    runs = three(truth, truth)
    assert (
        select_strategy(
            runs, truth, 900.0, 0.5, again=measured("fp32", "again", truth, ms=110.0)
        ).hint
        == ""
    )
    made = select_strategy(
        runs, truth, 900.0, 0.5, again=measured("fp32", "again", truth, ms=140.0)
    )
    assert made.hint.startswith(
        "FP32's own latency differed by 40 % between its runs: the machine was busy"
    )


def test_int8_that_runs_as_something_else_is_not_int8() -> None:
    truth = sentences(180, 11, 5)
    runs = [*three(list(truth), list(truth))[:2], measured("int8", "asked", list(truth), 300)]
    made = select_strategy(runs, truth, 900.0, 0.5)
    assert "does not run as asked" in one(made, "int8").refused
    assert "torchao is not installed" in one(made, "int8").refused


def candidate(name: str, mib: int | None, ms: float, cpu: float | None = None) -> TunedStrategy:
    memory = None if mib is None else mib * MIB
    return TunedStrategy(name, "", "same", 0.0, (0.0, 0.0), 0.2, 0, memory, "nvml", ms, 0, cpu)


@pytest.mark.parametrize(
    ("fit", "best"),
    [
        ([("int8", 400, 90), ("bfloat16", 500, 50), ("fp32", 900, 100)], "int8"),
        ([("int8", 490, 90), ("bfloat16", 500, 50), ("fp32", 900, 100)], "bfloat16"),
        ([("bfloat16", 500, 99), ("selective", 505, 98), ("fp32", 900, 100)], "selective"),
        ([("bfloat16", 890, 50), ("fp32", 900, 100)], "bfloat16"),
        ([("bfloat16", 890, 99), ("fp32", 900, 100)], "fp32"),
        ([("bfloat16", 500, 50), ("fp32", None, 100)], "fp32"),
        ([("bfloat16", 890, 50, 49.5), ("fp32", 900, 100, 50)], "fp32"),
        ([("bfloat16", 890, 50, 40), ("fp32", 900, 100, 50)], "bfloat16"),
    ],
)
def test_memory_goes_first_then_time_and_what_neither_tells_apart_is_nearest_to_fp32(
    fit: list[tuple[Any, ...]], best: str
) -> None:
    floor = NoiseFloor(wer=0.0, changed_per_100=0.0, latency=0.02, memory=0.02)
    assert cheapest([candidate(*each) for each in fit], floor).strategy == best


# -- the bound
# --------------------------------------------------------------------------------------------------------


def edits(worse: int, better: int, size: int = 1) -> tuple[Edits, Edits]:
    words = (10,) * 200
    now = tuple(size if place < worse else 0 for place in range(200))
    before = tuple(size if place >= 200 - better else 0 for place in range(200))
    return Edits(now, words), Edits(before, words)


@pytest.mark.parametrize(
    ("worse", "exact"), [(0, 3.69), (1, 5.57), (2, 7.22), (4, 10.24), (10, 18.39), (20, 30.89)]
)
def test_the_bound_is_close_to_the_exact_one_of_a_count_and_never_below(
    worse: int, exact: float
) -> None:
    """Exact: Garwood's interval of a Poisson count, 97.5 % one-sided."""
    assert exact <= upper_bound(*edits(worse, 0)) * 20 <= exact * 1.05


def test_changes_that_come_in_clusters_and_both_ways_leave_more_open() -> None:
    assert upper_bound(*edits(3, 3)) > upper_bound(*edits(0, 0))
    assert upper_bound(*edits(4, 0, size=3)) > 2.5 * upper_bound(*edits(4, 0))
    assert upper_bound(*edits(4, 0), larger=10.0) < upper_bound(*edits(4, 0))


def test_what_was_decided_survives_the_file() -> None:
    made = planted(0.1, 1)
    assert msgspec.json.decode(msgspec.json.encode(made), type=Choice) == made


def accepted(price: float, count: int, bound: float, seeds: int) -> float:
    return (
        sum(planted(price, seed, count, bound=bound).chosen != "fp32" for seed in range(seeds))
        / seeds
    )


if __name__ == "__main__":
    seeds = int(sys.argv[1])
    print(f"accepted under a bound of 0.5 points, {seeds} seeds, FP32 at {ERRORS} % WER")
    print(
        "true price, points   "
        + "".join(f"{count * 11:>8} words" for count in (25, 60, 90, 180, 360))
    )
    for price in (0.5, 1.0, 0.3, 0.1):
        shares = [accepted(price, count, 0.5, seeds) for count in (25, 60, 90, 180, 360)]
        print(f"{price:<21g}" + "".join(f"{100 * share:>12.1f} %" for share in shares), flush=True)
