"""The verbs plan, models and config: readable at 100 columns, exact in JSON, plain in a pipe, light
to import."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from asrd.config.settings import Settings
from asrd.engine import tuned
from asrd.engine.tuned import TunedStrategy, TuningResult
from asrd.models import architectures, names
from asrd.precision.strategies import STRATEGY_TABLE
from tests.helpers import ROOT
from tests.precision.test_gpus import TWO, driver

__all__ = ["driver"]

CARD = "RTX A1000:8.6:4"


def environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ASRD_", "HF_"))}
    return kept | {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "COLUMNS": "100",
    }


def asrd(home: Path, *words: str, **more: str) -> str:
    """Return what a verb prints into a pipe."""
    done = subprocess.run(
        [sys.executable, "-m", "asrd", *words], cwd=ROOT, env=environment(home) | more, capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


def on_a_terminal(home: Path, *words: str, **more: str) -> str:
    """Return what a verb prints on a terminal of 100 columns, without its colours."""
    leader, follower = pty.openpty()
    around = environment(home) | {"TERM": "xterm"} | more
    process = subprocess.Popen(
        [sys.executable, "-m", "asrd", *words], cwd=ROOT, env=around, stdout=follower
    )
    os.close(follower)
    said = b""
    with contextlib.suppress(OSError):  # Linux reports the closed terminal as an error
        while part := os.read(leader, 65536):
            said += part
    os.close(leader)
    assert process.wait(timeout=60) == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", said.decode()).replace("\r\n", "\n")


def rows(text: str) -> dict[str, list[str]]:
    """Return the table's lines by their first word, the mark of the chosen one left out."""
    lines = [line.lstrip("> ").split() for line in text.splitlines() if line.strip()]
    return {words[0]: words for words in lines if words}


def test_models_lists_what_is_shipped_known_and_cached(tmp_path: Path) -> None:
    snapshot = tmp_path / "hf" / "hub" / "models--someone--own" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    shutil.copy(names.SHIPPED["demo-ctc"], snapshot / "own.nemo")
    found: list[dict[str, Any]] = json.loads(asrd(tmp_path, "models", "--json"))
    entries = {entry["name"]: entry for entry in found}
    assert set(entries) == {*names.SHIPPED, *architectures.ARCHITECTURES, "someone/own"}
    own = entries["someone/own"]
    assert own["exact"]
    assert own["path"] == str(snapshot / "own.nemo")
    assert own["bytes"] == names.SHIPPED["demo-ctc"].stat().st_size
    assert own["weights"] == entries["demo-ctc"]["weights"]
    assert set(own["weights"]) == set(STRATEGY_TABLE)
    assert not entries["nvidia/canary-1b"]["exact"]
    assert entries["nvidia/canary-1b"]["bytes"] == 0
    text = asrd(tmp_path, "models")
    assert rows(text)["parakeet-tdt-0.6b-v3"][1:3] == ["tdt", "~627.0"]
    assert rows(text)["someone/own"][1] == "ctc"
    assert max(map(len, text.splitlines())) <= 100


def test_a_damaged_file_in_the_cache_is_told_and_the_list_goes_on(tmp_path: Path) -> None:
    snapshot = tmp_path / "hf" / "hub" / "models--nvidia--canary-1b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    (snapshot / "canary-1b.nemo").write_bytes(names.SHIPPED["demo"].read_bytes()[:100_000])
    text = asrd(tmp_path, "models")
    assert "canary-1b.nemo is cut short" in " ".join(text.split())
    assert rows(text)["canary-1b-flash"][1] == "aed"


def test_plan_marks_what_is_chosen_and_says_why(tmp_path: Path) -> None:
    text = asrd(tmp_path, "plan", "--model", "canary-1b-flash", "--gpu", CARD)
    said = " ".join(text.split())
    assert next(line for line in text.splitlines() if line.startswith(">")).split()[1] == "bfloat16"
    assert "chosen: bfloat16 on cuda:0 - preset default on RTX A1000" in said
    assert "if it fails: tf32, fp32, fp32 on cpu" in said
    assert "hypothetical, not in this machine" in said
    assert "from the known parameter count, not from a file" in said
    assert "they do not shrink the weights" in said
    assert rows(text)["autocast-fp16"][3] == "100.0"
    assert rows(text)["half"][3] == "50.0"
    assert max(map(len, text.splitlines())) <= 100


