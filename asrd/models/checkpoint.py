"""What a checkpoint says of itself: its kind of model, and of every tensor its name, shape, dtype
and place.

A .nemo file is a tar, in older files gzipped, of `model_config.yaml`, `model_weights.ckpt` and
tokenizers. The ckpt is a torch file: a zip whose first entry, `data.pkl`, describes the tensors, or
four pickles in a row in the format before torch 1.6. Both are read by an unpickler that knows the
few names a tensor needs and refuses all others, so a hostile file runs no code. Weights are not
read: it takes milliseconds for a file of any size. Runs on both sides; imports neither torch nor
NeMo.
"""

from __future__ import annotations

import io
import itertools
import math
import operator
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from asrd.errors import ModelError
from asrd.models import archive, model_config
from asrd.models.untrusted_yaml import shown

FAMILIES = {
    "EncDecMultiTaskModel": "aed",
    "EncDecCTCModelBPE": "ctc",
    "EncDecCTCModel": "ctc",
    "EncDecRNNTBPEModel": "rnnt",
    "EncDecRNNTModel": "rnnt",
    "EncDecHybridRNNTCTCBPEModel": "hybrid",
    "EncDecHybridRNNTCTCModel": "hybrid",
}
"""Class of a checkpoint, as its config names it -> family. A transducer that predicts durations is
a `tdt`."""

GZIP = b"\x1f\x8b"
"""How a gzipped file begins."""

CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.ckpt"
HIDDEN_WEIGHTS = "timestamps_asr_model_weights.ckpt"
"""Members of a .nemo file; the second is of the second model that newer Canary files carry."""

STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""Names of torch's storage classes -> dtype."""

WIDTHS = {
    "float64": 8,
    "int64": 8,
    "int32": 4,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int16": 2,
}
"""Bytes of one element; one byte where it is not listed."""

EMBEDDING = "transf_decoder._embedding.token_embedding.weight"
HEAD = "log_softmax.mlp.layer0.weight"
"""NeMo's AED model makes its output layer share the embedding's memory, whatever the checkpoint
holds."""

BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "pos_enc", "pe", "window", "fb")
"""Last words of tensors that are no parameters; all others are."""

LIMIT = 4 << 20
"""Bytes of a description that are still read; the largest models need about 1 MiB. A byte may make
an object."""

MAX_TENSORS = 100_000
"""In a file of weights; the largest models have about 3,000."""

MAX_DIMENSIONS = 16
MAX_SIZE = 2**62
"""Of a tensor."""

HINT = archive.HINT

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of a torch file from before 1.6."""


class Tensor(msgspec.Struct, frozen=True):
    """One tensor of a checkpoint."""

    shape: tuple[int, ...]
    dtype: str
    memory: str = ""
    """Where it lies: tensors of one shape that lie in one place are one tensor under several
    names."""
    dense: bool = True
    """Its numbers lie side by side and in order."""

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def floating(self) -> bool:
        """True for what a cast changes; counters are integers and stay."""
        return "float" in self.dtype


class TensorLocation(msgspec.Struct, frozen=True):
    """Where in a .nemo file the numbers of a tensor begin: bytes, at no multiple of anything."""

    tensor: Tensor
    offset: int


class Header(msgspec.Struct, frozen=True):
    """What a .nemo file says of itself."""

    path: Path
    size: int
    """Bytes of the file."""
    target: str
    """Class of the model, as the config names it."""
    family: str
    """ctc, rnnt, tdt, hybrid or aed."""
    sample_rate: int
    """Hertz."""
    prompt_format: str
    """canary or canary2; empty where the model takes no prompt."""
    languages: tuple[str, ...]
    """Where the config tells them."""
    cache_aware: bool
    """Trained to stream with limited context."""
    hidden_bytes: int
    """Of the weights of a second model for timestamps, which newer Canary files carry; 0 when there
    is none. Files from before such models are gzipped and not looked through for one."""
    tensors: dict[str, Tensor]
    """As stored, by name in the model's state."""
    config: dict[str, Any]
    """What NeMo may be given of it; see `model_config`."""

    @property
    def tied(self) -> bool:
        """True where the output layer is the embedding."""
        return EMBEDDING in self.tensors and HEAD in self.tensors

    @property
    def unique(self) -> dict[str, Tensor]:
        """Tensors as the restored model holds them: those that share memory once, under their first
        name."""
        seen: set[tuple[str, tuple[int, ...]]] = set()
        kept: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            place = (tensor.memory or name, tensor.shape)
            if place in seen or (name == HEAD and self.tied):
                continue
            seen.add(place)
            kept[name] = tensor
        return kept

    @property
    def parameters(self) -> int:
        """How many parameters the model has, tied ones once."""
        return sum(tensor.elements for name, tensor in self.unique.items() if not is_buffer(name))

    @property
    def components(self) -> dict[str, int]:
        """Component (a child of the model) -> its parameters."""
        sums: dict[str, int] = {}
        for name, tensor in self.unique.items():
            child = name.partition(".")[0]
            sums[child] = sums.get(child, 0) + (0 if is_buffer(name) else tensor.elements)
        return {child: count for child, count in sums.items() if count}

    def setting(self, dotted: str, default: Any = None) -> Any:
        """Return one value of the config by its dotted path, `default` where there is none."""
        value: Any = self.config
        for word in dotted.split("."):
            value = value.get(word) if isinstance(value, dict) else None
        return default if value is None else value


