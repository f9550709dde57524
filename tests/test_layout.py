"""The shape of the house: who may import whom, what stays light, and that the linters are
content."""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers import ROOT

PACKAGES = re.findall(r"^    (\w+)  +\w", (ROOT / "asrd" / "__init__.py").read_text(), re.MULTILINE)
"""What `asrd` consists of, from the bottom to the top: packages, and modules beside them."""

WORKER_MAY_IMPORT = {
    "errors",
    "text",
    "paths",
    "precision",
    "protocol",
    "framing",
    "config",
    "audio",
    "models",
    "worker",
}
HEAVY = [
    "torch",
    "nemo",
    "lightning",
    "numpy",
    "soundfile",
    "matplotlib",
    "rich",
    "jiwer",
    "huggingface_hub",
]


def name_of(file: Path) -> str:
    """Return a file's module as its package lists it: `paths`, `audio.formats.mpeg`."""
    return ".".join(file.relative_to(ROOT / "asrd").with_suffix("").parts)


FILES = {
    name_of(path): path
    for path in sorted((ROOT / "asrd").rglob("*.py"))
    if path.name != "__init__.py"
}
FILES.pop("__main__")


def package(name: str) -> str:
    return name.partition(".")[0]


def for_types_only(tree: ast.Module) -> set[ast.AST]:
    """Return what lies below `if TYPE_CHECKING`: no import of a running program."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    typing = [node for node in blocks if ast.unparse(node.test) == "TYPE_CHECKING"]
    return {inner for node in typing for statement in node.body for inner in ast.walk(statement)}


def imports_of(file: Path) -> set[str]:
    """Return the modules of asrd that a file imports, anywhere in it."""
    tree = ast.parse(file.read_text())
    skipped = for_types_only(tree)
    found: set[str] = set()
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ImportFrom) and node.level), (
            f"{file}: imports are absolute"
        )
        if (
            node in skipped
            or not isinstance(node, ast.ImportFrom)
            or package(node.module or "") != "asrd"
        ):
            continue
        base = (node.module or "").removeprefix("asrd").removeprefix(".")
        names = {f"{base}.{alias.name}".removeprefix(".") for alias in node.names}
        found |= {name if name in FILES else base for name in names}
    return found & set(FILES)


IMPORTS = {name: imports_of(path) for name, path in FILES.items()}


def test_the_map_lists_every_package() -> None:
    assert {package(name) for name in FILES} == set(PACKAGES)


@pytest.mark.parametrize("name", [name for name in PACKAGES if (ROOT / "asrd" / name).is_dir()])
def test_a_package_lists_its_modules_and_each_imports_only_those_above_it(name: str) -> None:
    listed = re.findall(
        r"^    ([\w.]+)  +\w", (ROOT / "asrd" / name / "__init__.py").read_text(), re.MULTILINE
    )
    order = [f"{name}.{module}" for module in listed]
    assert set(order) == {module for module in FILES if package(module) == name}
    for place, module in enumerate(order):
        inside = {other for other in IMPORTS[module] if package(other) == name}
        assert inside <= set(order[:place]), module


@pytest.mark.parametrize("name", FILES)
def test_a_module_imports_only_from_packages_below_its_own(name: str) -> None:
    below = set(PACKAGES[: PACKAGES.index(package(name)) + 1])
    assert {package(other) for other in IMPORTS[name]} <= below


@pytest.mark.parametrize("name", FILES)
def test_the_worker_is_started_and_never_imported(name: str) -> None:
    others = {package(other) for other in IMPORTS[name]}
    if package(name) == "worker":
        assert others <= WORKER_MAY_IMPORT
    else:
        assert "worker" not in others


@pytest.mark.parametrize("name", [name for name in FILES if package(name) != "worker"])
def test_only_the_worker_names_torch_or_nemo(name: str) -> None:
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {n.split(".")[0] for n in names} & {"torch", "nemo", "lightning", "torchao"}, (
            name
        )


MAX_LINES = 400
TOO_LONG = {
    "worker.encoder.conformer": "the encoder that the native runtime will replace",
}
"""Modules above MAX_LINES, and what each holds too much of. A module that was cut leaves this
table."""


@pytest.mark.parametrize("name", FILES)
def test_no_module_is_longer_than_a_reader_holds(name: str) -> None:
    lines = len(FILES[name].read_text().splitlines())
    if name in TOO_LONG:
        assert lines > MAX_LINES, f"{name} was cut: take it out of TOO_LONG"
    else:
        assert lines <= MAX_LINES, f"{name} has {lines} lines: cut it where its subject changes"


def test_every_exception_to_the_length_is_a_module() -> None:
    assert set(TOO_LONG) <= set(FILES)


def twins(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Return each name that several public classes have, with the modules that define them."""
    places: dict[str, list[str]] = {}
    for name, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name)
    return {name: modules for name, modules in places.items() if len(modules) > 1}


