"""verb: what a day of dictation came to, from the journal alone.

Knows the fields of asrd's events; reads the journal through journalctl, which also says what a time
is (systemd.time). Counts and figures only: the journal holds no text unless the user asked for
that.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from asrd.config.settings import Settings
from asrd.dictation.fallback_triggers import disagreement
from asrd.errors import AsrdError, UsageError
from asrd.hints import install
from asrd.precision import ledger
from asrd.terminal.output import tell, tell_document
from asrd.text import durations
from asrd.text.sizes import MIB, readable_size
from asrd.text.wording import counted

EVENTS = (
    *(
        "take",
        "kept",
        "rejected",
        "demoted",
        "promoted",
        "shadow",
        "loaded",
        "vram-alert",
        "device-lost",
    ),
    *("sink-failed", "in-clipboard", "level", "starting", "suspend"),
)
"""Events that count here."""


class Spread(msgspec.Struct, frozen=True):
    """A figure over many takes: nearest-rank percentiles."""

    count: int
    p50: float
    p95: float
    max: float


class Group(msgspec.Struct, frozen=True):
    """The takes of one strategy, or all of them."""

    takes: int
    audio_seconds: float
    words: int
    outcomes: dict[str, int]
    """delivered, kept, cancelled, empty -> takes."""
    rtf: Spread | None = None
    """Seconds of computing for a second of sound."""
    stop_to_text_ms: Spread | None = None
    memory: dict[str, int] = {}
    """Highest bytes seen: weights, allocated, reserved, process, device; what no instrument told is
    left out."""
    memory_kinds: list[str] = []
    """What `process` is, as the ledger of memory names it: anonymous, gpu or gpu-change, each
    once."""
    process_delta: Spread | None = None
    """Bytes of the worker against the stored FP32 baseline: below zero is saved."""
    effective: list[str] = []
    """What the strategy really ran as, each once."""


class Rejection(msgspec.Struct, frozen=True):
    """A candidate that did not stand, and how often."""

    strategy: str
    message: str
    count: int


class Step(msgspec.Struct, frozen=True):
    """From one candidate down to another, and how often."""

    before: str
    strategy: str
    kind: str
    """The trouble: slow, non-finite, empty, ..."""
    count: int


class Disagreement(msgspec.Struct, frozen=True):
    """What takes that were heard once more in FP32 came to. No word error rate: nobody knows what
    was said."""

    takes: int
    changed: int
    words: int
    """Of FP32."""
    per_100: float | None
    low: float | None
    """95 % interval of `per_100`, by bootstrap over takes; None where they are too few."""
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
    demoted: list[Step]
    shadow: dict[str, Disagreement]
    """Strategy -> how far it differs from FP32."""
    events: dict[str, int]
    """Event -> entries, for those that are no take and no rejection."""


def report_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `asrd report` takes."""
    parser._negative_number_matcher = re.compile(
        r"-\d"
    )  # so that "--since -2h" needs no equals sign
    about = "25h or 2d ago, today, yesterday, '2026-11-22 10:00'"
    parser.add_argument(
        "--since", metavar="TIME", default="today", help=f"from when on: {about} (default: today)"
    )
    parser.add_argument(
        "--until", metavar="TIME", default="", help="up to when, written in the same ways"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, in bytes and seconds")


def report(args: argparse.Namespace, settings: Settings) -> int:
    """Print what asrd has done since `args.since`; return 0."""
    since, until = _moment("--since", args.since), _moment("--until", args.until)
    found = history(entries(since, until), args.since, args.until)
    if args.json:
        tell_document(found, indent=2)
    else:
        tell("\n".join(described(found)))
    return 0


def _moment(flag: str, text: str) -> str:
    """Return a time as journalctl takes it. Raises UsageError."""
    try:
        return durations.moment(text)
    except ValueError as error:
        raise UsageError(
            f"{flag} {text} has no unit", f"write {flag} {text}h, {text}min or {text}d"
        ) from error


# -- the journal
# ------------------------------------------------------------------------------------------------------


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
    words += [f"--until={until}"] if until else []
    # _UID comes from the kernel: no other user's entries count, and --user would miss a journal
    # that is not split.
    words += [f"_UID={os.getuid()}", *(f"ASRD_EVENT={name}" for name in EVENTS)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        for line in process.stdout:
            yield msgspec.json.decode(line)
        complaint = process.stderr.read().decode(errors="replace").strip()
    if process.returncode and "parse timestamp" in complaint:
        word = complaint.rpartition(":")[2].strip()
        raise UsageError(
            f"{word!r} is no time", "write today, yesterday, 25h, 2d or '2026-11-22 10:00'"
        )
    if process.returncode and complaint:
        raise AsrdError(f"the journal cannot be read: {complaint}")


def history(found: Iterable[dict[str, Any]], since: str = "", until: str = "") -> History:
    """Sum up journal entries: dictionaries of strings, as journalctl's JSON has them."""
    takes: list[dict[str, Any]] = []
    rejected: Counter[tuple[str, str]] = Counter()
    demoted: Counter[tuple[str, str, str]] = Counter()
    shadows: list[dict[str, Any]] = []
    events: Counter[str] = Counter()
    times: list[float] = []
    for entry in found:
        times.append(int(entry["__REALTIME_TIMESTAMP"]) / 1e6)
        name = _text(entry, "EVENT")
        if name == "take":
            takes.append(entry)
        elif name == "rejected":
            rejected[_text(entry, "STRATEGY") or "?", str(entry.get("MESSAGE") or "")] += 1
        elif name == "demoted":
            demoted[_text(entry, "BEFORE"), _text(entry, "STRATEGY"), _text(entry, "KIND")] += 1
        elif name == "shadow":
            shadows.append(entry)
        else:
            events[name] += 1
    strategies = sorted({_strategy(take) for take in takes})
    return History(
        since=since,
        until=until,
        first=min(times, default=None),
        last=max(times, default=None),
        all=_group(takes),
        strategies={
            name: _group([take for take in takes if _strategy(take) == name]) for name in strategies
        },
        rejected=[
            Rejection(strategy, message, count)
            for (strategy, message), count in rejected.most_common()
        ],
        demoted=[Step(*step, count) for step, count in demoted.most_common()],
        shadow={
            name: _disagreement([one for one in shadows if _strategy(one) == name])
            for name in sorted({_strategy(one) for one in shadows})
        },
        events=dict(sorted(events.items())),
    )


def _disagreement(shadows: list[dict[str, Any]]) -> Disagreement:
    counts = [(round(changed), round(of)) for changed, of in _pairs(shadows, "CHANGED", "WORDS")]
    changed, of = sum(changed for changed, _ in counts), sum(of for _, of in counts)
    low, high = disagreement(counts) or (None, None)
    return Disagreement(len(counts), changed, of, 100 * changed / of if of else None, low, high)


def _pairs(entries: list[dict[str, Any]], one: str, other: str) -> Iterator[tuple[float, float]]:
    """Yield two figures of each entry that has both."""
    for entry in entries:
        if len(both := _figures([entry], one) + _figures([entry], other)) == 2:
            yield both[0], both[1]


def _group(takes: list[dict[str, Any]]) -> Group:
    memory = {name: _figures(takes, f"{name.upper()}_BYTES") for name in MEMORY}
    return Group(
        takes=len(takes),
        audio_seconds=round(sum(_figures(takes, "AUDIO_SECONDS")), 3),
        words=round(sum(_figures(takes, "WORDS"))),
        outcomes=dict(sorted(Counter(_text(take, "OUTCOME") or "?" for take in takes).items())),
        rtf=spread(_figures(takes, "RTF")),
        stop_to_text_ms=spread(_figures(takes, "STOP_TO_TEXT_MS")),
        memory={name: round(max(values)) for name, values in memory.items() if values},
        memory_kinds=sorted(
            filter(None, {ledger.source_key(_text(take, "MEMORY_SOURCE")) for take in takes})
        ),
        process_delta=spread(_figures(takes, "BASELINE_PROCESS_DELTA_BYTES")),
        effective=sorted({_text(take, "EFFECTIVE") for take in takes} - {""}),
    )


MEMORY = ("weights", "allocated", "reserved", "process", "device")


def spread(values: list[float]) -> Spread | None:
    """Return the nearest-rank percentiles of some figures; None of none."""
    if not values:
        return None
    ordered = sorted(values)

    def rank(percent: int) -> float:
        return ordered[-(-percent * len(ordered) // 100) - 1]

    return Spread(len(ordered), rank(50), rank(95), ordered[-1])


def _figures(takes: list[dict[str, Any]], name: str) -> list[float]:
    return [
        float(text) for take in takes if (text := _text(take, name)) and _NUMBER.fullmatch(text)
    ]


_NUMBER = re.compile(r"-?\d+(\.\d*)?(e[+-]?\d+)?")


def _text(entry: dict[str, Any], name: str) -> str:
    """Return a field as text; "" where it is missing or, given twice or in bytes, no text."""
    value = entry.get(f"ASRD_{name}")
    return value if isinstance(value, str) else ""


def _strategy(take: dict[str, Any]) -> str:
    return _text(take, "STRATEGY") or "none"


# -- words
# ------------------------------------------------------------------------------------------------------------


def described(found: History) -> list[str]:
    """Return the history as a person reads it, line by line."""
    span = f"since {found.since}" + (f" until {found.until}" if found.until else "")
    if found.first is None:
        return [f"the journal has no entries of asrd {span}", NOTHING]
    lines = [f"recordings {span}: {found.all.takes}", *_group_lines(found.all)]
    if len(found.strategies) > 1:
        for name, group in found.strategies.items():
            lines += [f"{name}: {counted(group.takes, 'recording')}", *_group_lines(group)]
    elif found.strategies:
        lines.append(f"  strategy      {', '.join(found.strategies)}")
    for name, about in ABOUT.items():
        if count := found.events.get(name):
            lines.append(f"{about}: {count}")
    lines += [
        f"fell back from {each.before} to {each.strategy} ({each.kind}): {counted(each.count, 'time')}"
        for each in found.demoted
    ]
    lines += [_shadow_line(name, each) for name, each in found.shadow.items()]
    lines += [
        f"could not run {each.strategy}, {counted(each.count, 'time')}: {each.message}"
        for each in found.rejected
    ]
    return lines


NOTHING = "the service writes them: asrd service install --now"


ABOUT = {
    "starting": "starts of the daemon",
    "loaded": "models loaded",
    "kept": "recordings kept for asrd retry",
    "promoted": "times a better precision was tried again",
    "vram-alert": "alerts on GPU memory",
    "device-lost": "times the microphone was lost",
    "sink-failed": "deliveries that failed",
    "in-clipboard": "texts left in the clipboard, as no window was seen to accept them",
    "level": "warnings of a microphone's level",
    "suspend": "suspends",
}


def _shadow_line(strategy: str, found: Disagreement) -> str:
    rate = "no words" if found.per_100 is None else f"{found.per_100:.2f} words of 100"
    both = (
        "" if found.low is None or found.high is None else f" [{found.low:.2f}, {found.high:.2f}]"
    )
    of = f"{counted(found.takes, 'recording')} of {counted(found.words, 'word')}"
    return f"{strategy} differs from FP32 in {rate}{both}: {of} transcribed twice"


def _group_lines(group: Group) -> list[str]:
    lines = []
    if group.takes:
        outcomes = ", ".join(f"{count} {name}" for name, count in group.outcomes.items())
        lines.append(f"  outcome       {outcomes}")
        lines.append(
            f"  audio         {durations.human(group.audio_seconds)}, {counted(group.words, 'word')}"
        )
    if group.effective:
        lines.append(f"  ran as        {'; '.join(group.effective)}")
    if group.rtf:
        lines.append(f"  computing     {_spread(group.rtf, durations.number)} of real time")
    if group.stop_to_text_ms:
        lines.append(
            f"  stop to text  {_spread(group.stop_to_text_ms, lambda ms: durations.human(ms / 1000))}"
        )
    if group.memory:
        held = ", ".join(
            f"{name} {readable_size(value)}{_kinds(name, group)}"
            for name, value in group.memory.items()
        )
        lines.append(f"  memory, most  {held}")
    if group.process_delta:
        about = "" if group.process_delta.count == 1 else " (median)"
        lines.append(
            f"  against FP32  {group.process_delta.p50 / MIB:+.0f} MiB in the worker{about}"
        )
    return lines


def _kinds(name: str, group: Group) -> str:
    """Return what a figure of the worker's process is, behind it."""
    words = [kind.words for kind in ledger.MEMORY_KINDS.values() if kind.key in group.memory_kinds]
    return f" ({' or '.join(words)})" if name == "process" and words else ""


FEWEST_FOR_P95 = 20
"""Figures below which the 95th percentile is the largest one, and is not named."""


def _spread(figures: Spread, text: Callable[[float], str]) -> str:
    """Return a figure over recordings: the one value there is, or what the many come to, and how
    many."""
    if figures.count == 1:
        return f"{text(figures.p50)} (n=1)"
    high = f"95 % within {text(figures.p95)}, " if figures.count >= FEWEST_FOR_P95 else ""
    return f"median {text(figures.p50)}, {high}most {text(figures.max)} (n={figures.count})"
