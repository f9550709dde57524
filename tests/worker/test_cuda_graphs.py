"""Replayed work gives what the same model gives without: its tensors of one size on a CPU, the
graphs on a card."""

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
from torch.utils._python_dispatch import TorchDispatchMode

from asrd import protocol
from asrd.audio import files
from asrd.evaluation import components
from asrd.models.checkpoint import header
from asrd.models.names import SHIPPED
from asrd.paths import EVALUATION_MANIFEST
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.worker.decoding import decoder as decoding_decoder
from asrd.worker.decoding import factory, transducer
from asrd.worker.decoding.aed import Aed
from asrd.worker.decoding.kv_cache import CachedDecoder
from asrd.worker.decoding.static_decoder import StaticCacheDecoder
from asrd.worker.decoding.word_times import Decoded
from asrd.worker.encoder import conformer, cuda_graphs
from asrd.worker.encoder.cuda_graphs import EncoderReplay, GraphCapture
from asrd.worker.recognizer import Recognizer
from asrd.worker.startup import ready_message, start_recognizer
from tests.fakes import tiny

CPU = torch.device("cpu")
LENGTHS = (16_000, 20_479, 20_480, 20_481, 47_777, 160_000)
"""Samples: 1 s, both sides of a captured length, an odd one, a window."""

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")


def path_of(folder: Path, family: str, **sizes: Any) -> Path:
    name = f"{family}-{abs(hash(json.dumps(sizes, sort_keys=True)))}"
    return (
        path
        if (path := folder / f"{name}.nemo").exists()
        else tiny.build(family, folder, name=name, **sizes)
    )


def features_of(model: Any, samples: int, seed: int = 0) -> torch.Tensor:
    with torch.inference_mode():
        features, _ = model.preprocessor.featurizer(
            torch.as_tensor(tiny.noise(samples / 16_000, seed))[None], None
        )
    return features


def near(found: torch.Tensor, expected: torch.Tensor, part: float = 2e-5) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= part * float(expected.abs().max())


def worker(model: Path, strategy: str = "fp32", **options: Any) -> Recognizer:
    words = {"threads": 1, "self_test": False, **options}
    made = start_recognizer(
        protocol.Start(str(model), STRATEGY_TABLE[strategy], **words), lambda _: None
    )
    if made.start.device == "cpu":
        made._fast_encoder = (
            None  # the straight program, which rounds otherwise than the modules replayed here
        )
    return made


def heard(held: Recognizer, samples: np.ndarray) -> protocol.Hypothesis:
    return held.recognize(samples.tobytes()).hypothesis


# -- the encoder
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["ctc", "ca_ctc", "ca_rnnt", "canary2"])
def test_padded_features_give_what_they_give_unpadded(family: str, folder: Path) -> None:
    model = tiny.restore(path_of(folder, family))
    assert conformer.remove_masks(model, CPU)
    replayed = EncoderReplay(model.encoder, GraphCapture(CPU))
    with torch.inference_mode():
        replayed.prepare(features_of(model, max(LENGTHS)))
        for samples in (*LENGTHS, *LENGTHS[::-1]):
            features = features_of(model, samples)
            found = replayed(features)
            assert found is not None
            near(found, model.encoder(audio_signal=features)[0])


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(100, 1000))
def test_any_number_of_frames_is_padded_in_vain(folder: Path, frames: int) -> None:
    held = _kept(folder)
    features = features_of(held[0], 16_000 * 10)[:, :, :frames]
    with torch.inference_mode():
        found = held[1](features)
        if found is None:
            found = held[1](features)
        near(found, held[0].encoder(audio_signal=features)[0])


def _kept(
    folder: Path,
    made: dict[Path, tuple[Any, EncoderReplay]] = {},  # noqa: B006 - the tests share one
) -> tuple[Any, EncoderReplay]:
    if folder not in made:
        model = tiny.restore(path_of(folder, "ctc"))
        conformer.remove_masks(model, CPU)
        made[folder] = model, EncoderReplay(model.encoder, GraphCapture(CPU))
    return made[folder]


def test_what_an_earlier_buffer_left_in_the_padding_changes_nothing(folder: Path) -> None:
    model = tiny.restore(path_of(folder, "ctc"))
    conformer.remove_masks(model, CPU)
    replayed = EncoderReplay(model.encoder, GraphCapture(CPU))
    with torch.inference_mode():
        replayed.prepare(features_of(model, 20_000))
        replayed(torch.full((1, 80, 128), torch.nan))
        features = features_of(model, 16_000)
        near(replayed(features), model.encoder(audio_signal=features)[0])