def is_buffer(name: str) -> bool:
    """Return whether a tensor of this name is a buffer: statistics, tables and filter banks."""
    return name.rpartition(".")[2] in BUFFERS


def header(path: str | Path) -> Header:
    """Return what the .nemo file at `path` says of itself.

    Raises:
        ModelError: missing, empty, cut short, not a .nemo file, another kind of model, or weights
            that are no tensors.
    """
    path = Path(path)
    size = _size(path)
    try:
        with path.open("rb") as file:
            return header_of(file, path, size)
    except PermissionError as error:
        raise ModelError(f"no permission to read {path}") from error
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}", "copy or download it again"
        ) from error


def header_of(file: IO[bytes], path: Path, size: int, stream: bool = False) -> Header:
    """Return what an open .nemo file says of itself.

    Args:
        file: binary and seekable; it may be one on a server, or a download that goes on.
        path: what errors call it.
        size: bytes of the whole file.
        stream: leave it at config and weights' description, as what follows them may not be here
            yet.

    Raises:
        ModelError: as `header`.
    """
    hint = "copy or download it again" if path.suffix == ".nemo" else "a model is a .nemo file"
    try:
        found = _members(path, file, size, stream)
    except ModelError:
        raise
    except (tarfile.ReadError, EOFError, zlib.error) as error:
        short = "end of data" in str(error) or isinstance(error, EOFError)
        what = "is cut short" if short else "is not a .nemo file (a tar archive)"
        raise ModelError(f"{path} {what}", hint) from error
    except (OSError, RecursionError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is damaged: {str(error).splitlines()[0]}", hint) from error
    return _described(path, size, found)


def places(file: IO[bytes], path: Path) -> OrderedDict[str, TensorLocation] | None:
    """Return where in an open .nemo file each tensor lies, as the model's state with all that torch
    keeps beside it.

    None where they can only be read after unpacking: a gzipped archive, the format before torch
    1.6, numbers of another byte order or that do not lie side by side.

    Raises:
        ModelError: weights that are no tensors. zipfile.BadZipFile, OSError, tarfile.ReadError:
            damage.
    """
    file.seek(0)
    if file.read(2) == GZIP:
        return None
    file.seek(0)
    for opened, member, name in archive.members(file, path, os.fstat(file.fileno()).st_size):
        content = opened.extractfile(member) if name == WEIGHTS and member.isfile() else None
        if content is not None:
            return _places(content, member.offset_data, path)
    return None


def _places(content: IO[bytes], begin: int, path: Path) -> OrderedDict[str, TensorLocation] | None:
    """Return as `places` where the tensors of a torch file lie, which begins at this byte of the
    .nemo file."""
    if not zipfile.is_zipfile(content):
        return None
    content.seek(0)
    state = _Unpickler(_description(content), path).load()
    content.seek(0)
    with archive.unzipped(content) as packed:
        root = packed.infolist()[0].filename.partition("/")[0]
        if (
            f"{root}/byteorder" in packed.NameToInfo
            and packed.read(f"{root}/byteorder") != b"little"
        ):
            return None
        found = {name: _place(tensor, packed, root, content) for name, tensor in state.items()}
    result: Any = OrderedDict()
    for name, place in found.items():
        if place is None:
            return None
        result[name] = msgspec.structs.replace(place, offset=begin + place.offset)
    result._metadata = getattr(
        state, "_metadata", None
    )  # versions of torch's modules, by their names
    return result


def unpacked_bytes(path: Path, hidden: bool = False) -> int:
    """Return how much room a restore of the file at `path` takes on disk; of a gzipped file its
    size, which is less.

    Args:
        hidden: its second model is wanted too.

    Raises:
        ModelError: missing or damaged.
    """
    left = {WEIGHTS} if hidden else {WEIGHTS, HIDDEN_WEIGHTS}
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if places(file, path) is None:
                return size
            return sum(
                member.size
                for _, member, name in archive.members(file, path, size)
                if name not in left
            )
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{path} is damaged: {str(error).splitlines()[0]}", "copy or download it again"
        ) from error


