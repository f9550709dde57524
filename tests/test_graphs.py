"""Replayed work gives what the same model gives without: its tensors of one size on a CPU, the graphs on a card."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asrd import audio, decoding, encoder, graphs, wire
from asrd.graphs import EncoderReplay, Recorder
from asrd.models import SHIPPED
from asrd.precision import TABLE
from asrd.recognizer import EVALUATION, Recognizer
from tests import tiny

CPU = torch.device("cpu")
LENGTHS = (16_000, 20_479, 20_480, 20_481, 47_777, 160_000)
"""Samples: 1 s, both sides of a captured length, an odd one, a window."""

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def path_of(folder: Path, family: str, **sizes: Any) -> Path:
    name = f"{family}-{abs(hash(json.dumps(sizes, sort_keys=True)))}"
    return path if (path := folder / f"{name}.nemo").exists() else tiny.build(family, folder, name=name, **sizes)


def features_of(model: Any, samples: int, seed: int = 0) -> torch.Tensor:
    with torch.inference_mode():
        features, _ = model.preprocessor.featurizer(torch.as_tensor(tiny.noise(samples / 16_000, seed))[None], None)
    return features


def near(found: torch.Tensor, expected: torch.Tensor, part: float = 2e-5) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= part * float(expected.abs().max())


def worker(model: Path, strategy: str = "fp32", **options: Any) -> Recognizer:
    words = {"threads": 1, "self_test": False, **options}
    return Recognizer(wire.Start(str(model), TABLE[strategy], **words), lambda _: None)


def heard(held: Recognizer, samples: np.ndarray) -> wire.Hypothesis:
    return held.recognize(samples.tobytes()).hypothesis


# -- the encoder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["ctc", "ca_ctc", "ca_rnnt", "canary2"])
def test_padded_features_give_what_they_give_unpadded(family: str, folder: Path) -> None:
    model = tiny.restore(path_of(folder, family))
    assert encoder.whole(model, CPU)
    replayed = EncoderReplay(model.encoder, Recorder(CPU))
    with torch.inference_mode():
        replayed.prepare(features_of(model, max(LENGTHS)))
        for samples in (*LENGTHS, *LENGTHS[::-1]):
            features = features_of(model, samples)
            found = replayed(features)
            assert found is not None
            near(found, model.encoder(audio_signal=features)[0])


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(100, 1000))
def test_any_number_of_frames_is_padded_in_vain(folder: Path, frames: int) -> None:
    held = _kept(folder)
    features = features_of(held[0], 16_000 * 10)[:, :, :frames]
    with torch.inference_mode():
        found = held[1](features)
        if found is None:
            found = held[1](features)
        near(found, held[0].encoder(audio_signal=features)[0])


def _kept(folder: Path, made: dict[Path, tuple[Any, EncoderReplay]] = {}) -> tuple[Any, EncoderReplay]:  # noqa: B006
    if folder not in made:
        model = tiny.restore(path_of(folder, "ctc"))
        encoder.whole(model, CPU)
        made[folder] = model, EncoderReplay(model.encoder, Recorder(CPU))
    return made[folder]


def test_what_an_earlier_buffer_left_in_the_padding_is_never_heard(folder: Path) -> None:
    model = tiny.restore(path_of(folder, "ctc"))
    encoder.whole(model, CPU)
    replayed = EncoderReplay(model.encoder, Recorder(CPU))
    with torch.inference_mode():
        replayed.prepare(features_of(model, 20_000))
        replayed(torch.full((1, 80, 128), torch.nan))
        features = features_of(model, 16_000)
        near(replayed(features), model.encoder(audio_signal=features)[0])


def test_a_length_is_captured_when_it_is_asked_for_again(folder: Path) -> None:
    model = tiny.restore(path_of(folder, "ctc"))
    encoder.whole(model, CPU)
    recorder = Recorder(CPU)
    replayed = EncoderReplay(model.encoder, recorder)
    with torch.inference_mode():
        features = features_of(model, 30_000)
        assert replayed(features) is None
        assert replayed(features) is not None
        assert replayed(features.expand(5, -1, -1)) is None
        assert replayed(features.expand(4, -1, -1)) is not None
        assert replayed(features_of(model, 16_000 * 31)) is None
    assert recorder.told == {
        "encoder": "1 lengths up to 256 feature frames; 1 lengths up to 256 feature frames of 4 buffers"
    }


class Wrong(Recorder):
    """Replays something else, as a graph would whose memory somebody freed."""

    def record(self, part: str, work: graphs.Work) -> graphs.Work | None:
        return lambda: work() * 3 if super(Wrong, self).record(part, work) else work()


def test_a_replay_that_is_not_the_work_is_found_out_and_said(folder: Path) -> None:
    for family, part in (("ctc", "encoder"), ("canary2", "decoder")):
        plain, held, recorder = worker(path_of(folder, family)), worker(path_of(folder, family)), Wrong(CPU)
        sound = tiny.noise(2.0)
        held.replay(recorder, sound.tobytes())
        assert "no more: a replay" in recorder.told[part]
        assert held.introduce().graphs == recorder.told
        assert heard(held, sound) == heard(plain, sound)


def test_what_cannot_be_captured_runs_as_before(folder: Path) -> None:
    plain, held, recorder = (*(worker(path_of(folder, "canary2")) for _ in range(2)), Recorder(CPU))
    recorder.refuse("encoder", "operation not permitted when stream is capturing\nand a long trace")
    recorder.refuse("decoder", "out of memory")
    sound = tiny.noise(2.0)
    held.replay(recorder, sound.tobytes())
    assert heard(held, sound) == heard(plain, sound)
    assert recorder.told == {
        "encoder": "not replayed; no more: operation not permitted when stream is capturing",
        "decoder": "not replayed; no more: out of memory",
    }


# -- Canary's steps ---------------------------------------------------------------------------------------------------

SIZES: list[tuple[str, dict[str, Any]]] = [
    ("canary1", {"seed": 4}),
    ("canary1", {"seed": 6, "strategy": "greedy", "generation_delta": 5}),
    ("canary2", {"seed": 1, "decoder_layers": 4}),
    ("canary2", {"seed": 4, "pre_ln": False}),
    ("canary2", {"seed": 4, "decoder_hidden": 64, "activation": "gelu"}),
    ("canary2", {"seed": 4, "learned_positions": True, "generation_delta": 20}),
    ("canary2", {"seed": 4, "transf_encoder__num_layers": 1, "generation_delta": 5}),
    ("canary2", {"seed": 4, "final_norm": False}),
    ("canary2_unified", {"seed": 4, "vocabulary": 1500}),
]


def both(model: Any) -> tuple[decoding.Aed, decoding.Aed, Recorder]:
    """Return a model's decoder step by step, and one by steps of one size."""
    plain, replayed = decoding.decoder_for(model), decoding.decoder_for(model)
    assert isinstance(plain, decoding.Aed)
    assert isinstance(replayed, decoding.Aed)
    recorder = Recorder(CPU)
    replayed.replay(recorder)
    return plain, replayed, recorder


