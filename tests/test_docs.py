"""The README and the pages of asrd/docs: tables made from the code and from committed results, links
that lead somewhere, names that exist, sentences of a bearable length.

python -m tests.test_docs     writes the tables anew
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import asrd
from asrd import errors
from asrd.config import settings as config_settings
from asrd.config.settings import Settings
from asrd.daemon.control_server import VERBS, Request
from asrd.engine.model_facts import header_of
from asrd.engine.planner import parse_gpu, plan_report
from asrd.evaluation.report import documents
from asrd.evaluation.report import table as report_table
from asrd.models.memory_estimate import weights_bytes
from asrd.precision.strategies import AUTO_PRESETS, STRATEGY_TABLE
from tests.helpers import ROOT
from tools.benchmark.figures import Result
from tools.benchmark.page import table
from tools.gpubench import cells, tables
from tools.torturing import page

README = ROOT / "README.md"
DOCS = ROOT / "asrd" / "docs"
RESULTS = ROOT / "tools" / "results"


def settings() -> str:
    lines = [
        f"| `{name}` | `{default}` | {meaning} |"
        for name, default, meaning in config_settings.describe()
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *lines])


def presets() -> str:
    lines = [
        f"| `{p.name}` | {', '.join(f'`{c}`' for c in p.candidates)} | {p.max_wer_delta:g} |"
        for p in AUTO_PRESETS.values()
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


def measured(model: str) -> str:
    """Return the comparison of a model as committed."""
    found = documents.from_json((RESULTS / f"compare-{model}-cpu.json").read_bytes())
    return "```\n" + report_table.table(found, 120, colour=False).rstrip() + "\n```"


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
    names = ("torture-cpu.json",)
    found = (msgspec.json.decode((RESULTS / name).read_bytes(), type=page.Report) for name in names)
    return "```\n" + "\n\n".join(map(page.whole, found)) + "\n```"


COMPARED = ("fp32", "tf32", "bfloat16", "half", "selective", "phased", "int8")
"""Strategies in the README's table of costs; the others are for experts."""

LARGE = "canary-1b-flash"
"""The model of the README's figures of memory and speed."""


def costs() -> str:
    """Return what each strategy costs, in ratios to FP32's."""
    found = cells.read(RESULTS / "gpu.json")
    assert found is not None
    header, _ = header_of(f"nvidia/{LARGE}")
    whole = weights_bytes(header, STRATEGY_TABLE["fp32"])
    head = f"| strategy | weights, {LARGE} | GPU memory, {LARGE} | 10 s of audio, {LARGE} "
    lines = [head + "| words changed in 100, `demo` |", "|---|---|---|---|---|"]
    for name in COMPARED:
        weights = f"{weights_bytes(header, STRATEGY_TABLE[name]) / whole:.2f}"
        lines.append(
            "| " + " | ".join([f"`{name}`", weights, *tables.costs(found, LARGE, name)]) + " |"
        )
    return "\n".join(lines)


def models() -> str:
    """Return what a worker needs of a GPU under three strategies, by model."""
    card = parse_gpu("a card:8.6:80")
    shown = ("fp32", "bfloat16", "int8")
    lines = [
        "| model | languages | " + " | ".join(f"`{name}`" for name in shown) + " |",
        "|---|---|---|---|---|",
    ]
    for name in OFFERED:
        report = plan_report(Settings(model=name), [card], imagined=True)
        need = {line.strategy: line.process for line in report.strategies}
        figures = " | ".join(f"{need[one] / (1 << 30):.1f}" for one in shown)
        lines.append(f"| `{name}` | {report.languages} | {figures} |")
    return "\n".join(lines)


OFFERED = (
    "nvidia/parakeet-tdt-0.6b-v3",
    "nvidia/canary-1b-v2",
    "nvidia/canary-1b-flash",
    "nvidia/canary-180m-flash",
    "nvidia/parakeet-tdt-0.6b-v2",
    "nvidia/parakeet-tdt_ctc-110m",
)
"""Models of the README's table: for many languages first, then for few, then for English."""

MAX_README_LINES, MAX_README_WORDS = 250, 2200


def test_the_readme_is_short() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= MAX_README_LINES
    assert len(text.split()) <= MAX_README_WORDS


BLOCKS: dict[str, tuple[Path, Callable[[], str]]] = {
    "settings": (DOCS / "configuration.md", settings),
    "presets": (DOCS / "configuration.md", presets),
    "files": (DOCS / "architecture.md", files),
    "costs": (README, costs),
    "models": (README, models),
    "bench": (DOCS / "performance.md", bench),
    "gpu": (DOCS / "gpu.md", gpu),
    "torture": (DOCS / "reliability.md", torture),
    "measured-demo": (DOCS / "evaluation.md", lambda: measured("demo")),
}
"""Name of a generated block -> the page it is in, and what makes it."""

PAGES = [README, *sorted(DOCS.glob("*.md"))]
WRITTEN_ELSEWHERE = ("changelog.md",)
"""Pages that name what an older release had."""

MAX_SENTENCE_WORDS = 25
"""Words of a sentence, without its code."""


def pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_generated_block_says_what_the_code_says(name: str) -> None:
    path, make = BLOCKS[name]
    found = pattern(name).findall(path.read_text())
    assert len(found) == 1, f"{path} has {len(found)} blocks {name}"
    block = pattern(name).search(path.read_text())
    assert block is not None
    assert block[0] == f"<!-- {name} -->\n{make()}\n<!-- /{name} -->", "python -m tests.test_docs"


def test_every_block_of_a_page_is_generated() -> None:
    for path in PAGES:
        named = re.findall(r"^<!-- (\S+) -->$", path.read_text(), re.MULTILINE)
        own = [name for name, (page, _) in BLOCKS.items() if page == path]
        assert sorted(named) == sorted(own + [f"/{name}" for name in own]), path


def test_every_strategy_and_every_verb_is_explained() -> None:
    from asrd.cli.main import VERBS

    text = "".join(path.read_text() for path in PAGES)
    for name in STRATEGY_TABLE:
        assert f"`{name}`" in (DOCS / "strategies.md").read_text()
    for verb in VERBS:
        assert f"asrd {verb}" in text


def test_nothing_was_left_to_fill_in() -> None:
    for path in PAGES:
        assert "@@" not in path.read_text()


def prose(text: str) -> str:
    """Return a page without code, tables and generated blocks."""
    text = re.sub(r"^<!-- (\S+) -->.*?^<!-- /\1 -->", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^(    |\|).*$", "", text, flags=re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Return what a link may name in a page, as GitHub makes it of each heading."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_link_leads_to_a_page_or_a_file(path: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", path.read_text())
    sources = re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for link in [*re.findall(r"\]\(([^)\s]+)\)", text), *sources]:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.is_file(), f"{path.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{path.name}: {link}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_file_that_a_page_names_exists(path: Path) -> None:
    """Paths of this repository between backticks, with a node of a test behind them or not."""
    if path.name in WRITTEN_ELSEWHERE:
        return
    for word in re.findall(
        r"(?<![\w/.~@-])(?:asrd|tests|tools|systemd)/[\w./-]*\w/?", path.read_text()
    ):
        assert (ROOT / word).exists(), f"{path.name}: {word}"


def definitions(module: Path) -> set[str]:
    """Return the names a module defines, `Class.method` among them."""
    found: set[str] = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if hasattr(one, "name")}
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def is_defined(dotted: str) -> bool:
    """Return whether `package.module.Name`, below asrd, is a module or a name that one defines."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        module = (ROOT / "asrd").joinpath(*parts[:cut]).with_suffix(".py")
        if module.is_file():
            name = ".".join(parts[cut:])
            return not name or name in definitions(module)
    return (ROOT / "asrd").joinpath(*parts).is_dir()


PACKAGES = re.findall(r"^    (\w+)  +\w", asrd.__doc__ or "", re.MULTILINE)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_module_or_class_that_a_page_names_exists(path: Path) -> None:
    if path.name in WRITTEN_ELSEWHERE:
        return
    for word in re.findall(r"`([a-z_]+(?:\.\w+)+)`", path.read_text()):
        if word.partition(".")[0] in PACKAGES:
            assert word.endswith(".py") or is_defined(word), f"{path.name}: {word}"


def test_a_name_that_is_not_defined_is_found() -> None:
    assert is_defined("engine.engine.Engine.transcribe")
    assert is_defined("journal.MESSAGE_IDS")
    assert is_defined("worker.casting.cast")
    for wrong in ("engine.engine.Motor", "engine.motor", "journal.EVENT", "motor.engine"):
        assert not is_defined(wrong)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_sentence_is_short(path: Path) -> None:
    for block in re.split(r"\n\s*\n|\n(?=- |\d+\. |#)", prose(path.read_text())):
        flat = re.sub(r"`[^`]*`", "code", " ".join(block.split()))
        for sentence in re.split(r"(?<=[.!?:;])\W*\s+", flat):
            assert len(sentence.split()) <= MAX_SENTENCE_WORDS, f"{path.name}: {sentence}"


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_a_page_has_a_title_and_a_summary_of_one_line(path: Path) -> None:
    title, blank, summary, after = path.read_text().split("\n")[:4]
    assert title.startswith("# ")
    assert not blank
    assert not after
    assert 20 <= len(summary) <= 76
    assert summary.endswith(".")


def test_the_protocol_page_lists_every_verb_and_field() -> None:
    text = (DOCS / "control-protocol.md").read_text()
    table = text[text.index("| verb |") : text.index("## Replies")]
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:] if line.startswith("|")]
    verbs = [verb for row, _ in rows for verb in re.findall(r"`(\w+)`", row)]
    fields = {field for _, cell in rows for field in re.findall(r"`(\w+)`", cell)}
    assert sorted(verbs) == sorted(VERBS)
    assert fields | {"verb"} == set(Request.__struct_fields__)


def test_the_page_of_the_configuration_lists_every_exit_code() -> None:
    text = (DOCS / "configuration.md").read_text()
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    ours = [value for value in vars(errors).values() if isinstance(value, type)]
    used = {kind.exit_code for kind in ours if issubclass(kind, errors.AsrdError)}
    assert used <= codes


if __name__ == "__main__":
    for block, (page_path, make) in BLOCKS.items():
        text = page_path.read_text()
        filled = pattern(block).sub(lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text)  # type: ignore[misc]
        page_path.write_text(filled)
