"""Memory of a process and its card, read from NVML and the kernel."""

from __future__ import annotations

import os
import threading

from asrd.precision import ledger
from asrd.precision.gpus import device_bytes, process_bytes
from asrd.precision.kernel_facts import process_status
from asrd.precision.memory import Memory
from asrd.precision.nvml import opened
from asrd.precision.strategies import index_of


def resident_bytes(pid: int) -> int | None:
    """Return the anonymous resident memory of a process; pages of a mapped checkpoint belong to the
    page cache."""
    return _kib(process_status(pid), "RssAnon")


def _kib(status: dict[str, str], name: str) -> int | None:
    """Return a figure of /proc/PID/status in bytes; None where the kernel gives none."""
    size = status.get(name, "").split()
    if not size:
        return None
    return int(size[0]) * 1024


def read(
    pid: int,
    device: str,
    *,
    weights: int | None = None,
    allocated: int | None = None,
    reserved: int | None = None,
    device_at_start: int | None = None,
) -> Memory:
    """Return one reading of the ledger for process `pid` on `device` ("cpu" or "cuda:N"), in bytes.

    Args:
        weights, allocated, reserved: the worker's own figures, passed through.
        device_at_start: bytes in use on the card before the worker touched it, for drivers that
            hide processes.
    """
    if device == "cpu":
        status = process_status(pid)
        anonymous, resident = _kib(status, "RssAnon"), _kib(status, "VmRSS")
        return Memory(
            weights, None, None, anonymous, None, "rss", ledger.source_key("rss"), resident
        )
    index = index_of(device)
    with opened:
        process, used = process_bytes(pid, index), device_bytes(index)
    if process is None and used is not None and device_at_start is not None:
        lost = max(0, used - device_at_start)
        return Memory(
            weights, allocated, reserved, lost, used, "meminfo", ledger.source_key("meminfo")
        )
    return Memory(weights, allocated, reserved, process, used, "nvml", ledger.source_key("nvml"))


def allocator_bytes(limit: int, now: Memory, assumed: int) -> int:
    """Return what torch's allocator may take, so that the whole process stays within `limit` bytes.

    torch bounds only what it reserves; the CUDA context and the libraries' code are beside it.

    Args:
        now: a reading of this process, after its first tensor.
        assumed: bytes beside the allocator where the reading does not give them.
    """
    if now.process is None or now.reserved is None:
        return limit - assumed
    return limit - max(0, now.process - now.reserved)


class Peak:
    """Highest resident memory of this process while entered, sampled every few milliseconds from
    its own thread."""

    def __init__(self, interval: float = 0.005) -> None:
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.bytes = 0

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, resident_bytes(os.getpid()) or 0)
            if self._done.wait(self._interval):
                return

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, resident_bytes(os.getpid()) or 0)
