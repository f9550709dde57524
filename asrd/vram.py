"""The ledger's instruments: what NVML and the kernel say of a process and a card.

Runs on both sides and never opens a CUDA context (that alone would hold 128-256 MiB). torch's own figures are handed in
by the worker. Figures of different instruments stand side by side and are never subtracted from each other.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from .precision import Gpu
from .wire import Memory


@functools.cache
def _nvml() -> ModuleType | None:
    """Return pynvml with the library open, or None where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ImportError, OSError):
        return None
    except pynvml.NVMLError:
        return None
    return pynvml


def _ask(function: str, *arguments: Any) -> Any:
    """Call one NVML function; None when this driver, card or container does not answer it."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        return getattr(nvml, function)(*arguments)
    except nvml.NVMLError:
        return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _visible(count: int) -> list[int]:
    """Return NVML indices in the order in which CUDA will number them (CUDA_DEVICE_ORDER is set to PCI_BUS_ID)."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list(range(count))
    uuids = [_text(_ask("nvmlDeviceGetUUID", _ask("nvmlDeviceGetHandleByIndex", i))) for i in range(count)]
    order: list[int] = []
    for word in filter(None, (part.strip() for part in chosen.split(","))):
        found = [int(word)] if word.isdigit() else [i for i, uuid in enumerate(uuids) if uuid.startswith(word)]
        if not found or found[0] >= count:
            break  # CUDA hides everything behind the first entry that it cannot resolve
        order.append(found[0])
    return order


def handle(index: int) -> Any:
    """Return NVML's handle of CUDA device `index`, or None."""
    order = _visible(_ask("nvmlDeviceGetCount") or 0)
    return _ask("nvmlDeviceGetHandleByIndex", order[index]) if index < len(order) else None


def gpus() -> list[Gpu]:
    """Return the cards that CUDA would see, without starting CUDA; empty where there is no driver."""
    cards = []
    for index in range(len(_visible(_ask("nvmlDeviceGetCount") or 0))):
        card = handle(index)
        capability = _ask("nvmlDeviceGetCudaComputeCapability", card)
        memory = _ask("nvmlDeviceGetMemoryInfo", card)
        if capability is None or memory is None:
            continue
        name = _text(_ask("nvmlDeviceGetName", card)) or "GPU"
        driver = _text(_ask("nvmlSystemGetDriverVersion"))
        cards.append(Gpu(index, name, (capability[0], capability[1]), memory.total, memory.free, driver))
    return cards


def process_bytes(pid: int, index: int) -> int | None:
    """Return what NVML says process `pid` holds on CUDA device `index`; None where it cannot tell (WSL, containers)."""
    wanted = {str(pid)}
    status = _status(pid)
    wanted.update(status.get("NSpid", "").split())  # NVML may know the process by its number in another namespace
    for process in _ask("nvmlDeviceGetComputeRunningProcesses", handle(index)) or []:
        if str(process.pid) in wanted and process.usedGpuMemory is not None:
            return int(process.usedGpuMemory)
    return None


def device_bytes(index: int) -> int | None:
    """Return the bytes in use on CUDA device `index`, by everybody; None without NVML."""
    memory = _ask("nvmlDeviceGetMemoryInfo", handle(index))
    return None if memory is None else int(memory.used)


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def processor() -> str:
    """Return the name of the processor, or CPU where the kernel tells none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "CPU"


def resident_bytes(pid: int) -> int | None:
    """Return the anonymous resident memory of a process; pages of a mapped checkpoint belong to the page cache."""
    size = _status(pid).get("RssAnon", "").split()
    return int(size[0]) * 1024 if size else None


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
        device_at_start: bytes in use on the card before the worker touched it, for drivers that hide processes.
    """
    if device == "cpu":
        return Memory(weights, None, None, resident_bytes(pid), None, "rss")
    index = int(device.partition(":")[2] or 0)
    process, used = process_bytes(pid, index), device_bytes(index)
    if process is None and used is not None and device_at_start is not None:
        return Memory(weights, allocated, reserved, max(0, used - device_at_start), used, "meminfo")
    return Memory(weights, allocated, reserved, process, used, "nvml")


class Peak:
    """Highest resident memory of this process while entered, sampled every few milliseconds from its own thread."""

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
