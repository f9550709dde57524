"""Hypotheses come in, committed text comes out, each word once.

A sealed hypothesis is final as a whole. Of an open one only the words that end well before its edge
are; the rest waits for the next buffer, which hears them again with more behind them. Where two
hypotheses overlap they are aligned in time, word by word and in order; equal text only widens how
far two readings may lie apart. One that a decoder gave by going on from `context` overlaps nothing.
Committed words never change; a partial result changes nothing.
Pure.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Container, Sequence
from itertools import pairwise

import msgspec

from asrd.audio.format import SAMPLE_RATE
from asrd.protocol import DecodingContext, Hypothesis, Word
from asrd.text.spacing import bare, continues, glued, join, letters

REACH_SECONDS = 0.8
"""Seconds that two readings of one word may lie apart when their texts agree."""

DIFFERENCE_SECONDS = 0.5
"""Seconds of that reach which a difference in text costs."""

UNPAIRED_SECONDS = 0.3
"""Seconds of reach that a word costs which one reading has and the other has not, though it goes on
after it."""

RUN_ON_WORDS, RUN_ON_SECONDS = 8, 0.4
"""So many words within so many seconds were not spoken: a decoder that lost the sound made them
up."""

CONTEXT_WORDS = 20
"""Words that a decoder is told which goes on behind them; 5 of them, or all there were, gave the
same error rates."""

MISSED_WORDS = 4
"""So many words in a row that only the later of two hypotheses has were spoken, and missed the first
time."""

CREDIBLE_CONFIDENCE = 0.7
"""Confidence that some word must reach where the detector, too, doubted that anybody spoke."""

LASTING_SECONDS = 0.3
"""Seconds of such speech in which one word that reaches it is enough; in a shorter burst it takes
two."""


class Transcript:
    """The words of a recording so far.

    Args:
        guard: seconds before the edge of an open hypothesis within which words are not yet
            believed.
    """

    def __init__(self, guard: float = 2.0) -> None:
        self.guard = round(guard * SAMPLE_RATE)
        self.words: list[Word] = []
        """Committed words in order; their times never overlap."""
        self.committed_until = 0
        """Sample up to which the text is final; what a Window wants to know after an open
        buffer."""
        self._until_pause = 0
        self._pending: list[Word] = []
        self._supposed: list[Word] = []

    @property
    def partial_text(self) -> str:
        """The words behind the committed ones, as they were last decoded; any of them may still
        change."""
        return join(self._supposed)

    @property
    def text(self) -> str:
        """The committed words."""
        return join(self.words)

    @property
    def torn(self) -> bool:
        """Whether only some letters of the last word are committed."""
        return bool(self.words and self._pending) and continues(self.words[-1], self._pending[0])

    def context(self, start: int) -> DecodingContext | None:
        """Return the last words since the last pause; None where they do not reach into a buffer
        that begins there."""
        words = self.words[max(self._until_pause, len(self.words) - CONTEXT_WORDS) :]
        if not words or words[-1].stop <= start:
            return None
        return DecodingContext(join(words), words[-1].stop)

    def suppose(self, hypothesis: Hypothesis) -> None:
        """Take the hypothesis of speech that goes on: it changes the partial text and nothing else."""
        believable = _believable(hypothesis) if hypothesis.truncated else hypothesis
        self._supposed = self._fresh(self._continued(believable))

    def push(
        self, hypothesis: Hypothesis, final: bool, earlier: Hypothesis | None = None
    ) -> list[Word]:
        """Take the hypothesis of one buffer; return the words that this committed.

        Args:
            hypothesis: of one buffer.
            final: whether it ends in a pause.
            earlier: the hypothesis of the same speech from the same start, when there was less of it.
                Of an open hypothesis nothing is committed from the first word on that is in its
                later half and not in this.

        Hypotheses come in the order of their starts; one that starts before `committed_until`
        overlaps the last one. Of a truncated one the words before the decoder lost itself are
        final, and `committed_until` stays there.
        """
        limit = hypothesis.stop
        if not final:
            limit = max(self.committed_until, hypothesis.stop - self.guard)
        if hypothesis.truncated:
            hypothesis = _believable(hypothesis)
            final, limit = False, min(limit, hypothesis.stop)
        hypothesis = self._continued(hypothesis)
        fresh = self._fresh(hypothesis)
        doubted = _doubted(hypothesis, earlier) if earlier is not None and not final else ()
        count = len(fresh)
        if not final:
            count = _certain(fresh, limit, doubted)
        if not final:
            while 0 < count < len(fresh) and fresh[count].same_token:
                count -= 1
            count = self._before_open_word(fresh, count, (hypothesis.start + hypothesis.stop) // 2)
        self._pending = self._supposed = fresh[count:]
        new = self._commit(fresh[:count])
        if final:
            self._until_pause = len(self.words)
        if self._pending:
            limit = min(limit, max(self._pending[0].start, self._end))
        # Words squeezed at the edge of a sealed buffer may end a sample after it; what follows
        # begins at the edge.
        self.committed_until = max(self.committed_until, limit if final else max(self._end, limit))
        return new

    def restore(self, words: Sequence[Word], until_pause: int, until: int) -> None:
        """Go on behind words that an earlier transcript had committed up to `until`, `until_pause` of
        them by a pause."""
        self.words, self._until_pause, self.committed_until = list(words), until_pause, until

    @property
    def until_pause(self) -> int:
        """Committed words up to the last pause."""
        return self._until_pause

    def reopen(self, until: int) -> None:
        """Go back to where the text was final up to `until`; there must have been no word since."""
        self.committed_until = until
        self._pending = self._supposed = []

    @property
    def _end(self) -> int:
        if not self.words:
            return 0
        return self.words[-1].stop

    def _commit(self, words: Sequence[Word]) -> list[Word]:
        """Append words, moving a start that lies before the end of the word before it."""
        new = []
        for word in words:
            start = max(word.start, self._end)
            new.append(msgspec.structs.replace(word, start=start, stop=max(word.stop, start + 1)))
            self.words.append(new[-1])
        return new

    def _continued(self, hypothesis: Hypothesis) -> Hypothesis:
        """Return a hypothesis as the text so far goes on with it.

        Its first word has what stands between it and the last one: a model that begins anew does
        not know that. Words that are too long for the window, or go over the place up to which a
        word was committed letter by letter, come letter by letter.
        """
        words = list(hypothesis.words)
        if words and self.words and not hypothesis.resumed:
            joined = glued(self.words[-1].text, words[0].text)
            words[0] = msgspec.structs.replace(words[0], joined=joined)
        torn = self._torn(hypothesis.start)
        pieces: list[Word] = []
        for word in words:
            if self._too_long(word) or _meets(word, torn):
                pieces += _letters(word)
            else:
                pieces.append(word)
        return msgspec.structs.replace(hypothesis, words=pieces)

    def _too_long(self, word: Word) -> bool:
        return word.stop - word.start > 2 * self.guard

    def _torn(self, start: int) -> range:
        """Return where the last word lies, as far as a buffer from `start` hears it, if it came
        letter by letter."""
        if not self.words:
            return range(0)
        first = last = len(self.words) - 1
        while (
            first
            and self.words[first].stop > start
            and continues(self.words[first - 1], self.words[first])
        ):
            first -= 1
        return (
            range(self.words[first].start, self.committed_until)
            if first < last or self.torn
            else range(0)
        )

    def _before_open_word(self, fresh: Sequence[Word], count: int, half: int) -> int:
        """Return how many words to commit of `count`, so that no word is torn which the next buffer
        hears as a whole.

        Args:
            half: the middle of the buffer; a word that began before it does not fit into the next
                one either.
        """
        first = count
        while 0 < first < len(fresh) and continues(fresh[first - 1], fresh[first]):
            first -= 1
        torn_before = first == 0 and count and self.words and continues(self.words[-1], fresh[0])
        return (
            first
            if not torn_before and first < len(fresh) and fresh[first].start >= half
            else count
        )

    def _fresh(self, hypothesis: Hypothesis) -> list[Word]:
        """Return the words of a hypothesis that are not committed yet."""
        if hypothesis.resumed or hypothesis.start >= self.committed_until:
            return list(hypothesis.words)
        known = self.words[bisect_right(self.words, hypothesis.start, key=lambda word: word.stop) :]
        pairs = align(hypothesis.words, known + self._pending)
        repeated, waited_for, repeats_last = 0, set(), False
        for number, earlier in pairs:
            if earlier >= len(known):
                waited_for.add(number)
                continue
            repeated = max(repeated, number + 1)
            repeats_last = repeats_last or earlier == len(known) - 1
        rest = list(hypothesis.words[repeated:])
        news = []
        for number, word in enumerate(rest, repeated):
            news.append(number in waited_for or _middle(word) > self.committed_until)
        early = len(news)
        if True in news:
            early = news.index(True)
        if early >= MISSED_WORDS and repeats_last:
            return rest
        return list(itertools.compress(rest, news))


def credible(hypothesis: Hypothesis, spoken: float) -> bool:
    """Return whether words from doubtful speech are accepted: soft words are, those made of
    a chord hardly.

    Args:
        spoken: seconds for which the detector took it for speech at all.
    """
    clear = 0
    for word in hypothesis.words:
        clear += word.confidence is None or word.confidence >= CREDIBLE_CONFIDENCE
    return clear > 1 or (clear == 1 and spoken >= LASTING_SECONDS)


def _certain(words: Sequence[Word], limit: int, doubted: Container[Word]) -> int:
    """Return how many words at the beginning end before `limit` and are not doubted."""
    for count, word in enumerate(words):
        if word.stop > limit or word in doubted:
            return count
    return len(words)


def align(later: Sequence[Word], earlier: Sequence[Word]) -> list[tuple[int, int]]:
    """Return the pairs of indices of words that are one word decoded twice, in order.

    Maximises the sum over pairs of REACH_SECONDS minus their distance in time, which grows by DIFFERENCE_SECONDS
    where texts differ. A word may stay alone on either side: at no cost after the end of the other
    side, else for UNPAIRED_SECONDS. O(len(later) * len(earlier)).
    """
    texts = [bare(word.text) for word in earlier]
    gains = [
        [_gain(a, b, bare(a.text) == text) for b, text in zip(earlier, texts, strict=True)]
        for a in later
    ]
    best = [[0.0] * (len(earlier) + 1) for _ in range(len(later) + 1)]
    step = [[0] * len(earlier) for _ in later]
    for i in range(len(later) - 1, -1, -1):
        for j in range(len(earlier) - 1, -1, -1):
            choices = (
                best[i + 1][j] - UNPAIRED_SECONDS,
                best[i][j + 1] - UNPAIRED_SECONDS,
                gains[i][j] + best[i + 1][j + 1],
            )
            step[i][j] = choices.index(max(choices)) if max(choices) > 0 else 3
            best[i][j] = max(0.0, *choices)
    pairs, i, j = [], 0, 0
    while i < len(later) and j < len(earlier) and step[i][j] != 3:
        if step[i][j] == 2:
            pairs.append((i, j))
        i, j = i + (step[i][j] != 1), j + (step[i][j] != 0)
    return pairs


def _doubted(hypothesis: Hypothesis, earlier: Hypothesis) -> set[Word]:
    """Return the words in the later half of a hypothesis that an earlier one has not, or has
    otherwise.

    Not those in the first half: both had enough audio after them, and a window has to move on.
    """
    pairs = align(hypothesis.words, earlier.words)
    agreed = {a for a, b in pairs if bare(hypothesis.words[a].text) == bare(earlier.words[b].text)}
    half = (hypothesis.start + hypothesis.stop) // 2
    return {
        word
        for index, word in enumerate(hypothesis.words)
        if index not in agreed and word.start >= half
    }


def _believable(hypothesis: Hypothesis) -> Hypothesis:
    """Return the part of a truncated hypothesis before its decoder ran on, and without the word it
    was cut in."""
    words = hypothesis.words[:-1]
    for index in range(len(words) - RUN_ON_WORDS):
        if words[index + RUN_ON_WORDS].start - words[index].start < RUN_ON_SECONDS * SAMPLE_RATE:
            words = words[:index]
            break
    stop = words[-1].stop if words else hypothesis.stop
    return msgspec.structs.replace(hypothesis, words=words, stop=stop)


def _gain(one: Word, other: Word, same: bool) -> float:
    """Return how much it is worth to take two words for one; negative when they are not."""
    apart = abs(_middle(one) - _middle(other)) / SAMPLE_RATE
    return REACH_SECONDS - apart - (0 if same else DIFFERENCE_SECONDS)


def _letters(word: Word) -> list[Word]:
    """Return a word letter by letter, over which its time runs evenly."""
    found = letters(word.text)
    edges = [
        word.start + (word.stop - word.start) * number // len(found)
        for number in range(len(found) + 1)
    ]
    pieces = [
        msgspec.structs.replace(word, text=letter, start=start, stop=stop, joined=True)
        for letter, (start, stop) in zip(found, pairwise(edges), strict=True)
    ]
    return [msgspec.structs.replace(pieces[0], joined=word.joined), *pieces[1:]]


def _meets(word: Word, span: range) -> bool:
    return word.start < span.stop and word.stop > span.start and bool(span)


def _middle(word: Word) -> int:
    return (word.start + word.stop) // 2