def test_no_two_public_classes_share_a_name() -> None:
    assert twins({name: ast.parse(path.read_text()) for name, path in FILES.items()}) == {}


def test_classes_that_share_a_name_are_found() -> None:
    first, second = (
        ast.parse("class A: ...\nclass _B: ..."),
        ast.parse("class A: ...\nclass _B: ..."),
    )
    assert twins({"one": first, "two": second}) == {"A": ["one", "two"]}


def loaded_after(words: str) -> set[str]:
    """Return which heavy modules a verb has imported by the time it ends."""
    program = (
        "import sys, json, contextlib, io\nfrom asrd.cli.main import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main({words.split()!r})\n"
        f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ("--help", set()),
        ("--version", set()),
        ("nonsense", set()),
        ("config", {"rich"}),
        ("plan --model demo --json", {"rich"}),
        ("plan --model demo", {"rich"}),
        ("models --json", {"rich", "huggingface_hub"}),
        ("compare --help", {"rich", "numpy", "jiwer", "soundfile"}),
        ("tune --help", {"rich", "numpy", "jiwer", "soundfile"}),
        ("transcribe --help", {"rich", "numpy", "soundfile"}),
    ],
)
def test_verbs_import_no_more_than_they_need(words: str, allowed: set[str]) -> None:
    assert loaded_after(words) <= allowed


