"""The real worker: every family and strategy on real speech, and what happens when it is killed in
mid-sentence."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from asrd import framing, protocol
from asrd.audio import files
from asrd.engine.engine import Deadlines, Engine
from asrd.engine.verify import mismatch
from asrd.errors import ConfigError, ModelError
from asrd.models import checkpoint, memory_estimate, tensors
from asrd.models.names import SHIPPED
from asrd.paths import DATA_FOLDER
from asrd.precision.plan import Candidate, Plan
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.text.spacing import join
from asrd.worker.__main__ import _serve
from asrd.worker.loading.model_loader import SINGLE_THREAD_PARAMETERS, thread_count
from asrd.worker.recognizer import Recognizer
from asrd.worker.startup import ready_message, start_recognizer
from tests.fakes import tiny
from tests.helpers import ROOT

EVALUATION = DATA_FOLDER / "eval"
FAMILIES = ("ctc", "rnnt", "tdt", "hybrid", "ca_ctc", "ca_rnnt", "ca_hybrid", "canary1", "canary2")


@cache
def clips(count: int) -> list[tuple[np.ndarray, str]]:
    """Return the first shipped clips: (float32 samples [N], what was said)."""
    lines = (EVALUATION / "manifest.jsonl").read_text().splitlines()[:count]
    entries = [json.loads(line) for line in lines]
    return [(files.read(EVALUATION / entry["audio_filepath"]), entry["text"]) for entry in entries]


def recognizer(model: str | Path, strategy: str = "fp32", **options: Any) -> Recognizer:
    replies: list[protocol.Reply] = []
    made = start_recognizer(
        protocol.Start(str(model), STRATEGY_TABLE[strategy], **options), replies.append
    )
    stages = {message.stage for message in replies if isinstance(message, protocol.Progress)}
    assert stages >= {"import", "restore", "cast"}
    return made


def transcribed(
    worker: Recognizer, samples: np.ndarray, start: int = 0, phase: str = "final"
) -> protocol.Hypothesis:
    return worker.recognize(samples.tobytes(), start, phase).hypothesis


def text_and_times(answer: protocol.Answer) -> tuple[str, list[tuple[int, int]]]:
    """Return an answer's text and times: what rounding may not change."""
    return answer.hypothesis.text, [(word.start, word.stop) for word in answer.hypothesis.words]


@pytest.mark.parametrize("model", SHIPPED)
def test_the_shipped_models_transcribe_the_clips(model: str) -> None:
    worker = recognizer(model)
    assert worker.self_test is not None
    assert worker.self_test.passed
    wrong = sum(transcribed(worker, samples).text != text for samples, text in clips(20))
    assert wrong <= 4


@pytest.mark.parametrize("model", SHIPPED)
def test_the_text_is_that_of_transcribe(model: str) -> None:
    """NeMo's own transcribe() is the oracle, on every shipped clip."""
    from nemo.collections.asr.models import ASRModel

    everything = clips(10_000)
    oracle = ASRModel.restore_from(str(SHIPPED[model]), map_location="cpu").eval()
    expected = [
        oracle.transcribe([samples], batch_size=1, verbose=False, num_workers=0)[0].text
        for samples, _ in everything
    ]
    worker = recognizer(model)
    heard = [transcribed(worker, samples).text for samples, _ in everything]
    assert [(e, h) for e, h in zip(expected, heard, strict=True) if e.strip() != h] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_and_keeps_the_contract(family: str, folder: Path) -> None:
    worker = recognizer(tiny.built(family, folder))
    ready = ready_message(worker)
    assert ready.family == {"ca_ctc": "ctc", "ca_rnnt": "rnnt", "ca_hybrid": "hybrid"}.get(
        family, "aed" if family.startswith("canary") else family
    )
    assert set(ready.ledger) == {"import", "load", "cast", "ready"}
    assert ready.weights_bytes > 4 * 0.9 * ready.parameters
    assert set(ready.effective.values()) == {"float32"}
    for seconds in (0.0, 0.05, 0.3, 1.0, 10.0):
        samples = (
            np.random.default_rng(1).normal(0, 0.05, round(16_000 * seconds)).astype(np.float32)
        )
        heard = transcribed(worker, samples, start=1_000)
        assert (heard.start, heard.stop) == (1_000, 1_000 + len(samples))
        assert join(heard.words).split() == heard.text.split()
        edges = [edge for word in heard.words for edge in (word.start, word.stop)]
        assert edges == sorted(edges)
        assert all(1_000 <= edge <= 1_000 + len(samples) for edge in edges)


