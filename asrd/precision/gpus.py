"""The cards that CUDA sees, as NVML reports them: which there are, which is meant, what is in use.

Runs on both sides. Figures of different instruments stand side by side and are never subtracted
from each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from asrd.errors import PrecisionError
from asrd.precision import cuda_errors
from asrd.precision.kernel_facts import process_status
from asrd.precision.nvml import ask, nvml_problem, opened, text_of
from asrd.precision.plan import Gpu, device_for

COMPUTE_MODES: dict[int, Literal["", "exclusive", "prohibited"]] = {
    1: "exclusive",
    2: "prohibited",
    3: "exclusive",
}
"""NVML's compute modes; 0 is for everybody."""

NO_PROBLEM = ("", "")
"""Why no card can be used, and what helps, where nothing is amiss."""


def _whole() -> list[Any]:
    """Return NVML's handle of each card in the machine, None for one that does not answer."""
    count = ask("nvmlDeviceGetCount") or 0
    return [ask("nvmlDeviceGetHandleByIndex", index) for index in range(count)]


def _instances(card: Any) -> list[Any] | None:
    """Return the handles of the instances that a card is divided into; None where it is whole."""
    mode = ask("nvmlDeviceGetMigMode", card)
    if not mode or mode[0] != 1:
        return None
    found: list[Any] = []
    for index in range(_most_instances(card)):
        instance = ask("nvmlDeviceGetMigDeviceHandleByIndex", card, index)
        if instance is not None:
            found.append(instance)
    return found


def _most_instances(card: Any) -> int:
    return int(ask("nvmlDeviceGetMaxMigDeviceCount", card) or 0)


def _visible() -> list[Any]:
    """Return NVML's handles in the order in which CUDA will number them (CUDA_DEVICE_ORDER is set
    to PCI_BUS_ID).

    Of cards that are divided (MIG), CUDA shows a process one instance and then no whole card beside
    it.
    """
    whole: list[Any] = []
    chosen = _chosen(_whole())
    for card in chosen:
        instances = _instances(card)
        if instances is None:
            whole.append(card)
        elif instances:
            return instances[:1]
    for card in chosen:
        if _is_instance(card):
            return [card]
    return whole


def _chosen(cards: list[Any]) -> list[Any]:
    """Return the handles that CUDA_VISIBLE_DEVICES lists, all cards that answer where it is not
    set."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return list(filter(None, cards))
    found: list[Any] = []
    for word in filter(None, map(str.strip, listed.split(","))):
        named = _named(word, cards)
        if named is None:
            break  # CUDA hides everything behind the first entry that it cannot resolve
        found.append(named)
    return found


def _named(word: str, cards: list[Any]) -> Any:
    """Return the card or instance that an entry of CUDA_VISIBLE_DEVICES means, or None."""
    if word.isdigit():
        index = int(word)
        return cards[index] if index < len(cards) else None
    options: Iterable[Any] = filter(None, cards)
    if word.startswith("MIG-"):
        options = _all_instances(cards)
    for one in options:
        if _uuid(one).startswith(word):
            return one
    return None


def _all_instances(cards: list[Any]) -> Iterator[Any]:
    """Yield the instances of all cards that are divided."""
    for card in filter(None, cards):
        yield from _instances(card) or ()


def _uuid(card: Any) -> str:
    return text_of(ask("nvmlDeviceGetUUID", card))


def _is_instance(card: Any) -> bool:
    return _uuid(card).startswith("MIG-")


def _handle(index: int) -> Any:
    """Return NVML's handle of CUDA device `index`, or None."""
    order = _visible()
    if index < len(order):
        return order[index]
    return None


@opened
def gpus() -> list[Gpu]:
    """Return the cards that CUDA would see, without starting CUDA; empty where there is no
    driver."""
    found: list[Gpu] = []
    for index, handle in enumerate(_visible()):
        card = _describe(index, handle)
        if card is not None:
            found.append(card)
    return found


def _describe(index: int, card: Any) -> Gpu | None:
    """Return the facts of a card or an instance; None for one that does not answer."""
    whole, kind = card, ""
    if _is_instance(card):
        whole, kind = ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", card), " MIG"
    capability = _capability(card) or _capability(whole)
    memory = ask("nvmlDeviceGetMemoryInfo", card)
    if capability is None or memory is None:
        return None
    return Gpu(
        index,
        _name(card) or f"{_name(whole) or 'GPU'}{kind}",
        (capability[0], capability[1]),
        memory.total,
        memory.free,
        text_of(ask("nvmlSystemGetDriverVersion")),
        _uuid(card),
        COMPUTE_MODES.get(ask("nvmlDeviceGetComputeMode", whole) or 0, ""),
    )


def _capability(card: Any) -> Any:
    return ask("nvmlDeviceGetCudaComputeCapability", card)


def _name(card: Any) -> str:
    return text_of(ask("nvmlDeviceGetName", card))


