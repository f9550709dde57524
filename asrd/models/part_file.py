"""A model file of which only a part is here, as a file object: over HTTP ranges, or as far as a
download has come.

`checkpoint.header_of` reads it as it reads a local file. That function translates every error into
one about the file, so a read that fails for another reason is also kept in `failure`, which whoever
called it looks at first. Knows positions and bytes; does not know where they come from. Runs in the
download process.
"""

from __future__ import annotations

import abc
import io
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCK_BYTES = 256 << 10
"""Read ahead at once: most configs, and the way from one member of an archive to the next, fit into
one block."""

KEPT_BLOCKS = 16
"""Blocks that a reader may come back to."""

MAX_WALK_BYTES = 64 << 20
"""Fetched at most, by ranges or as the beginning of a stream, before a header counts as unknown
until the end."""


class UndecidedError(Exception):
    """What was read lies beyond what is here; its text says why that is so."""


class _Partial(io.RawIOBase, abc.ABC):
    """A seekable file of `size` bytes whose bytes `_piece` provides."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.failure: Exception | None = None
        """Why the first read that failed did; every later one fails the same way."""
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position; nothing is fetched by it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read up to the length of `buffer`; fewer bytes only at the end of the file."""
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._at))
        done = 0
        while done < wanted:
            piece = self._obtain(self._at, wanted - done)
            view[done : done + len(piece)] = piece
            done += len(piece)
            self._at += len(piece)
        return done

    def _obtain(self, start: int, count: int) -> bytes:
        if self.failure is not None:
            raise self.failure
        try:
            piece = self._piece(start, count)
        except Exception as error:
            self.failure = error
            raise
        return piece

    @abc.abstractmethod
    def _piece(self, start: int, count: int) -> bytes:
        """Return 1 to `count` bytes from `start`, which lie in the file."""


class Remote(_Partial):
    """A file on a server, read by ranges in whole blocks.

    Args:
        size: bytes of the file.
        fetch: returns the bytes from a first position up to one before a second.
        first: the first block, which is here already.
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes], first: bytes) -> None:
        super().__init__(size)
        self._fetch = fetch
        self._blocks: OrderedDict[int, bytes] = OrderedDict({0: first})
        self._walked = 0

    def _piece(self, start: int, count: int) -> bytes:
        number, offset = divmod(start, BLOCK_BYTES)
        return self._block(number)[offset : offset + count]

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        if self._walked >= MAX_WALK_BYTES:
            raise UndecidedError(f"its header is spread over more than {MAX_WALK_BYTES >> 20} MiB")
        first = number * BLOCK_BYTES
        block = self._fetch(first, min(first + BLOCK_BYTES, self._size))
        self._walked += len(block)
        self._blocks[number] = block
        if len(self._blocks) > KEPT_BLOCKS:
            self._blocks.popitem(last=False)
        return block


class Beginning(_Partial):
    """The first bytes of a file whose download goes on.

    Args:
        path: where they are.
        size: bytes of the whole file.
    """

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(size)
        self._file = path.open("rb")
        self._here = os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file below."""
        self._file.close()
        super().close()

    def _piece(self, start: int, count: int) -> bytes:
        if start + count > self._here:
            raise UndecidedError("its header lies behind what is here")
        self._file.seek(start)
        return self._file.read(count)
