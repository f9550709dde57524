"""Applies a precision to a restored NeMo model and reads back what became of it.

Knows torch, the shape of NeMo's models (preprocessor, encoder and what decodes after it) and the fields of a Precision;
branches on those fields, never on a strategy's name. Knows nothing of sound or text. Runs in the worker only.

Everything is cast on the CPU and moved to the device afterwards, so that the device never holds more than the final
weights. What a CPU cannot do is found by trying it on the model's own layers; the component that holds such a layer
then runs in float32, and a Fallback says why. What is reported as effective is read from the model's tensors and from
what its layers put out.

BatchNorm is cast with the rest. Keeping it float32, or folding it into the convolution before it, moved the encoder's
rounding error of the demo models by less than a twentieth. On hard clips fewer texts then differed from float32's, on
fresh ones not; WER moved by less than 0.2 points either way. No gain that was measured twice, so it is left plain.
"""

from __future__ import annotations

import copy
import functools
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from . import int8
from .errors import ModelError, PrecisionError, UsageError, nearest
from .precision import Precision, beside_int8, for_family, quantizes
from .wire import Fallback

NO_WEIGHTS = ("spec_augmentation", "loss", "ctc_loss", "val_loss", "wer", "ctc_wer", "bleu")
"""Children of a NeMo model that serve training and scoring only."""

HIDDEN = "timestamps_asr_model"
"""Canary's second model, for timestamps: NeMo keeps it outside the module tree, in float32, whatever is cast."""

CANARY_DECODER = ("encoder_decoder_proj", "transf_decoder", "log_softmax")
"""What `decoder` means for Canary, which has no child of that name."""

CONSUMERS = ("joint", "encoder_decoder_proj", "transf_encoder", "transf_decoder", "decoder")
"""Who takes the encoder's output: the first of these that a model has."""

LIGHTNING = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
"""Lightning's names of autocast dtypes."""

Parts = Mapping[str, nn.Module]
"""Component -> its module."""

Targets = dict[nn.Module, torch.dtype]
"""Every module of the components -> what its own tensors are stored in, and it computes in."""


