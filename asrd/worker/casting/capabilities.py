"""What a device can do with a model's layers, and what Lightning makes of a precision there.

What a CPU cannot do is found by trying it on the model's own layers; the component that holds such
a layer then runs in float32, and a Fallback says why. Runs in the worker only.
"""

from __future__ import annotations

import copy
import functools
import logging
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from asrd.errors import PrecisionError
from asrd.precision.strategies import Precision
from asrd.protocol import Fallback
from asrd.worker.casting import quantize
from asrd.worker.casting.components import Parts, Targets, holders, name_of, weights_bytes

LIGHTNING = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
"""Lightning's names of autocast dtypes."""


def no_tf32(device: torch.device) -> str:
    """Return why a device has no TF32, or ""."""
    if device.type != "cuda":
        return "TF32 is a unit of CUDA cards"
    capability = torch.cuda.get_device_capability(device)
    return (
        ""
        if capability >= (8, 0)
        else f"TF32 needs compute capability 8.0, this card has {capability}"
    )


def refuse_emulation(asked: set[torch.dtype], device: torch.device) -> None:
    """Raise PrecisionError for bfloat16 on a card that only emulates it; torch's own check calls
    that supported."""
    if (
        device.type == "cuda"
        and torch.bfloat16 in asked
        and torch.cuda.get_device_capability(device) < (8, 0)
    ):
        raise PrecisionError(
            f"{torch.cuda.get_device_name(device)} only emulates bfloat16",
            "take half or fp32 there",
        )


def autocast_dtypes(precision: Precision, trainer: Any) -> list[torch.dtype]:
    """Return every dtype that some phase runs under."""
    if trainer is not None:
        return [LIGHTNING[trainer.precision]]
    return [
        getattr(torch, name)
        for name in dict.fromkeys([precision.autocast, *precision.phases.values()])
        if name
    ]


def trainer_for(precision: str, device: torch.device) -> tuple[Any, str]:
    """Return Lightning's Trainer, and why its precision is not the one that was asked of it, or
    ""."""
    import lightning.pytorch as lightning
    from lightning.pytorch.utilities.rank_zero import rank_zero_module

    rank_zero_module.log.setLevel(
        logging.ERROR
    )  # it is whatever logger the last Lightning imported put there
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = lightning.Trainer(
            precision=precision,
            accelerator="cpu" if device.type == "cpu" else "gpu",
            devices=1 if device.type == "cpu" else [device.index or 0],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    if trainer.precision == precision:
        return trainer, ""
    reasons = [str(warning.message) for warning in said if precision in str(warning.message)]
    return trainer, next(iter(reasons), f"Lightning runs {precision} as {trainer.precision} here")


def fall_back(
    parts: Parts, targets: Targets, autocast: list[torch.dtype], fallbacks: list[Fallback]
) -> list[str]:
    """Try each kind of layer as it is to run; turn components that cannot to float32, return those
    to be fenced.

    Known so far: oneDNN has no LSTM for 16 bit under autocast where the processor lacks the
    instructions (float16 before AVX512-FP16, bfloat16 before AVX-512), though torch has one for
    16-bit weights. Switching oneDNN off would also serve, at the price of every other layer.
    """
    fenced = []
    for name, component in parts.items():
        for layer in _kinds(component, targets):
            stored = targets[layer]
            failed = next(
                ((d, said) for d in (stored, *autocast) if (said := _try(layer, stored, d))), None
            )
            if failed is not None:
                dtype, said = failed
                how = (
                    f"in {name_of(dtype)}"
                    if dtype == stored
                    else f"under {name_of(dtype)} autocast"
                )
                reason = f"{type(layer).__name__} cannot run {how} on this CPU: {said}"
                fallbacks.append(Fallback(name, name_of(dtype), "float32", reason))
                targets.update(dict.fromkeys(component.modules(), torch.float32))
                fenced += [name] if autocast else []
                break
    return fenced


@functools.cache
def has_lstm(dtype: torch.dtype) -> bool:
    """Return whether oneDNN has an LSTM under autocast in a dtype on this processor: it asks for
    instructions."""
    layer = nn.LSTM(2, 2, device="meta").to_empty(device="cpu")  # draws no random numbers
    return not _try(layer, torch.float32, dtype)


def _kinds(component: nn.Module, targets: Targets) -> Iterable[nn.Module]:
    """Return the smallest layer of each type and dtype in a component."""
    found: dict[tuple[type, torch.dtype], nn.Module] = {}
    for layer in sorted(holders(component), key=weights_bytes):
        found.setdefault((type(layer), targets[layer]), layer)
    return found.values()


def _try(layer: nn.Module, stored: torch.dtype, dtype: torch.dtype) -> str:
    """Return what torch says against a layer stored in one dtype and run in another, or "" if it
    runs."""
    if stored == dtype == torch.float32 or (sample := _sample(layer)) is None:
        return ""
    twin = copy.deepcopy(layer).to(stored)
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=stored != dtype):
            twin(sample.to(stored))
    except RuntimeError as error:  # torch has no narrower class for an operation that is missing
        return str(error).strip().splitlines()[0].partition(". ")[0]
    return ""


def _sample(layer: nn.Module) -> torch.Tensor | None:
    """Return a smallest input of a layer; None for layers that only look up."""
    match layer:
        case quantize.QuantizedPointwise():
            return torch.zeros(1, layer.in_features, 1)
        case nn.Linear():
            return torch.zeros(1, layer.in_features)
        case nn.modules.conv._ConvNd():
            reach = zip(layer.kernel_size, layer.dilation, strict=True)
            return torch.zeros(
                1, layer.in_channels, *[(size - 1) * step + 2 for size, step in reach]
            )
        case nn.RNNBase():
            return torch.zeros(2, 1, layer.input_size)
        case nn.LayerNorm():
            return torch.zeros(1, *layer.normalized_shape)
        case nn.BatchNorm1d():
            return torch.zeros(1, layer.num_features, 2)
    return None
