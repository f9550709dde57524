"""Settings: frozen, typed, each with the place it came from.

Order of precedence: command-line flags over ASRD_* variables over the TOML file over the defaults. An unknown key is an
error that names the nearest right one. Knows the names of settings; does not know what they do.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from . import conversion, durations, faults, filenames, legacy, misnomers, places, proposals, text_files
from .errors import ConfigError, nearest
from .precision import PRESETS, Precision, find, with_parts
from .spoken import Phrase, table


def _about(text: str, at_least: float | None = None, at_most: float | None = None) -> Meta:
    return Meta(description=text, ge=at_least, le=at_most)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every setting, its type, default and meaning; file, environment, flags and documentation are derived from it."""

    model: Annotated[
        str, _about("path of a .nemo file, demo, demo-ctc, demo-tdt, or a name on the hub; empty: none is chosen")
    ] = ""
    strategy: Annotated[str, _about("precision strategy, or auto")] = "auto"
    preset: Annotated[str, _about("bounds and candidates for auto: conservative, default or aggressive")] = "default"
    parts: Annotated[dict[str, str], _about("component -> dtype, for strategy selective")] = {}
    device: Annotated[str, _about("auto, cpu, cuda, cuda:N, a part of a card's name, or its UUID")] = "auto"
    source_lang: Annotated[str, _about("language spoken (Canary)")] = "en"
    target_lang: Annotated[str, _about("language written (Canary); another than spoken translates")] = "en"
    pnc: Annotated[bool | None, _about("ask Canary for punctuation and capitals; unset: as its checkpoint does")] = None
    timestamps_model: Annotated[bool, _about("load the second, FP32 model that newer Canary files carry")] = False
    vocabulary: Annotated[
        tuple[str, ...], _about("names and phrases to listen for; @FILE stands for those of a file, one a line")
    ] = ()
    boost: Annotated[float, _about("how far the vocabulary is preferred, in nats; 0 switches it off", 0.0, 5.0)] = 1.0
    window: Annotated[float, _about("seconds of the audio buffer", 2.0, 30.0)] = 10.0
    threads: Annotated[int, _about("CPU threads of the worker; 0 is one for a small model, else all", 0, 256)] = 0
    graphs: Annotated[
        bool, _about("CUDA graphs: replay whole encoder and decoder steps; needs some GPU memory")
    ] = True
    vram_budget: Annotated[
        str, _about("upper bound for all the worker holds of a GPU, CUDA's own share too: 2000 (MiB), '2GiB' or '50%'")
    ] = ""
    max_wer_delta: Annotated[
        Annotated[float, Meta(ge=0.0, le=100.0)] | None,
        _about("absolute points of WER a strategy may cost; without it the preset's bound"),
    ] = None
    source: Annotated[str, _about("mic, file:PATH (in real time), or pipe (raw s16le, 16 kHz, mono on stdin)")] = "mic"
    microphone: Annotated[str, _about("part of an input device's name; empty follows the system's default")] = ""
    pre_roll: Annotated[
        float, _about("seconds recorded before the key; above 0 the microphone stays open", 0.0, 10.0)
    ] = 0.0
    sinks: Annotated[
        tuple[str, ...],
        _about("where text goes, in this order: type, paste, clipboard, stdout, command:CMD, journal, none"),
    ] = ("type",)
    deliver: Annotated[str, _about("when text is sent. take: when the recording ends; segment: at each pause")] = "take"
    draft_every: Annotated[
        float, _about("seconds between partial results under asrd status --follow; 0 for none", 0.0, 60.0)
    ] = 0.5
    commands: Annotated[bool, _about("obey spoken commands: new line, comma, scratch that")] = False
    spoken: Annotated[dict[str, str], _about("phrase -> text or action, over the shipped; '' removes one")] = {}
    capitals: Annotated[bool, _about("begin sentences and lines with a capital, for models that write none")] = False
    suffix: Annotated[str, _about("what follows each delivered text; a space only where its script has spaces")] = " "
    type_delay: Annotated[int, _about("milliseconds between typed characters", 0, 1000)] = 2
    keep_audio: Annotated[str, _about("which recordings stay on disk: never, on-failure or always")] = "on-failure"
    takes_days: Annotated[int, _about("days a kept recording stays", 0, 3650)] = 14
    takes_mb: Annotated[int, _about("megabytes of recordings; the oldest go first", 1, 1_000_000)] = 500
    idle: Annotated[
        str, _about("when an unused model leaves memory: never, immediately, or after so many minutes, or '1h'")
    ] = "30"
    log_text: Annotated[bool, _about("write the text into the journal")] = False
    notify: Annotated[bool, _about("show problems on the desktop")] = True
    cues: Annotated[bool, _about("a sound when recording starts and stops")] = False
    vram_alert: Annotated[str, _about("warn once when the worker's GPU memory is above: '3500MiB' or '90%'")] = ""
    demote_empty: Annotated[
        float, _about("fall back after so many seconds of clear speech without a word; 0: never", 0.0, 86_400.0)
    ] = 2.0
    demote_failures: Annotated[
        float, _about("fall back where surely more than so many buffers in 100 fail; 0: never", 0.0, 100.0)
    ] = 1.0
    demote_slower: Annotated[
        float, _about("fall back when so many percent slower than FP32 was under asrd compare; 0: never", 0.0, 1e6)
    ] = 10.0
    demote_memory: Annotated[
        float, _about("fall back when memory is so many percent above FP32's then; 0: never", 0.0, 1e6)
    ] = 10.0
    demote_changed: Annotated[
        float, _about("fall back where surely more than so many words in 100 change (shadow); 0: never", 0.0, 100.0)
    ] = 1.0
    promote_after: Annotated[
        float,
        _about("minutes until a better precision is tried again, doubled if in vain; 0: never", 0.0, 1e6),
    ] = 30.0
    shadow: Annotated[
        int, _about("one recording in so many is transcribed again in FP32, to count words; 0: none", 0, 1_000_000)
    ] = 0
    faults: Annotated[
        str, _about("faults to rehearse, for example non-finite:3 or slow:1; asrd run --help lists the kinds")
    ] = ""
    socket: Annotated[str, _about("control socket; empty: asrd.sock in the runtime directory")] = ""

    @property
    def requested(self) -> str | Precision:
        """The strategy as asked for: its name, or a value of its own where `parts` make it one."""
        return with_parts(self.parts) if self.strategy == "selective" and self.parts else self.strategy

    @property
    def wer_bound(self) -> float:
        """Absolute points of WER that a strategy may cost: the setting, or the preset's."""
        return PRESETS[self.preset].max_wer_delta if self.max_wer_delta is None else self.max_wer_delta

    @property
    def phrases(self) -> Mapping[Phrase, str]:
        """The spoken commands that are obeyed; none while they are switched off."""
        return table(self.spoken) if self.commands else {}