class Applied:
    """A model as a precision made it.

    Attributes:
        fallbacks: what does not run as asked, by component, with the reason.
        trainer: Lightning's Trainer whose precision plugin is entered around each step; None unless asked for.
        encoder: what the encoder is stored in, but for islands in it; caches that are given back to it go in this.
    """

    def __init__(self, model: nn.Module, precision: Precision, device: torch.device, trainer: Any) -> None:
        self.model, self.precision, self.device, self.trainer = model, precision, device, trainer
        self.fallbacks: list[Fallback] = []
        self.encoder = torch.float32
        self._ran: dict[str, set[tuple[nn.Module, str]]] = defaultdict(set)

    def context(self, phase: str) -> AbstractContextManager[Any]:
        """Return the context of one whole step (features, encoder, decoding) of `phase`; a fresh one each time.

        asrd's own autocast keeps no cache of cast weights. Under inference_mode, where the worker runs, torch never
        fills it; under no_grad it would hold a second, half-size copy of the model until the context ends, and the
        strategy would weigh more than what it is compared with.
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
        """While entered, note which dtype each layer puts out; nothing stays on the model afterwards."""
        handles = []
        try:
            for name, component in components(self.model).items():
                for leaf in _holders(component):
                    if not any(True for _ in leaf.children()):
                        # Ahead of the boundaries' own hooks, which cast the output.
                        note = functools.partial(self._note, name)
                        handles.append(leaf.register_forward_hook(note, prepend=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, component: str, leaf: nn.Module, _: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, torch.Tensor) and first.is_floating_point():
            self._ran[component].add((leaf, _name(first)))

    def effective(self) -> dict[str, str]:
        """Return component -> dtype of its weights, most bytes first; "X as Y" where layers were seen to run in Y.

        Arithmetic is known from `observing`; without it only storage is told, and TF32, from torch's flags.
        """
        found = {}
        for name, component in {**components(self.model), **_hidden(self.model)}.items():
            stored, ran = _stored(component), Counter[str]()
            for leaf, dtype in self._ran[name]:
                ran[dtype] += weights_bytes(leaf) if dtype != _main(leaf) else 0
            if self.device.type == "cuda" and torch.get_float32_matmul_precision() == "high":
                ran += Counter(tf32=stored["float32"])
            words = ("/".join(dtype for dtype, size in count.most_common() if size) for count in (stored, ran))
            found[name] = " as ".join(filter(None, words))
        return found


def apply(
    model: nn.Module, precision: Precision, device: torch.device, moving: Callable[[], None] = lambda: None
) -> Applied:
    """Cast a model that is float32, on the CPU and in eval mode, then call `moving` and move it to its device.

    Raises: as `prepare` and `Prepared.finish`.
    """
    return prepare(model, precision, device).finish(moving)


def prepare(model: nn.Module, precision: Precision, device: torch.device, empty: bool = False) -> Prepared:
    """Decide what a model's tensors become, and cast them; on the CPU, in eval mode.

    Args:
        empty: no number of a checkpoint is in it yet: its parameters are made anew in their dtypes and layouts, for the
            numbers to be read into. Not possible where int8 is asked for, which changes shapes.

    Raises:
        UsageError: `parts` names a component that the model has not.
        PrecisionError: the device cannot serve this precision at all.
        ModelError: the model has no encoder.
    """
    set_flags(precision, device)
    if "encoder" not in components(model):
        raise ModelError(f"{type(model).__name__} has no encoder", "asrd runs NeMo's speech recognition models")
    precision = for_family(precision, family(model))
    if quantizes(precision):
        assert not empty
        int8.open_up(_asked(model, precision))
    parts, asked = components(model), _asked(model, precision)
    targets = {module: getattr(torch, name) for module, name in _computing(asked, precision).items()}
    applied = Applied(model, precision, device, None)
    computing = [name for name in parts if name != "preprocessor"]
    if precision.tf32 and (reason := _no_tf32(device)):
        applied.fallbacks += [Fallback(name, "tf32", "float32", reason) for name in computing]
    if precision.trainer:
        applied.trainer, reason = _trainer(precision.trainer, device)
        wanted, got = (_name(LIGHTNING[name]) for name in (precision.trainer, applied.trainer.precision))
        applied.fallbacks += [Fallback(name, wanted, got, reason) for name in computing if reason]
    autocast = _autocast_dtypes(precision, applied.trainer)
    _refuse_emulation({*targets.values(), *autocast}, device)
    fenced = _fall_back(parts, targets, autocast, applied.fallbacks) if device.type == "cpu" else []
    applied.fallbacks += _agree_on_shared(parts, targets)
    applied.encoder = targets[parts["encoder"]]
    _cast(targets, empty)
    return Prepared(applied, parts, targets, _matrices(parts, asked), fenced)


@dataclass(frozen=True)
class Prepared:
    """A model whose tensors have the dtypes they will have; to be finished once it holds its numbers.

    int8 is torchao's weight-only quantisation, per output channel and symmetric: 8-bit weights, arithmetic in a 16-bit
    dtype. It takes every Linear, every pointwise convolution, which is rewritten as one, and every embedding, whose
    rows are its channels; a head that shares its embedding's weight goes on sharing it. It leaves other convolutions
    and recurrent layers. Weights are quantised one by one, so that no second copy of the model is ever there.
    """

    applied: Applied
    parts: Parts
    targets: Targets
    matrices: Set[nn.Module]
    """Layers whose weight becomes int8."""
    fenced: list[str]
    """Components that compute in float32, outside autocast."""

    def finish(self, moving: Callable[[], None] = lambda: None) -> Applied:
        """Quantise what is to be int8, connect the dtypes, call `moving` and move the model to its device.

        Raises:
            PrecisionError: torchao is not there; or the model read back is not what was decided.
        """
        parts, device = self.parts, self.applied.device
        if self.matrices:
            int8.quantize(module for part in parts.values() for module in part.modules() if module in self.matrices)
        _connect(parts, self.targets)
        for name in self.fenced:
            _fence(name, parts[name], device.type)
        moving()
        for module in (self.applied.model, *_hidden(self.applied.model).values()):
            module.to(device)
        _verify(parts, self.targets, self.matrices)
        return self.applied


def set_flags(precision: Precision, device: torch.device) -> None:
    """Set what is process-wide: TF32 in matrix products, convolutions and recurrent layers, on or off.

    torch lets cuDNN use TF32 unless told otherwise. The older switches are used, since torch keeps both kinds in step
    from that side only; the newer general one comes first, because the older "off" of cuDNN means "whatever it says".
    """
    on = precision.tf32 and not _no_tf32(device)
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def first_non_finite(model: nn.Module, act: Callable[[], Any]) -> str:
    """Return the module whose output is the first, while `act` runs, that is not finite; "encoder" where none is.

    Looked at are the components that listen and their layers: `preprocessor`, `encoder.pre_encode`, `encoder.layers.3`.
    """
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if not found and isinstance(first, torch.Tensor) and not bool(torch.isfinite(first).all()):
            found.append(name)

    listening = {name: part for name, part in components(model).items() if name in ("preprocessor", "encoder")}
    parts = listening | dict(item for name, part in listening.items() for item in _layers(name, part))
    handles = [
        module.register_forward_hook(lambda _, args, output, name=name: look(name, output))
        for name, module in parts.items()
    ]
    try:
        act()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "encoder"


def _layers(name: str, component: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules with weights right below a component, those of a list one by one."""
    for child, module in component.named_children():
        if isinstance(module, nn.ModuleList):
            yield from _layers(f"{name}.{child}", module)
        elif _holds(module):
            yield f"{name}.{child}", module