@pytest.mark.parametrize("model", SHIPPED)
def test_buffers_that_are_computed_together_give_the_texts_of_each_alone(model: str) -> None:
    worker = recognizer(model, self_test=False)
    sounds = [samples.tobytes() for samples, _ in clips(10_000)]
    alone = [worker.recognize(sound, 500) for sound in sounds]
    for size in (2, 5, 8):
        for first in range(0, len(sounds), size):
            part = sounds[first : first + size]
            answers = worker.recognize_together(part, [500] * len(part), "final")
            for one, other in zip(answers, alone[first:], strict=False):
                assert text_and_times(one) == text_and_times(other)


def spoken(words: list[protocol.Word]) -> list[tuple[str, int]]:
    return [(word.text, word.start) for word in words]


@pytest.mark.parametrize(
    ("strategy", "vocabulary"),
    [
        ("fp32", ()),
        ("fp32", ("alabaster", "mercury")),
        ("half", ()),
        ("16-mixed", ()),
        ("autocast-fp16", ()),
    ],
)
def test_a_transducer_goes_on_from_any_word_as_if_it_had_not_stopped(
    strategy: str, vocabulary: tuple[str, ...]
) -> None:
    worker = recognizer("demo-tdt", strategy, self_test=False, vocabulary=vocabulary, boost=2.0)
    checked = 0
    for samples, _ in clips(25 if strategy == "fp32" else 5):
        whole = worker.recognize(samples.tobytes(), 4_000).hypothesis
        assert not whole.resumed
        for count in range(1, len(whole.words) + 1):
            before = whole.words[:count]
            behind = protocol.DecodingContext(
                " ".join(word.text for word in before), before[-1].stop
            )
            rest = worker.recognize(samples.tobytes(), 4_000, context=behind).hypothesis
            assert rest.resumed
            assert strategy != "fp32" or spoken(rest.words) == spoken(whole.words[count:])
            assert rest.text.split() == whole.text.split()[count:]
            checked += 1
    assert checked > 20


