"""The status of the daemon: each key of `asrd status --json` as a field, and the daemon's state as
one line."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import msgspec

from asrd import __version__
from asrd.config.settings import ENGINE
from asrd.dictation.recorder import Recorder
from asrd.dictation.recording import Dictation
from asrd.dictation.transcriber import Transcriber
from asrd.engine.engine import Engine
from asrd.models import choice
from asrd.precision import ledger
from asrd.precision.memory import Memory
from asrd.protocol import Download
from asrd.text.sizes import mib
from asrd.text.wording import with_hint

SCHEMA = 1
"""Number of the form of the status. It grows when a key is renamed or removed, not when one is
added."""


class RecordingStatus(msgspec.Struct, frozen=True):
    """The recording that goes on."""

    id: str
    """Its name, by which `asrd retry` finds it."""
    seconds: float
    """Length of its audio."""
    level: float | None
    """Peak of the last 20 ms, in dBFS; None before the first audio."""
    text: str
    """The text so far, as far as it is final."""
    partial: str
    """The words after the text; they may still change."""
    behind: float
    """Seconds of speech that are not decoded yet."""
    draft: str = ""
    """Older name of `partial`."""


class DownloadStatus(msgspec.Struct, frozen=True):
    """The download of the model."""

    model: str
    """Name of the model on the hub."""
    bytes: int
    """Bytes of its file that are here."""
    total: int | None
    """Bytes of the whole file; None where the server does not say."""


class LevelStatus(msgspec.Struct, frozen=True):
    """How loud the last recording of a microphone was."""

    device: str
    """Name of the microphone."""
    speech_dbfs: float | None
    """Level of the speech; None where none was found."""
    noise_dbfs: float | None
    """Level between the words; None where nothing was between them."""
    clipped: float
    """Share of the samples in speech that are at full scale, 0 to 1."""
    kind: str = ""
    """What is wrong: quiet, clipped or silent; "" where nothing is."""
    problem: str = ""
    """The end of a sentence that begins with the device; "" where nothing is wrong."""
    advised_db: int = 0
    """Change of the volume in dB that would mend it; 0 where none does."""


class FallbackStatus(msgspec.Struct, frozen=True):
    """A precision that was asked for and does not run."""

    wanted: str
    """The precision that was asked for, with its device where one was named."""
    kind: str
    """Why it does not run, as a word: nonfinite, slow, memory and so on."""
    detail: str
    """Why it does not run, for a person."""
    again_in: int | None
    """Seconds until it is tried again; None where it is not."""


class ShadowStatus(msgspec.Struct, frozen=True):
    """The disagreement of the strategy in service with FP32."""

    strategy: str
    """The strategy that is compared with FP32."""
    recordings: int
    """Recordings that were compared."""
    changed: int
    """Words that differ."""
    words: int
    """Words that were compared."""
    per_100: float | None
    """Words of 100 that differ; None before the first comparison."""
    low: float | None
    """Lower end of the 95 % interval of that rate; None while it is not known."""
    high: float | None
    """Upper end of the 95 % interval of that rate; None while it is not known."""
    waiting: int
    """Recordings that wait for their comparison."""
    takes: int = 0
    """Older name of `recordings`."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `asrd status --json` prints, beside the older names in `older_names.KEYS`."""

    schema: int = SCHEMA
    """Number of this form."""
    state: str
    """LOADING, IDLE, LISTENING, FLUSHING, UNLOADED or STOPPING."""
    model: str
    """The model that the settings name; "" where none is chosen."""
    model_note: str
    """What a person has to know of the model: that none is chosen, or that it is a demo."""
    requested: str
    """The strategy that the settings name; it may be auto."""
    engine: dict[str, Any]
    """The settings that decide which worker runs; with others it is another worker."""
    strategy: str
    """The strategy that runs; "" while no worker runs."""
    effective: dict[str, str]
    """Component of the model -> dtype of its weights; empty while no worker runs."""
    precision_note: str
    """What does not run in the dtype that was asked for, and why; "" where everything does."""
    device: str
    """The device on which the worker runs: cpu or cuda:N; "" while no worker runs."""
    streaming: str
    """What a partial result costs: buffer, the whole buffer; cache-aware, what is new; "" while no
    worker runs."""
    memory: Memory | None
    """The last reading of the worker's memory, in bytes; None while there is none."""
    loading: str
    """The step that a starting worker is at; "" when none is starting."""
    load_seconds: float | None
    """Seconds from the start of the worker until it was ready; None while no worker runs."""
    download: DownloadStatus | None
    """The download of the model; None while nothing is downloaded."""
    error: str
    """Why there is no text right now; "" while nothing is wrong."""
    capture: str
    """Why no audio comes in; "" while it does."""
    level: LevelStatus | None
    """How loud the last recording was; None before the first."""
    rejected: list[str]
    """The candidates that did not run here, with the reason of each."""
    fallback: FallbackStatus | None
    """The precision that was asked for, where another one runs; else None."""
    shadow: ShadowStatus | None
    """The comparison with FP32; None where the settings ask for none."""
    faults: str
    """The faults that are rehearsed; "" for none."""
    recording: RecordingStatus | None
    """The recording that goes on; None where none does."""
    pending: int
    """Recordings that have ended and are not text yet."""
    waiting: int | None
    """Kept recordings that wait for `asrd retry`; None while a recording goes on."""
    sinks: list[str]
    """Where the text goes."""
    version: str
    """Version of asrd."""
    pid: int
    """Process ID of the daemon."""
    uptime: float
    """Seconds since the daemon started."""


