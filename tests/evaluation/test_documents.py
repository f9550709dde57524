"""A comparison as JSON: it comes back whole, and JSON of older releases is read under today's keys."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import msgspec
import pytest

from asrd.evaluation.report import documents
from asrd.evaluation.results import SCHEMA
from tests.helpers import ROOT

RESULTS = sorted((ROOT / "tools" / "results").glob("compare-*.json")) + sorted(
    (ROOT / "tools" / "results").glob("components-*.json")
)
OLDEST_COMMIT = "afe1719"


def older(document: dict[str, Any], schema: int) -> dict[str, Any]:
    """Return a document of today under the keys of an older schema."""
    rows = []
    for row in document["rows"]:
        rows.append({{"partial_results": "draft"}.get(key, key): row[key] for key in row})
    return document | {"rows": rows, "schema": schema}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_committed_result_has_todays_schema_and_comes_back_whole(path: Any) -> None:
    content = path.read_bytes()
    assert json.loads(content)["schema"] == SCHEMA
    assert documents.to_json(documents.from_json(content)) == content


@pytest.mark.parametrize("schema", documents.OLDER_SCHEMAS)
@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_an_older_schema_gives_the_same_comparison(path: Any, schema: int) -> None:
    today = documents.from_json(path.read_bytes())
    document = older(json.loads(path.read_bytes()), schema)
    assert documents.from_json(json.dumps(document).encode()) == today


@pytest.mark.parametrize("name", ["compare-demo-cpu", "components-demo-ctc-cpu"])
def test_the_file_of_an_older_release_is_read(name: str) -> None:
    shown = subprocess.run(
        ["git", "show", f"{OLDEST_COMMIT}:tools/results/{name}.json"],
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    if shown.returncode:
        pytest.skip(f"this checkout has no commit {OLDEST_COMMIT}")
    old = json.loads(shown.stdout)
    found = documents.from_json(shown.stdout)
    assert (old["schema"], found.schema) == (1, SCHEMA)
    assert [row.strategy for row in found.rows] == [row["strategy"] for row in old["rows"]]
    for row, before in zip(found.rows, old["rows"], strict=True):
        assert (row.partial_results is None) is (before["draft"] is None)
    assert any(row.partial_results is not None for row in found.rows)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"schema": 2, "rows": []}', b"\xff"])
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        documents.from_json(content)
