"""The GPU bench: its models are as large as the checkpoints and speak at a speaker's pace; its
tables tell no more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from asrd.audio.format import SAMPLE_RATE
from asrd.evaluation import manifest
from asrd.models.architectures import ARCHITECTURES, Architecture, describe
from asrd.models.tensors import is_buffer
from asrd.precision.memory import Memory
from asrd.precision.strategies import STRATEGY_TABLE
from tools.gpubench import __main__ as bench
from tools.gpubench import architectures, cells, measuring, tables
from tools.gpubench.cells import Cell, Found, Result, Times

SMALL = {
    "aed": Architecture(
        "aed", "en", 2, 64, vocabulary=256, decoder_width=64, inner=128, channels=32, heads=4
    ),
    "tdt": Architecture(
        "tdt", "en", 2, 64, vocabulary=128, decoder_width=32, durations=5, channels=32, heads=4
    ),
    "ctc": Architecture("ctc", "en", 2, 64, vocabulary=128, channels=32, heads=4),
}
"""Architectures of the same kinds, of which a test can afford to run one."""


@pytest.mark.parametrize("name", architectures.NAMES)
def test_a_random_model_has_as_many_parameters_as_the_checkpoint(name: str, tmp_path: Path) -> None:
    hub = architectures.NAMES[name]
    model = architectures.empty(ARCHITECTURES[hub], tmp_path)
    expected = {
        "canary-1b-flash": 883.6, "canary-1b": 1016.7, "canary-180m-flash": 182.6, "parakeet-tdt-0.6b-v3": 627.0,
        "parakeet-ctc-1.1b": 1062.5,
    }  # fmt: skip
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e6, 1) == expected[name]
    told = {n: t.elements for n, t in describe(hub).unique.items() if not is_buffer(n)}
    assert count == sum(told.values())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return paths of small random models by family."""
    folder = tmp_path_factory.mktemp("small")
    paths = {}
    with pytest.MonkeyPatch.context() as patch:
        for family, known in SMALL.items():
            patch.setitem(ARCHITECTURES, f"test/{family}", known)
            patch.setitem(architectures.NAMES, family, f"test/{family}")
            paths[family] = str(architectures.build(family, folder / f"{family}.nemo"))
    return paths


def sounds() -> measuring.Sounds:
    clips, _ = manifest.read(bench.MANIFEST, 3)
    buffers = {
        seconds: manifest.joined(clips, int(seconds * SAMPLE_RATE)) for seconds in cells.LENGTHS
    }
    return measuring.Sounds([clip.samples for clip in clips], buffers)


def run(paths: dict[str, str], *wanted: Cell) -> list[Found]:
    """Measure cells on the CPU, with few repeats, at once."""
    repeats = measuring.Repeats(timed=2, batches=2, growth=10, marks=5)

    async def all_of_them() -> list[Found]:
        one = measuring.Bench("cpu", paths, sounds(), repeats, spares=1)
        try:
            return await asyncio.gather(*(one.measure(cell, 0) for cell in wanted))
        finally:
            await one.close()

    return asyncio.run(all_of_them())


def test_canary_says_forty_tokens_in_ten_seconds_and_the_card_is_one_worker_s_at_a_time(
    small: dict[str, str],
) -> None:
    found, lower = run(small, Cell("aed", "fp32"), Cell("aed", "bfloat16"))
    assert found.failure == lower.failure == ""
    assert found.times["10"].tokens == lower.times["10"].tokens == [architectures.TOKENS] * 2
    assert lower.weights < 0.6 * found.weights
    assert {
        "import",
        "load",
        "cast",
        "ready",
        "warm-up",
        "steady",
        "batches",
    } <= found.ledger.keys()
    assert list(found.batches) == [str(size) for size in cells.BATCHES]
    assert all(len(took) == 2 and took[0] > 0 for took in found.batches.values())
    assert all(found.alike.values())
    assert found.mismatch == lower.mismatch == ""