def test_plan_says_what_does_not_fit_and_what_would(tmp_path: Path) -> None:
    said = " ".join(
        asrd(tmp_path, "plan", "--model", "canary-1b-flash", "--gpu", "Small:8.6:2").split()
    )
    assert "expected to hold: fp32 on cpu" in said
    assert "would fit on this card: int8" in said
    words = ["plan", "--model", "parakeet-tdt-0.6b-v3", "--gpu", CARD]
    said = " ".join(asrd(tmp_path, *words, ASRD_VRAM_BUDGET="2GiB").split())
    assert re.search(
        r"ruled out by budget: tf32 - would need \d+ MiB \(estimated\); vram_budget allows 2048 MiB",
        said,
    )
    assert "chosen: bfloat16 on cuda:0" in said
    assert "if it fails: fp32 on cpu" in said


def test_plan_says_what_the_hardware_rules_out(tmp_path: Path) -> None:
    text = asrd(
        tmp_path, "plan", "--model", "demo", "--strategy", "bfloat16", "--gpu", "GTX 1650:7.5:4"
    )
    said = " ".join(text.split())
    assert (
        "ruled out by hardware: bfloat16 - bfloat16 needs compute capability 8.0; GTX 1650 has 7.5"
        in said
    )
    assert "not on this card" in next(line for line in text.splitlines() if "autocast-bf16" in line)
    assert "not on this card" not in next(line for line in text.splitlines() if " half " in line)


def test_plan_reads_a_file_and_says_so(tmp_path: Path) -> None:
    text = asrd(tmp_path, "plan", "--model", str(names.SHIPPED["demo-ctc"]), "--device", "cpu")
    said = " ".join(text.split())
    assert f"read from {names.SHIPPED['demo-ctc']}" in said
    assert "Weights are exact" in said
    assert "chosen: fp32 on cpu" in said


