"""The encoder as one straight program: NeMo's numbers, its own weights still, and no hook passed
over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from asrd import protocol
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.worker.casting import components
from asrd.worker.encoder import conformer, functional
from asrd.worker.recognizer import NonFiniteError
from asrd.worker.startup import start_recognizer
from tests.fakes import tiny
from tests.worker.test_conformer import CPU, LENGTHS, assert_same, nemo, sound

WITH_CACHES = ("ca_ctc", "ca_rnnt", "ca_tdt", "ca_hybrid")


def restored(family: str, folder: Path, **change: Any) -> Any:
    changed = (
        tiny.build(family, folder, name=f"{family}-changed", **change)
        if change
        else tiny.built(family, folder)
    )
    model = tiny.restore(changed)
    assert conformer.remove_masks(model, CPU)
    return model


def put_out(
    model: Any, program: functional.FunctionalEncoder, samples: torch.Tensor
) -> torch.Tensor:
    with torch.inference_mode():
        found = program(model.preprocessor.featurizer(samples, None)[0])
    assert found is not None
    return found


@pytest.mark.parametrize(
    "family", [family for family in tiny.FAMILIES if family not in WITH_CACHES]
)
def test_every_family_puts_out_what_nemo_does(family: str, folder: Path) -> None:
    theirs, ours = tiny.restore(tiny.built(family, folder)), restored(family, folder)
    weights = {name: value.clone() for name, value in ours.state_dict().items()}
    stored = components.weights_bytes(ours)
    assert functional.refusal(ours.encoder) == ""
    program = functional.FunctionalEncoder(ours.encoder)
    for samples in (*LENGTHS, 16_000):
        assert_same(put_out(ours, program, sound(samples)), nemo(theirs, sound(samples)))
    assert components.weights_bytes(ours) == stored
    for name, value in ours.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_several_of_one_length_are_each_what_they_are_alone(folder: Path) -> None:
    ours = restored("ctc", folder)
    program = functional.FunctionalEncoder(ours.encoder)
    sounds = torch.cat([sound(40_000, seed) for seed in range(3)])
    alone = torch.cat([put_out(ours, program, one[None]) for one in sounds])
    assert_same(put_out(ours, program, sounds), alone)


def test_layers_without_biases_do_without(folder: Path) -> None:
    ours = restored("ctc", folder, encoder__use_bias=False)
    assert ours.encoder.layers[0].feed_forward1.linear1.bias is None
    theirs = tiny.restore(tiny.build("ctc", folder, name="ctc-changed", encoder__use_bias=False))
    assert_same(
        put_out(ours, functional.FunctionalEncoder(ours.encoder), sound(40_000)),
        nemo(theirs, sound(40_000)),
    )


def test_modules_still_do_the_same_after_their_weights_were_joined(folder: Path) -> None:
    ours = restored("ctc", folder)
    with torch.inference_mode():
        features, _ = ours.preprocessor.featurizer(sound(40_000), None)
        before = ours.encoder(audio_signal=features)[0].clone()
        functional.FunctionalEncoder(ours.encoder)
        assert_same(ours.encoder(audio_signal=features)[0], before)


def test_what_it_cannot_do_is_left_to_the_modules(folder: Path) -> None:
    ours = restored("ctc", folder)
    program = functional.FunctionalEncoder(ours.encoder)
    features = torch.zeros(2, 80, 200)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert program(features) is None
    assert program(features, [200, 120]) is None
    handle = ours.encoder.layers[1].conv.register_forward_hook(lambda *_: None)
    assert functional.refusal(ours.encoder) == "hooked layers"
    handle.remove()
    assert functional.refusal(ours.encoder) == ""
    ours.encoder.to(torch.bfloat16)
    assert "float32" in functional.refusal(ours.encoder)
    assert functional.refusal(restored("ca_ctc", folder).encoder)


@pytest.mark.parametrize("strategy", STRATEGY_TABLE)
def test_only_a_plain_float32_encoder_is_run_so(strategy: str, folder: Path) -> None:
    held = start_recognizer(
        protocol.Start(str(tiny.built("ctc", folder)), STRATEGY_TABLE[strategy]), lambda _: None
    )
    lowered = {"half", "half-naive", "bfloat16", "selective", "int8"}
    assert (held._fast_encoder is None) == (strategy in lowered), functional.refusal(
        held.model.encoder
    )


def test_where_nan_begins_is_found_all_the_same(folder: Path) -> None:
    held = start_recognizer(
        protocol.Start(str(tiny.built("ctc", folder)), STRATEGY_TABLE["fp32"]), lambda _: None
    )
    assert held._fast_encoder is not None
    held.model.encoder.layers[0].feed_forward2.linear1.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"encoder\.layers\.0"):
        held.recognize(tiny.noise(2.0).tobytes())
