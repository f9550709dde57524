"""The verb `compare`: every strategy in a fresh worker over the same speech, measured and judged.

Knows manifests, the order of runs and what to ask of a worker. FP32 runs twice first, so that every
later difference can be held against what FP32 differs from itself, and its latency once more at the
end, so that a machine that drifted meanwhile is seen. Words are judged in `verdict`, shown in
`report`. Runs beside the worker; imports no torch.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from asrd import (
    __version__,
    paths,
    protocol,  # fmt: skip
)
from asrd.audio.blocks import AudioBlock, Samples
from asrd.audio.format import SAMPLE_RATE
from asrd.config.settings import Settings
from asrd.engine import baseline, engine, planner, tuned
from asrd.engine.model_facts import check_languages
from asrd.errors import AsrdError, DiskError, EngineError, ManifestError, UsageError
from asrd.evaluation import components, judging, manifest
from asrd.evaluation.manifest import Clip
from asrd.evaluation.normalising import metric, normaliser
from asrd.evaluation.report import page
from asrd.evaluation.report import text as report_text
from asrd.evaluation.results import Comparison, Role, Run, Speech
from asrd.models import checkpoint, downloader
from asrd.models.choice import for_files, or_demo
from asrd.precision import ledger
from asrd.precision import plan as precision_plan
from asrd.precision import strategies as precision_strategies
from asrd.precision.plan import Candidate, Gpu, Plan
from asrd.precision.strategies import AUTO_PRESETS, FP32_BASELINE, Precision
from asrd.streaming.session import StreamingSession
from asrd.terminal.output import one_line, tell
from asrd.terminal.progress import DownloadBar, RunProgress
from asrd.text.characters import printable, readable

log = logging.getLogger("asrd")

BLOCK = SAMPLE_RATE // 4
"""Samples of a block in which a long clip goes through the window."""

BUFFER = 10 * SAMPLE_RATE
"""Samples of the buffer whose latency is taken."""

WARM_UP = 2
"""Buffers before the first that counts: caches and allocators settle within two."""

HELP = """exit codes: 0 every strategy that was asked for passes, 3 some do not, 130 interrupted (a partial report is
written). What the columns mean stands at the foot of the HTML page and under "definitions" in the JSON."""


@dataclass(frozen=True)
class ComparisonSpec:
    """What is compared, on what, with what."""

    settings: Settings
    start: protocol.Start
    device: str
    gpu: Gpu | None
    precisions: list[Precision]
    clips: list[Clip]
    speech: Speech
    repeats: int
    hold: Callable[..., engine.Engine] = engine.Engine
    alone: list[components.ComponentPrecision] = field(default_factory=list)
    """Components, each put down by itself; the encoder's output is then compared too."""

    @property
    def runs(self) -> list[tuple[Precision, Role]]:
        """FP32 twice, then what was asked for; FP32 itself is then there already."""
        asked: list[tuple[Precision, Role]] = [
            (p, "asked") for p in self.precisions if p.name != FP32_BASELINE.name
        ]
        down: list[tuple[Precision, Role]] = [(one.precision, "component") for one in self.alone]
        return [(FP32_BASELINE, "baseline"), (FP32_BASELINE, "again"), *asked, *down]

    @property
    def workers(self) -> int:
        """How many workers that takes: after the runs FP32's latency once more."""
        return len(self.runs) + 1


