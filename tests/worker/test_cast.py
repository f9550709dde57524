"""Every strategy on tiny models of every family: what it stores, runs in, leaves alone and admits
to."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from asrd.engine.verify import mismatch
from asrd.errors import ConfigError, ModelError, PrecisionError
from asrd.precision.fallback import restored
from asrd.precision.plan import Candidate
from asrd.precision.strategies import FP32_BASELINE, STRATEGY_TABLE, Precision
from asrd.worker.casting import cast, components, quantize
from tests.fakes import tiny
from tests.fakes.engine import ready as introduced

CPU = torch.device("cpu")
EVERY = ("ctc", "tdt", "canary2")
"""Families that every strategy is tried on; the others get those that differ most."""
SOME = ("fp32", "half", "selective", "autocast-fp16", "int8")
PAIRS = [(family, name) for family in EVERY for name in STRATEGY_TABLE]
PAIRS += [(family, name) for family in tiny.FAMILIES if family not in EVERY for name in SOME]

CARRIED = {"float16": 2e-3, "bfloat16": 1.5e-2, "int8": 2.5e-2}
"""Relative error (rms) of the encoder's output that a dtype may cause, about twice what it does."""


@cache
def unpacked(family: str, folder: Path) -> Path:
    path = tiny.build(family, folder)
    with tarfile.open(path) as archive:
        archive.extractall(folder / family, filter="data")
    return folder / family


def restore(family: str, folder: Path) -> Any:
    """Restore a tiny model, float32 on the CPU, from files that were unpacked once."""
    with tiny.quiet():
        from nemo.collections.asr.models import ASRModel
        from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

        connector = SaveRestoreConnector()
        connector.model_extracted_dir = str(unpacked(family, folder))
        model = ASRModel.restore_from(
            f"{family}.nemo", map_location=CPU, save_restore_connector=connector
        )
    model.preprocessor.featurizer.dither, model.preprocessor.featurizer.pad_to = 0.0, 0
    return model.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def flags() -> Iterator[None]:
    """Give torch's process-wide switches back as the library sets them."""
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


@cache
def sound() -> torch.Tensor:
    """Two seconds of noise in bursts, [32000]."""
    seeded = torch.Generator().manual_seed(1)
    level = torch.rand(20, generator=seeded).repeat_interleave(1600)
    return torch.randn(32_000, generator=seeded) * 0.1 * level


