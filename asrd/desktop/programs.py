"""Small programs of the desktop: run with a bound, ended with their children."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from asrd.errors import SinkError


class Ended(NamedTuple):
    """How a program ended: its exit code and what it wrote."""

    code: int
    output: bytes
    complaint: str


async def run(
    *words: str,
    environment: Mapping[str, str],
    text: bytes = b"",
    limit: float = 5.0,
    grace: float = 0.0,
) -> Ended:
    """Run a small program to its end, `text` on its standard input.

    Input and output are memory files: the text is in no argument list and on no disk, a program
    that reads nothing blocks nobody, and one that leaves a child behind (wl-copy does, to hold the
    clipboard) keeps nobody waiting. Cancelled or past `limit` seconds, the program is ended with
    its whole process group; the latter after SIGTERM and `grace` seconds.

    Raises:
        SinkError: not installed, not startable, or past its limit; the last as TimeoutError's
            cause.
    """
    with memory_file(text) as given, memory_file() as output, memory_file() as complaint:
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=given,
                stdout=output,
                stderr=complaint,
                env=dict(environment),
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise SinkError(f"{words[0]} is not installed") from error
        except OSError as error:
            raise SinkError(f"{words[0]} cannot be started: {error.strerror}") from error
        try:
            async with asyncio.timeout(limit):  # wait_for loses a cancellation in 3.11
                await process.wait()
        except TimeoutError as error:
            await end(process, grace)
            raise SinkError(
                f"{words[0]} did not end within {limit:.0f} s and was stopped"
            ) from error
        except asyncio.CancelledError:
            await end(process)
            raise
        return Ended(
            process.returncode or 0, _content(output), _content(complaint).decode(errors="replace")
        )


async def end(process: asyncio.subprocess.Process, grace: float = 0.0) -> None:
    """End a program with its whole process group: SIGTERM and `grace` seconds where there is grace,
    then SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        if grace:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await process.wait()
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


@contextlib.contextmanager
def memory_file(content: bytes = b"") -> Iterator[int]:
    """A file that is only in memory, at its beginning, as a descriptor."""
    descriptor = os.memfd_create("asrd")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            stream.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        stream.seek(0)
        return stream.read()