def _place(
    tensor: object, packed: zipfile.ZipFile, root: str, content: IO[bytes]
) -> TensorLocation | None:
    """Return where a tensor lies within torch's file, below its `root`; None where it does not lie
    there as it is."""
    if not isinstance(tensor, Tensor) or not tensor.dense:
        return None
    key, _, first = tensor.memory.rpartition("+")
    try:
        entry = packed.getinfo(f"{root}/data/{key}")
    except KeyError:
        return None
    width = WIDTHS.get(tensor.dtype, 1)
    begin, end = int(first) * width, (int(first) + tensor.elements) * width
    if entry.compress_type != zipfile.ZIP_STORED or end > entry.file_size:
        return None
    content.seek(entry.header_offset)
    *_, name_length, extra_length = struct.unpack("<4s5H3I2H", content.read(30))
    return TensorLocation(tensor, entry.header_offset + 30 + name_length + extra_length + begin)


def _size(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        reason = (
            "there is no"
            if isinstance(error, FileNotFoundError | NotADirectoryError)
            else "cannot look at the"
        )
        raise ModelError(
            f"{reason} model file {path}", "asrd models lists the names that are known"
        ) from error
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not a .nemo file", "pass the .nemo file inside it")
    if not path.is_file():
        raise ModelError(f"{path} is not a regular file", "a model is a .nemo file")
    if size == 0:
        raise ModelError(f"{path} is empty", "copy or download it again")
    return size


class _Found(NamedTuple):
    """What is read of an archive."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    hidden: int
    """Bytes of the weights of a second model."""
    names: frozenset[str] | None
    """Of all members; None where not all were seen."""


def _members(path: Path, file: IO[bytes], size: int, stream: bool) -> _Found:
    """Return what is read of an archive, in one pass over it or less."""
    config, tensors, hidden, names = None, None, 0, set[str]()
    zipped = file.read(2) == GZIP
    for opened, member, name in archive.members(file, path, size):
        names.add(name)
        content = opened.extractfile(member) if member.isfile() else None
        if name == CONFIG and content:
            config = model_config.read(content.read(model_config.MAX_CONFIG_BYTES + 1), path)
        elif name == WEIGHTS and content:
            tensors = tensors_of(content, path, member.size)
        elif name == HIDDEN_WEIGHTS:
            hidden = member.size
        elif name.startswith("model_weights/"):
            raise ModelError(
                f"{path} has its weights in several parts", "save it again with NeMo's save_to()"
            )
        if (zipped or stream) and config is not None and tensors is not None:
            return _Found(
                config, tensors, hidden, None
            )  # the rest is weights, and unpacking them takes half a minute
    if config is None or tensors is None:
        missing = CONFIG if config is None else WEIGHTS
        raise ModelError(
            f"{path} is not a .nemo file of a model: it holds no {missing}",
            "copy or download it again",
        )
    return _Found(config, tensors, hidden, frozenset(names))


def _described(path: Path, size: int, found: _Found) -> Header:
    config, tensors = found.config, found.tensors
    plain = Header(
        path,
        size,
        str(config.get("target") or ""),
        "",
        0,
        "",
        (),
        False,
        found.hidden,
        tensors,
        config,
    )
    kind = plain.target.rpartition(".")[2]
    if kind not in FAMILIES or plain.target not in model_config.TARGETS:
        raise ModelError(
            f"{path} is a .nemo of another kind of model: target {shown(plain.target) or 'not named'}",
            f"supported: {', '.join(FAMILIES)}",
        )
    family = FAMILIES[kind]
    if family == "rnnt" and "tdt" in (
        plain.setting("decoding.model_type"),
        plain.setting("loss.loss_name"),
    ):
        family = "tdt"
    rate = plain.setting("sample_rate", plain.setting("preprocessor.sample_rate", 16000))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    checked = model_config.checked(config, shapes, path, found.names).config
    tokenizers = plain.setting("tokenizer.langs", {})
    return msgspec.structs.replace(
        plain,
        family=family,
        sample_rate=rate if isinstance(rate, int) else 16000,
        prompt_format=shown(plain.setting("prompt_format", "")),
        languages=tuple(shown(name) for name in tokenizers if name != "spl_tokens"),
        cache_aware=plain.setting("encoder.att_context_style") == "chunked_limited",
        config=checked,
    )


# -- torch's files
# ----------------------------------------------------------------------------------------------------


class _Bounded:
    """A stream of which at most `LIMIT` bytes are read: a description may be as long as its
    file."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._left = stream, LIMIT

    def read(self, size: int) -> bytes:
        """Return up to so many bytes. Raises ValueError: more than are left."""
        if not 0 <= size <= self._left:
            raise ValueError(f"a description of more than {LIMIT >> 20} MiB")
        self._left -= size
        return self._stream.read(size)

    def readline(self) -> bytes:
        """Return the bytes up to the next line's end. Raises ValueError: more than are left."""
        line = self._stream.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise ValueError(f"a description of more than {LIMIT >> 20} MiB")
        return line


def _check_keys(keys: Sequence[object]) -> None:
    """Refuse keys that are no texts: a thousand numbers that hash alike take as long as a
    million."""
    if not all(isinstance(key, str) for key in keys):
        raise ValueError("a key that is no text")


FOREIGN = (pickle.PUT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8)
"""Instructions of pickle that make sets, or keys of numbers without a bound; torch writes none of
them."""

_PLAIN: dict[int, Callable[[Any], None]] = dict(pickle._Unpickler.dispatch)


def _set_item(unpickler: Any) -> None:
    _check_keys(unpickler.stack[-2:-1])
    _PLAIN[pickle.SETITEM[0]](unpickler)


def _set_items(unpickler: Any) -> None:
    _check_keys(unpickler.stack[::2])  # what was read since the mark
    _PLAIN[pickle.SETITEMS[0]](unpickler)


def _make_dict(unpickler: Any) -> None:
    _check_keys(unpickler.stack[::2])
    _PLAIN[pickle.DICT[0]](unpickler)


def _refuse(_: Any) -> None:
    raise ValueError("an instruction that torch does not write")


class _Unpickler(pickle._Unpickler):
    """Reads the description of tensors and knows nothing else: names lead to bound methods and
    strings, not to code.

    Built on pickle's implementation in Python: the one in C makes room for as many objects as a
    damaged number says, which can be more than the machine has.
    """

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        super().__init__(_Bounded(stream))
        self._path = path
        self._known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("collections", "OrderedDict"): self._ordered,
        }

    dispatch = _PLAIN | {
        **dict.fromkeys((code[0] for code in FOREIGN), _refuse),
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _make_dict,
    }
    """Instruction -> what follows it."""

    def _ordered(self, items: Iterable[tuple[str, Any]] = ()) -> OrderedDict[str, Any]:
        pairs = list(items)
        _check_keys([key for key, _ in pairs])
        return OrderedDict(pairs)

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) in self._known:
            return self._known[module, name]
        raise ModelError(
            f"{self._path} is refused: its weights name {shown(f'{module}.{name}')}, which is no part of a tensor",
            "a checkpoint that runs code when opened is not opened; get it from its publisher",
        )

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, dtype, key = pid[:3]
        return str(dtype), str(key)

    def _tensor(
        self,
        storage: tuple[str, str],
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        *_: object,
    ) -> Tensor:
        dtype, key = storage
        numbers = (offset, *shape, *stride)
        if len(shape) > MAX_DIMENSIONS or not all(
            isinstance(n, int) and 0 <= n < MAX_SIZE for n in numbers
        ):
            raise ValueError("a tensor without a shape")
        steps = itertools.accumulate(
            shape[:0:-1], operator.mul, initial=1
        )  # from the last dimension on
        dense = all(
            size == 1 or step == due
            for size, step, due in zip(shape[::-1], stride[::-1], steps, strict=False)
        )
        return Tensor(tuple(shape), dtype, f"{key}+{offset}", dense)

    def _parameter(self, tensor: Tensor, *_: object) -> Tensor:
        return tensor


