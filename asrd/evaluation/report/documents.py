"""A comparison as JSON, and back, also from JSON of older releases (pure)."""

from __future__ import annotations

from typing import Any

import msgspec

from asrd.evaluation.results import SCHEMA, Comparison
from asrd.text import filenames

OLDEST_SCHEMA = 2
"""The oldest JSON that `from_json` reads."""

OLDER_SCHEMAS = (1, 2)

RENAMED_IN_ROWS = {"draft": "partial_results"}
"""Key of a row in schema 2 -> its key in schema 3."""


def to_json(comparison: Comparison) -> bytes:
    """Return the comparison as indented JSON; `from_json` gives the same comparison back."""
    return msgspec.json.format(filenames.to_json(comparison), indent=2) + b"\n"


def from_json(content: bytes) -> Comparison:
    """Return the comparison that `to_json` wrote, in this release or with an older schema.

    Raises msgspec.DecodeError for anything else.
    """
    document = msgspec.json.decode(content)
    if isinstance(document, dict) and document.get("schema") in OLDER_SCHEMAS:
        document = of_today(document)
    return msgspec.convert(document, Comparison)


def of_today(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document of an older schema under the keys of today."""
    rows = []
    for row in document["rows"]:
        rows.append({RENAMED_IN_ROWS.get(key, key): value for key, value in row.items()})
    return document | {"rows": rows, "schema": SCHEMA}
