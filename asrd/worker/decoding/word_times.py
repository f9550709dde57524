"""Timed tokens of one buffer -> words with timestamps on the sample clock.

It knows tokens, frames and letters; it knows neither audio nor decoders.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from asrd import protocol
from asrd.audio.format import SAMPLE_RATE
from asrd.text.spacing import Part, letters, parted

MAX_WORD_SECONDS = 1.5
"""A longer word is not an ordinary one, and might not fit into a window: it is divided into its
letters, each joined to the one before."""

ROUNDING_LETTERS = 1e-3
"""Letters by which two places in a text may differ by rounding alone."""

REPLACEMENT = "\ufffd"
"""The letter that a decoder writes for bytes which are no letter by themselves."""


class Token(NamedTuple):
    """One token of the tokenizer and where it is, in encoder frames from the buffer's start; stop
    is one past."""

    id: int
    start: float
    stop: float
    confidence: float | None
    """Its probability, 0..1; None where the decoder gives none."""


class Decoded(NamedTuple):
    """The text of one buffer and its tokens."""

    text: str
    tokens: list[Token]
    truncated: bool
    """Whether Canary's guard, or its decoder's own limit, cut it."""
    resumed: bool = False
    """Whether it is only what follows a path that was given."""


def timed_tokens(
    ids: Sequence[int],
    starts: Sequence[int],
    stops: Sequence[int],
    confidences: Sequence[Any],
    count: int,
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
    tokens = []
    for each in zip(ids, begins, stops, limits, confidences, strict=True):
        number, begin, stop, limit, confidence = each
        tokens.append(Token(number, begin, min(max(float(stop), begin), limit), confidence))
    return tokens


def words(
    decoded: Decoded, model: Any, samples_per_frame: int, start: int, stop: int
) -> list[protocol.Word]:
    """Return the words of the text, in order, on the sample clock; one that takes too long is
    divided into its letters.

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
    length = sum(map(len, map(attrgetter("text"), parts)))
    clock = _Clock(decoded.tokens, model, length, (stop - start) / samples_per_frame)
    found = clock.timed(parts)
    pieces: list[Part] = []
    for one in found:
        pieces += one.pieces(MAX_WORD_SECONDS * SAMPLE_RATE / samples_per_frame)
    if len(pieces) > len(found):
        found = clock.timed(pieces)
    starts: list[int] = []
    earliest = start
    for one in found:
        # A start never falls: it is at least that of the word before.
        earliest = max(earliest, min(start + round(one.start * samples_per_frame), stop))
        starts.append(earliest)
    placed = []
    for one, first, limit in zip(found, starts, [*starts, stop][1:], strict=True):
        end = start + round(one.stop * samples_per_frame)
        placed.append(one.placed(first, min(max(end, first), limit)))
    return placed


class _Timed(NamedTuple):
    """A word of the text, in encoder frames."""

    part: Part
    start: float
    stop: float
    confidence: float | None
    same_token: bool
    """Whether its first token begins before it."""

    def pieces(self, longest: float) -> list[Part]:
        """Return the word, or its letters where it takes more than `longest` frames."""
        if self.stop - self.start <= longest:
            return [self.part]
        first, *others = letters(self.part.text)
        return [Part(first, self.part.joined), *(Part(letter, True) for letter in others)]

    def placed(self, start: int, stop: int) -> protocol.Word:
        """Return the word with its samples on the clock."""
        text, joined = self.part
        return protocol.Word(text, start, stop, self.confidence, joined, self.same_token)


class _Share(NamedTuple):
    """The part [begin, end) of a text's letters that a token stands for."""

    token: Token
    begin: float
    end: float

    def time_of(self, letter: float) -> float:
        """Return when a letter of the token was, in frames."""
        token = self.token
        share = min(1.0, max(0.0, (letter - self.begin) / (self.end - self.begin)))
        return token.start + share * (token.stop - token.start)


class _Clock:
    """When each letter of a text was, by the tokens that it came from.

    Args:
        total: letters of the text, without white space.
        frames: encoder frames of the buffer, over which a text without tokens is spread evenly.
    """

    def __init__(self, tokens: list[Token], model: Any, total: int, frames: float) -> None:
        self._total, self._frames = total, frames
        self._shares = _shares(tokens, model, total)

    def timed(self, parts: Sequence[Part]) -> list[_Timed]:
        """Return words that follow one another from the text's first letter on."""
        found, first = [], 0
        for part in parts:
            last = first + len(part.text)
            found.append(self._timed(part, first, last))
            first = last
        return found

    def _timed(self, part: Part, first: int, last: int) -> _Timed:
        """Return a word whose letters are [first, last)."""
        begin = bisect_right(self._shares, first, key=attrgetter("end"))
        own = self._shares[begin : bisect_left(self._shares, last, key=attrgetter("begin"))]
        if not own:  # a text without tokens
            frames = self._frames
            start, stop = frames * first / self._total, frames * last / self._total
            return _Timed(part, start, stop, None, False)
        shared = first > 0 and own[0].begin + ROUNDING_LETTERS < first
        start, stop = own[0].time_of(first), own[-1].time_of(last)
        return _Timed(part, start, stop, _least_confidence(own), shared)


def _least_confidence(shares: Sequence[_Share]) -> float | None:
    """Return the smallest confidence of tokens; None where one of them has none."""
    least = math.inf
    for share in shares:
        if share.token.confidence is None:
            return None
        least = min(least, share.token.confidence)
    return least


def _spaced(tokens: list[Token], model: Any) -> bool:
    """Return whether the first word of tokens has a space before it: a token that has one keeps it
    behind another."""
    for token in tokens:
        alone = text_of(model, [token.id]).strip()
        if not alone:  # a token of white space only
            return True
        twice = text_of(model, [token.id, token.id]).strip()
        return twice != alone + alone
    return True


def _shares(tokens: list[Token], model: Any, total: int) -> list[_Share]:
    """Return the part of the text's letters that each token stands for.

    Counted token by token; where that does not add up to the text (tags that were stripped), the
    counts are stretched to fit.
    """
    counts: list[float] = []
    for run in _letter_counts(tokens, model):
        counts += run
    counted = sum(counts)
    if not counted:
        return []
    scale = total / counted
    shares, edge = [], 0.0
    for token, count in zip(tokens, counts, strict=True):
        begin, edge = edge, edge + count
        if edge * scale > begin * scale:
            shares.append(_Share(token, begin * scale, edge * scale))
    return shares


def _letter_counts(tokens: list[Token], model: Any) -> Iterator[list[float]]:
    """Yield how many letters each token has; tokens that are bytes of letters share what they make
    together."""
    texts: dict[int, str] = model.__dict__.setdefault("_texts", {})  # a token's own never change
    for token in tokens:
        if token.id not in texts:
            texts[token.id] = "".join(text_of(model, [token.id]).split())
    for broken, group in groupby(tokens, lambda token: REPLACEMENT in texts[token.id]):
        ids = [token.id for token in group]
        if broken:
            whole = "".join(text_of(model, ids).split())
            yield [len(whole) / len(ids)] * len(ids)
        else:
            yield [len(texts[number]) for number in ids]


def text_of(model: Any, ids: list[int]) -> str:
    """Return NeMo's text for token ids."""
    decoding = model.decoding
    decode = (
        getattr(decoding, "decode_tokens_to_str_with_strip_punctuation", None)
        or decoding.decode_ids_to_str
    )
    return str(decode(ids))
