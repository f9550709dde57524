"""Commands in the text: what each does, what is a command and what is not, and that pieces make the
same whole."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrd.audio.format import SAMPLE_RATE
from asrd.config.voice_commands import ACTIONS, TABLE, bare, table
from asrd.protocol import Word
from asrd.streaming import voice_commands
from asrd.streaming.voice_commands import PAUSE_SECONDS, CommandWriter, write

REST = round(PAUSE_SECONDS * SAMPLE_RATE)
SHIPPED = table({})


def said(text: str) -> list[Word]:
    """Return the words of a text a quarter of a second long each, "|" being a rest."""
    found, at = [], 0
    for word in text.split():
        if word == "|":
            at += REST
        else:
            found.append(Word(word, at, at + 4000))
            at += 4500
    return found


def written(text: str, own: dict[str, str] | None = None, capitals: bool = False) -> str:
    return write(said(text), table(own or {}), capitals)


@pytest.mark.parametrize(
    ("heard", "text"),
    [
        ("hello comma how are you question mark", "hello, how are you?"),
        ("dear alice new line thank you new paragraph bob", "dear alice\nthank you\n\nbob"),
        ("he said open quote no close quote full stop", 'he said "no".'),
        ("see open bracket page two close bracket colon", "see (page two):"),
        ("a well hyphen known fact dash mostly", "a well-known fact – mostly"),
        ("any no space where", "anywhere"),
        ("comma", ","),
        ("new line", "\n"),
        ("wait comma comma what", "wait,, what"),
    ],
)
def test_marks_and_breaks_are_written_where_and_as_they_belong(heard: str, text: str) -> None:
    assert written(heard) == text


@pytest.mark.parametrize(
    ("heard", "text"),
    [
        ("Hello, comma, how are you? Question mark.", "Hello, how are you?"),
        ("Dear Alice, New line. Thank you.", "Dear Alice\nThank you."),
        ("Thank you. New paragraph. Bob", "Thank you.\n\nBob"),
        ("So, open quote, no.", 'So, "no.'),
        ("any, no space, where", "any,where"),
    ],
)
def test_a_mark_that_is_said_takes_the_place_of_what_the_model_put_there(
    heard: str, text: str
) -> None:
    assert written(heard) == text


@pytest.mark.parametrize(
    ("heard", "text"),
    [
        ("one two scratch that three", "three"),
        ("one | two three scratch that four", "one four"),
        ("one | two three | scratch that | four", "one four"),
        ("one full stop two three delete that four", "one. four"),
        ("One. Two three. Scratch that. Four.", "One. Four."),
        ("one full stop scratch that two", "two"),
        ("one full stop new line scratch that two", "one. two"),
        ("one | two | three delete that delete that four", "one four"),
        ("scratch that one", "one"),
        ("cap scratch that one", "one"),
    ],
)
def test_what_was_said_since_the_last_rest_or_sentence_can_be_dropped(
    heard: str, text: str
) -> None:
    assert written(heard) == text


@pytest.mark.parametrize(
    ("heard", "text"),
    [
        ("cap alice and all caps nasa went", "Alice and NASA went"),
        ("cap open quote alice", '"Alice'),
        ("all caps cap alice bob", "Alice bob"),
        ("one cap", "one"),
    ],
)
def test_the_next_word_gets_the_case_that_was_asked_for(heard: str, text: str) -> None:
    assert written(heard) == text


@pytest.mark.parametrize(
    ("heard", "text"),
    [
        ("the word literal comma here", "the word comma here"),
        ("literal new line literal scratch that", "new line scratch that"),
        ("literal literal comma", "literal,"),
        ("literal translation", "literal translation"),
        ("so literal", "so literal"),
        ("literal | comma", "comma"),
    ],
)
def test_literal_before_a_command_writes_it_as_words(heard: str, text: str) -> None:
    assert written(heard) == text


@pytest.mark.parametrize(
    "heard",
    ["a new deal on line two", "new | line", "commas", "full of stop signs", "question | mark"],
)
def test_words_that_are_no_command_stay(heard: str) -> None:
    assert written(heard) == heard.replace(" | ", " ")


def test_capitals_begin_sentences_and_lines_where_they_are_asked_for() -> None:
    heard = "hello there full stop open quote how are you close quote question mark new line fine comma thanks"
    assert written(heard) == 'hello there. "how are you"?\nfine, thanks'
    assert written(heard, capitals=True) == 'Hello there. "How are you"?\nFine, thanks'
    assert write(said("so it is. and was"), {}, capitals=True) == "So it is. And was"


def test_a_users_phrases_go_over_the_shipped_ones() -> None:
    own = {
        "my address": "12 Main Street",
        "comma": "",
        "punkt": "^.",
        "Full Stop": "STOP",
        "new": "^,",
    }
    assert written("send it to my address comma punkt", own) == "send it to 12 Main Street comma."
    assert written("end full stop", own) == "end STOP"
    assert written("new line new car", own) == "\n, car", "the longer phrase goes first"


@pytest.mark.parametrize(
    ("phrase", "text", "word"), [("...", "x", "no word"), ("go back", "{undo}", "{undo}")]
)
def test_a_phrase_that_cannot_be_is_refused(phrase: str, text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        table({phrase: text})


@pytest.mark.parametrize(
    "phrase", [phrase for phrase, text in TABLE.items() if text not in ACTIONS]
)
def test_every_shipped_phrase_writes_its_text_and_its_spaces(phrase: str) -> None:
    text = TABLE[phrase]
    left, right = "" if text[0] == "^" else " ", "" if text[-1] == "^" else " "
    assert written(f"two {phrase} three") == f"two{left}{text.strip('^')}{right}three"


# -- in pieces
# --------------------------------------------------------------------------------------------------------


def test_a_command_over_two_pieces_is_one_and_waits_for_its_end() -> None:
    writing = CommandWriter(SHIPPED)
    one, new, line, two = said("one new line two")
    writing.push([one, new])
    assert writing.send() == "one"
    assert writing.text == "one new", "what waits can be seen"
    writing.push([line])
    assert writing.send() == "\n"
    writing.push([two])
    assert writing.send() == "two"
    assert writing.text == "one\ntwo"


def test_what_was_sent_stays_and_that_is_counted() -> None:
    writing = CommandWriter(SHIPPED)
    words = said("one two | three scratch that scratch that comma")
    writing.push(words[:2])
    assert writing.send() == "one two"
    writing.push(words[2:])
    writing.finish()
    assert (writing.send(), writing.text, writing.missed) == (",", "one two,", 1)


def test_the_beginning_of_a_command_at_the_very_end_is_a_word() -> None:
    writing = CommandWriter(SHIPPED)
    writing.push(said("that is new"))
    assert writing.send() == "that is"
    writing.finish()
    assert writing.send() == "new"


SAYABLE = [
    *sorted({word for phrase in TABLE for word in phrase.split()}),
    "alice",
    "New,",
    "Line.",
    "5",
    "—",
    "no.",
]
SPEECH = st.lists(
    st.tuples(st.sampled_from(SAYABLE), st.sampled_from([0, 0, 0, 1])), max_size=24
).map(lambda pairs: said(" ".join(word + " |" * rest for word, rest in pairs)))


def cut(words: Sequence[Word], places: set[int]) -> list[Sequence[Word]]:
    edges = [0, *sorted(place for place in places if 0 < place < len(words)), len(words)]
    return [words[a:b] for a, b in pairwise(edges)]


@given(SPEECH, st.sets(st.integers(1, 23)), st.booleans())
def test_however_words_come_in_pieces_the_text_is_the_same(
    words: list[Word], places: set[int], capitals: bool
) -> None:
    writing = CommandWriter(SHIPPED, capitals)
    for piece in cut(words, places):
        writing.push(piece)
    writing.finish()
    assert writing.text == write(words, SHIPPED, capitals)


@given(SPEECH, st.sets(st.integers(1, 23)))
def test_sent_parts_are_the_text_and_sent_text_never_changes(
    words: list[Word], places: set[int]
) -> None:
    writing, sent = CommandWriter(SHIPPED), ""
    for piece in [*cut(words, places), []]:
        writing.push(piece)
        if not piece:
            writing.finish()
        sent += writing.send()
        assert "".join(writing.text.split()).startswith("".join(sent.split()))
    assert "".join(writing.text.split()) == "".join(sent.split()), (
        "spaces between two parts are the sinks'"
    )


@given(SPEECH)
def test_without_commands_the_text_is_the_words(words: list[Word]) -> None:
    assert write(words, {}) == " ".join(word.text for word in words)


@given(SPEECH)
def test_every_word_can_be_said_literally(words: list[Word]) -> None:
    """Before each phrase "literal": nothing is obeyed, and all words are there."""
    plain = [Word(bare(word.text) or "x", word.start, word.stop) for word in words]
    spelt: list[Word] = []
    at = 0
    while at < len(plain):
        size = next((n for n in (2, 1) if tuple(w.text for w in plain[at : at + n]) in SHIPPED), 0)
        for word in ([Word("literal", 0, 0)] if size else []) + plain[at : at + max(size, 1)]:
            spelt.append(Word(word.text, 100 * len(spelt), 100 * len(spelt) + 100))
        at += max(size, 1)
    assert write(spelt, SHIPPED) == " ".join(word.text for word in plain)


@given(st.text(max_size=12))
def test_bare_words_have_no_edges_and_no_case(word: str) -> None:
    found = bare(word)
    assert found == bare(found) == bare(f"«{word.upper()}.»".lower()) or not word.isascii()
    assert not found or (found[0].isalnum() and found[-1].isalnum()) or not found.isascii()


def heights() -> dict[str, tuple[int, int]]:
    """Return by name how many texts are put down, around every edge, and how many of them are taken
    away again."""
    dice, size = random.Random(15), voice_commands.TEXTS_AT_ONCE
    found = {}
    for count in [times * size + more for times in range(1, 6) for more in (-1, 0, 1, 2)]:
        taken = dice.choice((0, 1, 2, size, dice.randrange(count)))
        found[f"{count} less {min(taken, count)}"] = count, min(taken, count)
    return found


@pytest.mark.parametrize("name", heights())
def test_a_pile_is_its_texts_wherever_it_is_joined(name: str) -> None:
    count, taken = heights()[name]
    texts = [f" {number}" for number in range(count)]
    pile = voice_commands.Pile(texts)
    for _ in range(taken):
        pile.drop()
    assert pile.text([" end"]) == "".join([*texts[: count - taken], " end"])
    pile.add(" more")
    assert pile.text() == "".join([*texts[: count - taken], " more"])
