"""What a person probably meant by a setting that asrd does not have, or by a file that is not TOML
(pure).

Knows what other programs call their settings, and the slips that people make in a TOML file.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from asrd.errors import ConfigError, nearest

LANGUAGE = "it is for Canary models; the others know their languages without a setting"

OTHERS: dict[str, tuple[str, ...]] = {
    "model": (
        "model_name",
        "model_path",
        "checkpoint",
        "checkpoint_path",
        "nemo_file",
        "model_id",
        "asr_model",
    ),
    "strategy": (
        "precision",
        "dtype",
        "compute_type",
        "quantization",
        "torch_dtype",
        "precision_strategy",
    ),
    "device": ("gpu", "cuda", "gpu_id", "device_id", "gpu_index"),
    "source_lang": (
        "language",
        "lang",
        "languages",
        "input_language",
        "source_language",
        "spoken_language",
        "locale",
    ),
    "target_lang": ("target_language", "output_language", "translate_to", "translate"),
    "pnc": ("punctuation", "punctuate", "punctuation_and_capitals"),
    "vocabulary": (
        "vocab",
        "words",
        "hotwords",
        "boost_words",
        "phrases",
        "custom_vocabulary",
        "prompt",
    ),
    "boost": ("boost_weight", "hotword_weight"),
    "window": (
        "buffer",
        "buffer_seconds",
        "chunk",
        "chunk_seconds",
        "window_seconds",
        "chunk_length",
    ),
    "threads": ("cpu_threads", "num_threads", "omp_num_threads", "workers"),
    "graphs": ("cuda_graphs", "cudagraphs"),
    "vram_budget": ("max_vram", "gpu_memory", "vram_limit", "memory_limit", "vram", "max_memory"),
    "max_wer_delta": ("wer_delta", "max_wer", "wer_bound"),
    "microphone": ("mic", "input_device", "audio_device", "input"),
    "sinks": ("sink", "output", "outputs", "output_mode", "typing"),
    "commands": ("voice_commands", "spoken_commands"),
    "capitals": ("capitalize", "capitalization", "auto_capitalize"),
    "keep_audio": ("save_audio", "keep_recordings", "save_recordings"),
    "takes_days": ("recordings_days", "keep_days", "retention_days"),
    "takes_mb": ("recordings_mb", "max_mb", "retention_mb"),
    "idle": ("idle_timeout", "unload_after", "timeout", "idle_minutes", "keep_alive", "unload"),
    "log_text": ("log_transcripts", "log", "log_transcript"),
    "notify": ("notifications", "notification", "desktop_notifications"),
    "cues": ("sounds", "beep", "sound", "audio_feedback", "chime"),
    "socket": ("socket_path", "control_socket", "ipc"),
}
"""Setting -> what other programs call it."""

ELSEWHERE = {
    "hotkey": "the desktop binds keys: bind one to asrd toggle",
    "hotkeys": "the desktop binds keys: bind one to asrd toggle",
    "shortcut": "the desktop binds keys: bind one to asrd toggle",
    "keybinding": "the desktop binds keys: bind one to asrd toggle",
    "key": "the desktop binds keys: bind one to asrd toggle",
    "log_level": "asrd VERB --debug shows more; journalctl --user -u asrd shows the log",
    "debug": "asrd VERB --debug shows more; journalctl --user -u asrd shows the log",
    "verbose": "asrd VERB --debug shows more; journalctl --user -u asrd shows the log",
    "sample_rate": "asrd resamples by itself, whatever the microphone's rate",
}
"""What is no setting at all -> what does it."""

CURLY = "\u201c\u201d\u201e\u00ab\u00bb\u2018\u2019\u201a"
"""Quotes of texts and languages, which a word processor or a web page puts in the place of straight
ones."""

STRAIGHT = dict.fromkeys(map(ord, CURLY), '"')

TABLES = ("parts", "spoken")
"""Settings that are tables."""

Propose = Callable[[str, Any], str]
"""Of a setting and what it was set to: the line that sets what was meant and is accepted, as "write
KEY = VALUE"."""