def status(
    state: str,
    transcriber: Transcriber,
    recorder: Recorder,
    file: Path | None,
    uptime: float,
    waiting: int | None,
) -> Status:
    """Return the status of a daemon.

    Args:
        state: the daemon's state, as in `Status.state`.
        transcriber: has the settings, the engine and its last readings.
        recorder: has the microphone and the recording that goes on.
        file: the configuration file that was named; None for the usual one.
        uptime: seconds since the daemon started.
        waiting: kept recordings that wait; None where they were not counted.
    """
    slot, dictation = transcriber.slot, recorder.current
    settings = slot.settings
    shadow = None
    if settings.shadow:
        shadow = _shadow(transcriber)
    recording = None
    if dictation is not None:
        recording, waiting = _recording(dictation), None
    return Status(
        state=state,
        model=settings.model,
        model_note=choice.note(settings, file),
        requested=settings.strategy,
        engine={key: getattr(settings, key) for key in ENGINE},
        precision_note=slot.precision_note,
        memory=slot.memory,
        loading=slot.loading,
        load_seconds=load_seconds(transcriber),
        download=_download(slot.download),
        error=slot.error,
        capture=recorder.problem,
        level=_level(transcriber),
        rejected=_rejected(transcriber),
        fallback=_fallback(transcriber),
        shadow=shadow,
        faults=settings.faults,
        recording=recording,
        pending=transcriber.waiting,
        waiting=waiting,
        sinks=list(settings.sinks),
        version=__version__,
        pid=os.getpid(),
        uptime=round(uptime, 1),
        **_worker_fields(slot.engine),
    )


def _worker_fields(engine: Engine) -> dict[str, Any]:
    """Return the fields that describe the worker; they are empty while none runs."""
    if engine.ready is None:
        return {"strategy": "", "effective": {}, "device": "", "streaming": ""}
    return {
        "strategy": engine.candidate.precision.name,
        "effective": engine.ready.effective,
        "device": engine.ready.device,
        "streaming": engine.ready.streaming,
    }


def load_seconds(transcriber: Transcriber) -> float | None:
    """Return how long the worker in service took from its start until it was ready; None while
    there is none."""
    ready = transcriber.slot.engine.ready
    if ready is None:
        return None
    return round(ready.load_seconds, 1)


def line(state: str, transcriber: Transcriber, recorder: Recorder) -> str:
    """Return state, model, strategy, memory and problems as one line, for the service manager."""
    parts = [state.lower(), transcriber.slot.settings.model]
    engine, memory = transcriber.slot.engine, transcriber.slot.memory
    if engine.ready is not None:
        parts.append(f"{engine.candidate.precision.name} on {engine.ready.device}")
    if memory is not None and memory.process is not None:
        parts.append(f"{mib(memory.process)} {ledger.source_words(memory.source)}")
    if (fallback := _fallback(transcriber)) is not None:
        parts.append(f"fell back from {fallback.wanted}: {fallback.kind}")
    parts += [transcriber.slot.loading, transcriber.slot.error, recorder.problem]
    return ", ".join(filter(None, parts))


def _recording(dictation: Dictation) -> RecordingStatus:
    level = None
    if math.isfinite(dictation.level):
        level = round(dictation.level, 1)
    return RecordingStatus(
        id=dictation.recording.id,
        seconds=round(dictation.recording.seconds, 2),
        level=level,
        text=dictation.text,
        partial=dictation.partial_text,
        behind=round(dictation.session.behind, 1),
        draft=dictation.partial_text,
    )


def _download(download: Download | None) -> DownloadStatus | None:
    if download is None:
        return None
    return DownloadStatus(download.model, download.bytes, download.total)


def _rejected(transcriber: Transcriber) -> list[str]:
    """Return each candidate that did not run here, with its reason and what to do."""
    lines = []
    for one in transcriber.slot.engine.rejected:
        lines.append(with_hint(f"{one.candidate}: {one.detail}", one.hint))
    return lines


def _level(transcriber: Transcriber) -> LevelStatus | None:
    last = transcriber.level.last
    if last is None:
        return None
    return LevelStatus(**last)


def _fallback(transcriber: Transcriber) -> FallbackStatus | None:
    found = transcriber.slot.monitor.fallback(transcriber.slot.engine)
    if found is None:
        return None
    return FallbackStatus(**found)


def _shadow(transcriber: Transcriber) -> ShadowStatus:
    figures = transcriber.slot.shadow.figures
    return ShadowStatus(**figures, takes=figures["recordings"])
