"""What a model will weigh, against what the worker's cast makes of it, to the byte; what is known
without a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from asrd.errors import ConfigError
from asrd.models import architectures, checkpoint, memory_estimate
from asrd.models.tensors import EMBEDDING, is_buffer
from asrd.precision.strategies import STRATEGY_TABLE, Precision, quantizes, with_parts
from tests.fakes import tiny

STORED = ("fp32", "half", "bfloat16", "half-naive", "selective", "int8")
"""Strategies that differ in what they store; the others store float32."""

PARTS: dict[str, dict[str, str]] = {
    "encoder alone": {"encoder": "float16"},
    "decoder alone": {"decoder": "bfloat16"},
    "islands": {"encoder": "bfloat16", "encoder.layers.1": "float16", "norms": "float32"},
    "norms alone": {"norms": "float16"},
    "pattern": {"encoder.layers.*.feed_forward?": "bfloat16"},
    "int8 encoder": {"encoder": "int8", "norms": "float32"},
    "int8 decoder": {"decoder": "int8"},
}
TIED: dict[str, dict[str, str]] = {
    "embedding without its head": {"transf_decoder": "float16"},
    "embedding and head apart": {"log_softmax": "float16", "transf_decoder": "bfloat16"},
    "embedding alone int8": {"log_softmax": "bfloat16", "transf_decoder": "int8"},
    "head alone int8": {"log_softmax": "int8"},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that builds a tiny model of a family, once."""
    folder = tmp_path_factory.mktemp("built")
    return lambda family: (
        path if (path := folder / f"{family}.nemo").exists() else tiny.build(family, folder)
    )


def check(path: Path, precision: Precision) -> None:
    """Compare what is foretold with what the worker reports after the cast."""
    if quantizes(precision):
        pytest.importorskip("torchao")
    import torch

    from asrd.worker.casting import cast, components

    model = tiny.restore(path)
    applied = cast.apply(model, precision, torch.device("cpu"))
    if (
        any("cannot run" in fallback.reason for fallback in applied.fallbacks)
        and precision.autocast is None
    ):
        pytest.skip(f"this CPU stores something else: {applied.fallbacks}")
    assert memory_estimate.weights_bytes(
        checkpoint.header(path), precision
    ) == components.weights_bytes(model)


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family in tiny.FAMILIES for name in ("half", "int8")]
    + [
        (family, name)
        for family in ("ctc", "hybrid", "canary2")
        for name in STORED
        if name not in ("half", "int8")
    ],
)
def test_every_family_weighs_what_was_foretold(
    family: str, name: str, built: Callable[[str], Path]
) -> None:
    check(built(family), STRATEGY_TABLE[name])


@pytest.mark.parametrize("name", [name for name in STRATEGY_TABLE if name not in STORED])
def test_strategies_that_only_compute_otherwise_store_float32(
    name: str, built: Callable[[str], Path]
) -> None:
    check(built("canary2"), STRATEGY_TABLE[name])
    header = checkpoint.header(built("canary2"))
    assert memory_estimate.weights_bytes(
        header, STRATEGY_TABLE[name]
    ) == memory_estimate.weights_bytes(header, STRATEGY_TABLE["fp32"])


@pytest.mark.parametrize("parts", [*PARTS.values(), *TIED.values()], ids=[*PARTS, *TIED])
def test_a_map_of_ones_own_weighs_what_was_foretold(
    parts: dict[str, str], built: Callable[[str], Path]
) -> None:
    check(built("canary2"), with_parts(parts))
    if parts not in TIED.values():
        check(built("hybrid"), with_parts(parts))


def test_a_half_checkpoint_is_restored_as_float32_and_counted_so(
    built: Callable[[str], Path], tmp_path: Path
) -> None:
    tiny.restore(built("tdt")).half().save_to(str(tmp_path / "half.nemo"))
    check(tmp_path / "half.nemo", STRATEGY_TABLE["fp32"])
    check(tmp_path / "half.nemo", STRATEGY_TABLE["half"])


@pytest.mark.parametrize(
    "encoder",
    [
        {"encoder__pos_emb_max_len": 300},
        {"encoder__self_attention_model": "abs_pos"},
        {
            "encoder__self_attention_model": "rel_pos_local_attn",
            "encoder__att_context_size": [8, 5],
        },
        {"encoder__untie_biases": False},
        {"encoder__use_bias": False},
    ],
)
def test_tables_of_positions_and_shared_biases_are_counted(
    encoder: dict[str, object], tmp_path: Path
) -> None:
    path = tiny.build("ctc", tmp_path, **encoder)  # type: ignore[arg-type]
    check(path, STRATEGY_TABLE["fp32"])
    check(path, STRATEGY_TABLE["half"])


def test_an_unknown_component_is_an_error_that_names_the_nearest(
    built: Callable[[str], Path],
) -> None:
    with pytest.raises(ConfigError, match="no component 'encodre'") as caught:
        memory_estimate.weights_bytes(
            checkpoint.header(built("ctc")), with_parts({"encodre": "float16"})
        )
    assert "encoder" in caught.value.hint