def components(model: nn.Module) -> dict[str, nn.Module]:
    """Return NeMo's own child name -> child, for the children that hold tensors and serve recognition."""
    return {name: child for name, child in model.named_children() if name not in NO_WEIGHTS and _holds(child)}


def family(model: nn.Module) -> str:
    """Return a model's family by what decodes its encoder's output: aed, rnnt (with tdt and hybrids) or ctc."""
    children = components(model)
    return "aed" if "transf_decoder" in children else "rnnt" if "joint" in children else "ctc"


def weights_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, shared ones once, quantised ones as stored (scales and all)."""
    own = sum(part.nbytes for tensor in _tensors(model) for part in _real(tensor))
    return own + sum(weights_bytes(hidden) for hidden in _hidden(model).values())


# -- tensors ----------------------------------------------------------------------------------------------------------


def _name(dtype: torch.dtype | torch.Tensor) -> str:
    return str(dtype.dtype if isinstance(dtype, torch.Tensor) else dtype).removeprefix("torch.")


def _tensors(module: nn.Module, recurse: bool = True) -> Iterator[torch.Tensor]:
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)


def _holds(module: nn.Module, recurse: bool = True) -> bool:
    return any(True for _ in _tensors(module, recurse))


def _holders(module: nn.Module) -> list[nn.Module]:
    """Return the modules at or below one that hold tensors of their own."""
    return [child for child in module.modules() if _holds(child, recurse=False)]


def _hidden(model: nn.Module) -> dict[str, nn.Module]:
    hidden = getattr(model, HIDDEN, None)
    return {HIDDEN: hidden} if isinstance(hidden, nn.Module) else {}


def _real(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors that a tensor is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _real(getattr(tensor, name))]


def _stored(module: nn.Module, recurse: bool = True) -> Counter[str]:
    """Return dtype -> bytes of a module's parameters, or of its buffers where it has no parameter."""
    found: Counter[str] = Counter()
    tensors: list[torch.Tensor] = [*module.parameters(recurse)] or [*module.buffers(recurse)]
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            parts = _real(tensor)
            found[_name(parts[0])] += sum(part.nbytes for part in parts)
    return found


def _main(module: nn.Module) -> str:
    """Return the dtype that most bytes of a module are stored in; "" where it stores no floats."""
    return next((dtype for dtype, _ in _stored(module).most_common(1)), "")


