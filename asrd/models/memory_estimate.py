"""What a model will weigh under a precision: exact for the weights, an estimate for the rest, and
the two kept apart.

Works on names and shapes alone. What a restored model holds differs from what its checkpoint holds:
it is float32 whatever was stored, tied tensors are one, and the table of positions is built, not
loaded. What a cast makes of it follows `casting` rule by rule; a test compares the two to the byte.
Pure; runs on both sides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fnmatch import fnmatchcase

import msgspec

from asrd.errors import ConfigError, nearest
from asrd.models.checkpoint import Header
from asrd.models.tensors import DTYPE_BYTES, EMBEDDING, HEAD, Tensor, is_buffer
from asrd.precision.plan import for_family
from asrd.precision.strategies import Precision, beside_int8, dtypes

CANARY_DECODER = ("encoder_decoder_proj", "transf_decoder", "log_softmax")
"""What `decoder` means for Canary, which has no child of that name."""

POSITIONS = "encoder.pos_enc.pe"
"""The encoder's table of positions: a buffer that no checkpoint holds."""

INT8_ROW = 5
"""Bytes that torchao keeps beside each row of an int8 weight: a float32 scale and an int8 zero
point."""

CONTEXT = 480 << 20
"""Bytes of a CUDA context with the kernels and workspaces of cuBLAS and cuDNN: assumed; 300-600 MiB
by card.

An H200 (driver 580) takes 710 to 755, whatever the model, and captured CUDA graphs 200 to 370 more.
Too little here costs a start that does not hold; too much would keep off a small card what fits
there.
"""

ALIVE = 3
"""How many copies of the largest activation live at once at the peak: convolution in, out and mask;
assumed."""

FRAMES = 100
"""Mel frames of one second."""


class Estimate(msgspec.Struct, frozen=True):
    """Bytes on the device. `weights` is exact where a file was read; the others are estimates."""

    weights: int
    """Parameters and buffers, as stored."""
    load_peak: int
    """While loading: the cast is made on the CPU and what moves to the device is final, so it
    equals the weights."""
    activations: int
    """While one buffer is recognised."""
    process: int
    """All the process holds while it works: weights, activations and the CUDA context with its
    libraries."""


def resident(header: Header) -> dict[str, Tensor]:
    """Return the tensors of the restored model by name: float32 where stored as any float, tied
    ones once."""
    tensors, last = {}, None
    for name, tensor in header.unique.items():
        if tensor.floating:
            tensor = msgspec.structs.replace(tensor, dtype="float32")
        if last is None and name.startswith("encoder.layers.0.norm_out."):
            last = tensor
        tensors[name] = tensor
    if last is not None and POSITIONS not in tensors:
        tensors[POSITIONS] = Tensor((1, _positions(header), last.shape[0]), "float32")
    return tensors


def _positions(header: Header) -> int:
    """Return the rows of the table of positions, as ConformerEncoder builds it."""
    length = header.setting("encoder.pos_emb_max_len", 5000)
    kind = header.setting("encoder.self_attention_model", "rel_pos")
    if kind == "rel_pos_local_attn":
        context = header.setting("encoder.att_context_size", [-1, -1])
        left, right = context[0] if isinstance(context[0], list) else context
        return int(left + right + 1)
    if kind == "abs_pos":
        return int(length)
    return int(2 * length - 1)


