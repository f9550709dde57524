"""The verb tune over real workers that stand for models: what is taken, refused, kept, interrupted
and taken up."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile

from asrd import paths
from asrd.cli import tune
from asrd.config.settings import Settings
from asrd.engine import baseline, planner, tuned
from asrd.errors import DiskError, ManifestError, ModelError, UsageError
from asrd.evaluation import tuning
from asrd.precision import gpus
from asrd.precision.plan import Gpu
from asrd.recordings.store import RecordingStore, folder
from tests.daemon.test_daemon import Start, daemon  # noqa: F401  (a fixture)
from tests.fakes.engine import MIB, Script
from tests.helpers import ROOT

WORDS = (
    "open",
    "the",
    "door",
    "of",
    "our",
    "house",
    "and",
    "look",
    "at",
    "every",
    "green",
    "tree",
    "now",
    "please",
)
COUNT = 100
LENGTHS = [4000 + place for place in range(COUNT)]

PROGRAM = """
import argparse, functools, sys
from asrd.cli import main
from asrd.config import settings
from asrd.engine import engine
from asrd.terminal import progress
from asrd.cli import tune
from asrd.precision import gpus
from tests.fakes.worker import as_it_is
gpus.gpus = list
progress.EVERY = 0.0
main._log(False)
hold = functools.partial(engine.Engine, command=(sys.executable, "-m", "tests.fakes.worker"), download=as_it_is)
parser = argparse.ArgumentParser()
tune.tune_arguments(parser)
settings = settings.Settings(model=sys.argv[1], socket=sys.argv[2], device="cpu")
raise SystemExit(tune.tune(parser.parse_args(sys.argv[3:]), settings, hold))
"""


class Bench:
    """A model file, speech, and a state folder of its own; the workers know each clip by its
    length."""

    def __init__(self, folder: Path, count: int = COUNT, length: int = 20) -> None:
        self.folder = folder
        self.state = folder / "state"
        draw = random.Random("speech")
        self.model = folder / "own.nemo"
        self.model.write_bytes(b"weights")
        said = [" ".join(draw.choice(WORDS) for _ in range(length)) for _ in range(count)]
        heard = [
            " ".join("wrong" if draw.random() < 0.027 else word for word in text.split())
            for text in said
        ]
        (folder / "texts.json").write_text(json.dumps(dict(zip(LENGTHS, heard, strict=False))))
        self.manifest = folder / "m.jsonl"
        sound = np.linspace(-0.1, 0.1, max(LENGTHS), dtype=np.float32)
        for place in range(count):
            soundfile.write(folder / f"{place}.wav", sound[: LENGTHS[place]], 16_000)
        lines = [
            {"audio_filepath": f"{place}.wav", "text": text} for place, text in enumerate(said)
        ]
        self.manifest.write_text("\n".join(map(json.dumps, lines)))
        self.settings = Settings(model=str(self.model), socket=str(folder / "asrd.sock"))

    def start(self, acts: str, *words: str) -> subprocess.Popen[str]:
        scratch = self.folder / "scratch"
        scratch.mkdir(exist_ok=True)
        more = {
            "FAKE_WORKER_ACTS": acts, "FAKE_WORKER_TEXTS": str(self.folder / "texts.json"), "TMPDIR": str(scratch),
            "XDG_STATE_HOME": str(self.state),
        }  # fmt: skip
        source = [] if "--recordings" in words else ["--manifest", str(self.manifest)]
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, self.model, self.settings.socket, "--repeats", "2", *source, *words],
            cwd=ROOT, env={**os.environ, **more}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, acts: str, *words: str) -> tuple[str, str]:
        """Return what it prints and what it says beside."""
        program = self.start(acts, *words)
        shown, told = program.communicate(timeout=120)
        assert program.returncode == 0, told
        return shown, told


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(gpus, "gpus", list)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Bench(tmp_path)


def kept(bench: Bench) -> tuned.TuningResult:
    record, stale = tuned.find(bench.settings, None)
    assert record is not None
    assert stale == ""
    return record


def of(record: tuned.TuningResult, name: str) -> tuned.TunedStrategy:
    return next(one for one in record.candidates if one.strategy == name)


def arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    tune.tune_arguments(parser)
    return parser.parse_args([str(word) for word in words])


# -- as a program, over real workers
# ----------------------------------------------------------------------------------


def test_a_candidate_that_hears_the_same_is_taken_and_the_next_plan_starts_on_it(
    bench: Bench,
) -> None:
    shown, told = bench.run("")
    record = kept(bench)
    assert record.chosen == "bfloat16"
    assert of(record, "fp32").verdict == of(record, "bfloat16").verdict == "same"
    assert [of(record, name).memory for name in ("bfloat16", "fp32")] == [450 * MIB, 900 * MIB]
    assert (record.utterances, record.words, record.speech) == (
        COUNT,
        20 * COUNT,
        str(bench.manifest),
    )
    assert "auto uses bfloat16" in shown
    assert "bfloat16 (3/4) starting" in told
    assert "fp32 latency again (4/4) starting" in told
    made = planner.plan_for(bench.settings)
    assert [candidate.name for candidate in made.candidates] == ["bfloat16 on cpu", "fp32 on cpu"]
    assert not (bench.state / "asrd" / "tuning.json").exists()
    assert (bench.state / "asrd" / "baselines.json").exists()


@pytest.mark.parametrize("seed", range(4))
def test_a_candidate_that_is_half_a_point_worse_is_refused(bench: Bench, seed: int) -> None:
    shown, _ = bench.run(f"bfloat16=spoil:0.5:{seed}")
    record = kept(bench)
    assert record.chosen == "fp32"
    assert of(record, "bfloat16").most > 0.5  # type: ignore[operator]
    assert "the limit is 0.50" in of(record, "bfloat16").refused
    assert "auto uses fp32" in shown
    assert planner.plan_for(bench.settings).candidates[0].name == "fp32 on cpu"


def test_the_same_price_is_taken_where_the_settings_allow_it(bench: Bench) -> None:
    shown, _ = bench.run("bfloat16=spoil:0.5:1")
    assert "refused" in shown
    program = PROGRAM.replace('device="cpu"', 'device="cpu", max_wer_delta=2.0')
    done = subprocess.run(
        [sys.executable, "-c", program, bench.model, bench.settings.socket, "--manifest", bench.manifest, "--json"],
        cwd=ROOT, capture_output=True, check=True, timeout=120,
        env={**os.environ, "FAKE_WORKER_ACTS": "bfloat16=spoil:0.5:1",
             "FAKE_WORKER_TEXTS": str(bench.folder / "texts.json")},
    )  # fmt: skip
    assert msgspec.json.decode(done.stdout, type=tuned.TuningResult).chosen == "bfloat16"
    assert kept(bench).chosen == "fp32", "the stricter verdict stands beside it"


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ("nan", "non-finite"),
        ("die", "exit code 9"),
        ("refuse", "cannot do that"),
        ("die-loading", "exit code 3"),
    ],
)
def test_a_candidate_whose_worker_fails_is_refused_with_its_sentence(
    bench: Bench, act: str, said: str
) -> None:
    bench.run(f"bfloat16={act}")
    assert kept(bench).chosen == "fp32"
    assert said in of(kept(bench), "bfloat16").refused


def test_too_little_speech_decides_nothing_and_says_how_much_is_missing(bench: Bench) -> None:
    shown, _ = bench.run("", "--limit", "25")
    assert kept(bench).chosen == "fp32"
    assert "undecided" in of(kept(bench), "bfloat16").refused
    said = " ".join(shown.split())
    assert "The 500 words there are do not decide bfloat16: about 2" in said
    assert "in a --manifest of your own or as kept --recordings" in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_was_measured_before_an_interruption_stays_and_is_taken_up(
    bench: Bench, number: signal.Signals, code: int
) -> None:
    program = bench.start("bfloat16=stall")
    assert program.stderr is not None
    for line in program.stderr:
        if line.startswith("bfloat16 (3/4) import"):
            break
    program.send_signal(number)
    _, told = program.communicate(timeout=60)
    assert program.returncode == code, told
    assert "interrupted after 2 of 4 runs; asrd tune continues from there" in told
    assert "Traceback" not in told
    assert tuned.find(bench.settings, None) == (None, "")
    assert list((bench.folder / "scratch").iterdir()) == []
    _, told = bench.run("")
    assert "2 of 4 runs were measured before and are reused" in told
    assert "fp32 (1/4)" not in told
    assert "bfloat16 (3/4) starting" in told
    assert kept(bench).chosen == "bfloat16"


def test_a_second_one_beside_the_first_is_told_to_wait(bench: Bench) -> None:
    program = bench.start("bfloat16=stall")
    assert program.stderr is not None
    for line in program.stderr:
        if line.startswith("bfloat16 (3/4) import"):
            break
    acts = script(bench)
    with pytest.raises(tuning.TuneRunningError, match="another asrd tune is running") as told:
        tune.tune(
            arguments("--manifest", bench.manifest, "--repeats", 2), bench.settings, acts.engine
        )
    assert (told.value.exit_code, acts.started) == (75, [])
    program.send_signal(signal.SIGINT)
    program.communicate(timeout=60)
    assert program.returncode == 130
    assert (
        tune.tune(
            arguments("--manifest", bench.manifest, "--repeats", 2), bench.settings, acts.engine
        )
        == 0
    )


def test_kept_takes_are_held_against_fp32_and_nobody_wrote_down_what_was_said(bench: Bench) -> None:
    spool = RecordingStore(folder(), "always")
    for length in LENGTHS:
        take = spool.begin()
        take.append(np.linspace(-0.1, 0.1, length, dtype=np.float32))
        spool.finish_delivered(take, "what it was heard as")
    shown, _ = bench.run("bfloat16=spoil:2:1", "--recordings")
    record = kept(bench)
    assert (record.speech, record.utterances, record.words) == (
        tuned.KEPT_RECORDINGS,
        COUNT,
        20 * COUNT,
    )
    assert (record.chosen, of(record, "bfloat16").verdict) == ("fp32", "differs")
    assert "words in 100 other than FP32's" in of(record, "bfloat16").refused
    assert "WER" not in shown
    assert "differs [95 %]" in shown
    bench.run("", "--recordings")
    assert kept(bench).chosen == "bfloat16"
    texts = json.loads((bench.folder / "texts.json").read_text())
    for file in (bench.state / "asrd").glob("*.json"):
        assert not any(text in file.read_text() for text in texts.values()), file


# -- in this process, over an engine that stands in
# -------------------------------------------------------------------


def script(bench: Bench, **changes: Any) -> Script:
    texts = json.loads((bench.folder / "texts.json").read_text())
    return Script(texts={int(length): text for length, text in texts.items()}, **changes)


def full(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have files of these names find no room."""
    whole = paths.write_whole

    def write(path: Path, data: bytes) -> None:
        if path.name in names:
            raise OSError(28, "No space left on device")
        whole(path, data)

    monkeypatch.setattr(paths, "write_whole", write)


