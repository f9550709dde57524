"""One reading of the memory of a process and its card."""

from __future__ import annotations

import msgspec


class Memory(msgspec.Struct, frozen=True):
    """One reading of the ledger, in bytes. None: this instrument cannot tell here. Never subtract
    across fields."""

    weights: int | None = None
    """Exact bytes of parameters and buffers of the model."""
    allocated: int | None = None
    """torch.cuda.memory_allocated; None without CUDA."""
    reserved: int | None = None
    """torch.cuda.memory_reserved; None without CUDA."""
    process: int | None = None
    """Of the worker alone: NVML for its pid; on the CPU its anonymous resident memory."""
    device: int | None = None
    """Of the whole device: NVML used memory; None without a GPU."""
    source: str = "rss"
    """Where `process` comes from: nvml, meminfo (what the card lost since; other processes disturb
    it) or rss."""
    kind: str = ""
    """What `process` is, as ledger.MEMORY_KINDS has it: anonymous, gpu or gpu-change; empty in readings of
    before."""
    resident: int | None = None
    """On the CPU: resident memory, the pages of files and libraries that the process shares
    included."""
