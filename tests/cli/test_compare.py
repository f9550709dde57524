"""The verb compare: the order of runs, failures, interruption, files and exit codes, against
engines and programs."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrd.cli import compare
from asrd.config.settings import Settings
from asrd.engine import baseline
from asrd.engine.engine import Engine
from asrd.errors import (
    ConfigError,
    DiskError,
    EngineError,
    ManifestError,
    ModelError,
    PrecisionError,
    UsageError,
)
from asrd.evaluation import components, runner
from asrd.evaluation.report import documents
from asrd.evaluation.report import page as report_page
from asrd.evaluation.report import table as report_table
from asrd.evaluation.results import Comparison
from asrd.models import checkpoint
from asrd.models.names import SHIPPED
from asrd.precision import gpus
from asrd.precision import strategies as precision_strategies
from asrd.precision.plan import Gpu
from asrd.precision.strategies import AUTO_PRESETS, STRATEGY_TABLE
from tests.fakes import engine as fake_engine
from tests.fakes.engine import MIB, Script
from tests.helpers import ROOT
from tests.sound import silence, tone
from tests.sound import speech as voice

TEXTS = [f"open the door number {i} now please" for i in range(30)]
LENGTHS = [16_000 + 100 * i for i in range(30)]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "gpus", list)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of thirty clips, each known by its length."""
    folder = tmp_path_factory.mktemp("speech")
    lines = []
    for i, (length, text) in enumerate(zip(LENGTHS, TEXTS, strict=True)):
        soundfile.write(folder / f"{i}.wav", tone(2.0)[:length], 16_000)
        lines.append(json.dumps({"audio_filepath": f"{i}.wav", "text": text}))
    (folder / "m.jsonl").write_text("\n".join(lines))
    return folder / "m.jsonl"


def script(**changes: object) -> Script:
    return Script(texts=dict(zip(LENGTHS, TEXTS, strict=True)), **changes)  # type: ignore[arg-type]


def spoiled(count: int) -> dict[int, str]:
    return {
        length: text.replace("door", "store")
        for length, text in list(zip(LENGTHS, TEXTS, strict=True))[:count]
    }


def arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    compare.compare_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def run(
    speech: Path, tmp_path: Path, acts: Script, *words: object, settings: Settings | None = None
) -> tuple[int, Comparison]:
    """Run the verb with --json and return its exit code and what the file says."""
    out = tmp_path / "out.json"
    args = arguments("--manifest", speech, "--json", out, "--repeats", 3, *words)
    code = compare.compare(args, settings or Settings(), acts.engine)
    return code, documents.from_json(out.read_bytes())


def test_fp32_runs_twice_first_and_once_more_at_the_end(speech: Path, tmp_path: Path) -> None:
    acts = script()
    code, result = run(speech, tmp_path, acts, "--strategies", "half,fp32,tf32,half")
    assert acts.started == ["fp32", "fp32", "half", "tf32", "fp32"]
    assert acts.stopped == acts.started
    assert [(row.strategy, row.role) for row in result.rows] == [
        ("fp32", "baseline"),
        ("fp32", "again"),
        ("half", "asked"),
        ("tf32", "asked"),
    ]
    assert code == 0
    assert not result.partial
    assert result.unfinished == []
    assert len(result.noise_floor.fp32_p50_ms) == 3


def test_every_clip_and_the_fixed_buffer_are_asked_of_each(speech: Path, tmp_path: Path) -> None:
    acts = script()
    run(speech, tmp_path, acts, "--strategies", "half")
    asked = [(length, phase) for name, length, phase in acts.requests if name == "half"]
    assert asked == [(160_000, "final")] * (runner.WARM_UP_BUFFERS + 3) + [
        (length, "final") for length in LENGTHS
    ]


def test_a_phased_strategy_is_heard_in_its_draft_phase_too(speech: Path, tmp_path: Path) -> None:
    acts = script()
    _, result = run(speech, tmp_path, acts, "--strategies", "phased")
    partial = [length for name, length, phase in acts.requests if phase == "partial"]
    assert partial == [160_000] * (runner.WARM_UP_BUFFERS + 3) + LENGTHS
    figures = result.rows[-1].partial_results
    assert figures is not None
    assert figures.latency_ms is not None
    assert figures.latency_ms.p50 == pytest.approx(50)


