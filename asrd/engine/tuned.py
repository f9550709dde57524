"""What `asrd tune` found here, kept: which strategy `auto` starts with for a model on a device, and by
what figures.

One file under the state directory. A verdict holds for the very file, device, driver, versions and
bound it was found with; with any of them changed it is shown as stale and decides nothing. Daemon
side; imports neither torch nor numpy.
"""

from __future__ import annotations

import functools
import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from asrd import __version__, paths
from asrd.config.settings import Settings
from asrd.errors import AsrdError, DiskError
from asrd.models import names
from asrd.precision import kernel_facts
from asrd.precision.plan import Evidence, Gpu
from asrd.text import filenames, text_files
from asrd.text.characters import readable

log = logging.getLogger("asrd")


KEPT_RECORDINGS = "the recordings that are kept"
"""What a verdict was found on where there are no reference texts."""


PROBE_BYTES = 1 << 18
"""Bytes that must fit into the state folder before a verdict is looked for: those that are kept,
and what goes on."""


class TuningKey(msgspec.Struct, frozen=True):
    """What a verdict was found with, and holds for."""

    model: str
    """Its name in the settings."""
    size: int
    """Bytes of its file."""
    modified: int
    """When that file was written, in nanoseconds; of a shipped model it does not count: each
    install writes it anew."""
    device: str
    """Name of the card, or of the processor."""
    driver: str
    """Of the card; empty on the CPU."""
    torch: str
    asrd: str
    languages: str
    """Spoken and written."""
    preset: str
    bound: float
    """Absolute points of WER that a strategy may cost."""
    budget: str
    """`vram_budget` as it is set."""


KEY_LABELS = {
    "device": "the device", "driver": "the driver", "torch": "torch", "asrd": "asrd", "languages": "the language",
    "preset": "the preset", "bound": "max_wer_delta", "budget": "vram_budget",
}  # fmt: skip
"""Fields of a key as a person calls them; those of the model's file are named together."""

IDENTITY_FIELDS = ("model", "device", "preset", "bound", "budget")
"""Fields by which verdicts stand beside each other; of those that agree in them the last one is
kept."""


class TunedStrategy(msgspec.Struct, frozen=True):
    """One strategy, as it was measured and judged. Rates are percent and points, memory bytes,
    latency milliseconds."""

    strategy: str
    refused: str
    """Why it does not qualify; empty when it does."""
    verdict: str
    """better, same, worse or undecided, on words alone."""
    delta: float | None
    """WER against FP32's; over recordings, the words that differ from FP32's in a hundred."""
    interval: tuple[float, float] | None
    """95 % paired bootstrap of `delta`."""
    most: float | None
    """The upper bound of `delta` that was held against the limit."""
    changed: int | None
    """Words that differ from FP32's."""
    memory: int | None
    """Process memory in the steady state."""
    source: str
    """The instrument of `memory`."""
    p50_ms: float | None
    """Wall time of a 10-s buffer."""
    failures: int
    """Utterances without an answer."""
    cpu_ms: float | None = None
    """Processor time of the same buffer, where it is computed on the CPU."""
    effective: dict[str, str] = {}
    missing: int = 0
    """Words of speech that would decide it, beyond those there were; 0 where more would not
    help."""


class TuningResult(msgspec.Struct, frozen=True):
    """A verdict with its evidence."""

    key: TuningKey
    chosen: str
    reason: str
    candidates: list[TunedStrategy]
    speech: str
    """The manifest, or KEPT_RECORDINGS."""
    utterances: int
    words: int
    seconds: float
    """Of audio."""
    measured: str
    """When, ISO 8601, UTC."""
    limit: float
    """What `most` was held against: the bound, or what FP32 differs from itself where that is
    more."""
    hint: str = ""
    """What would allow a better choice."""
    metric: str = "WER"
    """CER where characters were counted."""

    def value(self, stale: str = "") -> Evidence:
        """Return what a plan needs of it, and why it is stale."""
        refused = {one.strategy: one.refused for one in self.candidates if one.refused}
        return Evidence(self.chosen, self.reason, refused, stale)


