"""A checkpoint's config and its small files, unpacked and checked before NeMo reads them.

A checkpoint is an archive in an archive. NeMo unpacks all of it, which writes as many bytes as the
model weighs. Here only the small files are unpacked. The weights are too where they cannot be read
from where they lie.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import yaml

from asrd.errors import DiskError, ModelError
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

HIDDEN_CONFIG = "timestamps_asr_model_config.yaml"
"""Config of the second model that newer Canary files carry."""

MAX_REMARK_ENTRIES = 20
"""Entries of a config that are named at most."""


class UnpackedFiles:
    """What is unpacked of a checkpoint.

    Args:
        file: the open checkpoint.
        path: its path, for messages.
        folder: where to unpack to.
        hidden: unpack the second model for timestamps as well.

    Attributes:
        locations: where in the file each tensor lies; None before `unpack`, and where the weights
            must be unpacked.
        elements: numbers in all weights that were looked at.
    """

    def __init__(self, file: IO[bytes], path: Path, folder: Path, hidden: bool) -> None:
        self.locations: OrderedDict[str, TensorLocation] | None = None
        self.elements = 0
        self._file, self._path, self._folder, self._hidden = file, path, folder, hidden
        self._checked = model_config.Checked({})

    def unpack(self) -> None:
        """Check the config, and unpack what is not read from where it lies.

        Raises:
            ModelError: the config or the weights are refused. DiskError: no room.
        """
        self.locations = tensor_locations(self._file, self._path)
        size = os.fstat(self._file.fileno()).st_size
        if self.locations is None:  # in one pass, as to list a gzipped archive is to unpack it
            self._check_room(size)
        else:
            self._check_room(unpacked_bytes(self._path, self._hidden))
        skipped = self._skipped()
        for opened, member, name in archive.members(self._file, self._path, size):
            if member.isfile() and name not in skipped:
                self._check_room(member.size)
                opened.extract(member, self._folder, filter="data")
        self._checked = self._check(CONFIG, WEIGHTS)
        if self._hidden and self._has(HIDDEN_CONFIG) and self._has(HIDDEN_WEIGHTS):
            hidden = self._with_files(self._check(HIDDEN_CONFIG, HIDDEN_WEIGHTS))
            text = yaml.safe_dump(hidden, allow_unicode=True)
            (self._folder / HIDDEN_CONFIG).write_text(text)  # NeMo reads it there

    def config(self) -> dict[str, Any]:
        """Return the checked config, with the tokenizers' files where they were unpacked."""
        return self._with_files(self._checked) | {"restore_timestamps_model": self._hidden}

    @property
    def remarks(self) -> list[str]:
        """Entries of the config that were passed on unknown, or left empty: a sentence each."""
        return [
            *_remark("unknown and passed on", self._checked.unknown),
            *_remark("names of files, left out", self._checked.emptied),
        ]

    def _skipped(self) -> set[str]:
        """Return the members that are not unpacked."""
        names = set[str]()
        if self.locations is not None:
            names.add(WEIGHTS)
        if not self._hidden:
            names.add(HIDDEN_WEIGHTS)
        return names

    def _has(self, name: str) -> bool:
        return (self._folder / name).is_file()

    def _check(self, config: str, weights: str) -> model_config.Checked:
        """Return a config of the archive as NeMo may be given it, after a look at its weights
        without torch."""
        if self.locations is not None and weights == WEIGHTS:
            shapes = {name: place.tensor.shape for name, place in self.locations.items()}
        else:
            shapes = self._shapes(self._folder / weights)
        text = (self._folder / config).read_bytes()
        self.elements += sum(map(math.prod, shapes.values()))
        return model_config.checked(model_config.read(text, self._path), shapes, self._path)

    def _shapes(self, weights: Path) -> dict[str, tuple[int, ...]]:
        """Return the tensors' shapes of unpacked weights.

        Raises:
            ModelError: torch would have to inflate them to far more than the file has.
        """
        size = weights.stat().st_size
        with weights.open("rb") as content:
            tensors = tensors_of(content, self._path, size)
        if zipfile.is_zipfile(weights):
            with weights.open("rb") as content, archive.unzipped(content) as packed:
                inflated = sum(entry.file_size for entry in packed.infolist())
            if inflated > archive.MAX_EXPANSION * size + archive.SPARE_BYTES:
                raise ModelError(
                    f"{self._path} is refused: its weights inflate to {inflated} bytes",
                    archive.HINT,
                )
        return {name: tensor.shape for name, tensor in tensors.items()}

    def _with_files(self, checked: model_config.Checked) -> dict[str, Any]:
        for section, key, name in config_files.tokenizer_files(checked.config):
            section[key] = None
            if name and self._has(name):
                section[key] = str(self._folder / name)
        return checked.config

    def _check_room(self, need: int) -> None:
        disk, where = os.statvfs(self._folder), self._folder.parent
        if need > (free := disk.f_bavail * disk.f_frsize):
            raise DiskError(
                f"unpacking {self._path.name} needs {need >> 20} MiB, {where} has {free >> 20} MiB free",
                "set TMPDIR to a folder on a larger disk",
            )


def _remark(what: str, names: tuple[str, ...]) -> list[str]:
    """Return a sentence about entries of a config, or nothing where there are none."""
    if not names:
        return []
    return [f"entries of its config, {what}: {', '.join(names[:MAX_REMARK_ENTRIES])}"]
