"""Which buffers without a word are asked for again, and what of the answers stands.

A candidate that makes no word of clear speech may be broken. Clear speech without a word is counted
until a word is found; at a limit its buffers are asked for again. FP32 without a word is right.
Falls back by what its caller hands in. Runs in the daemon, and in the verbs that transcribe files.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from asrd.engine.engine import Engine
from asrd.precision.plan import Candidate
from asrd.protocol import Answer
from asrd.streaming.segmenter import SegmentBuffer

MAX_KEPT_BUFFERS = 12
"""Buffers without a word that are kept, to be asked for again."""

MAX_CANDIDATES = 8
"""Candidates that are asked for one buffer; no fallback order has more."""

FallBack = Callable[[Candidate, str, str, dict[str, float]], Awaitable[bool]]
"""Leaves a candidate for a kind of failure, a sentence and figures; returns whether another one is
in service."""

AskAgain = Callable[[], Awaitable[list[Answer]]]
"""Asks the candidate in service for all wordless buffers."""


class EmptyCheck(enum.Enum):
    """What is to be done about a buffer's answer."""

    KEEP = enum.auto()
    """It stands."""
    ASK_AGAIN = enum.auto()
    """FP32 is in service by now: it is asked for the wordless buffers before this one."""
    FALL_BACK = enum.auto()
    """The next candidate is asked for all wordless buffers, this one included."""


class WordlessBuffer(NamedTuple):
    """A buffer whose answer has no word."""

    buffer: SegmentBuffer
    until: int
    """Sample up to which the text was final before it."""
    clear_seconds: float
    """Seconds of clear speech in it."""


class Settled(NamedTuple):
    """What stands after buffers were asked for again."""

    answers: list[tuple[SegmentBuffer, Answer]]
    reopen_at: int | None
    """Sample from which the text is open again; None where it stays as it is."""


class EmptyRetry:
    """Counts the clear speech of one recording that gave no word.

    Args:
        limit_seconds: clear speech without a word at which a candidate is left; 0: never.
    """

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self.seconds_before = 0.0
        """Seconds of clear speech without a word in the recordings before this one."""
        self.wordless: list[WordlessBuffer] = []
        """Buffers since the last word, oldest first."""

    @property
    def seconds(self) -> float:
        """Seconds of clear speech since the last word, in this recording."""
        return sum(one.clear_seconds for one in self.wordless)

    @property
    def total_seconds(self) -> float:
        """Seconds of clear speech since the last word, earlier recordings included."""
        return self.seconds_before + self.seconds

    def check(
        self, buffer: SegmentBuffer, answer: Answer, until: int, clear_seconds: float, plain: bool
    ) -> EmptyCheck:
        """Return what is to be done about an answer.

        Args:
            until: sample up to which the text is final.
            clear_seconds: of the buffer, without what the decoder went on from.
            plain: whether FP32 is in service.
        """
        in_doubt = bool(self.wordless) if plain else not has_words(answer)
        if not self.limit_seconds or not in_doubt:
            self.forget()
            return EmptyCheck.KEEP
        del self.wordless[: 1 - MAX_KEPT_BUFFERS]
        self.wordless.append(WordlessBuffer(buffer, until, clear_seconds))
        if plain:  # it came into service for another reason
            return EmptyCheck.ASK_AGAIN
        if clear_seconds and self.total_seconds >= self.limit_seconds:
            return EmptyCheck.FALL_BACK
        return EmptyCheck.KEEP

    def settle(self, answer: Answer, answers: Sequence[Answer]) -> Settled:
        """Return what stands, and count from zero again.

        Args:
            answer: the one that was checked last.
            answers: of all wordless buffers, by the candidate asked last; none where there was no
                other candidate.
        """
        if any(map(has_words, answers)):
            buffers = [one.buffer for one in self.wordless]
            found = Settled(list(zip(buffers, answers, strict=True)), self.wordless[0].until)
        else:  # what stood before the last buffer is as it was
            last = answers[-1] if answers else answer
            found = Settled([(self.wordless[-1].buffer, last)], None)
        self.forget()
        return found

    def forget(self) -> None:
        """Count from zero: a word was found, or FP32 found none either."""
        self.wordless, self.seconds_before = [], 0.0


async def ask_next_candidates(
    engine: Engine, answer: Answer, clear_seconds: float, fall_back: FallBack, ask: AskAgain
) -> list[Answer]:
    """Return the answers of the first candidate that finds a word; else those of the last one.

    Where no candidate finds a word, the audio is to blame: those that were left may return.

    Args:
        answer: the one without a word.
        clear_seconds: clear speech without a word.
        ask: asks the candidate in service for all wordless buffers.

    Returns: none where there is no other candidate.
    """
    precision = answer.hypothesis.precision
    why, figures = (
        f"no word in {clear_seconds:.1f} s of clear speech",
        {"clear_seconds": clear_seconds},
    )
    answers, left = list[Answer](), list[str]()
    for _ in range(MAX_CANDIDATES):
        candidate = engine.candidate
        answered = candidate.precision.name == precision  # else another caller has left it already
        if answered and not await fall_back(candidate, "empty", why, figures):
            break
        left.append(candidate.name)
        answers = await ask()
        precision = answers[-1].hypothesis.precision
        if any(map(has_words, answers)):
            return answers
    engine.mark_inherent("empty", left)
    return answers


def has_words(answer: Answer) -> bool:
    """Return whether there is a word at all."""
    return bool(answer.hypothesis.text or answer.hypothesis.words)
