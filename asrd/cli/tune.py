"""The verb `tune`: the candidates of `auto` measured on this machine, and the verdict that `auto`
goes by from then on.

Measures as `compare` does, each strategy in a fresh worker, FP32 twice first. What is complete
stays on disk until the verdict stands, so that an interrupted run goes on where it was. Runs beside
the worker; imports no torch.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from asrd import paths
from asrd.audio.blocks import clean
from asrd.audio.format import SAMPLE_RATE
from asrd.cli import inspect
from asrd.config.settings import Settings, budget
from asrd.daemon import client
from asrd.engine import engine, planner, tuned
from asrd.engine.model_facts import check_languages
from asrd.engine.tuned import KEPT_RECORDINGS, TuningResult
from asrd.errors import (
    AsrdError,
    ControlError,
    ManifestError,
    ModelError,
    SocketError,
    UsageError,
)
from asrd.evaluation import runner, selection
from asrd.evaluation.manifest import Clip
from asrd.evaluation.normalising import units
from asrd.evaluation.results import Run, Speech
from asrd.evaluation.runner import ComparisonSpec, ComparisonState
from asrd.models import choice
from asrd.precision import plan
from asrd.recordings.files import blocks
from asrd.recordings.store import RecordingStore, folder
from asrd.terminal.output import tell, tell_document
from asrd.text import filenames
from asrd.text.text_files import plain

log = logging.getLogger("asrd")

FRESH = 86_400.0
"""Seconds for which an interrupted run can be taken up again: later the machine is not the same in
load and heat."""

HELP = """FP32 always qualifies. Another does where it answers everything, takes no more memory and time than FP32, and
even the upper bound of its cost in words stays within max_wer_delta; auto takes the cheapest of those.
exit codes: 0 there is a verdict, or nothing to choose among (then null as JSON), 75 another asrd tune is measuring, 130
interrupted (asrd tune goes on from there)."""


class TuneRunningError(AsrdError):
    """Another `asrd tune` of this user measures; later is another matter."""

    exit_code = 75


class Begun(msgspec.Struct):
    """What an interrupted run had measured. Over takes it holds what was said, as they do."""

    job: str
    """Which: model file, device, versions, settings, speech."""
    at: float
    """When the last run was complete, seconds since the epoch."""
    measured: list[Run]


def tune_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `asrd tune` takes."""
    parser.epilog = HELP
    speech = parser.add_mutually_exclusive_group()
    speech.add_argument(
        "--manifest",
        metavar="F.jsonl",
        type=Path,
        help="NeMo manifest of clips (the shipped speech)",
    )
    speech.add_argument(
        "--recordings",
        action="store_true",
        help="measure on kept recordings: how often words differ from FP32's",
    )
    parser.add_argument(
        "--limit", metavar="N", type=int, help="take N clips, evenly spread over the manifest"
    )
    parser.add_argument(
        "--repeats", metavar="N", type=int, default=15, help="timed 10-s buffers per strategy (15)"
    )
    parser.add_argument(
        "--rerun",
        action="store_true",
        help="start again; drop what an interrupted run had measured",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the verdict as JSON, and nothing else"
    )


def tune(
    args: argparse.Namespace, settings: Settings, hold: Callable[..., engine.Engine] = engine.Engine
) -> int:
    """Do the verb and return 0, 130 or 143 when it was interrupted.

    Args:
        args, settings: as the command line has them.
        hold: what holds a worker.

    Raises:
        AsrdError: nothing can be measured: no speech, no model, FP32 does not run, no room for the
            verdict, another one is at it.
    """
    named = settings
    own, settings = (
        settings.strategy,
        msgspec.structs.replace(choice.or_demo(settings), strategy="auto"),
    )
    job = _job(args, settings, hold)
    choice.for_files(named)
    if len(job.precisions) == 1:
        said = f"nothing to measure: {plan.choose(settings.preset, job.gpu)[1]}"
        if args.json:
            tell(f"asrd: {said}", sys.stderr)
        tell("null" if args.json else said)
        return 0
    tuned.check_room()
    with _alone():
        runner.fetched(settings.model)
        code = _tuned(args, settings, job)
    if own != "auto" and not code:
        tell(
            f'asrd: strategy is {own}, so auto is not used; strategy = "auto" uses this verdict',
            sys.stderr,
        )
    return code


def _tuned(args: argparse.Namespace, settings: Settings, job: ComparisonSpec) -> int:
    """Measure, judge, keep and show; return 0, 130 or 143."""
    found = ComparisonState(measured=[] if args.rerun else _resumed(job))
    if found.measured:
        log.warning(
            "%d of %d runs were measured before and are reused", len(found.measured), job.workers
        )
    try:
        asyncio.run(runner.measure(job, found, _saver(job, found)))
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        tell(
            f"asrd: interrupted after {len(found.measured)} of {job.workers} runs; asrd tune continues from there",
            sys.stderr,
        )
        return 130 if isinstance(error, KeyboardInterrupt) else 143
    record, told = _judged(job, found, settings, args.recordings), ""
    before, stale = tuned.find(settings, job.gpu)
    try:
        tuned.keep(record)
        told = _settled(job, found, settings, args.recordings)
    finally:
        _show(
            args, record
        )  # last, as a reader may leave early; and where it cannot be kept all the same
    for said in (_poorer(before, record) if before and not stale else "", told):
        if said:
            tell(f"asrd: {said}", sys.stderr)
    return 0


# -- what is measured
# -------------------------------------------------------------------------------------------------


