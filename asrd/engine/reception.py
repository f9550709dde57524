"""What a worker sends, made harmless where it enters the daemon: its strings, and the times of its
words.

A worker runs a model's file, so nothing in its messages is trusted beyond its type. Pure.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from asrd.protocol import Answer, Failed, Reply, Word
from asrd.text.characters import printable, readable, without_controls

T = TypeVar("T")


def received(reply: Reply) -> Reply:
    """Return a reply without control characters in any of its strings; a traceback keeps its
    lines."""
    if isinstance(reply, Failed) and reply.trace:
        trace = printable(reply.trace)
        return msgspec.structs.replace(
            _cleaned(msgspec.structs.replace(reply, trace="")), trace=trace
        )
    return _cleaned(reply)


def bounded(answer: Answer, start: int, size: int) -> Answer:
    """Return an answer whose words lie in its buffer and show something.

    Args:
        start: sample index of the buffer's first sample.
        size: samples of the buffer, which are the most words that it can hold.

    Each word gets a sample at least and leaves one to each word behind it, so that words which a
    transcript moves apart still end with their buffer. A confidence lies in 0..1.
    """
    hypothesis = answer.hypothesis
    words = [word for word in hypothesis.words if word.text][:size]
    stop = start + size
    first_end = stop - len(words) + 1
    fitted = [_fitted(word, start, end) for end, word in enumerate(words, first_end)]
    hypothesis = msgspec.structs.replace(hypothesis, words=fitted, start=start, stop=stop)
    return msgspec.structs.replace(answer, hypothesis=hypothesis)


def _fitted(word: Word, start: int, stop: int) -> Word:
    """Return a word inside start..stop, at least one sample long."""
    first = min(max(word.start, start), stop - 1)
    last = min(max(word.stop, first + 1), stop)
    confidence = word.confidence
    if confidence is not None:
        confidence = min(max(confidence, 0.0), 1.0)
    if (first, last, confidence) == (word.start, word.stop, word.confidence):
        return word
    return msgspec.structs.replace(word, start=first, stop=last, confidence=confidence)


def _cleaned(value: T) -> T:
    """Return a value whose strings, however deep, have no control characters."""
    found: Any = value
    if isinstance(value, str):
        found = without_controls(readable(value))
    elif isinstance(value, list | tuple):
        found = type(value)(map(_cleaned, value))
    elif isinstance(value, dict):
        found = dict(zip(map(_cleaned, value), map(_cleaned, value.values()), strict=True))
    elif isinstance(value, msgspec.Struct):
        changed: dict[str, Any] = {}
        for name in value.__struct_fields__:
            field = getattr(value, name)
            if not isinstance(field, int | float | bytes):
                changed[name] = _cleaned(field)
        found = msgspec.structs.replace(value, **changed)
    return found
