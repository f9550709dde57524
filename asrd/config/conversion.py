"""A setting as it was written -> its value: units, percent signs, switches, other spellings, and
our own complaints.

Values come from a TOML file, where they have types, and from variables and flags, where all is
text. Knows what kind of value each setting takes; does not know what it does.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec

from asrd.config import legacy
from asrd.config.misnomers import Propose, toml
from asrd.errors import ConfigError
from asrd.precision import spellings, strategies
from asrd.text import durations
from asrd.text.durations import UNIT_NAMES

UNITS = {
    "window": "s", "pre_roll": "s", "draft_every": "s", "demote_empty": "s", "type_delay": "ms",
    "promote_after": "min", "takes_days": "d", "idle": "min",
}  # fmt: skip
"""Setting that is a span -> the unit of a number without one."""

PERCENT = ("demote_failures", "demote_slower", "demote_memory", "demote_changed", "max_wer_delta")
"""Settings that may be written with a percent sign."""

MEGABYTES = {
    "": 1,
    "mb": 1,
    "m": 1,
    "mib": 1.048576,
    "gb": 1000,
    "g": 1000,
    "gib": 1073.741824,
    "tb": 1_000_000,
}
"""Unit -> megabytes."""

UNSET = ("pnc", "max_wer_delta")
"""Settings that may be unset, which a variable says by the word null."""

AS_TEXT = ("vram_budget", "vram_alert", "idle")
"""Settings whose value is text, and a bare number is as good."""

FOLDED = ("preset", "deliver", "keep_audio", "source", "idle")
"""Settings whose words may be written in any case."""

LISTS = ("sinks", "vocabulary")
"""Settings that are lists; in a variable or a flag, commas stand between."""

MAX_QUOTED = 60
"""Characters of a value that a complaint quotes."""

LANGUAGES = {
    "bulgarian": "bg", "croatian": "hr", "czech": "cs", "danish": "da", "dutch": "nl", "english": "en",
    "estonian": "et", "finnish": "fi", "french": "fr", "german": "de", "greek": "el", "hungarian": "hu",
    "italian": "it", "latvian": "lv", "lithuanian": "lt", "maltese": "mt", "polish": "pl", "portuguese": "pt",
    "romanian": "ro", "russian": "ru", "slovak": "sk", "slovenian": "sl", "spanish": "es", "swedish": "sv",
    "ukrainian": "uk", "deutsch": "de", "français": "fr", "español": "es", "italiano": "it", "chinese": "zh",
    "japanese": "ja", "korean": "ko", "arabic": "ar", "hindi": "hi",
}  # fmt: skip
"""Language as people call it -> its code."""


def typed(key: str, value: Any, origin: str, kind: Any) -> Any:
    """Return a setting's value; the arguments are those of `convert`. Raises ConfigError,
    ValueError, OverflowError."""
    if key in UNSET and isinstance(value, str) and value.strip().lower() == "null":
        return None
    return msgspec.convert(_plain(key, value, origin, _base(kind)[0]), kind)


def convert(key: str, value: Any, origin: str, kind: Any, propose: Propose) -> Any:
    """Return a setting's value.

    Args:
        key: the setting.
        value: as it was written.
        origin: where, for the complaint.
        kind: the setting's type, with its bounds.
        propose: gives a line that sets what was meant, for the hint.

    Raises:
        ConfigError: a value that the setting cannot have.
    """
    try:
        return typed(key, value, origin, kind)
    except (ValueError, OverflowError) as error:  # msgspec's ValidationError is a ValueError
        what, hint = _complaint(key, value, *_base(kind), propose)
        raise ConfigError(f"{key} = {quoted(value)} ({origin}) {what}", hint) from error


def quoted(value: Any) -> str:
    """Return a value as a complaint quotes it: short, switches as TOML has them."""
    if isinstance(value, bool):
        return toml(value)
    if isinstance(value, int) and abs(value) > 10**15:
        return f"{value:.3g}"
    text = repr(value)
    if len(text) <= MAX_QUOTED:
        return text
    return f"{text[:MAX_QUOTED]}..."


def _base(kind: Any) -> tuple[type, tuple[float | None, float | None]]:
    """Return the plain type of a setting and its bounds; None where it has none."""
    bounds: tuple[float | None, float | None] = (None, None)
    while hasattr(kind, "__metadata__"):
        for meta in kind.__metadata__:
            low, high = bounds
            if meta.ge is not None:
                low = meta.ge
            if meta.le is not None:
                high = meta.le
            bounds = low, high
        kind = kind.__origin__
    for one in getattr(kind, "__args__", ()):
        # X | None: the bounds stand inside.
        if type(None) in kind.__args__ and one is not type(None):
            return _base(one)
    return getattr(kind, "__origin__", kind), bounds


def _plain(key: str, value: Any, origin: str, base: type) -> Any:
    """Return a value of the setting's own type, as far as it can be one. Raises ValueError,
    ConfigError."""
    if base is bool:
        return _switch(key, value, origin)
    if base in (int, float):
        return _number(key, value)
    if base is tuple:
        return _words(key, value)
    if base is str:
        return _text(key, value)
    return value


def _words(key: str, value: Any) -> list[str]:
    """Return the texts of a list; commas part those of a variable or flag. Raises ValueError."""
    words = value
    if isinstance(value, str):
        words = value.split(",")
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise ValueError("no list of texts")
    words = [word.strip() for word in words]
    if key != "sinks":
        return words
    return [spellings.resolve_spelling(word, SINK_WORDS) for word in words]


SINK_WORDS = ("type", "paste", "clipboard", "stdout", "journal", "none")


def _switch(key: str, value: Any, origin: str) -> Any:
    if isinstance(value, bool | str) or (type(value) is int and value in (0, 1)):
        # An empty variable leaves a switch that may be unset as it is.
        if value == "" and key == "pnc":
            return None
        return legacy.boolean(key, value, origin)
    raise ValueError("neither true nor false")


def _number(key: str, value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("no number")
    if isinstance(value, str):
        value = _written_number(key, value.strip())
    if not isinstance(value, int | float):
        raise ValueError("no number")
    if not math.isfinite(value):
        raise ValueError("not finite")
    if float(value).is_integer() and abs(value) < 1e15:
        return int(value)
    return value


def _written_number(key: str, text: str) -> float:
    """Return the number that a text means in the setting's own unit. Raises ValueError."""
    if key in UNITS and not text.startswith("-"):
        return durations.parse(text, UNITS[key])
    if key in PERCENT:
        text = text.removesuffix("%").strip()
    if (
        key == "takes_mb"
        and (match := re.fullmatch(r"([\d.]+)\s*([a-z]*)", text.lower()))
        and match[2] in MEGABYTES
    ):
        return round(float(match[1]) * MEGABYTES[match[2]])
    if text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    return float(text)