def test_rows_carry_what_the_worker_said_of_itself(speech: Path, tmp_path: Path) -> None:
    _, result = run(speech, tmp_path, script(steady={"half": 700 * MIB}), "--strategies", "half")
    row = result.rows[-1]
    assert row.effective == {"preprocessor": "float32", "encoder": "float16", "decoder": "float16"}
    assert list(row.ledger) == ["import", "load", "cast", "ready", "warm-up", "steady", "after"]
    assert row.ledger["steady"].process == 700 * MIB
    assert row.weights_bytes == 20 * MIB
    assert row.load_peak_over_weights == pytest.approx(2.0)
    assert row.rtfx == pytest.approx(sum(LENGTHS) / 16_000 / 3.0)
    assert (row.utterances, row.words, row.errors) == (30, 210, 0)
    assert result.device_name == "A CPU"
    assert result.versions["torch"] == "2.13.0"


def test_a_strategy_that_is_worse_makes_exit_code_3(speech: Path, tmp_path: Path) -> None:
    acts = script(heard={"half": spoiled(15)})
    code, result = run(
        speech, tmp_path, acts, "--strategies", "half,tf32", settings=Settings(max_wer_delta=2.0)
    )
    assert code == 3
    assert [(row.verdict, row.passed) for row in result.asked] == [("worse", False), ("same", True)]


def test_the_bound_is_the_flags_then_the_presets(speech: Path, tmp_path: Path) -> None:
    acts = script(heard={"half": spoiled(15)})
    code, result = run(
        speech, tmp_path, acts, "--strategies", "half", settings=Settings(max_wer_delta=20.0)
    )
    assert code == 0
    assert result.rows[-1].verdict == "worse"
    _, result = run(speech, tmp_path, script(), settings=Settings(preset="conservative"))
    assert {row.strategy for row in result.rows} == {"fp32", "tf32"}
    assert next(bound.limit for bound in result.criteria if bound.name == "wer_delta") == 0.0


def test_a_strategy_that_does_not_start_is_a_row_with_its_sentence(
    speech: Path, tmp_path: Path
) -> None:
    acts = script(broken={"half": EngineError("no kernel for float16")})
    code, result = run(speech, tmp_path, acts, "--strategies", "half,tf32")
    row = result.rows[2]
    assert (row.errors, row.passed, row.verdict) == (30, False, "undecided")
    assert row.failure == "unsupported: no kernel for float16"
    assert (code, result.rows[3].passed) == (3, True)


def test_a_worker_lost_on_the_way_ends_its_row_and_says_where(speech: Path, tmp_path: Path) -> None:
    _, result = run(
        speech, tmp_path, script(lost={"half": LENGTHS[9]}), "--strategies", "half,tf32"
    )
    row = result.rows[2]
    assert row.failure == "non-finite: the encoder's output is not finite at clip 10 of 30"
    assert (row.errors, row.utterances, row.wer) == (21, 9, None)
    assert row.latency_ms is not None


def test_a_clip_that_is_refused_is_one_error_and_the_rest_goes_on(
    speech: Path, tmp_path: Path
) -> None:
    _, result = run(speech, tmp_path, script(refused={"half": LENGTHS[9]}), "--strategies", "half")
    row = result.rows[-1]
    assert (row.errors, row.utterances) == (1, 29)
    assert row.wer == pytest.approx(100 * 7 / 210)
    assert row.failure == "line 10: this clip is too short to hear"


@pytest.mark.parametrize("error", [ModelError("no such model"), EngineError("nothing starts")])
def test_without_fp32_there_is_nothing_to_compare(
    speech: Path, tmp_path: Path, error: Exception
) -> None:
    with pytest.raises(type(error)):
        run(speech, tmp_path, script(broken={"fp32": error}), "--strategies", "half")
    assert not (tmp_path / "out.json").exists()