CHOICES = {"deliver": ("take", "segment"), "keep_audio": ("never", "on-failure", "always")}
"""Settings that are one of few words."""

ENGINE = (
    *("model", "strategy", "preset", "parts", "device", "source_lang", "target_lang", "pnc", "timestamps_model"),
    *("vocabulary", "boost", "threads", "graphs", "vram_budget", "window", "faults"),
)
"""Settings that make a worker what it is: with others it is another one."""

SINKS = ("type", "paste", "clipboard", "stdout", "command:CMD", "journal", "none")

FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}

KNOWN = (*FIELDS, *legacy.KEYS)
"""Every name that a setting may be written with."""

EXAMPLES = {name: field.default for name, field in FIELDS.items()} | proposals.EXAMPLES
"""Setting -> a value that it takes."""

NAMES = ("model", "source", "socket", "microphone", "sinks")
"""Settings that may hold the name of a file, which need not be text."""

MAY_BE_EMPTY = ("microphone", "suffix", "vram_budget", "vram_alert", "faults")
"""Settings of which an empty text is a value, in a variable too, where it goes over the file's."""

VOCABULARY = 1 << 18
"""Bytes of all phrases together: they travel to the worker in one line."""

Layer = dict[str, tuple[Any, str]]
"""Setting -> (value, origin), from one place."""


