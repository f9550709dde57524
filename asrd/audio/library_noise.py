"""What a library in C prints by itself, past Python: kept out of standard error, for the debug log.

libmpg123 writes a line for each oddity of an MP3, and has no switch that libsndfile hands on. While
it works, file descriptor 2 leads to memory; afterwards its lines are logged, and those of anybody
else, another thread perhaps, go on to where they were sent. Memory, unlike a pipe, never makes a
writer wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator

from asrd.text.characters import printable

log = logging.getLogger("asrd")

LIBRARY_LINE = re.compile(rb"\[src/libmpg123/|Note: |Warning: |\s*$")
"""How its lines begin; the last is one of those that it leaves empty."""

WAIT_SECONDS = 0.1
"""For whoever has turned descriptor 2 elsewhere; then the library prints where it likes."""

descriptor_2 = threading.Lock()
"""Held by whoever turns descriptor 2 elsewhere for a moment: two at once could leave it there."""

MAX_READ_BYTES = 1 << 20
"""Of lines that were read and are still in memory."""

_memory: list[int] = []
"""The one descriptor of the memory that the lines go to, once it was needed, and how much of it was
read."""


@contextlib.contextmanager
def kept_out() -> Iterator[None]:
    """While entered, keep libmpg123's lines out of standard error; other lines arrive there when
    this is left."""
    # Where standard error was closed from the beginning, number 2 is that of any file.
    if sys.__stderr__ is None or not descriptor_2.acquire(timeout=WAIT_SECONDS):
        yield
        return
    try:
        with contextlib.ExitStack() as turned:
            with contextlib.suppress(
                OSError
            ):  # it was closed since, or there is no descriptor left
                turned.enter_context(_turned())
            yield
    finally:
        descriptor_2.release()


@contextlib.contextmanager
def _turned() -> Iterator[None]:
    """Have descriptor 2 lead to memory. Raises OSError where that cannot be."""
    memory, real = _opened(), os.dup(2)
    try:
        os.dup2(memory, 2)
        yield
    finally:
        os.dup2(real, 2)
        os.close(real)
        _hand_on(memory)


def _opened() -> int:
    if not _memory:
        memory = os.memfd_create("asrd-stderr", os.MFD_CLOEXEC)
        fcntl.fcntl(
            memory, fcntl.F_SETFL, os.O_APPEND
        )  # two threads that write at once write one after the other
        _memory.extend((memory, 0))
    return _memory[0]


def _hand_on(memory: int) -> None:
    """Log the library's new lines and write the others to the real descriptor 2."""
    new = os.fstat(memory).st_size - _memory[1]
    if new <= 0:
        return
    lines = os.pread(memory, new, _memory[1]).splitlines(keepends=True)
    _memory[1] += sum(map(len, lines))
    if (
        _memory[1] > MAX_READ_BYTES
    ):  # seldom: a line that a thread writes at this very moment would be lost
        os.ftruncate(memory, 0)
        _memory[1] = 0
    for line in filter(bytes.strip, filter(LIBRARY_LINE.match, lines)):
        log.debug("libmpg123: %s", printable(line.decode(errors="replace").strip(), breaks=False))
    others = b"".join(line for line in lines if not LIBRARY_LINE.match(line))
    with contextlib.suppress(OSError):
        os.write(2, others)
