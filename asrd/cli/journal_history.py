"""What the journal holds of asrd: its entries, and the figures of a day that they come to.

Knows the fields of asrd's events; reads the journal through journalctl. Counts and figures only:
the journal holds no text unless the user asked for that.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from asrd.dictation.fallback_triggers import disagreement
from asrd.errors import AsrdError, UsageError
from asrd.hints import install
from asrd.precision import ledger

Summary = TypeVar("Summary")

Entry = dict[str, Any]
"""An entry of the journal: field -> text, as journalctl's JSON has it."""

EVENTS = (
    "take",
    "kept",
    "rejected",
    "demoted",
    "promoted",
    "shadow",
    "loaded",
    "vram-alert",
    "device-lost",
    "sink-failed",
    "in-clipboard",
    "level",
    "starting",
    "suspend",
)
"""Events that the history counts."""


MEMORY_FIGURES = ("weights", "allocated", "reserved", "process", "device")
"""Figures of memory that an entry may have; field ASRD_<NAME>_BYTES."""

NUMBER = re.compile(r"-?\d+(\.\d*)?(e[+-]?\d+)?")


class Spread(msgspec.Struct, frozen=True):
    """A figure over many recordings: nearest-rank percentiles."""

    count: int
    p50: float
    p95: float
    max: float


class Group(msgspec.Struct, frozen=True):
    """The recordings of one strategy, or all of them."""

    recordings: int = msgspec.field(name="takes")
    audio_seconds: float
    words: int
    outcomes: dict[str, int]
    """delivered, kept, cancelled, empty -> recordings."""
    rtf: Spread | None = None
    """Seconds of computing for a second of audio."""
    stop_to_text_ms: Spread | None = None
    memory: dict[str, int] = {}
    """Highest bytes seen: weights, allocated, reserved, process, device; what no instrument read is
    left out."""
    memory_kinds: list[str] = []
    """What `process` is, as the ledger of memory names it: anonymous, gpu or gpu-change, each
    once."""
    process_delta: Spread | None = None
    """Bytes of the worker against the stored FP32 baseline; below zero is saved."""
    effective: list[str] = []
    """What the strategy really ran as, each once."""


class Rejection(msgspec.Struct, frozen=True):
    """A candidate that could not run, and how often."""

    strategy: str
    message: str
    count: int


class Step(msgspec.Struct, frozen=True):
    """A fallback from one candidate to another, and how often."""

    before: str
    strategy: str
    kind: str
    """The problem: slow, non-finite, empty, ..."""
    count: int


class Disagreement(msgspec.Struct, frozen=True):
    """How far recordings differ from their second transcription in FP32.

    There are no reference texts, so this is no word error rate.
    """

    recordings: int = msgspec.field(name="takes")
    changed: int
    words: int
    """Words of FP32."""
    per_100: float | None
    low: float | None
    """95 % interval of `per_100`, by bootstrap over recordings; None where they are too few."""
    high: float | None


class History(msgspec.Struct, frozen=True):
    """What the journal holds of asrd since a time."""

    since: str
    until: str
    first: float | None
    """Time of the first entry that counts, in seconds since 1970."""
    last: float | None
    all: Group
    strategies: dict[str, Group]
    rejected: list[Rejection]
    fallbacks: list[Step] = msgspec.field(name="demoted")
    shadow: dict[str, Disagreement]
    """Strategy -> how far it differs from FP32."""
    events: dict[str, int]
    """Event -> entries, for those that are no recording and no rejection."""


def entries(since: str, until: str = "") -> Iterator[dict[str, Any]]:
    """Yield the entries of this user's asrd, oldest first.

    Raises:
        UsageError: a time that systemd does not understand.
        AsrdError: no journal can be read here.
    """
    program = shutil.which("journalctl")
    if program is None:
        raise AsrdError(
            "journalctl is not installed, so there is no journal to report from", install("systemd")
        )
    words = [program, "--quiet", "--no-pager", "--all", "--output=json", f"--since={since}"]
    if until:
        words.append(f"--until={until}")
    # _UID comes from the kernel: no other user's entries count, and --user would miss a journal
    # that is not split.
    words.append(f"_UID={os.getuid()}")
    for name in EVENTS:
        words.append(f"ASRD_EVENT={name}")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        for line in process.stdout:
            yield msgspec.json.decode(line)
        complaint = process.stderr.read().decode(errors="replace").strip()
    if process.returncode and "parse timestamp" in complaint:
        word = complaint.rpartition(":")[2].strip()
        raise UsageError(
            f"{word!r} is not a time", "write today, yesterday, 25h, 2d or '2026-11-22 10:00'"
        )
    if process.returncode and complaint:
        raise AsrdError(f"the journal cannot be read: {complaint}")


