"""The encoder without padding against NeMo's own, on every family: the same numbers to rounding,
the same way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from asrd import protocol
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.worker.casting import cast, components
from asrd.worker.encoder import conformer
from asrd.worker.startup import ready_message, start_recognizer
from tests.fakes import tiny

CPU = torch.device("cpu")
TOLERANCE = 2e-5
"""Of the largest value: float32 keeps 1e-7 of a number, and hundreds of sums follow one another."""

LENGTHS = (16_000, 16_001, 16_159, 16_160, 20_480, 47_999, 100_003, 160_000)
"""Samples: both parities of frames before and after each halving."""


def sound(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(tiny.noise(samples / 16_000 + 0.1, seed)[:samples])[None]


def nemo(model: Any, samples: torch.Tensor) -> torch.Tensor:
    """Return what a model puts out on NeMo's own way [1, D, T], without the frame that is masked at
    the end."""
    length = torch.tensor([samples.shape[1]])
    with torch.inference_mode():
        features, frames = model.preprocessor(input_signal=samples, length=length)
        encoded, frames = model.encoder(audio_signal=features, length=frames)
    return encoded[:, :, : int(frames[0])]


def unpadded(model: Any, samples: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        features, none = model.preprocessor.featurizer(samples, None)
        assert none is None
        encoded, frames = model.encoder(
            audio_signal=features.to(model.preprocessor.dtype_sentinel_tensor.dtype)
        )
    assert frames.tolist() == [encoded.shape[2]] * len(samples)
    return encoded


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_puts_out_what_nemo_does(family: str, folder: Path) -> None:
    theirs, ours = (tiny.restore(tiny.built(family, folder)) for _ in range(2))
    weights = {name: value.clone() for name, value in ours.state_dict().items()}
    assert conformer.remove_masks(ours, CPU)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, weights[name]), name
    for samples in (
        *LENGTHS,
        16_000,
    ):  # the first again, from positions that were kept for a longer one
        assert_same(unpadded(ours, sound(samples)), nemo(theirs, sound(samples)))


@pytest.mark.parametrize("family", ["ctc", "ca_rnnt"])
def test_several_of_one_length_are_each_what_they_are_alone(family: str, folder: Path) -> None:
    ours = tiny.restore(tiny.built(family, folder))
    conformer.remove_masks(ours, CPU)
    sounds = torch.cat([sound(40_000, seed) for seed in range(3)])
    assert_same(unpadded(ours, sounds), torch.cat([unpadded(ours, one[None]) for one in sounds]))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_length_that_is_given_goes_nemos_way(family: str, folder: Path) -> None:
    theirs, ours = (tiny.restore(tiny.built(family, folder)) for _ in range(2))
    conformer.remove_masks(ours, CPU)
    padded = torch.cat([sound(30_000), sound(30_000, 1)])
    padded[1, 20_000:] = 0
    lengths = torch.tensor([30_000, 20_000])
    with torch.inference_mode():
        features, frames = theirs.preprocessor(input_signal=padded, length=lengths)
        expected, _ = theirs.encoder(audio_signal=features, length=frames)
        features, frames = ours.preprocessor(input_signal=padded, length=lengths)
        found, _ = ours.encoder(audio_signal=features, length=frames)
    assert_same(found, expected)


@pytest.mark.parametrize("family", ["ca_ctc", "ca_rnnt"])
def test_streaming_with_caches_is_nemos(family: str, folder: Path) -> None:
    theirs, ours = (tiny.restore(tiny.built(family, folder)) for _ in range(2))
    conformer.remove_masks(ours, CPU)
    found = []
    with torch.inference_mode():
        features, frames = theirs.preprocessor(
            input_signal=sound(32_000), length=torch.tensor([32_000])
        )
        for model in (theirs, ours):
            channel, time, length = model.encoder.get_initial_cache_state(batch_size=1)
            found.append(
                model.encoder.cache_aware_stream_step(features, frames, channel, time, length)
            )
    for one, other in zip(*found, strict=True):
        assert_same(one.float(), other.float())


@pytest.mark.parametrize("strategy", STRATEGY_TABLE)
@pytest.mark.parametrize("family", ["ctc", "canary2"])
def test_effective_dtypes_are_reported_as_without_it(
    family: str, strategy: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Casting reads what is effective from the model: our classes must leave it the same layers to
    read from."""
    start = protocol.Start(str(tiny.built(family, folder)), STRATEGY_TABLE[strategy])
    ours = start_recognizer(start, lambda _: None)
    monkeypatch.setattr(conformer, "remove_masks", lambda *_, **__: False)
    theirs = start_recognizer(start, lambda _: None)
    assert (ours._unmasked, theirs._unmasked) == (True, False)
    assert ready_message(ours).effective == ready_message(theirs).effective
    assert ready_message(ours).fallbacks == ready_message(theirs).fallbacks
    assert components.weights_bytes(ours.model) == components.weights_bytes(theirs.model)


@pytest.mark.parametrize("strategy", ["half", "bfloat16", "autocast-bf16", "selective", "int8"])
def test_reduced_precision_is_no_further_from_float32_than_nemos(
    strategy: str, folder: Path
) -> None:
    exact = nemo(tiny.restore(tiny.built("ctc", folder)), sound(64_000))
    apart = {}
    for name, run in (("nemo", nemo), ("ours", unpadded)):
        model = tiny.restore(tiny.built("ctc", folder))
        if name == "ours":
            assert conformer.remove_masks(model, CPU)
        applied = cast.apply(model, STRATEGY_TABLE[strategy], CPU)
        with torch.inference_mode(), applied.context("final"):
            apart[name] = float((run(model, sound(64_000)).float() - exact).pow(2).mean().sqrt())
    assert apart["ours"] <= 1.25 * apart["nemo"]


@pytest.mark.parametrize(
    "change",
    [
        {"encoder__subsampling": "stacking", "encoder__subsampling_factor": 4},
        {
            "encoder__self_attention_model": "rel_pos_local_attn",
            "encoder__att_context_size": [16, 16],
        },
        {"encoder__conv_norm_type": "group_norm4"},
        {"encoder__use_pytorch_sdpa": True},
        {"preprocessor__mag_power": 1.0},
        {"preprocessor__exact_pad": True},
    ],
)
def test_an_encoder_of_another_kind_is_left_alone(change: dict[str, Any], folder: Path) -> None:
    name = "-".join(f"{key}-{value}" for key, value in change.items()).replace("/", "")
    model = tiny.restore(tiny.build("ctc", folder, name=name, **change))
    kinds = [type(module) for module in model.modules()]
    assert not conformer.remove_masks(model, CPU)
    assert [type(module) for module in model.modules()] == kinds
