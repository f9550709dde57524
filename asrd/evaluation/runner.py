"""Every strategy in a fresh worker over the same speech, measured.

Knows the order of runs and what to ask of a worker. FP32 runs twice first, so that every later
difference can be held against what FP32 differs from itself. Its latency is measured once more at
the end, which shows a machine that drifted meanwhile. `judging` judges the words. Runs beside the
worker; imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from asrd import __version__, protocol
from asrd.audio.blocks import AudioBlock, Samples
from asrd.audio.format import SAMPLE_RATE
from asrd.config.settings import Settings
from asrd.engine import engine
from asrd.errors import AsrdError, EngineError
from asrd.evaluation import components, judging, manifest
from asrd.evaluation.manifest import Clip
from asrd.evaluation.results import Comparison, Role, Run, Speech
from asrd.precision import plan as precision_plan
from asrd.precision.plan import Candidate, Gpu, Plan
from asrd.precision.strategies import FP32_BASELINE, Precision
from asrd.streaming.session import StreamingSession
from asrd.terminal.progress import RunProgress
from asrd.text.characters import readable

BLOCK_SAMPLES = SAMPLE_RATE // 4
"""Samples of a block in which a long clip goes through the window."""


BUFFER_SAMPLES = 10 * SAMPLE_RATE
"""Samples of the buffer whose latency is taken."""


WARM_UP_BUFFERS = 2
"""Buffers before the first that counts: caches and allocators settle within two."""


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
    engine_factory: Callable[..., engine.Engine] = engine.Engine
    lowered: list[components.ComponentPrecision] = field(default_factory=list)
    """Components, each lowered by itself; the encoder's output is then compared too."""

    @property
    def runs(self) -> list[tuple[Precision, Role]]:
        """FP32 twice, then what was asked for; FP32 itself is then there already."""
        runs: list[tuple[Precision, Role]] = [(FP32_BASELINE, "baseline"), (FP32_BASELINE, "again")]
        for precision in self.precisions:
            if precision.name != FP32_BASELINE.name:
                runs.append((precision, "asked"))
        for one in self.lowered:
            runs.append((one.precision, "component"))
        return runs

    def lowered_by(self, precision: Precision) -> components.ComponentPrecision:
        """Return the component that a precision lowers. Raises KeyError."""
        for one in self.lowered:
            if one.precision == precision:
                return one
        raise KeyError(precision.name)

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


async def measure(
    spec: ComparisonSpec, state: ComparisonState, save: Callable[[], None] = lambda: None
) -> None:
    """Run every strategy that `state` lacks, one worker after the other; add each result there.

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
    buffer = manifest.joined(spec.clips, BUFFER_SAMPLES)
    with RunProgress(spec.workers) as progress:
        for _ in state.measured:
            progress.done()
        for number, (chosen, role) in list(enumerate(spec.runs, 1))[len(state.measured) :]:
            progress.begin(chosen.name, number)
            state.measured.append(await _run(spec, chosen, role, buffer, progress))
            progress.done(state.measured[-1].failure)
            save()
        progress.begin(f"{FP32_BASELINE.name} latency again", spec.workers)
        state.again = await _latency_again(spec, buffer, progress)
        progress.done()


async def _run(
    spec: ComparisonSpec, chosen: Precision, role: Role, buffer: Samples, progress: RunProgress
) -> Run:
    """Return what one worker measured; the failure of any but the baseline is part of it."""
    measured = Run(chosen, role)
    if role == "component":
        lowered = spec.lowered_by(chosen)
        measured.component, measured.dtype = lowered.component, lowered.dtype
    if spec.gpu is not None and (why := precision_plan.obstacle(chosen, spec.gpu)):
        measured.failure = why
        return measured
    one = _engine(spec, chosen, progress)
    try:
        async with one:
            measured.ready = await one.start()
            _check_cancelled()
            await _measure_latency(one, measured, buffer, spec.repeats, progress)
            if spec.lowered:
                measured.encoded = await one.encode(buffer)
            await _transcribe_clips(one, measured, spec, progress)
    except AsrdError as error:
        if role == "baseline":
            raise
        measured.failure = _reason(error, one)
        if measured.texts:
            measured.failure += f" at clip {len(measured.texts) + 1} of {len(spec.clips)}"
    return measured


def _engine(spec: ComparisonSpec, chosen: Precision, progress: RunProgress) -> engine.Engine:
    """Return an engine with one candidate: what fails here must be seen, not replaced."""
    plan = Plan(chosen.name, (Candidate(chosen, spec.device),), "compared by itself")

    def loading(stage: protocol.Progress) -> None:
        _check_cancelled()
        progress.loading(stage)

    return spec.engine_factory(plan, spec.start, on_progress=loading)


def _check_cancelled() -> None:
    """Raise CancelledError where this task was cancelled and the exception got lost, as
    asyncio.wait_for can lose it on Python 3.11."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _reason(error: AsrdError, one: engine.Engine) -> str:
    if isinstance(error, EngineError) and one.rejected:
        return f"{one.rejected[-1].kind}: {one.rejected[-1].detail}"
    return error.message


