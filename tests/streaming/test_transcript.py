"""Each word once: joins by time survive jitter, cuts, other spellings and words that are said twice
in a row."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asrd.protocol import DecodingContext, Hypothesis, Word
from asrd.streaming.transcript import CONTEXT_WORDS, MISSED_WORDS, Transcript, align

RATE = 16_000


def word(text: str, start: float, stop: float) -> Word:
    return Word(text, round(start * RATE), round(stop * RATE))


def heard(start: float, stop: float, *words: tuple[str, float, float]) -> Hypothesis:
    """Return the hypothesis for a buffer; all times in seconds."""
    found = [word(*w) for w in words]
    return Hypothesis(
        " ".join(w.text for w in found), found, round(start * RATE), round(stop * RATE)
    )


def test_a_sealed_hypothesis_is_final() -> None:
    transcript = Transcript()
    new = transcript.push(heard(0, 2, ("open", 0.3, 0.6), ("door", 0.7, 1.9)), final=True)
    assert [w.text for w in new] == ["open", "door"]
    assert transcript.text == "open door"
    assert transcript.committed_until == 2 * RATE
    assert transcript.push(heard(5, 6, ("door", 5.1, 5.5)), final=True)[0].text == "door"
    assert transcript.text == "open door door"


def test_an_open_hypothesis_commits_what_ends_before_the_guard() -> None:
    transcript = Transcript(guard=1.0)
    hypothesis = heard(
        0, 10, ("one", 7.0, 7.4), ("two", 8.0, 8.9), ("three", 8.8, 9.2), ("four", 9.5, 9.9)
    )
    new = transcript.push(hypothesis, final=False)
    assert [w.text for w in new] == ["one", "two"]
    assert round(8.8 * RATE) <= transcript.committed_until <= round(8.9 * RATE)


def test_a_word_over_the_join_is_kept_once() -> None:
    transcript = Transcript(guard=1.0)
    transcript.push(
        heard(0, 10, ("red", 8.0, 8.4), ("river", 8.8, 9.3), ("ban", 9.6, 10.0)), final=False
    )
    transcript.push(
        heard(6, 16, ("red", 8.1, 8.5), ("river", 8.7, 9.2), ("bank", 9.6, 10.2)), final=True
    )
    assert transcript.text == "red river bank"


def test_a_word_heard_otherwise_the_second_time_is_not_kept_twice() -> None:
    transcript = Transcript(guard=1.0)
    transcript.push(heard(0, 10, ("four", 7.5, 7.9), ("forty", 8.3, 8.9)), final=False)
    transcript.push(
        heard(5, 15, ("Four,", 7.5, 7.9), ("for", 8.3, 8.5), ("tea", 8.5, 8.9), ("now", 9.3, 9.6)),
        final=True,
    )
    assert transcript.text == "four forty now"


@pytest.mark.parametrize("missed", [0, 1, 3, 4, 6])
def test_a_phrase_that_was_not_heard_the_first_time_is_kept_where_it_lies_before_what_waits(
    missed: int,
) -> None:
    transcript = Transcript(guard=1.5)
    first = heard(
        0,
        10,
        ("at", 7.0, 7.2),
        ("zero", 7.4, 7.7),
        ("two", 7.8, 8.0),
        ("say", 8.6, 8.7),
        ("am", 9.7, 9.9),
    )
    assert [w.text for w in transcript.push(first, final=False)] == ["at", "zero", "two"]
    assert transcript.committed_until == 8.5 * RATE
    said = ["send", "word", "to", "robert", "and", "then"]
    phrase = [(text, 8.02 + 0.05 * i, 8.05 + 0.05 * i) for i, text in enumerate(said)]
    words = [
        ("zero", 7.4, 7.7),
        ("two", 7.8, 8.0),
        *phrase[:missed],
        ("say", 8.55, 8.65),
        ("am", 9.7, 9.9),
    ]
    transcript.push(heard(6, 12, *words), final=True)
    kept = said[:missed] if missed >= MISSED_WORDS else []
    assert transcript.text.split() == ["at", "zero", "two", *kept, "say", "am"]


def test_the_same_word_twice_in_a_row_stays_twice() -> None:
    transcript = Transcript(guard=1.0)
    transcript.push(
        heard(0, 10, ("five", 8.0, 8.3), ("five", 8.5, 8.8), ("five", 9.1, 9.4)), final=False
    )
    transcript.push(
        heard(
            7, 12, ("five", 8.2, 8.5), ("five", 8.6, 9.0), ("five", 9.3, 9.6), ("six", 10.0, 10.3)
        ),
        True,
    )
    assert transcript.text == "five five five six"


def test_case_and_punctuation_do_not_make_another_word() -> None:
    transcript = Transcript(guard=1.0)
    transcript.push(
        heard(0, 10, ("Meet", 7.6, 7.9), ("Peter", 8.1, 8.5), ("at", 9.1, 9.2)), final=False
    )
    transcript.push(
        heard(
            6, 12, ("meet", 7.9, 8.2), ("Peter.", 8.45, 8.8), ("At", 9.1, 9.2), ("noon.", 9.4, 9.8)
        ),
        True,
    )
    assert transcript.text == "Meet Peter At noon."


def test_what_was_not_heard_twice_waits() -> None:
    transcript = Transcript(guard=1.0)
    first = heard(0, 9.2, ("one", 3.0, 3.4), ("two", 6.0, 6.4), ("free", 7.0, 7.4))
    again = heard(
        0, 10, ("won", 3.0, 3.4), ("two", 6.0, 6.4), ("three", 7.0, 7.4), ("four", 8.0, 8.4)
    )
    new = transcript.push(again, final=False, earlier=first)
    assert [w.text for w in new] == ["won", "two"], "what lies in the first half is not asked twice"
    assert transcript.committed_until == 7 * RATE
    transcript.push(
        heard(4.5, 12, ("two", 6.0, 6.4), ("three", 7.0, 7.4), ("four", 8.0, 8.4)), final=True
    )
    assert transcript.text == "won two three four"
    assert [w.text for w in Transcript().push(again, final=True, earlier=first)] == [
        "won",
        "two",
        "three",
        "four",
    ]


def test_an_empty_hypothesis_moves_on() -> None:
    transcript = Transcript(guard=1.0)
    assert transcript.push(heard(0, 10), final=False) == []
    assert transcript.committed_until == 9 * RATE
    transcript.push(heard(7, 17, ("so", 9.4, 9.6)), final=True)
    assert transcript.text == "so"


def lost(start: float, stop: float, *words: tuple[str, float, float]) -> Hypothesis:
    """Return a hypothesis whose decoder lost the sound."""
    return msgspec.structs.replace(heard(start, stop, *words), truncated=True)


def test_what_goes_on_from_is_the_last_words_since_the_last_pause() -> None:
    transcript = Transcript(guard=1.0)
    assert transcript.context(0) is None
    transcript.push(heard(0, 2, ("open", 0.3, 0.6)), final=True)
    assert transcript.context(0) is None, "a pause lies between"
    many = [(f"w{n}", 3 + 0.1 * n, 3.05 + 0.1 * n) for n in range(CONTEXT_WORDS + 5)]
    transcript.push(heard(3, 12, *many, ("late", 11.5, 11.9)), final=False)
    stop = round((3.05 + 0.1 * (CONTEXT_WORDS + 4)) * RATE)
    assert transcript.context(5 * RATE) == DecodingContext(
        " ".join(text for text, _, _ in many[5:]), stop
    )
    assert transcript.context(stop) is None, "what was said does not reach into the buffer"


def test_a_hypothesis_that_went_on_repeats_nothing() -> None:
    """The same word at nearly the same time is another one: a decoder that knows the first says
    so."""
    transcript = Transcript(guard=1.0)
    transcript.push(heard(0, 10, ("very", 8.0, 8.4), ("far", 9.6, 10.0)), final=False)
    said = transcript.context(6 * RATE)
    assert said == DecodingContext("very", round(8.4 * RATE))
    further = heard(6, 16, ("very", 8.4, 8.6), ("far", 9.6, 9.9))
    transcript.suppose(msgspec.structs.replace(further, resumed=True))
    assert transcript.partial_text == "very far"
    transcript.push(msgspec.structs.replace(further, resumed=True), final=True)
    assert transcript.text == "very very far"


def test_what_a_lost_decoder_made_up_is_not_believed() -> None:
    loop = [("and", 3.0 + i / 100, 3.01 + i / 100) for i in range(40)]
    for sealed in (True, False):
        transcript = Transcript(guard=1.0)
        transcript.push(lost(0, 9, ("open", 1.0, 1.3), ("it", 1.4, 1.6), *loop), sealed)
        assert transcript.text == "open it"
        assert transcript.committed_until == round(1.6 * RATE)
        transcript.push(
            heard(1, 9, ("it", 1.4, 1.6), ("and", 3.0, 3.2), ("go", 3.3, 3.6)), final=True
        )
        assert transcript.text == "open it and go"


def test_the_word_that_was_cut_is_not_believed() -> None:
    transcript = Transcript()
    transcript.push(lost(0, 9, ("open", 1.0, 1.3), ("the", 1.4, 1.6), ("do", 1.7, 1.8)), final=True)
    assert transcript.text == "open the"


def test_a_decoder_that_was_lost_from_the_first_word_on_is_passed_over() -> None:
    transcript = Transcript(guard=1.0)
    transcript.push(
        lost(0, 9, *[("and", 3.0 + i / 100, 3.01 + i / 100) for i in range(40)]), final=False
    )
    assert (transcript.text, transcript.committed_until) == ("", 8 * RATE)


def test_committed_times_never_overlap() -> None:
    transcript = Transcript(guard=1.0)
    transcript.push(heard(0, 10, ("one", 7.0, 8.2), ("two", 8.1, 8.9)), final=False)
    transcript.push(
        heard(7, 12, ("two", 8.0, 8.8), ("three", 8.6, 9.9), ("four", 9.9, 9.9)), final=True
    )
    assert transcript.text == "one two three four"
    for left, right in pairwise(transcript.words):
        assert left.start < left.stop <= right.start


@pytest.mark.parametrize("distance", [0.0, 0.3, 0.7])
def test_equal_words_align_over_some_distance(distance: float) -> None:
    assert align([word("a", 1, 1.2)], [word("a", 1 + distance, 1.2 + distance)]) == [(0, 0)]


def test_different_words_align_only_where_they_overlap() -> None:
    assert align([word("for", 1, 1.2)], [word("four", 1.1, 1.3)]) == [(0, 0)]
    assert align([word("for", 1, 1.2)], [word("day", 1.4, 1.6)]) == []


def test_alignment_keeps_the_order() -> None:
    one = [word(t, i / 2, i / 2 + 0.3) for i, t in enumerate(["a", "b", "a", "b", "a"])]
    pairs = align(one, one[1:])
    assert pairs == [(1, 0), (2, 1), (3, 2), (4, 3)]


# -- the whole law: any words, any cuts, any jitter
# -------------------------------------------------------------------

WORDS = ("one", "two", "red", "door", "the", "a", "five")


def spoken(random: np.random.Generator, count: int, repeats: bool = True) -> list[Word]:
    """Return words of 0.12 to 0.6 s with gaps of 0.02 to 0.5 s, with `repeats` one in three like
    the word before."""
    words: list[Word] = []
    position = 0.2
    for _ in range(count):
        text = str(random.choice(WORDS))
        if words and repeats and random.random() < 0.2:
            text = words[-1].text
        elif words and not repeats and text == words[-1].text:
            text += "s"
        length = random.uniform(0.12, 0.6)
        words.append(word(text, position, position + length))
        position += length + random.uniform(0.02, 0.5)
    return words


def listen(
    truth: list[Word], start: int, stop: int, random: np.random.Generator, jitter: float
) -> Hypothesis:
    """Return what an ideal model says of a buffer: each whole word once, in order, its times off by
    up to `jitter` s.

    Words that the edges cut are heard as something else, or not at all.
    """
    found: list[Word] = []
    least = start
    for w in truth:
        whole = start <= w.start and w.stop <= stop
        share = (min(w.stop, stop) - max(w.start, start)) / (w.stop - w.start)
        if not whole and (share < 0.3 or random.random() < 0.5):
            continue
        off = round(random.uniform(-jitter, jitter) * RATE)
        left = min(max(w.start + off, least), stop - 1)
        right = min(max(w.stop + off, left + 1), stop)
        found.append(Word(w.text if whole else w.text[:1] + "?", left, right))
        least = left
    return Hypothesis(" ".join(w.text for w in found), found, start, stop)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 120),
    jitter=st.sampled_from([0.0, 0.05, 0.1, 0.15, 0.3]),
    left=st.sampled_from([1.5, 2.0, 3.0, 4.0]),
    twice=st.booleans(),
    resumes=st.booleans(),
)
def test_ideal_hypotheses_give_exactly_the_words(
    seed: int, count: int, jitter: float, left: float, twice: bool, resumes: bool
) -> None:
    random = np.random.default_rng(seed)
    # A word said twice in a row can be counted only while its two readings lie closer than the next
    # word.
    truth = spoken(random, count, repeats=jitter < 0.3)
    transcript = Transcript(guard=1.0)
    end, stop, start = truth[-1].stop + RATE, 0, 0
    before: list[Word] = []
    while stop < end:
        stop = min(end, start + round(random.uniform(7.0, 10.0) * RATE))
        said = transcript.context(start) if resumes else None
        rest = truth if said is None else truth[len(transcript.words) :]
        buffers = [listen(rest, start, each, random, jitter) for each in (stop - 12_000, stop)]
        earlier, heard = [
            msgspec.structs.replace(each, resumed=said is not None) for each in buffers
        ]
        new = transcript.push(heard, stop == end, earlier if twice else None)
        assert transcript.words == before + new, "committed words never change"
        before = list(transcript.words)
        start = max(start + RATE, transcript.committed_until - round(left * RATE))
    assert [w.text for w in transcript.words] == [w.text for w in truth]


@settings(max_examples=100, deadline=None)
@example(seed=51, count=16, jitter=0.3)  # words squeezed at an edge
@given(
    seed=st.integers(0, 2**32), count=st.integers(1, 80), jitter=st.sampled_from([0.0, 0.2, 0.3])
)
def test_pauses_seal_and_nothing_is_lost_there(seed: int, count: int, jitter: float) -> None:
    random = np.random.default_rng(seed)
    truth = spoken(random, count)
    transcript = Transcript()
    cuts = sorted(random.choice(len(truth) + 1, size=min(5, len(truth)), replace=False))
    edges = [
        0,
        *((truth[i - 1].stop + truth[i].start) // 2 for i in cuts if 0 < i < len(truth)),
        truth[-1].stop,
    ]
    for start, stop in pairwise(edges):
        transcript.push(listen(truth, start, stop, random, jitter), final=True)
    assert [w.text for w in transcript.words] == [w.text for w in truth]
