"""One recording on disk: a header, a note, and its samples."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from asrd.audio.format import SAMPLE_RATE
from asrd.text import filenames

ENDLESS = 0xFFFF_FFFF
"""The length in the header of a recording that still grows: readers then go by the size of the
file."""

MIN_CLOCK = 1.6e9
"""Seconds since the epoch (2020); an earlier clock was not set yet, so it gives no age."""

HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
"""RIFF, fmt and data of a WAV file with float32, mono, 16 kHz."""


class RecordingInfo(msgspec.Struct):
    """The note of a recording: all that is known of it beside its audio."""

    id: str
    began: float
    """Seconds since the epoch."""
    reason: str = ""
    """Why it is kept; "" while it is being recorded or decoded."""
    text: str = ""
    """Its text, as far as it was decoded."""
    delivered: bool = False
    seconds: float = 0.0
    uncertain: list[str] = []
    """Sinks that may have its text, or some of it, without having confirmed it; as people see
    them."""
    transcribed: bool = False
    """Whether its text is whole, and a sink lacks it."""

    @property
    def fate(self) -> str:
        """Its outcome, in words."""
        if self.delivered:
            return "delivered"
        if self.transcribed:
            return f"transcribed, not delivered: {self.reason}"
        return self.reason


class RecordingWriter:
    """One recording on disk, locked until its result is known. `append` never raises: see
    `problem`."""

    def __init__(self, note: RecordingInfo, path: Path) -> None:
        self.note = note
        self.path = path
        self.samples = 0
        self.problem = ""
        """Why it is not on disk; "" while it is."""
        self._file: BinaryIO | None = None
        self._written = 0
        try:
            new = path.with_suffix(".new")  # so that no process ever sees it without its lock
            handle = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            self._file = os.fdopen(handle, "wb", buffering=0)
            with contextlib.suppress(OSError):  # some file systems have no rights
                os.fchmod(handle, 0o600)  # the umask may have taken them from the user as well
            # Some file systems have no locks, and that must not cost the audio.
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._put(_header(ENDLESS))
            new.rename(path)
        except OSError as error:
            self._give_up(error)

    @property
    def id(self) -> str:
        """Its name, which sorts by time."""
        return self.note.id

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.samples / SAMPLE_RATE

    @property
    def on_disk(self) -> float:
        """Seconds of it that could be written; less than `seconds` where there is a `problem`."""
        return max(0, self._written - HEADER.size) // 4 / SAMPLE_RATE

    def append(self, samples: Any) -> None:
        """Write float32 samples (anything contiguous with the buffer protocol) behind the
        others."""
        data = memoryview(samples).cast("B")
        self.samples += len(data) // 4
        if self.problem:
            return
        try:
            self._put(data)
        except OSError as error:
            self._give_up(error)

    def finish(self) -> None:
        """Put the true length into the header; the lock stays."""
        if self._file is not None and self._written >= HEADER.size:
            with contextlib.suppress(OSError):
                os.pwrite(self._file.fileno(), _header((self._written - HEADER.size) // 4 * 4), 0)

    def release(self) -> None:
        """Let go of the file."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _put(self, data: memoryview | bytes) -> None:
        """Write all of it; what got through before an error counts."""
        assert self._file is not None
        while data:
            done = self._file.write(data)
            self._written += done
            data = data[done:]

    def _give_up(self, error: OSError) -> None:
        """Write no more; what is there stays there, and locked."""
        self.problem = f"this recording is not kept on disk: {error.strerror or error}"
        if self.on_disk:
            reason = error.strerror or error
            self.problem = (
                f"this recording is not kept on disk after {self.on_disk:.1f} s: {reason}"
            )


def pages(notes: list[RecordingInfo], limit: int) -> list[list[RecordingInfo]]:
    """Return notes in parts of at most `limit` bytes of JSON, or of one note; one part at least."""
    parts: list[list[RecordingInfo]] = [[]]
    size = 0
    for note in notes:
        more = len(filenames.to_json(note))
        if parts[-1] and size + more > limit:
            parts.append([])
            size = 0
        parts[-1].append(note)
        size += more
    return parts


def blocks(path: Path, size: int = SAMPLE_RATE // 4) -> Iterator[tuple[int, bytes]]:
    """Yield (first sample, float32 bytes) of a recording, also of one that was cut off."""
    start = 0
    with path.open("rb") as file:
        file.seek(HEADER.size)
        while len(data := file.read(4 * size)) >= 4:
            data = data[: len(data) // 4 * 4]
            yield start, data
            start += len(data) // 4


def _header(data: int) -> bytes:
    riff, rate = ENDLESS, SAMPLE_RATE
    if data != ENDLESS:
        riff = data + HEADER.size - 8
    return HEADER.pack(
        b"RIFF", riff, b"WAVE", b"fmt ", 16, 3, 1, rate, 4 * rate, 4, 32, b"data", data
    )
