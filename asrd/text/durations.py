"""How people write a span of time or a point in it: "90 min", "1h30m", "2d", "yesterday", an ISO
date (pure).

Knows units and words; does not know which setting or flag a span belongs to.
"""

from __future__ import annotations

import argparse
import math
import re
from datetime import datetime

SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
"""Unit -> how many seconds it has."""

UNIT_NAMES = {
    "ms": "milliseconds",
    "s": "seconds",
    "min": "minutes",
    "h": "hours",
    "d": "days",
    "w": "weeks",
}

SPELLINGS = {
    "ms": ("ms", "msec", "msecs", "millisecond", "milliseconds"),
    "s": ("s", "sec", "secs", "second", "seconds"),
    "min": ("m", "min", "mins", "minute", "minutes"),
    "h": ("h", "hr", "hrs", "hour", "hours"),
    "d": ("d", "day", "days"),
    "w": ("w", "wk", "wks", "week", "weeks"),
}
"""Unit -> how people write it."""

UNITS: dict[str, str] = {}
for _unit, _spellings in SPELLINGS.items():
    UNITS |= dict.fromkeys(_spellings, _unit)

SYSTEMD_UNITS = {"month": "month", "year": "year", "y": "year"}
"""Spelling of a long unit -> systemd's."""

EXPONENT = re.compile(r"\d+(?:[.,]\d+)?e[+-]?\d{1,2}")
"""A number as programs print large ones: 2.5e+03."""

PART = re.compile(r"(\d+(?:[.,]\d+)?|[.,]\d+)\s*([a-z]*)\.?\s*")

MAX_SECONDS = 1e11
"""Three thousand years: no span that a person means is longer."""


def parse(text: str, unit: str) -> float:
    """Return a span in `unit`; a number without a unit counts in it.

    Args:
        text: "30", "30 min", "1h30m", "1,5 hours".
        unit: ms, s, min, h, d or w.

    Raises:
        ValueError: text that is no span.
    """
    rest, seconds, parts = text.strip().lower(), 0.0, 0
    if EXPONENT.fullmatch(rest):
        bare_number = _number(rest)
        if bare_number * SECONDS[unit] <= MAX_SECONDS:
            return bare_number
    while rest and (match := PART.match(rest)):
        spelling = match[2] or unit
        # "1h 30" does not say what the 30 are.
        if spelling not in UNITS or (not match[2] and (parts or rest[match.end() :])):
            raise ValueError(f"{text!r} is not a span of time")
        seconds += _number(match[1]) * SECONDS[UNITS[spelling]]
        rest, parts = rest[match.end() :], parts + 1
    if rest or not parts or seconds > MAX_SECONDS:
        raise ValueError(f"{text!r} is not a span of time")
    # Without the detour through seconds where none was needed: 0.1 minutes stay 0.1.
    bare = PART.fullmatch(text.strip().lower())
    if bare and not bare[2]:
        return _number(bare[1])
    return seconds / SECONDS[unit]


def _number(text: str) -> float:
    """Return a number with a point or a comma."""
    return float(text.replace(",", "."))


def seconds_argument(text: str) -> float:
    """Return the seconds that a flag's value means. Raises argparse.ArgumentTypeError."""
    try:
        return parse(text, "s")
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a span of time; for example 2, 2s or 1.5min"
        ) from error


def moment(text: str) -> str:
    """Return a time as journalctl takes it: a span becomes so long ago, an ISO date loses its T and
    its zone.

    What is none of these is returned as it came: systemd knows further words (today, yesterday,
    10:00).

    Raises:
        ValueError: a number without a unit.
    """
    word = text.strip()
    span = re.sub(r"^-|\s+ago$", "", word, flags=re.IGNORECASE).strip()
    span = re.sub(r"^an?\s+", "1 ", span, flags=re.IGNORECASE)
    if match := re.fullmatch(r"(\d{1,4})\s*(month|year|y)s?", span, re.IGNORECASE):
        # systemd knows how long they are
        return f"-{match[1]}{SYSTEMD_UNITS[match[2].lower()]}"
    if re.fullmatch(r"\d{1,3}", span) or EXPONENT.fullmatch(span.lower()):
        raise ValueError(f"{word!r} has no unit")
    if not span.isdecimal():  # 20261122 is a date
        try:
            return f"-{parse(span, 's'):.3f}s"
        except ValueError:
            pass
    try:
        date = datetime.fromisoformat(word.upper())
    except ValueError:
        if word.isalpha():
            return word.lower()
        return word
    if date.tzinfo is not None:
        return f"@{date.timestamp():.6f}"
    return date.strftime("%Y-%m-%d %H:%M:%S")


def number(value: float) -> str:
    """Return a number with three figures that count, never in powers of ten."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    if "." not in text:
        return text
    return text.rstrip("0").rstrip(".")


def human(seconds: float) -> str:
    """Return a span as a person reads it: "29 ms", "2.3 s", "4 min 05 s", "3 h 20 min", "2 d 5
    h"."""
    if seconds < 0.9995:
        return f"{number(round(1000 * seconds, 1))} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