def _to(value: Any, dtype: torch.dtype, done: dict[int, torch.Tensor] | None = None) -> Any:
    """Return the value with every floating tensor in it cast; lengths, masks and labels stay as they are.

    One tensor that stands in it twice is one afterwards too: attention sees by that that it looks at itself.
    """
    done = {} if done is None else done
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point():
            return value
        if id(value) not in done:
            done[id(value)] = value.to(dtype)
        return done[id(value)]
    if isinstance(value, dict):
        return {key: _to(item, dtype, done) for key, item in value.items()}
    return type(value)(_to(item, dtype, done) for item in value) if type(value) in (tuple, list) else value


# -- which module is stored in what -----------------------------------------------------------------------------------


def _asked(model: nn.Module, precision: Precision) -> dict[nn.Module, str]:
    """Return what every module is to be stored as: the deepest module that `parts` names decides, the later of equals.

    int8 is asked of a module with all that is in it; what can be quantised there is seen later.
    """
    asked: dict[nn.Module, str] = {}
    for name, component in components(model).items():
        front = precision.weights if precision.features == "weights" else "float32"
        dtype = front if name == "preprocessor" else precision.quantize or precision.weights
        asked.update(dict.fromkeys(component.modules(), dtype))
    named = [(path, dtype) for name, dtype in precision.parts.items() for path in _paths(model, name)]
    for path, dtype in sorted(named, key=lambda item: item[0].count(".")):
        asked.update(dict.fromkeys(model.get_submodule(path).modules(), dtype))
    return asked


def _computing(asked: Mapping[nn.Module, str], precision: Precision) -> dict[nn.Module, str]:
    """Return what every module computes in, which is all that is left of int8 where nothing can be quantised."""
    return {module: beside_int8(precision) if name == "int8" else name for module, name in asked.items()}


def _paths(model: nn.Module, name: str) -> list[str]:
    """Return the modules that a key of `parts` means: a child, a dotted path, a pattern of paths, norms or decoder."""
    parts = components(model)
    if name == "norms":  # by the type's name, as NeMo has norms of its own beside torch's
        modules = parts["encoder"].named_modules()
        return [f"encoder.{path}" for path, module in modules if "Norm" in type(module).__name__]
    if name == "decoder" and name not in parts:
        return [child for child in CANARY_DECODER if child in parts]
    known = [f"{child}.{path}".rstrip(".") for child, part in parts.items() for path, _ in part.named_modules()]
    found = [path for path in known if fnmatchcase(path, name)]
    if not found:
        raise UsageError(f"this model has no component {name!r}", _nearest_path(name, known))
    return found


def _nearest_path(name: str, known: list[str]) -> str:
    """Return a hint among the siblings at the point where a path leaves the model."""
    words = name.split(".")
    depth = next(n for n in range(len(words) - 1, -1, -1) if not n or ".".join(words[:n]) in known)
    above = ".".join(words[:depth])
    siblings = [path for path in known if path.rpartition(".")[0] == above]
    aliases = [alias for alias in ("norms", "decoder") if not depth and alias not in siblings]
    return nearest(".".join(words[: depth + 1]), siblings + aliases)


def _agree_on_shared(parts: Parts, targets: Targets) -> list[Fallback]:
    """Give modules that share a weight (Canary's embedding and head) one dtype: float32 where they are to differ."""
    fallbacks = []
    for group in _sharing(parts):
        if len({targets[module] for _, module in group}) < 2:
            continue
        for name, module in group:
            if targets[module] != torch.float32:
                others = " and ".join(sorted({other for other, _ in group} - {name}) or [name])
                reason = f"its {type(module).__name__} shares a weight with {others}, in another dtype"
                fallbacks.append(Fallback(name, _name(targets[module]), "float32", reason))
                targets[module] = torch.float32
    return fallbacks


def _sharing(parts: Parts) -> list[list[tuple[str, nn.Module]]]:
    """Return the groups of (component, module) that hold one and the same parameter."""
    owners: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
    for name, component in parts.items():
        for module in component.modules():
            for parameter in module.parameters(recurse=False):
                owners[id(parameter)].append((name, module))
    return [group for group in owners.values() if len(group) > 1]