def path() -> Path:
    """Return where verdicts are kept."""
    return paths.state() / "verdicts.json"


def key_for(settings: Settings, gpu: Gpu | None) -> TuningKey | None:
    """Return what a verdict for these settings on this device must have been found with; None
    without a model file."""
    try:
        file = names.resolve(settings.model).stat()
    except (AsrdError, OSError):
        return None
    key = TuningKey(
        model=readable(settings.model),
        size=file.st_size,
        modified=file.st_mtime_ns,
        device="",
        driver="",
        torch=_version("torch"),
        asrd=__version__,
        languages=f"{settings.source_lang} > {settings.target_lang}",
        preset=settings.preset,
        bound=settings.wer_bound,
        budget="",
    )
    if gpu is None:
        return msgspec.structs.replace(key, device=kernel_facts.processor())
    card = {"device": gpu.name, "driver": gpu.driver, "budget": settings.vram_budget}
    return msgspec.structs.replace(key, **card)


@functools.cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def read() -> list[TuningResult]:
    """Return every verdict, the oldest first; what cannot be read is nothing."""
    try:
        return msgspec.json.decode(text_files.plain(path().read_bytes()), type=list[TuningResult])
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log.warning("the verdict of asrd tune cannot be read from %s: %s", path(), error)
        return []


def check_room() -> None:
    """Raise DiskError now, rather than after minutes of work, where no verdict could be kept."""
    probe = paths.state() / "room.probe"
    try:
        paths.make_folder(probe.parent)
        paths.write_whole(probe, bytes(PROBE_BYTES))
        probe.unlink()
    except OSError as error:
        raise _unkept(error) from error


def _unkept(error: OSError) -> DiskError:
    hint = "make room and allow writing there, or set XDG_STATE_HOME to another folder"
    return DiskError(f"the verdict cannot be saved in {path()}: {error.strerror}", hint)


def keep(record: TuningResult) -> None:
    """Replace the last verdict for the same model, device and bounds by this one. Raises
    DiskError."""
    target = path()
    kept = [one for one in read() if _place(one.key) != _place(record.key)]
    kept.append(record)
    try:
        paths.make_folder(target.parent)
        paths.write_whole(target, msgspec.json.format(filenames.to_json(kept), indent=1))
    except OSError as error:
        raise _unkept(error) from error


def find(settings: Settings, gpu: Gpu | None) -> tuple[TuningResult | None, str]:
    """Return the verdict for these settings on this device, and why it is stale; "" while it holds.

    Where none fits, the nearest of the same model is returned with what differs; (None, "") where
    there is none.
    """
    found = [one for one in read() if one.key.model == readable(settings.model)]
    if not found:
        return None, ""
    key = key_for(settings, gpu)
    if key is None:
        return found[-1], "the model's file is not here"
    nearest = min(reversed(found), key=lambda one: len(_differences(one.key, key)))
    return nearest, "; ".join(_differences(nearest.key, key))


def _place(key: TuningKey) -> tuple[object, ...]:
    """Return the fields by which verdicts stand beside each other."""
    return tuple(getattr(key, name) for name in IDENTITY_FIELDS)


def _differences(was: TuningKey, now: TuningKey) -> list[str]:
    """Return in words what a verdict was found with and what is here."""
    found: list[str] = []
    rewritten = was.modified != now.modified and now.model not in names.SHIPPED
    if was.size != now.size or rewritten:
        found.append("the model's file has changed")
    for name, label in KEY_LABELS.items():
        before, after = getattr(was, name), getattr(now, name)
        if before != after:
            found.append(f"{label} was {_shown(before)} and is {_shown(after)}")
    return found


def _shown(value: object) -> str:
    if value == "":
        return "unset"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