def test_a_transducer_says_something_in_half_of_its_steps_and_growth_is_read_on_the_way(
    small: dict[str, str],
) -> None:
    found, growing = run(small, Cell("tdt", "fp32"), Cell("ctc", "fp32", "growth"))
    assert 20 <= found.times["10"].tokens[0] <= 80
    assert [count for count, _ in growing.growth] == [2, 4, 6, 8, 10]
    assert not growing.times


def test_nemo_by_itself_says_what_asrd_says(small: dict[str, str]) -> None:
    ours, theirs = run(small, Cell("aed", "fp32"), Cell("aed", "fp32", "nemo"))
    assert theirs.failure == ""
    assert theirs.text.strip() == ours.text != ""
    assert theirs.parameters == ours.parameters
    assert theirs.times["10"].tokens[0] in (
        architectures.TOKENS,
        architectures.TOKENS + 1,
    )  # the end counts or not
    assert set(theirs.peaks) >= {"preprocessor", "encoder", "transf_decoder"}


def test_a_shipped_model_s_words_are_heard_clip_by_clip() -> None:
    [found] = run({"demo-ctc": "demo-ctc"}, Cell("demo-ctc", "fp32", "words"))
    assert found.texts[0] == "remind me to open a teacher before i start my meeting"
    assert len(found.texts) == 3
    assert not found.times


def test_a_worker_that_cannot_load_is_a_result_too(tmp_path: Path) -> None:
    broken = tmp_path / "broken.nemo"
    broken.write_bytes(b"no archive")
    [found] = run({"ctc": str(broken)}, Cell("ctc", "fp32"))
    assert found.failure.startswith("model: ")


# -- results
# ----------------------------------------------------------------------------------------------------------

MIB = 1 << 20