LINE = 'a line is: setting = value, as in model = "demo"'


def setting(key: str, known: Collection[str]) -> str:
    """Return the setting that another program's name means; "" where it means none."""
    word = key.strip().lower().replace("-", "_")
    if word in known:
        return word
    for own, others in OTHERS.items():
        if word in others:
            return own
    return ""


def key_hint(key: str, value: Any, known: Collection[str], propose: Propose) -> str:
    """Return what a wrong key should have been.

    Args:
        key: as it was written.
        value: what it was set to; a dictionary is a TOML table.
        known: the settings there are.
        propose: gives the line for the setting that was meant.
    """
    if isinstance(value, dict):
        return table_hint(key, value, known)
    if is_tables(value):
        return f"remove the line [[{key}]]: settings stand at the top of the file, outside tables"
    if match := re.fullmatch(r"asrd_(\w+)", key, re.IGNORECASE):
        own = match[1].lower()
        if own in known:
            return f"in a file the setting is called {own}: {propose(own, value)}"
    return _name_hint(key, value, known, propose) or nearest(key, tuple(known), "asrd config")


def variable_hint(key: str, value: str, known: Collection[str], propose: Propose) -> str:
    """Return what a wrong variable ASRD_KEY should have been; the arguments are those of
    `key_hint`."""
    if hint := _name_hint(key, value, known, propose):
        return hint
    close = nearest(key, tuple(known), "asrd config")
    name = close.removeprefix("did you mean '").removesuffix("'?")
    if name == close:
        return close
    return f"did you mean ASRD_{name.upper()}?"


def _name_hint(key: str, value: Any, known: Collection[str], propose: Propose) -> str:
    """Return what helps with a name that another program has for something; "" where none has."""
    if own := setting(key, known):
        hint = propose(own, value)
        if own == "source_lang":
            hint = f"{hint}; {LANGUAGE}"
        return hint
    return ELSEWHERE.get(key.strip().lower().replace("-", "_"), "")


