"""How many recordings wait for another try: kept in memory, and counted anew only when their folder
has changed.

Counting reads a note for each recording, so it is done in a thread and only for notes that are new.
While nothing changes, asking costs one look at the folder, however many recordings are kept. Runs
in the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path

from asrd.recordings.deliveries import SUFFIX
from asrd.recordings.store import RecordingStore

RACY_SECONDS = 0.05
"""A folder's time is no finer than the kernel's tick: a change so soon after another may not
show."""

Stamp = tuple[int, ...]
"""What a file system says of a file that changes with it; () where there is none."""


class RecordingIndex:
    """Which kept recordings are not delivered text, of one folder."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Stamp, bool]] = {}
        """Recording -> stamps of its note and of its record of deliveries, and whether it waits."""
        self._count = 0
        self._in_hand: list[str] = []
        """Recordings that a process held when they were counted; their outcome need not change the
        folder."""
        self._folder: tuple[Path, Stamp] | None = None
        self._reading = asyncio.Lock()

    async def waiting(self, spool: RecordingStore) -> int:
        """Return how many recordings wait, without keeping the event loop."""
        if not self._is_current(spool):
            async with self._reading:
                if not self._is_current(spool):
                    await asyncio.to_thread(self._read, spool)
        return self._count

    def _is_current(self, spool: RecordingStore) -> bool:
        """Whether the count is still right."""
        if self._folder != (spool.where, _stamp(spool.where)):
            return False
        return all(spool.info(name) is None for name in self._in_hand)

    def _read(self, spool: RecordingStore) -> None:
        """Look through the folder, reading the notes that are new."""
        before = _stamp(spool.where)  # taken first: what changes meanwhile is read the next time
        known: dict[str, tuple[Stamp, bool]] = {}
        in_hand: list[str] = []
        for name in _recordings(spool.where):
            stamp = _stamp(spool.where / f"{name}.json") + _stamp(spool.where / f"{name}{SUFFIX}")
            if stamp and self._known.get(name, ((), False))[0] == stamp:
                known[name] = self._known[name]
            elif (note := spool.info(name)) is not None:
                known[name] = stamp, not note.delivered
            else:
                in_hand.append(name)
        self._known, self._in_hand = known, in_hand
        self._count = sum(waits for _, waits in known.values())
        self._folder = None
        if not _racy(before):
            self._folder = (spool.where, before)


def _recordings(folder: Path) -> list[str]:
    """Return the names of the recordings in a folder."""
    try:
        names = os.listdir(folder)
    except OSError:  # no folder, or one that cannot be read: then nothing can be retried either
        return []
    return [name.removesuffix(".wav") for name in names if name.endswith(".wav")]


def _stamp(path: Path) -> Stamp:
    with contextlib.suppress(OSError):
        facts = path.stat()
        return facts.st_mtime_ns, facts.st_ino, facts.st_size
    return ()


def _racy(stamp: Stamp) -> bool:
    """Whether a folder changed so lately that another change may leave the same stamp."""
    return bool(stamp) and abs(time.time() - stamp[0] / 1e9) < RACY_SECONDS