@dataclass
class ComparisonState:
    """What has been measured so far."""

    measured: list[Run] = field(default_factory=list)
    again: Run | None = None
    """FP32 after everything else, latency and memory only."""
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    begin: float = field(default_factory=time.monotonic)


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `asrd compare` takes."""
    known = ", ".join(AUTO_PRESETS)
    parser.epilog = HELP
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
    args: argparse.Namespace, settings: Settings, hold: Callable[..., engine.Engine] = engine.Engine
) -> int:
    """Do the verb and return 0, 3 when a strategy does not pass, 130 or 143 when it was
    interrupted.

    Args:
        args, settings: as the command line has them.
        hold: what holds a worker.

    Raises:
        AsrdError: nothing can be compared: wrong names, no speech, no room, FP32 does not run.
    """
    for path in (args.json, args.html):
        _check_writable(path)
    job = _job(args, settings, hold)
    found = ComparisonState()
    code = 0
    try:
        asyncio.run(measure(job, found, lambda: _keep_so_far(args, job, found)))
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        code = 130 if isinstance(error, KeyboardInterrupt) else 143
    result = conclude(job, found, partial=bool(code))
    old = keep_baseline(job, result, args.replace) if not code and not job.alone else None
    _show(args, result)
    if old is not None:
        knows = f"{len(old.strategies)} strategies, {old.utterances or '?'} utterances, {old.repeats or '?'} repeats"
        tell(
            f"asrd: the daemon keeps its baseline of {old.measured} ({knows}); --replace changes that",
            sys.stderr,
        )
    return code or (0 if all(row.passed for row in result.asked) else 3)


def keep_baseline(
    job: ComparisonSpec, result: Comparison, replace: bool = False
) -> baseline.Baseline | None:
    """Keep what was measured for the daemon, which tells its own figures beside it; return what
    stays instead.

    Args:
        replace: also an earlier comparison that knows more.
    """
    strategies = {}
    for row in result.rows:
        steady, most = row.ledger.get("steady"), ledger.largest_bytes(row.ledger)
        if row.role in ("baseline", "asked") and not row.failure and steady is not None:
            p50 = row.latency_ms.p50 if row.latency_ms else None
            held = (
                most if steady.process is not None else None
            )  # of the same instrument as `source`
            strategies[row.strategy] = baseline.BaselineFigures(
                held, steady.source, p50, row.wer, row.wer_delta
            )
    key = tuned.key_for(job.settings, job.gpu)
    new = baseline.Baseline(
        measured=result.started,
        strategies=strategies,
        card="" if result.device == "cpu" else result.device_name,
        made=f"{key.size} {key.modified} {key.driver} {key.torch} {key.asrd}" if key else "",
        utterances=len(job.clips),
        repeats=job.repeats,
    )
    old = baseline.find(result.model, result.device)
    if (
        old is not None
        and not replace
        and baseline.outweighs(old, new, {row.strategy for row in result.rows})
    ):
        return old
    try:
        baseline.keep(result.model, result.device, new)
    except DiskError as error:
        log.warning("%s", error.message)
    return None


# -- what is compared
# -------------------------------------------------------------------------------------------------


def _job(
    args: argparse.Namespace, settings: Settings, hold: Callable[..., engine.Engine]
) -> ComparisonSpec:
    named, settings = settings, or_demo(settings)
    for name in ("limit", "repeats"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value} is too few", "1 or more")
    down = args.components is not None
    chosen = (
        precision_strategies.select(args.strategies or settings.preset)
        if args.strategies or not down
        else []
    )
    if down:
        components.wanted(args.components)  # what is wrong is said before a model is fetched
    own = settings.requested
    if isinstance(own, Precision):
        chosen = [own if p.name == own.name else p for p in chosen]
    check_languages(settings)
    gpu = planner.card_for(settings)
    clips, speech = spoken(
        args.manifest or paths.EVALUATION_MANIFEST, args.limit, settings.target_lang
    )
    device = f"cuda:{gpu.index}" if gpu else "cpu"
    for_files(named)  # says that the demo runs, now that nothing is wrong with what was asked
    file = fetched(settings.model)  # before the first worker, so that no measurement waits for it
    alone = components.sweep(checkpoint.header(file), args.components) if down else []
    return ComparisonSpec(
        settings,
        planner.start_for(settings),
        device,
        gpu,
        chosen,
        clips,
        speech,
        args.repeats,
        hold,
        alone,
    )


def spoken(path: Path, limit: int | None, language: str) -> tuple[list[Clip], Speech]:
    """Return the clips of a manifest and what they are together; lines that cannot be used are
    told.

    Raises ManifestError: it cannot be read, has no usable line, or says of none what was said.
    """
    clips, skipped = manifest.read(path, limit)
    for one in skipped:
        tell(one_line(f"asrd: {path}, line {one.line} is skipped: {one.reason}"), sys.stderr)
    if not clips:
        raise ManifestError(
            f"{path} has no usable line", 'each line: {"audio_filepath": ..., "text": ...}'
        )
    kind = metric([clip.text for clip in clips], language)
    words = sum(len(normaliser(language, kind)(clip.text).split()) for clip in clips)
    if not words:
        raise ManifestError(
            f"{path} has no reference text", 'each line needs it: {..., "text": ...}'
        )
    seconds = sum(len(clip.samples) for clip in clips) / SAMPLE_RATE
    installed = path == paths.EVALUATION_MANIFEST  # its name is the same wherever asrd is installed
    shown = path.relative_to(paths.DATA_FOLDER.parents[1]) if installed else path
    return clips, Speech(readable(str(shown)), len(clips), words, seconds, language, skipped, kind)


def fetched(model: str) -> Path:
    """Return the file of a model; one that is not here is downloaded first, which is shown. Raises:
    as Engine.download."""
    with DownloadBar() as bar:
        return downloader.fetch_now(model, bar.show)


# -- the runs
# ---------------------------------------------------------------------------------------------------------


async def measure(
    job: ComparisonSpec, found: ComparisonState, save: Callable[[], None] = lambda: None
) -> None:
    """Run every strategy that `found` lacks, one worker after the other, and keep what it showed
    there.

    Args:
        save: called after each complete run.

    Raises:
        AsrdError: FP32 cannot be measured. CancelledError: interrupted; the worker is gone then.
    """
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(
        NotImplementedError, RuntimeError
    ):  # only the main thread takes signals
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    buffer = manifest.joined(job.clips, BUFFER)
    with RunProgress(job.workers) as progress:
        for _ in found.measured:
            progress.done()
        for number, (chosen, role) in list(enumerate(job.runs, 1))[len(found.measured) :]:
            progress.begin(chosen.name, number)
            found.measured.append(await _run(job, chosen, role, buffer, progress))
            progress.done(found.measured[-1].failure)
            save()
        progress.begin(f"{FP32_BASELINE.name} latency again", job.workers)
        found.again = await _latency_again(job, buffer, progress)
        progress.done()


async def _run(
    job: ComparisonSpec, chosen: Precision, role: Role, buffer: Samples, progress: RunProgress
) -> Run:
    """Return what one worker showed; a failure of any but the baseline is part of it."""
    measured = Run(chosen, role)
    if role == "component":
        measured.component, measured.dtype = next(
            (a.component, a.dtype) for a in job.alone if a.precision == chosen
        )
    if job.gpu is not None and (why := precision_plan.obstacle(chosen, job.gpu)):
        measured.failure = why
        return measured
    one = _engine(job, chosen, progress)
    try:
        async with one:
            measured.ready = await one.start()
            _heed()
            await _time(one, measured, buffer, job.repeats, progress)
            if job.alone:
                measured.encoded = await one.encode(buffer)
            await _hear(one, measured, job, progress)
    except AsrdError as error:
        if role == "baseline":
            raise
        where = f" at clip {len(measured.texts) + 1} of {len(job.clips)}" if measured.texts else ""
        measured.failure = _sentence(error, one) + where
    return measured


def _engine(job: ComparisonSpec, chosen: Precision, progress: RunProgress) -> engine.Engine:
    """Return an engine with one candidate: what fails here must be seen, not replaced."""
    plan = Plan(chosen.name, (Candidate(chosen, job.device),), "compared by itself")

    def loading(stage: protocol.Progress) -> None:
        _heed()
        progress.loading(stage)

    return job.hold(plan, job.start, on_progress=loading)


def _heed() -> None:
    """Raise CancelledError when this task was cancelled and somebody below lost it, as
    asyncio.wait_for can on 3.11."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _sentence(error: AsrdError, one: engine.Engine) -> str:
    if isinstance(error, EngineError) and one.rejected:
        return f"{one.rejected[-1].kind}: {one.rejected[-1].detail}"
    return error.message


