"""Settings: frozen, typed, each with the place it came from.

Order of precedence: command-line flags over ASRD_* variables over the TOML file over the defaults.
An unknown key is an error that names the nearest right one. Knows the names of settings; does not
know what they do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from asrd.config import conversion, legacy, proposals
from asrd.config import faults as config_faults
from asrd.config.amounts import budget, idle_seconds
from asrd.config.voice_commands import Phrase, table
from asrd.errors import ConfigError, nearest
from asrd.precision.strategies import AUTO_PRESETS, Precision, find, with_parts


def _about(text: str, at_least: float | None = None, at_most: float | None = None) -> Meta:
    return Meta(description=text, ge=at_least, le=at_most)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every setting, its type, default and meaning; file, environment, flags and documentation are
    derived from it."""

    model: Annotated[
        str,
        _about(
            "path of a .nemo file, demo, demo-ctc, demo-tdt, or a name on the hub; empty: none is chosen"
        ),
    ] = ""
    strategy: Annotated[str, _about("precision strategy, or auto")] = "auto"
    preset: Annotated[
        str, _about("bounds and candidates for auto: conservative, default or aggressive")
    ] = "default"
    parts: Annotated[dict[str, str], _about("component -> dtype, for strategy selective")] = {}
    device: Annotated[
        str, _about("auto, cpu, cuda, cuda:N, a part of a card's name, or its UUID")
    ] = "auto"
    source_lang: Annotated[str, _about("language spoken (Canary)")] = "en"
    target_lang: Annotated[
        str,
        _about(
            "language written (Canary); if it differs from the spoken one, the model translates"
        ),
    ] = "en"
    pnc: Annotated[
        bool | None,
        _about("ask Canary for punctuation and capitals; unset: as its checkpoint does"),
    ] = None
    timestamps_model: Annotated[
        bool, _about("load the second, FP32 model that newer Canary files carry")
    ] = False
    vocabulary: Annotated[
        tuple[str, ...],
        _about("names and phrases to listen for; @FILE stands for those of a file, one a line"),
    ] = ()
    boost: Annotated[
        float, _about("how far the vocabulary is preferred, in nats; 0 switches it off", 0.0, 5.0)
    ] = 1.0
    window: Annotated[float, _about("seconds of the audio buffer", 2.0, 30.0)] = 10.0
    threads: Annotated[
        int, _about("CPU threads of the worker; 0 is one for a small model, else all", 0, 256)
    ] = 0
    graphs: Annotated[
        bool, _about("CUDA graphs: replay whole encoder and decoder steps; needs some GPU memory")
    ] = True
    vram_budget: Annotated[
        str,
        _about(
            "upper bound for all the worker holds of a GPU, CUDA's own share too: 2000 (MiB), '2GiB' or '50%'"
        ),
    ] = ""
    max_wer_delta: Annotated[
        Annotated[float, Meta(ge=0.0, le=100.0)] | None,
        _about("absolute points of WER a strategy may cost; without it the preset's bound"),
    ] = None
    source: Annotated[
        str, _about("mic, file:PATH (in real time), or pipe (raw s16le, 16 kHz, mono on stdin)")
    ] = "mic"
    microphone: Annotated[
        str, _about("part of an input device's name; empty follows the system's default")
    ] = ""
    pre_roll: Annotated[
        float,
        _about("seconds recorded before the key; above 0 the microphone stays open", 0.0, 10.0),
    ] = 0.0
    sinks: Annotated[
        tuple[str, ...],
        _about(
            "where text goes, in this order: type, paste, clipboard, stdout, command:CMD, journal, none"
        ),
    ] = ("type",)
    deliver: Annotated[
        str, _about("when text is sent. take: when the recording ends; segment: at each pause")
    ] = "take"
    draft_every: Annotated[
        float,
        _about("seconds between partial results under asrd status --follow; 0 for none", 0.0, 60.0),
    ] = 0.5
    commands: Annotated[bool, _about("obey spoken commands: new line, comma, scratch that")] = False
    spoken: Annotated[
        dict[str, str], _about("phrase -> text or action, over the shipped; '' removes one")
    ] = {}
    capitals: Annotated[
        bool, _about("begin sentences and lines with a capital, for models that write none")
    ] = False
    suffix: Annotated[
        str, _about("what follows each delivered text; a space only where its script has spaces")
    ] = " "
    type_delay: Annotated[int, _about("milliseconds between typed characters", 0, 1000)] = 2
    keep_audio: Annotated[
        str, _about("which recordings stay on disk: never, on-failure or always")
    ] = "on-failure"
    takes_days: Annotated[int, _about("days a kept recording stays", 0, 3650)] = 14
    takes_mb: Annotated[
        int, _about("megabytes of recordings; the oldest go first", 1, 1_000_000)
    ] = 500
    idle: Annotated[
        str,
        _about(
            "when an unused model leaves memory: never, immediately, or after so many minutes, or '1h'"
        ),
    ] = "30"
    log_text: Annotated[bool, _about("write the text into the journal")] = False
    notify: Annotated[bool, _about("show problems on the desktop")] = True
    cues: Annotated[bool, _about("a sound when recording starts and stops")] = False
    vram_alert: Annotated[
        str, _about("warn once when the worker's GPU memory is above: '3500MiB' or '90%'")
    ] = ""
    demote_empty: Annotated[
        float,
        _about(
            "fall back after so many seconds of clear speech without a word; 0: never",
            0.0,
            86_400.0,
        ),
    ] = 2.0
    demote_failures: Annotated[
        float,
        _about(
            "fall back where surely more than so many buffers in 100 fail; 0: never", 0.0, 100.0
        ),
    ] = 1.0
    demote_slower: Annotated[
        float,
        _about(
            "fall back when so many percent slower than FP32 was under asrd compare; 0: never",
            0.0,
            1e6,
        ),
    ] = 10.0
    demote_memory: Annotated[
        float,
        _about("fall back when memory is so many percent above FP32's then; 0: never", 0.0, 1e6),
    ] = 10.0
    demote_changed: Annotated[
        float,
        _about(
            "fall back where surely more than so many words in 100 change (shadow); 0: never",
            0.0,
            100.0,
        ),
    ] = 1.0
    promote_after: Annotated[
        float,
        _about(
            "minutes until a better precision is tried again, doubled if in vain; 0: never",
            0.0,
            1e6,
        ),
    ] = 30.0
    shadow: Annotated[
        int,
        _about(
            "one recording in so many is transcribed again in FP32, to count words; 0: none",
            0,
            1_000_000,
        ),
    ] = 0
    faults: Annotated[
        str,
        _about(
            "faults to rehearse, for example non-finite:3 or slow:1; asrd run --help lists the kinds"
        ),
    ] = ""
    socket: Annotated[str, _about("control socket; empty: asrd.sock in the runtime directory")] = ""

    @property
    def requested(self) -> str | Precision:
        """The strategy as asked for: its name, or a value of its own where `parts` make it one."""
        if self.strategy == "selective" and self.parts:
            return with_parts(self.parts)
        return self.strategy

    @property
    def wer_bound(self) -> float:
        """Absolute points of WER that a strategy may cost: the setting, or the preset's."""
        if self.max_wer_delta is None:
            return AUTO_PRESETS[self.preset].max_wer_delta
        return self.max_wer_delta

    @property
    def phrases(self) -> Mapping[Phrase, str]:
        """The spoken commands that are obeyed; none while they are switched off."""
        if not self.commands:
            return {}
        return table(self.spoken)


