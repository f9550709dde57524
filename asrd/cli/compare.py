"""The verb `compare`: what each precision strategy saves and costs here, as table, JSON and page.

Reads the command line, has `evaluation.runner` measure, and shows and writes the result.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from asrd import paths
from asrd.cli import measuring
from asrd.config.settings import Settings
from asrd.engine import engine, planner
from asrd.engine.model_facts import check_languages
from asrd.errors import DiskError
from asrd.evaluation import components
from asrd.evaluation.daemon_baseline import keep_baseline
from asrd.evaluation.report import documents, page
from asrd.evaluation.report import table as report_table
from asrd.evaluation.results import Comparison
from asrd.evaluation.runner import ComparisonSpec, ComparisonState, conclude, measure
from asrd.models import checkpoint
from asrd.models.choice import for_files, or_demo
from asrd.precision import strategies as precision_strategies
from asrd.precision.strategies import AUTO_PRESETS, Precision
from asrd.terminal.output import one_line, tell
from asrd.text.characters import printable

COMPARE_EPILOG = """\
exit codes: 0 every strategy that was asked for passes, 3 some do not, 130 interrupted (a partial report is
written). The foot of the HTML page and "definitions" in the JSON explain the columns."""

PIPE_COLUMNS = 120
"""Columns of the table in a pipe."""


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `asrd compare` takes."""
    known = ", ".join(AUTO_PRESETS)
    parser.epilog = COMPARE_EPILOG
    parser.add_argument(
        "--strategies", metavar="a,b", help=f"names, all, presets: {known} (the preset in force)"
    )
    parser.add_argument(
        "--components",
        metavar="DTYPE,...",
        nargs="?",
        const="",
        help="lower each component by itself (all of bfloat16,float16,int8; with layers: block by block); "
        "strategies run only if named",
    )
    parser.add_argument(
        "--manifest",
        metavar="F.jsonl",
        type=Path,
        help="NeMo manifest of clips (the shipped speech)",
    )
    parser.add_argument(
        "--limit", metavar="N", type=int, help="take N clips, evenly spread over the manifest"
    )
    parser.add_argument(
        "--repeats", metavar="N", type=int, default=15, help="timed 10-s buffers per strategy (15)"
    )
    parser.add_argument(
        "--max-wer-delta", metavar="POINTS", type=float, help="points of WER a strategy may cost"
    )
    replace = "make this the daemon's baseline, even if the earlier one covers more"
    parser.add_argument("--replace", action="store_true", help=replace)
    parser.add_argument(
        "--json", metavar="F", type=Path, help="write the result here; -: standard output"
    )
    parser.add_argument("--html", metavar="F", type=Path, help="write a page with plots here")


def compare(
    args: argparse.Namespace,
    settings: Settings,
    engine_factory: Callable[..., engine.Engine] = engine.Engine,
) -> int:
    """Compare strategies; return 0, 3 when a strategy does not pass, 130 or 143 when interrupted.

    Args:
        args, settings: as the command line has them.
        engine_factory: makes what starts and asks a worker.

    Raises:
        AsrdError: nothing can be compared: wrong names, no speech, no room, FP32 does not run.
    """
    for path in (args.json, args.html):
        _check_writable(path)
    spec = _spec(args, settings, engine_factory)
    state = ComparisonState()
    code = 0
    try:
        asyncio.run(measure(spec, state, lambda: _keep_so_far(args, spec, state)))
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        code = measuring.interrupt_code(error)
    result = conclude(spec, state, partial=bool(code))
    old = None
    if not code and not spec.lowered:
        old = keep_baseline(spec, result, args.replace)
    _show(args, result)
    if old is not None:
        covers = f"{len(old.strategies)} strategies, {old.utterances or '?'} utterances, {old.repeats or '?'} repeats"
        tell(
            f"asrd: the daemon keeps its baseline of {old.measured} ({covers}); --replace changes that",
            sys.stderr,
        )
    if not code and not all(row.passed for row in result.asked):
        code = 3
    return code


def _spec(
    args: argparse.Namespace, settings: Settings, engine_factory: Callable[..., engine.Engine]
) -> ComparisonSpec:
    named, settings = settings, or_demo(settings)
    measuring.check_counts(args)
    precisions = _precisions(args, settings)
    if args.components is not None:
        components.wanted(args.components)  # what is wrong is said before a model is fetched
    check_languages(settings)
    gpu = planner.card_for(settings)
    clips, speech = measuring.read_speech(
        args.manifest or paths.EVALUATION_MANIFEST, args.limit, settings.target_lang
    )
    for_files(named)  # says that the demo runs, now that nothing is wrong with what was asked
    # Before the first worker, so that no measurement waits for the download.
    file = measuring.fetched(settings.model)
    lowered = []
    if args.components is not None:
        lowered = components.sweep(checkpoint.header(file), args.components)
    return ComparisonSpec(
        settings,
        planner.start_for(settings),
        measuring.device_name(gpu),
        gpu,
        precisions,
        clips,
        speech,
        args.repeats,
        engine_factory,
        lowered,
    )


def _precisions(args: argparse.Namespace, settings: Settings) -> list[Precision]:
    """Return the strategies to compare; with --components alone there are none."""
    if args.components is not None and not args.strategies:
        return []
    chosen = precision_strategies.select(args.strategies or settings.preset)
    own = settings.requested
    if isinstance(own, Precision):  # with the components that the settings name
        for place, one in enumerate(chosen):
            if one.name == own.name:
                chosen[place] = own
    return chosen


def _check_writable(path: Path | None) -> None:
    """Raise DiskError now rather than after minutes of work."""
    if path is None or str(path) == "-":
        return
    changed = path if path.exists() else path.parent
    if path.is_dir() or not path.parent.is_dir() or not os.access(changed, os.W_OK):
        raise DiskError(
            f"cannot write {path}", "name a file in a folder that exists and that you can write to"
        )


def _keep_so_far(args: argparse.Namespace, spec: ComparisonSpec, state: ComparisonState) -> None:
    """Write the JSON as it stands, so that even a killed comparison leaves one; at the end it is
    written again."""
    if args.json is not None and str(args.json) != "-":
        with contextlib.suppress(DiskError):
            _write(args.json, documents.to_json(conclude(spec, state, partial=True)))


def _write(path: Path, content: bytes) -> None:
    beside = f".asrd-{os.getpid()}.new"  # a name may be as long as names can be
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        paths.write_whole(path, content, beside)
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}") from error


def _show(args: argparse.Namespace, result: Comparison) -> None:
    """Print the table first: a full disk must not cost the result, nor a reader that leaves early
    the files."""
    try:
        _print(args, result)
    finally:
        _write_files(args, result)


def _print(args: argparse.Namespace, result: Comparison) -> None:
    if str(args.json) == "-":
        sys.stdout.buffer.write(printable(documents.to_json(result).decode()).encode())
        sys.stdout.flush()
        return
    terminal = sys.stdout.isatty()
    width = PIPE_COLUMNS
    if terminal:
        width = shutil.get_terminal_size().columns
    print(
        report_table.table(result, width, colour=terminal and "NO_COLOR" not in os.environ),
        flush=True,
    )


def _write_files(args: argparse.Namespace, result: Comparison) -> None:
    for path, render in (
        (args.json, documents.to_json),
        (args.html, lambda state: page.html(state).encode()),
    ):
        if path is not None and str(path) != "-":
            _write(path, render(result))
            tell(one_line(f"wrote {path}"), sys.stderr)