def weights_bytes(header: Header, precision: Precision) -> int:
    """Return the bytes of all parameters and buffers that a worker will report under this
    precision.

    Holds where nothing falls back; a layer that a CPU cannot run in a dtype stays float32 there.

    Raises:
        ConfigError: `parts` names a component that the model has not.
    """
    tensors = resident(header)
    asked = for_family(precision, header.family)
    names = list(tensors)
    if header.tied:
        names.append(HEAD)
    stored = _dtypes(names, asked, header.tied)
    total = 0
    for name, tensor in tensors.items():
        if stored[name] == "int8" and is_matrix(name, tensor):
            total += tensor.elements + tensor.shape[0] * INT8_ROW
        else:
            dtype: str = tensor.dtype
            if tensor.floating:
                dtype = stored[name]
            if dtype == "int8" and tensor.floating:
                dtype = beside_int8(asked)
            total += tensor.elements * DTYPE_BYTES.get(dtype, 1)
    return total


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is the weight of a linear layer, a pointwise convolution, which is
    one, or an embedding.

    These can be stored as int8; what cannot are convolutions of more than one frame, recurrent
    layers and vectors.
    """
    if not name.endswith(".weight") or is_buffer(name) or name.startswith("preprocessor."):
        return False
    return len(tensor.shape) == 2 or (
        len(tensor.shape) == 3 and tensor.shape[2] == 1 and tensor.shape[1] > 1
    )


def _dtypes(names: list[str], precision: Precision, tied: bool) -> dict[str, str]:
    """Return name -> dtype in which it is stored: the deepest module that `parts` names decides, the
    later of equals."""
    found: dict[str, str] = dict.fromkeys(names, precision.quantize or precision.weights)
    front: str = "float32"
    if precision.features == "weights":
        front = precision.weights
    _set_below(found, "preprocessor", front)
    parts: list[tuple[str, str]] = []
    for key, part_dtype in precision.parts.items():
        parts += zip(_paths(names, key), itertools.repeat(part_dtype))
    for path, dtype in sorted(parts, key=lambda part: part[0].count(".")):
        _set_below(found, path, dtype)
    if tied and found[HEAD] != found[EMBEDDING]:
        # A shared weight has one dtype: where its owners differ, float32.
        low = beside_int8(precision)
        common: str = found[HEAD].replace("int8", low)
        if found[EMBEDDING].replace("int8", low) != common:
            common = "float32"
        for name in (HEAD, EMBEDDING):
            _set_in_module(found, name.rpartition(".")[0], common)
    return found


def _set_below(found: dict[str, str], path: str, dtype: str) -> None:
    """Set the dtype of every tensor in a module and in the modules below it."""
    for name in found:
        if name.startswith(f"{path}."):
            found[name] = dtype


def _set_in_module(found: dict[str, str], module: str, dtype: str) -> None:
    """Set the dtype of every tensor that a module holds itself."""
    for name in found:
        if name.rpartition(".")[0] == module:
            found[name] = dtype


def modules(names: Iterable[str]) -> list[str]:
    """Return the dotted paths of all modules that tensors of these names are in."""
    found: dict[str, None] = {}
    for name in names:
        *words, _ = name.split(".")
        for path in itertools.accumulate(words, "{}.{}".format):
            found[path] = None
    return list(found)


def _paths(names: Iterable[str], key: str) -> list[str]:
    """Return the modules that a key of `parts` means: a child, a dotted path, a pattern of paths,
    norms or decoder."""
    known = modules(names)
    if key == "norms":
        norms = [path for path in known if "norm" in path.rpartition(".")[2]]
        return [path for path in norms if path.startswith("encoder.")]
    if key == "decoder" and key not in known:
        return [child for child in CANARY_DECODER if child in known]
    found = [path for path in known if fnmatchcase(path, key)]
    if not found:
        children = tuple(path for path in known if "." not in path)
        raise ConfigError(
            f"this model has no component {key!r}", nearest(key, (*children, "norms"))
        )
    return found


def needs(
    header: Header, precision: Precision, seconds: float = 10.0, hidden: bool = False
) -> Estimate:
    """Return what a GPU must hold to run this model under this precision.

    Activations are counted from the largest one, the output of the first convolution over the mel
    spectrogram, at the width of the arithmetic, plus what Canary's decoder keeps of keys and
    values. Under autocast every weight is cast when it is used and dropped again, so the largest
    one is there twice. Mixed precision shrinks no weights.

    Args:
        seconds: of the audio buffer.
        hidden: the second, FP32 model of newer Canary files is loaded too.
    """
    weights = weights_bytes(header, precision)
    extra = 0
    if hidden:
        extra = header.hidden_bytes
    low = dtypes(precision) - {"float32"}
    width = 4
    if low:
        width = 2
    activations = _activations(header, width, seconds)
    if precision.weights == "float32" and low:
        largest = max(t.elements for n, t in header.tensors.items() if not is_buffer(n))
        activations += largest * 2
    return Estimate(
        weights + extra, weights + extra, activations, weights + extra + activations + CONTEXT
    )


def _activations(header: Header, width: int, seconds: float) -> int:
    """Return the bytes alive at the peak of one buffer."""
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    channels = shapes.get("encoder.pre_encode.conv.0.weight", (256,))[0]
    mels = header.setting("preprocessor.features", 80)
    largest = int(channels * round(seconds * FRAMES / 2) * round(mels / 2) * width)
    hidden = shapes.get(EMBEDDING, (0, 0))[1]
    layers = sum(name.endswith("second_sub_layer.key_net.weight") for name in shapes)
    kept = 2 * layers * hidden * round(seconds * FRAMES / 8 * 2) * width
    return ALIVE * largest + kept