def test_a_length_is_captured_when_it_is_asked_for_again(folder: Path) -> None:
    model = tiny.restore(path_of(folder, "ctc"))
    conformer.remove_masks(model, CPU)
    graphs = GraphCapture(CPU)
    replayed = EncoderReplay(model.encoder, graphs)
    with torch.inference_mode():
        features = features_of(model, 30_000)
        assert replayed(features) is None
        assert replayed(features) is not None
        assert replayed(features.expand(5, -1, -1)) is None
        assert replayed(features.expand(4, -1, -1)) is not None
        assert replayed(features_of(model, 16_000 * 31)) is None
    assert graphs.results == {
        "encoder": "1 lengths up to 256 feature frames; 1 lengths up to 256 feature frames of 4 buffers"
    }


class Wrong(GraphCapture):
    """Replays something else, as a graph would whose memory somebody freed."""

    def record(self, part: str, work: cuda_graphs.Work) -> cuda_graphs.Work | None:
        return lambda: work() * 3 if super(Wrong, self).record(part, work) else work()


def test_a_replay_that_is_not_the_work_is_found_and_reported(folder: Path) -> None:
    for family, part in (("ctc", "encoder"), ("canary2", "decoder")):
        plain, held, graphs = (
            worker(path_of(folder, family)),
            worker(path_of(folder, family)),
            Wrong(CPU),
        )
        sound = tiny.noise(2.0)
        held.replay(graphs, sound.tobytes())
        assert "no more: a replay" in graphs.results[part]
        assert ready_message(held).graphs == graphs.results
        assert heard(held, sound) == heard(plain, sound)


def test_what_cannot_be_captured_runs_as_before(folder: Path) -> None:
    plain, held, graphs = (
        *(worker(path_of(folder, "canary2")) for _ in range(2)),
        GraphCapture(CPU),
    )
    graphs.refuse("encoder", "operation not permitted when stream is capturing\nand a long trace")
    graphs.refuse("decoder", "out of memory")
    sound = tiny.noise(2.0)
    held.replay(graphs, sound.tobytes())
    assert heard(held, sound) == heard(plain, sound)
    assert graphs.results == {
        "encoder": "not replayed; no more: operation not permitted when stream is capturing",
        "decoder": "not replayed; no more: out of memory",
    }


# -- several buffers
# --------------------------------------------------------------------------------------------------


def encoded_of(held: Recognizer, sounds: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode(), held._applied.context("final"):
        encoded, lengths = held._encode([torch.as_tensor(sound) for sound in sounds])
    return encoded, lengths


def noises(lengths: list[int]) -> list[np.ndarray]:
    return [tiny.noise(10.0, seed)[:length] for seed, length in enumerate(lengths)]


@pytest.mark.parametrize("batch", range(1, 40))
def test_parts_of_a_batch_are_nearly_full(batch: int) -> None:
    parts = cuda_graphs.parts(batch)
    assert [row for part in parts for row in range(batch)[part]] == list(range(batch))
    for part in parts:
        size = part.stop - part.start
        assert size >= cuda_graphs.MIN_FILLED_SHARE * min(
            rows for rows in cuda_graphs.ROWS if rows >= size
        )


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(["ctc", "ca_rnnt", "canary2"]),
    st.lists(st.integers(16_000, 60_000), min_size=1, max_size=10),
)
def test_each_of_several_is_what_it_is_alone(folder: Path, family: str, lengths: list[int]) -> None:
    if family not in _made:
        _made[family] = plain, held = (
            worker(path_of(folder, family)),
            worker(path_of(folder, family)),
        )
        held.replay(GraphCapture(CPU))
    plain, held = _made[family]
    sounds = noises(lengths)
    encoded_of(held, sounds)  # what is asked for a second time is captured
    asked = sum(held._fast_encoder._asked.values())
    encoded, counts = encoded_of(held, sounds)
    assert sum(held._fast_encoder._asked.values()) > asked
    assert all(
        shape in held._fast_encoder._ready
        for shape, times in held._fast_encoder._asked.items()
        if times > 1
    )
    assert len(encoded) == len(counts) == len(sounds)
    for row, (sound, count) in enumerate(zip(sounds, counts.tolist(), strict=True)):
        alone, length = encoded_of(plain, [sound])
        assert int(length) == count
        near(encoded[row : row + 1, :, :count], alone, 1e-4)