def is_tables(value: Any) -> bool:
    """Return whether a value is a list of tables, as [[name]] makes one."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def table_hint(name: str, table: dict[str, Any], known: Collection[str]) -> str:
    """Return what a table in the configuration should have been: asrd has two, and no others."""
    inside = [key for key in table if setting(key, known)]
    if inside or name.lower() in (
        "asrd",
        "settings",
        "config",
        "general",
        "main",
        "default",
        "engine",
        "daemon",
    ):
        return f"remove the line [{name}]: settings stand at the top of the file, outside tables"
    close = nearest(name, TABLES, "asrd config")
    if close.startswith("did you mean"):
        return close
    return f"only {' and '.join(TABLES)} are tables; remove [{name}]"


def toml(value: Any) -> str:
    """Return a value as TOML writes it: a text, a number, a switch, a list of texts, a table of
    texts."""
    if isinstance(value, dict):
        pairs = [f"{_toml_key(key)} = {toml(each)}" for key, each in value.items()]
        return f"{{ {', '.join(pairs)} }}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    if re.fullmatch(r"[\w-]+", key, re.ASCII):
        return key
    return toml(key)


def not_toml(
    file: Path, text: str, error: tomllib.TOMLDecodeError, known: Collection[str], propose: Propose
) -> ConfigError:
    """Return the error for a configuration file that is not TOML, with what helps its line."""
    found = re.search(r"^(.*?) \(at line (\d+), column \d+\)$", str(error))
    twice = "overwrite" in str(error) or "declare" in str(error)
    if found is None and not twice:  # the end of the file came too early
        number = open_line(text)
        why = f"{file}, line {number}, is not TOML: what begins there has no end"
        return ConfigError(why, toml_hint(text, number, known, propose))
    # What is set twice in the last line is told as of the end of the file.
    number = len(text.rstrip().splitlines())
    if found:
        number = int(found[2])
    if found is None or twice:
        why = f"{file}, line {number}, sets something a second time"
        return ConfigError(why, "keep one of the two lines")
    why = f"{file}, line {number}, is not TOML: {found[1][:1].lower()}{found[1][1:]}"
    return ConfigError(why, toml_hint(text, number, known, propose))


def toml_hint(text: str, number: int, known: Collection[str], propose: Propose) -> str:
    """Return what helps with a line that is not TOML; `number` counts lines from 1."""
    lines = text.splitlines()
    line = ""
    if 0 < number <= len(lines):
        line = lines[number - 1].strip()
    if any(mark in line for mark in CURLY):
        return _straight_hint(line.translate(STRAIGHT), known, propose)
    if _table_above(lines[: number - 1]) == "spoken":
        return 'phrases and texts stand in quotes: "my mail" = "me@example.org"'
    if line.startswith(("export ", "set ")) or re.match(r"ASRD_\w+=", line):
        name, _, value = line.removeprefix("export ").removeprefix("set ").strip().partition("=")
        key = name.strip().removeprefix("ASRD_").lower()
        return f"variables stand in the environment; in the file {_meant_line(key, value.strip(), known, propose)}"
    match = re.match(r"([\w-]+)\s*([=:])?\s*(.*)$", line)
    if match is None or line.startswith("["):
        return LINE
    return _line_hint(match[1], match[2], match[3].partition(" #")[0].strip(), known, propose)


def _line_hint(
    key: str, sign: str | None, value: str, known: Collection[str], propose: Propose
) -> str:
    """Return what helps with a line that begins with a name; `sign` is what stands behind it, = or
    : or nothing."""
    if not value:
        return f'write a value behind {key} =, as in model = "demo"'
    if value[0] in "[{":
        return 'lists need [ ], tables { }, and text in them quotes: sinks = ["type", "clipboard"]'
    meant = _meant_line(key, value, known, propose)
    if sign == ":":
        return f"a colon is not TOML: {meant}"
    if sign == "=" and value[0] in "\"'" and value[-1] != value[0]:
        return f"close the quotes: {meant}"
    return meant


def _meant_line(key: str, value: str, known: Collection[str], propose: Propose) -> str:
    """Return the line for a setting whose name or value is not as TOML has it."""
    own = setting(key, known)
    close = re.fullmatch(r"did you mean '(.*)'\?", nearest(key, tuple(known), "asrd config"))
    if own or close:
        if close and not own:
            own = close[1]
        if value[:1] in ("'", '"'):
            return propose(own, value.strip("\"'"))
        return propose(own, plain(value))
    return (
        _name_hint(key, value, known, propose)
        or f"{key} is not a setting; asrd config lists them all"
    )


def _straight_hint(line: str, known: Collection[str], propose: Propose) -> str:
    """Return what helps with a line whose quotes were not straight."""
    try:
        key, value = next(iter(tomllib.loads(line).items()))
    except (tomllib.TOMLDecodeError, StopIteration):
        return f"use straight quotes; {LINE}"
    own = setting(key, known)
    if own:
        line = propose(own, value)
    return f"use straight quotes: {line}"


def _table_above(lines: list[str]) -> str:
    """Return the table that stands open behind lines; "" at the top of the file."""
    for line in reversed(lines):
        if match := re.match(r"\s*\[(\w+)\]\s*(?:#.*)?$", line):
            return match[1]
    return ""


def open_line(text: str) -> int:
    """Return the line that leaves quotes open, or else the last one; counted from 1."""
    lines = text.rstrip().splitlines()
    for number, line in enumerate(lines, 1):
        if line.count('"') % 2 or line.count("'") % 2:
            return number
    return len(lines)


def plain(text: str) -> bool | int | float | str:
    """Return what a bare word was meant to be: a switch, a number, or a text."""
    word = text.strip("\"'")
    if word.lower() in ("true", "yes", "on", "false", "no", "off"):
        return word.lower() in ("true", "yes", "on")
    if re.fullmatch(r"-?\d{1,15}(\.\d{1,15})?", word, re.ASCII):
        if "." in word:
            return float(word)
        return int(word)
    return word