async def _time(
    one: engine.Engine, measured: Run, buffer: Samples, repeats: int, progress: RunProgress
) -> None:
    """Take the latency of the fixed buffer, for each phase that the precision treats in a way of
    its own."""
    for _ in range(WARM_UP):
        await one.transcribe(buffer)
    measured.ledger["warm-up"] = await one.measure("warm-up")
    for number in range(repeats):
        begin = time.perf_counter()
        answer = await one.transcribe(buffer)
        measured.round_trip.append(time.perf_counter() - begin)
        measured.latency.append(answer.seconds)
        measured.cpu.append(answer.cpu_seconds)
        progress.step("10-s buffer", number + 1, repeats)
        _heed()
    measured.ledger["steady"] = await one.measure("steady")
    if "draft" in measured.precision.phases:
        for number in range(WARM_UP + repeats):
            # From another place each time: a cache-aware model would have kept the last one and
            # hear nothing new.
            answer = await one.transcribe(buffer, number, "draft")
            if number >= WARM_UP:
                measured.draft_latency.append(answer.seconds)


async def _hear(
    one: engine.Engine, measured: Run, job: ComparisonSpec, progress: RunProgress
) -> None:
    """Transcribe the whole manifest; a clip that fails by itself is an error, a lost worker ends
    the run."""
    for number, clip in enumerate(job.clips):
        try:
            text, seconds = await _clip(one, clip, job)
        except EngineError:
            raise
        except AsrdError as error:
            measured.texts.append(None)
            measured.failure = f"line {clip.line}: {error.message}"
        else:
            measured.texts.append(text)
            measured.compute += seconds
        progress.step("clips", number + 1, len(job.clips))
        _heed()
    measured.ledger["after"] = await one.measure("after")
    if "draft" in measured.precision.phases:
        for clip in job.clips:
            measured.drafts.append((await _clip(one, clip, job, "draft"))[0])


