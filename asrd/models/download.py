"""A process of its own that downloads one model from the hub into the hub's cache, and holds no
model.

Started as `python -P -m asrd.models.download NAME`, imported by nobody; writes frames of `protocol`
on standard output: Progress, then Downloaded or Failed. It may be killed at any moment. What has
arrived stays in the cache, under the name of the content that it is the beginning of, and the next
process goes on from there. The header comes first (`inspection`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from asrd import framing, protocol
from asrd.errors import AsrdError, NetworkError
from asrd.models import hub, names
from asrd.models.hub import HubEntry, PassingError
from asrd.models.inspection import Inspection
from asrd.precision import failures

WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""Before each new attempt while not one byte arrives; then the download is given up. A byte starts
them anew."""

TICK_SECONDS = 0.5
"""Between two reports."""

SHA256 = re.compile(r"[0-9a-f]{64}")

Say = Callable[[protocol.Reply], None]

T = TypeVar("T")


class FileDownload:
    """The download of one file.

    Args:
        entry: which one.
        say: sends a message to whoever started the process.
    """

    def __init__(self, entry: HubEntry, say: Say) -> None:
        self.entry, self._say = entry, say
        self.folder = names.cache_folder() / names.repository(entry.model)
        self.blob = self.folder / "blobs" / entry.etag
        self.link = self.folder / "snapshots" / entry.commit / entry.file
        # The hub's own tools take a file with this ending for what a broken download left.
        self.part = self.blob.with_name(f"{entry.etag}.asrd.incomplete")
        self._told = 0.0
        reading = functools.partial(self.tell, "reading its header", now=False)
        self.inspection = Inspection(entry, self.part, self._persist, reading)

    def run(self) -> Path:
        """Return the file in the cache, when it is there and asrd can run its model.

        Raises:
            NetworkError: the connection failed again and again, or what came is damaged.
            DiskError: no room, or no right, in the cache.
            ModelError: it cannot be run.
        """
        with hub.translating(self.entry.model):
            self.blob.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if not self.blob.exists() and not self.link.exists():
                self._forget_others()
                self.inspection.before()
                self._check_room()
                self._receive()
                self._check_content()
                with self._writing():
                    self.part.replace(self.blob)
            with self._writing():
                self._publish()
        self.inspection.after(self.link)
        self.tell()
        return self.link

    @property
    def total(self) -> int | None:
        """Bytes of the whole file; None while the server has not said."""
        return self.inspection.total

    @property
    def here(self) -> int:
        """Bytes of the file that have arrived."""
        for file in (self.part, self.blob, self.link):
            with contextlib.suppress(OSError):
                return file.stat().st_size
        return 0

    def tell(self, note: str = "", now: bool = True) -> None:
        """Report how far it has come; without `now`, only where the last report is a moment ago."""
        if not now and time.monotonic() - self._told < TICK_SECONDS:
            return
        self._told = time.monotonic()
        state = protocol.Download(self.entry.model, self.here, self.total, note)
        fraction = min(1.0, state.bytes / self.total) if self.total else None
        self._say(protocol.Progress("download", state.text, fraction, state))

    # -- beside other processes
    # ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the hub library's own lock on this content, which its other programs keep too."""
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock

        folder = names.cache_folder() / ".locks" / names.repository(self.entry.model)
        with hub.translating(self.entry.model):
            folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            while True:
                lock = WeakFileLock(folder / f"{self.entry.etag}.lock", timeout=TICK_SECONDS)
                try:
                    held.enter_context(lock)
                    break
                except Timeout:
                    self.tell("another process is downloading it")
            yield

    def _forget_others(self) -> None:
        """Remove what broken downloads of other versions of the model left; only the newest is ever
        asked for."""
        for part in self.part.parent.glob("*.asrd.incomplete"):
            if part != self.part:
                part.unlink(missing_ok=True)

    # -- the bytes
    # ----------------------------------------------------------------------------------------------------

    def _check_room(self) -> None:
        """Raise DiskError where the rest of the file finds no room."""
        if self.total is None:
            return
        needed, free = self.total - self.here, shutil.disk_usage(self.folder).free
        if needed > free:
            raise hub.no_room(self.entry.model, needed, free)

    def _receive(self) -> None:
        """Have the whole file here, going on from what is."""
        self.tell()
        with self._writing(), self.part.open("ab", buffering=0) as file:
            while self.total is None or self.here < self.total:
                self._persist(functools.partial(self._stream, file), lambda: self.here)
                if self.total is None:
                    self.inspection.total = self.here
        self.tell()

    def _stream(self, file: BinaryIO) -> None:
        """Write what one answer holds. Raises PassingError: it broke off. ModelError: the model is
        refused."""
        with hub.opened(self.entry, self.here) as body:
            if body.first != self.here:  # it is sent from the start, whatever was asked for
                file.truncate(0)
            for chunk in body.chunks:
                with self._writing():
                    file.write(chunk)
                self._check_length()
                self.tell(now=False)
                self.inspection.meanwhile(self.here)
        if self.total is not None and self.here < self.total:
            raise PassingError(
                NetworkError(f"the hub closed the connection while it sent {self.entry.model}")
            )

    def _check_length(self) -> None:
        """Raise NetworkError where more has come than the file has."""
        if self.total is not None and self.here > self.total:
            self.part.unlink(missing_ok=True)
            raise NetworkError(
                f"the hub sent more than the {self.total} bytes of {self.entry.model}",
                "try again; if it happens again, a proxy on the way changes files",
            )

    def _persist(self, act: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Do `act`, again after a rest where the connection failed; `progress` is what starts the
        rests anew."""
        waits, reached = list(WAITS_SECONDS), progress()
        while True:
            try:
                return act()
            except PassingError as error:
                if progress() > reached:
                    waits, reached = list(WAITS_SECONDS), progress()
                if not waits:
                    raise self._given_up(error) from error
                self._rest(max(waits.pop(0), error.wait), error)

    def _rest(self, seconds: float, error: PassingError) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.tell(f"{error.error.message}; asrd tries again", now=False)
            time.sleep(min(left, TICK_SECONDS))

    def _given_up(self, error: PassingError) -> AsrdError:
        """Return why the download ends before its end, and what becomes of its beginning."""
        if not self.here:
            return error.error
        of = f" of {self.total}" if self.total is not None else ""
        return NetworkError(
            f"the download of {self.entry.model} broke off after {self.here}{of} bytes: {error.error.message}",
            "try again when the network is back; the download continues where it stopped",
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Translate what the file system says of a write."""
        try:
            yield
        except OSError as error:
            if error.errno not in hub.NO_ROOM:
                raise
            needed = self.total - self.here if self.total is not None else None
            self.part.unlink(
                missing_ok=True
            )  # a full disk costs recordings; a beginning costs time only
            raise hub.no_room(
                self.entry.model, needed, shutil.disk_usage(self.folder).free
            ) from error

    # -- the whole file
    # -----------------------------------------------------------------------------------------------

    def _check_content(self) -> None:
        """Have the file on the disk, and be what it is called. Raises NetworkError: it is not, and
        is removed."""
        with self.part.open("rb") as file:
            os.fsync(file.fileno())
            if not SHA256.fullmatch(self.entry.etag):
                return
            self.tell("checking")
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.entry.etag:
            self.part.unlink(missing_ok=True)
            raise NetworkError(
                f"what was downloaded of {self.entry.model} is damaged: its SHA-256 is not the one that the hub names",
                "try again; if it happens again, a proxy on the way changes files",
            )

    def _publish(self) -> None:
        """Name the content as the hub's library does: a link of the commit, and the commit as
        main."""
        self.link.parent.mkdir(parents=True, exist_ok=True)
        if not self.link.exists():
            self.link.unlink(missing_ok=True)
            try:
                self.link.symlink_to(os.path.relpath(self.blob, self.link.parent))
            except PermissionError:  # a file system without links
                self.blob.replace(self.link)
        main = self.folder / "refs" / "main"
        main.parent.mkdir(parents=True, exist_ok=True)
        # Not paths.write_whole: that makes a file for this user alone, and a cache may be shared.
        new = main.with_name(f"main.{os.getpid()}.tmp")
        new.write_text(self.entry.commit)
        new.replace(main)


def find(name: str, say: Say) -> HubEntry:
    """Return which file a name means. A hub that is there and does not serve is asked again after a
    rest.

    Raises: as hub.find. Without any connection it raises at once, as waiting would help nobody.
    """
    waits = list(WAITS_SECONDS)
    while True:
        try:
            return hub.find(name)
        except PassingError as error:
            if not waits or not error.answered:
                raise error.error from error
            note = f"{error.error.message}; asrd tries again"
            say(
                protocol.Progress(
                    "download", f"{name}: {note}", None, protocol.Download(name, 0, None, note)
                )
            )
            time.sleep(max(waits.pop(0), error.wait))


def failure(error: Exception) -> protocol.Failed:
    """Return the message for an exception."""
    trace = "".join(traceback.format_exception(error))
    if not isinstance(error, AsrdError):
        return protocol.Failed(
            "internal", f"the download failed: {type(error).__name__}: {error}", trace=trace
        )
    kind = failures.kind_of(error) or "internal"
    return protocol.Failed(kind, error.message, error.hint, trace=trace)


def main() -> int:
    """Download the model that the command line names; return the exit code."""
    framing.die_with_parent()
    frames, sys.stdout = sys.stdout.buffer, sys.stderr
    name = sys.argv[1]

    def say(message: protocol.Reply) -> None:
        try:
            framing.write(frames, message)
        except BrokenPipeError:  # whoever asked has gone; what is here is kept
            os._exit(0)

    try:
        hub.check_environment()
        asking = protocol.Download(name, names.partial(name), None, "asking the hub")
        say(protocol.Progress("download", asking.text, None, asking))
        with hub.translating(name):
            path = FileDownload(find(name, say), say).run()
    except Exception as error:
        say(failure(error))
        return error.exit_code if isinstance(error, AsrdError) else 70
    say(protocol.Downloaded(str(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
