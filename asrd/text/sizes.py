"""Bytes as people read them (pure)."""

from __future__ import annotations

MIB, GIB = 1 << 20, 1 << 30
"""Bytes of a mebibyte and of a gibibyte."""

MAX_SHOWN_MIB = 999.95
"""Mebibytes below which a size is not shown in gibibytes."""


def mib(count: float) -> str:
    """Return bytes in whole mebibytes, with the unit."""
    return f"{count / MIB:.0f} MiB"


def mib_figure(count: int) -> str:
    """Return bytes in mebibytes without the unit, for a column: three figures that count."""
    size = count / MIB
    if size < 99.95:
        return f"{size:.1f}"
    return f"{size:.0f}"


def readable_size(count: int) -> str:
    """Return bytes with their unit: mebibytes, from 1,000 of them on gibibytes."""
    if count / MIB < MAX_SHOWN_MIB:
        return f"{count / MIB:.1f} MiB"
    return f"{count / GIB:.2f} GiB"