def _job(
    args: argparse.Namespace, settings: Settings, hold: Callable[..., engine.Engine]
) -> ComparisonSpec:
    for name in ("limit", "repeats"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value} is too few", "1 or more")
    check_languages(settings)
    gpu = planner.card_for(settings)
    if args.recordings:
        clips, speech = _taken(settings, args.limit)
    else:
        clips, speech = runner.spoken(
            args.manifest or paths.EVALUATION_MANIFEST, args.limit, settings.target_lang
        )
    device = f"cuda:{gpu.index}" if gpu else "cpu"
    free = msgspec.structs.replace(
        settings, vram_budget=""
    )  # what is measured says what fits; FP32 must run for that
    options = plan.candidates(settings.preset, gpu)
    return ComparisonSpec(
        settings, planner.start_for(free), device, gpu, options, clips, speech, args.repeats, hold
    )


def _taken(settings: Settings, limit: int | None) -> tuple[list[Clip], Speech]:
    """Return the kept takes as clips without text, the newest where not all are wanted. Raises
    ManifestError."""
    spool = RecordingStore(folder())
    notes = [note for note in spool.all() if note.seconds > 0]
    clips = []
    for number, note in enumerate(notes[-limit:] if limit else notes, 1):
        try:
            sound = b"".join(data for _, data in blocks(spool.path(note)))
            samples, damaged = clean(np.frombuffer(sound, np.float32))
        except OSError as error:
            tell(f"asrd: recording {note.id} is skipped: {error.strerror}", sys.stderr)
            continue
        if damaged:
            tell(
                f"asrd: recording {note.id}: {damaged} samples are not finite and count as silence",
                sys.stderr,
            )
        clips.append(Clip(number, "", samples))
    if not clips:
        hint = 'set keep_audio = "always", then dictate; or name a --manifest'
        raise ManifestError("no recording with audio is kept", hint)
    seconds = sum(len(clip.samples) for clip in clips) / SAMPLE_RATE
    return clips, Speech(KEPT_RECORDINGS, len(clips), 0, seconds, settings.target_lang)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Be the one that measures here: two would take each other's time, and keep what they have in
    one file."""
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


# -- an interrupted run
# -----------------------------------------------------------------------------------------------


def _begun() -> Path:
    return paths.state() / "tuning.json"


def _name(job: ComparisonSpec) -> str:
    """Return a digest of everything that what is measured depends on."""
    key = tuned.key_for(job.settings, job.gpu)
    digest = hashlib.blake2b(
        filenames.to_json((key, job.start, job.precisions, job.repeats)), digest_size=16
    )
    for clip in job.clips:
        digest.update(clip.text.encode())
        digest.update(clip.samples.tobytes())
    return digest.hexdigest()


def _resumed(job: ComparisonSpec) -> list[Run]:
    """Return what an interrupted run of the same job had measured, in its order."""
    try:
        begun = msgspec.json.decode(plain(_begun().read_bytes()), type=Begun)
    except (OSError, ValueError):
        return []
    return begun.measured if begun.job == _name(job) and 0 <= time.time() - begun.at < FRESH else []


def _saver(job: ComparisonSpec, found: ComparisonState) -> Callable[[], None]:
    """Return what keeps all that is complete; a disk that refuses costs only the going on, and is
    told once."""
    target, told = _begun(), False

    def save() -> None:
        nonlocal told
        try:
            paths.make_folder(target.parent)
            paths.write_whole(
                target, filenames.to_json(Begun(_name(job), time.time(), found.measured))
            )
        except OSError as error:
            if not told:
                log.warning("the results so far cannot be saved in %s: %s", target, error.strerror)
            told = True

    return save


# -- the verdict
# ------------------------------------------------------------------------------------------------------


def _judged(
    job: ComparisonSpec, found: ComparisonState, settings: Settings, taken: bool
) -> TuningResult:
    """Return the verdict on what was measured.

    Raises:
        ModelError: the model's file went meanwhile. ManifestError: there was no word to compare.
    """
    key = tuned.key_for(settings, job.gpu)
    if key is None:
        raise ModelError(
            f"the file of {settings.model} is no longer there",
            "asrd models lists those that are here",
        )
    made = selection.select_strategy(
        found.measured,
        None if taken else [clip.text for clip in job.clips],
        job.speech.seconds,
        settings.wer_bound,
        job.speech.language,
        found.again,
        budget(settings.vram_budget, job.gpu.total) if job.gpu else None,
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
        speech=job.speech.path,
        utterances=job.speech.utterances,
        words=made.words,
        seconds=job.speech.seconds,
        measured=found.started,
        limit=made.limit,
        hint=made.hint,
        metric=made.metric,
    )


def _poorer(before: TuningResult, record: TuningResult) -> str:
    """Return that a verdict rests on far fewer words than the one that held; "" where it does
    not."""
    if 2 * record.words >= before.words:
        return ""
    return (
        f"this verdict rests on {record.words} {units(record.metric)} and replaces one that rested on "
        f"{before.words} and chose {before.chosen}; asrd tune with as much speech is as certain again"
    )


def _settled(job: ComparisonSpec, found: ComparisonState, settings: Settings, taken: bool) -> str:
    """Do what follows from a verdict that is kept; return what a running daemon says to it."""
    with contextlib.suppress(OSError):
        _begun().unlink(missing_ok=True)
    if not taken:
        runner.keep_baseline(job, runner.conclude(job, found))
    return _tell(settings)


def _show(args: argparse.Namespace, record: TuningResult) -> None:
    if args.json:
        tell_document(record, indent=2)
        return
    inspect.show_evidence(record)
    tell(f"\nauto uses {record.chosen} for {record.key.model}: {record.reason}")


def _tell(settings: Settings) -> str:
    """Have a running daemon go by the verdict; return what it says, "" where none runs."""
    try:
        return str(next(client.ask(settings, verb="tuned"))["said"])
    except (ControlError, SocketError):
        return ""
    except AsrdError as error:
        return f"the running daemon does not use it yet: {error.message}"
