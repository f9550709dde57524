"""Amounts in settings: a span of unused time, and a size of memory (pure)."""

from __future__ import annotations

import re

from asrd.errors import ConfigError
from asrd.text import durations

MAX_IDLE_SECONDS = 6e7
"""Two years; a longer span is written "never"."""


def idle_seconds(text: str, origin: str = "") -> float | None:
    """Return how long a model may be unused, in seconds; None for never. Raises ConfigError."""
    if text == "never":
        return None
    if text == "immediately":
        return 0.0
    try:
        seconds = 60 * durations.parse(text, "min")
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < MAX_IDLE_SECONDS:
        where = _in_brackets(origin)
        hint = 'write never, immediately, a number of minutes, or a span: idle = "1h"'
        raise ConfigError(f"idle = {text!r}{where} is not a span of time", hint)
    return seconds


MEMORY_UNITS = {
    "": 1 << 20, "mib": 1 << 20, "m": 1 << 20, "gib": 1 << 30, "g": 1 << 30, "kib": 1 << 10,
    "mb": 10**6, "gb": 10**9,
}  # fmt: skip
"""Unit -> bytes; without one a number counts MiB."""


def budget(text: str, total: int, name: str = "vram_budget", origin: str = "") -> int | None:
    """Return a memory budget in bytes for a card of `total` bytes: "2000", "2000MiB", "2 GB" or
    "50%"; None for ""."""
    match = re.fullmatch(r"(\d{1,12}(?:[.,]\d+)?)\s*([a-z]*|%)", text.strip().lower(), re.ASCII)
    if not text.strip():
        return None
    where = _in_brackets(origin)
    if not match or match[2] not in (*MEMORY_UNITS, "%"):
        raise ConfigError(
            f"{name} = {text!r}{where} is not an amount of memory",
            "for example 2000MiB, 2GiB or 50%",
        )
    number = float(match[1].replace(",", "."))
    if match[2] == "%" and number > 100:
        raise ConfigError(f"{name} = {text!r}{where} is more than a card has", "write 100% or less")
    if match[2] == "%":
        return int(number * (total / 100))
    return int(number * MEMORY_UNITS[match[2]])


def _in_brackets(origin: str) -> str:
    """Return " (origin)" for a message; "" where there is none."""
    if not origin:
        return ""
    return f" ({origin})"
