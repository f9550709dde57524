"""Canary's cached decoder against NeMo's, and the path that finds tokens in the sound."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from asrd.errors import ModelError
from asrd.worker.decoding.alignment import REACH_FRAMES, spans, spans_of_batch, warp, warps
from asrd.worker.decoding.kv_cache import CachedDecoder
from tests.fakes import tiny

VOCABULARY, WIDTH, FRAMES = 56, 32, 23
PROMPT, TEXT = 5, 12


def decoder(**sizes: Any) -> tuple[Any, Any]:
    """Return NeMo's decoder and head with random weights, scaled until attention is not uniform."""
    with tiny.quiet():
        from nemo.collections.asr.modules.transformer.transformer import TransformerDecoderNM
        from nemo.collections.asr.parts.submodules.token_classifier import TokenClassifier

        torch.manual_seed(1)
        shape = {
            "num_layers": 2,
            "num_attention_heads": 4,
            "inner_size": 64,
            "num_token_types": 0,
            "pre_ln": True,
        }
        body = TransformerDecoderNM(VOCABULARY, WIDTH, **shape | sizes)
        head = TokenClassifier(WIDTH, VOCABULARY)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.mul_(1.5).add_(torch.randn_like(parameter) * 0.05)
    return body.eval().requires_grad_(False), head.eval().requires_grad_(False)


