"""What each figure of the ledger of memory is, in words; and how much a worker gained while it
worked (pure).

A figure of the worker's memory has one of four instruments. Figures of two instruments are never
subtracted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from asrd.text.sizes import MIB

# A key press imports this module, and needs no messages of a worker.
if TYPE_CHECKING:
    from asrd.precision.memory import Memory

MEMORY_RESOLUTION = 16 << 20
"""Bytes by which the resident memory of two runs of one program differs for no reason (measured:
527 to 540 MiB)."""

WORKING_PHASES = ("steady", "after")
"""Phases in which a worker has done its work: after the timed buffers, and after the whole
manifest."""


class MemoryKind(NamedTuple):
    """What a figure of the worker's memory is."""

    key: str
    """As JSON and the journal have it."""
    words: str
    """Beside a figure."""
    meaning: str
    """One sentence without its subject."""


MEMORY_KINDS = {
    "rss": MemoryKind(
        "anonymous",
        "anonymous",
        "anonymous resident memory (the kernel's RssAnon): private to the worker, without the pages of libraries and "
        "files that it shares",
    ),
    "nvml": MemoryKind(
        "gpu",
        "GPU, by NVML",
        "what NVML says the worker's process holds of the GPU, CUDA's own share too",
    ),
    "meminfo": MemoryKind(
        "gpu-change",
        "change of the whole GPU",
        "what the whole GPU lost since the worker started, as NVML does not see the process; other programs disturb it",
    ),
    "torch": MemoryKind(
        "gpu-allocator",
        "GPU, torch's allocator",
        "what torch allocated on the GPU, without CUDA's own share",
    ),
}
"""By Memory.source; torch stands for a reading that has no figure of the process."""


def source_of(memory: Memory | None) -> str:
    """Return the instrument of `worker_bytes`; "" where there is no figure."""
    if memory is None or worker_bytes(memory) is None:
        return ""
    if memory.process is None:
        return "torch"
    return memory.source


def source_words(source: str) -> str:
    """Return what the figures of an instrument are, in a few words; "unknown" of none."""
    return _kind(source).words


def source_key(source: str) -> str:
    """Return what they are as JSON has it."""
    return _kind(source).key


def worker_bytes(memory: Memory | None) -> int | None:
    """Return the bytes that belong to the worker: of its process, or torch's own where the driver
    hides it."""
    if memory is None:
        return None
    if memory.process is None:
        return memory.allocated
    return memory.process


def largest_bytes(ledger: Mapping[str, Memory]) -> int | None:
    """Return the most that the worker held in the phases of work; None without a figure."""
    largest: int | None = None
    for phase in WORKING_PHASES:
        size = worker_bytes(ledger.get(phase))
        if size is not None:
            largest = max(size, largest or 0)
    return largest


def growth_bytes(ledger: Mapping[str, Memory]) -> int | None:
    """Return the bytes that the worker gained from steady to the end of the manifest; None without
    both figures, or where they are of two instruments."""
    steady, after = map(ledger.get, WORKING_PHASES)
    before, now = worker_bytes(steady), worker_bytes(after)
    if before is None or now is None or source_of(steady) != source_of(after):
        return None
    return now - before


def sources_sentence(readings: Iterable[Memory]) -> str:
    """Return what the memory figures of some readings are, as one sentence; "" where there is
    none."""
    sources = dict.fromkeys(filter(None, map(source_of, readings)))
    if not sources:
        return ""
    return f"Memory is {'; or '.join(_kind(source).meaning for source in sources)}."


def _kind(source: str) -> MemoryKind:
    """Return what the figures of an instrument are; of one that is not in the table, its name."""
    return MEMORY_KINDS.get(source) or MemoryKind(source, source or "unknown", source)


def reading_text(memory: Mapping[str, int | str | None]) -> str:
    """Return a reading, as a status carries it, for a person: each figure with what it is."""
    source, resident = str(memory.get("source") or ""), memory.get("resident")
    process = source_words(source)
    if source == "rss":
        process += ", private to the worker"
    notes = {
        "weights": "",
        "allocated": " (GPU, by torch)",
        "reserved": " (GPU, by torch)",
        "process": f" ({process})",
        "device": " (GPU, all processes)",
    }
    parts: list[str] = []
    for name, note in notes.items():
        size = memory.get(name)
        if isinstance(size, int):
            parts.append(f"{name} {size / MIB:.1f} MiB{note}")
    if isinstance(resident, int):
        parts.append(
            f"resident {resident / MIB:.1f} MiB (with the libraries and files that it shares)"
        )
    return ", ".join(parts)