def test_several_are_captured_when_they_are_asked_for_again(folder: Path) -> None:
    held = worker(path_of(folder, "ctc"))
    held.replay(graphs := GraphCapture(CPU), tiny.noise(1.0).tobytes())
    assert graphs.results["encoder"] == "1 lengths up to 128 feature frames"
    sounds = noises([16_000 + 400 * n for n in range(7)])
    for _ in range(2):
        encoded_of(held, sounds)
    assert graphs.results["encoder"].endswith("; 1 lengths up to 128 feature frames of 8 buffers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held.model.encoder, "forward", None)
        shaped = held._fast_encoder._ready[(8, 128, None)]
        shaped.replay = lambda: shaped._features
        encoded, lengths = encoded_of(held, sounds)
    assert encoded.shape[0] == len(lengths) == 7


def test_rows_without_a_buffer_change_nothing(folder: Path) -> None:
    model = tiny.restore(path_of(folder, "ctc"))
    conformer.remove_masks(model, CPU)
    replayed = EncoderReplay(model.encoder, GraphCapture(CPU))
    many = features_of(model, 16_000).expand(8, -1, -1)
    with torch.inference_mode():
        for _ in range(2):
            replayed(many)
        replayed(torch.full_like(many, torch.nan))
        found = replayed(many[:6])
        assert found is not None
        near(found, model.encoder(audio_signal=many[:6])[0])


TALKERS: list[tuple[str, dict[str, Any]]] = [
    ("canary2", {"seed": 4, "learned_positions": True, "generation_delta": 20}),
    ("canary2_unified", {"seed": 4, "vocabulary": 1500}),
    ("canary2", {"seed": 4, "transf_encoder__num_layers": 1, "generation_delta": 5}),
]
"""Canaries of whose texts some end by themselves, early and late, and the guard cuts others."""

SAID = {5: 3.3, 7: 10.0, 2: 7.0, 0: 1.0, 10: 7.0, 15: 10.0, 4: 1.0, 18: 7.0, 9: 0.4, 11: 10.0}
"""Seed of a sound -> its seconds."""


def sounding(model: Any, samples: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an encoder output without the frames that NeMo puts behind the sound."""
    encoded, length = tiny.encode(model, samples)
    return encoded[:, :, : int(length)], length


def stacked(given: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return encoder outputs as one batch; what stands behind the shorter ones is loud."""
    longest = max(each.shape[2] for each, _ in given)
    padded = [
        torch.nn.functional.pad(each, (0, longest - each.shape[2]), value=9.0) for each, _ in given
    ]
    return torch.cat(padded), torch.cat([length for _, length in given])


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize(("family", "sizes"), TALKERS, ids=str)
def test_texts_in_step_are_those_of_each_alone(
    family: str, sizes: dict[str, Any], guarded: bool, folder: Path
) -> None:
    model = tiny.restore(path_of(folder, family, **sizes))
    plain, replayed, graphs = both(model)
    for each in (plain, replayed) if not guarded else ():
        each.canary.guard = None
    given = [sounding(model, tiny.noise(seconds, seed)) for seed, seconds in SAID.items()]
    expected = [plain(*each) for each in given]
    assert len({len(text.tokens) for text in expected}) > 3, "texts of one length end together"
    for size in (2, 3, 8, 10):
        found = replayed.decode_batch(*stacked(given[:size]))
        for one, other in zip(found, expected[:size], strict=True):
            same(one, other)
    assert graphs.results["decoder"].endswith("encoder frames, 8 at once")


def test_the_guard_cuts_one_text_of_several(folder: Path) -> None:
    family, sizes = TALKERS[0]
    model = tiny.restore(path_of(folder, family, **sizes))
    plain, replayed, _ = both(model)
    given = [
        sounding(model, tiny.noise(seconds, seed))
        for seed, seconds in ((0, 1.0), (7, 10.0), (5, 3.3))
    ]
    found = replayed.decode_batch(*stacked(given))
    assert [text.truncated for text in found] == [True, False, False]
    for one, each in zip(found, given, strict=True):
        same(one, plain(*each))


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 125), st.integers(0, 20)), min_size=2, max_size=9))
def test_texts_of_any_lengths_are_those_of_each_alone(
    folder: Path, rows: list[tuple[int, int]]
) -> None:
    if "texts" not in _made:
        family, sizes = TALKERS[1]
        model = tiny.restore(path_of(folder, family, **sizes))
        _made["texts"] = model, *both(model), {}
    model, plain, replayed, _, heard = _made["texts"]
    for _, seed in rows:
        heard.setdefault(seed, tiny.encode(model, tiny.noise(10.0, seed))[0])
    encoded, lengths = (
        torch.cat([heard[seed] for _, seed in rows]),
        torch.tensor([frames for frames, _ in rows]),
    )
    found = replayed.decode_batch(encoded, lengths)
    for row, (one, (frames, _)) in enumerate(zip(found, rows, strict=True)):
        same(one, plain(encoded[row : row + 1, :, :frames], lengths[row : row + 1]))