def _matrices(parts: Parts, asked: Mapping[nn.Module, str]) -> set[nn.Module]:
    """Return the layers whose weight becomes int8: of those that share one, all or none."""
    kinds = (nn.Linear, int8.Lookup)
    found: set[nn.Module] = {layer for layer, name in asked.items() if name == "int8" and isinstance(layer, kinds)}
    shared = [[module for _, module in group] for group in _sharing(parts)]
    return found.difference(*(group for group in shared if not found.issuperset(group)))


def _cast(targets: Targets, empty: bool) -> None:
    """Cast each module's own tensors; a shared parameter stays shared, a buffer keeps its place in the state dict."""
    for module, dtype in targets.items():
        for parameter in module.parameters(recurse=False):
            if not empty:
                parameter.data = _to(parameter.data, dtype)
            elif parameter.is_floating_point() and parameter.dtype != dtype:
                parameter.data = torch.empty_like(parameter.data, dtype=dtype)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, _to(buffer, dtype))


def _verify(parts: Parts, targets: Targets, matrices: Set[nn.Module]) -> None:
    """Read every stored tensor back. Raises PrecisionError where it is not what was decided."""
    for name, component in parts.items():
        for path, module in component.named_modules():
            decided = {_name(targets[module])} | ({"int8"} if module in matrices else set())
            if wrong := set(_stored(module, recurse=False)) - decided:
                where = f"{name}.{path}".rstrip(".")
                raise PrecisionError(f"{where} is stored as {wrong.pop()}, not as {_name(targets[module])}")


# -- where one dtype meets another ------------------------------------------------------------------------------------


def _connect(parts: Parts, targets: Targets) -> None:
    """Cast what flows between components and islands; where dtypes agree nothing is installed.

    Features leave the front end in the dtype of the encoder's first layer, through NeMo's own sentinel. The encoder is
    always entered as a module, so islands in it are cast in and out where they stand. What comes after it is entered
    below its components by every decoding loop (`joint.project_encoder`, `decoder.predict`), so there the encoder's
    output is the boundary, and layers are cast one by one where those components differ among each other.
    """
    encoder = parts["encoder"]
    if "preprocessor" in parts:
        inlet = next(encoder.parameters()).dtype
        parts["preprocessor"].dtype_sentinel_tensor = torch.empty(0, dtype=inlet)
    _connect_islands(encoder, targets[encoder], targets)
    consumer = next((targets[parts[name]] for name in CONSUMERS if name in parts), targets[encoder])
    if consumer != targets[encoder]:
        _boundary(encoder, None, consumer)
    after = [part for name, part in parts.items() if name not in ("preprocessor", "encoder")]
    layers = {layer: part for part in after for layer in _holders(part)}
    if len({targets[layer] for layer in layers}) > 1:
        for layer, part in layers.items():
            _boundary(layer, targets[layer], targets[part] if targets[part] != targets[layer] else None)


def _connect_islands(module: nn.Module, around: torch.dtype, targets: Targets) -> None:
    for child in filter(_holds, module.children()):
        if isinstance(child, nn.ModuleList | nn.ModuleDict):  # never called itself
            _connect_islands(child, around, targets)
            continue
        if targets[child] != around:
            _boundary(child, targets[child], around)
        _connect_islands(child, targets[child], targets)


def _boundary(module: nn.Module, inside: torch.dtype | None, outside: torch.dtype | None) -> None:
    """Cast what goes into a module, and what comes out of it."""
    if inside is not None:
        module.register_forward_pre_hook(lambda _, args, kwargs: _to((args, kwargs), inside), with_kwargs=True)
    if outside is not None:
        module.register_forward_hook(lambda _, args, output: _to(output, outside))


def _fence(name: str, component: nn.Module, device_type: str) -> None:
    """Have a component compute in float32, outside whatever autocast is on around it."""
    for module in [component] if name == "encoder" else _holders(component):
        module.forward = _outside_autocast(module.forward, device_type)


