"""The README's tables are made from the code and from committed results, and must still say what
those say.

python -m tests.test_docs     writes them anew
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
import pytest

import asrd
from asrd.config import settings as config_settings
from asrd.evaluation.report import text as report_text
from asrd.precision.strategies import PRESETS, TABLE
from tests.helpers import ROOT
from tools.benchmark.figures import Result
from tools.benchmark.page import table
from tools.gpubench import cells, tables
from tools.torturing import page

README = ROOT / "README.md"
RESULTS = ROOT / "tools" / "results"
MIB = 1 << 20


def settings() -> str:
    lines = [
        f"| `{name}` | `{default}` | {meaning} |"
        for name, default, meaning in config_settings.describe()
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *lines])


def presets() -> str:
    lines = [
        f"| `{p.name}` | {', '.join(f'`{c}`' for c in p.candidates)} | {p.max_wer_delta:g} |"
        for p in PRESETS.values()
    ]
    head = [
        "| preset | candidates, cheapest memory first | points of WER each may cost |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *lines])


def files() -> str:
    rows = re.findall(r"^    (\w+)  +(\w.*)$", asrd.__doc__ or "", re.MULTILINE)
    lines = [
        f"| `asrd/{name}{'/' if (ROOT / 'asrd' / name).is_dir() else '.py'}` | {about} |"
        for name, about in rows
    ]
    return "\n".join(["| package | what it knows |", "|---|---|", *lines])


def journal() -> str:
    """Return the table of events as the service's own page has it."""
    page = (ROOT / "systemd" / "README.md").read_text()
    return page[page.index("| `ASRD_EVENT` |") :].partition("\n\n")[0]


def measured(model: str) -> str:
    """Return the comparison of a model as committed."""
    found = report_text.from_json((RESULTS / f"compare-{model}-cpu.json").read_bytes())
    return "```\n" + report_text.table(found, 120, colour=False).rstrip() + "\n```"


def bench() -> str:
    """Return the committed run of tools/bench."""
    found = msgspec.json.decode((RESULTS / "cpu.json").read_bytes(), type=Result)
    return "```\n" + table(found, 120).rstrip() + "\n```"


def gpu() -> str:
    """Return what tools/gpu-bench measured, as committed: the claims, then the tables."""
    found = cells.read(RESULTS / "gpu.json")
    assert found is not None
    return f"{tables.claims(found)}\n\n```\n{tables.strategies(found)}\n```"


def torture() -> str:
    """Return the committed runs of tools/torture."""
    names = ("torture-cpu.json", "torture-mended-cpu.json", "torture-microphone-cpu.json")
    found = (msgspec.json.decode((RESULTS / name).read_bytes(), type=page.Report) for name in names)
    return "```\n" + "\n\n".join(map(page.whole, found)) + "\n```"


BLOCKS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "presets": presets,
    "files": files,
    "journal": journal,
    "bench": bench,
    "gpu": gpu,
    "torture": torture,
    "measured-demo": lambda: measured("demo"),
    "measured-demo-ctc": lambda: measured("demo-ctc"),
}


def pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_table_of_the_readme_says_what_the_code_says(name: str) -> None:
    found = pattern(name).search(README.read_text())
    assert found, f"README has no block {name}"
    assert found[0] == f"<!-- {name} -->\n{BLOCKS[name]()}\n<!-- /{name} -->", (
        "python -m tests.test_docs"
    )


def test_every_strategy_and_every_verb_is_explained() -> None:
    from asrd.cli.main import VERBS

    text = README.read_text()
    for name in TABLE:
        assert f"`{name}`" in text
    for verb in VERBS:
        assert f"asrd {verb}" in text


def test_nothing_was_left_to_fill_in() -> None:
    assert "@@" not in README.read_text()


if __name__ == "__main__":
    filled = README.read_text()
    for block, make in BLOCKS.items():
        filled = pattern(block).sub(lambda m, make=make: m[1] + make() + m[2], filled)  # type: ignore[misc]
    README.write_text(filled)