def test_a_text_that_is_not_finite_leaves_the_others_alone(folder: Path) -> None:
    model = tiny.restore(path_of(folder, "canary2"))
    _, replayed, _ = both(model)
    sounds = [
        replayed.canary._project(tiny.encode(model, tiny.noise(3.0, seed))[0]) for seed in range(3)
    ]
    steps = replayed.canary._steps(sounds, [20] * 3)
    assert steps is not None
    with torch.inference_mode():
        expected = list(steps.decode(sounds, 20))
        found = list(
            steps.decode([sounds[0], torch.full_like(sounds[1], torch.nan), sounds[2]], 20)
        )
    assert [step[::2] for step in found] == [step[::2] for step in expected]
    assert all(math.isnan(step[1][1]) for step in found)


def behind(decoder: transducer.Transducer, encoded: torch.Tensor, length: torch.Tensor) -> Decoded:
    """Return what follows a text that ended in the first second."""
    path = decoder.state_after(decoder._model.tokenizer.ids_to_text([5, 9, 7]), 12)
    assert path is not None
    [found] = decoder.decode_batch(encoded, length, [path])
    assert found.resumed
    assert found.tokens[0].start >= 12
    return found


@pytest.mark.parametrize("family", ["rnnt", "tdt", "ca_rnnt", "ca_tdt", "hybrid"])
def test_what_nemo_would_capture_decodes_several_the_same(family: str, folder: Path) -> None:
    model = tiny.restore(path_of(folder, family))
    plain, held = (
        factory.decoder_for(model),
        factory.decoder_for(tiny.restore(path_of(folder, family))),
    )
    assert isinstance(held, transducer.Transducer)
    uncaptured(held)
    loop = held._model.decoding.decoding.decoding_computer
    lengths = (10.0, 1.0, 3.3, 7.0, 1.0, 2.2, 0.3, 5.0, 4.0, 8.0)
    given = [sounding(model, tiny.noise(seconds, seed)) for seed, seconds in enumerate(lengths)]
    expected = [plain(*each) for each in given]
    assert sum(len(text.tokens) for text in expected) > 20
    same(held(*given[0]), expected[0])
    kept = None
    for size in (3, 8, 10, 2, 1):
        found = held.decode_batch(*stacked(given[:size]))
        kept = kept or loop.state
        for one, other in zip(found, expected[:size], strict=True):
            same(one, other)
        same(held(*given[1]), expected[1])
        same(held.read(halved(held, *given[0])), held.read(halved(plain, *given[0])))
        same(behind(held, *given[0]), behind(plain, *given[0]))
    assert loop.state is kept, "captured anew"
    longer = torch.cat([given[0][0]] * 4, 2)
    assert longer.shape[2] > loop.INITIAL_MAX_TIME
    same(
        held(longer, torch.tensor([longer.shape[2]])),
        plain(longer, torch.tensor([longer.shape[2]])),
    )
    assert loop.state is kept
    assert loop.cuda_graphs_mode is not None


def uncaptured(held: transducer.Transducer) -> None:
    """Have NeMo do on a CPU, step by step, what its graphs would hold."""
    loop = held._model.decoding.decoding.decoding_computer
    loop.force_cuda_graphs_mode("no_graphs")
    eager, replayed = loop.torch_impl, loop.cuda_graphs_impl
    loop.torch_impl = lambda *args, **words: (replayed if loop.cuda_graphs_mode else eager)(
        *args, **words
    )
    held._graphs = GraphCapture(CPU)


def halved(decoder: Any, encoded: torch.Tensor, _: torch.Tensor) -> decoding_decoder.DecoderState:
    """Return the path over an encoder output that came in two halves."""
    half = encoded.shape[2] // 2
    path = decoder.resume(decoding_decoder.DecoderState(), encoded[:, :, :half])
    return decoder.resume(path, encoded[:, :, half:])


# -- Canary's steps
# ---------------------------------------------------------------------------------------------------

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


def both(model: Any) -> tuple[Aed, Aed, GraphCapture]:
    """Return a model's decoder step by step, and one by steps of one size."""
    plain, replayed = factory.decoder_for(model), factory.decoder_for(model)
    assert isinstance(plain, Aed)
    assert isinstance(replayed, Aed)
    graphs = GraphCapture(CPU)
    replayed.freeze_weights()
    replayed.replay(graphs)
    return plain, replayed, graphs


