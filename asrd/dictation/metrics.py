"""What a take cost, as the journal tells it: counts and figures, the text only where the user wants
it there.

Knows the fields of the entries; measures nothing itself. Runs in the daemon.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from asrd import journal, protocol
from asrd.audio import devices, levels
from asrd.config.settings import Settings, budget
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
    otherwise = protocol.fallback_reasons(ready.fallbacks)
    journal.event(
        "loaded",
        f"{model} runs as {candidate.precision.name} on {ready.device_name or ready.device}"
        f" after {ready.load_seconds:.1f} s" + (f"; but {otherwise}" if otherwise else ""),
        logging.WARNING if otherwise else logging.INFO,
        strategy=candidate.precision.name,
        effective=dtypes(ready),
        fallback=otherwise or None,
        model=model,
        device=ready.device,
        weights_bytes=ready.weights_bytes,
        load_seconds=ready.load_seconds,
        **ledger(memory),
    )


def log_dictation(
    one: Dictation,
    told: DictationResult,
    model: str,
    ready: protocol.Ready | None,
    memory: Memory | None,
) -> None:
    """Write the entry of one take.

    Args:
        ready: what the worker in service said of itself; None while there is none.
        memory: the last reading of its ledger.
    """
    heard = one.dictation.answer is not None
    words = word_count(told.text)
    speech = one.loudness.speech
    text = told.text if one.settings.log_text and told.text else None
    journal.event(
        "take",
        f"{told.outcome}: {counted(words, 'word')} from {told.seconds:.1f} s"
        + (f" by {told.strategy}" if told.strategy else "")
        + (
            f", {told.stop_to_text_ms:.0f} ms after {_moment(one)}"
            if told.stop_to_text_ms is not None
            else ""
        )
        + (
            f", {counted(one.dictation.doubted, 'word')} not believed"
            if one.dictation.doubted
            else ""
        )
        + (f", speech at {speech:.0f} dBFS" if speech is not None else "")
        + (f"; {told.detail}" if told.outcome == "delivered" and told.detail else "")
        + (f": {text!r}" if text else ""),
        take=told.take,
        outcome=told.outcome,
        audio_seconds=told.seconds,
        speech_dbfs=speech,
        noise_dbfs=one.loudness.noise,
        clipped=one.loudness.clipped or None,
        words=words,
        doubted=one.dictation.doubted or None,
        rtf=one.dictation.compute / told.seconds if heard and told.seconds else None,
        stop_to_text_ms=told.stop_to_text_ms,
        strategy=told.strategy or None,
        effective=dtypes(ready) if ready and heard else None,
        device=one.dictation.device or None,
        model=model,
        sinks=["asker"] if one.private else [sink.partition(":")[0] for sink in one.settings.sinks],
        weights_bytes=ready.weights_bytes if ready else None,
        text=text,
        **ledger(memory),
        **_against_baseline(model, told.strategy, one.dictation.device, memory),
    )


def _moment(one: Dictation) -> str:
    """Return what ended a recording, from which its text is timed."""
    if one.by_key:
        return "the key"
    return "the end of the sound" if one.settings.source != "mic" else "the end of the recording"


def dtypes(ready: protocol.Ready) -> str:
    """Return what runs in which dtype, as one field."""
    return " ".join(f"{component}={dtype}" for component, dtype in ready.effective.items())


def ledger(memory: Memory | None) -> dict[str, Any]:
    """Return a reading of the ledger as fields."""
    names = ("allocated", "reserved", "process", "device")
    found: dict[str, Any] = (
        {f"{name}_bytes": getattr(memory, name) for name in names} if memory else {}
    )
    if memory is None or memory.process is None:
        return found
    return found | {
        "memory_source": memory.source,
        "memory_kind": precision_ledger.source_key(memory.source),
    }


def _against_baseline(model: str, strategy: str, device: str, now: Memory | None) -> dict[str, Any]:
    """Return memory and word errors against FP32 as `asrd compare` measured it here, where it
    did."""
    found = baseline.find(model, device) if strategy else None
    fp32 = found.strategies.get("fp32") if found else None
    ours = found.strategies.get(strategy) if found else None
    told: dict[str, Any] = {"baseline_wer_delta": ours.wer_delta if ours else None}
    if fp32 and now and fp32.source == now.source and None not in (fp32.process, now.process):
        told["baseline_process_delta_bytes"] = int(now.process or 0) - int(fp32.process or 0)
    return told


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
        self._given = ""

    def watch(self, one: Dictation) -> None:
        """Look at a recording that has ended."""
        if not one.device or one.take.seconds < levels.JUDGED_SECONDS:
            return
        found = levels.judge(one.loudness, spoken=True)
        self.last = msgspec.structs.asdict(found) | {"device": one.device}
        if found.problem and found.kind != self._given:
            fix = devices.volume_fix(one.device, found.advised_db)
            told = f"{one.device} {found.problem}"
            fields = {
                name: getattr(found, name) for name in ("speech_dbfs", "noise_dbfs", "clipped")
            }
            journal.event("level", f"{told} ({fix})", logging.WARNING, source=one.device, **fields)
            self._warn("Microphone", f"{told}. {fix}")
        if found.speech_dbfs is not None or found.problem:
            self._given = found.kind


class Alert:
    """Warns once when the worker has come above the alert level, and again only after it was
    below."""

    def __init__(self) -> None:
        self._given = False

    def watch(self, memory: Memory | None, settings: Settings) -> None:
        """Look at a reading."""
        used = memory.process if memory else None
        on_card = (
            memory is not None and memory.source != "rss"
        )  # a worker holds it, so asking wakes none
        asks = on_card and settings.vram_alert.strip().endswith("%")
        total = max((card.total for card in gpus.gpus()), default=0) if asks else 0
        limit = budget(settings.vram_alert, total, "vram_alert")
        if not limit or memory is None or used is None:
            return
        if used > limit and not self._given:
            journal.event(
                "vram-alert",
                f"the worker holds {mib(used)} ({precision_ledger.source_words(memory.source)}), "
                f"above the alert level of {mib(limit)}",
                logging.WARNING,
                process_bytes=used,
                limit_bytes=limit,
            )
        self._given = used > limit
