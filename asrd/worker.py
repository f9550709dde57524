"""The worker from outside: its process, its frames, its scratch folder, and how it was lost.

Knows pipes and signals; does not know what is said over them, nor which worker comes next. Daemon side.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence

from . import wire
from .errors import DiskError

log = logging.getLogger("asrd.engine")
worker_log = logging.getLogger("asrd.worker")

PIPE = 1 << 20
"""Bytes that a pipe to a worker holds, where Linux allows it: a buffer then goes in one piece."""

ENVIRONMENT = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # CUDA then numbers the cards as NVML does
    "CUDA_MODULE_LOADING": "LAZY",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # every buffer has another length
    "NEMO_REDIRECT_LOGS_TO_STDERR": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",  # imported by NeMo, never asked for a model
    "WANDB_MODE": "disabled",
    "ORT_DISABLE_TELEMETRY": "1",  # NeMo imports onnxruntime where it is, and that alone reports to its maker
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",  # every length is new: what is kept for it is memory, seldom time
    "LRU_CACHE_CAPACITY": "128",  # the same, of torch's store in front of oneDNN; with 16, what is in 16 bit is slower
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin for each other cost a busy machine several times the time
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class LostError(Exception):
    """The worker did not do it: `kind` is one of wire.Failed's, or killed, died, stalled, garbage."""

    def __init__(self, kind: str, detail: str, hint: str = "", trace: str = "", component: str = "") -> None:
        super().__init__(detail)
        self.kind, self.detail, self.hint, self.trace, self.component = kind, detail, hint, trace, component


class Scratch:
    """A folder for what a worker unpacks, which of an old checkpoint is all; locked as long as this process lives.

    Making one removes those of daemons that were killed. Raises DiskError.
    """

    PREFIX = "asrd-worker-"
    FRESH = 60.0
    """Seconds within which a folder without a lock may be one that is just being made."""

    def __init__(self) -> None:
        where = os.environ.get("TMPDIR", "/var/tmp")
        self._sweep(where)
        try:
            self.path = tempfile.mkdtemp(prefix=self.PREFIX, dir=where)
            self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise DiskError(f"cannot make a scratch folder: {error}", "set TMPDIR to a writable folder") from error
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
                if entry.name.startswith(self.PREFIX) and _abandoned(entry, self.FRESH):
                    log.info("removing %s, which a killed daemon left", entry.path)
                    shutil.rmtree(entry.path, ignore_errors=True)


def _abandoned(entry: os.DirEntry[str], fresh: float) -> bool:
    """Whether a scratch folder is ours, of some age, and locked by nobody."""
    try:
        facts = entry.stat(follow_symlinks=False)
        if facts.st_uid != os.getuid() or time.time() - facts.st_mtime < fresh:
            return False
        handle = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(handle)
    except OSError:
        return False
    return True


class Worker:
    """One child process and the frames to and from it."""

    def __init__(self, process: asyncio.subprocess.Process, scratch: Scratch) -> None:
        self.process = process
        self.scratch = scratch
        self.noise: collections.deque[str] = collections.deque(maxlen=20)
        self._pump = asyncio.create_task(self._listen())
        with contextlib.suppress(OSError):  # a user may have reached the limit of all pipes
            fcntl.fcntl(process.stdin.transport.get_extra_info("pipe"), fcntl.F_SETPIPE_SZ, PIPE)  # type: ignore[union-attr]

    @classmethod
    async def spawn(cls, command: Sequence[str]) -> Worker:
        """Start a worker in a session of its own, with a scratch folder that outlives any way it may end."""
        scratch = Scratch()
        creation = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=wire.MAX_LINE,
                env={**os.environ, **ENVIRONMENT, "TMPDIR": scratch.path},
                start_new_session=True,  # Ctrl-C is for the parent, which then ends the worker in order
            )
        )
        try:
            process = await asyncio.shield(creation)
        except asyncio.CancelledError:
            # asyncio can wait for ever for a process whose creation was cancelled half-way, so it is completed first.
            await cls(await creation, scratch).end(0.0)
            raise
        except OSError:
            scratch.remove()
            raise
        return cls(process, scratch)

    async def _listen(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError):  # one endless line is noise like any other
            async for line in self.process.stderr:
                self.noise.append(line.decode(errors="replace").rstrip())
                worker_log.debug("%s", self.noise[-1])

    async def send(self, message: wire.Request, *payload: memoryview) -> None:
        """Write one frame. Raises LostError when the worker is gone."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.writelines(wire.pack(message, *payload))
            await self.process.stdin.drain()
        except (ConnectionError, RuntimeError):
            raise await self._gone() from None

    async def receive(self, deadline: float) -> wire.Reply:
        """Read one frame within `deadline` seconds. Raises LostError: stalled, garbage, killed or died."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(deadline):  # wait_for of Python 3.11 can swallow a cancellation
                line = await self.process.stdout.readline()
        except TimeoutError:
            raise LostError("stalled", f"no answer within {deadline:.0f} s") from None
        except ValueError:
            raise LostError("garbage", f"a line longer than {wire.MAX_LINE} bytes") from None
        if not line.endswith(b"\n"):
            raise await self._gone()
        try:
            return wire.unpack_reply(line)
        except wire.GarbageError as error:
            raise LostError("garbage", str(error)) from None

    async def _gone(self) -> LostError:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await self.process.wait()
        code = self.process.returncode
        if code is None:
            return LostError("garbage", "the worker closed its pipe and went on")
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            return LostError("killed", f"the worker was ended by {signal.Signals(-code).name}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.shield(self._pump)
        said = next((line for line in reversed(self.noise) if line.strip()), "it said nothing")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return LostError("died", f"the worker ended with {how}: {said}")

    async def end(self, patience: float) -> None:
        """Ask the worker to stop, then make it; wait until it is gone and its scratch folder with it."""
        assert self.process.stdin is not None
        if self.process.returncode is None and patience > 0:
            with contextlib.suppress(ConnectionError, RuntimeError):
                self.process.stdin.writelines(wire.pack(wire.Stop()))
                self.process.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self.process.wait()
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._drain()
        self.scratch.remove()

    async def _drain(self) -> None:
        """Read both pipes to their end: asyncio closes a child's pipes only then, and complains if the loop is gone."""
        assert self.process.stdout is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):  # a child of the worker's own may hold them open
                while await self.process.stdout.read(1 << 16):
                    pass
                await self._pump
        self._pump.cancel()
