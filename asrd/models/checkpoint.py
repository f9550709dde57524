"""What a checkpoint says of itself: its kind of model, and of every tensor its name, shape, dtype
and place.

A .nemo file is a tar, in older files gzipped, of `model_config.yaml`, `model_weights.ckpt` and
tokenizers. Weights are not read: it takes milliseconds for a file of any size. Runs on both sides;
imports neither torch nor NeMo.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from asrd.errors import ModelError
from asrd.models import archive, config_schema, model_config, torch_file
from asrd.models.tensors import EMBEDDING, HEAD, Tensor, TensorLocation, is_buffer, unique
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

CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.ckpt"
HIDDEN_WEIGHTS = "timestamps_asr_model_weights.ckpt"
"""Members of a .nemo file; the last is of the second model that newer Canary files carry."""

DEFAULT_SAMPLE_RATE = 16000
"""Hertz, where a config names no rate."""


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
        """Tensors as the restored model holds them: those that share memory once."""
        return unique(self.tensors)

    @property
    def parameters(self) -> int:
        """How many parameters the model has, tied ones once."""
        return sum(self.components.values())

    @property
    def components(self) -> dict[str, int]:
        """Component (a child of the model) -> its parameters."""
        sums: dict[str, int] = {}
        for name, tensor in self.unique.items():
            child = name.partition(".")[0]
            if tensor.elements and not is_buffer(name):
                sums[child] = sums.get(child, 0) + tensor.elements
        return sums

    def setting(self, dotted: str, default: Any = None) -> Any:
        """Return one value of the config by its dotted path, `default` where there is none."""
        return _setting(self.config, dotted, default)


def _setting(config: dict[str, Any], dotted: str, default: Any = None) -> Any:
    value: Any = config
    for word in dotted.split("."):
        if not isinstance(value, dict):
            return default
        value = value.get(word)
    return default if value is None else value


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
    hint = "a model is a .nemo file"
    if path.suffix == ".nemo":
        hint = "copy or download it again"
    try:
        found = _members(path, file, size, stream)
    except ModelError:
        raise
    except (tarfile.ReadError, EOFError, zlib.error) as error:
        if "end of data" in str(error) or isinstance(error, EOFError):
            raise ModelError(f"{path} is cut short", hint) from error
        raise ModelError(f"{path} is not a .nemo file (a tar archive)", hint) from error
    except (OSError, RecursionError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is damaged: {str(error).splitlines()[0]}", hint) from error
    return _described(path, size, found)


def tensor_locations(file: IO[bytes], path: Path) -> OrderedDict[str, TensorLocation] | None:
    """Return where in an open .nemo file each tensor lies, as the model's state with all that torch
    keeps beside it.

    None where they can only be read after unpacking: a gzipped archive, and what
    `torch_file.locations` names.

    Raises:
        ModelError: weights that are no tensors. zipfile.BadZipFile, OSError, tarfile.ReadError:
            damage.
    """
    file.seek(0)
    if file.read(2) == archive.GZIP:
        return None
    file.seek(0)
    for opened, member, name in archive.members(file, path, os.fstat(file.fileno()).st_size):
        if name != WEIGHTS or not member.isfile():
            continue
        content = opened.extractfile(member)
        if content is not None:
            return torch_file.locations(content, member.offset_data, path)
    return None


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
            if tensor_locations(file, path) is None:
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


def _size(path: Path) -> int:
    """Return the bytes of a model's file. Raises ModelError: no file, another kind, or empty."""
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelError(f"there is no model file {path}", _NAMES_HINT) from error
    except OSError as error:
        raise ModelError(f"cannot read the model file {path}", _NAMES_HINT) from error
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not a .nemo file", "pass the .nemo file inside it")
    if not path.is_file():
        raise ModelError(f"{path} is not a regular file", "a model is a .nemo file")
    if size == 0:
        raise ModelError(f"{path} is empty", "copy or download it again")
    return size


_NAMES_HINT = "asrd models lists the names that are known"


class _Contents(NamedTuple):
    """What is read of an archive."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    hidden_bytes: int
    """Of the weights of a second model."""
    names: frozenset[str] | None
    """Of all members; None where not all were seen."""


def _members(path: Path, file: IO[bytes], size: int, stream: bool) -> _Contents:
    """Return what is read of an archive, in one pass over it or less."""
    config, tensors, hidden_bytes, names = None, None, 0, set[str]()
    zipped = file.read(2) == archive.GZIP
    for opened, member, name in archive.members(file, path, size):
        names.add(name)
        content = opened.extractfile(member) if member.isfile() else None
        if name == CONFIG and content:
            config = model_config.read(content.read(model_config.MAX_CONFIG_BYTES + 1), path)
        elif name == WEIGHTS and content:
            tensors = torch_file.tensors_of(content, path, member.size)
        elif name == HIDDEN_WEIGHTS:
            hidden_bytes = member.size
        elif name.startswith("model_weights/"):
            raise ModelError(
                f"{path} has its weights in several parts", "save it again with NeMo's save_to()"
            )
        if (zipped or stream) and config is not None and tensors is not None:
            # The rest is weights, and unpacking them takes half a minute.
            return _Contents(config, tensors, hidden_bytes, None)
    if config is None:
        raise _without(CONFIG, path)
    if tensors is None:
        raise _without(WEIGHTS, path)
    return _Contents(config, tensors, hidden_bytes, frozenset(names))


def _without(member: str, path: Path) -> ModelError:
    return ModelError(
        f"{path} is not a .nemo file of a model: it holds no {member}",
        "copy or download it again",
    )


def _described(path: Path, size: int, found: _Contents) -> Header:
    """Return the header of a file with these contents. Raises ModelError: another kind of model, or
    a config that is refused."""
    config = found.config
    target = str(config.get("target") or "")
    family = _family(path, target, config)
    shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
    tokenizers = _setting(config, "tokenizer.langs", {})
    return Header(
        path=path,
        size=size,
        target=target,
        family=family,
        sample_rate=_sample_rate(config),
        prompt_format=shown(_setting(config, "prompt_format", "")),
        languages=tuple(shown(name) for name in tokenizers if name != "spl_tokens"),
        cache_aware=_setting(config, "encoder.att_context_style") == "chunked_limited",
        hidden_bytes=found.hidden_bytes,
        tensors=found.tensors,
        config=model_config.checked(config, shapes, path, found.names).config,
    )


def _family(path: Path, target: str, config: dict[str, Any]) -> str:
    """Return the family of a model's class. Raises ModelError: a class that is not supported."""
    kind = target.rpartition(".")[2]
    if kind not in FAMILIES or target not in config_schema.TARGETS:
        named = shown(target) or "not named"
        raise ModelError(
            f"{path} is a .nemo of another kind of model: target {named}",
            f"supported: {', '.join(FAMILIES)}",
        )
    losses = (_setting(config, "decoding.model_type"), _setting(config, "loss.loss_name"))
    if FAMILIES[kind] == "rnnt" and "tdt" in losses:
        return "tdt"
    return FAMILIES[kind]


def _sample_rate(config: dict[str, Any]) -> int:
    default = _setting(config, "preprocessor.sample_rate", DEFAULT_SAMPLE_RATE)
    rate = _setting(config, "sample_rate", default)
    return rate if isinstance(rate, int) else DEFAULT_SAMPLE_RATE
