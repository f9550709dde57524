"""Settings from defaults, the TOML file, ASRD_* variables and flags, in this order."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from asrd import paths
from asrd.config import conversion, legacy, misnomers
from asrd.config.settings import (
    FIELDS,
    KNOWN,
    MAY_BE_EMPTY,
    NAMES,
    VOCABULARY,
    Settings,
    check,
    propose,
    propose_variable,
)
from asrd.errors import ConfigError
from asrd.text import filenames, text_files

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
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Loaded:
    """Return the settings in force.

    Args:
        file: the TOML file; None looks in the usual place, where it may be absent.
        flags: command-line values by setting; None values are not given.
        environment: where ASRD_* variables are looked for.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type, contradiction.
    """
    path = file or paths.config_file(environment)
    layers = (
        _file_layer(
            path, file is not None or bool(environment.get("ASRD_CONFIG")), file is not None
        ),
        _environment_layer(environment),
        _flags_layer(flags or {}),
    )
    merged: Layer = {}
    notes: list[str] = []
    for layer in layers:
        notes += legacy.fold(layer)
        if (
            layer.get("model", ("unset", ""))[0] == ""
        ):  # an empty flag or line names no model and hides none
            del layer["model"]
        merged |= layer
    origins = dict.fromkeys(FIELDS, "default")
    for key, (_, origin) in merged.items():
        origins[key] = origin
    settings = check(_convert(merged), origins)
    idle = _idle(settings, origins)
    return Loaded(settings, origins, (*notes, *idle), idle, path)


def _idle(settings: Settings, origins: dict[str, str]) -> tuple[str, ...]:
    """Return a sentence for each setting that was made and does nothing."""
    found = []
    if settings.parts and settings.strategy != "selective":
        found.append(
            f"parts ({origins['parts']}) are for strategy selective and do nothing under {settings.strategy}"
        )
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
            otherwise = "unset ASRD_CONFIG"
            if named:
                otherwise = "leave --config out"
            hint = f"create it, or {otherwise} to use the usual file"
            raise ConfigError(f"there is no configuration file {file}", hint) from None
        return {}
    except tomllib.TOMLDecodeError as error:
        raise misnomers.not_toml(file, text, error, KNOWN, propose) from error
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {error.strerror}", f"check it: ls -ld {file}"
        ) from error
    except text_files.NotTextError as error:
        raise ConfigError(f"{file} {error}", error.hint) from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # a number of thousands of digits, brackets within brackets
        raise ConfigError(
            f"{file} holds a value that is too long or too deep", "shorten it"
        ) from error
    layer: Layer = {}
    for key, value in table.items():
        _require_known(key, str(file), value)
        layer[key] = _as_named(key, value), str(file)
    return layer


def _as_named(key: str, value: Any) -> Any:
    """Return a value of the file as this process holds names: their bytes are those that stand
    there."""
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
        _require_known(key, name, text, "variable")
        value: Any = text
        if key in ("parts", "spoken"):
            value = _inline_table(name, text)
        layer[key] = value, name
    return layer


def _flags_layer(flags: Mapping[str, Any]) -> Layer:
    """Return the settings of flags that were given."""
    layer: Layer = {}
    for key, value in flags.items():
        if value is not None:
            layer[key] = value, f"--{key.replace('_', '-')}"
    return layer


def _inline_table(name: str, text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{name} = {text!r} is not a TOML table", 'for example {encoder = "float16"}'
        ) from error


def _require_known(
    key: str, origin: str, value: Any, kind: Literal["file", "variable"] = "file"
) -> None:
    if key not in KNOWN:
        what = "setting"
        if isinstance(value, dict) or misnomers.is_tables(value):
            what = "table"
        if kind == "file":
            hint = misnomers.key_hint(key, value, KNOWN, propose)
        else:
            hint = misnomers.variable_hint(key, value, KNOWN, propose_variable)
        raise ConfigError(f"unknown {what} {key!r} in {origin}", hint)


def _convert(layer: Layer) -> Settings:
    """Type each value by itself, so that the error can say where it came from."""
    typed = {}
    for key, (value, origin) in layer.items():
        typed[key] = conversion.convert(key, value, origin, FIELDS[key].type, propose)
    if "vocabulary" in typed:
        typed["vocabulary"] = _vocabulary(typed["vocabulary"], layer["vocabulary"][1])
    for key in typed.keys() - set(NAMES):
        try:
            msgspec.json.encode(typed[key])
        except UnicodeEncodeError as error:
            value, origin = layer[key]
            raise ConfigError(
                f"{key} = {value!r} ({origin}) is not UTF-8", "type it in a UTF-8 locale"
            ) from error
    return Settings(**typed)


def _vocabulary(entries: tuple[str, ...], origin: str) -> tuple[str, ...]:
    """Return the phrases, each once, those of a file in the place of "@FILE"; its path begins at
    the configuration."""
    found: dict[str, None] = {}
    for entry in entries:
        lines = [entry]
        if entry.startswith("@"):
            path = (
                Path(origin).parent / Path(entry[1:]).expanduser()
            )  # a variable's or a flag's name has parent "."
            try:
                lines = text_files.read(path).splitlines()
                lines = [line for line in lines if not line.startswith("#")]
            except text_files.NotTextError as error:
                raise ConfigError(
                    f"vocabulary ({origin}) names {path}, which {error}", error.hint
                ) from error
            except (OSError, RuntimeError, ValueError) as error:
                why = getattr(error, "strerror", None) or error
                message = f"vocabulary ({origin}) names {path}, which cannot be read: {why}"
                raise ConfigError(
                    message, "write @ and the path of a text file with a phrase a line"
                ) from error
        found |= dict.fromkeys(filter(None, (" ".join(line.split()) for line in lines)))
    if (size := sum(len(phrase.encode(errors="surrogateescape")) for phrase in found)) > VOCABULARY:
        why = f"vocabulary ({origin}) has {size} bytes in {len(found)} phrases; at most {VOCABULARY} are allowed"
        raise ConfigError(why, "shorten the list")
    return tuple(found)
