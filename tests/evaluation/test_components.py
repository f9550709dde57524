"""Which components a model has, that each of them can really go down alone, and that what is
foretold of it is so."""

from __future__ import annotations

from pathlib import Path

import pytest

from asrd.errors import ConfigError
from asrd.evaluation import components as evaluation_components
from asrd.evaluation.components import ENCODER
from asrd.models import architectures, checkpoint, memory_estimate
from asrd.models.names import SHIPPED
from asrd.precision.strategies import FP32_BASELINE, Precision
from tests.fakes import tiny

FAMILIES = ("ctc", "tdt", "ca_hybrid", "canary2")


def names(header: checkpoint.Header, words: str = "bfloat16") -> list[str]:
    return [one.component for one in evaluation_components.sweep(header, words)]


def test_each_family_has_its_own() -> None:
    ctc, canary = (checkpoint.header(SHIPPED[name]) for name in ("demo-ctc", "demo"))
    encoder = [component.name for component in ENCODER]
    assert names(ctc) == [*encoder, "output"]
    assert names(canary) == [
        *encoder, "decoder", "decoder self-attention", "decoder cross-attention", "decoder feed-forward",
        "embedding and output",
    ]  # fmt: skip
    assert names(architectures.describe("nvidia/parakeet-tdt-0.6b-v3")) == [
        *encoder,
        "prediction net",
        "joint",
    ]
    assert names(architectures.describe("nvidia/canary-180m-flash"))[-1] == "encoder projection"


def test_block_by_block() -> None:
    found = names(checkpoint.header(SHIPPED["demo"]), "layers,bfloat16")
    assert found[:2] == ["subsampling", "embedding and output"]
    assert found[2:] == [f"encoder block {n}" for n in range(6)] + [
        f"decoder block {n}" for n in range(2)
    ]


def test_all_dtypes_unless_some_are_named_and_no_int8_where_it_saves_nothing() -> None:
    header = checkpoint.header(SHIPPED["demo-ctc"])
    pairs = [(one.component, one.dtype) for one in evaluation_components.sweep(header, "")]
    assert [dtype for name, dtype in pairs if name == "attention"] == [
        "bfloat16",
        "float16",
        "int8",
    ]
    assert [dtype for name, dtype in pairs if name == "norms"] == ["bfloat16", "float16"]
    assert {one.dtype for one in evaluation_components.sweep(header, "int8,float16")} == {
        "float16",
        "int8",
    }
    assert len({one.precision.name for one in evaluation_components.sweep(header, "")}) == len(
        pairs
    )


@pytest.mark.parametrize(
    ("words", "hint"), [("bfloat61", "did you mean 'bfloat16'?"), ("int8,layer", "'layers'")]
)
def test_another_word_is_an_error_that_names_the_nearest(words: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="unknown dtype") as caught:
        evaluation_components.wanted(words)
    assert hint in caught.value.hint


@pytest.mark.parametrize("family", FAMILIES)
def test_each_goes_down_alone_and_weighs_what_was_foretold(family: str, tmp_path: Path) -> None:
    import torch

    from asrd.worker.casting import cast
    from asrd.worker.casting import components as casting_components

    path = tiny.build(family, tmp_path)
    header = checkpoint.header(path)
    whole = memory_estimate.weights_bytes(header, FP32_BASELINE)
    for one in evaluation_components.sweep(header, "bfloat16,int8"):
        model = tiny.restore(path)
        applied = cast.apply(model, one.precision, torch.device("cpu"))
        weight = casting_components.weights_bytes(model)
        assert weight == memory_estimate.weights_bytes(header, one.precision) < whole, (
            one.precision.name
        )
        low = [component for component, told in applied.effective().items() if told != "float32"]
        assert low, one.precision.name
        assert isinstance(tiny.encode(model, tiny.noise(2.0))[0], torch.Tensor)
        texts = tiny.transcribe(model, tiny.noise(2.0))
        assert isinstance(texts, str)


def test_components_that_share_nothing_add_up_to_what_they_save_together() -> None:
    header = checkpoint.header(SHIPPED["demo"])
    whole = memory_estimate.weights_bytes(header, FP32_BASELINE)
    alone = {
        one.component: one.precision for one in evaluation_components.sweep(header, "bfloat16")
    }

    def saved(*asked: str) -> int:
        parts = {key: dtype for name in asked for key, dtype in alone[name].parts.items()}
        return whole - memory_estimate.weights_bytes(header, Precision("", parts=parts))

    inside = ("feed-forward", "attention but scores", "convolution")
    assert saved(*inside) == sum(map(saved, inside)) == saved("blocks but sums, scores")
    assert (
        saved("encoder", "decoder") > saved("encoder") > saved("blocks but sums") > saved(*inside)
    )
