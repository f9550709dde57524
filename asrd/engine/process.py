"""The worker from outside: its process, its frames, and how it was lost.

Knows pipes and signals; does not know what the messages mean, nor which worker comes next. Daemon
side.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import fcntl
import functools
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

from asrd import framing, paths
from asrd.engine.scratch import ScratchFolder
from asrd.framing import MAX_LINE_BYTES, GarbageError
from asrd.protocol import Reply, Request, Stop
from asrd.text.characters import without_controls

log = logging.getLogger("asrd.engine")

HARMLESS_LINE = re.compile(r"[IW]\d{4} |\[NeMo [IWD] ")
"""How a line of noise begins that is no reason to die: torch's and NeMo's information and
warnings."""
worker_log = logging.getLogger("asrd.worker")

PIPE_BYTES = 1 << 20
"""Bytes that a pipe to a worker holds, where Linux allows it: a buffer then goes in one piece."""

SEND_SECONDS = 60.0
"""Within which a worker has to read a message, as it is asked only while it waits."""

KILL_SECONDS = 10.0
"""Seconds that a killed process is waited for: a card's driver may need a while to let go of it."""

LAST_OUTPUT_SECONDS = 1.0
"""Seconds in which the last words of a process that is over arrive."""

WORKER_ENVIRONMENT = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # CUDA then numbers the cards as NVML does
    "CUDA_MODULE_LOADING": "LAZY",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # every buffer has another length
    "NEMO_REDIRECT_LOGS_TO_STDERR": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # a worker is given the path of its model; what NeMo imports never asks a hub
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    # NeMo imports onnxruntime where it is, and that alone reports to its maker
    "ORT_DISABLE_TELEMETRY": "1",
    # every length is new: what is kept for it is memory, seldom time
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    # of torch's store in front: one forward of 16 bit needs over 16; 128 keep 45 MiB more
    "LRU_CACHE_CAPACITY": "48",
    # threads that spin for each other cost a busy machine several times the time
    "OMP_WAIT_POLICY": "PASSIVE",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # no program takes code from the folder where it is started, which is the user's
    "PYTHONSAFEPATH": "1",
}