async def _clip(
    one: engine.Engine, clip: Clip, job: ComparisonSpec, phase: str = "final"
) -> tuple[str, float]:
    """Return text and seconds of compute for one clip; one longer than the window is heard as
    dictation would be."""
    if len(clip.samples) > job.settings.window * SAMPLE_RATE:
        return await _long_clip(one, clip, job, phase)
    answer = await one.transcribe(clip.samples, phase=phase)
    return answer.hypothesis.text, answer.seconds


async def _long_clip(
    one: engine.Engine, clip: Clip, job: ComparisonSpec, phase: str
) -> tuple[str, float]:
    """Send a clip through detector and window, and join what was heard by its times."""
    dictation = StreamingSession(job.settings, phase)
    for start in range(0, len(clip.samples), BLOCK):
        dictation.push(AudioBlock(start, clip.samples[start : start + BLOCK]))
        await dictation.decode(one)
    dictation.finish()
    await dictation.decode(one)
    return dictation.transcript.text, dictation.compute


async def _latency_again(job: ComparisonSpec, buffer: Samples, progress: RunProgress) -> Run:
    """Return latency and memory of one more FP32 worker."""
    measured = Run(FP32_BASELINE, "again")
    one = _engine(job, FP32_BASELINE, progress)
    with contextlib.suppress(
        AsrdError
    ):  # two runs have worked; without the third the floor rests on them
        async with one:
            await one.start()
            await _time(one, measured, buffer, job.repeats, progress)
    return measured


# -- the result
# -------------------------------------------------------------------------------------------------------


def conclude(job: ComparisonSpec, found: ComparisonState, partial: bool = False) -> Comparison:
    """Return the comparison as far as it has been measured."""
    first = found.measured[0].ready if found.measured else None
    floor, bounds, rows = judging.judge(
        found.measured,
        [clip.text for clip in job.clips],
        job.speech.seconds,
        job.settings.wer_bound,
        job.speech.language,
        found.again,
    )
    return Comparison(
        model=readable(job.settings.model),
        device=first.device if first else job.device,
        device_name=first.device_name if first else "",
        versions={"asrd": __version__, **(first.versions if first else {}), **_versions()},
        noise_floor=floor,
        criteria=bounds,
        rows=rows,
        partial=partial,
        unfinished=[p.name for p, _ in job.runs[len(found.measured) :]],
        manifest=job.speech,
        metric=job.speech.metric,
        family=first.family if first else "",
        target=first.target if first else "",
        parameters=first.parameters if first else 0,
        repeats=job.repeats,
        threads=job.settings.threads,
        started=found.started,
        seconds=time.monotonic() - found.begin,
        command=readable(shlex.join(["asrd", *sys.argv[1:]])),
    )


def _versions() -> dict[str, str]:
    """Return the versions of what judges the words."""
    known = {}
    for name in ("jiwer", "whisper-normalizer", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            known[name] = version(name)
    return known


def _check_writable(path: Path | None) -> None:
    """Raise DiskError now rather than after minutes of work."""
    if path is None or str(path) == "-":
        return
    if (
        path.is_dir()
        or not path.parent.is_dir()
        or not os.access(path if path.exists() else path.parent, os.W_OK)
    ):
        raise DiskError(
            f"cannot write {path}", "name a file in a folder that exists and may be written"
        )


def _keep_so_far(args: argparse.Namespace, job: ComparisonSpec, found: ComparisonState) -> None:
    """Write the JSON as it stands, so that even a killed comparison leaves one; at the end it is
    written again."""
    if args.json is not None and str(args.json) != "-":
        with contextlib.suppress(DiskError):
            _write(args.json, report_text.to_json(conclude(job, found, partial=True)))


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(f".asrd-{os.getpid()}.new")  # a name may be as long as names can be
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        with paths.open_private(beside) as file:
            file.write(content)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
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
        sys.stdout.buffer.write(printable(report_text.to_json(result).decode()).encode())
        sys.stdout.flush()
        return
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else 120
    print(
        report_text.table(result, width, colour=terminal and "NO_COLOR" not in os.environ),
        flush=True,
    )


def _write_files(args: argparse.Namespace, result: Comparison) -> None:
    for path, render in (
        (args.json, report_text.to_json),
        (args.html, lambda found: page.html(found).encode()),
    ):
        if path is not None and str(path) != "-":
            _write(path, render(result))
            tell(one_line(f"wrote {path}"), sys.stderr)
