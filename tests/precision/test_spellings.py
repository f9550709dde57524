"""What people call strategies, dtypes, devices and settings, at every place where they may write
it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from asrd.cli import main
from asrd.precision import spellings, strategies
from tests.helpers import have_own_folders

STRATEGIES = {
    "fp32": "fp32", "float32": "fp32", "FP32": "fp32", "32-true": "fp32", "single": "fp32", "torch.float32": "fp32",
    "fp16": "half", "float16": "half", "half": "half", "Half": "half", "16-true": "half", "torch.float16": "half",
    "bf16": "bfloat16", "BF16": "bfloat16", "bfloat16": "bfloat16", "bf16-true": "bfloat16", "BFloat16": "bfloat16",
    "16-mixed": "16-mixed", "fp16-mixed": "16-mixed", "16_mixed": "16-mixed", "bf16_mixed": "bf16-mixed",
    "half_naive": "half-naive", "autocast_fp16": "autocast-fp16", "autocast-float16": "autocast-fp16",
    "Autocast-BF16": "autocast-bf16", "amp-bf16": "autocast-bf16", "TF32": "tf32", "tf-32": "tf32",
    "Selective": "selective", "PHASED": "phased", "INT8": "int8", "8bit": "int8", "int-8": "int8", "Auto": "auto",
    "FP 16": "half", "float 16": "half", "float_16": "half", "16 bit": "half", "16-bit": "half", "16bit": "half",
    "FP-16": "half", "bf 16": "bfloat16", "BF-16": "bfloat16", "bfloat 16": "bfloat16", "FP 32": "fp32",
    "float-32": "fp32", "32 bit": "fp32", "full precision": "fp32", "TF 32": "tf32", "int 8": "int8", "8 bit": "int8",
    "16 mixed": "16-mixed", "bf16 mixed": "bf16-mixed", "half naive": "half-naive", "torch.bfloat16": "bfloat16",
}  # fmt: skip
"""What is written -> the strategy that is meant."""

DEVICES = {
    "GPU": "cuda", "gpu": "cuda", "CUDA": "cuda", "cuda0": "cuda:0", "gpu:1": "cuda:1", "GPU1": "cuda:1",
    "Cuda:2": "cuda:2", "CPU": "cpu", " cpu ": "cpu", "AUTO": "auto", "RTX A1000": "RTX A1000",
    "GPU-12ab": "GPU-12ab",
}  # fmt: skip


def disguised(seed: int = 15) -> list[tuple[str, str]]:
    """Return every spelling once more with other letters' case, spaces around it and `_` for `-`,
    seeded."""
    draw = random.Random(seed)
    found = []
    for word, meant in STRATEGIES.items():
        cased = "".join(draw.choice((char.lower(), char.upper())) for char in word)
        found.append(
            (
                " " * draw.randint(0, 2)
                + (cased.replace("-", "_") if draw.random() < 0.5 else cased),
                meant,
            )
        )
    return found


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    have_own_folders(tmp_path, monkeypatch)
    return tmp_path


def values(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """Return setting -> value as `asrd config` has them."""
    assert main.main(["config", "--json", *words]) == 0
    return {name: entry["value"] for name, entry in json.loads(capsys.readouterr().out).items()}


@pytest.mark.parametrize(("word", "meant"), [*STRATEGIES.items(), *disguised()])
def test_a_strategy_may_be_spelled_as_elsewhere_in_flags_variables_and_file(
    word: str,
    meant: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert values(capsys, "--strategy", word)["strategy"] == meant
    monkeypatch.setenv("ASRD_STRATEGY", word)
    assert values(capsys)["strategy"] == meant
    monkeypatch.delenv("ASRD_STRATEGY")
    (home / "c.toml").write_text(f"strategy = {json.dumps(word)}")
    assert values(capsys, "--config", str(home / "c.toml"))["strategy"] == meant


@pytest.mark.parametrize(("word", "meant"), [pair for pair in disguised(16) if pair[1] != "auto"])
def test_a_comparison_and_a_running_daemon_take_the_same_spellings(word: str, meant: str) -> None:
    assert [one.name for one in strategies.select(f"fp32,{word}")] == list(
        dict.fromkeys(["fp32", meant])
    )
    assert strategies.canonical(word) == meant, "as the daemon reads asrd use"
    assert strategies.find(word).name == meant


@pytest.mark.parametrize(("word", "meant"), DEVICES.items())
def test_a_device_may_be_called_gpu(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert values(capsys, "--device", word)["device"] == meant


def test_dtypes_of_parts_and_of_the_older_spelling_have_short_names_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert strategies.with_parts({"encoder": "fp16", "joint": "BF16"}).parts == {
        "encoder": "float16", "joint": "bfloat16"
    }  # fmt: skip
    monkeypatch.setenv("ASRD_AUTOCAST_DTYPE", "bf16")
    assert values(capsys)["strategy"] == "autocast-bf16"


def test_every_name_spells_itself_and_no_spelling_means_two() -> None:
    every = [word for words in spellings.STRATEGY_SPELLINGS.values() for word in words]
    assert len(every) == len(set(every))
    assert not set(every) & set(strategies.STRATEGY_TABLE)
    assert {strategies.canonical(name) for name in strategies.STRATEGY_TABLE} == set(
        strategies.STRATEGY_TABLE
    )


WRONG = {
    "fp17": "did you mean", "halff": "'half'", "bflot16": "'bfloat16'", "int9": "'int8'", "slective": "'selective'",
    "phase": "'phased'", "nonsense": "asrd plan lists them all", "autocast": "did you mean", "tf23": "'tf32'",
    "mixed": "did you mean",
}  # fmt: skip
DOORS = (
    ("flag", lambda word: (["plan", "--strategy", word], {})),
    ("variable", lambda word: (["plan"], {"ASRD_STRATEGY": word})),
    ("compare", lambda word: (["compare", "--strategies", word], {})),
)


@pytest.mark.parametrize(("word", "hint"), WRONG.items())
@pytest.mark.parametrize(("name", "door"), DOORS)
def test_a_wrong_strategy_has_one_exit_code_and_a_short_hint(
    word: str,
    hint: str,
    name: str,
    door: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, environment = door(word)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert main.main(words) == 78, name
    said = capsys.readouterr().err
    assert hint in said
    assert "demo is used" not in said
    assert said.count("'") <= 6
