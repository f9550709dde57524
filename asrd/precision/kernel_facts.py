"""What the kernel says of a process, the processor and the NVIDIA driver; wakes no card."""

from __future__ import annotations

import contextlib
from pathlib import Path


def process_status(pid: int) -> dict[str, str]:
    """Return /proc/PID/status, name -> value; empty where there is no such process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    status: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        status[name] = value.strip()
    return status


def processor() -> str:
    """Return the name of the processor, or CPU where the kernel gives none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "CPU"


def driver_version() -> str:
    """Return the version of the loaded driver, by the kernel and not by a card; empty where
    there is none."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return ""