def _outside_autocast(forward: Any, device_type: str) -> Any:
    @functools.wraps(forward)
    def plain(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, enabled=False):
            return forward(*_to(args, torch.float32), **_to(kwargs, torch.float32))

    return plain


# -- what a device can do ---------------------------------------------------------------------------------------------


def _no_tf32(device: torch.device) -> str:
    """Return why a device has no TF32, or ""."""
    if device.type != "cuda":
        return "TF32 is a unit of CUDA cards"
    capability = torch.cuda.get_device_capability(device)
    return "" if capability >= (8, 0) else f"TF32 needs compute capability 8.0, this card has {capability}"


def _refuse_emulation(asked: set[torch.dtype], device: torch.device) -> None:
    """Raise PrecisionError for bfloat16 on a card that only emulates it; torch's own check calls that supported."""
    if device.type == "cuda" and torch.bfloat16 in asked and torch.cuda.get_device_capability(device) < (8, 0):
        raise PrecisionError(f"{torch.cuda.get_device_name(device)} only emulates bfloat16", "take half or fp32 there")


def _autocast_dtypes(precision: Precision, trainer: Any) -> list[torch.dtype]:
    """Return every dtype that some phase runs under."""
    if trainer is not None:
        return [LIGHTNING[trainer.precision]]
    return [getattr(torch, name) for name in dict.fromkeys([precision.autocast, *precision.phases.values()]) if name]


def _trainer(precision: str, device: torch.device) -> tuple[Any, str]:
    """Return Lightning's Trainer, and why its precision is not the one that was asked of it, or ""."""
    import lightning.pytorch as lightning
    from lightning.pytorch.utilities.rank_zero import rank_zero_module

    rank_zero_module.log.setLevel(logging.ERROR)  # it is whatever logger the last Lightning imported put there
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


def _fall_back(parts: Parts, targets: Targets, autocast: list[torch.dtype], fallbacks: list[Fallback]) -> list[str]:
    """Try each kind of layer as it is to run; turn components that cannot to float32, return those to be fenced.

    Known so far: oneDNN has no LSTM for float16 under autocast, though it has one for float16 weights. Switching
    oneDNN off would also serve, at the price of every other layer.
    """
    fenced = []
    for name, component in parts.items():
        for layer in _kinds(component, targets):
            stored = targets[layer]
            failed = next(((d, said) for d in (stored, *autocast) if (said := _try(layer, stored, d))), None)
            if failed is not None:
                dtype, said = failed
                how = f"in {_name(dtype)}" if dtype == stored else f"under {_name(dtype)} autocast"
                reason = f"{type(layer).__name__} cannot run {how} on this CPU: {said}"
                fallbacks.append(Fallback(name, _name(dtype), "float32", reason))
                targets.update(dict.fromkeys(component.modules(), torch.float32))
                fenced += [name] if autocast else []
                break
    return fenced


def _kinds(component: nn.Module, targets: Targets) -> Iterable[nn.Module]:
    """Return the smallest layer of each type and dtype in a component."""
    found: dict[tuple[type, torch.dtype], nn.Module] = {}
    for layer in sorted(_holders(component), key=weights_bytes):
        found.setdefault((type(layer), targets[layer]), layer)
    return found.values()


def _try(layer: nn.Module, stored: torch.dtype, dtype: torch.dtype) -> str:
    """Return what torch says against a layer stored in one dtype and run in another, or "" if it runs."""
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
        case int8.Pointwise():
            return torch.zeros(1, layer.in_features, 1)
        case nn.Linear():
            return torch.zeros(1, layer.in_features)
        case nn.modules.conv._ConvNd():
            reach = zip(layer.kernel_size, layer.dilation, strict=True)
            return torch.zeros(1, layer.in_channels, *[(size - 1) * step + 2 for size, step in reach])
        case nn.RNNBase():
            return torch.zeros(2, 1, layer.input_size)
        case nn.LayerNorm():
            return torch.zeros(1, *layer.normalized_shape)
        case nn.BatchNorm1d():
            return torch.zeros(1, layer.num_features, 2)
    return None
