"""A torch file inside a .nemo file: the tensors that it describes, and where their numbers lie.

A torch file is a zip whose first entry, `data.pkl`, describes the tensors, or four pickles in a row
in the format before torch 1.6. Weights are not read, so it takes milliseconds for a file of any
size. Imports no torch.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import msgspec

from asrd.errors import ModelError
from asrd.models import archive
from asrd.models.tensors import DTYPE_BYTES, Tensor, TensorLocation
from asrd.models.unpickler import MAX_DESCRIPTION_BYTES, TensorUnpickler
from asrd.models.untrusted_yaml import shown

MAX_TENSORS = 100_000
"""In a file of weights; the largest models have about 3,000."""

ZIP_BEGIN = b"PK\x03\x04"
ENTRY_HEADER = "<4s5H3I2H"
"""What stands before each entry of a zip, up to its name."""

ENTRY_HEADER_BYTES = struct.calcsize(ENTRY_HEADER)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of a torch file from before 1.6."""


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
        state = _state(content, path)
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
    check_bytes(tensors, path, size)
    return tensors


def _state(content: IO[bytes], path: Path) -> Any:
    """Return what the pickle of a torch file of either format describes."""
    zipped = content.read(len(ZIP_BEGIN)) == ZIP_BEGIN
    content.seek(0)
    if not zipped:
        _skip_legacy_heads(content, path)
        return TensorUnpickler(content, path).load()
    return TensorUnpickler(_description(content), path).load()


def check_bytes(tensors: dict[str, Tensor], path: Path, size: int) -> None:
    """Refuse tensors that the file's bytes cannot hold, however well they are compressed.

    Raises:
        ModelError: too many of them, or too many bytes.
    """
    if len(tensors) > MAX_TENSORS:
        why = f"its weights are {len(tensors)} tensors; at most {MAX_TENSORS} are allowed"
        raise ModelError(f"{path} is refused: {why}", archive.HINT)
    blocks = {tensor.memory: tensor.bytes for tensor in tensors.values()}
    described = sum(blocks.values())
    if described > archive.MAX_EXPANSION * size + archive.SPARE_BYTES:
        why = f"its weights describe {described} bytes of tensors in {size} bytes"
        raise ModelError(f"{path} is refused: {why}", archive.HINT)


def _description(content: IO[bytes]) -> IO[bytes]:
    """Return a stream at the pickle `data.pkl` of a torch zip.

    torch writes it first and uncompressed, and a pickle says itself where it ends, so the directory
    at the end of the zip is not needed; in a gzipped archive the way there leads through all
    weights. Any other zip goes the long way.
    """
    fields = struct.unpack(ENTRY_HEADER, content.read(ENTRY_HEADER_BYTES))
    method, name_length, extra_length = fields[3], fields[-2], fields[-1]
    name = content.read(name_length)
    if name.endswith(b"/data.pkl") and method == zipfile.ZIP_STORED:
        content.read(extra_length)
        return content
    content.seek(0)
    with archive.unzipped(content) as packed:
        entry = next(info for info in packed.infolist() if info.filename.endswith("/data.pkl"))
        if entry.file_size > MAX_DESCRIPTION_BYTES:
            raise ValueError(f"a description of {entry.file_size} bytes")
        return io.BytesIO(packed.read(entry))


def _skip_legacy_heads(content: IO[bytes], path: Path) -> None:
    """Skip the three pickles in front of the description in the format before torch 1.6."""
    if TensorUnpickler(content, path).load() != LEGACY_MAGIC:
        raise ValueError("neither of torch's file formats")
    for _ in range(2):
        TensorUnpickler(content, path).load()


def locations(
    content: IO[bytes], begin: int, path: Path
) -> OrderedDict[str, TensorLocation] | None:
    """Return where the tensors of a torch file lie, in the order of the model's state.

    Args:
        content: the torch file.
        begin: the byte of the .nemo file where it begins.
        path: named in messages.

    Returns:
        None where they can only be read after unpacking: the format before torch 1.6, numbers of
        another byte order or that do not lie side by side.
    """
    if not zipfile.is_zipfile(content):
        return None
    content.seek(0)
    state = TensorUnpickler(_description(content), path).load()
    content.seek(0)
    result: Any = OrderedDict()
    with archive.unzipped(content) as packed:
        root = packed.infolist()[0].filename.partition("/")[0]
        if not _is_little_endian(packed, root):
            return None
        for name, tensor in state.items():
            location = _location(tensor, packed, root, content)
            if location is None:
                return None
            result[name] = msgspec.structs.replace(location, offset=begin + location.offset)
    result._metadata = getattr(state, "_metadata", None)  # versions of torch's modules, by name
    return result


def _is_little_endian(packed: zipfile.ZipFile, root: str) -> bool:
    entry = f"{root}/byteorder"
    return entry not in packed.NameToInfo or packed.read(entry) == b"little"


def _location(
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
    begin = int(first) * DTYPE_BYTES.get(tensor.dtype, 1)
    if entry.compress_type != zipfile.ZIP_STORED or begin + tensor.bytes > entry.file_size:
        return None
    content.seek(entry.header_offset)
    fields = struct.unpack(ENTRY_HEADER, content.read(ENTRY_HEADER_BYTES))
    name_length, extra_length = fields[-2:]
    data = entry.header_offset + ENTRY_HEADER_BYTES + name_length + extra_length
    return TensorLocation(tensor, data + begin)