def history(found: Iterable[Entry], since: str = "", until: str = "") -> History:
    """Sum up journal entries."""
    times: list[float] = []
    by_event: dict[str, list[Entry]] = {}
    for entry in found:
        times.append(int(entry["__REALTIME_TIMESTAMP"]) / 1e6)
        by_event.setdefault(_text(entry, "EVENT"), []).append(entry)
    recordings = by_event.pop("take", [])
    rejected = by_event.pop("rejected", [])
    fallbacks = by_event.pop("demoted", [])
    shadow = by_event.pop("shadow", [])
    return History(
        since=since,
        until=until,
        first=min(times, default=None),
        last=max(times, default=None),
        all=_group(recordings),
        strategies=_by_strategy(recordings, _group),
        rejected=_rejections(rejected),
        fallbacks=_steps(fallbacks),
        shadow=_by_strategy(shadow, _disagreement),
        events={name: len(by_event[name]) for name in sorted(by_event)},
    )


def _by_strategy(
    entries: list[Entry], summed: Callable[[list[Entry]], Summary]
) -> dict[str, Summary]:
    """Return strategy -> the summary of its entries, in the order of the names."""
    parts: dict[str, list[Entry]] = {}
    for entry in entries:
        parts.setdefault(_text(entry, "STRATEGY") or "none", []).append(entry)
    return {name: summed(part) for name, part in sorted(parts.items())}


def _rejections(entries: list[Entry]) -> list[Rejection]:
    counts: Counter[tuple[str, str]] = Counter()
    for entry in entries:
        counts[_text(entry, "STRATEGY") or "?", str(entry.get("MESSAGE") or "")] += 1
    return [Rejection(*rejected, count) for rejected, count in counts.most_common()]


def _steps(entries: list[Entry]) -> list[Step]:
    counts: Counter[tuple[str, str, str]] = Counter()
    for entry in entries:
        counts[_text(entry, "BEFORE"), _text(entry, "STRATEGY"), _text(entry, "KIND")] += 1
    return [Step(*step, count) for step, count in counts.most_common()]


def _disagreement(entries: list[Entry]) -> Disagreement:
    """Return how far the recordings of some entries differ from FP32; entries without both counts
    are left out."""
    counts: list[tuple[int, int]] = []
    all_changed = all_words = 0
    for entry in entries:
        changed, words = _figure(entry, "CHANGED"), _figure(entry, "WORDS")
        if changed is not None and words is not None:
            counts.append((round(changed), round(words)))
            all_changed += round(changed)
            all_words += round(words)
    low, high = disagreement(counts) or (None, None)
    per_100 = None
    if all_words:
        per_100 = 100 * all_changed / all_words
    return Disagreement(len(counts), all_changed, all_words, per_100, low, high)


def _group(recordings: list[Entry]) -> Group:
    return Group(
        recordings=len(recordings),
        audio_seconds=round(sum(_figures(recordings, "AUDIO_SECONDS")), 3),
        words=round(sum(_figures(recordings, "WORDS"))),
        outcomes=_outcomes(recordings),
        rtf=spread(_figures(recordings, "RTF")),
        stop_to_text_ms=spread(_figures(recordings, "STOP_TO_TEXT_MS")),
        memory=_highest_memory(recordings),
        memory_kinds=sorted(
            filter(None, map(ledger.source_key, _texts(recordings, "MEMORY_SOURCE")))
        ),
        process_delta=spread(_figures(recordings, "BASELINE_PROCESS_DELTA_BYTES")),
        effective=sorted(_texts(recordings, "EFFECTIVE") - {""}),
    )


def _outcomes(recordings: list[Entry]) -> dict[str, int]:
    """Return outcome -> recordings, in the order of the outcomes."""
    counts = Counter(_text(entry, "OUTCOME") or "?" for entry in recordings)
    return dict(sorted(counts.items()))


def _highest_memory(recordings: list[Entry]) -> dict[str, int]:
    """Return figure of memory -> the highest bytes seen, for figures that some recording has."""
    highest: dict[str, int] = {}
    for name in MEMORY_FIGURES:
        values = _figures(recordings, f"{name.upper()}_BYTES")
        if values:
            highest[name] = round(max(values))
    return highest


def spread(values: list[float]) -> Spread | None:
    """Return the nearest-rank percentiles of some figures; None of none."""
    if not values:
        return None
    ordered = sorted(values)

    def rank(percent: int) -> float:
        return ordered[-(-percent * len(ordered) // 100) - 1]

    return Spread(len(ordered), rank(50), rank(95), ordered[-1])


def _figures(entries: list[Entry], name: str) -> list[float]:
    """Return a field's figure of each entry that has one."""
    found: list[float] = []
    for entry in entries:
        figure = _figure(entry, name)
        if figure is not None:
            found.append(figure)
    return found


def _figure(entry: Entry, name: str) -> float | None:
    """Return a field as a number; None where it is missing or no number."""
    text = _text(entry, name)
    if not NUMBER.fullmatch(text):
        return None
    return float(text)


def _texts(entries: list[Entry], name: str) -> set[str]:
    return {_text(entry, name) for entry in entries}


def _text(entry: Entry, name: str) -> str:
    """Return a field as text; "" where it is missing or, given twice or in bytes, no text."""
    value = entry.get(f"ASRD_{name}")
    if not isinstance(value, str):
        return ""
    return value