async def _measure_latency(
    one: engine.Engine, measured: Run, buffer: Samples, repeats: int, progress: RunProgress
) -> None:
    """Take the latency of the fixed buffer, for each phase that the precision treats in a way of
    its own."""
    for _ in range(WARM_UP_BUFFERS):
        await one.transcribe(buffer)
    measured.ledger["warm-up"] = await one.measure("warm-up")
    for number in range(repeats):
        begin = time.perf_counter()
        answer = await one.transcribe(buffer)
        measured.round_trip.append(time.perf_counter() - begin)
        measured.latency.append(answer.seconds)
        measured.cpu.append(answer.cpu_seconds)
        progress.step("10-s buffer", number + 1, repeats)
        _check_cancelled()
    measured.ledger["steady"] = await one.measure("steady")
    if "partial" in measured.precision.phases:
        for number in range(WARM_UP_BUFFERS + repeats):
            # Another start each time, as a cache-aware model would have kept the last buffer
            # and would have nothing to compute.
            answer = await one.transcribe(buffer, number, "partial")
            if number >= WARM_UP_BUFFERS:
                measured.partial_latency.append(answer.seconds)


async def _transcribe_clips(
    one: engine.Engine, measured: Run, spec: ComparisonSpec, progress: RunProgress
) -> None:
    """Transcribe the whole manifest; a clip that fails by itself is an error, a lost worker ends
    the run."""
    for number, clip in enumerate(spec.clips):
        try:
            text, seconds = await _clip(one, clip, spec)
        except EngineError:
            raise
        except AsrdError as error:
            measured.texts.append(None)
            measured.failure = f"line {clip.line}: {error.message}"
        else:
            measured.texts.append(text)
            measured.compute += seconds
        progress.step("clips", number + 1, len(spec.clips))
        _check_cancelled()
    measured.ledger["after"] = await one.measure("after")
    if "partial" in measured.precision.phases:
        for clip in spec.clips:
            measured.partial_texts.append((await _clip(one, clip, spec, "partial"))[0])


async def _clip(
    one: engine.Engine, clip: Clip, spec: ComparisonSpec, phase: str = "final"
) -> tuple[str, float]:
    """Return the text of one clip and the seconds of compute; a clip longer than the window is
    transcribed as dictation is."""
    if len(clip.samples) > spec.settings.window * SAMPLE_RATE:
        return await _long_clip(one, clip, spec, phase)
    answer = await one.transcribe(clip.samples, phase=phase)
    return answer.hypothesis.text, answer.seconds


async def _long_clip(
    one: engine.Engine, clip: Clip, spec: ComparisonSpec, phase: str
) -> tuple[str, float]:
    """Send a clip through the detector and the window, and join the words by their times."""
    session = StreamingSession(spec.settings, phase)
    for start in range(0, len(clip.samples), BLOCK_SAMPLES):
        session.push(AudioBlock(start, clip.samples[start : start + BLOCK_SAMPLES]))
        await session.decode(one)
    session.finish()
    await session.decode(one)
    return session.transcript.text, session.compute


async def _latency_again(spec: ComparisonSpec, buffer: Samples, progress: RunProgress) -> Run:
    """Return latency and memory of one more FP32 worker."""
    measured = Run(FP32_BASELINE, "again")
    one = _engine(spec, FP32_BASELINE, progress)
    with contextlib.suppress(
        AsrdError
    ):  # two runs have worked; without the third the floor rests on them
        async with one:
            await one.start()
            await _measure_latency(one, measured, buffer, spec.repeats, progress)
    return measured


def conclude(spec: ComparisonSpec, state: ComparisonState, partial: bool = False) -> Comparison:
    """Return the comparison as far as it has been measured."""
    floor, bounds, rows = judging.judge(
        state.measured,
        [clip.text for clip in spec.clips],
        spec.speech.seconds,
        spec.settings.wer_bound,
        spec.speech.language,
        state.again,
    )
    return Comparison(
        model=readable(spec.settings.model),
        noise_floor=floor,
        criteria=bounds,
        rows=rows,
        partial=partial,
        unfinished=[p.name for p, _ in spec.runs[len(state.measured) :]],
        manifest=spec.speech,
        metric=spec.speech.metric,
        repeats=spec.repeats,
        threads=spec.settings.threads,
        started=state.started,
        seconds=time.monotonic() - state.begin,
        command=readable(shlex.join(["asrd", *sys.argv[1:]])),
        **_worker_fields(spec, state),
    )


def _worker_fields(spec: ComparisonSpec, state: ComparisonState) -> dict[str, Any]:
    """Return the fields that the first worker reported, where one was ready."""
    ready = None
    if state.measured:
        ready = state.measured[0].ready
    if ready is None:
        versions = {"asrd": __version__, **_versions()}
        return {"device": spec.device, "device_name": "", "versions": versions}
    return {
        "device": ready.device,
        "device_name": ready.device_name,
        "versions": {"asrd": __version__, **ready.versions, **_versions()},
        "family": ready.family,
        "target": ready.target,
        "parameters": ready.parameters,
    }


def _versions() -> dict[str, str]:
    """Return the versions of what judges the words."""
    known = {}
    for name in ("jiwer", "whisper-normalizer", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            known[name] = version(name)
    return known
