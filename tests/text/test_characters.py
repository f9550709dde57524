"""What leaves a model's words, what stays, what a terminal is shown instead: a table, and seeded
members of kinds."""

from __future__ import annotations

import io
import itertools
import json
import random
import unicodedata
from collections.abc import Callable

import msgspec
import pytest

from asrd.engine.reception import bounded, received
from asrd.errors import UsageError
from asrd.precision.memory import Memory
from asrd.protocol import (
    Answer,
    Failed,
    Hypothesis,
    Progress,
    Ready,
    Reply,
    SelfTest,
    Word,
)
from asrd.terminal.output import complain, tell, tell_json
from asrd.text.characters import printable, readable, without_controls

SEED = 14

TABLE = [
    ("plain", "plain"),
    ("two words", "two words"),
    ("", ""),
    ("\x1b[31mred\x1b[0m", "[31mred[0m"),
    ("\x1b]0;title\x07", "]0;title"),
    ("rm -rf ~\n", "rm -rf ~"),
    ("yes\r", "yes"),
    ("one\r\ntwo", "one two"),
    ("one\n\n\ntwo", "one two"),
    ("one\ttwo", "one two"),
    ("one\x0btwo\x0cthree", "one two three"),
    ("one\x85two", "one two"),
    ("one\u2028two\u2029three", "one two three"),
    ("\x03", ""),
    ("\x04\x1a\x1c", ""),
    ("a\x00b", "ab"),
    ("a\x7fb", "ab"),
    ("a\x9b31mb", "a31mb"),
    ("\u202edrowssap", "drowssap"),
    ("a\u2066b\u2069c\u2067\u2068", "abc"),
    ("\u200eleft\u200f \u061cmark", "left mark"),
    ("\ufeffmark of order\ufeff", "mark of order"),
    ("a\u200bb\u2060c", "abc"),
    ("in\u00adner", "inner"),
    ("\ufff9base\ufffagloss\ufffb", "basegloss"),
    ("flag\U000e0067\U000e0062\U000e007f", "flag"),
    ("\U000e0001hidden", "hidden"),
    ("a\ud800b\udfff", "ab"),
    ("a\ufdd0b\uffff\U0010fffe", "ab"),
    ("a\u2065b\ufff0\U000e0fff", "ab"),
    ("\u2061\u2063\u206a\u206f", ""),
    ("\n", ""),
    ("\u200d\u200c", ""),
    ("\ufe0f", ""),
    ("\u00a0", ""),
    (" \u2028 ", ""),
    # What languages need stays.
    ("می\u200cخواهم", "می\u200cخواهم"),
    ("क्\u200dष", "क्\u200dष"),
    ("👩\u200d💻", "👩\u200d💻"),
    ("❤\ufe0f", "❤\ufe0f"),
    ("e\u0301", "e\u0301"),
    ("\u05e9\u05c1\u05dc\u05d5\u05dd", "\u05e9\u05c1\u05dc\u05d5\u05dd"),
    ("\u0600\u0661\u0662", "\u0600\u0661\u0662"),
    ("ᠮ\u180eᠠ", "ᠮ\u180eᠠ"),
    ("voilà\u00a0!", "voilà\u00a0!"),
    ("你\u3000好", "你\u3000好"),
    ("\ufffd", "\ufffd"),
    ("\ue000", "\ue000"),
    ("don’t", "don’t"),
    ("ß ẞ ı İ ﬁ", "ß ẞ ı İ ﬁ"),
]


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_the_table(text: str, expected: str) -> None:
    assert without_controls(text) == expected
    assert without_controls(expected) == expected


