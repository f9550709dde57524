"""One stream of sound through libsndfile, to its end: no length in a header stops the reading
before it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from asrd.audio import library_noise
from asrd.audio.formats import decoder_messages
from asrd.audio.formats.layout import Piece, View

log = logging.getLogger("asrd")

BLOCK_SECONDS = 1.0
"""Length of a block read from a file; a resampler may make single blocks a little longer or
shorter."""

UNKNOWN_FRAMES = 1 << 62
"""What libsndfile gives where a header has no length is more than that."""


class AudioDecoder(Protocol):
    """What turns one stream of a file into samples."""

    rate: int
    channels: int
    frames: int
    """How many its header promises; 0 where it promises none that could be relied on."""
    problem: str
    """Why it ended early; "" when it came to the end."""

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield float32 samples, frames by channels. Raises AudioError."""

    def close(self) -> None:
        """Let go of everything; a second call does nothing."""


class _Streamed(soundfile.SoundFile):
    """soundfile without its seek after every block: some codecs cannot seek, and others lose their
    last block by it."""

    def seekable(self) -> bool:
        """Return False."""
        return False


class Sndfile:
    """One stream through libsndfile, read to its end.

    Args:
        name: what a person calls the file.
        descriptor: the open file, at its beginning.
        pieces: what of it is the stream; None for all of it.

    Raises: soundfile.SoundFileError, TypeError: libsndfile does not know it.
    """

    def __init__(self, name: str, descriptor: int, pieces: list[Piece] | None) -> None:
        self.name = name
        self._view = None if pieces is None else View(descriptor, pieces)
        with library_noise.kept_out():
            self._file: Any = self._opened(descriptor)
        self._quiet = (
            library_noise.kept_out if self._file.format == "MP3" else contextlib.nullcontext
        )
        self.rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        self.problem = ""
        self.empty = not self._file.frames
        estimated = self._file.format in ("OGG", "MP3") or self._file.subtype.startswith("MPEG")
        guessed = estimated or self._file.frames >= UNKNOWN_FRAMES
        self.frames: int = 0 if guessed else self._file.frames
        self.about: str = self._file.subtype_info

    def _opened(self, descriptor: int) -> _Streamed:
        return (
            _Streamed(os.dup(descriptor), closefd=True)
            if self._view is None
            else _Streamed(io.BufferedReader(self._view))  # libmpg123 reads 200 bytes at once
        )

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield what can be decoded; behind a damaged place what follows it, where there is
        more."""
        size, seen, failed = max(1, round(self.rate * BLOCK_SECONDS)), 0, False
        while not self.frames or seen < self.frames:
            count = min(size, self.frames - seen) if self.frames else size
            block = np.full((count, self.channels), np.nan, np.float32)
            try:
                with self._quiet():
                    block = self._file.read(count, dtype="float32", always_2d=True, out=block)
            except soundfile.SoundFileError as error:
                log.debug("%s: %s", self.name, error)
                self.problem = self.problem or decoder_messages.plain(
                    str(getattr(error, "error_string", error))
                )
                decoded = np.flatnonzero(
                    ~np.isnan(block[:, 0])
                )  # soundfile does not tell how many came before
                block = block[: int(decoded[-1]) + 1 if len(decoded) else 0]
                if failed and not len(block):
                    break
                failed = True
            else:
                failed = False
                if not len(block):
                    break
            seen += len(block)
            if len(block):
                yield block
        self.problem = self.problem or (self._view.problem if self._view is not None else "")

    def close(self) -> None:
        """Close it; libsndfile's complaints about a file that was only read mean nothing."""
        try:
            self._file.close()
        except soundfile.SoundFileError as error:
            log.debug("%s: %s", self.name, error)
