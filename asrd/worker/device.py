"""The worker's card: CUDA started on it, or the reason why not; its memory held within a limit.

torch is handed in by the caller; this file does not import it.
"""

from __future__ import annotations

from typing import Any

from asrd.models import memory_estimate
from asrd.precision import cuda_errors, gpus, readings
from asrd.precision.memory import Memory


class NoDeviceError(Exception):
    """torch cannot use the card, under no precision."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class BudgetError(Exception):
    """The worker may hold less of the card than CUDA takes before anything is loaded."""

    hint = "asrd plan lists what each strategy needs"


def open_device(torch: Any, index: int) -> None:
    """Start CUDA on a device and run one kernel there.

    Raises:
        NoDeviceError: torch cannot use it at all: another CUDA, no kernels for it, taken by another
            process.
    """
    try:
        torch.cuda.init()
        torch.cuda.set_device(index)
        torch.zeros(1, device=f"cuda:{index}").add_(1).item()
    except Exception as error:  # each layer has a class of its own
        if cuda_errors.kind_of(error) != "no-device":
            raise
        card = next((one for one in gpus.gpus() if one.index == index), None)
        built = cuda_errors.TorchBuild(str(torch.__version__), str(torch.version.cuda or ""))
        raise NoDeviceError(*cuda_errors.explain(error, built, card, gpus.driver_cuda())) from error


def hold_to_limit(torch: Any, index: int, limit: int, now: Memory) -> None:
    """Bound torch's allocator so that the whole process stays within `limit` bytes of a card.

    Args:
        now: a reading of this process, after its first tensor.

    Raises:
        BudgetError: what is beside the allocator is above the limit already.
    """
    left = readings.allocator_bytes(limit, now, memory_estimate.CONTEXT)
    if left <= 0:
        raise BudgetError(
            f"CUDA and its libraries hold {(limit - left) >> 20} MiB beside the model; "
            f"vram_budget allows {limit >> 20} MiB for everything"
        )
    total = torch.cuda.mem_get_info(index)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, left / total), index)
    if now.reserved is not None and now.reserved > left:
        torch.cuda.empty_cache()  # what is kept for later counts as held