def same(found: decoding.Decoded, expected: decoding.Decoded, apart: float = 1e-4) -> None:
    assert (found.text, found.truncated) == (expected.text, expected.truncated)
    assert [token[:3] for token in found.tokens] == [token[:3] for token in expected.tokens]
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=apart)


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize(("family", "sizes"), SIZES, ids=str)
def test_steps_of_one_size_say_the_same(family: str, sizes: dict[str, Any], guarded: bool, folder: Path) -> None:
    model = tiny.restore(path_of(folder, family, **sizes))
    plain, replayed, recorder = both(model)
    said = 0
    for seconds in (0.1, 1.0, 3.3, 10.0, 12.0, 2.2):
        for each in (plain, replayed) if not guarded else ():
            each.canary.guard = None
        expected = plain(*(given := tiny.encode(model, tiny.noise(seconds, int(seconds)))))
        same(replayed(*given), expected)
        said += len(expected.tokens)
    assert said > 3, "silence compares nothing"
    assert recorder.told["decoder"].startswith("texts for up to")


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 125), st.integers(0, 3))
def test_steps_say_the_same_of_any_length(folder: Path, frames: int, seed: int) -> None:
    if "steps" not in _made:
        _made["steps"] = (model := tiny.restore(path_of(folder, "canary2"))), *both(model)
    model, plain, replayed, _ = _made["steps"]
    encoded, _ = tiny.encode(model, tiny.noise(10.0, seed))
    length = torch.tensor([frames])
    same(replayed(encoded[:, :, :frames], length), plain(encoded[:, :, :frames], length))


