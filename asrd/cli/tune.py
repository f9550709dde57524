"""The verb `tune`: the candidates of `auto` measured on this machine, and the verdict that `auto`
goes by from then on.

Measures as `compare` does, each strategy in a fresh worker, FP32 twice first.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from asrd import paths
from asrd.cli import measuring, tuning_table
from asrd.config.settings import Settings
from asrd.daemon import client
from asrd.engine import engine, planner, tuned
from asrd.engine.model_facts import check_languages
from asrd.engine.tuned import TuningResult
from asrd.errors import AsrdError, ControlError, SocketError
from asrd.evaluation import runner, speech, tuning
from asrd.evaluation.daemon_baseline import keep_baseline
from asrd.evaluation.runner import ComparisonSpec, ComparisonState
from asrd.models import choice
from asrd.precision import plan
from asrd.terminal.output import tell, tell_document

log = logging.getLogger("asrd")


TUNE_EPILOG = """\
FP32 always qualifies. Another does where it answers everything, takes no more memory and time than FP32, and
even the upper bound of its cost in words stays within max_wer_delta; auto takes the cheapest of those.
exit codes: 0 there is a verdict, or nothing to choose among (then null as JSON), 75 another asrd tune is measuring, 130
interrupted (asrd tune goes on from there)."""


def tune_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `asrd tune` takes."""
    parser.epilog = TUNE_EPILOG
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
    args: argparse.Namespace,
    settings: Settings,
    engine_factory: Callable[..., engine.Engine] = engine.Engine,
) -> int:
    """Measure and keep a verdict; return 0, 130 or 143 when it was interrupted.

    Args:
        args, settings: as the command line has them.
        engine_factory: makes what starts and asks a worker.

    Raises:
        AsrdError: nothing can be measured: no speech, no model, FP32 does not run, no room for the
            verdict, or another run measures.
    """
    named = settings
    own = settings.strategy
    settings = msgspec.structs.replace(choice.or_demo(settings), strategy="auto")
    spec = _spec(args, settings, engine_factory)
    choice.for_files(named)
    if len(spec.precisions) == 1:
        _show_nothing(args, plan.choose(settings.preset, spec.gpu)[1])
        return 0
    tuned.check_room()
    with tuning.only_run():
        measuring.fetched(settings.model)
        code = _measure(args, settings, spec)
    if own != "auto" and not code:
        tell(
            f'asrd: strategy is {own}, so auto is not used; strategy = "auto" uses this verdict',
            sys.stderr,
        )
    return code


def _measure(args: argparse.Namespace, settings: Settings, spec: ComparisonSpec) -> int:
    """Measure, judge, keep and show; return 0, 130 or 143."""
    state = ComparisonState()
    if not args.rerun:
        state.measured = tuning.resumed(spec)
    if state.measured:
        log.warning(
            "%d of %d runs were measured before and are reused", len(state.measured), spec.workers
        )
    try:
        asyncio.run(runner.measure(spec, state, tuning.saver(spec, state)))
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        tell(
            f"asrd: interrupted after {len(state.measured)} of {spec.workers} runs; asrd tune continues from there",
            sys.stderr,
        )
        return measuring.interrupt_code(error)
    record = tuning.verdict(spec, state, settings)
    before, stale = tuned.find(settings, spec.gpu)
    notes = []
    if before is not None and not stale:
        notes.append(tuning.warning_of_less_speech(before, record))
    try:
        tuned.keep(record)
        notes.append(_settled(spec, state, settings, args.recordings))
    finally:
        # Last, as a reader may leave early, and also where the verdict cannot be kept.
        _show(args, record)
    for note in filter(None, notes):
        tell(f"asrd: {note}", sys.stderr)
    return 0


def _show_nothing(args: argparse.Namespace, reason: str) -> None:
    """Print that there is only one candidate; with --json the reason goes to standard error."""
    message = f"nothing to measure: {reason}"
    if args.json:
        tell(f"asrd: {message}", sys.stderr)
        message = "null"
    tell(message)


def _spec(
    args: argparse.Namespace, settings: Settings, engine_factory: Callable[..., engine.Engine]
) -> ComparisonSpec:
    measuring.check_counts(args)
    check_languages(settings)
    gpu = planner.card_for(settings)
    if args.recordings:
        clips, about = speech.read_recordings(settings.target_lang, args.limit)
    else:
        clips, about = measuring.read_speech(
            args.manifest or paths.EVALUATION_MANIFEST, args.limit, settings.target_lang
        )
    # FP32 must run, whatever the budget allows; what is measured then says what fits.
    free = msgspec.structs.replace(settings, vram_budget="")
    return ComparisonSpec(
        settings,
        planner.start_for(free),
        measuring.device_name(gpu),
        gpu,
        plan.candidates(settings.preset, gpu),
        clips,
        about,
        args.repeats,
        engine_factory,
    )


def _settled(
    spec: ComparisonSpec, state: ComparisonState, settings: Settings, recordings: bool
) -> str:
    """Do what follows from a verdict that is kept; return what a running daemon answers to it."""
    tuning.forget_run()
    if not recordings:  # these have no reference texts, so no word error rate
        keep_baseline(spec, runner.conclude(spec, state))
    return _inform_daemon(settings)


def _show(args: argparse.Namespace, record: TuningResult) -> None:
    if args.json:
        tell_document(record, indent=2)
        return
    tuning_table.show_evidence(record)
    tell(f"\nauto uses {record.chosen} for {record.key.model}: {record.reason}")


def _inform_daemon(settings: Settings) -> str:
    """Have a running daemon use the verdict; return its answer, "" where none runs."""
    try:
        return str(next(client.ask(settings, verb="tuned"))["message"])
    except (ControlError, SocketError):
        return ""
    except AsrdError as error:
        return f"the running daemon does not use it yet: {error.message}"