def _text(key: str, value: Any) -> Any:
    if key in AS_TEXT and type(value) in (int, float) and math.isfinite(value):
        if abs(value) < 1e15:
            value = durations.number(value)
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("no text")
    if key == "strategy":
        return strategies.canonical(value)
    if key == "device":
        return spellings.device(value)
    if key in ("source_lang", "target_lang"):
        return _language(value)
    if key in FOLDED:
        return _folded(value)
    return value


def _folded(value: str) -> str:
    """Return a word in small letters; what a source or a command names stays as it is."""
    head, colon, rest = value.strip().partition(":")
    return head.strip().lower().replace("_", "-") + colon + rest


def _language(value: str) -> str:
    """Return a language's code as models have it: de, pt-BR."""
    match = re.fullmatch(r"([A-Za-z]{2,3})(?:[-_]([A-Za-z]{2}))?(?:\.[\w-]+)?", value.strip())
    if match is None:
        return value
    if match[2]:
        return f"{match[1].lower()}-{match[2].upper()}"
    return match[1].lower()


def _complaint(
    key: str, value: Any, base: type, bounds: tuple[float | None, float | None], propose: Propose
) -> tuple[str, str]:
    """Return what is wrong with a value, and what helps."""
    if base in (int, float):
        return _number_complaint(key, value, base, bounds)
    if base is bool:
        return "is neither true nor false", f"write {key} = true or {key} = false"
    if key == "microphone" and type(value) is int:
        hint = "write a part of the microphone's name in quotes; asrd devices lists the names"
        return "is not text", hint
    whats: dict[type, str] = {str: "is not text", tuple: "is not a list of texts"}
    return whats.get(base, "is not a table of texts"), propose(key, value)


SWITCHED = {"idle": ("30", "never"), "keep_audio": ("always", "never")}
"""Setting that people take for a switch -> what on and off are."""


def _span(low: float | None, high: float | None) -> str:
    """Return the range of a number in words."""
    least = durations.number(low or 0)
    if high is None:
        return f"{least} or more"
    return f"{least} to {durations.number(high)}"


def _number_complaint(
    key: str, value: Any, base: type, bounds: tuple[float | None, float | None]
) -> tuple[str, str]:
    hint = f"write a number, {_span(*bounds)}"
    if key in UNITS:
        unit = UNIT_NAMES[UNITS[key]]
        hint = f"write a number of {unit}, {_span(*bounds)}, for example {_example(key)}"
    try:
        number = _number(key, value)
    except (ValueError, OverflowError):
        if _is_special(value):
            return "is not finite", hint
        return "is not a number", hint
    if base is int and not isinstance(number, int) and abs(number) < 1e15:
        return "is not a whole number", hint.replace("a number", "a whole number")
    return "is out of range", hint


def _example(key: str) -> str:
    return {"s": '"2 s"', "ms": '"5 ms"', "min": '"1h"', "d": '"2 weeks"'}[UNITS[key]]


def _is_special(value: Any) -> bool:
    """Return whether a value is infinite or not a number, as a float or in letters."""
    try:
        return not math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