def both(body: Any, head: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return (logits [n, V], attention [layers, heads, tokens, frames]) of NeMo's generator and of
    the cache."""
    from nemo.collections.asr.modules.transformer import GreedySequenceGenerator

    torch.manual_seed(2)
    sound, ids = torch.randn(1, FRAMES, WIDTH), torch.randint(4, VOCABULARY, (1, PROMPT + TEXT))
    steps = [(0, PROMPT), *((n, n + 1) for n in range(PROMPT, PROMPT + TEXT))]
    generator = GreedySequenceGenerator(body.embedding, body.decoder, head)
    ours, reader = [], CachedDecoder(body, head)
    theirs, paid, states = [], [], None
    with torch.inference_mode():
        memory = reader.new_cache(sound, PROMPT + TEXT)
        for start, stop in steps:
            logits, states, rows = generator._one_step_forward(
                ids[:, start:stop], sound, torch.ones(1, FRAMES), states, start, False
            )
            theirs.append(logits[0, -1])
            paid.append(torch.stack(rows)[:, 0])
            ours.append(reader.step(memory, ids[:, start:stop])[-1])
    return (torch.stack(theirs), torch.cat(paid, 2)), (
        torch.stack(ours),
        torch.cat(memory.attention, 2),
    )


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_layers": 1},
        {"num_layers": 4},
        {"pre_ln": False},
        {"pre_ln_final_layer_norm": False},
        {"num_layers": 3, "pre_ln": False, "hidden_act": "gelu"},
        {"learn_positional_encodings": True, "max_sequence_length": 40},
        {"num_token_types": 2},
    ],
    ids=str,
)
def test_logits_and_attention_are_those_of_nemo(sizes: dict[str, Any]) -> None:
    (logits, paid), (ours, ours_paid) = both(*decoder(**sizes))
    assert paid.std() > 0.01, "uniform attention would compare nothing"
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours_paid, paid, rtol=1e-4, atol=1e-5)
    assert ours.argmax(-1).tolist() == logits.argmax(-1).tolist()


def test_reading_all_tokens_at_once_gives_what_reading_them_one_by_one_gives() -> None:
    body, head = decoder()
    torch.manual_seed(3)
    sound, ids = torch.randn(1, FRAMES, WIDTH), torch.randint(4, VOCABULARY, (1, 11))
    reader = CachedDecoder(body, head)
    with torch.inference_mode():
        at_once = reader.step(reader.new_cache(sound, 11), ids)
        memory = reader.new_cache(sound, 11)
        parts = torch.cat(
            [reader.step(memory, ids[:, a:b]) for a, b in ((0, 4), (4, 7), (7, 8), (8, 11))]
        )
    torch.testing.assert_close(parts, at_once, rtol=1e-4, atol=1e-4)


def test_the_audio_is_projected_once_and_every_token_once() -> None:
    body, head = decoder()
    rows = {"sound": 0, "tokens": 0}
    for layer in body.decoder.layers:
        for name, net in (
            ("sound", layer.second_sub_layer.key_net),
            ("tokens", layer.first_sub_layer.out_projection),
        ):

            def count(
                _: Any, args: tuple[torch.Tensor], output: torch.Tensor, name: str = name
            ) -> None:
                rows[name] += args[0].shape[1]

            net.register_forward_hook(count)
    reader = CachedDecoder(body, head)
    with torch.inference_mode():
        memory = reader.new_cache(torch.randn(1, FRAMES, WIDTH), 9)
        reader.step(memory, torch.full((1, 5), 7))
        for _ in range(4):
            reader.step(memory, torch.full((1, 1), 7))
    assert rows == {"sound": 2 * FRAMES, "tokens": 2 * 9}


def test_what_is_multiplied_at_once_is_in_memory_once() -> None:
    body, head = decoder()
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    reader = CachedDecoder(body, head)
    reader.join()
    for layer, joined in zip(body.decoder.layers, reader._joined, strict=True):
        own = layer.first_sub_layer
        for net in (own.query_net, own.key_net, own.value_net):
            assert joined is not None
            assert net.weight.untyped_storage().data_ptr() == joined[0].untyped_storage().data_ptr()
    assert all(torch.equal(tensor, before[name]) for name, tensor in body.state_dict().items())


def test_layers_that_were_quantised_are_used_as_they_are() -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="int8 is an extra")
    body, head = decoder()
    plain, _ = both(body, head)
    with tiny.quiet():
        config = quantization.Int8WeightOnlyConfig(version=2, set_inductor_config=False)
        quantization.quantize_(body.decoder, config)
    (logits, paid), (ours, ours_paid) = both(body, head)
    assert not torch.equal(logits, plain[0]), "quantised weights must show"
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours_paid, paid, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close_to_float32(dtype: torch.dtype) -> None:
    body, head = decoder()
    (logits, _), _ = both(body, head)
    half = (body.to(dtype), head.to(dtype))
    reader = CachedDecoder(*half)
    torch.manual_seed(2)
    sound, ids = torch.randn(1, FRAMES, WIDTH), torch.randint(4, VOCABULARY, (1, PROMPT + TEXT))
    with torch.inference_mode():
        memory = reader.new_cache(sound.to(dtype), PROMPT + TEXT)
        ours = reader.step(memory, ids)[PROMPT - 1 :]
    assert ours.dtype == torch.float32
    assert memory.own[0].dtype == dtype
    torch.testing.assert_close(ours, logits, rtol=0.2, atol=0.2)


def test_another_kind_of_decoder_is_refused() -> None:
    _, head = decoder()
    with pytest.raises(ModelError, match="Sequential"):
        CachedDecoder(torch.nn.Sequential(), head)


# -- the path
# ---------------------------------------------------------------------------------------------------------

COSTS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(-9, 9)
)


def cheapest(cost: np.ndarray) -> float:
    """Return the cost of the best path, cell by cell."""
    total = np.full(np.add(cost.shape, 1), np.inf)
    total[0, 0] = 0
    for row in range(cost.shape[0]):
        for column in range(cost.shape[1]):
            before = min(total[row, column], total[row, column + 1], total[row + 1, column])
            total[row + 1, column + 1] = cost[row, column] + before
    return float(total[-1, -1])


@given(COSTS)
def test_the_path_is_the_cheapest_and_never_goes_back(cost: np.ndarray) -> None:
    path = warp(cost)
    assert path[0] == (0, 0)
    assert path[-1] == (cost.shape[0] - 1, cost.shape[1] - 1)
    assert all((b[0] - a[0], b[1] - a[1]) in {(0, 1), (1, 0), (1, 1)} for a, b in pairwise(path))
    assert sum(float(cost[cell]) for cell in path) == cheapest(cost)


@given(st.lists(COSTS, max_size=5))
def test_paths_of_several_are_those_of_each(costs: list[np.ndarray]) -> None:
    assert warps(costs) == [warp(cost) for cost in costs]


def spoken(heard: list[int], frames: int, prompt: int, ended: bool = True) -> np.ndarray:
    """Return attention as a decoder pays it: a row per token read, each half on its own word and
    half on the next."""
    peaks = [0, *heard, frames - 1]
    read = len(heard) + 1 if ended else len(heard)
    rows = np.full((prompt - 1 + read, frames), 1e-3, np.float32)
    rows[: prompt - 1, 0] = 1.0
    for number in range(read):
        rows[prompt - 1 + number, peaks[number]] += 0.5
        rows[prompt - 1 + number, peaks[number + 1]] += 0.5
    return rows


@pytest.mark.parametrize("ended", [True, False])
def test_tokens_are_placed_where_the_attention_was(ended: bool) -> None:
    heard = [10, 13, 20, 34, 36]
    found = spans(spoken(heard, 60, 4, ended), 4, len(heard))
    assert all(first <= frame < last for frame, (first, last) in zip(heard, found, strict=True))
    assert found[0][0] >= 10 - REACH_FRAMES
    assert found[-1][1] <= 36 + REACH_FRAMES + 1 or not ended


@given(
    st.integers(2, 4).flatmap(
        lambda prompt: st.tuples(
            st.just(prompt),
            st.integers(1, 12),
            arrays.arrays(
                np.float32,
                st.tuples(st.integers(17, 17), st.integers(1, 20)),
                elements=st.floats(0, 1, width=32),
            ),
        )
    )
)
def test_spans_are_in_order_and_inside(case: tuple[int, int, np.ndarray]) -> None:
    prompt, count, paid = case
    found = spans(paid, prompt, count)
    assert len(found) == count
    assert all(0 <= first < last <= paid.shape[1] for first, last in found)
    assert all(a[0] <= b[0] and a[1] <= b[0] + 1 for a, b in pairwise(found))


def test_spans_of_several_are_those_of_each() -> None:
    texts = [[10, 13, 20, 34, 36], [], [3], [50, 51, 52, 53, 54, 55, 56]]
    paid = [spoken(heard, 60 - row, 4, row != 2) for row, heard in enumerate(texts)]
    expected = [spans(each, 4, len(heard)) for each, heard in zip(paid, texts, strict=True)]
    assert spans_of_batch(paid, 4, [len(heard) for heard in texts]) == expected


def test_no_tokens_have_no_spans() -> None:
    assert spans(np.ones((3, 5), np.float32), 3, 0) == []
