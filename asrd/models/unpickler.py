"""The pickle that describes the tensors of a torch file, read without running what it names.

The unpickler knows the few names that a tensor needs and refuses all others, so a hostile file runs
no code. Its time and memory are bounded. Imports no torch.
"""

from __future__ import annotations

import itertools
import operator
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from asrd.errors import ModelError
from asrd.models.tensors import Tensor
from asrd.models.untrusted_yaml import shown

STORAGE_DTYPES = {
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

MAX_DESCRIPTION_BYTES = 4 << 20
"""Of a description that are still read; the largest models need about 1 MiB. A byte may make an
object."""

MAX_DIMENSIONS = 16
MAX_DIMENSION = 2**62
"""Elements of one dimension of a tensor."""

FOREIGN = (pickle.PUT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8)
"""Instructions of pickle that make sets, or keys of numbers without a bound; torch writes none of
them."""


class _BoundedStream:
    """A stream of which at most MAX_DESCRIPTION_BYTES are read: a description may be as long as its
    file."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._left = stream, MAX_DESCRIPTION_BYTES

    def read(self, size: int) -> bytes:
        """Return up to so many bytes. Raises ValueError: more than are left."""
        if not 0 <= size <= self._left:
            raise _too_long()
        self._left -= size
        return self._stream.read(size)

    def readline(self) -> bytes:
        """Return the bytes up to the next line's end. Raises ValueError: more than are left."""
        line = self._stream.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise _too_long()
        return line


def _too_long() -> ValueError:
    return ValueError(f"a description of more than {MAX_DESCRIPTION_BYTES >> 20} MiB")


def _check_keys(keys: Sequence[object]) -> None:
    """Refuse keys that are no texts: a thousand numbers that hash alike take as long as a
    million."""
    if not all(isinstance(key, str) for key in keys):
        raise ValueError("a key that is not text")


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


class TensorUnpickler(pickle._Unpickler):
    """Reads the description of tensors and knows nothing else: names lead to bound methods and
    strings, not to code.

    Built on pickle's implementation in Python: the one in C makes room for as many objects as a
    damaged number says, which can be more than the machine has.

    Args:
        stream: at the beginning of the pickle.
        path: of the .nemo file, named in messages.
    """

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        super().__init__(_BoundedStream(stream))
        self._path = path
        self._admitted: dict[tuple[str, str], Callable[..., Any]] = {
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
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if (module, name) in self._admitted:
            return self._admitted[module, name]
        named = shown(f"{module}.{name}")
        raise ModelError(
            f"{self._path} is refused: its weights name {named}, which is not part of a tensor",
            "a checkpoint that runs code when opened is not opened; get the file from its publisher",
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
        sizes_admitted = all(_is_size(number) for number in (offset, *shape, *stride))
        if len(shape) > MAX_DIMENSIONS or not sizes_admitted:
            raise ValueError("a tensor without a shape")
        return Tensor(tuple(shape), dtype, f"{key}+{offset}", _is_dense(shape, stride))

    def _parameter(self, tensor: Tensor, *_: object) -> Tensor:
        return tensor


def _is_size(number: object) -> bool:
    return isinstance(number, int) and 0 <= number < MAX_DIMENSION


def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Return whether numbers of this shape lie side by side and in order."""
    due_strides = itertools.accumulate(shape[:0:-1], operator.mul, initial=1)
    from_the_last = zip(shape[::-1], stride[::-1], due_strides, strict=False)
    return all(size == 1 or step == due for size, step, due in from_the_last)
