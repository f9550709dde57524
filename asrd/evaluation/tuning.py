"""The work of `asrd tune`: an interrupted run that goes on, and the verdict on what was measured.

What is complete stays on disk until the verdict is kept, so that an interrupted run goes on where
it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from asrd import paths
from asrd.config.amounts import budget
from asrd.config.settings import Settings
from asrd.engine import tuned
from asrd.engine.tuned import KEPT_RECORDINGS, TuningResult
from asrd.errors import AsrdError, ManifestError, ModelError
from asrd.evaluation import selection
from asrd.evaluation.normalising import units
from asrd.evaluation.results import Run
from asrd.evaluation.runner import ComparisonSpec, ComparisonState
from asrd.text import filenames
from asrd.text.text_files import plain

log = logging.getLogger("asrd")


RESUMABLE_SECONDS = 86_400.0
"""Seconds for which an interrupted run can be taken up again: later the machine is not the same in
load and heat."""


class TuneRunningError(AsrdError):
    """Another `asrd tune` of this user measures; later is another matter."""

    exit_code = 75


class InterruptedRun(msgspec.Struct):
    """What an interrupted run had measured; over kept recordings also the texts."""

    job: str
    """Digest of what it depends on: model file, device, versions, settings, speech."""
    at: float
    """When the last run was complete, seconds since the epoch."""
    measured: list[Run]


@contextlib.contextmanager
def only_run() -> Iterator[None]:
    """Hold the lock of `asrd tune`: two runs would slow each other, and write to one file.

    Raises TuneRunningError: another run holds it.
    """
    with paths.open_private(paths.state() / "tuning.lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TuneRunningError(
                "another asrd tune is running", "wait for it, or interrupt it"
            ) from error
        except OSError:
            log.debug("no lock can be had on %s", file.name)
        yield


def run_path() -> Path:
    """Return where an interrupted run is kept."""
    return paths.state() / "tuning.json"


def forget_run() -> None:
    """Remove what an interrupted run had measured."""
    with contextlib.suppress(OSError):
        run_path().unlink(missing_ok=True)


def _digest(spec: ComparisonSpec) -> str:
    """Return a digest of everything that what is measured depends on."""
    key = tuned.key_for(spec.settings, spec.gpu)
    digest = hashlib.blake2b(
        filenames.to_json((key, spec.start, spec.precisions, spec.repeats)), digest_size=16
    )
    for clip in spec.clips:
        digest.update(clip.text.encode())
        digest.update(clip.samples.tobytes())
    return digest.hexdigest()


def resumed(spec: ComparisonSpec) -> list[Run]:
    """Return what an interrupted run of the same comparison had measured, in its order."""
    try:
        run = msgspec.json.decode(plain(run_path().read_bytes()), type=InterruptedRun)
    except (OSError, ValueError):
        return []
    fresh = 0 <= time.time() - run.at < RESUMABLE_SECONDS
    if run.job == _digest(spec) and fresh:
        return run.measured
    return []


def saver(spec: ComparisonSpec, state: ComparisonState) -> Callable[[], None]:
    """Return a function that writes what is complete to disk. A disk that refuses is logged once,
    and the run goes on."""
    target, warned = run_path(), False

    def save() -> None:
        nonlocal warned
        try:
            paths.make_folder(target.parent)
            paths.write_whole(
                target,
                filenames.to_json(InterruptedRun(_digest(spec), time.time(), state.measured)),
            )
        except OSError as error:
            if not warned:
                log.warning("the results so far cannot be saved in %s: %s", target, error.strerror)
            warned = True

    return save


def verdict(spec: ComparisonSpec, state: ComparisonState, settings: Settings) -> TuningResult:
    """Return the verdict on what was measured.

    Raises:
        ModelError: the model's file went meanwhile. ManifestError: there was no word to compare.
    """
    key = tuned.key_for(settings, spec.gpu)
    if key is None:
        raise ModelError(
            f"the file of {settings.model} is no longer there",
            "asrd models lists those that are here",
        )
    references = limit = None
    if spec.speech.path != KEPT_RECORDINGS:
        references = [clip.text for clip in spec.clips]
    if spec.gpu is not None:
        limit = budget(settings.vram_budget, spec.gpu.total)
    made = selection.select_strategy(
        state.measured,
        references,
        spec.speech.seconds,
        settings.wer_bound,
        spec.speech.language,
        state.again,
        limit,
    )
    if not made.words:
        raise ManifestError(
            "FP32 found no words in this audio", "dictate some speech first, or name a --manifest"
        )
    return TuningResult(
        key=key,
        chosen=made.chosen,
        reason=made.reason,
        candidates=made.candidates,
        speech=spec.speech.path,
        utterances=spec.speech.utterances,
        words=made.words,
        seconds=spec.speech.seconds,
        measured=state.started,
        limit=made.limit,
        hint=made.hint,
        metric=made.metric,
    )


def warning_of_less_speech(before: TuningResult, record: TuningResult) -> str:
    """Return a sentence where a verdict rests on far fewer words than the one before; else ""."""
    if 2 * record.words >= before.words:
        return ""
    return (
        f"this verdict rests on {record.words} {units(record.metric)} and replaces one that rested on "
        f"{before.words} and chose {before.chosen}; asrd tune with as much speech is as certain again"
    )
