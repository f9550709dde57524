"""What NeMo may be given of a model's config: what inference needs, once it is checked.

NeMo builds a model by calling what its config names, with arguments of the config's choice. So
classes, sizes and files are checked, and the rest is left out. Pure: imports neither torch nor NeMo.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from asrd.errors import ModelError
from asrd.models import untrusted_yaml
from asrd.models.config_classes import (
    check_calls,
    check_sections,
    is_plain,
    modernised,
    without_training,
)
from asrd.models.config_files import check_tokenizers, emptied_entries, unknown_entries
from asrd.models.config_schema import KEPT_SECTIONS
from asrd.models.config_sizes import Shapes, check_against_tensors, check_numbers
from asrd.models.untrusted_yaml import RefusedError, shown

MAX_CONFIG_BYTES = untrusted_yaml.MAX_BYTES

HINT = "a model file must not run, read or fetch anything; get the file from its publisher"


class Checked(msgspec.Struct, frozen=True):
    """A config that NeMo may be given."""

    config: dict[str, Any]
    unknown: tuple[str, ...] = ()
    """Entries that are passed on although asrd does not know them."""
    emptied: tuple[str, ...] = ()
    """Entries that named a file or an address and are passed on empty."""


def read(text: bytes, path: Path) -> dict[str, Any]:
    """Return a config as plain data; its classes and sizes are not checked yet.

    Raises:
        ModelError: outside the bounds, no mapping, or with references to more than its own entries.
    """
    try:
        return untrusted_yaml.read(text, KEPT_SECTIONS)
    except RefusedError as error:
        raise ModelError(f"{path} is refused: its config {error}", HINT) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message = f"{path} is damaged: its config is no YAML ({shown(first)})"
        raise ModelError(message, "copy or download it again") from error


def checked(
    config: Mapping[str, Any], shapes: Shapes, path: Path, members: frozenset[str] | None = None
) -> Checked:
    """Return what NeMo may be given of a config that was read.

    Args:
        shapes: of the tensors of the same file.
        path: named in messages.
        members: names of the archive's files; None where not all were seen.

    Raises:
        ModelError: a class or function that is not admitted where it stands, a file outside the
            archive, a size that the tensors do not have.
    """
    try:
        modern = modernised(dict(config))
        check_calls(modern, ())
        check_sections(modern)
        kept = without_training(
            {key: value for key, value in modern.items() if key in KEPT_SECTIONS or is_plain(value)}
        )
        check_numbers(
            kept,
            (),
            max((max(shape, default=0) for shape in shapes.values()), default=0),
            len(shapes),
        )
        check_against_tensors(kept, shapes)
        check_tokenizers(kept, members)
        emptied = tuple(emptied_entries(kept, ()))
        unknown = tuple(unknown_entries(kept, ()))
    except RefusedError as error:
        raise ModelError(f"{path} is refused: its config {error}", HINT) from error
    return Checked(kept, unknown, emptied)