def shown(
    strategy: str,
    weights: int,
    process: int,
    ms: float,
    model: str = "canary-1b",
    kind: cells.Kind = "strategy",
) -> Found:
    """Return a cell's results, made up."""
    found = Found(Cell(model, strategy, kind), weights=weights * MIB, parameters=weights * MIB // 4)
    memory = Memory(weights * MIB, weights * MIB, weights * MIB, process * MIB, None, "nvml")
    found.ledger = {"cast": memory, "steady": memory}
    found.load_peak = memory
    found.times = {"10": Times([ms / 1000] * 3, [ms / 2000] * 3, [ms / 1000] * 3, [40] * 3)}
    found.batches = {"1": [ms / 1000], "8": [ms / 500], "32": [ms / 250]}
    return found


def result(*found: Found) -> Result:
    named = {one.cell.name: one for one in found}
    return Result(
        {"gpu": "A card"}, {"torch": "2"}, "tools/gpu-bench", "now", ["hello there"], 1.0, named
    )


def test_the_claims_stand_beside_what_was_measured() -> None:
    made = result(
        shown("fp32", 4000, 4600, 30.0), shown("half", 2000, 2600, 15.0), shown("tf32", 4000, 4600, 20.0),
        shown("half", 2000, 2600, 33.0, kind="eager"), shown("fp32", 4000, 4600, 30.0, kind="eager"),
    )  # fmt: skip
    said = tables.claims(made)
    assert "weights 3.91 -> 1.95 GiB, process 4.49 -> 2.54 GiB, 0.57 of FP32's" in said
    assert "of FP32: canary-1b 0.50 (eager 1.10)" in said
    assert "faster by: canary-1b 1.50x" in said
    assert said.count(tables.NOT_YET) == 3  # WER, bfloat16's speed, bfloat16's memory


def test_what_was_not_measured_says_so() -> None:
    assert tables.claims(None).count(tables.NOT_YET) == len(tables.CLAIMS)


def test_a_table_has_words_where_words_were_heard_and_a_failure_in_its_row() -> None:
    fp32, half = (shown(name, 16, 600, 10.0, "demo", "words") for name in ("fp32", "half"))
    fp32.texts, half.texts = ["hello there"], ["hello where"]
    broken = Found(Cell("demo", "int8", "words"), failure="unsupported: int8 needs torchao")
    said = tables.text(result(fp32, half, broken))
    assert "unsupported: int8 needs torchao" in said
    row = next(line for line in said.splitlines() if line.startswith("half"))
    assert row.split()[-3:] == ["50.00", "+50.00", "50.0"]
    assert "0.12" in row  # a token: half of 10 ms over 40


def asked(made: Result, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[Cell]:
    """Return what the bench would measure beside what was `made`; nothing is."""
    found: list[Cell] = []

    async def run(args: object, todo: list[Cell], result: Result) -> None:
        found.extend(todo)

    monkeypatch.setattr(bench, "_run", run)
    monkeypatch.setattr(bench, "_result", lambda args: made)
    monkeypatch.setattr("sys.argv", ["gpu-bench", *words])
    assert bench.main() == (3 if found else 0)
    return found


def test_what_was_heard_by_an_earlier_file_says_so_and_is_heard_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = (shown("fp32", 16, 600, 10.0, model, "words") for model in ("demo", "demo-ctc"))
    one.checkpoint, other.checkpoint = cells.digest("demo"), "0123456789ab"
    made = result(one, other)
    said = tables.strategies(made)
    assert "demo, 4.2 M parameters\n" in said
    assert "demo-ctc, 4.2 M parameters, of an earlier file" in said
    todo = asked(
        made, monkeypatch, "--models", "demo,demo-ctc", "--strategies", "fp32", "--cells", "words"
    )
    assert Cell("demo-ctc", "fp32", "words") in todo
    assert Cell("demo", "fp32", "words") not in todo


def test_what_was_measured_of_another_program_stands_until_it_is_asked_for_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = (
        shown(strategy, 16, 600, 10.0, "parakeet-ctc-1.1b") for strategy in ("fp32", "half")
    )
    one.code, other.code = bench._digest(), "0123456789ab"
    words = ["--models", "parakeet-ctc-1.1b", "--strategies", "fp32,half", "--cells", "strategy"]
    assert Cell("parakeet-ctc-1.1b", "half") not in asked(result(one, other), monkeypatch, *words)
    again = asked(result(one, other), monkeypatch, *words, "--rerun")
    assert Cell("parakeet-ctc-1.1b", "half") in again
    assert Cell("parakeet-ctc-1.1b", "fp32") not in again


def test_the_first_cells_are_the_most_telling_and_none_comes_twice() -> None:
    found = cells.cells(list(bench.MODELS), None)
    assert len(found) == len(set(found))
    whole = {
        cell.strategy
        for cell in found
        if (cell.model, cell.kind) == ("canary-1b-flash", "strategy")
    }
    assert whole >= set(STRATEGY_TABLE)
    assert found[0] == Cell("demo", "fp32", "words")
    assert next(cell for cell in found if cell.kind == "strategy") == Cell(
        "canary-1b-flash", "fp32"
    )
    assert {cell.kind for cell in found} == set(get_args(cells.Kind))


def test_the_command_that_is_kept_has_no_path_of_one_machine() -> None:
    told = bench._told(
        ["--json", "/srv/out/gpu.json", "--folder=/tmp/m", "--minutes", "5", "--models", "demo"]
    )
    assert told == ["--minutes", "5", "--models", "demo"]


def test_results_go_on_where_they_were_stopped_and_are_of_one_machine(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    cells.write(path, result(shown("fp32", 4, 8, 1.0)))
    kept = cells.read(path)
    assert kept is not None
    assert kept.cells["canary-1b fp32"].cell == Cell("canary-1b", "fp32")
    other = msgspec.structs.replace(kept, machine={"gpu": "Another"})
    assert other.key != kept.key
    assert cells.read(tmp_path / "none.json") is None