_made: dict[str, Any] = {}


def test_numbers_that_were_not_finite_do_not_stay(folder: Path) -> None:
    model = tiny.restore(path_of(folder, "canary2"))
    plain, replayed, _ = both(model)
    encoded, length = tiny.encode(model, tiny.noise(3.0))
    replayed(encoded, length)
    steps = next(iter(replayed.canary._replay._ready.values()))
    with torch.inference_mode():
        said = list(steps.said([torch.full((1, 20, 32), torch.nan)], 40))
    assert all(math.isnan(sure) for ((_, sure),) in said)
    same(replayed(encoded, length), plain(encoded, length))


def test_a_beam_and_a_vocabulary_keep_their_search(folder: Path) -> None:
    model = tiny.restore(path_of(folder, "canary2", beam=3, generation_delta=20))
    _, replayed, recorder = both(model)
    assert recorder.told == {"decoder": "not replayed: this checkpoint asks for a beam"}
    model = tiny.restore(path_of(folder, "canary2"))
    plain, replayed, _ = both(model)
    given = tiny.encode(model, tiny.noise(3.0))
    replayed(*given)
    phrase = model.tokenizer.ids_to_text([model.tokenizer.vocab_size - 5])
    for each in (plain, replayed):
        each.prefer([phrase], 4.0)
    same(replayed(*given), plain(*given))


# -- whole workers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["fp32", "bfloat16", "half", "autocast-bf16", "selective", "int8"])
@pytest.mark.parametrize("family", ["ctc", "rnnt", "tdt", "ca_hybrid", "canary1"])
def test_workers_hear_the_same(family: str, strategy: str, folder: Path) -> None:
    if strategy == "int8":
        pytest.importorskip("torchao", reason="int8 is an extra")
    plain, held = (worker(path_of(folder, family), strategy) for _ in range(2))
    held.replay(Recorder(CPU), tiny.noise(4.0).tobytes())
    assert held._recorder.told["encoder"] == "4 lengths up to 512 feature frames"
    close = 0
    for number, seconds in enumerate((0.3, 1.0, 2.5, 4.0)):
        sound = tiny.noise(seconds, number)
        close += heard(held, sound).text == heard(plain, sound).text
    assert close >= (4 if strategy == "fp32" else 2)  # rounding turns random weights' texts


@pytest.mark.parametrize("model", SHIPPED)
def test_the_shipped_models_hear_the_same(model: str) -> None:
    plain, held = (Recognizer(wire.Start(model, TABLE["fp32"], self_test=False), lambda _: None) for _ in range(2))
    lines = (json.loads(line) for line in EVALUATION.read_text().splitlines()[:12])
    clips = [audio.read(EVALUATION.parent / line["audio_filepath"]) for line in lines]
    held.replay(Recorder(CPU), clips[0].tobytes())
    for clip in clips:
        found, expected = heard(held, clip), heard(plain, clip)
        assert found.text == expected.text
        assert [(word.start, word.stop) for word in found.words] == [(w.start, w.stop) for w in expected.words]
        for one, other in zip(found.words, expected.words, strict=True):
            assert one.confidence == pytest.approx(other.confidence, abs=1e-3)


def test_answers_count_tokens_and_a_cpu_has_no_graphs(folder: Path) -> None:
    held = worker(path_of(folder, "ctc"), self_test=True)
    sound = tiny.noise(3.0)
    answer = held.recognize(sound.tobytes())
    encoded, lengths = held._encode([torch.as_tensor(sound)])
    assert answer.tokens == len(held._decode(encoded, lengths).tokens) > 0
    assert held.introduce().graphs == {}


# -- on a card --------------------------------------------------------------------------------------------------------

STRATEGIES = {"fp32": 1e-4, "bfloat16": 0.1, "half": 0.02, "autocast-bf16": 0.1, "int8": 0.1}
"""Strategy -> how far the encoder's output may be from that without graphs, as a part of its largest value."""

CARD_FAMILIES = ("ctc", "rnnt", "tdt", "ca_hybrid", "canary1", "canary2")


