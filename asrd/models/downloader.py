"""The download process from outside: started for a model that is not here, its reports, its end.

Knows the process and its frames; the network is known to the process alone. Runs on the event loop
of whoever asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO

from asrd import framing, paths, protocol
from asrd.errors import AsrdError, NetworkError
from asrd.models import names
from asrd.precision import failures

log = logging.getLogger("asrd.download")

PROCESS = (sys.executable, "-P", "-m", "asrd.models.download")
"""How a download is started; the name of a model follows."""

ENVIRONMENT = {
    # By the hub's Xet protocol a file arrives in pieces of its own order, so nothing of it is kept
    # when it breaks off.
    # asrd asks for bytes over plain HTTP, which every hub serves, and is tested for going on where
    # it was.
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
}
"""Variables of a download process, over those of the user."""

SILENCE_SECONDS = 300.0
"""Without a frame, after which the process counts as hung; it reports every second or answers
within a timeout."""

END_SECONDS = 5.0
"""For a process to be over once it was killed or has said its last."""

Tell = Callable[[protocol.Progress], None]


async def fetch(name: str, tell: Tell) -> Path:
    """Return the .nemo file that a name means; one that is not here is downloaded first.

    Args:
        tell: called with each report of a download; not called for a file that is here.

    Raises:
        NetworkError, DiskError, ModelError, UsageError: as `models.resolve`, and why the download
        failed.
    """
    try:
        return names.resolve(name)
    except names.NotCachedError as missing:
        return await _downloaded(missing.name, tell)


def fetch_now(name: str, tell: Tell) -> Path:
    """Do the same where no event loop runs. Raises: as `fetch`; KeyboardInterrupt, which ends the
    download."""
    try:
        return names.resolve(name)
    except names.NotCachedError:
        return asyncio.run(fetch(name, tell))


async def _downloaded(name: str, tell: Tell) -> Path:
    async with _started(name) as (lines, said):
        while True:
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    line = await lines.readline()
            except TimeoutError:
                raise _lost(name, f"it reported nothing for {SILENCE_SECONDS:.0f} s") from None
            if not line.endswith(b"\n"):
                raise _lost(name, _last_line(said))
            reply = framing.unpack_reply(line)
            if isinstance(reply, protocol.Downloaded):
                return Path(reply.path)
            if isinstance(reply, protocol.Failed):
                raise _translated(reply)
            if isinstance(reply, protocol.Progress):
                tell(reply)


@contextlib.asynccontextmanager
async def _started(name: str) -> AsyncIterator[tuple[asyncio.StreamReader, IO[bytes]]]:
    """Start the process; enter for its frames and what it prints. It is over when this is left."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            (*PROCESS, name),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": paths.python_path()},
            # Ctrl-C is for the parent, which then ends the download in order
            start_new_session=True,
        )
        lines = asyncio.StreamReader(framing.MAX_LINE_BYTES)
        try:
            reading = functools.partial(asyncio.StreamReaderProtocol, lines)
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                reading, process.stdout
            )
            with contextlib.closing(transport):
                yield lines, said
        finally:
            # it is over, or nobody waits for it any more; what has arrived stays on disk
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)


def _translated(failed: protocol.Failed) -> AsrdError:
    log.debug("%s", failed.trace)
    error = failures.action_of(failed.kind).error or AsrdError
    return error(failed.detail, failed.hint)


def _lost(name: str, why: str) -> NetworkError:
    return NetworkError(
        f"the download of {name} broke off: {why}",
        "try again; what has arrived is kept, and the download continues",
    )


def _last_line(said: IO[bytes]) -> str:
    """Return the last line that the process printed."""
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it was killed, or printed nothing"
