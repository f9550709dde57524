"""The journal's entries about a worker and a recording: counts and figures, the text only where the
user wants it there.

Nothing is measured here. Runs in the daemon.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from asrd import journal, protocol
from asrd.audio import devices, levels
from asrd.config.amounts import budget
from asrd.config.settings import Settings
from asrd.dictation.recording import Dictation, DictationResult
from asrd.engine import baseline
from asrd.precision import gpus
from asrd.precision import ledger as precision_ledger
from asrd.precision.memory import Memory
from asrd.precision.plan import Candidate
from asrd.text.sizes import mib
from asrd.text.spacing import word_count
from asrd.text.wording import counted


def log_loaded(
    model: str, candidate: Candidate, ready: protocol.Ready, memory: Memory | None
) -> None:
    """Write the entry of one start of a worker."""
    message = (
        f"{model} runs as {candidate.precision.name} on {ready.device_name or ready.device}"
        f" after {ready.load_seconds:.1f} s"
    )
    level = logging.INFO
    fallback = protocol.fallback_reasons(ready.fallbacks)
    if fallback:
        message, level = f"{message}; but {fallback}", logging.WARNING
    journal.event(
        "loaded",
        message,
        level,
        strategy=candidate.precision.name,
        effective=dtypes(ready),
        fallback=fallback or None,
        model=model,
        device=ready.device,
        weights_bytes=ready.weights_bytes,
        load_seconds=ready.load_seconds,
        **ledger(memory),
    )


def log_dictation(
    dictation: Dictation,
    result: DictationResult,
    model: str,
    ready: protocol.Ready | None,
    memory: Memory | None,
) -> None:
    """Write the entry of one recording.

    Args:
        ready: what the worker in service reported of itself; None while there is none.
        memory: the last reading of its ledger.
    """
    session, settings, loudness = dictation.session, dictation.settings, dictation.loudness
    fields: dict[str, Any] = {
        "take": result.id,
        "outcome": result.outcome,
        "audio_seconds": result.seconds,
        "speech_dbfs": loudness.speech,
        "noise_dbfs": loudness.noise,
        "clipped": loudness.clipped or None,
        "words": word_count(result.text),
        "doubted": session.doubted or None,
        "stop_to_text_ms": result.stop_to_text_ms,
        "strategy": result.strategy or None,
        "device": session.device or None,
        "model": model,
        "sinks": _sink_kinds(dictation),
    }
    decoded = session.answer is not None
    if decoded and result.seconds:
        fields["rtf"] = session.compute / result.seconds
    if ready is not None:
        fields["weights_bytes"] = ready.weights_bytes
        if decoded:
            fields["effective"] = dtypes(ready)
    if settings.log_text:
        fields["text"] = result.text or None
    baseline_fields = _against_baseline(model, result.strategy, session.device, memory)
    journal.event(
        "take", _summary(dictation, result), **fields, **ledger(memory), **baseline_fields
    )


def _summary(dictation: Dictation, result: DictationResult) -> str:
    """Return the sentence of the entry of a recording."""
    session, speech = dictation.session, dictation.loudness.speech
    words = counted(word_count(result.text), "word")
    message = f"{result.outcome}: {words} from {result.seconds:.1f} s"
    if result.strategy:
        message += f" by {result.strategy}"
    if result.stop_to_text_ms is not None:
        message += f", {result.stop_to_text_ms:.0f} ms after {_end_of(dictation)}"
    if session.doubted:
        message += f", {counted(session.doubted, 'word')} not accepted"
    if speech is not None:
        message += f", speech at {speech:.0f} dBFS"
    if result.outcome == "delivered" and result.detail:
        message += f"; {result.detail}"
    if dictation.settings.log_text and result.text:
        message += f": {result.text!r}"
    return message


def _sink_kinds(dictation: Dictation) -> list[str]:
    """Return where the text goes, without the arguments of a command, which may be secret."""
    if dictation.private:
        return ["asker"]
    return [sink.partition(":")[0] for sink in dictation.settings.sinks]


def _end_of(dictation: Dictation) -> str:
    """Return what ended a recording, from which its text is timed."""
    if dictation.by_key:
        return "the key"
    if dictation.settings.source == "mic":
        return "the end of the recording"
    return "the end of the sound"


def dtypes(ready: protocol.Ready) -> str:
    """Return what runs in which dtype, as one field."""
    return " ".join(f"{component}={dtype}" for component, dtype in ready.effective.items())


MEMORY_FIGURES = ("allocated", "reserved", "process", "device")
"""Figures of a reading of the ledger that the journal gets, in bytes."""


def ledger(memory: Memory | None) -> dict[str, Any]:
    """Return a reading of the ledger as fields."""
    if memory is None:
        return {}
    fields: dict[str, Any] = {f"{name}_bytes": getattr(memory, name) for name in MEMORY_FIGURES}
    if memory.process is not None:
        fields["memory_source"] = memory.source
        fields["memory_kind"] = precision_ledger.source_key(memory.source)
    return fields


def _against_baseline(model: str, strategy: str, device: str, now: Memory | None) -> dict[str, Any]:
    """Return memory and word errors against FP32 as `asrd compare` measured it here, where it
    did."""
    measured = baseline.find(model, device) if strategy else None
    if measured is None:
        return {}
    fields: dict[str, Any] = {}
    if (ours := measured.strategies.get(strategy)) is not None:
        fields["baseline_wer_delta"] = ours.wer_delta
    fp32 = measured.strategies.get("fp32")
    if fp32 and now and fp32.source == now.source and None not in (fp32.process, now.process):
        difference = int(now.process or 0) - int(fp32.process or 0)
        fields["baseline_process_delta_bytes"] = difference
    return fields


class LevelAlert:
    """Warns once when recordings are too quiet or clip, and again only after a good one.

    Args:
        warn: shows a person a summary and a sentence.
    """

    def __init__(self, warn: Callable[[str, str], None]) -> None:
        self.last: dict[str, Any] | None = None
        """The level of the last recording of a microphone, as `asrd status --json` prints it; None
        before the first."""
        self._warn = warn
        self._warned_of = ""

    def watch(self, dictation: Dictation) -> None:
        """Look at a recording that has ended."""
        if not dictation.device or dictation.recording.seconds < levels.JUDGED_SECONDS:
            return
        found = levels.judge(dictation.loudness, spoken=True)
        self.last = msgspec.structs.asdict(found) | {"device": dictation.device}
        if found.problem and found.kind != self._warned_of:
            fix = devices.volume_fix(dictation.device, found.advised_db)
            message = f"{dictation.device} {found.problem}"
            journal.event(
                "level",
                f"{message} ({fix})",
                logging.WARNING,
                source=dictation.device,
                speech_dbfs=found.speech_dbfs,
                noise_dbfs=found.noise_dbfs,
                clipped=found.clipped,
            )
            self._warn("Microphone", f"{message}. {fix}")
        if found.speech_dbfs is not None or found.problem:
            self._warned_of = found.kind


class MemoryAlert:
    """Warns once when the worker has come above the alert level, and again only after it was
    below."""

    def __init__(self) -> None:
        self._above = False

    def watch(self, memory: Memory | None, settings: Settings) -> None:
        """Look at a reading."""
        if memory is None or memory.process is None:
            return
        used, limit = memory.process, _alert_bytes(memory, settings)
        if not limit:
            return
        if used > limit and not self._above:
            journal.event(
                "vram-alert",
                f"the worker holds {mib(used)} ({precision_ledger.source_words(memory.source)}), "
                f"above the alert level of {mib(limit)}",
                logging.WARNING,
                process_bytes=used,
                limit_bytes=limit,
            )
        self._above = used > limit


def _alert_bytes(memory: Memory, settings: Settings) -> int | None:
    """Return the alert level in bytes; none is a percentage of a card that the worker does not
    hold."""
    total = 0
    # A worker on a card holds it, so a query does not wake it.
    if memory.source != "rss" and settings.vram_alert.strip().endswith("%"):
        total = max((card.total for card in gpus.gpus()), default=0)
    return budget(settings.vram_alert, total, "vram_alert")