def test_figures_of_a_comparison_that_knows_more_stay(bench: Bench) -> None:
    more = {
        name: baseline.BaselineFigures(1, "rss", 1.0, 1.0, None)
        for name in ("fp32", "bfloat16", "int8")
    }
    for known, stays in ((more, True), ({"fp32": more["fp32"]}, False)):
        baseline.keep(bench.settings.model, "cpu", baseline.Baseline("before", known))
        tune.tune(
            arguments("--manifest", bench.manifest, "--repeats", 2),
            bench.settings,
            script(bench).engine,
        )
        found = baseline.find(bench.settings.model, "cpu")
        assert found is not None
        assert (found.measured == "before") is stays


def test_a_verdict_on_far_fewer_words_says_what_it_takes_the_place_of(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[object] = ["--manifest", bench.manifest, "--repeats", 2]
    acts = script(bench, steady={"bfloat16": 400 * MIB})
    for more, said in (([], False), (["--limit", 60], False), (["--limit", 20], True)):
        tune.tune(arguments(*words, *more), bench.settings, acts.engine)
        told = "rests on 400 words and replaces one that rested on 1200 and chose bfloat16"
        assert (told in capsys.readouterr().err) is said
    assert kept(bench).words == 400


@pytest.mark.parametrize(
    "change", ["nothing", "speech", "model", "repeats", "age", "anew", "damage", "a byte"]
)
def test_what_was_measured_of_something_else_is_not_taken_up(bench: Bench, change: str) -> None:
    begun = bench.state / "asrd" / "tuning.json"
    words: list[object] = ["--manifest", bench.manifest, "--repeats", 2]
    assert (
        tune.tune(
            arguments(*words),
            bench.settings,
            script(bench, interrupt=("bfloat16", LENGTHS[3])).engine,
        )
        == 130
    )
    if change == "speech":
        bench.manifest.write_text(bench.manifest.read_text().replace("door", "store", 1))
    elif change == "model":
        bench.model.write_bytes(b"other weights")
    elif change == "repeats":
        words[-1] = 3
    elif change == "age":
        held = json.loads(begun.read_bytes())
        begun.write_text(json.dumps(held | {"at": held["at"] - tuning.RESUMABLE_SECONDS - 1}))
    elif change == "anew":
        words.append("--rerun")
    elif change == "damage":
        begun.write_bytes(begun.read_bytes()[:100])
    elif change == "a byte":
        begun.write_bytes(begun.read_bytes().replace(b"fp32", b"fp\xff2", 1))
    acts = script(bench)
    assert tune.tune(arguments(*words), bench.settings, acts.engine) == 0
    before = [] if change == "nothing" else ["fp32", "fp32"]
    assert acts.started == [*before, "bfloat16", "fp32"]


def test_json_is_the_verdict_and_nothing_else(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    args = arguments("--manifest", bench.manifest, "--repeats", 2, "--json")
    assert (
        tune.tune(args, bench.settings, script(bench, steady={"bfloat16": 400 * MIB}).engine) == 0
    )
    assert msgspec.json.decode(capfd.readouterr().out, type=tuned.TuningResult) == kept(bench)
    assert kept(bench).chosen == "bfloat16"


def test_another_strategy_in_the_settings_does_not_hinder_and_is_said(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments("--manifest", bench.manifest, "--repeats", 2)
    acts = script(bench)
    tune.tune(args, msgspec.structs.replace(bench.settings, strategy="half"), acts.engine)
    assert acts.started == ["fp32", "fp32", "bfloat16", "fp32"]
    assert "asrd: strategy is half, so auto is not used" in capsys.readouterr().err
    tune.tune(args, bench.settings, acts.engine)
    assert "not in force" not in capsys.readouterr().err


def test_on_a_card_the_budget_decides_by_what_was_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Gpu(0, "Tesla T4", (7, 5), 16 << 30, 15 << 30, "580.1")
    monkeypatch.setattr(gpus, "gpus", lambda: [card])
    acts = script(bench, steady={"half": 600 * MIB, "selective": 500 * MIB, "int8": 300 * MIB})
    settings = msgspec.structs.replace(bench.settings, preset="aggressive", vram_budget="500MiB")
    tune.tune(arguments("--manifest", bench.manifest, "--repeats", 2), settings, acts.engine)
    record, stale = tuned.find(settings, card)
    assert record is not None
    assert (record.key.device, record.key.driver, record.key.budget, stale) == (
        "Tesla T4",
        "580.1",
        "500MiB",
        "",
    )
    assert acts.started == ["fp32", "fp32", "half", "fp32"], "the rest needs another card"
    assert "only emulate" in of(record, "bfloat16").refused
    assert of(record, "half").refused == "needs 600 MiB; vram_budget allows 500 MiB"
    assert record.chosen == "fp32"


def test_where_there_is_no_choice_nothing_is_measured(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    acts = script(bench)
    strict = msgspec.structs.replace(bench.settings, preset="conservative")
    assert tune.tune(arguments("--manifest", bench.manifest), strict, acts.engine) == 0
    assert acts.started == []
    assert "nothing to measure: preset conservative leaves only FP32" in capsys.readouterr().out


def test_where_there_is_no_choice_json_is_null(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = msgspec.structs.replace(bench.settings, preset="conservative")
    assert (
        tune.tune(arguments("--manifest", bench.manifest, "--json"), strict, script(bench).engine)
        == 0
    )
    shown, told = capsys.readouterr()
    assert json.loads(shown) is None
    assert "asrd: nothing to measure: preset conservative leaves only FP32" in told


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--manifest", "/nowhere/m.jsonl"], ManifestError),
        (["--recordings"], ManifestError),
        (["--repeats", "0"], UsageError),
        (["--limit", "0"], UsageError),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    bench: Bench, words: list[str], error: type[Exception]
) -> None:
    acts = script(bench)
    with pytest.raises(error):
        tune.tune(arguments(*words), bench.settings, acts.engine)
    assert acts.started == []


def test_a_manifest_without_a_word_is_refused_before_anything_starts(bench: Bench) -> None:
    bench.manifest.write_text(json.dumps({"audio_filepath": "0.wav", "text": ""}))
    acts = script(bench)
    with pytest.raises(ManifestError, match="has no reference text"):
        tune.tune(arguments("--manifest", bench.manifest), bench.settings, acts.engine)
    assert acts.started == []


def test_takes_in_which_no_word_is_heard_give_no_verdict(bench: Bench) -> None:
    spool = RecordingStore(folder(), "always")
    take = spool.begin()
    take.append(np.zeros(LENGTHS[-1] + 1, dtype=np.float32))
    spool.finish_delivered(take, "")
    with pytest.raises(ManifestError, match="FP32 found no words"):
        tune.tune(arguments("--recordings", "--repeats", 2), bench.settings, script(bench).engine)
    assert tuned.read() == []


def test_without_fp32_there_is_no_verdict(bench: Bench) -> None:
    acts = script(bench, broken={"fp32": ModelError("no such model")})
    with pytest.raises(ModelError):
        tune.tune(
            arguments("--manifest", bench.manifest, "--repeats", 2), bench.settings, acts.engine
        )
    assert tuned.read() == []


def test_a_verdict_that_cannot_be_kept_is_shown_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full(monkeypatch, "verdicts.json")
    with pytest.raises(DiskError, match="No space left"):
        tune.tune(
            arguments("--manifest", bench.manifest, "--repeats", 2),
            bench.settings,
            script(bench).engine,
        )
    assert "auto uses fp32" in capsys.readouterr().out
    assert (bench.state / "asrd" / "tuning.json").exists(), "the next run only has to judge again"


def test_a_reader_that_leaves_early_costs_nothing_but_what_it_did_not_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(record: tuned.TuningResult) -> None:
        raise BrokenPipeError

    told: list[str] = []
    monkeypatch.setattr(tune.tuning_table, "show_evidence", gone)
    monkeypatch.setattr(tune, "_inform_daemon", lambda settings: told.append(settings.model) or "")
    with pytest.raises(BrokenPipeError):
        tune.tune(
            arguments("--manifest", bench.manifest, "--repeats", 2),
            bench.settings,
            script(bench).engine,
        )
    assert kept(bench).utterances == COUNT
    assert baseline.find(bench.settings.model, "cpu") is not None
    assert told == [bench.settings.model]
    assert not (bench.state / "asrd" / "tuning.json").exists()


def test_a_state_folder_without_room_is_told_before_anything_starts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, "room.probe")
    acts = script(bench)
    with pytest.raises(
        DiskError, match=r"the verdict cannot be saved in .*verdicts\.json: No space left"
    ) as told:
        tune.tune(arguments("--manifest", bench.manifest), bench.settings, acts.engine)
    assert "XDG_STATE_HOME" in told.value.hint
    assert acts.started == []


def test_what_cannot_be_kept_on_the_way_is_told_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full(monkeypatch, "tuning.json")
    tune.tune(
        arguments("--manifest", bench.manifest, "--repeats", 2),
        bench.settings,
        script(bench).engine,
    )
    assert caplog.text.count("the results so far cannot be saved") == 1
    assert kept(bench).chosen == "fp32"
    assert not (bench.state / "asrd" / "room.probe").exists()


# -- a daemon that runs
# -----------------------------------------------------------------------------------------------


def lived(bench: Bench, daemon: Start, **more: str) -> Any:  # noqa: F811
    """Return a daemon that dictates with the model of the bench and its verdicts."""
    one = daemon(
        ASRD_MODEL=os.fspath(bench.model),
        ASRD_SOCKET=bench.settings.socket,
        ASRD_DEVICE="cpu",
        **more,
    )
    one.until(lambda: one.state == "IDLE")
    return one


def autos(one: Any) -> list[str]:
    return [
        line.partition("asrd: ")[2]
        for line in one.log.read_text().splitlines()
        if "auto takes" in line
    ]


def test_the_daemon_says_once_that_nothing_was_measured_and_moves_when_something_was(
    bench: Bench,
    daemon: Start,  # noqa: F811
) -> None:
    one = lived(bench, daemon)
    assert autos(one) == [
        "auto takes fp32 on cpu: device = cpu, so FP32 on the CPU; not measured: asrd tune"
    ]
    one.speak()
    _, told = bench.run("")
    assert "the daemon goes from fp32 on cpu to bfloat16 on cpu when it is idle" in told
    assert (one.state, one.ask(verb="status")["strategy"]) == ("LISTENING", "fp32"), (
        "not while somebody speaks"
    )
    one.ask(verb="stop")
    one.until(lambda: one.state == "IDLE" and one.ask(verb="status")["strategy"] == "bfloat16")
    one.until(lambda: len(autos(one)) == 2)
    assert autos(one)[1].startswith("auto takes bfloat16 on cpu: measured here: at most +0.")
    assert one.ask(verb="tuned")["message"] == "the daemon stays on bfloat16 on cpu"
    assert one.end() == 0
    again = lived(bench, daemon)
    assert again.ask(verb="status")["strategy"] == "bfloat16"
    assert autos(again)[2].startswith("auto takes bfloat16 on cpu: measured here")


def test_a_model_that_is_not_in_memory_is_not_loaded_for_a_verdict(
    bench: Bench,
    daemon: Start,  # noqa: F811 - a fixture
) -> None:
    one = daemon(
        ASRD_MODEL=os.fspath(bench.model),
        ASRD_SOCKET=bench.settings.socket,
        ASRD_IDLE="immediately",
    )
    one.until(lambda: one.state == "UNLOADED")
    bench.run("")
    one.until(lambda: len(autos(one)) == 2)
    assert (one.state, one.worker) == ("UNLOADED", [])
    one.speak()
    assert one.ask(verb="status")["strategy"] == "bfloat16"


def test_what_a_person_told_the_daemon_to_use_stays(bench: Bench, daemon: Start) -> None:  # noqa: F811
    one = lived(bench, daemon)
    one.ask(verb="use", strategy="half")
    _, told = bench.run("")
    assert "the daemon stays on half, which it was told to use" in told
    assert one.ask(verb="status")["strategy"] == "half"


def test_a_verdict_that_went_stale_is_said_at_the_start(bench: Bench, daemon: Start) -> None:  # noqa: F811
    bench.run("")
    bench.model.write_bytes(b"other weights")
    one = lived(bench, daemon)
    [said] = autos(one)
    assert said.endswith(
        "not measured: asrd tune; what was measured is stale: the model's file has changed"
    )
    assert one.ask(verb="status")["strategy"] == "fp32"