class Loaded(msgspec.Struct, frozen=True):
    """Settings with the origin of each and the remarks that the log should carry."""

    settings: Settings
    origins: dict[str, str]
    notes: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    """Those of the remarks that name a setting which does nothing beside the others."""
    file: Path | None = None
    """The configuration file that was looked for; None where nobody looked."""


def load(
    file: Path | None = None, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] = os.environ
) -> Loaded:
    """Return the settings in force.

    Args:
        file: the TOML file; None looks in the usual place, where it may be absent.
        flags: command-line values by setting; None values are not given.
        environment: where ASRD_* variables are looked for.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type, contradiction.
    """
    path = file or places.config_file(environment)
    layers = (
        _file_layer(path, file is not None or bool(environment.get("ASRD_CONFIG")), file is not None),
        _environment_layer(environment),
        {key: (value, f"--{key.replace('_', '-')}") for key, value in (flags or {}).items() if value is not None},
    )
    merged: Layer = {}
    notes: list[str] = []
    for layer in layers:
        notes += legacy.fold(layer)
        if layer.get("model", ("unset", ""))[0] == "":  # an empty flag or line names no model and hides none
            del layer["model"]
        merged |= layer
    origins = {key: merged[key][1] if key in merged else "default" for key in FIELDS}
    settings = _check(_convert(merged), origins)
    idle = _idle(settings, origins)
    return Loaded(settings, origins, (*notes, *idle), idle, path)


def _idle(settings: Settings, origins: dict[str, str]) -> tuple[str, ...]:
    """Return a sentence for each setting that was made and does nothing."""
    found = []
    if settings.parts and settings.strategy != "selective":
        found.append(f"parts ({origins['parts']}) are for strategy selective and do nothing under {settings.strategy}")
    if settings.spoken and not settings.commands:
        found.append(f"spoken ({origins['spoken']}) does nothing while commands = false")
    return tuple(found)


def _file_layer(file: Path, required: bool, named: bool) -> Layer:
    """Return what a file sets.

    Args:
        required: it is an error that there is none.
        named: it was named on the command line.
    """
    try:
        text = text_files.read(file)
        table = tomllib.loads(text)
    except FileNotFoundError:
        if required:
            hint = f"create it, or {'leave --config out' if named else 'unset ASRD_CONFIG'} to use the usual file"
            raise ConfigError(f"there is no configuration file {file}", hint) from None
        return {}
    except tomllib.TOMLDecodeError as error:
        raise misnomers.not_toml(file, text, error, KNOWN, propose) from error
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}", f"look at it: ls -ld {file}") from error
    except text_files.NotTextError as error:
        raise ConfigError(f"{file} {error}", error.hint) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets within brackets
        raise ConfigError(f"{file} holds a value that is too long or too deep", "shorten it") from error
    for key, value in table.items():
        _known(key, str(file), value)
    return {key: (_as_named(key, value), str(file)) for key, value in table.items()}


def _as_named(key: str, value: Any) -> Any:
    """Return a value of the file as this process holds names: their bytes are those that stand there."""
    if isinstance(value, list):
        return [_as_named(key, each) for each in value]
    if isinstance(value, str) and (key in NAMES or (key == "vocabulary" and value.startswith("@"))):
        return filenames.named(value)
    return value


def _environment_layer(environment: Mapping[str, str]) -> Layer:
    layer: Layer = {}
    for name, text in sorted(environment.items()):
        if not name.startswith("ASRD_") or name in ("ASRD_CONFIG", "ASRD_DEBUG"):
            continue
        key = name.removeprefix("ASRD_").lower()
        if not text and key not in MAY_BE_EMPTY:
            continue  # an empty variable is one that is not set
        _known(key, name, text, "variable")
        layer[key] = (_inline_table(name, text) if key in ("parts", "spoken") else text, name)
    return layer


def _inline_table(name: str, text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} = {text!r} is no TOML table", 'for example {encoder = "float16"}') from error


