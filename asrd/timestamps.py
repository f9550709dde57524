"""Timed tokens of one buffer -> words with timestamps on the sample clock.

Knows tokens, frames and letters; knows neither sound nor what decodes. Runs in the worker.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from . import wire


class Token(NamedTuple):
    """One token of the tokenizer and where it is, in encoder frames from the buffer's start; stop is one past."""

    id: int
    start: float
    stop: float
    confidence: float | None
    """Its probability, 0..1; None where the decoder gives none."""


class Decoded(NamedTuple):
    """What one buffer says. `truncated`: Canary's guard, or its decoder's own limit, cut it."""

    text: str
    tokens: list[Token]
    truncated: bool
    resumed: bool = False
    """Whether it is only what follows a path that was given."""


def timed(
    ids: Sequence[int], starts: Sequence[int], stops: Sequence[int], sure: Sequence[Any], count: int
) -> list[Token]:
    """Return tokens for ids with the frames they begin and naturally end at, in a buffer of `count` frames.

    Tokens of one frame share it in equal parts; no token reaches past the next one's start.
    """
    sharing, seen = Counter(starts), Counter[int]()
    begins: list[float] = []
    for start in starts:
        begins.append(start + seen[start] / sharing[start])
        seen[start] += 1
    limits = [*begins, float(count)][1:]
    return [
        Token(number, begin, min(max(float(stop), begin), limit), c)
        for number, begin, stop, limit, c in zip(ids, begins, stops, limits, sure, strict=True)
    ]


def words(decoded: Decoded, model: Any, samples_per_frame: int, start: int, stop: int) -> list[wire.Word]:
    """Return one Word for each word of the text, in order, on the sample clock.

    A word begins where its first letter's token does and ends where its last letter's does; within a token that is
    shared by words, time runs evenly over its letters. Starts never fall, no word reaches past the next one's start,
    all lie inside [start, stop].

    Args:
        samples_per_frame: samples of one encoder frame.
        start, stop: first and one past the last sample of what was encoded.
    """
    texts = decoded.text.split()
    letters = sum(map(len, texts))
    spread = _letters(decoded.tokens, model, letters)
    begins, ends = [a for _, a, _ in spread], [b for _, _, b in spread]
    found, place = [], 0
    for text in texts:
        first, last = place, place + len(text)
        place = last
        own = spread[bisect_right(ends, first) : bisect_left(begins, last)]
        if own:
            begin, end = _at(own[0], first), _at(own[-1], last)
        else:  # a text without tokens
            begin, end = ((stop - start) / samples_per_frame * point / letters for point in (first, last))
        sure = [token.confidence for token, _, _ in own]
        least = min((c for c in sure if c is not None), default=None)
        found.append((text, begin, end, None if None in sure else least))
    starts = [min(max(start + round(begin * samples_per_frame), start), stop) for _, begin, _, _ in found]
    starts = list(accumulate(starts, max))
    limits = [*starts, stop][1:]
    return [
        wire.Word(text, first, min(max(start + round(end * samples_per_frame), first), limit), sure)
        for (text, _, end, sure), first, limit in zip(found, starts, limits, strict=True)
    ]


def _letters(tokens: list[Token], model: Any, total: int) -> list[tuple[Token, float, float]]:
    """Return tokens with the part [a, b) of the text's letters (what is not white space) that each stands for.

    Counted token by token; where that does not add up to the text (bytes of one letter, tags that were stripped), the
    counts are stretched to fit.
    """
    known: dict[int, int] = model.__dict__.setdefault("_letters", {})  # a token's own never change
    for token in tokens:
        if token.id not in known:
            known[token.id] = len("".join(say(model, [token.id]).split()))
    counts = [known[token.id] for token in tokens]
    scale = total / sum(counts) if sum(counts) else 0.0
    edges = [0.0]
    for count in counts:
        edges.append(edges[-1] + count)
    pairs = zip(tokens, pairwise(edges), strict=True)
    return [(token, a * scale, b * scale) for token, (a, b) in pairs if b * scale > a * scale]


def _at(part: tuple[Token, float, float], letter: float) -> float:
    """Return when a letter of a token was, in frames."""
    token, a, b = part
    share = min(1.0, max(0.0, (letter - a) / (b - a)))
    return token.start + share * (token.stop - token.start)


def say(model: Any, ids: list[int]) -> str:
    """Return NeMo's text for token ids."""
    decoding = model.decoding
    say = getattr(decoding, "decode_tokens_to_str_with_strip_punctuation", None) or decoding.decode_ids_to_str
    return str(say(ids))
