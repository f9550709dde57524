"""What a person probably meant by a setting that asrd does not have, or by a file that is not TOML (pure).

Knows what other programs call their settings, and the slips that people make in a TOML file.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection
from typing import Any

from .errors import nearest

LANGUAGE = 'it is for Canary models; the others know their languages without a setting'

OTHERS: dict[str, tuple[str, ...]] = {
    "model": ("model_name", "model_path", "checkpoint", "checkpoint_path", "nemo_file", "model_id", "asr_model"),
    "strategy": ("precision", "dtype", "compute_type", "quantization", "torch_dtype", "precision_strategy"),
    "device": ("gpu", "cuda", "gpu_id", "device_id", "gpu_index"),
    "source_lang": ("language", "lang", "languages", "input_language", "source_language", "spoken_language", "locale"),
    "target_lang": ("target_language", "output_language", "translate_to", "translate"),
    "pnc": ("punctuation", "punctuate", "punctuation_and_capitals"),
    "vocabulary": ("vocab", "words", "hotwords", "boost_words", "phrases", "custom_vocabulary", "prompt"),
    "boost": ("boost_weight", "hotword_weight"),
    "window": ("buffer", "buffer_seconds", "chunk", "chunk_seconds", "window_seconds", "chunk_length"),
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
"""Quotes of texts and languages, which a word processor or a web page puts in the place of straight ones."""

STRAIGHT = {ord(mark): '"' for mark in CURLY}

TABLES = ("parts", "spoken")
"""Settings that are tables."""


def setting(key: str, known: Collection[str]) -> str:
    """Return the setting that another program's name means; "" where it means none."""
    word = key.strip().lower().replace("-", "_")
    return word if word in known else next((own for own, others in OTHERS.items() if word in others), "")


def key_hint(key: str, value: Any, known: Collection[str]) -> str:
    """Return what a wrong key should have been.

    Args:
        key: as it was written.
        value: what it was set to; a dictionary is a TOML table.
        known: the settings there are.
    """
    if isinstance(value, dict):
        return table_hint(key, value, known)
    if is_tables(value):
        return f"remove the line [[{key}]]: settings stand at the top of the file, outside tables"
    if match := re.fullmatch(r"asrd_(\w+)", key, re.IGNORECASE):
        own = match[1].lower()
        if own in known:
            return f"in a file the setting is called {own}; {key} is a variable of the environment"
    own = setting(key, known)
    if own:
        said = f"the setting is called {own}"
        said = f"write {own} = {toml(value)}" if isinstance(value, str | int | float) else said
        return f"{said}; {LANGUAGE}" if own == "source_lang" else said
    if (word := key.strip().lower().replace("-", "_")) in ELSEWHERE:
        return ELSEWHERE[word]
    return nearest(key, tuple(known), "asrd config")


def variable_hint(key: str, value: str, known: Collection[str]) -> str:
    """Return what a wrong variable ASRD_KEY should have been; the arguments are those of `key_hint`."""
    own = setting(key, known)
    if own:
        said = f"write ASRD_{own.upper()}={shlex.quote(value)}"
        return f"{said}; {LANGUAGE}" if own == "source_lang" else said
    if key in ELSEWHERE:
        return ELSEWHERE[key]
    close = nearest(key, tuple(known), "asrd config")
    name = close.removeprefix("did you mean '").removesuffix("'?")
    return close if name == close else f"did you mean ASRD_{name.upper()}?"


def is_tables(value: Any) -> bool:
    """Return whether a value is a list of tables, as [[name]] makes one."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def table_hint(name: str, table: dict[str, Any], known: Collection[str]) -> str:
    """Return what a table in the configuration should have been: asrd has two, and no others."""
    inside = [key for key in table if setting(key, known)]
    if inside or name.lower() in ("asrd", "settings", "config", "general", "main", "default", "engine", "daemon"):
        return f"remove the line [{name}]: settings stand at the top of the file, outside tables"
    close = nearest(name, TABLES, "asrd config")
    return close if close.startswith("did you mean") else f"only {' and '.join(TABLES)} are tables; remove [{name}]"


def toml(value: Any) -> str:
    """Return a plain value as TOML writes it."""
    return json.dumps(value, ensure_ascii=False)


def toml_hint(text: str, number: int) -> str:
    """Return what helps with a line that is not TOML; `number` counts lines from 1."""
    lines = text.splitlines()
    line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    if line.startswith(("export ", "set ")) or re.match(r"ASRD_\w+=", line):
        name, _, value = line.removeprefix("export ").removeprefix("set ").strip().partition("=")
        key = name.strip().removeprefix("ASRD_").lower()
        return f"variables stand in the environment; in the file write {key} = {as_toml(value.strip())}"
    if any(mark in line for mark in CURLY):
        return f"use straight quotes: {line.translate(STRAIGHT)}"
    match = re.match(r"([\w-]+)\s*([=:])?\s*(.*)$", line)
    if match is None or line.startswith("["):
        return "a line is: setting = value, as in model = \"demo\""
    key, sign, value = match[1], match[2], match[3].partition(" #")[0].strip()
    if sign == ":":
        return f"write = for the colon: {key} = {as_toml(value)}"
    if sign is None and value:
        return f"write {key} = {as_toml(value)}"
    if not value:
        return f"write a value behind {key} =, as in model = \"demo\""
    if value[0] in "\"'" and value[-1] != value[0]:
        return f"close the quotes: {key} = {toml(value[1:])}"
    if value[0] in "[{":
        return "lists need [ ], tables { }, and text in them quotes: sinks = [\"type\", \"clipboard\"]"
    return f"write {key} = {as_toml(value)}" if value[0] not in "\"'" else f"write {key} = {toml(value[1:-1])}"


def open_line(text: str) -> int:
    """Return the line that leaves quotes open, or else the last one; counted from 1."""
    lines = text.rstrip().splitlines()
    odd = (n for n, line in enumerate(lines, 1) if line.count('"') % 2 or line.count("'") % 2)
    return next(odd, len(lines))


def as_toml(value: str) -> str:
    """Return what a bare word was meant to be: a switch, a number, or text in quotes."""
    word = value.strip("\"'")
    if word.lower() in ("true", "yes", "on", "false", "no", "off"):
        return "true" if word.lower() in ("true", "yes", "on") else "false"
    return word if re.fullmatch(r"-?\d+(\.\d+)?", word) else toml(word)
