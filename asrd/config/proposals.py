"""A line of TOML, or a variable, that a hint proposes: what was meant, in a form that the settings
accept (pure).

Each candidate is tried before it is proposed; whoever knows the settings says whether it is
accepted.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from asrd.config.conversion import LANGUAGES, LISTS, SWITCHED
from asrd.config.misnomers import plain, toml
from asrd.errors import nearest

EXAMPLES: dict[str, Any] = {
    "model": "demo", "parts": {"encoder": "float16"}, "pnc": True, "vocabulary": ["Kubernetes"], "vram_budget": "2GiB",
    "max_wer_delta": 0.5, "microphone": "USB", "spoken": {"my mail": "me@example.org"}, "vram_alert": "90%",
    "faults": "slow:1", "socket": "~/asrd.sock", "autocast_dtype": "bfloat16", "use_bf16": True, "use_fp16": True,
}  # fmt: skip
"""Setting whose default is no example of a value -> an example."""

Accepts = Callable[[str, Any], bool]
"""Whether a setting takes a value."""


def line(key: str, value: Any, accepts: Accepts, example: Any) -> str:
    """Return "write KEY = VALUE" with what was meant, or with an example where nothing like it is
    accepted."""
    for meant in candidates(key, value):
        if accepts(key, meant):
            return f"write {key} = {toml(meant)}"
    return f"write, for example, {key} = {toml(example)}"


def variable(key: str, value: str, accepts: Accepts, example: Any) -> str:
    """Return as `line`, but for a variable of the environment, whose value is text."""
    for meant in candidates(key, value):
        text = as_text(meant)
        if text and accepts(key, text):
            return f"write ASRD_{key.upper()}={shlex.quote(text)}"
    return f"write, for example, ASRD_{key.upper()}={shlex.quote(as_text(example))}"


def as_text(value: Any) -> str:
    """Return a value as a variable has it: a list with commas, a table as TOML has it."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if isinstance(value, str):
        return value
    return toml(value)


def candidates(key: str, value: Any) -> Iterator[Any]:
    """Yield what a value may have been meant to be, the likeliest first."""
    if key == "device" and str(value).isdecimal():
        yield f"cuda:{value}"
    if _is_writable(value):
        yield value
    if isinstance(value, bool):
        if key in SWITCHED:
            yield _switched(key, value)
    elif isinstance(value, str):
        yield from _of_text(key, value)
    elif isinstance(value, int | float):
        yield str(value)


def _of_text(key: str, text: str) -> Iterator[Any]:
    """Yield what a text may mean that is no value of a setting as it is."""
    word = text.strip().lower()
    if word in LANGUAGES:
        yield LANGUAGES[word]
    if key in SWITCHED and isinstance(switch := plain(text), bool):
        yield _switched(key, switch)
    if key in LISTS:
        yield [text]
    yield plain(text)


def _switched(key: str, on: bool) -> str:
    switched_on, switched_off = SWITCHED[key]
    return switched_on if on else switched_off


SOUND_FILES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4"),
    *(".webm", ".mkv", ".aac", ".wma", ".aiff", ".aif", ".au", ".caf"),
)
"""How the names of sound files end."""


def looks_like_file(word: str) -> bool:
    """Return whether a word is the path of a file, or ends as the name of a sound file does."""
    return os.path.isfile(word) or word.lower().endswith(SOUND_FILES)


def source(word: str) -> str:
    """Return what helps with a word that is no audio source."""
    path = word
    if word.startswith("file:/"):
        path = word.partition("://")[2]
    if looks_like_file(path):
        return f"for a file write file:{path}"
    if word in ("-", "stdin", "standard input"):
        return "for standard input write pipe"
    return nearest(word, ("mic", "pipe", "file:PATH"))


def _is_writable(value: Any) -> bool:
    """Return whether TOML can hold a value as `toml` writes it: a date and a table within a list
    are left out."""
    if isinstance(value, list | tuple):
        return all(isinstance(one, str) for one in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int)
