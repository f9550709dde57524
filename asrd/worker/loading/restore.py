"""Worker: NeMo imported without torch's compiler, models built without numbers that are overwritten
at once, and their weights read from the user's own file.

NeMo's import is most of a worker's start, and over a third of it is torch's compiler: one attention
kernel is handed to torch.compile when its module is imported, and Lightning asks for a class of the
compiler's only to tell its objects from others. Nothing here compiles. So while NeMo is imported a
function given to torch.compile is compiled when it is first called, and `torch._dynamo` is a
stand-in that gives way to the real one when it is asked for more. Afterwards everything is as it
would have been. Releases that this was not tried with are imported the plain way.

A checkpoint is an archive in an archive, and NeMo unpacks it before it reads it: as many bytes
written as the model weighs, at every start. Here what is small is unpacked, and each tensor's
numbers go from where they lie in the file to the memory of the model they are for. They are read
and not mapped: a mapped file that somebody cuts short ends the process without a word, and this way
one copy of the model is all that is ever held.

Knows torch, how NeMo restores and how Python imports; knows no kind of model. Imports torch only
when it is used.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from asrd.errors import AsrdError, DiskError, ModelError
from asrd.models import archive, config_files, model_config
from asrd.models.checkpoint import (
    CONFIG,
    HIDDEN_WEIGHTS,
    WEIGHTS,
    tensor_locations,
    unpacked_bytes,
)
from asrd.models.tensors import TensorLocation
from asrd.models.torch_file import tensors_of

FETCHED_TOKENIZER = re.compile(r"AUTOTOKENIZER for ([\w./-]*\w)")
"""What NeMo says where a tokenizer of the hub, which it takes words' pieces from, cannot be had."""


INITIALISERS = (
    "uniform_", "normal_", "trunc_normal_", "constant_", "zeros_", "ones_", "xavier_uniform_", "xavier_normal_",
    "kaiming_uniform_", "kaiming_normal_", "orthogonal_",
)  # fmt: skip
"""Functions of torch.nn.init that fill a tensor and return it."""


@contextlib.contextmanager
def uninitialised() -> Iterator[None]:
    """While entered, new layers keep whatever was in memory: for a model all of whose parameters
    are then loaded."""
    import torch

    kept = {name: getattr(torch.nn.init, name) for name in INITIALISERS}
    for name in kept:
        setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(torch.nn.init, name, function)


SPARE = 1 << 24
"""Parameters that a built model may have beside those of its file: tied ones count twice."""


@contextlib.contextmanager
def at_most(elements: int) -> Iterator[None]:
    """While entered, modules that have more than twice so many parameters together are not built.
    Raises ValueError."""
    import torch

    register, counted = torch.nn.Module.register_parameter, 0

    def counting(module: Any, name: str, parameter: Any) -> None:
        nonlocal counted
        counted += 0 if parameter is None else parameter.numel()
        if counted > 2 * elements + SPARE:
            raise ValueError("its config describes more parameters than its weights have")
        register(module, name, parameter)

    torch.nn.Module.register_parameter = counting  # type: ignore[assignment,method-assign]  # given back below
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


# -- checkpoints
# ------------------------------------------------------------------------------------------------------


HIDDEN_CONFIG = "timestamps_asr_model_config.yaml"
"""Config of the second model that newer Canary files carry."""

TOLD = 20
"""Entries of a config that are named at most."""

SOON = 0.5
"""Seconds within which a checkpoint that is not to be unpacked is found to be sound."""

PIECE = 64 << 20
"""Bytes that are read ahead at once; between two of them it can be stopped."""


