"""What `asrd compare` measured on this machine, kept for the daemon's own figures.

One file under the state directory; per model and device the strategies of the last whole comparison. Daemon side.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from . import places
from .errors import DiskError

log = logging.getLogger("asrd")


class Measure(msgspec.Struct, frozen=True):
    """One strategy, as it was measured."""

    process: int | None
    """Bytes of the worker in the steady state."""
    source: str
    """The instrument of `process`; figures of two instruments are never subtracted."""
    p50_ms: float | None
    wer: float | None
    wer_delta: float | None
    """Absolute points against FP32 in the same run; None for FP32 itself."""


class Known(msgspec.Struct, frozen=True):
    """The last whole comparison of a model on a device."""

    measured: str
    """When, ISO 8601, UTC."""
    strategies: dict[str, Measure]
    card: str = ""
    """Name of the GPU; empty for the CPU, and in files of before it was kept."""


def path() -> Path:
    """Return where baselines are kept."""
    return places.state() / "baselines.json"


def read() -> dict[str, Known]:
    """Return everything known, by "model on device"; what cannot be read is nothing."""
    try:
        return msgspec.json.decode(path().read_bytes(), type=dict[str, Known])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.debug("no baseline can be read from %s: %s", path(), error)
        return {}


def known(model: str, device: str) -> Known | None:
    """Return what was measured of a model on a kind of device (cpu or cuda)."""
    return read().get(_key(model, device))


def keep(model: str, device: str, found: Known) -> None:
    """Put a comparison in the place of the last one. Raises DiskError."""
    target = path()
    try:
        target.parent.mkdir(0o700, parents=True, exist_ok=True)
        encoded = msgspec.json.encode(read() | {_key(model, device): found})
        places.write_whole(target, msgspec.json.format(encoded, indent=1))
    except OSError as error:
        raise DiskError(f"the baseline cannot be kept in {target}: {error.strerror}") from error


def _key(model: str, device: str) -> str:
    return f"{model} on {device.partition(':')[0]}"
