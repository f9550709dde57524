"""A checkpoint restored as a NeMo model: built without numbers, which are then read from its file.

NeMo unpacks a checkpoint before it reads it: as many bytes written as the model weighs, at every
start. Here each tensor's numbers go from where they lie in the file to the memory of the model they
are for. They are read and not mapped. A mapped file that is cut short meanwhile ends the process
without an error. One copy of the model is all that is ever held.

This file knows torch and how NeMo restores; it knows no kind of model. It imports torch only when
it is used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from asrd.errors import AsrdError, DiskError, ModelError
from asrd.models.checkpoint import WEIGHTS
from asrd.models.tensors import TensorLocation
from asrd.worker.loading.construction import at_most, uninitialised
from asrd.worker.loading.unpacking import UnpackedFiles

FETCHED_TOKENIZER = re.compile(r"AUTOTOKENIZER for ([\w./-]*\w)")
"""NeMo's message for a tokenizer of the hub, which it takes word pieces from, and cannot get."""

EARLY_CHECK_SECONDS = 0.5
"""Seconds that `prepare` waits, in which a checkpoint that needs no unpacking is checked."""

READ_AHEAD_BYTES = 64 << 20
"""Bytes that are read ahead at once; between two of them reading ahead can be stopped."""


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
        self._prepared: Future[None] = Future()
        self._closed = False
        self._failure: Exception | None = None

    def __enter__(self) -> CheckpointReader:
        self._stack = contextlib.ExitStack()
        with self._stack:
            try:
                self._file = self._stack.enter_context(self.path.open("rb"))
            except OSError as error:
                raise ModelError(f"cannot read {self.path}: {error.strerror}") from error
            self._as_opened = self._version()
            self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            self._unpacked = UnpackedFiles(self._file, self.path, self.folder, self._hidden)
            self._beside = self._stack.enter_context(ThreadPoolExecutor(1))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._stack.close()

    def prepare(self) -> None:
        """Begin to unpack what must be, and to have the weights in the page cache: disk work,
        beside an import.

        Raises:
            ModelError, DiskError: what is found at once to be wrong; what is found later, `build`
            raises.
        """
        self._prepared = self._beside.submit(self._unpacked.unpack)
        self._beside.submit(self._read_ahead)
        with self._translating(), contextlib.suppress(TimeoutError):
            self._prepared.result(EARLY_CHECK_SECONDS)

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
            config = OmegaConf.create(self._unpacked.config())
            connector = _connector(str(self.folder))
            # NeMo then loads every parameter, or refuses the checkpoint.
            with uninitialised(), at_most(self._unpacked.elements):
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
        if self._version() != self._as_opened:
            raise ModelError(
                f"{self.path} was changed while it was read", "start again once it is whole"
            )

    @property
    def remarks(self) -> list[str]:
        """Entries of the config that were passed on unknown, or left empty: a sentence each."""
        return self._unpacked.remarks

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
        """Return an error as one of asrd's, with the path in it."""
        if isinstance(error, AsrdError | MemoryError):
            return error
        if isinstance(error, OSError):
            if error.errno == errno.ENOSPC:
                return DiskError(
                    f"no room to unpack {self.path} in {self.folder.parent}", "set TMPDIR"
                )
            return ModelError(f"cannot read {self.path}: {error}")
        text = str(error).strip()
        if fetched := FETCHED_TOKENIZER.search(text):
            return ModelError(
                f"{self.path} has a word-piece tokenizer, which NeMo makes from {fetched[1]}, and that is not here",
                f"asrd loads models offline; fetch it once: hf download {fetched[1]}",
            )
        first = text.splitlines()[0] if text else type(error).__name__
        # NeMo raises every kind for a checkpoint it cannot build.
        return ModelError(
            f"NeMo cannot restore {self.path}: {first}", "run with --debug for its traceback"
        )

    def fill(self, into: Any, place: TensorLocation) -> None:
        """Read one tensor's numbers from the file into one of its shape, of any dtype.

        Raises:
            ModelError: the file has too few.
        """
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
        if direct:
            self._read_bytes(into.detach(), place.offset)
            return
        read = torch.empty(place.tensor.shape, dtype=stored)
        self._read_bytes(read, place.offset)
        if read.is_floating_point():
            read = read.float().to(into.dtype)  # by way of float32, as NeMo restores
        if into.dim() == 2 and into.t().is_contiguous():
            # torch transposes a matrix five times as fast from this side
            into, read = into.t(), read.t()
        into.copy_(read)

    def _read_bytes(self, tensor: Any, offset: int) -> None:
        """Fill a contiguous tensor on the CPU with the file's bytes from `offset` on."""
        import torch

        left = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
        while left:
            count = os.preadv(self._file.fileno(), [left], offset)
            if not count:
                raise ModelError(
                    f"{self.path} was cut short while it was read", "copy or download it again"
                )
            left, offset = left[count:], offset + count

    def _version(self) -> tuple[int, int]:
        """Return what changes when the file is written to: its size, and when it was written."""
        now = os.fstat(self._file.fileno())
        return now.st_size, now.st_mtime_ns

    def _read_ahead(self) -> None:
        """Bring the weights into the page cache, by a copy to nowhere: next to free for what is
        there already."""
        if not self._unpacked.locations:
            return
        first = min(place.offset for place in self._unpacked.locations.values())
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            while not self._closed:
                sent = os.sendfile(nowhere.fileno(), self._file.fileno(), first, READ_AHEAD_BYTES)
                if not sent:
                    return
                first += sent

    def _state(self) -> Any:
        """Return the model's state: tensors that are read when they are copied, or those of the
        unpacked file."""
        locations = self._unpacked.locations
        if locations is None:
            return _unpacked_state(self.folder / WEIGHTS)
        state: Any = OrderedDict()
        for name, place in locations.items():
            state[name] = _StoredTensor(self, place)
        state._metadata = vars(locations)["_metadata"]  # torch keeps it beside the items
        return state


def _unpacked_state(weights: Path) -> Any:
    import torch

    try:
        return torch.load(weights, map_location="cpu", mmap=True, weights_only=True)
    except RuntimeError:  # the format before torch 1.6 cannot be mapped
        return torch.load(weights, map_location="cpu", weights_only=True)


def _connector(folder: str) -> Any:
    """Return what NeMo restores by, where a checkpoint's files lie in a folder, and that loads no
    weights."""
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

    connector = SaveRestoreConnector()
    connector.model_extracted_dir = folder
    connector._load_state_dict_from_disk = lambda *_, **__: {}
    connector.load_instance_with_state_dict = lambda *_, **__: None
    return connector


class _StoredTensor:
    """A tensor that is still in its file: what load_state_dict() asks of one, and to copy it is to
    read it."""

    is_meta = False

    def __init__(self, checkpoint: CheckpointReader, place: TensorLocation) -> None:
        self._checkpoint, self._place = checkpoint, place
        self.shape = place.tensor.shape

    def size(self) -> tuple[int, ...]:
        """Return its shape, for torch's message about one that cannot be copied."""
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
