"""The shape of the house: who may import whom, what stays light, and that the linters are content."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

ORDER = re.findall(r"^    (\w+)  +\w", (ROOT / "asrd" / "__init__.py").read_text(), re.MULTILINE)
WORKER_SIDE = {"startup", "encoder", "modules", "boundaries", "abilities", "casting", "int8", "attention", "graphs"}
WORKER_SIDE |= {"steps", "boosting", "canary", "straight", "timestamps", "decoding", "cacheaware", "recognizer"}
WORKER_SIDE |= {"lhotse_import"}
HEAVY = ["torch", "nemo", "lightning", "numpy", "soundfile", "matplotlib", "rich", "jiwer", "huggingface_hub"]


def imports_of(file: Path) -> set[str]:
    """Return the modules of asrd that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asrd"):
            found |= {node.module.split(".")[1]} if "." in str(node.module) else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("asrd.")}
    return found - {"__version__"}


def test_the_map_lists_every_file() -> None:
    files = {path.stem for path in (ROOT / "asrd").glob("*.py")} - {"__init__", "__main__"}
    assert files == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_only_from_files_above_it(name: str) -> None:
    above = set(ORDER[: ORDER.index(name)])
    assert imports_of(ROOT / "asrd" / f"{name}.py") <= above


@pytest.mark.parametrize("name", [name for name in ORDER if name not in WORKER_SIDE])
def test_the_worker_side_is_started_and_never_imported(name: str) -> None:
    assert not imports_of(ROOT / "asrd" / f"{name}.py") & WORKER_SIDE


@pytest.mark.parametrize("name", [name for name in ORDER if name not in WORKER_SIDE])
def test_only_the_worker_side_names_torch_or_nemo(name: str) -> None:
    for node in ast.walk(ast.parse((ROOT / "asrd" / f"{name}.py").read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {n.split(".")[0] for n in names} & {"torch", "nemo", "lightning", "torchao"}, name


def loaded_after(words: str) -> set[str]:
    """Return which heavy modules a verb has imported by the time it ends."""
    program = (
        "import sys, json, contextlib, io\nfrom asrd.cli import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main({words.split()!r})\n"
        f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
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
        for path in [*(ROOT / "tools").iterdir(), ROOT / ".ci" / "run", ROOT / "tests" / "session"]
        if path.is_file() and path.read_bytes().startswith((b"#!/usr/bin/env bash\n", b"# shellcheck shell=bash\n"))
    ]
    linter("shellcheck", *scripts)


def test_no_path_of_one_machine_and_no_mirror_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pattern = re.compile(r"(/home/|/root/|/work/|file://|find-links|index-url|\.\./shared)")
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path == Path(__file__) or path.suffix in (".nemo", ".flac", ".png") or not path.is_file():
            continue
        assert not (found := pattern.search(path.read_text(errors="replace"))), f"{name}: {found}"


def test_the_constraints_name_versions_and_nothing_else() -> None:
    for line in (ROOT / "tools" / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.\-]+==[0-9][A-Za-z0-9.]*", line), line