CHOICES = {"deliver": ("take", "segment"), "keep_audio": ("never", "on-failure", "always")}
"""Settings that are one of few words."""

ENGINE = (
    *(
        "model",
        "strategy",
        "preset",
        "parts",
        "device",
        "source_lang",
        "target_lang",
        "pnc",
        "timestamps_model",
    ),
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


def accepted(key: str, value: Any) -> bool:
    """Return whether a setting takes a value, whatever the others are."""
    layer = {key: (value, "")}
    try:
        legacy.fold(layer)
        made = {}
        for name, (one, _) in layer.items():
            made[name] = conversion.typed(name, one, "", FIELDS[name].type)
        check(Settings(**made), dict.fromkeys(FIELDS, ""))
    except (ConfigError, ValueError, OverflowError):
        return False
    return True


def propose(key: str, value: Any) -> str:
    """Return a line of the file that sets what was meant, as "write KEY = VALUE"; the settings
    accept it."""
    return proposals.line(key, value, accepted, EXAMPLES[key])


def propose_variable(key: str, value: str) -> str:
    """Return as `propose`, for a variable of the environment."""
    return proposals.variable(key, value, accepted, EXAMPLES[key])


def check(settings: Settings, origins: dict[str, str]) -> Settings:
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
    if settings.preset not in AUTO_PRESETS:
        raise ConfigError(
            f"unknown preset {settings.preset!r} ({origins['preset']})",
            nearest(settings.preset, tuple(AUTO_PRESETS)),
        )
    for key in ("source_lang", "target_lang"):
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Z]{2})?", code := getattr(settings, key)):
            own = conversion.LANGUAGES.get(code.strip().lower())
            hint = ""
            if own:
                hint = f'write {key} = "{own}"; '
            raise ConfigError(
                f"{key} = {code!r} ({origins[key]}) is not a language code",
                f"{hint}codes look like en or pt-BR",
            )
    _check_daemon(settings, origins)
    for key in ("vram_budget", "vram_alert"):
        budget(getattr(settings, key), 1 << 40, key, origins[key])
    return settings


def _check_daemon(settings: Settings, origins: dict[str, str]) -> None:
    """Refuse what the daemon could not do."""
    for key, known in CHOICES.items():
        if (word := getattr(settings, key)) not in known:
            raise ConfigError(
                f"{key} = {word!r} ({origins[key]}) is not known", nearest(word, known)
            )
    for sink in settings.sinks:
        if sink not in SINKS and not (
            sink.startswith("command:") and sink.removeprefix("command:").strip()
        ):
            raise ConfigError(
                f"there is no sink {sink!r} ({origins['sinks']})", nearest(sink, SINKS)
            )
    if settings.source not in ("mic", "pipe") and not re.match(
        r"file:.", settings.source, re.DOTALL
    ):
        raise ConfigError(
            f"source = {settings.source!r} ({origins['source']}) is not known",
            proposals.source(settings.source),
        )
    idle_seconds(settings.idle, origins["idle"])
    try:
        config_faults.parse(settings.faults)
    except ConfigError as error:
        raise ConfigError(f"{error.message} ({origins['faults']})", error.hint) from error
    try:
        table(settings.spoken)
    except ValueError as error:
        raise ConfigError(f"spoken ({origins['spoken']}): {error}") from error


def describe() -> list[tuple[str, str, str]]:
    """Return (setting, default as TOML, meaning) for each setting, for help and documentation."""
    rows = []
    for name, field in FIELDS.items():
        rows.append((name, _toml(field.default), field.type.__metadata__[0].description))
    return rows


def _toml(value: Any) -> str:
    if value is msgspec.NODEFAULT:  # a mutable default, made anew for each value: the empty table
        return "{}"
    if value is None:
        return "unset"
    return msgspec.json.encode(value).decode()
