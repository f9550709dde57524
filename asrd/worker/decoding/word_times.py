"""Timed tokens of one buffer -> words with timestamps on the sample clock.

Knows tokens, frames and letters; knows neither sound nor what decodes. Runs in the worker.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

from asrd import protocol
from asrd.audio.format import SAMPLE_RATE
from asrd.text.spacing import Part, letters, parted

MAX_WORD_SECONDS = 1.5
"""A longer word is no ordinary one, and might not fit into a window: it comes letter by letter,
each joined."""

SAME_PLACE = 1e-3
"""Letters by which two places in a text differ for no other reason than rounding."""

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no letter by themselves."""


class Token(NamedTuple):
    """One token of the tokenizer and where it is, in encoder frames from the buffer's start; stop
    is one past."""

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
    """Return tokens for ids with the frames they begin and naturally end at, in a buffer of `count`
    frames.

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


def words(
    decoded: Decoded, model: Any, samples_per_frame: int, start: int, stop: int
) -> list[protocol.Word]:
    """Return the words of the text, in order, on the sample clock; one that takes too long comes
    letter by letter.

    A word begins where its first letter's token does and ends where its last letter's does; within
    a token that is shared by words, time runs evenly over its letters. Starts never fall, no word
    reaches past the next one's start, all lie inside [start, stop].

    Args:
        samples_per_frame: samples of one encoder frame.
        start, stop: first and one past the last sample of what was encoded.
    """
    parts = parted(decoded.text)
    if parts and decoded.resumed and not _spaced(decoded.tokens, model):
        parts[0] = parts[0]._replace(joined=True)
    clock = _Clock(
        decoded.tokens,
        model,
        sum(len(part.text) for part in parts),
        (stop - start) / samples_per_frame,
    )
    found = clock.timed(parts)
    longest = MAX_WORD_SECONDS * SAMPLE_RATE / samples_per_frame
    if any(one.stop - one.start > longest for one in found):
        divided = [
            _pieces(one.part) if one.stop - one.start > longest else [one.part] for one in found
        ]
        found = clock.timed([part for pieces in divided for part in pieces])
    starts = [min(max(start + round(one.start * samples_per_frame), start), stop) for one in found]
    starts = list(accumulate(starts, max))
    ends = [start + round(one.stop * samples_per_frame) for one in found]
    limits = [*starts, stop][1:]
    return [
        protocol.Word(
            one.part.text,
            first,
            min(max(end, first), limit),
            one.confidence,
            one.part.joined,
            one.same_token,
        )
        for one, first, end, limit in zip(found, starts, ends, limits, strict=True)
    ]


class _Timed(NamedTuple):
    """A word of the text, in encoder frames."""

    part: Part
    start: float
    stop: float
    confidence: float | None
    same_token: bool
    """Whether its first token begins before it."""


class _Clock:
    """When each letter of a text was, by the tokens that it came from.

    Args:
        total: letters of the text, all that is not white space.
        frames: encoder frames of the buffer, over which a text without tokens is spread evenly.
    """

    def __init__(self, tokens: list[Token], model: Any, total: int, frames: float) -> None:
        self._total, self._frames = total, frames
        self._spread = _letters(tokens, model, total)
        self._begins, self._ends = [a for _, a, _ in self._spread], [b for _, _, b in self._spread]

    def timed(self, parts: Sequence[Part]) -> list[_Timed]:
        """Return words that follow one another from the text's first letter on."""
        edges = list(accumulate((len(part.text) for part in parts), initial=0))
        return [self._timed(part, *edge) for part, edge in zip(parts, pairwise(edges), strict=True)]

    def _timed(self, part: Part, first: int, last: int) -> _Timed:
        own = self._spread[bisect_right(self._ends, first) : bisect_left(self._begins, last)]
        if own:
            begin, end = _at(own[0], first), _at(own[-1], last)
        else:  # a text without tokens
            begin, end = (self._frames * point / self._total for point in (first, last))
        sure = [token.confidence for token, _, _ in own]
        least = min((c for c in sure if c is not None), default=None)
        shared = bool(own) and own[0][1] + SAME_PLACE < first and first > 0
        return _Timed(part, begin, end, None if None in sure else least, shared)


def _pieces(part: Part) -> list[Part]:
    """Return the letters of a word, which make it again."""
    first, *others = letters(part.text)
    return [Part(first, part.joined), *(Part(letter, True) for letter in others)]


def _spaced(tokens: list[Token], model: Any) -> bool:
    """Tell whether the first word of tokens has a space before it: a token that has one keeps it
    behind another."""
    for token in tokens:
        alone = say(model, [token.id]).strip()
        if not alone:  # a token of white space only
            return True
        twice = say(model, [token.id, token.id]).strip()
        return twice != alone + alone
    return True


def _letters(tokens: list[Token], model: Any, total: int) -> list[tuple[Token, float, float]]:
    """Return tokens with the part [a, b) of the text's letters (what is not white space) that each
    stands for.

    Counted token by token; where that does not add up to the text (tags that were stripped), the
    counts are stretched to fit.
    """
    counts = [count for run in _runs(tokens, model) for count in run]
    scale = total / sum(counts) if sum(counts) else 0.0
    edges = [0.0]
    for count in counts:
        edges.append(edges[-1] + count)
    pairs = zip(tokens, pairwise(edges), strict=True)
    return [(token, a * scale, b * scale) for token, (a, b) in pairs if b * scale > a * scale]


def _runs(tokens: list[Token], model: Any) -> Iterator[list[float]]:
    """Yield how many letters each token has; tokens that are bytes of letters share what they make
    together."""
    known: dict[int, str] = model.__dict__.setdefault("_texts", {})  # a token's own never change
    for token in tokens:
        if token.id not in known:
            known[token.id] = "".join(say(model, [token.id]).split())
    for broken, group in groupby(tokens, lambda token: REPLACEMENT in known[token.id]):
        ids = [token.id for token in group]
        if broken:
            whole = "".join(say(model, ids).split())
            yield [len(whole) / len(ids)] * len(ids)
        else:
            yield [len(known[number]) for number in ids]


def _at(part: tuple[Token, float, float], letter: float) -> float:
    """Return when a letter of a token was, in frames."""
    token, a, b = part
    share = min(1.0, max(0.0, (letter - a) / (b - a)))
    return token.start + share * (token.stop - token.start)


def say(model: Any, ids: list[int]) -> str:
    """Return NeMo's text for token ids."""
    decoding = model.decoding
    say = (
        getattr(decoding, "decode_tokens_to_str_with_strip_punctuation", None)
        or decoding.decode_ids_to_str
    )
    return str(say(ids))