def test_ctrl_c_leaves_a_valid_partial_report(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    acts = script(interrupt=("tf32", LENGTHS[3]))
    page = tmp_path / "out.html"
    code, result = run(speech, tmp_path, acts, "--strategies", "half,tf32,int8", "--html", page)
    assert code == 130
    assert acts.stopped == acts.started == ["fp32", "fp32", "half", "tf32"]
    assert result.partial
    assert result.unfinished == ["tf32", "int8"]
    assert [row.strategy for row in result.rows] == ["fp32", "fp32", "half"]
    assert "interrupted" in page.read_text()
    assert "tf32, int8 not measured" in capsys.readouterr().out


def test_a_cancellation_that_the_engine_loses_is_heeded(speech: Path, tmp_path: Path) -> None:
    acts = script(interrupt=("half", LENGTHS[3]), swallow=True)
    code, result = run(speech, tmp_path, acts, "--strategies", "half,tf32")
    assert code == 143
    assert result.unfinished == ["half", "tf32"]
    assert acts.requests[-1] == ("half", LENGTHS[3], "final")


def test_ctrl_c_in_the_first_run_leaves_a_report_without_rows(speech: Path, tmp_path: Path) -> None:
    code, result = run(
        speech, tmp_path, script(interrupt=("fp32", 160_000)), "--html", tmp_path / "out.html"
    )
    assert (code, result.partial, result.rows) == (130, True, [])
    assert "partial" in (tmp_path / "out.html").read_text()


def test_each_complete_run_is_in_the_file_at_once(speech: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    acts, out = script(), tmp_path / "out.json"

    class Watching(Script):
        def engine(self, plan, start, *, on_progress=None):  # type: ignore[no-untyped-def]
            seen.append(len(documents.from_json(out.read_bytes()).rows) if out.exists() else 0)
            return super().engine(plan, start, on_progress=on_progress)

    run(speech, tmp_path, Watching(texts=acts.texts), "--strategies", "half,tf32")
    assert seen == [0, 1, 2, 3, 4]


def test_bad_lines_are_told_and_kept_in_the_report(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    worse = speech.with_name("worse.jsonl")
    worse.write_text(
        '{"audio_filepath": "none.wav", "text": "x"}\n' + speech.read_text() + "\nnot json\n"
    )
    _, result = run(worse, tmp_path, script(), "--strategies", "tf32")
    assert [one.line for one in result.manifest.skipped] == [1, 32]
    told = capsys.readouterr().err
    assert "line 1 is skipped" in told
    assert "line 32 is skipped" in told
    assert result.rows[-1].utterances == 30


def test_the_page_and_the_table_come_from_the_same_result(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _, result = run(
        speech, tmp_path, script(), "--strategies", "half", "--html", tmp_path / "out.html"
    )
    assert (tmp_path / "out.html").read_text() == report_page.html(result)
    assert report_table.table(result, 120) in capsys.readouterr().out


def test_a_disk_that_fills_up_costs_the_file_and_not_the_table(
    speech: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(compare, "_check_writable", lambda path: None)
    args = arguments(
        "--manifest", speech, "--json", "/dev/full", "--repeats", 2, "--strategies", "tf32"
    )
    with pytest.raises(DiskError, match="No space left"):
        compare.compare(args, Settings(), script().engine)
    assert "1 of 1 strategies meet every criterion" in capsys.readouterr().out


def test_a_reader_that_leaves_early_costs_neither_files_nor_what_is_kept(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: object, **more: object) -> str:
        raise BrokenPipeError

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(report_table, "table", gone)
    args = arguments(
        "--manifest",
        speech,
        "--html",
        tmp_path / "out.html",
        "--repeats",
        2,
        "--strategies",
        "tf32",
    )
    with pytest.raises(BrokenPipeError):
        compare.compare(args, Settings(), script().engine)
    assert "tf32" in (tmp_path / "out.html").read_text()
    assert baseline.find("demo", "cpu") is not None


def test_json_to_standard_output_is_only_json(
    speech: Path, capfdbinary: pytest.CaptureFixture
) -> None:
    args = arguments("--manifest", speech, "--json", "-", "--repeats", 2, "--strategies", "tf32")
    assert compare.compare(args, Settings(), script().engine) == 0
    assert documents.from_json(capfdbinary.readouterr().out).rows[-1].strategy == "tf32"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--strategies", "haf"], ConfigError),
        (["--strategies", ","], ConfigError),
        (["--repeats", "0"], UsageError),
        (["--limit", "0"], UsageError),
        (["--components", "bf17"], ConfigError),
        (["--manifest", "/nowhere/m.jsonl"], ManifestError),
        (["--html", "/nowhere/out.html"], DiskError),
        (["--html", "/"], DiskError),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    speech: Path, words: list[str], error: type[Exception]
) -> None:
    acts = script()
    with pytest.raises(error):
        compare.compare(arguments("--manifest", speech, *words), Settings(), acts.engine)
    assert acts.started == []


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        ("auto", "conservative, default, aggressive), or all"),
        ("aggresive", "did you mean 'aggressive'?"),
        ("fp32,defualt", "did you mean 'default'?"),
        ("al", "did you mean 'all'?"),
    ],
)
def test_a_wrong_strategy_is_told_what_may_stand_there(names: str, hint: str) -> None:
    with pytest.raises(ConfigError) as told:
        precision_strategies.select(names)
    assert hint in told.value.hint
    assert "auto" not in told.value.hint.replace("autocast", "")


def test_presets_and_all_may_stand_among_names() -> None:
    names = [one.name for one in precision_strategies.select("half, conservative,fp32")]
    assert names == ["half", *AUTO_PRESETS["conservative"].candidates]
    assert [one.name for one in precision_strategies.select("all")] == list(STRATEGY_TABLE)


def test_a_manifest_without_a_usable_line(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("nothing\n")
    with pytest.raises(ManifestError, match="no usable line"):
        compare.compare(arguments("--manifest", tmp_path / "m.jsonl"), Settings(), script().engine)


@pytest.mark.parametrize("text", ["", " ", "!"])
def test_a_manifest_without_a_word(speech: Path, text: str) -> None:
    mute = speech.with_name("mute.jsonl")
    mute.write_text(json.dumps({"audio_filepath": "0.wav", "text": text}))
    acts = script()
    with pytest.raises(ManifestError, match="has no reference text") as told:
        compare.compare(arguments("--manifest", mute), Settings(), acts.engine)
    assert (told.value.exit_code, acts.started) == (65, [])
    assert '"text"' in told.value.hint


def test_a_device_that_is_not_there(speech: Path) -> None:
    with pytest.raises(PrecisionError):
        compare.compare(arguments("--manifest", speech), Settings(device="cuda:7"), script().engine)


def test_a_precision_that_the_card_only_emulates_is_not_started(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "gpus", lambda: [Gpu(0, "Tesla T4", (7, 5), 16 << 30, 15 << 30)])
    acts = script()
    code, result = run(speech, tmp_path, acts, "--strategies", "bfloat16,half")
    assert acts.started == ["fp32", "fp32", "half", "fp32"]
    assert "only emulate" in result.rows[2].failure
    assert result.device == "cuda:0"
    assert code == 3


def test_parts_of_the_users_own_are_what_selective_means(speech: Path, tmp_path: Path) -> None:
    own = Settings(strategy="selective", parts={"encoder": "float16"})
    _, result = run(speech, tmp_path, script(), "--strategies", "selective", settings=own)
    assert result.rows[-1].requested == "float32 weights, encoder float16"


def test_a_clip_longer_than_the_window_is_heard_in_buffers_no_longer_than_it(
    tmp_path: Path,
) -> None:
    sound = np.concatenate([np.concatenate([voice(4.0, seed=i), silence(1.0)]) for i in range(5)])
    soundfile.write(tmp_path / "long.wav", sound, 16_000)
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio_filepath": "long.wav", "text": "x"}))
    acts = Script()
    run(tmp_path / "m.jsonl", tmp_path, acts, "--strategies", "fp32")
    lengths = [length for _, length, _ in acts.requests if length != 160_000]
    assert len(lengths) >= 4
    assert max(lengths) < 160_000
    assert sum(lengths) > 2 * 8 * 16_000, "most of each voice is heard, in both runs"


# -- component by component
# -------------------------------------------------------------------------------------------


def test_components_go_down_one_by_one_and_no_strategy_unless_named(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    acts = script(heard={"norms float16": spoiled(15)}, astray={"encoder bfloat16": 0.02})
    page = tmp_path / "out.html"
    settings = Settings(model="demo-ctc")
    code, result = run(
        speech,
        tmp_path,
        acts,
        "--components",
        "bfloat16,float16",
        "--html",
        page,
        settings=settings,
    )
    names = [
        one.precision.name
        for one in components.sweep(checkpoint.header(SHIPPED["demo-ctc"]), "bfloat16,float16")
    ]
    assert acts.started == ["fp32", "fp32", *names, "fp32"]
    assert code == 0, "a component is a price and not a failure"
    assert [row.strategy for row in result.components] == names
    rows = {row.strategy: row for row in result.components}
    assert rows["encoder bfloat16"].encoder_error == pytest.approx(0.02)
    assert rows["encoder float16"].encoder_error == 0.0
    assert rows["norms float16"].changed_ci is not None
    assert rows["norms float16"].changed_ci[0] > 0
    assert "beyond doubt: norms float16." in " ".join(capsys.readouterr().out.split())
    assert "One component at a time" in page.read_text()


def test_components_beside_strategies_are_all_measured(speech: Path, tmp_path: Path) -> None:
    acts = script(heard={"half": spoiled(15)}, broken={"output int8": EngineError("no torchao")})
    words = ("--components", "int8", "--strategies", "half")
    code, result = run(speech, tmp_path, acts, *words, settings=Settings(model="demo-ctc"))
    assert code == 3, "the strategy that was named is judged"
    assert [row.strategy for row in result.asked] == ["half"]
    failed = result.components[-1]
    assert (failed.strategy, failed.failure) == ("output int8", "unsupported: no torchao")


def test_without_components_no_encoder_output_is_asked_for(speech: Path, tmp_path: Path) -> None:
    _, result = run(speech, tmp_path, script(), "--strategies", "half")
    assert {row.encoder_error for row in result.rows} == {None}


def test_components_do_not_replace_what_is_known_of_strategies(
    speech: Path, tmp_path: Path
) -> None:
    settings = Settings(model="demo-ctc")
    run(speech, tmp_path, script(), "--strategies", "half", settings=settings)
    run(speech, tmp_path, script(), "--components", "int8", settings=settings)
    known = baseline.find("demo-ctc", "cpu")
    assert known is not None
    assert "half" in known.strategies


# -- what the daemon goes by
# ------------------------------------------------------------------------------------------


def test_a_tiny_comparison_replaces_none_that_knows_more_unless_that_is_asked_for(
    speech: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    run(speech, tmp_path, script(), "--strategies", "half,tf32")
    whole = baseline.find("demo", "cpu")
    assert whole is not None
    assert (list(whole.strategies), whole.utterances, whole.repeats) == (
        ["fp32", "half", "tf32"],
        30,
        3,
    )
    assert "keeps its baseline" not in capsys.readouterr().err
    for words in (["--strategies", "fp32"], ["--strategies", "half,tf32", "--limit", "1"]):
        run(speech, tmp_path, script(), *words)
        assert baseline.find("demo", "cpu") == whole
        said = f"keeps its baseline of {whole.measured} (3 strategies, 30 utterances, 3 repeats)"
        assert said in capsys.readouterr().err
    run(
        speech,
        tmp_path,
        script(broken={"tf32": EngineError("nothing")}),
        "--strategies",
        "half,tf32",
    )
    known = baseline.find("demo", "cpu")
    assert known is not None
    assert list(known.strategies) == ["fp32", "half"], "what failed was tried"
    run(speech, tmp_path, script(), "--strategies", "fp32", "--limit", "1", "--replace")
    known = baseline.find("demo", "cpu")
    assert known is not None
    assert (list(known.strategies), known.utterances) == (["fp32"], 1)


def test_another_model_file_replaces_what_is_known_of_the_last(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    own = Settings(model=str(tmp_path / "own.nemo"))
    for content, strategies in ((b"weights", "half,tf32"), (b"other weights", "half")):
        Path(own.model).write_bytes(content)
        run(speech, tmp_path, script(), "--strategies", strategies, settings=own)
    known = baseline.find(own.model, "cpu")
    assert known is not None
    assert list(known.strategies) == ["fp32", "half"]


# -- the verb as a program, over the real engine and a worker that misbehaves
# -----------------------------------------

PROGRAM = """
import functools, sys
from asrd.cli import compare, measuring
from asrd.config import settings
from asrd.engine import engine
from asrd.terminal import progress
from asrd.precision import gpus
from tests.fakes.worker import as_it_is
import argparse
gpus.gpus = list
progress.EVERY = 0.0
measuring.fetched = lambda model: None  # a script is no model, and has no file
hold = functools.partial(engine.Engine, command=(sys.executable, "-m", "tests.fakes.worker"), download=as_it_is)
parser = argparse.ArgumentParser()
compare.compare_arguments(parser)
raise SystemExit(compare.compare(parser.parse_args(sys.argv[2:]), settings.Settings(model=sys.argv[1]), hold))
"""


def start(speech: Path, tmp_path: Path, acts: str, *words: str) -> subprocess.Popen[str]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        acts,
        "--manifest",
        os.fspath(speech),
        "--repeats",
        "2",
    ]
    return subprocess.Popen(
        [*command, "--json", os.fspath(tmp_path / "out.json"), *words],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": os.fspath(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_workers_that_fail_each_in_their_way(speech: Path, tmp_path: Path) -> None:
    acts = "half=nan tf32=refuse bfloat16=die int8=die-loading"
    program = start(speech, tmp_path, acts, "--strategies", "half,tf32,bfloat16,int8,selective")
    _, told = program.communicate(timeout=120)
    assert program.returncode == 3, told
    rows = {
        row.strategy: row for row in documents.from_json((tmp_path / "out.json").read_bytes()).rows
    }
    assert rows["half"].failure == "non-finite: the encoder put out nan"
    assert rows["tf32"].failure == "unsupported: cannot do that here"
    assert rows["bfloat16"].failure.startswith("died: the worker ended with exit code 9")
    assert rows["int8"].failure.startswith("died: the worker ended with exit code 3")
    assert (rows["selective"].failure, rows["selective"].errors) == ("", 0)
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_worker_and_leaves_a_partial_report(
    speech: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    program = start(speech, tmp_path, "half=stall", "--strategies", "half,tf32")
    assert program.stderr is not None
    for line in program.stderr:
        if line.startswith("half (3/5) import"):
            break
    program.send_signal(number)
    shown, told = program.communicate(timeout=60)
    assert program.returncode == code, told
    assert "Traceback" not in told
    assert "half, tf32 not measured" in " ".join(shown.split())
    result = documents.from_json((tmp_path / "out.json").read_bytes())
    assert result.partial
    assert [row.role for row in result.rows] == ["baseline", "again"]
    assert list((tmp_path / "scratch").iterdir()) == [], (
        "the worker's scratch folder goes with the worker"
    )


def test_measure_can_be_cancelled_by_its_caller(speech: Path) -> None:
    async def go() -> None:
        acts = script()
        args = arguments("--manifest", speech)
        job = compare._spec(args, Settings(model="demo"), acts.engine)
        task = asyncio.create_task(runner.measure(job, runner.ComparisonState()))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())


def test_the_engine_that_stands_in_keeps_the_real_ones_shape() -> None:
    for method in ("start", "transcribe", "measure"):
        real = list(inspect.signature(getattr(Engine, method)).parameters)
        fake = list(inspect.signature(getattr(fake_engine.Engine, method)).parameters)
        assert fake == real, method