BREAKS = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\u2028\u2029"
KINDS: dict[str, tuple[list[int], str]] = {
    "C0": ([code for code in range(0x20) if chr(code) not in BREAKS], ""),
    "DEL and C1": ([code for code in range(0x7F, 0xA0) if chr(code) not in BREAKS], ""),
    "breaks": ([ord(char) for char in BREAKS], " "),
    "bidirectional": ([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C], ""),
    "annotation": ([0xFFF9, 0xFFFA, 0xFFFB], ""),
    "tags": ([0xE0001, *range(0xE0020, 0xE0080)], ""),
    "zero width": (
        [0x200B, 0x2060, 0xFEFF, 0x00AD, *range(0x2061, 0x2065), *range(0x206A, 0x2070)],
        "",
    ),
    "surrogates": ([*range(0xD800, 0xE000)], ""),
    "noncharacters": (
        [
            *range(0xFDD0, 0xFDF0),
            *(plane << 16 | low for plane in range(17) for low in (0xFFFE, 0xFFFF)),
        ],
        "",
    ),
}
"""Kind of character -> its members, and what stays of one between two letters."""


def members(count: int = 24) -> list[tuple[str, str, str]]:
    """Return (kind, text, expected) for seeded members of each kind at seeded places in words of
    many scripts."""
    draw = random.Random(SEED)
    words = [
        "word",
        "Größe",
        "слово",
        "שלום",
        "مرحبا",
        "हिन्दी",
        "日本語",
        "ไทย",
        "한국어",
        "naïve",
        "👍",
    ]
    found = []
    for kind, (codes, stays) in KINDS.items():
        for number in range(count):
            bad = "".join(chr(draw.choice(codes)) for _ in range(draw.randint(1, 4)))
            left, right = draw.choice(words), draw.choice(words)
            text, expected = (
                (left + bad + right, left + stays + right),
                (bad + left + bad, left),
                (f"{left} {bad} {right}", f"{left} {right}"),
            )[number % 3]
            found.append((kind, text, expected))
    return found


@pytest.mark.parametrize(("kind", "text", "expected"), members())
def test_members_of_each_kind(kind: str, text: str, expected: str) -> None:
    assert without_controls(text) == expected


