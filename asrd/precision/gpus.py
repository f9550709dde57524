"""The ledger's instruments: what NVML and the kernel say of a process and a card.

Runs on both sides and never opens a CUDA context (that alone would hold 128-256 MiB). NVML is open
only while it is asked (`opened`): held open it would keep a laptop's card awake. torch's own
figures are handed in by the worker. Figures of different instruments stand side by side and are
never subtracted from each other.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import msgspec

from asrd.errors import PrecisionError
from asrd.precision import cuda_errors
from asrd.precision.plan import Gpu, device_for

DRIVER_FILES = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""What is there where the kernel has an NVIDIA driver; the last one under WSL2."""

LIBRARY_NOT_FOUND = 12
"""NVML's code for a library that is not there."""

OPEN_PROBLEMS = {
    4: ("this user may not use the NVIDIA driver", "ls -l /dev/nvidia*"),
    9: (
        "the NVIDIA driver is installed and not loaded",
        "sudo modprobe nvidia; after an upgrade: restart the machine",
    ),
    18: ("the NVIDIA driver was upgraded while the old one is still loaded", "restart the machine"),
}
"""NVML's code when it cannot be opened -> why, and what helps."""

COMPUTE_MODES: dict[int, Literal["", "exclusive", "prohibited"]] = {
    1: "exclusive",
    2: "prohibited",
    3: "exclusive",
}
"""NVML's compute modes; 0 is for everybody."""


class _Library(contextlib.ContextDecorator):
    """NVML while somebody asks it: opened by the first of several scopes, shut down by the last.

    An open NVML holds the device files of every card, so a laptop's card never sleeps. Outside a
    scope none is held. The library's code stays mapped once it was needed; it is not before. May be
    entered by several threads at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self.nvml: ModuleType | None = None
        """pynvml; None where NVML could not be opened."""
        self.silence = ("", "")
        """Why it could not, and what helps."""

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self.nvml, self.silence = _open()
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self.nvml is not None:
                nvml, self.nvml = self.nvml, None
                with contextlib.suppress(
                    nvml.NVMLError
                ):  # a driver that is gone has closed what it held
                    nvml.nvmlShutdown()


opened = _Library()
"""The scope in which NVML may be asked: `with opened:`, or `@opened` on a function. Handles are
valid only in it."""


def _open() -> tuple[ModuleType | None, tuple[str, str]]:
    """Open NVML; return pynvml and ("", ""), or None with why NVML tells nothing and what helps."""
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
    if any(path.exists() for path in DRIVER_FILES):
        return (
            "there is an NVIDIA driver, but its library libnvidia-ml.so.1 is not found, so no card can be seen",
            "install the driver's libraries; in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        )
    return "no NVIDIA driver", ""


@opened
def nvml_problem() -> tuple[str, str]:
    """Return why NVML tells nothing, and what helps; two empty strings where it can be asked."""
    return opened.silence


def _ask(function: str, *arguments: Any) -> Any:
    """Call one NVML function, in a scope; None when this driver, card or container does not answer
    it."""
    nvml = opened.nvml
    if nvml is None:
        return None
    try:
        return getattr(nvml, function)(*arguments)
    except nvml.NVMLError:
        return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _whole() -> list[Any]:
    """Return NVML's handle of each card in the machine, None for one that does not answer."""
    return [
        _ask("nvmlDeviceGetHandleByIndex", index)
        for index in range(_ask("nvmlDeviceGetCount") or 0)
    ]


def _instances(card: Any) -> list[Any] | None:
    """Return the handles of the instances that a card is divided into; None where it is whole."""
    mode = _ask("nvmlDeviceGetMigMode", card)
    if not mode or mode[0] != 1:
        return None
    found = (
        _ask("nvmlDeviceGetMigDeviceHandleByIndex", card, i) for i in range(_most_instances(card))
    )
    return [instance for instance in found if instance is not None]


def _most_instances(card: Any) -> int:
    return int(_ask("nvmlDeviceGetMaxMigDeviceCount", card) or 0)