def _known(key: str, origin: str, value: Any, kind: Literal["file", "variable"] = "file") -> None:
    if key not in KNOWN:
        table = isinstance(value, dict) or misnomers.is_tables(value)
        what = "table" if table else "setting"
        if kind == "file":
            hint = misnomers.key_hint(key, value, KNOWN, propose)
        else:
            hint = misnomers.variable_hint(key, value, KNOWN, propose_variable)
        raise ConfigError(f"unknown {what} {key!r} in {origin}", hint)


def accepted(key: str, value: Any) -> bool:
    """Return whether a setting takes a value, whatever the others are."""
    layer = {key: (value, "")}
    try:
        legacy.fold(layer)
        made = {name: conversion.typed(name, one, "", FIELDS[name].type) for name, (one, _) in layer.items()}
        _check(Settings(**made), dict.fromkeys(FIELDS, ""))
    except (ConfigError, ValueError, OverflowError):
        return False
    return True


def propose(key: str, value: Any) -> str:
    """Return a line of the file that sets what was meant, as "write KEY = VALUE"; the settings accept it."""
    return proposals.line(key, value, accepted, EXAMPLES[key])


def propose_variable(key: str, value: str) -> str:
    """Return as `propose`, for a variable of the environment."""
    return proposals.variable(key, value, accepted, EXAMPLES[key])


def _convert(layer: Layer) -> Settings:
    """Type each value by itself, so that the error can say where it came from."""
    typed = {
        key: conversion.convert(key, value, origin, FIELDS[key].type, propose)
        for key, (value, origin) in layer.items()
    }
    if "vocabulary" in typed:
        typed["vocabulary"] = _vocabulary(typed["vocabulary"], layer["vocabulary"][1])
    for key in typed.keys() - set(NAMES):
        try:
            msgspec.json.encode(typed[key])
        except UnicodeEncodeError as error:
            value, origin = layer[key]
            raise ConfigError(f"{key} = {value!r} ({origin}) is not UTF-8", "type it in a UTF-8 locale") from error
    return Settings(**typed)


def _vocabulary(entries: tuple[str, ...], origin: str) -> tuple[str, ...]:
    """Return the phrases, each once, those of a file in the place of "@FILE"; its path begins at the configuration."""
    found: dict[str, None] = {}
    for entry in entries:
        lines = [entry]
        if entry.startswith("@"):
            path = Path(origin).parent / Path(entry[1:]).expanduser()  # a variable's or a flag's name has parent "."
            try:
                lines = [line for line in text_files.read(path).splitlines() if not line.startswith("#")]
            except text_files.NotTextError as error:
                raise ConfigError(f"vocabulary ({origin}) names {path}, which {error}", error.hint) from error
            except (OSError, RuntimeError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else None
                said = f"vocabulary ({origin}) names {path}, which cannot be read: {why or error}"
                raise ConfigError(said, "write @ and the path of a text file with a phrase a line") from error
        found |= dict.fromkeys(filter(None, (" ".join(line.split()) for line in lines)))
    if (size := sum(len(phrase.encode(errors="surrogateescape")) for phrase in found)) > VOCABULARY:
        why = f"vocabulary ({origin}) has {size} bytes in {len(found)} phrases; at most {VOCABULARY} are allowed"
        raise ConfigError(why, "shorten the list")
    return tuple(found)


def _check(settings: Settings, origins: dict[str, str]) -> Settings:
    """Refuse what types cannot: names that do not exist."""
    try:
        if settings.strategy != "auto":
            find(settings.strategy)
    except ConfigError as error:
        raise ConfigError(f"{error.message} ({origins['strategy']})", error.hint) from error
    try:
        with_parts(settings.parts)
    except ConfigError as error:
        raise ConfigError(f"{error.message} ({origins['parts']})", error.hint) from error
    if settings.preset not in PRESETS:
        raise ConfigError(
            f"unknown preset {settings.preset!r} ({origins['preset']})", nearest(settings.preset, tuple(PRESETS))
        )
    for key in ("source_lang", "target_lang"):
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Z]{2})?", code := getattr(settings, key)):
            own = conversion.LANGUAGES.get(code.strip().lower())
            hint = f'write {key} = "{own}"; ' if own else ""
            raise ConfigError(
                f"{key} = {code!r} ({origins[key]}) is no language code", f"{hint}codes look like en or pt-BR"
            )
    _check_daemon(settings, origins)
    for key in ("vram_budget", "vram_alert"):
        budget(getattr(settings, key), 1 << 40, key, origins[key])
    return settings


