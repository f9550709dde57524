"""One file on its way to text: its words, its facts, and what was wrong with it (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from asrd.audio.format import SAMPLE_RATE
from asrd.config.settings import Settings
from asrd.errors import AudioError
from asrd.protocol import Word
from asrd.streaming.voice_commands import write
from asrd.text import filenames
from asrd.text.spacing import continues


class FileTranscript:
    """One file on its way to text; may be read at any moment.

    Args:
        path: the file as the user named it.
        duration: seconds, as its header states them.
        settings: for the model's name and the spoken commands.
    """

    def __init__(self, path: str, duration: float, settings: Settings) -> None:
        self.path = path
        self.duration = duration
        self.model = settings.model
        self._phrases, self._capitals = settings.phrases, settings.capitals
        self.words: list[Word] = []
        self.strategy = self.device = ""
        self.seconds = 0.0
        """Wall time spent on the file, without the start of the worker."""
        self.ended = False
        """Whether all audio of the file was transcribed."""
        self.whole = True
        """False for a file whose end is missing, or uncertain."""
        self.warnings: list[str] = []
        """What was wrong with the file, a sentence each."""

    @property
    def exit_code(self) -> int:
        """The exit code for the file."""
        if self.whole:
            return 0
        return AudioError.exit_code

    @property
    def text(self) -> str:
        """The words so far, with spoken commands obeyed where the settings say so."""
        return write(self.words, self._phrases, self._capitals)

    @property
    def rtfx(self) -> float | None:
        """Seconds of audio for a second of work; None before any work."""
        if not self.seconds:
            return None
        return round(self.duration / self.seconds, 1)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints: times in seconds from the start of the file."""
        return {
            **filenames.exact("path", self.path),
            "text": self.text,
            "words": list(map(_word_as_dict, whole_words(self.words))),
            "duration": round(self.duration, 3),
            "rtfx": self.rtfx,
            "strategy": self.strategy,
            "device": self.device,
            "model": self.model,
            "complete": self.ended and self.whole,
            "warning": "; ".join(self.warnings) or None,
        }


def _word_as_dict(word: Word) -> dict[str, Any]:
    return {
        "text": word.text,
        "start": round(word.start / SAMPLE_RATE, 3),
        "stop": round(word.stop / SAMPLE_RATE, 3),
        "confidence": word.confidence,
        "joined": word.joined,
    }


def whole_words(words: Iterable[Word]) -> list[Word]:
    """Return the words; the pieces of one that was too long for one result are joined again."""
    found: list[Word] = []
    for word in words:
        if found and continues(found[-1], word):
            found[-1] = _joined(found[-1], word)
        else:
            found.append(word)
    return found


def _joined(first: Word, second: Word) -> Word:
    """Return two pieces of a word as one, which is as certain as the less certain piece."""
    confidence = None
    if first.confidence is not None and second.confidence is not None:
        confidence = min(first.confidence, second.confidence)
    return msgspec.structs.replace(
        first, text=first.text + second.text, stop=second.stop, confidence=confidence
    )