def tensors_of(content: IO[bytes], path: Path, size: int) -> dict[str, Tensor]:
    """Return the tensors of a torch file by name; its weights are not read.

    Args:
        content: at the beginning of the torch file.
        path: named in messages.
        size: bytes of the torch file.

    Raises:
        ModelError: not a torch file, what is no tensor, or tensors that need more bytes than there
            are.
    """
    try:
        zipped = content.read(4) == b"PK\x03\x04"
        content.seek(0)
        state = _Unpickler(_description(content) if zipped else _legacy(content, path), path).load()
        tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    except ModelError:
        raise
    except Exception as error:  # a damaged pickle may raise anything at all
        what = f"{type(error).__name__}: {shown(str(error))}"
        raise ModelError(
            f"{path} has weights that cannot be read ({what})", "copy or download it again"
        ) from error
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise ModelError(
            f"{path} has weights without a single named tensor", "copy or download it again"
        )
    _check_bytes(tensors, path, size)
    return tensors


def _check_bytes(tensors: dict[str, Tensor], path: Path, size: int) -> None:
    """Refuse tensors that the file's bytes cannot hold, however well they are compressed."""
    blocks = {
        tensor.memory: tensor.elements * WIDTHS.get(tensor.dtype, 1) for tensor in tensors.values()
    }
    if len(tensors) > MAX_TENSORS:
        why = f"its weights are {len(tensors)} tensors; at most {MAX_TENSORS} are allowed"
        raise ModelError(f"{path} is refused: {why}", HINT)
    if (need := sum(blocks.values())) > archive.MAX_EXPANSION * size + archive.SPARE_BYTES:
        raise ModelError(
            f"{path} is refused: its weights describe {need} bytes of tensors in {size} bytes", HINT
        )