def test_plan_tells_what_auto_measured_by_what_and_when_it_is_stale(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    words = ("plan", "--model", "demo-ctc", "--device", "cpu")
    said = " ".join(asrd(tmp_path, *words, XDG_STATE_HOME=state).split())
    assert "chosen: fp32 on cpu - device = cpu, so FP32 on the CPU; not measured: asrd tune" in said
    key = tuned.key_for(Settings(model="demo-ctc"), None)
    assert key is not None
    half = TunedStrategy(
        "bfloat16", "", "same", -0.11, (-0.36, 0.0), 0.32, 3, 429 << 20, "rss", 13.5, 0
    )
    full = TunedStrategy("fp32", "", "same", 0.0, (0.0, 0.0), 0.2, 0, 900 << 20, "rss", 14.4, 0)
    eight = TunedStrategy("int8", "needs more memory than FP32: 950 MiB against 900", "same", None, None, None, None,
                      None, "rss", None, 2)  # fmt: skip
    every = [eight, half, full]
    kept = TuningResult(
        key, "bfloat16", "measured here: cheap", every, "m.jsonl", 180, 1751, 720.0, "today", 0.5
    )
    file = tmp_path / "state" / "asrd" / "verdicts.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(msgspec.json.encode([kept]))
    text = asrd(tmp_path, *words, XDG_STATE_HOME=state)
    assert max(map(len, text.splitlines())) <= 100
    said = " ".join(text.split())
    assert "chosen: bfloat16 on cpu - measured here: cheap" in said
    assert "bfloat16 same -0.11 [-0.36, +0.00] +0.32 3 429 13.5 0 chosen" in said
    assert "int8 same - - - - - 2 refused" in said
    assert "int8: needs more memory than FP32: 950 MiB against 900" in said
    assert (
        "180 utterances, 1751 words, 12.0 minutes of m.jsonl; ms for a buffer of 10 s, memory: anonymous"
        in said
    )
    shown = on_a_terminal(tmp_path, *words, XDG_STATE_HOME=state)
    assert rows(shown)["bfloat16"] == rows(text)["bfloat16"], "nothing is folded at 100 columns"
    narrow = on_a_terminal(tmp_path, *words, XDG_STATE_HOME=state, COLUMNS="80").splitlines()
    [place] = [
        place for place, line in enumerate(narrow) if line.split()[:2] == ["bfloat16", "same"]
    ]
    assert " ".join(narrow[place].split()) == "bfloat16 same -0.11 +0.32 3 429 13.5 0 chosen"
    assert narrow[place + 1].strip() == "[-0.36, +0.00]"
    assert max(map(len, narrow)) <= 80
    found = json.loads(asrd(tmp_path, *words, "--json", XDG_STATE_HOME=state))
    assert found["evidence"]["chosen"] == "bfloat16"
    old = msgspec.structs.replace(kept, key=msgspec.structs.replace(key, torch="1.0"))
    file.write_bytes(msgspec.json.encode([old]))
    said = " ".join(asrd(tmp_path, *words, XDG_STATE_HOME=state).split())
    assert "chosen: fp32 on cpu" in said
    assert "not measured: asrd tune; what was measured is stale: torch was 1.0" in said
    assert "+0.32" not in said


def test_plan_leaves_out_cards_that_torch_cannot_use_and_says_why(
    tmp_path: Path, driver: Path
) -> None:
    more = {
        "LD_LIBRARY_PATH": str(driver),
        "FAKE_GPUS": TWO,
        "FAKE_CUDA": "9000",
    }  # for no torch that there is
    said = " ".join(asrd(tmp_path, "plan", "--model", "demo", **more).split())
    assert "no GPU can be used, so the plan is for the CPU" in said
    assert (
        "chosen: fp32 on cpu - no usable GPU, so FP32 on the CPU; not measured: asrd tune; torch"
        in said
    )
    assert re.search(r"(cannot use|knows 9.0 at most).*pip install", said)
    words = [sys.executable, "-m", "asrd", "plan", "--model", "demo", "--device", "cuda"]
    done = subprocess.run(
        words, cwd=ROOT, env=environment(tmp_path) | more, capture_output=True, text=True
    )
    assert done.returncode == 69
    assert "pip install" in done.stderr
    assert "cuda:0 Tesla T4" in asrd(tmp_path, "plan", "--model", "demo", "--device", "cpu", **more)
    assert "chosen: bfloat16 on cuda:0" in asrd(
        tmp_path, "plan", "--model", "demo", "--gpu", CARD, **more
    )


def test_plan_as_json_is_exact(tmp_path: Path) -> None:
    found = json.loads(asrd(tmp_path, "plan", "--model", "demo", "--json", "--gpu", CARD))
    assert found["chosen"] == "bfloat16"
    assert found["card"]["capability"] == [8, 6]
    assert [line["strategy"] for line in found["strategies"]] == list(STRATEGY_TABLE)
    for line in found["strategies"]:
        assert line["headroom"] == found["limit"] - line["process"]
        assert line["measured"] is None


def test_config_can_be_read_by_programs(tmp_path: Path) -> None:
    found = json.loads(asrd(tmp_path, "config", "--json", "--model", "demo-ctc", ASRD_WINDOW="8"))
    assert found["model"] == {"value": "demo-ctc", "from": "--model"}
    assert found["window"] == {"value": 8.0, "from": "ASRD_WINDOW"}
    assert found["strategy"]["from"] == "default"


def test_a_long_vocabulary_is_counted_and_only_programs_get_it_whole(tmp_path: Path) -> None:
    words = ",".join(f"name{n}" for n in range(400))
    assert "400 phrases, 'name0' the first" in asrd(tmp_path, "config", ASRD_VOCABULARY=words)
    assert (
        len(
            json.loads(asrd(tmp_path, "config", "--json", ASRD_VOCABULARY=words))["vocabulary"][
                "value"
            ]
        )
        == 400
    )


@pytest.mark.parametrize(
    "words", [["models"], ["plan", "--model", "demo", "--gpu", CARD], ["config"]]
)
def test_on_a_terminal_nothing_is_cut_off_and_nothing_runs_over(
    words: list[str], tmp_path: Path
) -> None:
    piped, shown = rows(asrd(tmp_path, *words)), on_a_terminal(tmp_path, *words)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 100
    for name in ("demo-ctc", "half-naive", "vram_budget"):
        if name in piped:
            assert rows(shown)[name] == piped[name]


@pytest.mark.parametrize(
    "words",
    ["models", "models --json", "plan --model canary-1b", "plan --json --model demo", "config"],
)
def test_neither_torch_nor_nemo_nor_numpy_is_imported(words: str, tmp_path: Path) -> None:
    program = (
        "import sys, contextlib, io\nfrom asrd.cli.main import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()): code = main({words.split()!r})\n"
        "print(code, [m for m in ('torch', 'nemo', 'numpy', 'lightning', 'soundfile') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "0 []"
