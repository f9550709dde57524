"""A model on the hub, judged by its header before its file is here, or while it arrives.

Where the server sends parts of files, the archive is walked from member to member, past the
weights. A gzipped file and one of a server that sends only whole files are read as far as they have
come, and at the end where that was not enough. What is accepted is `checkpoint`'s to say. Runs in
the download process.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol, TypeVar, cast

from asrd import protocol
from asrd.errors import ModelError, NetworkError
from asrd.models import checkpoint, hub
from asrd.models.hub import Body, HubEntry, PassingError
from asrd.models.part_file import BLOCK_BYTES, MAX_WALK_BYTES, Beginning, Remote, UndecidedError

DECIDING_BYTES = (1 << 20, 4 << 20, 16 << 20, MAX_WALK_BYTES)
"""Of a stream, after which its header is looked for."""

GZIP = b"\x1f\x8b"
"""How a gzipped file begins."""

T = TypeVar("T")


class Persist(Protocol):
    """Does something, and does it again where the connection failed."""

    def __call__(self, act: Callable[[], T]) -> T:
        """Return what `act` returns. Raises AsrdError: it is given up."""
        ...


class Inspection:
    """The judgement of one file.

    Args:
        entry: which one.
        part: where its beginning arrives.
        persist: asks again where the connection failed.
        tell: reports that it is being read.
    """

    def __init__(
        self, entry: HubEntry, part: Path, persist: Persist, tell: Callable[[], None]
    ) -> None:
        self._entry, self._part, self._persist, self._tell = entry, part, persist, tell
        self.total = entry.size
        """Bytes of the whole file; None while the server has not said."""
        self.undecided = ""
        """Why the header could not be read yet; empty once it was."""
        self._pending = list(DECIDING_BYTES)

    def before(self) -> None:
        """Judge the model before the download, where the server lets the archive be walked. Raises:
        as `find`."""
        first, ranged, total = self._persist(self._first_block)
        self.total = total if self.total is None else self.total
        if first[:2] == GZIP:
            self.undecided = "the file is gzipped"
        elif not ranged or self.total is None:
            self.undecided = "the server does not send parts of files"
        if self.undecided or self.total is None:
            return
        remote = Remote(self.total, self._block, first)
        try:
            self._judge(remote, stream=False, when="before the download, by its header")
        except UndecidedError as error:
            self.undecided = str(error)

    def meanwhile(self, here: int) -> None:
        """Judge the model once enough of it has arrived; what is refused is removed.

        Args:
            here: bytes that have arrived.

        Raises:
            ModelError: it is refused.
        """
        if not self.undecided or not self._pending or here < self._pending[0]:
            return
        limit = self._pending.pop(0)
        when = f"after {protocol.decimal(limit)} of the download, because {self.undecided}"
        with contextlib.closing(Beginning(self._part, self._size)) as beginning:
            try:
                self._judge(beginning, stream=True, when=when)
            except UndecidedError:
                return
            except ModelError:
                self._part.unlink(missing_ok=True)
                raise
        self.undecided = ""

    def after(self, path: Path) -> None:
        """Judge what could not be judged before, now that the whole file is here.

        Raises:
            ModelError: it is refused. The file stays, so that it is not downloaded once more to be
                refused.
        """
        if not self.undecided:
            return
        try:
            checkpoint.header(path)
        except ModelError as error:
            when = f"this was known only from the whole file, because {self.undecided}"
            raise ModelError(f"{error.message}; {when}", error.hint) from error

    @property
    def _size(self) -> int:
        return sys.maxsize if self.total is None else self.total

    def _judge(self, file: Remote | Beginning, stream: bool, when: str) -> None:
        """Refuse a model that asrd cannot run. Raises ModelError, and what kept `file` from being
        read."""
        name = Path(f"{self._entry.model} on the hub")
        try:
            # tarfile and the unpickler take a raw file as they take a buffered one.
            checkpoint.header_of(cast("IO[bytes]", file), name, self._size, stream)
        except ModelError as error:
            if file.failure is not None:
                raise file.failure from None
            raise ModelError(f"{error.message}; this was known {when}", error.hint) from error

    def _first_block(self) -> tuple[bytes, bool, int | None]:
        """Return how the file begins, whether the server sends parts, and the bytes of the
        whole."""
        with hub.opened(self._entry, 0, BLOCK_BYTES) as body:
            if not body.ranged:
                return next(body.chunks, b""), False, body.total
            size = BLOCK_BYTES if body.total is None else min(BLOCK_BYTES, body.total)
            return self._read(body, size), True, body.total

    def _block(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to one before `stop`."""

        def ask() -> bytes:
            with hub.opened(self._entry, start, stop) as body:
                return self._read(body, stop - start)

        return self._persist(ask)

    def _read(self, body: Body, count: int) -> bytes:
        """Return so many bytes of an answer. Raises PassingError: it broke off."""
        self._tell()
        found = bytearray()
        for chunk in body.chunks:
            found += chunk
            if len(found) >= count:
                return bytes(found[:count])
        raise PassingError(
            NetworkError(
                f"the hub closed the connection in the header of {self._entry.model}",
                "try again later",
            )
        )