NO_CARD_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""Variables of a worker on the CPU: what NeMo imports asks for cards, and that alone would wake one
and hold it."""


class WorkerFailedError(Exception):
    """The worker did not do it: `kind` is one of protocol.Failed's, or killed, died, stalled,
    garbage."""

    def __init__(
        self, kind: str, detail: str, hint: str = "", trace: str = "", component: str = ""
    ) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.hint = kind, detail, hint
        self.trace, self.component = trace, component


class WorkerProcess:
    """One child process and the frames to and from it.

    The process is reaped when the worker is closed and not before, so that its number, its group's
    too, stays its own.
    """

    live: ClassVar[set[WorkerProcess]] = set()
    """All that were started and are not closed."""

    def __init__(self, process: subprocess.Popen[bytes], scratch: ScratchFolder) -> None:
        self.process = process
        self.scratch = scratch
        self.noise: collections.deque[str] = collections.deque(maxlen=20)
        self._stdout = asyncio.StreamReader(MAX_LINE_BYTES)
        self._stderr = asyncio.StreamReader(MAX_LINE_BYTES)
        self._stdin: asyncio.StreamWriter | None = None
        self._pump = asyncio.create_task(self._listen())
        self._readers: list[asyncio.ReadTransport] = []
        self.live.add(self)

    @classmethod
    async def spawn(
        cls, command: Sequence[str], more: Mapping[str, str] = MappingProxyType({})
    ) -> WorkerProcess:
        """Start a worker in a session of its own, with a scratch folder that outlives any way it
        may end.

        Args:
            more: variables of its environment, beside those of every worker.
        """
        scratch = ScratchFolder()
        try:
            process = _launched(command, scratch.path, more)
        except BaseException:
            scratch.remove()
            raise
        worker = cls(process, scratch)
        try:
            await worker._connect()
        except BaseException:
            await worker.end(0.0)
            raise
        return worker

    async def _connect(self) -> None:
        """Join the three pipes to the loop; one of these awaits may be cancelled, and the process
        is there already."""
        loop, process = asyncio.get_running_loop(), self.process
        for pipe, reader in ((process.stdout, self._stdout), (process.stderr, self._stderr)):
            reading = functools.partial(asyncio.StreamReaderProtocol, reader)
            self._readers.append((await loop.connect_read_pipe(reading, pipe))[0])
        # Flow control is in this protocol, though nothing is read from the pipe.
        writing = functools.partial(asyncio.StreamReaderProtocol, asyncio.StreamReader())
        transport, protocol = await loop.connect_write_pipe(writing, process.stdin)
        self._stdin = asyncio.StreamWriter(transport, protocol, None, loop)

    async def _listen(self) -> None:
        """Read stderr to its end, whatever comes: a pipe that is not read would stop the
        worker."""
        endless = False
        while True:
            try:
                line = await self._stderr.readline()
            except ValueError:  # comes again for each further piece of the same line
                if not endless:
                    self._note(b"(a line too long to be shown)\n")
                endless = True
                continue
            if not line:
                return
            self._note(line)

    def _note(self, line: bytes) -> None:
        """Keep a line of stderr, and log it."""
        self.noise.append(without_controls(line.decode(errors="replace").rstrip()))
        worker_log.debug("%s", self.noise[-1])

    async def send(self, message: Request, *payload: memoryview) -> None:
        """Write one frame. Raises WorkerFailedError: stalled, or how the worker is gone."""
        assert self._stdin is not None
        try:
            self._stdin.writelines(framing.pack(message, *payload))
            async with asyncio.timeout(SEND_SECONDS):
                await self._stdin.drain()
        except TimeoutError:
            raise WorkerFailedError(
                "stalled", f"it did not take what it was sent within {SEND_SECONDS:.0f} s"
            ) from None
        except (ConnectionError, RuntimeError):
            raise await self._gone() from None

    async def receive(self, deadline: float) -> Reply:
        """Read one frame within `deadline` seconds. Raises WorkerFailedError: stalled, garbage, killed or
        died."""
        try:
            # wait_for of Python 3.11 can swallow a cancellation.
            async with asyncio.timeout(deadline):
                line = await self._stdout.readline()
        except TimeoutError:
            raise WorkerFailedError("stalled", f"no answer within {deadline:.0f} s") from None
        except ValueError:
            raise WorkerFailedError(
                "garbage", f"a line longer than {MAX_LINE_BYTES} bytes"
            ) from None
        if not line.endswith(b"\n"):
            raise await self._gone()
        try:
            return framing.unpack_reply(line)
        except GarbageError as error:
            raise WorkerFailedError("garbage", str(error)) from None

    async def _gone(self) -> WorkerFailedError:
        """Return how the worker was lost."""
        code = await self._exit(2.0)
        if code is None:
            return WorkerFailedError("garbage", "the worker closed its pipe and went on")
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            name = signal.Signals(-code).name
            return WorkerFailedError("killed", f"the worker was ended by {name}")
        await self._silence()
        how = f"exit code {code}"
        if code < 0:
            how = signal.Signals(-code).name
        return WorkerFailedError("died", f"the worker ended with {how}: {self._last_words()}")

    def _last_words(self) -> str:
        """Return the last line on stderr that may be the reason of its end."""
        for line in reversed(self.noise):
            if line.strip() and not HARMLESS_LINE.match(line):
                return line
        return "it printed nothing"

    async def end(self, patience: float) -> None:
        """Ask the worker to stop, then make it; wait until it is gone and its scratch folder with
        it.

        That is not left half done, however often the caller is cancelled, and takes
        `longest(patience)` at most.
        """
        ending = asyncio.create_task(self._stop(patience))
        cancelled: asyncio.CancelledError | None = None
        while not ending.done():
            try:
                await asyncio.wait([ending])
            except asyncio.CancelledError as error:
                cancelled = error
        # The end of the whole loop cancels every task there is, once.
        if ending.cancelled():
            await self.end(0.0)
        self._close()
        if cancelled is not None:
            raise cancelled
        ending.result()

    @staticmethod
    def longest(patience: float) -> float:
        """Return the seconds that `end` may take."""
        return patience + KILL_SECONDS + 2 * LAST_OUTPUT_SECONDS

    def kill(self) -> None:
        """Kill the process and what it started, at once; nothing is waited for."""
        if self.process.returncode is None:  # else its number may be another's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    async def _stop(self, patience: float) -> None:
        """Ask, kill and wait for the process, not for its pipes: what it started may hold them open
        for hours."""
        if self._stdin is not None and patience > 0:
            with contextlib.suppress(ConnectionError, RuntimeError):
                self._stdin.writelines(framing.pack(Stop()))
                self._stdin.close()
            if await self._exit(patience) is not None:
                await self._silence()
        self.kill()
        if await self._exit(KILL_SECONDS) is None:
            log.warning("the worker %d was killed and does not end", self.process.pid)
        elif self._stdin is not None:
            await self._silence()

    async def _silence(self) -> None:
        """Wait for the end of what it says, but a moment only."""
        await asyncio.wait([self._pump], timeout=LAST_OUTPUT_SECONDS)

    async def _exit(self, limit: float) -> int | None:
        """Return how the process ended, negative for a signal; None if it still runs after `limit`
        seconds."""
        until = time.monotonic() + limit
        while (code := self._code()) is None and time.monotonic() < until:
            await asyncio.sleep(0.01)
        return code

    def _code(self) -> int | None:
        """Return how the process ended, None if it still runs, and leave it to be reaped."""
        try:
            over = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # it is reaped
            return self.process.poll()
        if over is None:
            return None
        if over.si_code == os.CLD_EXITED:
            return over.si_status
        return -over.si_status

    def _close(self) -> None:
        """Reap the process and let go of all that was held for it; a second time it does
        nothing."""
        self.kill()
        self.process.poll()
        self._pump.cancel()
        for reader in self._readers:
            reader.close()
        if self._stdin is not None:
            writer = self._stdin.transport
            # One that is closed and has written everything is not to be aborted.
            if not writer.is_closing() or writer.get_write_buffer_size():
                writer.abort()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        self.scratch.remove()
        self.live.discard(self)


def _launched(
    command: Sequence[str], scratch: str, more: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start the process.

    Not through asyncio, whose process is over only when its pipes are, and which can wait for ever
    for one whose creation was cancelled half-way.
    """
    # Without a home that can be written, libraries go without, or to TMPDIR.
    with contextlib.suppress(OSError):
        paths.make_folder(paths.cache())
    environment = {**os.environ, **paths.library_folders(), **WORKER_ENVIRONMENT, **more}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env={**environment, "TMPDIR": scratch, "PYTHONPATH": paths.python_path()},
        start_new_session=True,  # Ctrl-C is for the parent, which then ends the worker in order
    )
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # a user may have reached the limit of all pipes
        fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return process


def kill_all() -> None:
    """Kill every worker of this process and what it started, at once; nothing is waited for."""
    for worker in list(WorkerProcess.live):
        worker.kill()
