"""What `asrd compare` measured on this machine, kept for the daemon's own figures.

One file under the state directory; per model and device the strategies of the last whole comparison
that no earlier one outweighs. Daemon side.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import msgspec

from asrd import paths
from asrd.errors import DiskError
from asrd.text import filenames, text_files
from asrd.text.characters import readable

log = logging.getLogger("asrd")


class BaselineFigures(msgspec.Struct, frozen=True):
    """One strategy, as it was measured."""

    process: int | None
    """Most bytes that the worker held once it worked."""
    source: str
    """The instrument of `process`; figures of two instruments are never subtracted."""
    p50_ms: float | None
    wer: float | None
    wer_delta: float | None
    """Absolute points against FP32 in the same run; None for FP32 itself."""


class Baseline(msgspec.Struct, frozen=True):
    """The last whole comparison of a model on a device."""

    measured: str
    """When, ISO 8601, UTC."""
    strategies: dict[str, BaselineFigures]
    card: str = ""
    """Name of the GPU; empty for the CPU, and in files of before it was kept."""
    made: str = ""
    """Model file, driver, torch and asrd it was measured with; like the next two unknown in files
    of before."""
    utterances: int = 0
    repeats: int = 0
    """Timed buffers behind each `p50_ms`."""


def path() -> Path:
    """Return where baselines are kept."""
    return paths.state() / "baselines.json"


def read() -> dict[str, Baseline]:
    """Return all baselines, by "model on device"; none from a file that cannot be read."""
    return _read(logging.DEBUG, "no baseline can be read from %s: %s")


def _read(level: int, complaint: str) -> dict[str, Baseline]:
    try:
        return msgspec.json.decode(text_files.plain(path().read_bytes()), type=dict[str, Baseline])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.log(level, complaint, path(), error)
        return {}


def find(model: str, device: str) -> Baseline | None:
    """Return what was measured of a model on a kind of device (cpu or cuda)."""
    return read().get(_key(model, device))


def outweighs(old: Baseline, new: Baseline, tried: Collection[str]) -> bool:
    """Return whether an earlier comparison made with the same things knows more than a new one.

    Args:
        tried: every strategy of the new one, also those that failed.
    """
    if old.card != new.card or (old.made and old.made != new.made):
        return False
    more = not set(old.strategies) <= set(tried)
    return more or old.utterances > new.utterances or old.repeats > new.repeats


def keep(model: str, device: str, found: Baseline) -> None:
    """Replace the last comparison by this one; a file that cannot be read is logged and replaced.

    Raises DiskError.
    """
    target = path()
    try:
        paths.make_folder(target.parent)
        others = _read(
            logging.WARNING, "what was measured before cannot be read from %s and is replaced: %s"
        )
        encoded = filenames.to_json(others | {_key(model, device): found})
        paths.write_whole(target, msgspec.json.format(encoded, indent=1))
    except OSError as error:
        raise DiskError(f"the baseline cannot be kept in {target}: {error.strerror}") from error


def _key(model: str, device: str) -> str:
    return f"{readable(model)} on {device.partition(':')[0]}"
