"""What a device can do with a model's layers, and how Lightning runs a precision there.

Work that a CPU cannot do is found by trying it on the model's own layers. The component that holds
such a layer then runs in float32, and a Fallback says why.
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
    if capability >= (8, 0):
        return ""
    return f"TF32 needs compute capability 8.0, this card has {capability}"


def refuse_emulation(asked: set[torch.dtype], device: torch.device) -> None:
    """Raise PrecisionError for bfloat16 on a card that only emulates it; torch's own check calls
    that supported."""
    if device.type != "cuda" or torch.bfloat16 not in asked:
        return
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise PrecisionError(
            f"{torch.cuda.get_device_name(device)} only emulates bfloat16",
            "take half or fp32 there",
        )


def autocast_dtypes(precision: Precision, trainer: Any) -> list[torch.dtype]:
    """Return every dtype that some phase runs under."""
    if trainer is not None:
        return [LIGHTNING[trainer.precision]]
    names = dict.fromkeys([precision.autocast, *precision.phases.values()])
    return [getattr(torch, name) for name in names if name]


def trainer_for(precision: str, device: torch.device) -> tuple[Any, str]:
    """Return Lightning's Trainer, and why its precision is not the one that was asked of it, or
    ""."""
    import lightning.pytorch as lightning
    from lightning.pytorch.utilities.rank_zero import rank_zero_module

    # This is the logger of whichever Lightning was imported last.
    rank_zero_module.log.setLevel(logging.ERROR)
    accelerator: str = "gpu"
    devices: int | list[int] = [device.index or 0]
    if device.type == "cpu":
        accelerator, devices = "cpu", 1
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer = lightning.Trainer(
            precision=precision,
            accelerator=accelerator,
            devices=devices,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    if trainer.precision == precision:
        return trainer, ""
    for warning in warned:
        if precision in str(warning.message):
            return trainer, str(warning.message)
    return trainer, f"Lightning runs {precision} as {trainer.precision} here"


def fall_back(
    parts: Parts, targets: Targets, autocast: list[torch.dtype], fallbacks: list[Fallback]
) -> list[str]:
    """Try each kind of layer as it is to run; turn components that cannot to float32, return those
    to be fenced.

    One case so far: oneDNN has no LSTM for 16 bit under autocast where the processor lacks the
    instructions (float16 before AVX512-FP16, bfloat16 before AVX-512), though torch has one for
    16-bit weights. Switching oneDNN off would also serve, at the price of every other layer.
    """
    fenced = []
    for name, component in parts.items():
        failure = _first_failure(component, targets, autocast)
        if failure is None:
            continue
        dtype, reason = failure
        fallbacks.append(Fallback(name, name_of(dtype), "float32", reason))
        targets.update(dict.fromkeys(component.modules(), torch.float32))
        if autocast:
            fenced.append(name)
    return fenced


def _first_failure(
    component: nn.Module, targets: Targets, autocast: list[torch.dtype]
) -> tuple[torch.dtype, str] | None:
    """Return the dtype that a layer of a component cannot run in, and a sentence about it; None
    where all run."""
    for layer in _kinds(component, targets):
        stored = targets[layer]
        for dtype in (stored, *autocast):
            if error := _try(layer, stored, dtype):
                how = f"under {name_of(dtype)} autocast"
                if dtype == stored:
                    how = f"in {name_of(dtype)}"
                return dtype, f"{type(layer).__name__} cannot run {how} on this CPU: {error}"
    return None


@functools.cache
def has_lstm(dtype: torch.dtype) -> bool:
    """Return whether oneDNN has an LSTM under autocast in a dtype on this processor: it asks for
    instructions."""
    layer = nn.LSTM(2, 2, device="meta").to_empty(device="cpu")  # draws no random numbers
    # The answer is kept, so a caller that has switched oneDNN off must not change it.
    with torch.backends.mkldnn.flags(enabled=True):
        return not _try(layer, torch.float32, dtype)


def _kinds(component: nn.Module, targets: Targets) -> Iterable[nn.Module]:
    """Return the smallest layer of each type and dtype in a component."""
    found: dict[tuple[type, torch.dtype], nn.Module] = {}
    for layer in sorted(holders(component), key=weights_bytes):
        found.setdefault((type(layer), targets[layer]), layer)
    return found.values()


def _try(layer: nn.Module, stored: torch.dtype, dtype: torch.dtype) -> str:
    """Return torch's error for a layer stored in one dtype and run in another, or "" if it runs."""
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
            sizes = []
            for size, step in zip(layer.kernel_size, layer.dilation, strict=True):
                sizes.append((size - 1) * step + 2)
            return torch.zeros(1, layer.in_channels, *sizes)
        case nn.RNNBase():
            return torch.zeros(2, 1, layer.input_size)
        case nn.LayerNorm():
            return torch.zeros(1, *layer.normalized_shape)
        case nn.BatchNorm1d():
            return torch.zeros(1, layer.num_features, 2)
    return None
