"""Whether an NVIDIA card sleeps, whether it could, and what keeps it awake, by what the kernel
says of it.

Reads /sys and /proc alone. That wakes no card, as NVML and CUDA do. Daemon side.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

PCI_DEVICES = Path("/sys/bus/pci/devices")

DRIVER_CARDS = Path("/proc/driver/nvidia/gpus")
"""Has a folder for each card that NVIDIA's own driver holds."""

PROC_FOLDER = Path("/proc")

NVIDIA_VENDOR = "0x10de"
"""The PCI vendor."""

DISPLAY_CLASS = "0x03"
"""Beginning of the PCI class of what computes pictures: 0x0300 with outputs, 0x0302 without."""

FUNCTION_NAMES = {"0x0403": "sound", "0x0c03": "USB", "0x0c80": "USB-C"}
"""Beginning of the PCI class -> what else is on a card, and sleeps only together with it."""

OWN_DRIVERS = ("nvidia", "nouveau")

UDEV_RULE = 'ACTION=="bind", SUBSYSTEM=="pci", ATTR{vendor}=="0x10de", ATTR{power/control}="auto"'
"""For udev: lets all functions of NVIDIA cards sleep."""

DRIVER_OPTION = "options nvidia NVreg_DynamicPowerManagement=0x02"


class CardPower(msgspec.Struct, frozen=True):
    """How one card stands with sleep."""

    address: str
    """On the PCI bus, as in 0000:01:00.0."""
    state: Literal["active", "suspended", "unsupported"]
    can_sleep: bool
    """It sleeps, or will once nothing uses it."""
    detail: str
    """One clause: how it is, and why."""
    fix: str = ""
    """What lets it sleep; "" where nothing is to be done."""


def survey() -> list[CardPower]:
    """Return how each NVIDIA card stands, in the order of the bus; empty where there is none, or no
    /sys."""
    return list(map(_judge, _cards()))


def asleep() -> bool:
    """Return whether a card sleeps, so that opening NVML would wake it: NVML opens all cards."""
    return any(_sleeps(card) for card in _cards())


def _sleeps(card: Path) -> bool:
    return _state(card) == "suspended" and _driver(card) in OWN_DRIVERS


def holders() -> list[str]:
    """Return the processes that hold an NVIDIA device file, as "name (number)"; only those this
    user may look into."""
    processes = [folder for folder in _listed(PROC_FOLDER) if folder.name.isdigit()]
    processes.sort(key=lambda folder: int(folder.name))
    found: list[str] = []
    for folder in processes:
        if _holds(folder):
            found.append(f"{_read(folder / 'comm') or '?'} ({folder.name})")
    return found


def _holds(process: Path) -> bool:
    return any(_target(one).startswith("/dev/nvidia") for one in _listed(process / "fd"))


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # it was closed meanwhile
        return ""


def _cards() -> Iterator[Path]:
    """Yield the folders of NVIDIA's display controllers."""
    for device in _listed(PCI_DEVICES):
        if _read(device / "vendor") == NVIDIA_VENDOR and _read(device / "class").startswith(
            DISPLAY_CLASS
        ):
            yield device


def _judge(card: Path) -> CardPower:
    """Return how a card stands: the first of what decides it."""
    state, driver = _state(card), _driver(card)

    def result(can_sleep: bool, detail: str, fix: str = "") -> CardPower:
        return CardPower(card.name, state, can_sleep, detail, fix)

    if driver == "vfio-pci":
        return result(
            state == "suspended", f"{state}; it is assigned to virtual machines (vfio-pci)"
        )
    if state == "suspended":
        return result(True, *_asleep(card))
    if state == "unsupported":
        return result(False, "unsupported: the kernel cannot let it sleep")
    if not driver:
        return result(
            False,
            "active; no driver holds it, so nothing lets it sleep",
            "install the NVIDIA driver",
        )
    if outputs := _outputs(card):
        return result(False, f"active; it drives a display ({', '.join(outputs)})")
    for function, name in ((card, "the card"), *_functions(card)):
        if _read(function / "power/control") == "on":
            why = f"active; power/control of {name} is 'on', which keeps the card awake"
            return result(False, why, _allow(function / "power/control"))
    if driver == "nvidia" and (refusal := _refusal(DRIVER_CARDS / card.name)):
        return result(False, *refusal)
    return result(True, "active now; it may sleep when nothing uses it")


def _state(card: Path) -> Literal["active", "suspended", "unsupported"]:
    status = _read(card / "power/runtime_status")
    if status in ("suspended", "suspending"):
        return "suspended"
    if status in ("active", "resuming"):
        return "active"
    return "unsupported"  # "error" as well


def _asleep(card: Path) -> tuple[str, str]:
    """Return what to say of a card that sleeps, and what would make it sleep deeper."""
    milliseconds = _read(card / "power/runtime_suspended_time")
    slept = ""
    if milliseconds.isdecimal():
        slept = f", {int(milliseconds) / 60_000:.0f} min in all"
    if _read(card / "d3cold_allowed") == "0":
        path = card / "d3cold_allowed"
        return (
            f"suspended{slept}; it keeps some power, as D3cold is not allowed",
            f"echo 1 | sudo tee {path}",
        )
    return f"suspended: it sleeps{slept}", ""


def _allow(control: Path) -> str:
    """Return what lets a function sleep: now, and after a restart."""
    return f"echo auto | sudo tee {control}; for good, in /etc/udev/rules.d/80-nvidia-pm.rules: {UDEV_RULE}"


def _refusal(folder: Path) -> tuple[str, str] | None:
    """Return why NVIDIA's driver does not let a card sleep, and what helps; None where it does, or
    does not say.

    Args:
        folder: of that driver, for the card.
    """
    status = _runtime_d3(folder)
    if status.startswith("Disabled"):
        fix = f"echo {DRIVER_OPTION} | sudo tee /etc/modprobe.d/nvidia-pm.conf, then restart the machine"
        return f"active; the driver does not let it sleep (Runtime D3 status: {status})", fix
    if status.startswith("Not supported"):
        return (
            "active; the driver cannot let this card sleep (Runtime D3 status: Not supported)",
            "",
        )
    return None


def _runtime_d3(folder: Path) -> str:
    """Return whether the driver lets a card sleep, in its own words; "" where it does not say."""
    for line in _read(folder / "power").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "Runtime D3 status":
            return value.strip()
    return ""


def _functions(card: Path) -> Iterator[tuple[Path, str]]:
    """Yield what else is on a card: its folder, and a name for it."""
    slot = card.name.rpartition(".")[0]
    for device in _listed(card.parent):
        what = FUNCTION_NAMES.get(_read(device / "class")[:6])
        if what and device.name.rpartition(".")[0] == slot:
            yield device, f"its {what} function ({device.name})"


def _outputs(card: Path) -> list[str]:
    """Return the names of the card's outputs at which a display is."""
    found: list[str] = []
    for drm in _listed(card / "drm"):
        for output in _listed(drm):
            if "-" in output.name and _read(output / "status") == "connected":
                found.append(output.name.partition("-")[2])
    return found


def _driver(card: Path) -> str:
    return Path(_target(card / "driver")).name


def _listed(folder: Path) -> list[Path]:
    """Return what is in a folder, by name; nothing where it is not there, or not for this user."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _read(file: Path) -> str:
    """Return what a file of the kernel says; "" where it is not there, or not for this user."""
    try:
        return file.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