def same(found: Decoded, expected: Decoded, apart: float = 1e-4) -> None:
    assert (found.text, found.truncated) == (expected.text, expected.truncated)
    assert [token[:3] for token in found.tokens] == [token[:3] for token in expected.tokens]
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=apart)


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize(("family", "sizes"), SIZES, ids=str)
def test_steps_of_one_size_give_the_same_text(
    family: str, sizes: dict[str, Any], guarded: bool, folder: Path
) -> None:
    model = tiny.restore(path_of(folder, family, **sizes))
    plain, replayed, graphs = both(model)
    said = 0
    for seconds in (0.1, 1.0, 3.3, 10.0, 12.0, 2.2):
        for each in (plain, replayed) if not guarded else ():
            each.canary.guard = None
        expected = plain(*(given := tiny.encode(model, tiny.noise(seconds, int(seconds)))))
        same(replayed(*given), expected)
        said += len(expected.tokens)
    assert said > 3, "silence compares nothing"
    assert graphs.results["decoder"].startswith("texts for up to")


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 125), st.integers(0, 3))
def test_steps_give_the_same_text_of_any_length(folder: Path, frames: int, seed: int) -> None:
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
        said = list(steps.decode([torch.full((1, 20, 32), torch.nan)], 40))
    assert all(math.isnan(sure) for ((_, sure),) in said)
    same(replayed(encoded, length), plain(encoded, length))


class Kernels(TorchDispatchMode):
    """Counts what a card would launch a kernel for: all but views and tensors that are not
    filled."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = any(
            one.alias_info is not None and not one.alias_info.is_write
            for one in func._schema.returns
        )
        self.count += not (views or "empty" in func.__name__ or "_unsafe_view" in func.__name__)
        return func(*args, **kwargs or {})


def kernels(folder: Path, layers: int, dtype: torch.dtype) -> int:
    """Return how many kernels reading one token takes."""
    model = tiny.restore(path_of(folder, "canary2", seed=1, decoder_layers=layers)).to(dtype)
    reader = CachedDecoder(model.transf_decoder, model.log_softmax)
    reader.join()
    with torch.no_grad():  # within inference_mode a linear would be one call whatever it is made of
        sound = torch.zeros(1, 128, 32, dtype=dtype)
        steps = StaticCacheDecoder(reader, torch.full((1, 5), 7), 100, sound, 1, 128, 64)
        steps.load([sound])
        steps.begin()
        with Kernels() as launched:
            steps.step()
    return launched.count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_token_is_read_in_few_kernels(dtype: torch.dtype, folder: Path) -> None:
    """What a token costs a card is launches, and nobody sees one more that a line brings."""
    two, four = (kernels(folder, layers, dtype) for layers in (2, 4))
    print(f"{dtype}: {(four - two) // 2} kernels a layer, {2 * two - four} beside them")
    assert (four - two) // 2 <= 20
    assert 2 * two - four <= (16 if dtype == torch.float32 else 17)


def test_a_beam_and_a_vocabulary_keep_their_search(folder: Path) -> None:
    model = tiny.restore(path_of(folder, "canary2", beam=3, generation_delta=20))
    _, replayed, graphs = both(model)
    assert graphs.results == {"decoder": "not replayed: this checkpoint asks for a beam"}
    model = tiny.restore(path_of(folder, "canary2"))
    plain, replayed, _ = both(model)
    given = tiny.encode(model, tiny.noise(3.0))
    replayed(*given)
    phrase = model.tokenizer.ids_to_text([model.tokenizer.vocab_size - 5])
    for each in (plain, replayed):
        each.boost_phrases([phrase], 4.0)
    same(replayed(*given), plain(*given))


# -- what may be captured
# ---------------------------------------------------------------------------------------------

WAITS = {
    "item",
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "equal",
    "unique",
    "lift_fresh",
}
"""Operations for whose result the host waits, or that begin with numbers of the host's."""