def _visible() -> list[Any]:
    """Return NVML's handles in the order in which CUDA will number them (CUDA_DEVICE_ORDER is set
    to PCI_BUS_ID).

    Of cards that are divided (MIG), CUDA shows a process one instance and then no whole card beside
    it.
    """
    cards = _whole()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    words = (
        [str(i) for i, card in enumerate(cards) if card] if chosen is None else chosen.split(",")
    )
    found: list[Any] = []
    for word in filter(None, (word.strip() for word in words)):
        if (named := _named(word, cards)) is None:
            break  # CUDA hides everything behind the first entry that it cannot resolve
        found.append(named)
    handles: list[Any] = []
    for card in found:
        parts = _instances(card)
        if parts is None:
            handles.append(card)
        elif parts:
            return parts[:1]
    parts = [card for card in found if _is_instance(card)]
    return parts[:1] or handles


def _named(word: str, cards: list[Any]) -> Any:
    """Return the card or instance that an entry of CUDA_VISIBLE_DEVICES means, or None."""
    if word.isdigit():
        return cards[int(word)] if int(word) < len(cards) else None
    parts = [part for card in cards if card for part in _instances(card) or ()]
    candidates = parts if word.startswith("MIG-") else [card for card in cards if card]
    return next(
        (one for one in candidates if _text(_ask("nvmlDeviceGetUUID", one)).startswith(word)), None
    )


def _is_instance(card: Any) -> bool:
    return _text(_ask("nvmlDeviceGetUUID", card)).startswith("MIG-")


def _handle(index: int) -> Any:
    """Return NVML's handle of CUDA device `index`, or None."""
    order = _visible()
    return order[index] if index < len(order) else None


@opened
def gpus() -> list[Gpu]:
    """Return the cards that CUDA would see, without starting CUDA; empty where there is no
    driver."""
    found = (_describe(index, card) for index, card in enumerate(_visible()))
    return [card for card in found if card is not None]


def _describe(index: int, card: Any) -> Gpu | None:
    """Return the facts of a card or an instance; None for one that does not answer."""
    whole = (
        _ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", card) if _is_instance(card) else card
    )
    capability = _ask("nvmlDeviceGetCudaComputeCapability", card) or _ask(
        "nvmlDeviceGetCudaComputeCapability", whole
    )
    memory = _ask("nvmlDeviceGetMemoryInfo", card)
    if capability is None or memory is None:
        return None
    name = _text(_ask("nvmlDeviceGetName", card))
    return Gpu(
        index,
        name
        or f"{_text(_ask('nvmlDeviceGetName', whole)) or 'GPU'}{' MIG' if whole is not card else ''}",
        (capability[0], capability[1]),
        memory.total,
        memory.free,
        _text(_ask("nvmlSystemGetDriverVersion")),
        _text(_ask("nvmlDeviceGetUUID", card)),
        COMPUTE_MODES.get(_ask("nvmlDeviceGetComputeMode", whole) or 0, ""),
    )


@opened
def lost_cards() -> list[str]:
    """Return a sentence for each card that NVML counts and that does not answer."""
    said = []
    for index, card in enumerate(_whole()):
        if card is None or (
            _ask("nvmlDeviceGetMemoryInfo", card) is None and _instances(card) is None
        ):
            said.append(
                f"card {index} does not answer: it has fallen off the bus, or its driver has given it up"
            )
    return said


@opened
def divided_cards() -> list[str]:
    """Return the names of cards that are divided (MIG) and have no instance that a process could
    use."""
    return [
        _text(_ask("nvmlDeviceGetName", card))
        for card in _whole()
        if card and _instances(card) == []
    ]