def linter(name: str, *words: str) -> None:
    """Run a linter as a test: missing is a skip on a developer's machine and a failure in CI."""
    program = shutil.which(name)
    if program is None and not os.environ.get("CI"):
        pytest.skip(f"{name} is not installed")
    assert program, f"{name} is not installed"
    done = subprocess.run([program, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    linter("ruff", "check", "--no-cache", ".")


def test_mypy_strict() -> None:
    linter("mypy", "--cache-dir", "build/mypy")


def test_shellcheck() -> None:
    scripts = [
        os.fspath(path)
        for path in [
            *(ROOT / "tools").iterdir(),
            ROOT / ".ci" / "run",
            ROOT / "tests" / "integration" / "session",
        ]
        if path.is_file()
        and path.read_bytes().startswith((b"#!/usr/bin/env bash\n", b"# shellcheck shell=bash\n"))
    ]
    linter("shellcheck", *scripts)


def test_no_path_of_one_machine_and_no_mirror_is_committed() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    pattern = re.compile(r"(/home/|/root/|/work/|file://|find-links|index-url|\.\./shared)")
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if (
            path == Path(__file__)
            or path.suffix in (".nemo", ".flac", ".png")
            or not path.is_file()
        ):
            continue
        assert not (found := pattern.search(path.read_text(errors="replace"))), f"{name}: {found}"


def test_the_constraints_name_versions_and_nothing_else() -> None:
    for line in (ROOT / "tools" / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(
            r"[A-Za-z0-9_.\-]+==[0-9][A-Za-z0-9.]*", line
        ), line


# -- programs in strings
# -----------------------------------------------------------------------------------------------

OLD_CODE = {"old_release.py", "old_world.py", "old_settings.py", "test_upgrade.py"}
"""Tests whose programs run under an old release of asrd, which has its own names."""


def programs_in(text: str) -> Iterator[str]:
    """Yield the strings of a module that are programs which import asrd."""
    for node in ast.walk(ast.parse(text)):
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, str) and re.search(
            r"^\s*(from asrd|import .*asrd)", value, re.MULTILINE
        ):
            yield textwrap.dedent(value)


def unknown_names(program: str) -> list[str]:
    """Return what a program takes from asrd under a name that asrd does not have."""
    modules: dict[str, str] = {}
    wrong: list[str] = []
    try:
        tree = ast.parse(program)
    except SyntaxError:  # the beginning of a program whose rest is another string
        return [line for line in program.splitlines() if line_is_wrong(line)]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and package(node.module or "") == "asrd":
            for alias in node.names:
                found = resolved(node.module or "", alias.name)
                if found is None:
                    wrong.append(f"{node.module}.{alias.name}")
                elif isinstance(found, ModuleType):
                    modules[alias.asname or alias.name] = found.__name__
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module and resolved(module, node.attr) is None:
                wrong.append(f"{module}.{node.attr}")
    return wrong


def line_is_wrong(line: str) -> bool:
    match = re.fullmatch(r"\s*from (asrd[\w.]*) import (\w+)", line)
    return match is not None and resolved(match[1], match[2]) is None


def resolved(module: str, name: str) -> object | None:
    """Return what a module of asrd has under a name: a module below it too; None for nothing."""
    if module.startswith("asrd.worker"):  # torch is not imported for a name
        path = ROOT / Path(*module.split("."))
        file = path.with_suffix(".py")
        text = file.read_text() if file.is_file() else ""
        if re.search(rf"^(?:class |def |async def )?{name}\b", text, re.MULTILINE):
            return name
        return ModuleType(f"{module}.{name}") if (path / f"{name}.py").is_file() else None
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        with contextlib.suppress(ImportError):
            return importlib.import_module(f"{module}.{name}")
    except ImportError:
        pass
    return None


@pytest.mark.parametrize(
    "file",
    [path for path in sorted((ROOT / "tests").rglob("*.py")) if path.name not in OLD_CODE],
    ids=lambda path: path.stem,
)
def test_programs_in_strings_name_what_asrd_has(file: Path) -> None:
    wrong = {name for program in programs_in(file.read_text()) for name in unknown_names(program)}
    assert wrong == PLANTED if file == Path(__file__) else not wrong


PLANTED = {"asrd.audio.sources.capture", "asrd.audio.files.hear", "asrd.house", "asrd.worker.x"}
"""What the programs below take that is not there."""

PLANTS = [
    "from asrd.audio.sources import capture",
    "from asrd.audio import files\nfiles.read('x')\nfiles.hear('x')",
    "from asrd import house, paths\nfrom asrd.worker import recognizer, x\n",
]


# -- lines that breathe

MAX_COMPREHENSIONS, MAX_CONDITIONALS = 12, 10
"""In 1,000 non-blank lines of asrd."""

SOURCES = sorted((ROOT / "asrd").rglob("*.py"))

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def nodes(kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> list[tuple[str, ast.AST]]:
    """Return every node of a kind with its place."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kind):
                found.append((f"{path}:{node.lineno}", node))
    return found


@pytest.mark.parametrize(
    ("kind", "most"), [(COMPREHENSIONS, MAX_COMPREHENSIONS), (ast.IfExp, MAX_CONDITIONALS)]
)
def test_lines_are_not_dense(kind: type[ast.AST], most: int) -> None:
    lines = [line for path in SOURCES for line in path.read_text().splitlines()]
    assert 1000 * len(nodes(kind)) / sum(map(bool, map(str.strip, lines))) <= most


def test_no_conditional_expression_is_inside_another() -> None:
    for place, node in nodes(ast.IfExp):
        inner = [each for each in ast.walk(node) if isinstance(each, ast.IfExp)]
        assert inner == [node], place


def test_a_comprehension_has_one_for_and_at_most_one_if() -> None:
    for place, node in nodes(COMPREHENSIONS):
        assert len(node.generators) == 1, place
        assert len(node.generators[0].ifs) <= 1, place


def test_functions_are_small() -> None:
    functions = nodes((ast.FunctionDef, ast.AsyncFunctionDef))
    lengths = sorted(node.end_lineno - node.lineno + 1 for _, node in functions)
    assert lengths[len(lengths) * 9 // 10] < 30
