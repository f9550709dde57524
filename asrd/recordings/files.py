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
"""The length in the header of a take that still grows: readers then go by the size of the file."""

SANE = 1.6e9
"""A clock before that (2020) had not been set yet, and says nothing of a take's age."""

HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
"""RIFF, fmt and data of a WAV file with float32, mono, 16 kHz."""


class RecordingInfo(msgspec.Struct):
    """What is known of a take beside its sound."""

    id: str
    began: float
    """Seconds since the epoch."""
    reason: str = ""
    """Why it is kept; "" while it is being recorded or decoded."""
    text: str = ""
    """What it was heard as, where that much had worked."""
    delivered: bool = False
    seconds: float = 0.0
    uncertain: list[str] = []
    """Sinks that may have its text, or some of it, though they did not say so; as people see
    them."""
    transcribed: bool = False
    """Its text is whole; a sink lacks it."""

    @property
    def fate(self) -> str:
        """What became of it, in words."""
        if self.delivered:
            return "delivered"
        return f"transcribed, not delivered: {self.reason}" if self.transcribed else self.reason


class RecordingWriter:
    """One recording on disk, locked until its fate is known. `append` never raises: see
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
            new = path.with_suffix(".new")  # so that nobody ever sees it without its lock
            handle = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            self._file = os.fdopen(handle, "wb", buffering=0)
            with contextlib.suppress(OSError):  # some file systems have no rights
                os.fchmod(handle, 0o600)  # the umask may have taken them from the user as well
            with contextlib.suppress(
                OSError
            ):  # some file systems have no locks, and that must not cost the sound
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
        rest = f" after {self.on_disk:.1f} s" if self.on_disk else ""
        self.problem = f"this recording is not kept on disk{rest}: {error.strerror or error}"


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
    """Yield (first sample, float32 bytes) of a take, also of one whose recording was cut off."""
    start = 0
    with path.open("rb") as file:
        file.seek(HEADER.size)
        while len(data := file.read(4 * size)) >= 4:
            data = data[: len(data) // 4 * 4]
            yield start, data
            start += len(data) // 4


def _header(data: int) -> bytes:
    riff = ENDLESS if data == ENDLESS else data + HEADER.size - 8
    rate = SAMPLE_RATE
    return HEADER.pack(
        b"RIFF", riff, b"WAVE", b"fmt ", 16, 3, 1, rate, 4 * rate, 4, 32, b"data", data
    )
