"""A scratch folder for what a worker unpacks; removes those that killed daemons left."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import time

from asrd import paths
from asrd.errors import DiskError

log = logging.getLogger("asrd.engine")

NAME_PREFIX = "asrd-worker-"
"""How the name of a scratch folder begins."""

NEW_FOLDER_SECONDS = 60.0
"""Within which a folder without a lock may be one that is just being made."""


class ScratchFolder:
    """A folder for what a worker unpacks, which of an old checkpoint is all; locked as long as this
    process lives.

    Making one removes those of daemons that were killed. Raises DiskError.
    """

    def __init__(self) -> None:
        where = paths.scratch()
        self._sweep(where)
        try:
            self.path = tempfile.mkdtemp(prefix=NAME_PREFIX, dir=where)
            self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise DiskError(
                f"cannot make a scratch folder: {error}", "set TMPDIR to a writable folder"
            ) from error
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def remove(self) -> None:
        """Delete it with all that is in it; a second time it does nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _sweep(self, where: str) -> None:
        with contextlib.suppress(OSError):
            for entry in os.scandir(where):
                if entry.name.startswith(NAME_PREFIX) and _abandoned(entry):
                    log.info("removing %s, which a killed daemon left", entry.path)
                    shutil.rmtree(entry.path, ignore_errors=True)


def _abandoned(entry: os.DirEntry[str]) -> bool:
    """Return whether a scratch folder is ours, of some age, and locked by no process."""
    try:
        facts = entry.stat(follow_symlinks=False)
        if facts.st_uid != os.getuid() or time.time() - facts.st_mtime < NEW_FOLDER_SECONDS:
            return False
        handle = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(handle)
    except OSError:
        return False
    return True