def test_estimates_grow_with_what_they_depend_on(built: Callable[[str], Path]) -> None:
    header = checkpoint.header(built("canary2"))
    fp32, half, mixed = (
        memory_estimate.needs(header, STRATEGY_TABLE[name])
        for name in ("fp32", "half", "autocast-fp16")
    )
    for estimate in (fp32, half, mixed):
        assert estimate.load_peak == estimate.weights
        assert estimate.process == estimate.weights + estimate.activations + memory_estimate.CONTEXT
    assert half.weights < fp32.weights == mixed.weights
    assert half.activations < mixed.activations < fp32.activations
    assert (
        memory_estimate.needs(header, STRATEGY_TABLE["fp32"], seconds=20.0).activations
        == 2 * fp32.activations
    )
    second = msgspec.structs.replace(header, hidden_bytes=1000)
    assert (
        memory_estimate.needs(second, STRATEGY_TABLE["half"], hidden=True).process
        == half.process + 1000
    )
    assert memory_estimate.needs(second, STRATEGY_TABLE["half"]) == half


# -- known by their architecture
# --------------------------------------------------------------------------------------

SMALL = {"layers": 2, "width": 64, "channels": 32, "heads": 4, "decoder_width": 32, "inner": 64}


@pytest.mark.parametrize("family", ["ctc", "rnnt", "tdt", "hybrid", "ca_ctc", "ca_rnnt", "canary2"])
def test_the_computed_architecture_is_the_real_one(
    family: str, built: Callable[[str], Path]
) -> None:
    real = checkpoint.header(built(family))
    vocabulary = real.tensors[EMBEDDING].shape[0] if family == "canary2" else 128
    kind = family.removeprefix("ca_")
    sizes = architectures.Architecture(
        {"canary2": "aed"}.get(kind, kind), "en", vocabulary=vocabulary, positions=512,
        cache_aware=family.startswith("ca_"), durations=5 if kind in ("tdt", "hybrid") else 0, **SMALL,
    )  # fmt: skip
    computed = architectures.describe(family, sizes)
    # With dropout, as published models have it, the joint's last layer moves one place.
    names = {
        name.replace("joint_net.2", "joint_net.1"): t.shape for name, t in computed.tensors.items()
    }
    assert names == {name: tensor.shape for name, tensor in real.tensors.items()}
    for name in STORED:
        assert memory_estimate.weights_bytes(
            computed, STRATEGY_TABLE[name]
        ) == memory_estimate.weights_bytes(real, STRATEGY_TABLE[name])
    for name in STRATEGY_TABLE:
        assert memory_estimate.needs(computed, STRATEGY_TABLE[name]) == memory_estimate.needs(
            real, STRATEGY_TABLE[name]
        )


def test_an_encoder_without_biases_is_computed_too(tmp_path: Path) -> None:
    real = checkpoint.header(tiny.build("ctc", tmp_path, encoder__use_bias=False))
    computed = architectures.describe(
        "x", architectures.Architecture("ctc", "en", vocabulary=128, biases=False, **SMALL)
    )
    assert {n: t.shape for n, t in computed.tensors.items()} == {
        n: t.shape for n, t in real.tensors.items()
    }


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_int8_reaches_95_percent_of_the_weights_and_a_quarter_of_the_bytes(name: str) -> None:
    header = architectures.describe(name)
    parameters = {n: t for n, t in header.unique.items() if t.floating and not is_buffer(n)}
    covered = sum(
        tensor.elements for n, tensor in parameters.items() if memory_estimate.is_matrix(n, tensor)
    )
    assert covered / sum(tensor.elements for tensor in parameters.values()) > 0.95
    whole, int8 = (
        memory_estimate.weights_bytes(header, STRATEGY_TABLE[strategy])
        for strategy in ("fp32", "int8")
    )
    assert int8 / whole < 0.28


@pytest.mark.parametrize(
    "name", [name for name, sizes in architectures.ARCHITECTURES.items() if sizes.card]
)
def test_computed_parameters_agree_with_the_published_number(name: str) -> None:
    header, card = architectures.describe(name), architectures.ARCHITECTURES[name].card
    untied = sum(tensor.elements for n, tensor in header.tensors.items() if not is_buffer(n))
    assert min(abs(header.parameters - card), abs(untied - card)) < 1.1e6


@pytest.mark.parametrize(("name", "sizes"), architectures.ARCHITECTURES.items())
def test_computed_parameters_agree_with_the_rounded_number_in_the_name(
    name: str, sizes: architectures.Architecture
) -> None:
    word = next(
        w
        for w in os.path.basename(name).replace("_", "-").split("-")
        if w[:-1].replace(".", "").isdigit()
    )
    rounded = float(word[:-1]) * {"b": 1e9, "m": 1e6}[word[-1]]
    assert architectures.describe(name).parameters == pytest.approx(rounded, rel=0.12)
