"""The verb models: the shipped models, those in the cache and those that are known by name.

Reads names and the headers of files. Opens no weights and downloads nothing. A figure that was
computed instead of read from a file is marked.
"""

from __future__ import annotations

import argparse

import msgspec

from asrd.cli.cells import NO_FIGURE
from asrd.config.settings import Settings
from asrd.engine.model_facts import header_of, languages
from asrd.errors import ModelError
from asrd.models import architectures, names
from asrd.models.memory_estimate import weights_bytes
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.protocol import Download
from asrd.terminal import listing
from asrd.terminal.output import tell_document
from asrd.text.sizes import mib_figure

SHOWN_STRATEGIES = ("fp32", "bfloat16", "int8")
"""Strategies whose weights the list shows: the baseline, the half and the least."""

UNKNOWN_CELL = "?"
"""Cell of a fact that every model has and that could not be read."""


class ModelEntry(msgspec.Struct, frozen=True):
    """One model of the list."""

    name: str
    family: str
    parameters: int
    exact: bool
    """True when read from a file, False when computed from the known architecture."""
    languages: str
    path: str
    """Empty where no file is here."""
    bytes: int
    """Of the file; 0 where none is here."""
    weights: dict[str, int]
    """Strategy -> bytes of the weights."""
    note: str = ""
    unconfirmed: str = ""
    """What no public copy of the config confirms; empty where a file is here."""


def models_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `asrd models`."""
    parser.add_argument("--json", action="store_true", help="exact bytes as JSON, every strategy")


def models(args: argparse.Namespace, settings: Settings) -> int:
    """List the shipped models, those in the cache and those known by name; return 0."""
    listed = dict.fromkeys([*names.SHIPPED, *architectures.ARCHITECTURES, *names.cached()])
    entries = list(map(_entry, listed))
    if args.json:
        tell_document(entries, indent=2)
        return 0
    columns = map(">{}".format, SHOWN_STRATEGIES)
    headings = ["model", "family", ">parameters", "languages", ">file", *columns]
    listing.show(headings, list(map(_row, entries)))
    listing.say("", *_remarks(entries))
    return 0


def _remarks(entries: list[ModelEntry]) -> list[str]:
    """Return what the figures of the list mean, and what could not be read."""
    lines = [
        f"MiB throughout. file: the checkpoint, where it is here; {NO_FIGURE} is downloaded to "
        f"{names.cache_folder()} when it is first used. {', '.join(SHOWN_STRATEGIES)}: the weights "
        "under that strategy (asrd plan --model M shows all of them).",
        "~: computed from the published architecture, not read from a file. Names without an owner are nvidia's.",
        "For some models, no public copy of the config confirms every part; "
        "asrd plan --model M lists what is unconfirmed.",
        "The demo models recognise synthetic voices and a closed vocabulary, not your microphone.",
    ]
    for entry in entries:
        if entry.note:
            lines.append(f"{entry.name}: {entry.note}")
    for name, size in names.partials().items():
        lines.append(Download(name, size, None).kept)
    return lines


def _row(entry: ModelEntry) -> list[str]:
    """Return a model's line of the table."""
    return [
        _short_name(entry.name),
        entry.family or UNKNOWN_CELL,
        _parameters(entry),
        entry.languages or UNKNOWN_CELL,
        _size(entry.bytes, NO_FIGURE),
        *(_size(entry.weights.get(name, 0), UNKNOWN_CELL) for name in SHOWN_STRATEGIES),
    ]


def _short_name(name: str) -> str:
    """Return a model's name; without its owner where the model is known by name."""
    if name not in architectures.ARCHITECTURES:
        return name
    return name.partition("/")[2]


def _parameters(entry: ModelEntry) -> str:
    if not entry.parameters:
        return UNKNOWN_CELL
    millions = f"{entry.parameters / 1e6:.1f} M"
    if entry.exact:
        return millions
    return f"~{millions}"


def _size(count: int, none: str) -> str:
    """Return bytes in mebibytes; `none` for 0."""
    if not count:
        return none
    return mib_figure(count)


def _entry(name: str) -> ModelEntry:
    """Return a model's facts: from its file where one is here, else from its known architecture."""
    try:
        header, path = header_of(name)
    except ModelError as error:
        return ModelEntry(name, "", 0, False, "", "", 0, {}, error.message)
    unconfirmed = ""
    if name in architectures.ARCHITECTURES and not path:
        unconfirmed = architectures.ARCHITECTURES[name].recalled
    return ModelEntry(
        name=name,
        family=header.family,
        parameters=header.parameters,
        exact=bool(path),
        languages=languages(name, header),
        path=path,
        bytes=header.size,
        weights={key: weights_bytes(header, each) for key, each in STRATEGY_TABLE.items()},
        unconfirmed=unconfirmed,
    )