@opened
def lost_cards() -> list[str]:
    """Return a sentence for each card that NVML counts and that does not answer."""
    sentences: list[str] = []
    for index, card in enumerate(_whole()):
        if card is None or not _answers(card):
            sentences.append(
                f"card {index} does not answer: it has fallen off the bus, or its driver has given it up"
            )
    return sentences


def _answers(card: Any) -> bool:
    memory = ask("nvmlDeviceGetMemoryInfo", card)
    return memory is not None or _instances(card) is not None


@opened
def divided_cards() -> list[str]:
    """Return the names of cards that are divided (MIG) and have no instance that a process could
    use."""
    names: list[str] = []
    for card in filter(None, _whole()):
        if _instances(card) == []:
            names.append(_name(card))
    return names


@opened
def gpu_problem() -> tuple[str, str]:
    """Return why no card can be seen, and what helps; two empty strings where there simply is
    none."""
    why, fix = nvml_problem()
    if why and not fix:  # a machine without an NVIDIA driver
        return NO_PROBLEM
    if why:
        return why, fix
    if gone := lost_cards():
        return "; ".join(gone), "nvidia-smi; sudo dmesg | grep -i nvrm; a restart may bring it back"
    if names := divided_cards():
        return (
            f"{', '.join(names)} is divided (MIG) into no instance",
            "sudo nvidia-smi mig -cgi PROFILE -C",
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and _whole():
        return f"CUDA_VISIBLE_DEVICES = {hidden!r} hides every card", "unset CUDA_VISIBLE_DEVICES"
    return NO_PROBLEM


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
        if self.fix:
            return f"{self.why} ({self.fix})"
        return self.why


@opened
def select_gpu(device: str) -> GpuSelection:
    """Return the cards that a plan for a device may choose among: those that the installed torch
    can use.

    Raises PrecisionError: the device means a card that is not there, or that this torch cannot use.
    """
    seen = gpus()
    meant = _meant(device, seen)
    if meant is None and device == "auto":
        return GpuSelection(seen, *gpu_problem())
    if meant is None:
        return GpuSelection(seen)
    fit = [card for card in seen if not torch_problem(card)[0]]
    if meant in fit:
        return GpuSelection(fit, card=meant)
    # Another card may be meant as well, by the same words.
    try:
        card = device_for(device, fit)
    except PrecisionError:
        raise PrecisionError(*torch_problem(meant)) from None
    if card is None:
        return GpuSelection(fit, *torch_problem(meant))
    return GpuSelection(fit, card=card)


@opened
def torch_problem(card: Gpu) -> tuple[str, str]:
    """Return why the installed torch cannot use a card, and what helps; two empty strings where
    no problem is found."""
    torch = cuda_errors.torch_build()
    if torch is None:
        return NO_PROBLEM
    return cuda_errors.mismatch(torch, card, driver_cuda())


def _meant(device: str, seen: list[Gpu]) -> Gpu | None:
    """Return the card that a device means among those that CUDA sees; None for the CPU. Raises
    PrecisionError."""
    try:
        return device_for(device, seen)
    except PrecisionError as error:
        why, fix = _absence(device, seen)
        message = error.message
        if why:
            message = f"{message}: {why}"
        raise PrecisionError(message, fix or error.hint) from None


def _absence(device: str, seen: list[Gpu]) -> tuple[str, str]:
    """Return why a device means no card that CUDA sees, and what helps."""
    if device.startswith("MIG-") and _named(device, _whole()) is not None:
        return (
            "CUDA shows a process one instance (MIG)",
            f"CUDA_VISIBLE_DEVICES={device} makes it this one",
        )
    if seen:
        return NO_PROBLEM
    return gpu_problem()


@opened
def driver_cuda() -> str:
    """Return the newest CUDA that the driver supports, as "12.8"; empty where it does not say."""
    version = ask("nvmlSystemGetCudaDriverVersion")
    if not version:
        return ""
    return f"{version // 1000}.{version % 1000 // 10}"


@opened
def free_bytes(index: int) -> int | None:
    """Return the bytes that are free on CUDA device `index` now; None without NVML."""
    memory = ask("nvmlDeviceGetMemoryInfo", _handle(index))
    if memory is None:
        return None
    return int(memory.free)


@opened
def process_bytes(pid: int, index: int) -> int | None:
    """Return what NVML says process `pid` holds on CUDA device `index`; None where it gives no
    figure (WSL, containers)."""
    # NVML may have the process under its number in another namespace.
    wanted = {str(pid), *process_status(pid).get("NSpid", "").split()}
    for process in ask("nvmlDeviceGetComputeRunningProcesses", _handle(index)) or []:
        if str(process.pid) in wanted and process.usedGpuMemory is not None:
            return int(process.usedGpuMemory)
    return None


@opened
def device_bytes(index: int) -> int | None:
    """Return the bytes in use on CUDA device `index`, by everybody; None without NVML."""
    memory = ask("nvmlDeviceGetMemoryInfo", _handle(index))
    if memory is None:
        return None
    return int(memory.used)
