"""File names are bytes: how one is shown, sent as JSON, and read from a text that somebody wrote.

Python holds a byte that the locale cannot decode as a lone surrogate. No JSON encoder takes one, so
a name crosses a border as `exact` has it: readable under its key, and beside it its bytes where the
text alone is not all of it. Imports little: a key press waits for it.
"""

from __future__ import annotations

import math
import os
from typing import Any

from asrd.text.characters import readable


def exact(key: str, name: str) -> dict[str, str]:
    r"""Return a name for JSON: its bytes as UTF-8 under `key`, each that is none as \xNN.

    Only where there is such a byte, `KEY_bytes` has all of them too, as base64.
    """
    data = os.fsencode(name)
    try:
        return {key: data.decode("utf-8")}
    except UnicodeDecodeError:
        import base64  # a name of this kind is rare

        encoded = base64.b64encode(data).decode("ascii")
        return {key: data.decode("utf-8", "backslashreplace"), f"{key}_bytes": encoded}


def named(text: str, data: bytes = b"") -> str:
    """Return the name that a text or a message means, as this process opens it.

    Args:
        text: the name in a UTF-8 text, whose bytes are its own, whatever the locale; or as `exact`
            shows it.
        data: the bytes, where `exact` gave them.

    Raises UnicodeEncodeError: a lone surrogate that stands for no byte.
    """
    return os.fsdecode(data or text.encode("utf-8", "surrogateescape"))


def in_utf8(name: str) -> str:
    """Return a name as a file in UTF-8 has to spell it, whatever the locale. Bytes that are no
    UTF-8 stay escaped."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def spelt(value: Any) -> Any:
    """Return a value of JSON's types in which every string can be encoded, as `readable` has it."""
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, dict):
        return {spelt(key): spelt(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [spelt(each) for each in value]
    return value


def from_json(data: bytes) -> Any:
    r"""Parse JSON in which a name's bytes are as they are, or as Python's own JSON has them (\udcNN).

    Raises ValueError: no JSON, or a number that is none. RecursionError.
    """
    import json

    return json.loads(
        data.decode("utf-8", "surrogateescape"), parse_constant=_finite, parse_float=_finite
    )


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a number in JSON")
    return value


def to_json(value: Any) -> bytes:
    """Return a value as JSON in UTF-8, its strings as `readable` has them."""
    import msgspec

    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(spelt(msgspec.to_builtins(value)))