def _description(content: IO[bytes]) -> IO[bytes]:
    """Return a stream at the pickle `data.pkl` of a torch zip.

    torch writes it first and uncompressed, and a pickle says itself where it ends, so the directory
    at the end of the zip is not needed; in a gzipped archive the way there leads through all
    weights. Any other zip goes the long way.
    """
    *_, name_length, extra_length = fields = struct.unpack("<4s5H3I2H", content.read(30))
    name, method = content.read(name_length), fields[3]
    if name.endswith(b"/data.pkl") and method == zipfile.ZIP_STORED:
        content.read(extra_length)
        return content
    content.seek(0)
    with archive.unzipped(content) as packed:
        entry = next(info for info in packed.infolist() if info.filename.endswith("/data.pkl"))
        if entry.file_size > LIMIT:
            raise ValueError(f"a description of {entry.file_size} bytes")
        return io.BytesIO(packed.read(entry))


def _legacy(content: IO[bytes], path: Path) -> IO[bytes]:
    """Skip the three pickles in front of the description in a torch file of the format before
    1.6."""
    heads: Iterator[Any] = (_Unpickler(content, path).load() for _ in range(3))
    if next(heads) != LEGACY_MAGIC:
        raise ValueError("neither of torch's file formats")
    for _ in heads:
        pass
    return content