def test_buffers_go_on_each_from_its_own_words_when_they_are_computed_together() -> None:
    worker = recognizer("demo-tdt", self_test=False)
    sounds = [samples.tobytes() for samples, _ in clips(3)]
    words = worker.recognize(sounds[1]).hypothesis.words
    behind = protocol.DecodingContext(" ".join(word.text for word in words[:2]), words[1].stop)
    answers = worker.recognize_together(sounds, [0] * 3, "final", [None, behind, None])
    assert [answer.hypothesis.resumed for answer in answers] == [False, True, False]
    assert [text_and_times(answer)[0] for answer in answers[::2]] == [
        text_and_times(worker.recognize(sounds[n]))[0] for n in (0, 2)
    ]
    assert spoken(answers[1].hypothesis.words) == spoken(words[2:])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_cannot_go_on_decodes_the_whole_buffer(family: str, folder: Path) -> None:
    worker = recognizer(tiny.built(family, folder), self_test=False)
    sound = tiny.noise(4.0, 2).tobytes()
    plain = worker.recognize(sound, 100)
    transducer = ready_message(worker).family in ("rnnt", "tdt", "hybrid")
    letters = "".join(sorted({c for c in plain.hypothesis.text.lower() if c.isalpha()}))[:3]
    told = worker.recognize(sound, 100, context=protocol.DecodingContext(letters, 32_100))
    assert told.hypothesis.resumed == transducer
    assert all(word.start >= 32_100 - 1_280 for word in told.hypothesis.words) or not transducer
    for unheard in (
        told,
        worker.recognize(sound, 100, context=protocol.DecodingContext("漢字", 32_100)),
    ):
        assert unheard.hypothesis.resumed or text_and_times(unheard) == text_and_times(plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_decodes_several_of_any_length(family: str, folder: Path) -> None:
    worker = recognizer(tiny.built(family, folder), self_test=False)
    lengths = (0, 4_000, 16_000, 16_001, 50_000, 50_000, 160_000)
    sounds = [tiny.noise(10.0, seed)[:length].tobytes() for seed, length in enumerate(lengths)]
    starts = [1_000 * n for n in range(len(lengths))]
    answers = worker.recognize_together(sounds, starts, "final")
    for answer, sound, start in zip(answers, sounds, starts, strict=True):
        assert text_and_times(answer) == text_and_times(worker.recognize(sound, start))
        assert (answer.hypothesis.start, answer.hypothesis.stop) == (start, start + len(sound) // 4)


@pytest.mark.parametrize("family", ["ctc", "ca_rnnt", "canary2"])
def test_the_encoders_output_is_returned_frame_by_frame(family: str, folder: Path) -> None:
    path = tiny.built(family, folder)
    sound = tiny.noise(3.0)
    told = np.frombuffer(recognizer(path, self_test=False).encode(sound.tobytes()), np.float32)
    encoded, _ = tiny.encode(tiny.restore(path), sound)
    np.testing.assert_allclose(told, encoded[0].T.numpy().ravel(), rtol=1e-3, atol=1e-4)


def test_loading_holds_no_more_than_the_weights_as_they_will_be(tmp_path: Path) -> None:
    path = tiny.build("ctc", tmp_path, hidden=512, encoder_layers=16)
    recognizer(
        path, "bfloat16", self_test=False
    )  # what a first model brings into memory beside itself
    worker = recognizer(path, "bfloat16", self_test=False)
    before, peak = worker.loaded.meter.ledger["import"].process, worker.loaded.load_peak.process
    assert before is not None
    assert peak is not None
    assert worker.loaded.weights_bytes > 100 << 20
    assert peak - before < 1.3 * worker.loaded.weights_bytes


def test_int8_gives_the_system_back_what_it_was_made_of(tmp_path: Path) -> None:
    path = tiny.build("ctc", tmp_path, hidden=512, encoder_layers=4)
    worker = recognizer(path, "int8", self_test=False)
    freed = (
        memory_estimate.weights_bytes(checkpoint.header(path), STRATEGY_TABLE["fp32"])
        - worker.loaded.weights_bytes
    )
    before, after = (
        worker.loaded.meter.ledger["load"].process,
        worker.loaded.meter.ledger["cast"].process,
    )
    assert before is not None
    assert after is not None
    assert before - after > 0.6 * freed


@pytest.mark.parametrize(
    "strategy",
    [
        name
        for name in STRATEGY_TABLE
        if STRATEGY_TABLE[name].weights != "float32" or STRATEGY_TABLE[name].parts
    ],
)
@pytest.mark.parametrize("family", ["tdt", "ca_hybrid", "canary2"])
def test_numbers_read_into_their_dtype_are_those_that_a_cast_makes(
    family: str, strategy: str, folder: Path
) -> None:
    import torch

    from asrd.worker.casting import cast
    from asrd.worker.encoder import conformer

    found = recognizer(tiny.built(family, folder), strategy, self_test=False).model.state_dict()
    plain = tiny.restore(tiny.built(family, folder)).requires_grad_(False)
    conformer.remove_masks(plain, torch.device("cpu"))
    cast.apply(plain, STRATEGY_TABLE[strategy], torch.device("cpu"))
    expected = plain.state_dict()
    assert list(found) == list(expected)
    for name, value in found.items():
        assert value.dtype == expected[name].dtype, name
        quantized = hasattr(value, "qdata")
        pair = [one.dequantize() if quantized else one for one in (value, expected[name])]
        assert torch.equal(*pair), name


def test_more_encoder_output_than_a_line_holds_is_cut_at_a_whole_frame(folder: Path) -> None:
    told = recognizer(tiny.built("ctc", folder), self_test=False).encode(
        tiny.noise(240.0).tobytes()
    )
    assert protocol.MAX_ENCODED_BYTES - 64 * 4 < len(told) <= protocol.MAX_ENCODED_BYTES
    assert len(told) % (64 * 4) == 0


@pytest.mark.parametrize("strategy", STRATEGY_TABLE)
@pytest.mark.parametrize("model", SHIPPED)
def test_every_strategy_transcribes_the_test_clip_and_reports_its_dtypes(
    model: str, strategy: str
) -> None:
    ready = ready_message(recognizer(model, strategy))
    assert ready.requested == strategy
    assert mismatch(Candidate(STRATEGY_TABLE[strategy], "cpu"), ready) == ""
    assert ready.self_test is not None
    assert ready.self_test.text == ready.self_test.expected
    stored = {
        dtype.split(" as ")[0] for name, dtype in ready.effective.items() if name != "preprocessor"
    }
    precision = STRATEGY_TABLE[strategy]
    if precision.weights == "float16":
        assert stored == {"float16"}
    if not (precision.parts or precision.quantize):
        assert stored == {precision.weights}
    if strategy != "half-naive":
        assert ready.effective["preprocessor"].startswith("float32")
    if strategy in ("16-mixed", "tf32"):
        assert ready.fallbacks, "a CPU can do neither, and must say so"


@pytest.mark.parametrize("family", ["rnnt", "hybrid", "canary1"])
@pytest.mark.parametrize(
    "strategy", ["half", "autocast-fp16", "bf16-mixed", "selective", "phased", "int8"]
)
def test_families_under_reduced_precision(family: str, strategy: str, folder: Path) -> None:
    worker = recognizer(tiny.built(family, folder), strategy)
    for phase in ("partial", "final"):
        assert transcribed(worker, clips(1)[0][0], phase=phase).precision == strategy


def test_digital_silence_is_finite_and_empty() -> None:
    for model in SHIPPED:
        worker = recognizer(model, self_test=False)
        assert transcribed(worker, np.zeros(160_000, np.float32)).text == ""


def test_an_overflow_is_reported_and_not_written_down() -> None:
    worker = recognizer("demo-ctc", self_test=False)
    torch = worker._torch
    with torch.no_grad():
        worker.model.encoder.layers[0].feed_forward1.linear1.weight.fill_(float("inf"))
    with pytest.raises(Exception, match="encoder put out"):
        transcribed(worker, clips(1)[0][0])


def test_a_small_model_gets_one_thread_unless_more_are_set() -> None:
    small = checkpoint.header(SHIPPED["demo"])
    wide = {
        f"encoder.{n}.weight": tensors.Tensor((SINGLE_THREAD_PARAMETERS // 2, 2), "float32")
        for n in range(2)
    }
    large = msgspec.structs.replace(small, tensors=wide)
    start = protocol.Start("demo", STRATEGY_TABLE["fp32"])
    assert thread_count(start, small) == 1
    assert thread_count(start, large) == 0
    assert thread_count(msgspec.structs.replace(start, threads=3), small) == 3
    assert thread_count(msgspec.structs.replace(start, device="cuda:0"), small) == 0


# -- as a process
# -----------------------------------------------------------------------------------------------------


def engine(model: str, deadlines: Deadlines) -> Engine:
    plan = Plan(
        "fp32",
        (Candidate(STRATEGY_TABLE["bfloat16"], "cpu"), Candidate(STRATEGY_TABLE["fp32"], "cpu")),
        "test",
    )
    return Engine(plan, protocol.Start(model, STRATEGY_TABLE["fp32"]), deadlines=deadlines)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_the_real_worker_struck_in_mid_buffer_costs_no_word(blow: signal.Signals) -> None:
    samples, text = clips(1)[0]
    long = np.tile(np.concatenate([samples, np.zeros(8_000, np.float32)]), 60)

    async def go() -> None:
        # A frozen worker is found by the deadline, so it is short; the second worker must fit into
        # it too.
        async with engine(
            "demo-ctc", Deadlines(load=120.0, answer=30.0, per_second=0.0, stop=3.0)
        ) as held:
            first = await held.start()
            before = cpu_seconds(first.pid)
            waiting = asyncio.create_task(held.transcribe(long))
            while cpu_seconds(first.pid) - before < 0.3:
                await asyncio.sleep(0.01)
            os.kill(first.pid, blow)
            answer = await waiting
            assert answer.hypothesis.text.count(text) >= 50
            assert held.ready is not None
            assert held.ready.pid != first.pid
            assert not Path(f"/proc/{first.pid}").exists()

    asyncio.run(go())


def test_stdout_carries_frames_and_nothing_else() -> None:
    start = b"".join(
        bytes(p) for p in framing.pack(protocol.Start("demo", STRATEGY_TABLE["16-mixed"]))
    )
    samples = clips(1)[0][0].tobytes()
    ask = b"".join(
        bytes(p)
        for p in framing.pack(protocol.Recognize(1, [protocol.Buffer(0, len(samples))]), samples)
    )
    words = [sys.executable, "-m", "asrd.worker"]
    done = subprocess.run(
        words, input=start + ask, cwd=ROOT, capture_output=True, check=True, timeout=300
    )
    replies = [framing.unpack_reply(line) for line in done.stdout.splitlines()]
    assert [type(reply).__name__ for reply in replies][-2:] == ["Ready", "Answer"]


@pytest.mark.parametrize("noise", [b"hello\n", b'{"type":"stop"}\n', b"\xff\xff\n", b""])
def test_a_first_message_that_is_none_ends_the_worker(noise: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asrd.worker"],
        input=noise,
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode in (0, 76)


# -- checkpoints that cannot be
# ---------------------------------------------------------------------------------------


def broken(kind: str, where: Path, folder: Path) -> Path:
    """Return a checkpoint that is wrong in one way."""
    path = where / f"{kind}.nemo"
    good = tiny.built("ctc", folder).read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif kind == "text":
        path.write_text("not a tar")
    elif kind == "folder":
        path.mkdir()
    elif kind == "other-tar":
        with tarfile.open(path, "w") as tar:
            tar.add(__file__, "model_config.yaml")
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "text", "folder", "other-tar"])
def test_a_broken_checkpoint_is_one_clear_sentence(kind: str, tmp_path: Path, folder: Path) -> None:
    path = broken(kind, tmp_path, folder)
    with pytest.raises((ModelError, ConfigError)) as caught:
        recognizer(path)
    assert kind in caught.value.message
    assert "\n" not in caught.value.message


def test_a_language_that_the_model_has_not_is_refused(folder: Path) -> None:
    from asrd.errors import AsrdError

    with pytest.raises(AsrdError) as caught:
        recognizer(tiny.built("canary2", folder), source_lang="xx")
    assert "xx" in caught.value.message
    assert "en" in caught.value.hint


def test_a_phrase_that_the_model_cannot_write_is_refused_by_name(folder: Path) -> None:
    replies: list[protocol.Reply] = []
    start = protocol.Start(
        str(tiny.built("ctc", folder)), STRATEGY_TABLE["fp32"], vocabulary=("Ωmega",), boost=1.0
    )
    assert _serve(iter([(start, b"")]), replies.append) == 70
    assert isinstance(replies[-1], protocol.Failed)
    assert (replies[-1].kind, "'Ωmega'" in replies[-1].detail) == ("config", True)
    recognizer(tiny.built("ctc", folder), vocabulary=("Ωmega",), boost=0.0)


@pytest.mark.parametrize("model", SHIPPED)
def test_a_vocabulary_changes_the_words_and_not_the_proof_of_the_precision(model: str) -> None:
    (sound, text), *others = clips(60)
    wanted = sorted({word for _, other in others for word in other.split()} - set(text.split()))
    worker = recognizer(model, vocabulary=tuple(wanted), boost=10.0)
    assert worker.self_test is not None
    assert (worker.self_test.text, worker.self_test.passed) == (text, True)
    assert transcribed(worker, sound).text != text