def on_card(folder: Path, family: str, strategy: str, **options: Any) -> Recognizer:
    return worker(path_of(folder, family), strategy, device="cuda:0", self_test=True, **options)


@cuda
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", CARD_FAMILIES)
def test_graphs_hear_what_is_heard_without(family: str, strategy: str, folder: Path) -> None:
    if strategy == "int8":
        pytest.importorskip("torchao", reason="int8 is an extra")
    plain, held = (on_card(folder, family, strategy, graphs=wanted) for wanted in (False, True))
    told = held.introduce().graphs
    print(f"\n{family} {strategy}: {told}")
    assert plain.introduce().graphs == {}
    assert set(told) == {"encoder", "decoder"}
    assert "no more" not in told["encoder"], told
    alike, dice = 0, random.Random(7)
    for number in range(20):
        sound = tiny.noise(dice.uniform(0.3, 10.0), number)
        with torch.inference_mode():
            pair = []
            for each in (plain, held):
                samples = torch.nn.functional.pad(torch.as_tensor(sound), (0, max(0, 16_000 - len(sound))))
                with each._applied.context("final"):
                    pair.append(each._encode([samples])[0].float())
        near(pair[1], pair[0], STRATEGIES[strategy])
        alike += heard(held, sound).text == heard(plain, sound).text
    assert alike >= {"fp32": 19}.get(strategy, 10), alike


@cuda
@pytest.mark.parametrize("strategy", ["fp32", "bfloat16", "half", "autocast-bf16"])
@pytest.mark.parametrize("family", ["canary1", "canary2"])
def test_a_cards_steps_say_what_one_step_after_the_other_says(family: str, strategy: str, folder: Path) -> None:
    held = on_card(folder, family, strategy)
    aed = held._decode
    assert "no more" not in held.introduce().graphs["decoder"]
    alike = 0
    for number in range(12):
        with torch.inference_mode(), held._applied.context("final"):
            encoded, lengths = held._encode([torch.as_tensor(tiny.noise(1.0 + number * 0.7, number))])
            found = aed(encoded, lengths)
            replay, aed.canary._replay = aed.canary._replay, None
            expected = aed(encoded, lengths)
            aed.canary._replay = replay
        if [token.id for token in found.tokens] == [token.id for token in expected.tokens]:
            alike += 1
            same(found, expected, 1e-3 if strategy == "fp32" else 0.2)
    assert alike >= (12 if strategy == "fp32" else 6), alike


@cuda
@pytest.mark.parametrize("family", ["ctc", "tdt", "canary2"])
def test_memory_does_not_grow_once_every_length_is_captured(family: str, folder: Path) -> None:
    held, dice = on_card(folder, family, "bfloat16"), random.Random(1)
    sounds: list[Callable[[], np.ndarray]] = [
        lambda: tiny.noise(dice.uniform(0.2, 10.0), dice.randrange(1000)) for _ in range(200)
    ]
    for seconds in np.arange(1.0, 10.1, 0.5):
        for _ in range(3):
            heard(held, tiny.noise(float(seconds)))
    reserved = torch.cuda.memory_reserved()
    for sound in sounds:
        heard(held, sound())
    assert torch.cuda.memory_reserved() <= reserved


@cuda
def test_work_that_waits_is_refused_and_the_card_goes_on(folder: Path) -> None:
    recorder, numbers = Recorder(torch.device("cuda:0")), torch.ones(8, device="cuda")
    assert recorder.record("encoder", lambda: numbers * float(numbers.sum().item())) is None
    assert recorder.told["encoder"].startswith("not replayed; no more: ")
    assert float((numbers + 1).sum()) == 16.0
    after = recorder.record("decoder", lambda: numbers.mul(2))
    assert after is not None
    assert math.isclose(float(after().sum()), 16.0)
    held = on_card(folder, "ctc", "fp32")
    assert "no more" not in held.introduce().graphs["encoder"]


@cuda
def test_a_buffer_longer_than_every_length_is_heard_too_and_harms_none(folder: Path) -> None:
    plain, held = (on_card(folder, "ctc", "fp32", graphs=wanted) for wanted in (False, True))
    short, long = tiny.noise(3.0), tiny.noise(40.0)
    for sound in (short, long, short, long, short):
        assert heard(held, sound).text == heard(plain, sound).text
