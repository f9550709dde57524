"""Words as subtitles, in the formats SubRip and WebVTT (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asrd.audio.format import SAMPLE_RATE
from asrd.protocol import Word
from asrd.text.spacing import continues, join, width

MAX_CUE_SECONDS = 6.0
"""Seconds of the longest subtitle."""

MAX_CUE_LETTERS = 84
"""Letters of the longest subtitle, which has two lines."""

MIN_GAP_SECONDS = 0.8
"""Seconds of silence that always end a subtitle."""

SENTENCE_ENDS = (".", "?", "!", "。", "？", "！")


def subtitles(words: Iterable[Word], shape: str) -> str:
    """Return the words as subtitles, `shape` srt (SubRip) or vtt (WebVTT)."""
    parts: list[str] = []
    point = ","
    if shape == "vtt":
        parts, point = ["WEBVTT\n"], "."
    for number, cue in enumerate(cues(words), 1):
        span = f"{_clock(cue[0].start, point)} --> {_clock(cue[-1].stop, point)}"
        parts.append(f"{number}\n{span}\n{_two_lines(cue)}\n")
    return "\n".join(parts)


def cues(words: Iterable[Word]) -> list[list[Word]]:
    """Group words into subtitles.

    A long silence, six seconds, 84 letters or the end of a sentence ends one. A Chinese or Japanese
    letter counts for two.
    """
    groups: list[list[Word]] = []
    for word in words:
        if groups and _has_room(groups[-1], word):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def _has_room(cue: list[Word], word: Word) -> bool:
    """Return whether a word belongs to the subtitle before it."""
    if cue[-1].text.endswith(SENTENCE_ENDS):
        return False
    if (word.start - cue[-1].stop) / SAMPLE_RATE >= MIN_GAP_SECONDS:
        return False
    if (word.stop - cue[0].start) / SAMPLE_RATE > MAX_CUE_SECONDS:
        return False
    return width(join([*cue, word])) <= MAX_CUE_LETTERS


def _clock(sample: int, point: str) -> str:
    """Return a position as hours:minutes:seconds and thousandths."""
    thousandths = round(sample * 1000 / SAMPLE_RATE)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _two_lines(cue: Sequence[Word]) -> str:
    """Return a cue's text; one longer than half a cue is broken between the words nearest to its
    middle."""
    text = join(cue)
    whole = width(text)
    if whole <= MAX_CUE_LETTERS // 2:
        return text

    def distance(number: int) -> int:
        return abs(width(join(cue[:number])) - whole // 2)

    breaks = [place for place in range(1, len(cue)) if not continues(cue[place - 1], cue[place])]
    if not breaks:
        return text
    middle = min(breaks, key=distance)
    return join(cue[:middle]) + "\n" + join(cue[middle:])
