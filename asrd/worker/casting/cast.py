"""Applies a precision to a restored NeMo model and reads back what became of it.

It knows torch, the shape of NeMo's models (preprocessor, encoder, and the decoder after it) and
the fields of a Precision. It branches on those fields, never on a strategy's name. It knows nothing
of audio or text.

Everything is cast on the CPU and moved to the device afterwards, so that the device never holds
more than the final weights. The report of effective dtypes is read from the model's tensors and
from its layers' outputs.

BatchNorm is cast with the rest. Keeping it float32, or folding it into the convolution before it,
moved the encoder's rounding error of the demo models by less than a twentieth. On hard clips fewer
texts then differed from float32's, on fresh ones not. WER moved by less than 0.2 points either way.
No gain was measured twice, so it is left plain.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from asrd.errors import ModelError
from asrd.precision.plan import for_family
from asrd.precision.strategies import Precision, quantizes
from asrd.protocol import Fallback
from asrd.worker.casting import quantize
from asrd.worker.casting.boundaries import connect, fence
from asrd.worker.casting.capabilities import (
    LIGHTNING,
    autocast_dtypes,
    fall_back,
    no_tf32,
    refuse_emulation,
    trainer_for,
)
from asrd.worker.casting.components import (
    Parts,
    Targets,
    components,
    family,
    first_of,
    hidden_models,
    holders,
    mostly,
    name_of,
    storage,
    weights_bytes,
)
from asrd.worker.casting.targets import (
    agree_on_shared,
    asked_dtypes,
    cast_modules,
    matrices_of,
    target_dtypes,
    verify,
)


class CastModel:
    """A model as a precision made it.

    Attributes:
        fallbacks: components that do not run as asked, with the reason.
        trainer: Lightning's Trainer whose precision plugin is entered around each step; None unless
            asked for.
        encoder: dtype that the encoder is stored in, but for islands in it; caches that are given
            back to it have it too.
    """

    def __init__(
        self, model: nn.Module, precision: Precision, device: torch.device, trainer: Any
    ) -> None:
        self.model, self.precision, self.device, self.trainer = model, precision, device, trainer
        self.fallbacks: list[Fallback] = []
        self.encoder = torch.float32
        self._ran: dict[str, set[tuple[nn.Module, str]]] = defaultdict(set)

    def context(self, phase: str) -> AbstractContextManager[Any]:
        """Return the context of one whole step (features, encoder, decoding) of `phase`; a fresh
        one each time.

        asrd's own autocast keeps no cache of cast weights. Under inference_mode, where the worker
        runs, torch never fills it. Under no_grad it would hold a second, half-size copy of the
        model until the context ends, and the strategy would weigh more than the one it is compared
        with.
        """
        if self.trainer is not None:
            plugin: AbstractContextManager[Any] = self.trainer.precision_plugin.forward_context()
            return plugin
        phases: Mapping[Any, str] = self.precision.phases
        dtype = phases.get(phase, self.precision.autocast)
        if dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, dtype), cache_enabled=False)

    @contextmanager
    def observing(self) -> Iterator[None]:
        """While entered, note which dtype each layer puts out; nothing stays on the model
        afterwards."""
        handles = []
        try:
            for name, component in components(self.model).items():
                for leaf in holders(component):
                    if next(leaf.children(), None) is None:
                        # Ahead of the boundaries' own hooks, which cast the output.
                        note = functools.partial(self._note, name)
                        handles.append(leaf.register_forward_hook(note, prepend=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, component: str, leaf: nn.Module, _: Any, output: Any) -> None:
        first = first_of(output)
        if isinstance(first, torch.Tensor) and first.is_floating_point():
            self._ran[component].add((leaf, name_of(first)))

    def effective(self) -> dict[str, str]:
        """Return component -> dtype of its weights, most bytes first; "X as Y" where layers were
        seen to run in Y.

        Arithmetic is noted by `observing`. Without it only storage is returned, and TF32, from
        torch's flags.
        """
        found = {}
        for name, component in {**components(self.model), **hidden_models(self.model)}.items():
            stored, ran = storage(component), Counter[str]()
            for leaf, dtype in self._ran[name]:
                if dtype != mostly(leaf):
                    ran[dtype] += weights_bytes(leaf)
            if self.device.type == "cuda" and torch.get_float32_matmul_precision() == "high":
                ran += Counter(tf32=stored["float32"])
            found[name] = " as ".join(filter(None, map(_by_size, (stored, ran))))
        return found


def _by_size(count: Counter[str]) -> str:
    """Return the dtypes that have bytes, most first: "float16/float32"."""
    return "/".join(dtype for dtype, size in count.most_common() if size)


def apply(
    model: nn.Module,
    precision: Precision,
    device: torch.device,
    moving: Callable[[], None] = lambda: None,
) -> CastModel:
    """Cast a model that is float32, on the CPU and in eval mode, then call `moving` and move it to
    its device.

    Raises: as `prepare` and `Prepared.finish`.
    """
    return prepare(model, precision, device).finish(moving)


def prepare(
    model: nn.Module, precision: Precision, device: torch.device, empty: bool = False
) -> Prepared:
    """Decide the dtypes of a model's tensors, and cast them; on the CPU, in eval mode.

    Args:
        empty: no number of a checkpoint is in it yet: its parameters are made anew in their dtypes
            and layouts, for the numbers to be read into. Not possible where int8 is asked for,
            which changes shapes.

    Raises:
        ConfigError: `parts` names a component that the model has not.
        PrecisionError: the device cannot serve this precision at all.
        ModelError: the model has no encoder.
    """
    set_flags(precision, device)
    if "encoder" not in components(model):
        raise ModelError(
            f"{type(model).__name__} has no encoder", "asrd runs NeMo's speech recognition models"
        )
    precision = for_family(precision, family(model))
    if quantizes(precision):
        assert not empty
        quantize.open_up(asked_dtypes(model, precision))
    parts, asked = components(model), asked_dtypes(model, precision)
    targets = target_dtypes(asked, precision)
    applied = CastModel(model, precision, device, None)
    computing = [name for name in parts if name != "preprocessor"]
    if precision.tf32:
        applied.fallbacks += _fallbacks(computing, "tf32", "float32", no_tf32(device))
    if precision.trainer:
        applied.trainer, reason = trainer_for(precision.trainer, device)
        wanted = name_of(LIGHTNING[precision.trainer])
        got = name_of(LIGHTNING[applied.trainer.precision])
        applied.fallbacks += _fallbacks(computing, wanted, got, reason)
    autocast = autocast_dtypes(precision, applied.trainer)
    refuse_emulation({*targets.values(), *autocast}, device)
    fenced: list[str] = []
    if device.type == "cpu":
        fenced = fall_back(parts, targets, autocast, applied.fallbacks)
    applied.fallbacks += agree_on_shared(parts, targets)
    applied.encoder = targets[parts["encoder"]]
    cast_modules(targets, empty)
    return Prepared(applied, parts, targets, matrices_of(parts, asked), fenced)


def _fallbacks(names: Sequence[str], wanted: str, got: str, reason: str) -> list[Fallback]:
    """Return the fallback of each component; none without a reason."""
    if not reason:
        return []
    return [Fallback(name, wanted, got, reason) for name in names]


@dataclass(frozen=True)
class Prepared:
    """A model whose tensors have the dtypes they will have; to be finished once it holds its
    numbers.

    int8 is torchao's weight-only quantisation, per output channel and symmetric: 8-bit weights,
    arithmetic in a 16-bit dtype. It takes every Linear, every pointwise convolution, which is
    rewritten as one, and every embedding, whose rows are its channels; a head that shares its
    embedding's weight goes on sharing it. It leaves other convolutions and recurrent layers.
    Weights are quantised one by one, so that no second copy of the model is ever there.
    """

    applied: CastModel
    parts: Parts
    targets: Targets
    matrices: Set[nn.Module]
    """Layers whose weight becomes int8."""
    fenced: list[str]
    """Components that compute in float32, outside autocast."""

    def finish(self, moving: Callable[[], None] = lambda: None) -> CastModel:
        """Quantise what is to be int8, connect the dtypes, call `moving` and move the model to its
        device.

        Raises:
            PrecisionError: torchao is not there; or the model read back is not what was decided.
        """
        parts, device = self.parts, self.applied.device
        if self.matrices:
            quantize.quantize(self._matrices_in_order())
        connect(parts, self.targets)
        for name in self.fenced:
            fence(name, parts[name], device.type)
        moving()
        for module in (self.applied.model, *hidden_models(self.applied.model).values()):
            module.to(device)
        verify(parts, self.targets, self.matrices)
        return self.applied

    def _matrices_in_order(self) -> Iterator[nn.Module]:
        """Yield the layers to quantise, in the model's order."""
        for part in self.parts.values():
            for module in part.modules():
                if module in self.matrices:
                    yield module


def set_flags(precision: Precision, device: torch.device) -> None:
    """Set the process-wide flags: TF32 in matrix products, convolutions and recurrent layers, on or
    off.

    torch lets cuDNN use TF32 unless it is switched off. The older switches are used, since torch
    keeps both kinds in step from that side only. The newer general one comes first, because the
    older "off" of cuDNN means "as the general one".
    """
    on = precision.tf32 and not no_tf32(device)
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
