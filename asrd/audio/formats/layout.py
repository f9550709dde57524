"""Where the sound of a file lies: the bytes of it that a decoder is given, and what is missing of
them (pure).

Knows bytes by their position, and the tags that programs hang on the end of any file. Knows no
format.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

BLOCK_BYTES = 1 << 18
"""What is read at once where a file is gone through."""

PADDING_BYTES = 64
"""A run of zeros of this length at the end of a file is padding; a shorter one may belong to its
last frame."""

MAX_PADDING_BYTES = 1 << 26
"""More zeros than that are not gone through: they are silence, or a file that wants to cost
time."""

Piece = bytes | range
"""Bytes as they are, or the positions in a file where they lie."""


@dataclass(frozen=True)
class Layout:
    """What a file holds, by its own bytes."""

    parts: list[list[Piece]] = field(default_factory=list)
    """The streams in it, one after the other, each as the pieces a decoder is given; none: the file
    as it is."""
    flaw: str = ""
    """What is wrong with its end, as the predicate of a sentence ("is cut short"); "" for a
    complete file."""
    promised: float = 1.0
    """How many times the sound that is there its header promises."""
    decoder: str = "libsndfile"
    """Which reads it; "media" where libsndfile would take it for something else."""


class FileBytes:
    """The bytes of an open file by their position. Its length is that at the beginning."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self._start, self._block = 0, b""

    def at(self, start: int, count: int) -> bytes:
        """Return `count` bytes from `start` on; fewer at the end. Raises OSError."""
        offset = start - self._start
        if not 0 <= offset <= len(self._block) - count:
            self._block = os.pread(self._descriptor, max(count, BLOCK_BYTES), max(0, start))
            self._start, offset = start, 0
        return self._block[offset : offset + count]

    def number(self, start: int, count: int, order: str) -> int:
        """Return an unsigned number of `count` bytes; `order` is big or little."""
        return int.from_bytes(self.at(start, count), "big" if order == "big" else "little")

    def zeros(self, start: int, stop: int) -> bool:
        """Return whether there is nothing but zeros from `start` to `stop`."""
        return stop - start <= MAX_PADDING_BYTES and self.after_zeros(start, stop) == stop

    def after_zeros(self, start: int, stop: int) -> int:
        """Return where the first byte lies that is not zero; `stop` where there is none."""
        for place in range(start, min(stop, start + MAX_PADDING_BYTES), BLOCK_BYTES):
            block = self.at(place, min(BLOCK_BYTES, stop - place))
            rest = block.lstrip(b"\0")
            if rest or not block:
                return place + len(block) - len(rest)
        return min(stop, start + MAX_PADDING_BYTES)

    def find(self, mark: bytes, start: int, stop: int) -> int:
        """Return where `mark` begins next; -1 where it does not before `stop`."""
        while start + len(mark) <= stop:
            block = self.at(start, min(BLOCK_BYTES, stop - start))
            found = block.find(mark)
            if found >= 0:
                return start + found
            start += max(1, len(block) - len(mark) + 1)
        return -1


class View(io.RawIOBase):
    """Pieces of a file as one file, for a decoder; its position is its own."""

    def __init__(self, descriptor: int, pieces: Iterable[Piece]) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._pieces = [piece for piece in pieces if len(piece)]
        self._starts = [0]
        for piece in self._pieces:
            self._starts.append(self._starts[-1] + len(piece))
        self._position, self._index = 0, 0
        self.problem = ""
        """Why a part of it could not be read."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position, which may lie behind the end; return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._starts[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes; fewer only at the end, or where the file has become
        shorter."""
        left = self._starts[-1] - self._position
        left = left if size < 0 else min(left, size)
        found: list[bytes] = []
        while left > 0 and (block := self._next(left)):
            found.append(block)
            self._position += len(block)
            left -= len(block)
        return found[0] if len(found) == 1 else b"".join(found)

    def readinto(self, target: Any) -> int:
        """Read into a buffer; return the number of bytes."""
        block = self.read(len(target))
        target[: len(block)] = block
        return len(block)

    def write(self, data: object) -> int:
        """Refuse: a view is read only. libsndfile looks for this method, and never calls it."""
        raise io.UnsupportedOperation("write")

    def _next(self, count: int) -> bytes:
        """Return bytes of the piece at the position, at most `count`."""
        index = self._index
        if (
            not self._starts[index]
            <= self._position
            < self._starts[min(index + 1, len(self._pieces))]
        ):
            import bisect

            index = self._index = bisect.bisect_right(self._starts, self._position) - 1
        piece, offset = self._pieces[index], self._position - self._starts[index]
        count = min(count, len(piece) - offset)
        if isinstance(piece, bytes):
            return piece[offset : offset + count]
        try:
            return os.pread(self._descriptor, count, piece.start + offset)
        except (
            OSError
        ) as error:  # libsndfile calls this: it would print a traceback, and hear an end
            self.problem = error.strerror or str(error)
            return b""


def synchsafe(four: bytes) -> int:
    """Return a number in the seven lower bits of each byte, as ID3 writes a length."""
    return sum((byte & 0x7F) << (7 * (3 - place)) for place, byte in enumerate(four))


def after_tags(file: FileBytes, start: int, stop: int) -> int:
    """Return where the ID3v2 and APE tags and the padding that begin at `start` are over."""
    while start < stop:
        head = file.at(start, 32)
        if head[:3] == b"ID3" and len(head) >= 10 and head[3] < 0x20:  # a blank: a chunk of AIFF
            start += 10 + synchsafe(head[6:10]) + 10 * bool(head[5] & 0x10)
        elif head[:8] == b"APETAGEX":
            start += 32 + int.from_bytes(head[12:16], "little")
        elif head[:3] == b"TAG" and stop - start >= 128:
            start += 128
        elif head and not any(head):
            behind = file.after_zeros(start, stop)
            if behind - start >= MAX_PADDING_BYTES:
                break
            start = behind
        else:
            break
    return min(start, stop)


def before_tags(file: FileBytes, start: int, stop: int) -> int:
    """Return where the tags and the padding that end at `stop` begin; never before `start`."""
    while (end := _before_one(file, start, stop)) < stop:
        stop = end
    return stop


def _before_one(file: FileBytes, start: int, stop: int) -> int:
    """Return where the last tag begins; `stop` where there is none."""
    tail_start = max(start, stop - 256)
    tail = file.at(tail_start, stop - tail_start)
    length = 0
    if tail[-128:-125] == b"TAG":
        length = 128
    elif tail[-227:-223] == b"TAG+":
        length = 227
    elif tail[-32:-24] == b"APETAGEX":
        flags = int.from_bytes(tail[-12:-8], "little")
        length = int.from_bytes(tail[-20:-16], "little") + 32 * (flags >> 31)
    elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
        length = int(tail[-15:-9]) + 15
    elif tail[-10:-7] == b"3DI":
        length = 20 + synchsafe(tail[-4:])
    elif len(tail) > PADDING_BYTES and not any(tail[-PADDING_BYTES:]):
        length = len(tail) - len(tail.rstrip(b"\0"))
    return stop - length if start <= stop - length else stop
