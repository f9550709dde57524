"""The verb config: each setting, its value and where it came from."""

from __future__ import annotations

import argparse
from typing import Any

from asrd.config.settings import Settings
from asrd.terminal import listing
from asrd.terminal.output import tell_document
from asrd.text import filenames

MAX_SHOWN_PHRASES = 5
"""Phrases of the vocabulary from which on the table shows only their number and the first."""


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `asrd config`."""
    parser.add_argument("--json", action="store_true", help="setting -> value and origin, as JSON")


def config(args: argparse.Namespace, settings: Settings) -> int:
    """Print each setting, its value and where that came from; return 0."""
    table: dict[str, Any] = {}
    rows: list[list[str]] = []
    for name, origin in args.loaded.origins.items():
        value = getattr(settings, name)
        table[name] = {"value": value, "from": origin}
        rows.append([name, _value_text(name, value, settings), origin])
    if args.json:
        tell_document(table, indent=2)
        return 0
    listing.show(["setting", "value", "from"], rows)
    if args.loaded.notes:
        listing.say("", *args.loaded.notes)
    return 0


def _value_text(name: str, value: Any, settings: Settings) -> str:
    """Return a setting's value for the table."""
    if name == "max_wer_delta" and value is None:
        return f"{settings.wer_bound:g} (preset {settings.preset})"
    if name == "vocabulary" and len(value) > MAX_SHOWN_PHRASES:
        return f"{len(value)} phrases, {value[0]!r} the first"
    return filenames.to_json(value).decode()