def _check_daemon(settings: Settings, origins: dict[str, str]) -> None:
    """Refuse what the daemon could not do."""
    for key, known in CHOICES.items():
        if (word := getattr(settings, key)) not in known:
            raise ConfigError(f"{key} = {word!r} ({origins[key]}) is not known", nearest(word, known))
    for sink in settings.sinks:
        if sink not in SINKS and not (sink.startswith("command:") and sink.removeprefix("command:").strip()):
            raise ConfigError(f"there is no sink {sink!r} ({origins['sinks']})", nearest(sink, SINKS))
    if settings.source not in ("mic", "pipe") and not re.match(r"file:.", settings.source, re.DOTALL):
        raise ConfigError(
            f"source = {settings.source!r} ({origins['source']}) is not known", proposals.source(settings.source)
        )
    idle_seconds(settings.idle, origins["idle"])
    try:
        faults.parse(settings.faults)
    except ConfigError as error:
        raise ConfigError(f"{error.message} ({origins['faults']})", error.hint) from error
    try:
        table(settings.spoken)
    except ValueError as error:
        raise ConfigError(f"spoken ({origins['spoken']}): {error}") from error


MAX_IDLE_SECONDS = 6e7
"""Two years; a longer span is written "never"."""


def idle_seconds(text: str, origin: str = "") -> float | None:
    """Return how long a model may be unused, in seconds; None for never. Raises ConfigError."""
    if text in ("never", "immediately"):
        return None if text == "never" else 0.0
    try:
        seconds = 60 * durations.parse(text, "min")
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < MAX_IDLE_SECONDS:
        where = f" ({origin})" if origin else ""
        hint = 'write never, immediately, a number of minutes, or a span: idle = "1h"'
        raise ConfigError(f"idle = {text!r}{where} is no span of time", hint)
    return seconds


MEMORY_UNITS = {
    "": 1 << 20, "mib": 1 << 20, "m": 1 << 20, "gib": 1 << 30, "g": 1 << 30, "kib": 1 << 10,
    "mb": 10**6, "gb": 10**9,
}  # fmt: skip
"""Unit -> bytes; without one a number counts MiB."""


def budget(text: str, total: int, name: str = "vram_budget", origin: str = "") -> int | None:
    """Return a memory budget in bytes for a card of `total` bytes: "2000", "2000MiB", "2 GB" or "50%"; None for ""."""
    match = re.fullmatch(r"(\d{1,12}(?:[.,]\d+)?)\s*([a-z]*|%)", text.strip().lower(), re.ASCII)
    if not text.strip():
        return None
    where = f" ({origin})" if origin else ""
    if not match or match[2] not in (*MEMORY_UNITS, "%"):
        raise ConfigError(f"{name} = {text!r}{where} is no amount of memory", "for example 2000MiB, 2GiB or 50%")
    number = float(match[1].replace(",", "."))
    if match[2] == "%" and number > 100:
        raise ConfigError(f"{name} = {text!r}{where} is more than a card has", "write 100% or less")
    return int(number * (total / 100 if match[2] == "%" else MEMORY_UNITS[match[2]]))


def describe() -> list[tuple[str, str, str]]:
    """Return (setting, default as TOML, meaning) for each setting, for help and documentation."""
    return [(name, _toml(field.default), field.type.__metadata__[0].description) for name, field in FIELDS.items()]


def _toml(value: Any) -> str:
    if value is msgspec.NODEFAULT:  # a mutable default, made anew for each value: the empty table
        return "{}"
    return "unset" if value is None else msgspec.json.encode(value).decode()