@opened
def gpu_problem() -> tuple[str, str]:
    """Return why no card can be seen, and what helps; two empty strings where there simply is
    none."""
    why, fix = nvml_problem()
    if why:
        return (why, fix) if fix else ("", "")
    if gone := lost_cards():
        return "; ".join(gone), "nvidia-smi; sudo dmesg | grep -i nvrm; a restart may bring it back"
    if parts := divided_cards():
        return (
            f"{', '.join(parts)} is divided (MIG) into no instance",
            "sudo nvidia-smi mig -cgi PROFILE -C",
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and _whole():
        return f"CUDA_VISIBLE_DEVICES = {hidden!r} hides every card", "unset CUDA_VISIBLE_DEVICES"
    return "", ""


class GpuSelection(msgspec.Struct, frozen=True):
    """What a plan may count on beside the CPU."""

    cards: list[Gpu]
    why: str = ""
    """Why there is none, where one was to be had."""
    fix: str = ""
    """What helps."""
    card: Gpu | None = None
    """The one that the device means; None for the CPU."""

    @property
    def lack(self) -> str:
        """Why and what helps as one clause; "" where nothing is amiss."""
        return f"{self.why} ({self.fix})" if self.fix else self.why


@opened
def select_gpu(device: str) -> GpuSelection:
    """Return the cards that a plan for a device may choose among: those that the installed torch
    can use.

    Raises PrecisionError: the device means a card that is not there, or that this torch cannot use.
    """
    seen = gpus()
    meant = _meant(device, seen)
    if meant is None:
        return GpuSelection(seen, *(gpu_problem() if device == "auto" else ("", "")))
    fit = [card for card in seen if not torch_problem(card)[0]]
    if meant in fit:
        return GpuSelection(fit, card=meant)
    # Another card may be meant as well, by the same words.
    try:
        card = device_for(device, fit)
    except PrecisionError:
        raise PrecisionError(*torch_problem(meant)) from None
    return GpuSelection(fit, *(("", "") if card else torch_problem(meant)), card=card)


@opened
def torch_problem(card: Gpu) -> tuple[str, str]:
    """Return why the installed torch cannot use a card, and what helps; two empty strings where
    nothing is known."""
    torch = cuda_errors.torch_build()
    return cuda_errors.mismatch(torch, card, driver_cuda()) if torch else ("", "")


def _meant(device: str, seen: list[Gpu]) -> Gpu | None:
    """Return the card that a device means among those that CUDA sees; None for the CPU. Raises
    PrecisionError."""
    try:
        return device_for(device, seen)
    except PrecisionError as error:
        why, fix = ("", "") if seen else gpu_problem()
        if device.startswith("MIG-") and _named(device, _whole()) is not None:
            why, fix = (
                "CUDA shows a process one instance (MIG)",
                f"CUDA_VISIBLE_DEVICES={device} makes it this one",
            )
        raise PrecisionError(
            f"{error.message}: {why}" if why else error.message, fix or error.hint
        ) from None


@opened
def driver_cuda() -> str:
    """Return the newest CUDA that the driver knows, as "12.8"; empty where it does not say."""
    version = _ask("nvmlSystemGetCudaDriverVersion") or 0
    return f"{version // 1000}.{version % 1000 // 10}" if version else ""


def driver_version() -> str:
    """Return the version of the loaded driver, which the kernel tells and no card; empty where
    there is none."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return ""


@opened
def free_bytes(index: int) -> int | None:
    """Return the bytes that are free on CUDA device `index` now; None without NVML."""
    memory = _ask("nvmlDeviceGetMemoryInfo", _handle(index))
    return None if memory is None else int(memory.free)


@opened
def process_bytes(pid: int, index: int) -> int | None:
    """Return what NVML says process `pid` holds on CUDA device `index`; None where it cannot tell
    (WSL, containers)."""
    wanted = {str(pid)}
    status = process_status(pid)
    wanted.update(
        status.get("NSpid", "").split()
    )  # NVML may know the process by its number in another namespace
    for process in _ask("nvmlDeviceGetComputeRunningProcesses", _handle(index)) or []:
        if str(process.pid) in wanted and process.usedGpuMemory is not None:
            return int(process.usedGpuMemory)
    return None


@opened
def device_bytes(index: int) -> int | None:
    """Return the bytes in use on CUDA device `index`, by everybody; None without NVML."""
    memory = _ask("nvmlDeviceGetMemoryInfo", _handle(index))
    return None if memory is None else int(memory.used)


def process_status(pid: int) -> dict[str, str]:
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
