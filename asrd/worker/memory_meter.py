"""Readings of this worker's memory: at each stage of loading, at the peak, and now.

torch is handed in once it is imported; this file does not import it.
"""

from __future__ import annotations

import os
from typing import Any

from asrd import protocol
from asrd.precision import gpus, ledger, memory, readings
from asrd.precision.strategies import index_of
from asrd.worker import device as worker_device


class MemoryMeter:
    """Measures the memory of one worker.

    Args:
        start: the daemon's first message, for the device and its limit.

    Attributes:
        torch: the imported module, to be set before the first measurement.
        weights_bytes: bytes of the model; None until it is loaded.
        ledger: stage of loading -> the reading at its end.
    """

    def __init__(self, start: protocol.Start) -> None:
        self.torch: Any = None
        self.weights_bytes: int | None = None
        self.ledger: dict[str, memory.Memory] = {}
        self._device, self._limit = start.device, start.vram_limit
        self._index = index_of(start.device)
        self._on_card = start.device != "cpu"
        self._device_at_start: int | None = None
        if self._on_card:
            self._device_at_start = gpus.device_bytes(self._index)

    def measure(self) -> memory.Memory:
        """Return a reading of this process and its device now."""
        allocated = reserved = None
        if self._on_card:
            allocated = self.torch.cuda.memory_allocated(self._index)
            reserved = self.torch.cuda.memory_reserved(self._index)
        return readings.read(
            os.getpid(),
            self._device,
            weights=self.weights_bytes,
            allocated=allocated,
            reserved=reserved,
            device_at_start=self._device_at_start,
        )

    def note(self, stage: str) -> None:
        """Enter a reading into the ledger, as that of the stage which ends now."""
        self.ledger[stage] = self.measure()

    def peak(self, resident: int) -> memory.Memory:
        """Return the most memory that loading took.

        Args:
            resident: bytes of the process at its peak, which stand for it on a CPU.
        """
        if not self._on_card:
            return memory.Memory(
                self.weights_bytes, process=resident, kind=ledger.source_key("rss")
            )
        cuda, now = self.torch.cuda, self.measure()
        return memory.Memory(
            self.weights_bytes,
            cuda.max_memory_allocated(self._index),
            cuda.max_memory_reserved(self._index),
            now.process,
            now.device,
            now.source,
            now.kind,
        )

    def hold_to_limit(self) -> None:
        """Keep the process within the limit on its card, where there is one. Raises BudgetError."""
        if self._limit and self._on_card:
            worker_device.hold_to_limit(self.torch, self._index, self._limit, self.measure())
