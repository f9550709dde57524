"""NVML while it is asked, and one question to it.

Never opens a CUDA context, which alone would hold 128-256 MiB. NVML is open only while it is asked
(`opened`): held open it would keep a laptop's card awake. Runs on both sides.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

DRIVER_FILES = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""What is there where the kernel has an NVIDIA driver; the last one under WSL2."""

LIBRARY_NOT_FOUND = 12
"""NVML's code for a library that is not there."""

OPEN_PROBLEMS = {
    4: ("this user has no permission to use the NVIDIA driver", "ls -l /dev/nvidia*"),
    9: (
        "the NVIDIA driver is installed and not loaded",
        "sudo modprobe nvidia; after an upgrade: restart the machine",
    ),
    18: ("the NVIDIA driver was upgraded while the old one is still loaded", "restart the machine"),
}
"""NVML's code when it cannot be opened -> why, and what helps."""


class Library(contextlib.ContextDecorator):
    """NVML while it is asked: opened by the first of several scopes, shut down by the last.

    An open NVML holds the device files of every card, so a laptop's card never sleeps. Outside a
    scope none is held. The library's code stays mapped once it was needed; it is not before. May be
    entered by several threads at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self.nvml: ModuleType | None = None
        """pynvml; None where NVML could not be opened."""
        self.problem = ("", "")
        """Why it could not, and what helps."""

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self.nvml, self.problem = _open()
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self.nvml is not None:
                nvml, self.nvml = self.nvml, None
                # A driver that is gone has closed what it held.
                with contextlib.suppress(nvml.NVMLError):
                    nvml.nvmlShutdown()


opened = Library()
"""The scope in which NVML may be asked: `with opened:`, or `@opened` on a function. Handles are
valid only in it."""


def _open() -> tuple[ModuleType | None, tuple[str, str]]:
    """Open NVML; return pynvml and ("", ""), or None with why NVML answers nothing and what helps."""
    try:
        import pynvml
    except ImportError:
        return None, ("the package nvidia-ml-py is not installed", "pip install nvidia-ml-py")
    try:
        pynvml.nvmlInit()
    except Exception as error:  # pynvml makes its classes as it goes; each has NVML's code
        return None, _reason(error)
    return pynvml, ("", "")


def _reason(error: Exception) -> tuple[str, str]:
    """Return why NVML could not be opened, and what helps."""
    code = getattr(error, "value", None)
    if code in OPEN_PROBLEMS:
        return OPEN_PROBLEMS[code]
    if code is not None and code != LIBRARY_NOT_FOUND:
        return f"NVML cannot be opened: {error}", "nvidia-smi"
    if any(map(Path.exists, DRIVER_FILES)):
        return (
            "there is an NVIDIA driver, but its library libnvidia-ml.so.1 is not found, so no card can be seen",
            "install the driver's libraries; in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        )
    return "no NVIDIA driver", ""


@opened
def nvml_problem() -> tuple[str, str]:
    """Return why NVML answers nothing, and what helps; two empty strings where it can be asked."""
    return opened.problem


def ask(function: str, *arguments: Any) -> Any:
    """Call one NVML function, in a scope; None when this driver, card or container does not answer
    it."""
    nvml = opened.nvml
    if nvml is None:
        return None
    try:
        return getattr(nvml, function)(*arguments)
    except nvml.NVMLError:
        return None


def text_of(value: Any) -> str:
    """Return a name of NVML's, which older bindings give as bytes; "" for None."""
    if isinstance(value, bytes):
        return value.decode()
    return str(value or "")