class CheckpointReader:
    """A .nemo file that is being restored; entered, it is open, and what it was unpacked to is gone
    afterwards.

    Args:
        hidden: restore the second model for timestamps, which newer Canary files carry, as well.

    Raises:
        ModelError: the file cannot be opened. DiskError: no room for what must be unpacked.
    """

    def __init__(self, path: Path, hidden: bool = False) -> None:
        self.path, self._hidden = path, hidden
        self._locations: OrderedDict[str, TensorLocation] | None = None
        self._prepared: Future[None] = Future()
        self._checked = model_config.Checked({})
        self._elements = 0
        self._over = False
        self._failure: Exception | None = None

    def __enter__(self) -> CheckpointReader:
        self._stack = contextlib.ExitStack()
        with self._stack:
            try:
                self._file = self._stack.enter_context(self.path.open("rb"))
            except OSError as error:
                raise ModelError(f"cannot read {self.path}: {error.strerror}") from error
            self._as_opened = self._facts()
            self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            self._beside = self._stack.enter_context(ThreadPoolExecutor(1))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._stack.close()

    def prepare(self) -> None:
        """Begin to unpack what must be, and to have the weights in the page cache: disk work,
        beside an import.

        Raises:
            ModelError, DiskError: what is found at once to be wrong; what is found later, `build`
            raises.
        """
        self._prepared = self._beside.submit(self._unpack)
        self._beside.submit(self._read_ahead)
        with self._translating(), contextlib.suppress(TimeoutError):
            self._prepared.result(SOON)

    def build(self) -> Any:
        """Return the model, of any family that the config names, on the CPU and in FP32: without
        its numbers.

        What the checkpoint holds of it is whatever was in memory until `load`.

        Raises:
            ModelError: NeMo refuses it. DiskError: as `prepare`.
        """
        from nemo.collections.asr.models import ASRModel
        from omegaconf import OmegaConf

        with self._translating():
            self._prepared.result()
            config = OmegaConf.create(self._config())
            connector = _connector(str(self.folder))
            with (
                uninitialised(),
                at_most(self._elements),
            ):  # NeMo loads every parameter, or refuses the checkpoint
                return ASRModel.restore_from(
                    str(self.path),
                    override_config_path=config,
                    map_location="cpu",
                    save_restore_connector=connector,
                )

    def load(self, model: Any) -> None:
        """Read a built model's numbers into it, whatever dtypes and layouts its tensors have by
        now.

        Raises:
            ModelError: names or shapes that are not the model's, or the file is changed or cut
                short meanwhile.
        """
        with self._translating():
            model.load_state_dict(self._state(), strict=True)
            model._set_model_restore_state(is_being_restored=False)
        if self._facts() != self._as_opened:
            raise ModelError(
                f"{self.path} was changed while it was read", "start again once it is whole"
            )

    @property
    def remarks(self) -> list[str]:
        """What of the config was passed on unknown, or left empty: a sentence each."""
        checked = self._checked
        found = {
            "unknown and passed on": checked.unknown,
            "names of files, left out": checked.emptied,
        }
        return [
            f"entries of its config, {what}: {', '.join(names[:TOLD])}"
            for what, names in found.items()
            if names
        ]

    def restore(self) -> Any:
        """Return the model as NeMo restores it. Raises: as `build` and `load`."""
        model = self.build()
        self.load(model)
        return model

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            translated = self._translated(self._failure or error)
            if translated is error:
                raise
            raise translated from error

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, AsrdError | MemoryError):
            return error
        if isinstance(error, OSError):
            if error.errno == errno.ENOSPC:
                return DiskError(
                    f"no room to unpack {self.path} in {self.folder.parent}", "set TMPDIR"
                )
            return ModelError(f"cannot read {self.path}: {error}")
        if fetched := FETCHED_TOKENIZER.search(str(error)):
            return ModelError(
                f"{self.path} has a word-piece tokenizer, which NeMo makes from {fetched[1]}, and that is not here",
                f"asrd loads models offline; fetch it once: hf download {fetched[1]}",
            )
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        # NeMo raises every kind for a checkpoint it cannot build.
        return ModelError(
            f"NeMo cannot restore {self.path}: {first}", "run with --debug for its traceback"
        )

    def fill(self, into: Any, place: TensorLocation) -> None:
        """Read one tensor's numbers from the file into one of its shape, of any dtype. Raises
        ModelError: too few."""
        if self._failure:
            raise self._failure
        try:
            self._read(place, into)
        except Exception as error:  # torch makes its own of it, and goes on to the next tensor
            self._failure = error
            raise

    def _read(self, place: TensorLocation, into: Any) -> None:
        import torch

        stored = getattr(torch, place.tensor.dtype)
        direct = into.is_contiguous() and into.dtype == stored and into.device.type == "cpu"
        target = into.detach() if direct else torch.empty(place.tensor.shape, dtype=stored)
        numbers: Any = target.reshape(-1).view(torch.uint8).numpy()
        left, offset = memoryview(numbers), place.offset
        while left:
            count = os.preadv(self._file.fileno(), [left], offset)
            if not count:
                raise ModelError(
                    f"{self.path} was cut short while it was read", "copy or download it again"
                )
            left, offset = left[count:], offset + count
        if direct:
            return
        if target.is_floating_point():
            target = target.float().to(into.dtype)  # by way of float32, as NeMo restores
        if into.dim() == 2 and into.t().is_contiguous():
            into, target = (
                into.t(),
                target.t(),
            )  # torch turns a matrix five times as fast from this side
        into.copy_(target)

    def _facts(self) -> tuple[int, int]:
        now = os.fstat(self._file.fileno())
        return now.st_size, now.st_mtime_ns

    def _unpack(self) -> None:
        """Check the config, and unpack what is not read from where it lies: tokenizers, seldom the
        weights."""
        self._locations = tensor_locations(self._file, self.path)
        left = {WEIGHTS} if self._locations is not None else set[str]()
        left |= set() if self._hidden else {HIDDEN_WEIGHTS}
        size = self._as_opened[0]
        if self._locations is None:  # in one pass, as to list a gzipped archive is to unpack it
            self._check_room(size)
        else:
            self._check_room(unpacked_bytes(self.path, self._hidden))
        for opened, member, name in archive.members(self._file, self.path, size):
            if member.isfile() and name not in left:
                self._check_room(member.size)
                opened.extract(member, self.folder, filter="data")
        self._checked = self._check(CONFIG, WEIGHTS)
        if self._hidden and all(
            (self.folder / name).is_file() for name in (HIDDEN_CONFIG, HIDDEN_WEIGHTS)
        ):
            hidden = self._with_files(self._check(HIDDEN_CONFIG, HIDDEN_WEIGHTS))
            (self.folder / HIDDEN_CONFIG).write_text(
                yaml.safe_dump(hidden, allow_unicode=True)
            )  # NeMo reads it there

    def _check(self, config: str, weights: str) -> model_config.Checked:
        """Return a config of the archive as NeMo may be given it, after a look at its weights
        without torch."""
        if self._locations is not None and weights == WEIGHTS:
            shapes = {name: place.tensor.shape for name, place in self._locations.items()}
        else:
            shapes = self._shapes(self.folder / weights)
        text = (self.folder / config).read_bytes()
        self._elements += sum(math.prod(shape) for shape in shapes.values())
        return model_config.checked(model_config.read(text, self.path), shapes, self.path)

    def _shapes(self, weights: Path) -> dict[str, tuple[int, ...]]:
        """Return the tensors' shapes of unpacked weights, and look whether torch would have to
        inflate them."""
        size = weights.stat().st_size
        with weights.open("rb") as content:
            tensors = tensors_of(content, self.path, size)
        if zipfile.is_zipfile(weights):
            with weights.open("rb") as content, archive.unzipped(content) as packed:
                inflated = sum(entry.file_size for entry in packed.infolist())
            if inflated > archive.MAX_EXPANSION * size + archive.SPARE_BYTES:
                raise ModelError(
                    f"{self.path} is refused: its weights inflate to {inflated} bytes", archive.HINT
                )
        return {name: tensor.shape for name, tensor in tensors.items()}

    def _config(self) -> dict[str, Any]:
        """Return the checked config, with the tokenizers' files where they were unpacked."""
        return self._with_files(self._checked) | {"restore_timestamps_model": self._hidden}

    def _with_files(self, checked: model_config.Checked) -> dict[str, Any]:
        for section, key, name in config_files.tokenizer_files(checked.config):
            file = self.folder / name
            section[key] = str(file) if name and file.is_file() else None
        return checked.config

    def _check_room(self, need: int) -> None:
        disk, where = os.statvfs(self.folder), self.folder.parent
        if need > (free := disk.f_bavail * disk.f_frsize):
            raise DiskError(
                f"unpacking {self.path.name} needs {need >> 20} MiB, {where} has {free >> 20} MiB free",
                "set TMPDIR to a folder on a larger disk",
            )

    def _read_ahead(self) -> None:
        """Bring the weights into the page cache, by a copy to nowhere: next to free for what is
        there already."""
        if not self._locations:
            return
        first = min(place.offset for place in self._locations.values())
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            while not self._over and (
                sent := os.sendfile(nowhere.fileno(), self._file.fileno(), first, PIECE)
            ):
                first += sent

    def _state(self) -> Any:
        """Return the model's state: tensors that are read when they are copied, or those of the
        unpacked file."""
        import torch

        if self._locations is None:
            unpacked = self.folder / WEIGHTS
            try:
                return torch.load(unpacked, map_location="cpu", mmap=True, weights_only=True)
            except RuntimeError:  # the format before torch 1.6 cannot be mapped
                return torch.load(unpacked, map_location="cpu", weights_only=True)
        state: Any = OrderedDict(
            (name, _Stored(self, place)) for name, place in self._locations.items()
        )
        state._metadata = vars(self._locations)["_metadata"]  # torch keeps it beside the items
        return state


def _connector(folder: str) -> Any:
    """Return what NeMo restores by, where a checkpoint's files lie in a folder, and that loads no
    weights."""
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

    connector = SaveRestoreConnector()
    connector.model_extracted_dir = folder
    connector._load_state_dict_from_disk = lambda *_, **__: {}
    connector.load_instance_with_state_dict = lambda *_, **__: None
    return connector


class _Stored:
    """A tensor that is still in its file: what load_state_dict() asks of one, and to copy it is to
    read it."""

    is_meta = False

    def __init__(self, checkpoint: CheckpointReader, place: TensorLocation) -> None:
        self._checkpoint, self._place = checkpoint, place
        self.shape = place.tensor.shape

    def size(self) -> tuple[int, ...]:
        """Return its shape, for what torch says of one that cannot be copied."""
        return self.shape

    @classmethod
    def __torch_function__(cls, function: Any, _: Any, args: Any = (), __: Any = None) -> Any:
        """Act for torch where one of these is handed to it."""
        import torch

        if function is not torch.Tensor.copy_ or len(args) != 2:
            return NotImplemented
        into, stored = args
        stored._checkpoint.fill(into, stored._place)
        return into