def test_no_category_that_commands_is_left_of_any_character() -> None:
    kept = {
        char for char in map(chr, range(0x110000)) if without_controls(f"a{char}b") == f"a{char}b"
    }
    assert not {char for char in kept if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")}
    formats = sorted(char for char in kept if unicodedata.category(char) == "Cf")
    assert len(formats) == 16
    assert not {
        char
        for char in formats
        if unicodedata.bidirectional(char) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI")
    }
    gone = {char for char in map(chr, range(0x110000)) if char not in kept}
    assert not {char for char in gone if unicodedata.category(char)[0] in "LMNPS"}


# -- on a terminal
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "text", "expected"), members(8))
def test_a_terminal_is_shown_escapes_and_json_stays_what_it_was(
    kind: str, text: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(text)
    tell_json({"text": text})
    complain(UsageError(f"no such file: {text}", f"look for {text}"))
    out, err = capsys.readouterr()
    *shown, document = out.splitlines() if kind != "breaks" else out.rsplit("\n", 2)[:2]
    assert json.loads(document) == {"text": readable(text)}
    assert kind == "surrogates" or readable(text) == text
    for line in (out, err):
        assert without_controls(line.replace("\n", "").replace("\t", "")) == line.replace(
            "\n", ""
        ).replace("\t", "")
    assert len(err.splitlines()) == 2
    assert shown or not text


def test_lines_and_tabs_stay_where_text_has_them() -> None:
    assert printable("a\tb\nc\r") == "a\tb\nc\\u000d"
    assert printable("a\tb\nc", breaks=False) == "a\\u0009b\\u000ac"
    assert printable("\U000e0001") == "\\udb40\\udc01"
    stream = io.StringIO()
    tell("\x1b[2J", stream)
    assert stream.getvalue() == "\\u001b[2J\n"


# -- from a worker
# ----------------------------------------------------------------------------------------------------


def answer(words: list[Word], text: str = "") -> Answer:
    return Answer(1, Hypothesis(text, words, 0, 0), 0.1, 0.1, 0.1)


BAD = "a\x1b\x9b\u202eb\u2028c\n"


@pytest.mark.parametrize(
    "reply",
    [
        Progress(BAD, BAD),
        Failed(BAD, BAD, BAD, component=BAD),
        answer([Word(BAD, 0, 1)], BAD),
        Ready(
            BAD, {BAD: BAD}, [], BAD, BAD, BAD, BAD, 1, 1, {BAD: Memory(source=BAD)}, Memory(source=BAD),
            SelfTest(BAD, BAD, 1.0, True), 1.0, {BAD: BAD}, 7, BAD, {BAD: BAD},
        ),
    ],
    ids=["progress", "failed", "answer", "ready"],
)  # fmt: skip
def test_every_string_of_a_worker_is_cleaned(reply: Reply) -> None:
    found = json.dumps(msgspec.to_builtins(received(reply)), ensure_ascii=False)
    assert "ab c" in found
    assert not [char for char in found if without_controls(f"x{char}x") != f"x{char}x"]
    assert "\\" not in found
    assert msgspec.to_builtins(received(received(reply))) == msgspec.to_builtins(received(reply))


def test_a_traceback_keeps_its_lines() -> None:
    reply = received(Failed("internal", "x", trace="one\ntwo\x1b[2J"))
    assert isinstance(reply, Failed)
    assert reply.trace == "one\ntwo\\u001b[2J"


HUGE = (-(2**63), -(10**12), -1, 0, 1, 2**31, 2**63 - 1, 2**64 - 1, 10**30)

TIMES: list[Callable[[random.Random, int, int], tuple[int, int]]] = [
    lambda draw, start, stop: (draw.choice(HUGE), draw.choice(HUGE)),
    lambda draw, start, stop: (draw.randint(start, stop), draw.choice(HUGE)),
    lambda draw, start, stop: (draw.choice(HUGE), draw.randint(start, stop)),
    lambda draw, start, stop: (stop, start),
    lambda draw, start, stop: (stop, stop),
    lambda draw, start, stop: (draw.randint(start, stop), draw.randint(start, stop)),
]


@pytest.mark.parametrize("seed", range(60))
def test_words_lie_in_their_buffer(seed: int) -> None:
    draw = random.Random(seed)
    start, size = draw.choice((0, 7, 160_000, 10**9)), draw.choice((0, 1, 3, 400, 160_000))
    count = draw.choice((0, 1, 5, 300))
    texts = [draw.choice(("word", "", "x y")) for _ in range(count)]
    sure = [draw.choice((None, -1.0, 0.5, 2.0, 1e300)) for _ in range(count)]
    times = [TIMES[seed % len(TIMES)](draw, start, start + size) for _ in range(count)]
    words = [Word(text, *span, one) for text, span, one in zip(texts, times, sure, strict=True)]
    found = bounded(answer(words), start, size).hypothesis
    assert (found.start, found.stop) == (start, start + size)
    assert [word.text for word in found.words] == [text for text in texts if text][:size]
    for word in found.words:
        assert start <= word.start < word.stop <= start + size
        assert word.confidence is None or 0.0 <= word.confidence <= 1.0


@pytest.mark.parametrize("seed", range(20))
def test_committed_text_ends_with_its_buffer_whatever_the_times_were(seed: int) -> None:
    from asrd.streaming.transcript import Transcript

    draw = random.Random(seed)
    transcript, start = Transcript(), 0
    for _ in range(3):
        size = draw.choice((500, 16_000))
        words = [Word("w", draw.choice(HUGE), draw.choice(HUGE)) for _ in range(300)]
        transcript.push(bounded(answer(words), start, size).hypothesis, final=True)
        assert transcript.words[-1].stop <= start + size
        start += size
    spans = [(word.start, word.stop) for word in transcript.words]
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_a_good_answer_is_left_as_it_is() -> None:
    words = [Word("one", 10, 20, 0.5), Word("two", 20, 40, None)]
    good = msgspec.structs.replace(
        answer(words, "one two"), hypothesis=Hypothesis("one two", words, 0, 100, "fp32")
    )
    assert bounded(good, 0, 100) == good
    assert received(good) == good