class Capturing(TorchDispatchMode):
    """Refuses on a CPU what a stream that is being captured refuses on a card."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        chosen = name in ("index", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if name in WAITS or chosen:
            raise RuntimeError(f"{name} is not permitted when the stream is capturing")
        return func(*args, **kwargs or {})


class Strict(GraphCapture):
    def record(self, part: str, work: cuda_graphs.Work) -> cuda_graphs.Work | None:
        def replay() -> torch.Tensor:
            with Capturing():
                return work()

        return replay if super().record(part, work) else None


@pytest.mark.parametrize(
    "wrong", [lambda x: x * x.sum().item(), lambda x: x[x > 0], lambda x: x + torch.tensor([1.0])]
)
def test_work_that_no_card_would_capture_is_reported_on_a_cpu(
    wrong: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    graphs = Strict(CPU)
    replay = graphs.record("encoder", lambda: wrong(torch.ones(3)))
    assert replay is not None
    with torch.inference_mode(), pytest.raises(RuntimeError, match="is capturing"):
        replay()


@pytest.mark.parametrize(
    "strategy", ["fp32", "bfloat16", "half", "autocast-bf16", "selective", "int8"]
)
@pytest.mark.parametrize("family", ["ctc", "ca_rnnt", "canary1", "canary2"])
def test_what_is_captured_waits_for_nothing(family: str, strategy: str, folder: Path) -> None:
    if strategy == "int8":
        pytest.importorskip("torchao", reason="int8 is an extra")
    held, graphs = worker(path_of(folder, family), strategy), Strict(CPU)
    held.replay(graphs, tiny.noise(4.0).tobytes())
    sounds = [sound.tobytes() for sound in noises([50_000, 16_000, 64_000, 33_333, 16_001, 47_000])]
    for _ in range(2):
        held.recognize_together(sounds, [0] * len(sounds), "final")
    lengths = "4 lengths up to 512 feature frames; 1 lengths up to 512 feature frames of 8 buffers"
    assert graphs.results["encoder"] == lengths
    assert "canary" not in family or graphs.results["decoder"].endswith("encoder frames, 8 at once")


# -- whole workers
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy", ["fp32", "bfloat16", "half", "autocast-bf16", "selective", "int8"]
)
@pytest.mark.parametrize("family", ["ctc", "rnnt", "tdt", "ca_hybrid", "canary1"])
def test_workers_transcribe_the_same(family: str, strategy: str, folder: Path) -> None:
    if strategy == "int8":
        pytest.importorskip("torchao", reason="int8 is an extra")
    plain, held = (worker(path_of(folder, family), strategy) for _ in range(2))
    held.replay(GraphCapture(CPU), tiny.noise(4.0).tobytes())
    assert held._graphs.results["encoder"] == "4 lengths up to 512 feature frames"
    close = 0
    for number, seconds in enumerate((0.3, 1.0, 2.5, 4.0)):
        sound = tiny.noise(seconds, number)
        close += heard(held, sound).text == heard(plain, sound).text
    assert close >= (4 if strategy == "fp32" else 2)  # rounding turns random weights' texts


@pytest.mark.parametrize("words", ["bfloat16", "layers,bfloat16"])
def test_each_component_may_be_replayed_in_a_dtype_of_its_own(words: str, folder: Path) -> None:
    path, sound, alike = path_of(folder, "canary2"), tiny.noise(3.0), []
    for one in components.sweep(header(path), words):
        held = start_recognizer(
            protocol.Start(str(path), one.precision, threads=1, self_test=False), lambda _: None
        )
        held._fast_encoder, before = None, heard(held, sound).text
        held.replay(GraphCapture(CPU), sound.tobytes())
        assert "no more" not in str(held._graphs.results), one.component
        alike.append(heard(held, sound).text == before)
    assert sum(alike) >= 0.7 * len(alike)  # rounding turns random weights' texts


@pytest.mark.parametrize("model", SHIPPED)
def test_the_shipped_models_transcribe_the_same(model: str) -> None:
    plain, held = (
        start_recognizer(
            protocol.Start(model, STRATEGY_TABLE["fp32"], self_test=False), lambda _: None
        )
        for _ in range(2)
    )
    lines = (json.loads(line) for line in EVALUATION_MANIFEST.read_text().splitlines()[:12])
    clips = [files.read(EVALUATION_MANIFEST.parent / line["audio_filepath"]) for line in lines]
    held.replay(GraphCapture(CPU), clips[0].tobytes())
    for clip in clips:
        found, expected = heard(held, clip), heard(plain, clip)
        assert found.text == expected.text
        assert [(word.start, word.stop) for word in found.words] == [
            (w.start, w.stop) for w in expected.words
        ]
        for one, other in zip(found.words, expected.words, strict=True):
            assert one.confidence == pytest.approx(other.confidence, abs=1e-3)


@pytest.mark.parametrize("family", ["ctc", "rnnt", "tdt", "ca_hybrid", "canary1", "canary2"])
def test_workers_transcribe_several_the_same(family: str, folder: Path) -> None:
    plain, held = (worker(path_of(folder, family)) for _ in range(2))
    held.replay(GraphCapture(CPU))
    sounds = [
        sound.tobytes()
        for sound in noises([50_000, 4_000, 16_000, 0, 64_000, 33_333, 16_001, 47_000])
    ]
    starts = [1_000 * n for n in range(len(sounds))]
    for _ in range(2):
        answers = held.recognize_together(sounds, starts, "final")
    assert (8, 512, None) in held._fast_encoder._ready
    for answer, sound, start in zip(answers, sounds, starts, strict=True):
        found, expected = answer.hypothesis, plain.recognize(sound, start).hypothesis
        assert (found.text, found.start, found.stop) == (
            expected.text,
            expected.start,
            expected.stop,
        )
        assert [(word.start, word.stop) for word in found.words] == [
            (w.start, w.stop) for w in expected.words
        ]


@pytest.mark.parametrize("strategy", ["bfloat16", "half", "autocast-bf16", "selective", "int8"])
def test_encoders_of_every_arithmetic_encode_several(strategy: str, folder: Path) -> None:
    if strategy == "int8":
        pytest.importorskip("torchao", reason="int8 is an extra")
    plain, held = (worker(path_of(folder, "tdt"), strategy) for _ in range(2))
    held.replay(GraphCapture(CPU))
    sounds = noises([50_000, 16_000, 64_000, 33_333, 16_001, 47_000])
    for _ in range(2):
        encoded, counts = encoded_of(held, sounds)
    assert [shape[:2] for shape in held._fast_encoder._ready] == [(8, 512)]
    for row, (sound, count) in enumerate(zip(sounds, counts.tolist(), strict=True)):
        near(encoded[row : row + 1, :, :count].float(), encoded_of(plain, [sound])[0].float(), 0.05)


def test_answers_count_tokens_and_a_cpu_has_no_graphs(folder: Path) -> None:
    held = worker(path_of(folder, "ctc"), self_test=True)
    sound = tiny.noise(3.0)
    answer = held.recognize(sound.tobytes())
    encoded, lengths = held._encode([torch.as_tensor(sound)])
    assert answer.tokens == len(held._decoder(encoded, lengths).tokens) > 0
    assert ready_message(held).graphs == {}


# -- on a card
# --------------------------------------------------------------------------------------------------------

STRATEGIES = {"fp32": 1e-4, "bfloat16": 0.1, "half": 0.02, "autocast-bf16": 0.1, "int8": 0.1}
"""Strategy -> how far the encoder's output may be from that without graphs, as a part of its
largest value."""

CARD_FAMILIES = ("ctc", "rnnt", "tdt", "ca_hybrid", "canary1", "canary2")


def on_card(folder: Path, family: str, strategy: str, **options: Any) -> Recognizer:
    return worker(path_of(folder, family), strategy, device="cuda:0", self_test=True, **options)


@cuda
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", CARD_FAMILIES)
def test_graphs_transcribe_as_without(family: str, strategy: str, folder: Path) -> None:
    if strategy == "int8":
        pytest.importorskip("torchao", reason="int8 is an extra")
    plain, held = (on_card(folder, family, strategy, graphs=wanted) for wanted in (False, True))
    told = ready_message(held).graphs
    print(f"\n{family} {strategy}: {told}")
    assert ready_message(plain).graphs == {}
    assert set(told) == {"encoder", "decoder"}
    assert "no more" not in told["encoder"], told
    alike, dice = 0, random.Random(7)
    for number in range(20):
        sound = tiny.noise(dice.uniform(0.3, 10.0), number)
        with torch.inference_mode():
            pair = []
            for each in (plain, held):
                samples = torch.nn.functional.pad(
                    torch.as_tensor(sound), (0, max(0, 16_000 - len(sound)))
                )
                with each._applied.context("final"):
                    pair.append(each._encode([samples])[0].float())
        near(pair[1], pair[0], STRATEGIES[strategy])
        alike += heard(held, sound).text == heard(plain, sound).text
    assert alike >= {"fp32": 19}.get(strategy, 10), alike


@cuda
@pytest.mark.parametrize("strategy", ["fp32", "bfloat16", "half", "autocast-bf16"])
@pytest.mark.parametrize("family", ["canary1", "canary2"])
def test_a_cards_steps_are_those_of_one_after_the_other(
    family: str, strategy: str, folder: Path
) -> None:
    held = on_card(folder, family, strategy)
    aed = held._decoder
    assert "no more" not in ready_message(held).graphs["decoder"]
    alike = 0
    for number in range(12):
        with torch.inference_mode(), held._applied.context("final"):
            encoded, lengths = held._encode(
                [torch.as_tensor(tiny.noise(1.0 + number * 0.7, number))]
            )
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
    graphs, numbers = GraphCapture(torch.device("cuda:0")), torch.ones(8, device="cuda")
    assert graphs.record("encoder", lambda: numbers * float(numbers.sum().item())) is None
    assert graphs.results["encoder"].startswith("not replayed; no more: ")
    assert float((numbers + 1).sum()) == 16.0
    after = graphs.record("decoder", lambda: numbers.mul(2))
    assert after is not None
    assert math.isclose(float(after().sum()), 16.0)
    held = on_card(folder, "ctc", "fp32")
    assert "no more" not in ready_message(held).graphs["encoder"]


@cuda
def test_a_buffer_longer_than_every_length_is_transcribed_too_and_harms_none(folder: Path) -> None:
    plain, held = (on_card(folder, "ctc", "fp32", graphs=wanted) for wanted in (False, True))
    short, long = tiny.noise(3.0), tiny.noise(40.0)
    for sound in (short, long, short, long, short):
        assert heard(held, sound).text == heard(plain, sound).text


@cuda
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", CARD_FAMILIES)
def test_several_on_a_card_are_transcribed_as_each_alone(
    family: str, strategy: str, folder: Path
) -> None:
    if strategy == "int8":
        pytest.importorskip("torchao", reason="int8 is an extra")
    plain, held = (on_card(folder, family, strategy, graphs=wanted) for wanted in (False, True))
    alike = total = 0
    dice = random.Random(3)
    for batch in (8, 8, 8, 5, 5, 3, 10):
        sounds = noises([dice.randrange(16_000, 60_000) for _ in range(batch)])
        encoded, counts = encoded_of(held, sounds)
        for row, (sound, count) in enumerate(zip(sounds, counts.tolist(), strict=True)):
            near(
                encoded[row : row + 1, :, :count].float(),
                encoded_of(plain, [sound])[0].float(),
                STRATEGIES[strategy],
            )
        answers = held.recognize_together(
            [sound.tobytes() for sound in sounds], [0] * batch, "final"
        )
        alike += sum(
            answer.hypothesis.text == heard(plain, s).text
            for answer, s in zip(answers, sounds, strict=True)
        )
        total += batch
    told = ready_message(held).graphs
    print(f"\n{family} {strategy}: {told}, {alike} of {total} alike")
    assert "of 8 buffers" in told["encoder"]
    assert "no more" not in told["encoder"], told
    assert family[:6] != "canary" or told["decoder"].endswith("8 at once"), told
    assert strategy != "fp32" or alike >= 0.9 * total  # rounding turns random weights' texts


@cuda
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", ["rnnt", "tdt"])
def test_a_transducer_goes_on_behind_a_text_on_a_card(
    family: str, strategy: str, folder: Path
) -> None:
    if strategy == "int8":
        pytest.importorskip("torchao", reason="int8 is an extra")
    plain, held = (on_card(folder, family, strategy, graphs=wanted) for wanted in (False, True))
    text = held.model.tokenizer.ids_to_text([5, 9, 7])
    alike = 0
    for sound in noises([40_000, 90_000, 160_000] * 3):
        asked = sound.tobytes(), 0, "final", protocol.DecodingContext(text, 20_480)
        one, other = (each.recognize(*asked).hypothesis for each in (held, plain))
        assert one.resumed
        assert all(word.start >= 20_480 for word in one.words)
        alike += one.text == other.text
    print(f"\n{family} {strategy}: {alike} of 9 alike")
    assert strategy != "fp32" or alike >= 8  # rounding turns random weights' texts


@cuda
@pytest.mark.parametrize("family", ["rnnt", "tdt"])
def test_nemo_captures_no_more_once_it_has_captured_for_several(family: str, folder: Path) -> None:
    held = on_card(folder, family, "bfloat16")
    loop = held._decoder._model.decoding.decoding.decoding_computer
    states = []
    for batch in (1, 8, 1, 3, 8, 10, 1):
        sounds = [sound.tobytes() for sound in noises([32_000] * batch)]
        held.recognize_together(sounds, [0] * batch, "final")
        states.append(loop.state)
    assert loop.cuda_graphs_mode is not None
    assert all(state is states[1] for state in states[1:])


@cuda
@pytest.mark.parametrize("family", ["ctc", "tdt", "canary2"])
def test_memory_does_not_grow_once_several_are_captured(family: str, folder: Path) -> None:
    held, dice = on_card(folder, family, "bfloat16"), random.Random(1)

    def together(batch: int, most: int) -> None:
        sounds = [
            sound.tobytes()
            for sound in noises([dice.randrange(most // 2, most) for _ in range(batch)])
        ]
        held.recognize_together(sounds, [0] * batch, "final")

    for most in range(20_000, 160_001, 20_000):
        for batch in (*range(1, 9), *range(1, 9)):
            together(batch, most)
    reserved = torch.cuda.memory_reserved()
    for _ in range(100):
        together(dice.randint(1, 8), dice.randrange(32_000, 160_000))
    assert torch.cuda.memory_reserved() <= reserved
