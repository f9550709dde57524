"""Lengths: a worker keeps nothing for each that it has heard, and convolutions over few of them
change no number."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from asrd.engine import process
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.worker.casting import cast
from asrd.worker.encoder import conformer, functional
from tests.fakes import tiny
from tests.worker.test_conformer import CPU, sound
from tools.benchmark import growth

LENGTHS = random.Random(15).sample(range(16_000, 160_000), 24)
"""Samples of buffers: none is a multiple of what convolutions run over."""

STRATEGIES = ("fp32", "half", "bfloat16", "autocast-bf16", "selective")


def put_out(strategy: str, folder: Path, lengths: list[int]) -> list[torch.Tensor]:
    """Return what an encoder puts out for buffers of these lengths: FP32 by modules and as a
    straight program."""
    model = tiny.restore(tiny.built("ctc", folder))
    assert conformer.remove_masks(model, CPU)
    applied = cast.apply(model, STRATEGY_TABLE[strategy], CPU)
    runs: list[Any] = [lambda features: model.encoder(audio_signal=features)[0]]
    if strategy == "fp32":
        runs.append(functional.FunctionalEncoder(model.encoder))
    with torch.inference_mode(), applied.context("final"):
        features = [
            model.preprocessor(input_signal=sound(length), length=None)[0] for length in lengths
        ]
        return [run(one) for run in runs for one in features]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_few_lengths_change_no_bit(
    strategy: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = put_out(strategy, folder, LENGTHS)
    monkeypatch.setattr(conformer, "SUBSAMPLING_STEP_FRAMES", 1)
    monkeypatch.setattr(conformer, "DEPTHWISE_STEP_FRAMES", 1)
    exact = put_out(strategy, folder, LENGTHS)
    assert len(stepped) == len(exact) >= len(LENGTHS)
    for length, now, before in zip(LENGTHS * 2, stepped, exact, strict=False):
        assert torch.equal(now, before), (length, float((now - before).abs().max()))


def test_lengths_computed_together_on_nemos_way_change_no_bit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.restore(tiny.built("rnnt", folder))
    assert conformer.remove_masks(model, CPU)
    counts = torch.tensor(LENGTHS[:6])
    sounds = torch.nn.utils.rnn.pad_sequence(
        [sound(length)[0] for length in LENGTHS[:6]], batch_first=True
    )
    found = []
    for steps in ((64, 16), (1, 1)):
        monkeypatch.setattr(conformer, "SUBSAMPLING_STEP_FRAMES", steps[0])
        monkeypatch.setattr(conformer, "DEPTHWISE_STEP_FRAMES", steps[1])
        with torch.inference_mode():
            features, frames = model.preprocessor(input_signal=sounds, length=counts)
            found.append(model.encoder(audio_signal=features, length=frames)[0])
    assert torch.equal(*found)


def gained(strategy: str) -> float:
    """Return the MiB that a worker gains over a hundred utterances, each of another length."""
    found = asyncio.run(growth.measure(strategy, "demo-ctc", 220, 120))
    (_, settled), (_, last) = found.series
    return last - settled


@pytest.mark.parametrize(("strategy", "bound"), [("fp32", 4.0), ("half", 6.0), ("bfloat16", 6.0)])
def test_a_worker_gains_little_from_new_lengths(strategy: str, bound: float) -> None:
    assert gained(strategy) < bound


def strategy_with_kernels() -> str | None:
    """Return a strategy for which the library makes a kernel for each length on this processor;
    None where the processor has no instructions for 16 bits, as the library then makes none."""
    supported = torch.ops.mkldnn
    if supported._is_mkldnn_bf16_supported():
        return "bfloat16"
    return "half" if supported._is_mkldnn_fp16_supported() else None


def test_the_check_sees_kernels_kept_for_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = strategy_with_kernels()
    if strategy is None:
        pytest.skip("this processor has no 16-bit instructions: no kernel is made for a length")
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.setitem(process.WORKER_ENVIRONMENT, name, "4096")
    assert gained(strategy) > 12.0