def encode(
    model: Any, applied: cast.CastModel, phase: str = "final"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (features, encoded), in whatever dtype they come."""
    with torch.inference_mode(), applied.context(phase):
        features, frames = model.preprocessor(
            input_signal=sound()[None], length=torch.tensor([len(sound())])
        )
        encoded, _ = model.encoder(audio_signal=features, length=frames)
    return features, encoded


def transcribe(model: Any, applied: cast.CastModel, phase: str = "final") -> str:
    """Return what NeMo itself makes of the sound, inside the precision's context."""
    canary2 = getattr(getattr(model, "prompt", None), "NAME", "") == "canary2"
    words = {"source_lang": "en", "target_lang": "en", "pnc": "no"} if canary2 else {}
    with tiny.quiet(), torch.inference_mode(), applied.context(phase):
        heard = model.transcribe([sound().numpy()], batch_size=1, verbose=False, **words)
    first = heard[0][0] if isinstance(heard, tuple) else heard[0]
    return str(getattr(first, "text", first))


def apply(model: Any, precision: Precision | str) -> cast.CastModel:
    with tiny.quiet():
        return cast.apply(
            model, STRATEGY_TABLE[precision] if isinstance(precision, str) else precision, CPU
        )


def parted(parts: dict[str, Any], weights: Any = "float32") -> Precision:
    return msgspec.structs.replace(
        STRATEGY_TABLE["selective"], parts=parts, families={}, weights=weights
    )


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@cache
def baseline(family: str, folder: Path) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Return (features, encoded, text) of a model that nothing was applied to."""
    model = restore(family, folder)
    untouched = cast.CastModel(model, FP32_BASELINE, CPU, None)
    cast.set_flags(FP32_BASELINE, CPU)
    return *encode(model, untouched), transcribe(model, untouched)


def arithmetic(precision: Precision) -> str:
    """Return the coarsest dtype that a strategy computes the encoder in on this CPU."""
    if precision.quantize:
        return "int8"
    if precision.trainer or precision.phases:
        return "bfloat16"  # Lightning has no float16 autocast on a CPU
    return precision.autocast or next(iter(precision.parts.values()), precision.weights)


# -- every strategy on every family
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_a_strategy_runs_and_its_output_is_near(family: str, name: str, folder: Path) -> None:
    model, precision = restore(family, folder), STRATEGY_TABLE[name]
    applied = apply(model, precision)
    phase = "partial" if precision.phases else "final"
    with applied.observing():
        _, encoded = encode(model, applied, phase)
        text = transcribe(model, applied, phase)
    _, expected, said = baseline(family, folder)
    error = (encoded.float() - expected).norm() / expected.norm()
    dtype = arithmetic(precision)
    if dtype == "float32":
        assert (float(error), text) == (0.0, said)
    else:
        assert 1e-4 < error <= CARRIED[dtype]
        assert isinstance(text, str)
    assert set(applied.effective()) == set(components.components(model))
    assert {fallback.component for fallback in applied.fallbacks} <= set(applied.effective())
    assert read_back(applied) == ""


def read_back(applied: cast.CastModel) -> str:
    """Return where the daemon would say that this is not what its candidate says."""
    told = introduced(applied.precision)
    told = msgspec.structs.replace(told, effective=applied.effective(), fallbacks=applied.fallbacks)
    return mismatch(Candidate(applied.precision, "cpu"), told)


def test_what_overflows_in_one_layer_is_found_and_cured_by_that_layer_alone(folder: Path) -> None:
    """Weights that float32 carries with ease and float16 does not: up by 1e5 in one matrix, down in
    the next."""
    model, twin = (restore("ctc", folder) for _ in range(2))
    for each in (model, twin):
        layer = each.encoder.layers[1].feed_forward1
        layer.activation = nn.ReLU()
        for tensor, factor in (
            (layer.linear1.weight, 1e5),
            (layer.linear1.bias, 1e5),
            (layer.linear2.weight, 1e-5),
        ):
            tensor *= factor
    applied = apply(model, "half")
    assert not encode(model, applied)[1].isfinite().all()
    found = components.first_non_finite(model, lambda: encode(model, applied))
    assert found == "encoder.layers.1"
    assert hooks(model) == hooks(apply(restore("ctc", folder), "half").model)
    softer = restored(STRATEGY_TABLE["half"], found)
    assert softer is not None
    cured = apply(twin, softer)
    assert encode(twin, cured)[1].isfinite().all()
    assert components.first_non_finite(twin, lambda: encode(twin, cured)) == "encoder"
    assert set(cured.effective()["encoder"].split("/")) == {"float16", "float32"}
    assert read_back(cured) == ""


@pytest.mark.parametrize("family", ["ctc", "tdt", "canary2"])
@pytest.mark.parametrize("component", ["encoder.pre_encode", "encoder.layers.0", "encoder"])
def test_every_component_that_can_be_restored_is_as_its_candidate(
    family: str, component: str, folder: Path
) -> None:
    softer = restored(STRATEGY_TABLE["bfloat16"], component)
    assert softer is not None
    model = restore(family, folder)
    applied = apply(model, softer)
    with applied.observing():
        encode(model, applied)
        assert isinstance(transcribe(model, applied), str)
    assert read_back(applied) == ""
    assert read_back(apply(restore(family, folder), "bfloat16")) == ""


EFFECTIVE = {
    "fp32": ("float32", "float32", "float32"),
    "tf32": ("float32", "float32", "float32"),
    "16-mixed": ("float32", "float32 as bfloat16", "float32 as bfloat16"),
    "bf16-mixed": ("float32", "float32 as bfloat16", "float32 as bfloat16"),
    "half": ("float32", "float16", "float16"),
    "bfloat16": ("float32", "bfloat16", "bfloat16"),
    "half-naive": ("float16 as float32", "float16", "float16"),
    "autocast-fp16": ("float32", "float32 as float16", "float32 as float16"),
    "autocast-bf16": ("float32", "float32 as bfloat16", "float32 as bfloat16"),
    "selective": ("float32", "bfloat16/float32", "float32"),
    "phased": ("float32", "float32 as bfloat16", "float32 as bfloat16"),
    "int8": ("float32", "int8/bfloat16 as bfloat16", "int8/bfloat16 as bfloat16"),
}
"""Strategy -> effective front end, encoder and CTC decoder on a CPU."""


@pytest.mark.processor
@pytest.mark.parametrize("name", STRATEGY_TABLE)
def test_effective_is_read_back_from_storage_and_arithmetic(name: str, folder: Path) -> None:
    model = restore("ctc", folder)
    applied = apply(model, name)
    with applied.observing():
        transcribe(model, applied, "partial")
    assert tuple(applied.effective().values()) == EFFECTIVE[name]


def test_arithmetic_is_not_reported_before_it_was_observed(folder: Path) -> None:
    model = restore("ctc", folder)
    applied = apply(model, "autocast-bf16")
    assert applied.effective()["encoder"] == "float32"
    with applied.observing():
        encode(model, applied)
    assert applied.effective()["encoder"] == "float32 as bfloat16"


def test_observing_leaves_no_hook_even_when_the_step_fails(folder: Path) -> None:
    model = restore("tdt", folder)
    applied = apply(model, "half")
    assert hooks(model) == 0
    with applied.observing():
        assert hooks(model) > 10
    assert hooks(model) == 0
    with pytest.raises(TypeError), applied.observing():
        model.encoder(nonsense=1)
    assert hooks(model) == 0


# -- the front end
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in STRATEGY_TABLE if name != "half-naive"])
def test_the_front_end_stays_float32_to_the_bit(name: str, folder: Path) -> None:
    model = restore("canary2", folder)
    before = {
        key: buffer.clone() for key, buffer in model.preprocessor.named_buffers() if buffer.numel()
    }
    applied = apply(model, name)
    after = dict(model.preprocessor.named_buffers())
    assert before
    for key, buffer in before.items():
        assert after[key].dtype == torch.float32
        assert torch.equal(after[key], buffer)
    features, _ = encode(model, applied)
    plain, _, _ = baseline("canary2", folder)
    assert features.dtype == next(model.encoder.parameters()).dtype
    assert torch.equal(features, plain.to(features.dtype))


def test_the_naive_cast_is_a_bare_half(folder: Path) -> None:
    naive, bare = restore("tdt", folder), restore("tdt", folder).half()
    applied = apply(naive, "half-naive")
    mine, theirs = naive.state_dict(), bare.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(
        torch.equal(mine[key], theirs[key]) and mine[key].dtype == theirs[key].dtype for key in mine
    )
    assert torch.equal(
        encode(naive, applied)[1], encode(bare, cast.CastModel(bare, FP32_BASELINE, CPU, None))[1]
    )


def test_casting_the_front_end_costs_features(folder: Path) -> None:
    plain, _, _ = baseline("ctc", folder)
    errors = {}
    for name in ("half", "half-naive"):
        model = restore("ctc", folder)
        features, _ = encode(model, apply(model, name))
        errors[name] = float((features.float() - plain).abs().mean())
    assert errors["half-naive"] > 2 * errors["half"] > 0


# -- components, islands and boundaries
# -------------------------------------------------------------------------------


@pytest.mark.processor
@pytest.mark.parametrize(
    ("family", "parts", "weights"),
    [
        ("tdt", {"joint": "bfloat16"}, "float32"),
        ("tdt", {"decoder": "float32"}, "float16"),
        ("tdt", {"joint.enc": "float32"}, "float16"),
        ("hybrid", {"joint": "float32", "ctc_decoder": "float16"}, "bfloat16"),
        ("ctc", {"encoder.layers.*.conv": "float32", "encoder.pre_encode": "float32"}, "bfloat16"),
        ("ctc", {"encoder.layers": "float32"}, "float16"),
        ("ca_rnnt", {"encoder.layers.0.self_attn": "float32"}, "bfloat16"),
        ("canary2", {"decoder": "bfloat16"}, "float32"),
        ("canary2", {"encoder": "float32"}, "float16"),
        ("canary2", {"transf_decoder._decoder.layers.0": "float32"}, "bfloat16"),
        ("canary2", {"*norm*": "float32"}, "bfloat16"),
        (
            "canary2",
            {"encoder": "bfloat16", "encoder.layers.1": "float32", "norms": "bfloat16"},
            "float32",
        ),
    ],
)
def test_any_map_of_components_runs(
    family: str, parts: dict[str, Any], weights: str, folder: Path
) -> None:
    model = restore(family, folder)
    applied = apply(model, parted(parts, weights))
    assert not applied.fallbacks
    with applied.observing():
        _, encoded = encode(model, applied)
        text = transcribe(model, applied)
    assert isinstance(text, str)
    assert encoded.isfinite().all()
    assert not any(" as " in told for told in applied.effective().values())
    assert read_back(applied) == ""


def test_the_deepest_name_decides(folder: Path) -> None:
    model = restore("ctc", folder)
    apply(model, parted({"norms": "float16", "encoder.layers.0": "float32", "encoder": "bfloat16"}))
    layers = model.encoder.layers
    assert layers[0].self_attn.linear_q.weight.dtype == torch.float32
    assert layers[1].self_attn.linear_q.weight.dtype == torch.bfloat16
    assert {layer.norm_out.weight.dtype for layer in layers} == {torch.float16}


def test_selective_keeps_what_blocks_add_up_to_and_differs_by_family(folder: Path) -> None:
    for family, decoder in (("ctc", {"float32"}), ("tdt", {"float32"}), ("canary2", {"bfloat16"})):
        model = restore(family, folder)
        applied = apply(model, "selective")
        summed = []
        model.encoder.layers[0].register_forward_hook(
            lambda *call, kept=summed: kept.append(call[2].dtype)
        )
        encode(model, applied)
        assert summed == [torch.float32]
        layer = model.encoder.layers[1]
        assert (
            layer.self_attn.linear_q.weight.dtype
            == layer.conv.depthwise_conv.weight.dtype
            == torch.bfloat16
        )
        assert layer.self_attn.pos_bias_u.dtype == layer.norm_out.weight.dtype == torch.float32
        after = [
            told
            for name, told in applied.effective().items()
            if name not in ("preprocessor", "encoder")
        ]
        assert set(after) == decoder


def test_attention_that_is_an_island_still_sees_that_it_looks_at_itself(folder: Path) -> None:
    model = restore("ctc", folder)
    applied = apply(model, parted({"encoder.layers.*.self_attn": "bfloat16"}))
    seen = []
    attention = model.encoder.layers[0].self_attn
    forward = attention.forward

    def looking(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **words: Any) -> Any:
        seen.append((query is key is value, query.dtype))
        return forward(query=query, key=key, value=value, **words)

    attention.forward = looking
    encode(model, applied)
    assert seen == [(True, torch.bfloat16)]


def test_an_island_computes_in_its_own_dtype(folder: Path) -> None:
    model = restore("ctc", folder)
    applied = apply(
        model, parted({"encoder": "bfloat16", "encoder.layers.0.feed_forward1": "float32"})
    )
    seen = []
    model.encoder.layers[0].feed_forward1.linear1.register_forward_hook(
        lambda *call: seen.append(call[2].dtype)
    )
    model.encoder.layers[0].feed_forward1.register_forward_hook(
        lambda *call: seen.append(call[2].dtype)
    )
    _, encoded = encode(model, applied)
    assert seen == [torch.float32, torch.bfloat16]
    assert encoded.dtype == torch.float32


@pytest.mark.parametrize(
    ("family", "name", "hint"),
    [
        ("ctc", "encodr", "did you mean 'encoder'?"),
        ("ctc", "norm", "did you mean 'norms'?"),
        ("tdt", "jont.enc", "did you mean 'joint'?"),
        ("ctc", "encoder.layers.7.conv", "did you mean 'encoder.layers."),
        ("ctc", "encoder.layers.0.self_atn", "did you mean 'encoder.layers.0.self_attn'?"),
        ("canary2", "decodr", "did you mean 'decoder'?"),
        ("ctc", "zzz", "known: preprocessor, encoder, decoder, norms"),
    ],
)
def test_an_unknown_component_is_named_with_the_nearest(
    family: str, name: str, hint: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        apply(restore(family, folder), parted({name: "float32"}))
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize("name", ["half", "bfloat16", "int8", "selective"])
def test_the_head_stays_tied_to_the_embedding(name: str, folder: Path) -> None:
    model = restore("canary2", folder)
    apply(model, name)
    assert (
        model.log_softmax.mlp.layer0.weight is model.transf_decoder.embedding.token_embedding.weight
    )


@pytest.mark.parametrize("named", ["transf_decoder", "log_softmax"])
def test_a_shared_weight_has_one_dtype_and_that_is_reported(named: str, folder: Path) -> None:
    model = restore("canary2", folder)
    applied = apply(model, parted({named: "bfloat16"}))
    head, embedding = model.log_softmax.mlp.layer0, model.transf_decoder.embedding.token_embedding
    assert head.weight is embedding.weight
    assert head.weight.dtype == head.bias.dtype == torch.float32
    assert [(f.component, f.wanted, f.got) for f in applied.fallbacks] == [
        (named, "bfloat16", "float32")
    ]
    assert isinstance(transcribe(model, applied), str)


def test_a_model_without_an_encoder_is_refused() -> None:
    with pytest.raises(ModelError, match="no encoder"):
        cast.apply(nn.Sequential(nn.Linear(2, 2)), FP32_BASELINE, CPU)


# -- contexts
# ---------------------------------------------------------------------------------------------------------


def autocast_now() -> tuple[bool, torch.dtype, bool]:
    return (
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
    )


@pytest.mark.parametrize("name", ["16-mixed", "bf16-mixed"])
def test_the_trainers_own_plugin_is_entered(name: str, folder: Path) -> None:
    from lightning.pytorch import Trainer
    from lightning.pytorch.plugins.precision import MixedPrecision

    applied = apply(restore("ctc", folder), name)
    assert isinstance(applied.trainer, Trainer)
    assert isinstance(applied.trainer.precision_plugin, MixedPrecision)
    assert applied.trainer.precision == "bf16-mixed"
    with applied.context("final"):
        assert autocast_now() == (
            True,
            torch.bfloat16,
            True,
        )  # Lightning keeps the cache that asrd's own leaves off
    assert not torch.is_autocast_enabled("cpu")


def test_what_lightning_changes_is_a_fallback_in_its_own_words(folder: Path) -> None:
    applied = apply(restore("canary2", folder), "16-mixed")
    assert {f.component for f in applied.fallbacks} == set(applied.effective()) - {"preprocessor"}
    assert {(f.wanted, f.got) for f in applied.fallbacks} == {("float16", "bfloat16")}
    assert "AMP with fp16 is not supported on CPU" in applied.fallbacks[0].reason
    assert apply(restore("canary2", folder), "bf16-mixed").fallbacks == []


def test_autocast_is_nested_safely_and_keeps_no_weights(folder: Path) -> None:
    applied = apply(restore("ctc", folder), "autocast-bf16")
    with applied.context("final"), applied.context("partial"):
        assert autocast_now() == (True, torch.bfloat16, False)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("phase", "on"), [("warmup", False), ("partial", True), ("final", False)])
def test_only_the_named_phase_runs_under_autocast(phase: str, on: bool, folder: Path) -> None:
    model = restore("ctc", folder)
    applied = apply(model, "phased")
    with applied.context(phase):
        assert torch.is_autocast_enabled("cpu") is on
    _, encoded = encode(model, applied, phase)
    assert torch.equal(encoded, baseline("ctc", folder)[1]) is not on


# -- what a device cannot do
# ------------------------------------------------------------------------------------------


def test_tf32_on_a_cpu_is_a_fallback(folder: Path) -> None:
    applied = apply(restore("tdt", folder), "tf32")
    assert {(f.component, f.wanted, f.got) for f in applied.fallbacks} == {
        (component, "tf32", "float32") for component in ("encoder", "decoder", "joint")
    }
    assert all("CUDA" in f.reason for f in applied.fallbacks)


def without(monkeypatch: pytest.MonkeyPatch, layer: type[nn.Module], dtype: torch.dtype) -> None:
    """Make this CPU one that lacks a layer in a dtype, stored or under autocast."""
    forward = layer.forward

    def lacking(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        under = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == dtype
        if under or next(self.parameters()).dtype == dtype:
            raise RuntimeError(f'"{layer.__name__}" not implemented for {dtype}')
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", lacking)


def test_a_layer_missing_in_half_keeps_its_component_float32(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, nn.LSTM, torch.float16)
    model = restore("tdt", folder)
    applied = apply(model, "half")
    [fallback] = applied.fallbacks
    assert (fallback.component, fallback.wanted, fallback.got) == ("decoder", "float16", "float32")
    assert "LSTM cannot run in float16" in fallback.reason
    assert applied.effective() == {
        "preprocessor": "float32", "encoder": "float16", "decoder": "float32", "joint": "float16"
    }  # fmt: skip
    assert transcribe(model, applied) == baseline("tdt", folder)[2]


def test_a_component_that_cannot_run_under_autocast_runs_outside_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, nn.Conv2d, torch.float16)
    without(monkeypatch, nn.LSTM, torch.float16)
    model = restore("tdt", folder)
    applied = apply(model, "autocast-fp16")
    assert [f.component for f in applied.fallbacks] == ["encoder", "decoder"]
    assert all("under float16 autocast" in f.reason for f in applied.fallbacks)
    with applied.observing():
        _, encoded = encode(model, applied)
        transcribe(model, applied)
    assert torch.equal(encoded, baseline("tdt", folder)[1])
    told = applied.effective()
    assert (told["encoder"], told["decoder"], told["joint"]) == (
        "float32",
        "float32",
        "float32 as float16",
    )


def test_the_probe_leaves_the_model_as_it_was(folder: Path) -> None:
    model = restore("tdt", folder)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    applied = apply(model, "autocast-fp16")
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    reasons = {f.component: f.reason for f in applied.fallbacks}
    assert set(reasons) <= {"decoder"}  # oneDNN's LSTM, where it is missing


def test_a_cast_that_did_not_happen_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cast, "cast_modules", lambda *_: None)
    with pytest.raises(PrecisionError, match="is stored as float32, not as float16"):
        apply(restore("ctc", folder), "half")


def test_emulated_bfloat16_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Quadro T1000")
    model = restore("ctc", folder)
    for name in ("bfloat16", "selective", "phased", "autocast-bf16", "int8"):
        with pytest.raises(PrecisionError, match="Quadro T1000 only emulates bfloat16"):
            cast.apply(model, STRATEGY_TABLE[name], torch.device("cuda:0"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# -- flags
# ------------------------------------------------------------------------------------------------------------


def switches() -> set[str]:
    """Return the fp32_precision of everything that can take TF32, by the newer switches."""
    backends = torch.backends
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    return {place.fp32_precision for place in places}


@pytest.mark.parametrize("name", [name for name in STRATEGY_TABLE if name != "tf32"])
def test_tf32_is_off_everywhere(name: str) -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    cast.set_flags(STRATEGY_TABLE[name], CPU)
    assert switches() == {"ieee"}
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_the_newer_switches_cannot_turn_it_on_behind_the_older() -> None:
    torch.backends.fp32_precision = "tf32"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    cast.set_flags(FP32_BASELINE, CPU)
    assert switches() == {"ieee"}
    assert (
        not torch.backends.cudnn.allow_tf32
    )  # torch raises here when the two kinds of switches disagree


@pytest.mark.parametrize(("capability", "on"), [((8, 6), True), ((7, 5), False)])
def test_tf32_follows_the_card(
    capability: tuple[int, int], on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    for _ in range(2):
        cast.set_flags(FP32_BASELINE, torch.device("cuda:0"))
        cast.set_flags(STRATEGY_TABLE["tf32"], torch.device("cuda:0"))
    assert torch.get_float32_matmul_precision() == ("high" if on else "highest")
    assert torch.backends.cudnn.allow_tf32 is on
    assert torch.backends.cuda.matmul.allow_tf32 is on


# -- bytes
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fp32", "half", "bfloat16", "selective", "half-naive"])
@pytest.mark.parametrize("family", EVERY)
def test_weights_bytes_are_those_of_the_storages(family: str, name: str, folder: Path) -> None:
    model = restore(family, folder)
    apply(model, name)
    tensors = [*model.parameters(), *model.buffers()]
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()
    }
    assert components.weights_bytes(model) == sum(storages.values())


def test_half_is_half_of_all_but_the_front_end(folder: Path) -> None:
    model = restore("ctc", folder)
    whole, counters = (
        components.weights_bytes(model),
        sum(b.nbytes for b in model.buffers() if b.dtype == torch.int64),
    )
    front = components.weights_bytes(model.preprocessor)
    apply(model, "half")
    assert components.weights_bytes(model) == (whole - front - counters) // 2 + front + counters


def test_canarys_hidden_model_is_counted_and_reported(folder: Path) -> None:
    model, hidden = restore("canary2", folder), restore("ctc", folder)
    alone = components.weights_bytes(model)
    object.__setattr__(model, "timestamps_asr_model", hidden)  # as NeMo attaches it
    assert components.weights_bytes(model) == alone + components.weights_bytes(hidden)
    assert apply(model, "half").effective()["timestamps_asr_model"] == "float32"


# -- int8
# -------------------------------------------------------------------------------------------------------------


def quantised(model: nn.Module) -> dict[str, nn.Linear]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and hasattr(module.weight, "qdata")
    }


def test_int8_reaches_95_percent_of_a_true_encoder() -> None:
    with tiny.quiet():
        from nemo.collections.asr.modules import ConformerEncoder

        model = nn.Module()
        model.encoder = ConformerEncoder(
            feat_in=128, n_layers=2, d_model=1024, subsampling="dw_striding", subsampling_factor=8,
            subsampling_conv_channels=256, ff_expansion_factor=4, n_heads=8, conv_kernel_size=9, pos_emb_max_len=100,
        ).eval()  # fmt: skip
    total = sum(p.numel() for p in model.parameters())
    before = sum(p.nbytes for p in model.parameters())
    apply(model, "int8")
    layers = quantised(model)
    covered = sum(layer.weight.numel() for layer in layers.values())
    assert covered / total >= 0.99
    assert sum("pointwise_conv" in name for name in layers) == 4
    assert components.weights_bytes(model) <= 0.27 * before


def test_int8_quantises_every_linear_and_every_lookup_but_no_recurrent_layer(folder: Path) -> None:
    canary, tdt = restore("canary2", folder), restore("tdt", folder)
    for model in (canary, tdt):
        apply(model, "int8")
        linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        assert linears == set(quantised(model))
        assert not any(type(m) is nn.Conv1d and m.kernel_size == (1,) for m in model.modules())
        lookups = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        assert [type(lookup) for lookup in lookups] == [quantize.Lookup]
        assert lookups[0].weight.qdata.dtype == torch.int8
        recurrent = [p for name, p in model.named_parameters() if "lstm" in name]
        assert not any(hasattr(p, "qdata") for p in recurrent)
    assert len([name for name in quantised(canary) if name.startswith("transf_decoder")]) == 2 * 10


@pytest.mark.parametrize("learned", [False, True])
def test_an_int8_embedding_is_the_output_layers_own_rows(learned: bool, tmp_path: Path) -> None:
    path = tiny.build("canary2", tmp_path, learned_positions=learned)
    plain, model = tiny.restore(path), tiny.restore(path)
    apply(model, "int8")
    head, lookup = model.log_softmax.mlp.layer0, model.transf_decoder.embedding.token_embedding
    assert head.weight is lookup.weight
    ids = torch.arange(lookup.weight.shape[0])[None]
    rows, before = lookup(ids)[0], plain.transf_decoder.embedding.token_embedding(ids)[0]
    assert rows.dtype == torch.bfloat16
    step = before.abs().amax(1, keepdim=True) / 127.5
    assert (
        (rows.float() - before).abs() <= 1.5 * step
    ).all()  # half of one, and twice bfloat16's own rounding
    model.to("meta")  # as a model moves to a card
    assert head.weight is lookup.weight
    assert lookup.weight.qdata.device.type == "meta"


def test_a_component_alone_can_be_int8(folder: Path) -> None:
    model = restore("tdt", folder)
    applied = apply(model, parted({"encoder.layers.*.feed_forward?": "int8", "decoder": "int8"}))
    with applied.observing():
        encode(model, applied)
        transcribe(model, applied)
    assert {name.rpartition(".")[0] for name in quantised(model)} == {
        f"encoder.layers.{layer}.feed_forward{part}" for layer in (0, 1) for part in (1, 2)
    }
    told = applied.effective()
    assert told["encoder"].split(" as ")[0] == "float32/int8/bfloat16"
    assert told["decoder"].startswith("bfloat16/int8")
    assert told["joint"] == "float32"


def test_an_output_layer_alone_is_not_int8_while_its_embedding_is_not(folder: Path) -> None:
    model = restore("canary2", folder)
    apply(model, parted({"log_softmax": "int8", "transf_decoder": "bfloat16"}))
    assert quantised(model) == {}
    assert model.log_softmax.mlp.layer0.weight.dtype == torch.bfloat16


def test_int8_is_symmetric_per_output_channel_and_half_a_step_off(folder: Path) -> None:
    plain, model = restore("tdt", folder), restore("tdt", folder)
    apply(model, "int8")
    for name, layer in quantised(model).items():
        original = plain.get_submodule(name).weight.flatten(1).bfloat16().float()
        weight: Any = layer.weight
        assert weight.qdata.dtype == torch.int8
        assert weight.scale.shape == (original.shape[0], 1)
        assert not weight.zero_point.any()
        step = original.abs().amax(1, keepdim=True) / 127.5
        assert ((weight.qdata * weight.scale - original).abs() <= step * 1.01).all()
        stored = [
            weight.qdata,
            weight.scale,
            weight.zero_point,
            *([] if layer.bias is None else [layer.bias]),
        ]
        assert components.weights_bytes(layer) == sum(tensor.nbytes for tensor in stored)


def test_a_pointwise_convolution_is_the_same_as_a_linear(folder: Path) -> None:
    model, same = restore("ctc", folder).double(), restore("ctc", folder).double()
    quantize.open_up(dict.fromkeys(same.modules(), "int8"))
    rewritten = [
        name
        for name, module in same.named_modules()
        if isinstance(module, quantize.QuantizedPointwise)
    ]
    assert len(rewritten) == 2 * 2 + 1
    for name in rewritten:
        conv, linear = model.get_submodule(name), same.get_submodule(name)
        frames = torch.randn(1, conv.in_channels, 11, dtype=torch.float64)
        torch.testing.assert_close(linear(frames), conv(frames), rtol=1e-12, atol=1e-12)


def test_without_torchao_int8_names_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(PrecisionError, match="torchao") as caught:
        cast.apply(restore("ctc", folder), STRATEGY_TABLE["int8"], CPU)
    assert "asrd[int8]" in caught.value.hint
