"""The verb report: what a day of dictation came to, from the journal alone."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from asrd.cli.journal_history import Disagreement, Group, History, Spread, entries, history
from asrd.config.settings import Settings
from asrd.errors import UsageError
from asrd.precision import ledger
from asrd.terminal.output import tell, tell_document
from asrd.text import durations
from asrd.text.sizes import MIB, readable_size
from asrd.text.wording import counted

NO_ENTRIES_HINT = "the service writes them: asrd service install --now"

EVENT_LABELS = {
    "starting": "starts of the daemon",
    "loaded": "models loaded",
    "kept": "recordings kept for asrd retry",
    "promoted": "times a better precision was tried again",
    "vram-alert": "alerts on GPU memory",
    "device-lost": "times the microphone was lost",
    "sink-failed": "deliveries that failed",
    "in-clipboard": "texts left in the clipboard, as no window seemed to accept them",
    "level": "warnings of a microphone's level",
    "suspend": "suspends",
}
"""Event -> what the report calls its entries, in the order of the lines."""

FEWEST_FOR_P95 = 20
"""Figures below which the 95th percentile is the largest one, and is not shown."""


def report_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `asrd report`."""
    # So that "--since -2h" needs no equals sign.
    parser._negative_number_matcher = re.compile(r"-\d")
    about = "25h or 2d ago, today, yesterday, '2026-11-22 10:00'"
    parser.add_argument(
        "--since",
        metavar="TIME",
        default="today",
        help=f"start of the period: {about} (default: today)",
    )
    parser.add_argument(
        "--until", metavar="TIME", default="", help="end of the period, written in the same ways"
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


# -- lines
# ------------------------------------------------------------------------------------------------------------


def described(found: History) -> list[str]:
    """Return the history as a person reads it, line by line."""
    span = f"since {found.since}"
    if found.until:
        span += f" until {found.until}"
    if found.first is None:
        return [f"the journal has no entries of asrd {span}", NO_ENTRIES_HINT]
    lines = [f"recordings {span}: {found.all.recordings}", *_group_lines(found.all)]
    lines += _strategy_lines(found)
    for name, label in EVENT_LABELS.items():
        if count := found.events.get(name):
            lines.append(f"{label}: {count}")
    for step in found.fallbacks:
        times = counted(step.count, "time")
        lines.append(f"fell back from {step.before} to {step.strategy} ({step.kind}): {times}")
    for name, each in found.shadow.items():
        lines.append(_shadow_line(name, each))
    for rejected in found.rejected:
        times = counted(rejected.count, "time")
        lines.append(f"could not run {rejected.strategy}, {times}: {rejected.message}")
    return lines


def _strategy_lines(found: History) -> list[str]:
    """Return the figures of each strategy; the name alone of the only one."""
    if not found.strategies:
        return []
    if len(found.strategies) == 1:
        return [f"  strategy      {', '.join(found.strategies)}"]
    lines: list[str] = []
    for name, group in found.strategies.items():
        lines += [f"{name}: {counted(group.recordings, 'recording')}", *_group_lines(group)]
    return lines


def _shadow_line(strategy: str, found: Disagreement) -> str:
    """Return how far a strategy differs from FP32."""
    rate, interval = "no words", ""
    if found.per_100 is not None:
        rate = f"{found.per_100:.2f} words of 100"
    if found.low is not None and found.high is not None:
        interval = f" [{found.low:.2f}, {found.high:.2f}]"
    basis = f"{counted(found.recordings, 'recording')} of {counted(found.words, 'word')}"
    return f"{strategy} differs from FP32 in {rate}{interval}: {basis} transcribed twice"


def _group_lines(group: Group) -> list[str]:
    """Return the figures of a group of recordings, a line each; those without a value are left
    out."""
    rows = [
        ("outcome", _outcomes_text(group)),
        ("audio", _audio_text(group)),
        ("ran as", "; ".join(group.effective)),
        ("computing", _spread_text(group.rtf, durations.number, " of real time")),
        ("stop to text", _spread_text(group.stop_to_text_ms, _milliseconds)),
        ("memory, most", _memory_text(group)),
        ("against FP32", _delta_text(group.process_delta)),
    ]
    lines: list[str] = []
    for name, text in rows:
        if text:
            lines.append(f"  {name:<12}  {text}")
    return lines


def _outcomes_text(group: Group) -> str:
    return ", ".join(f"{count} {name}" for name, count in group.outcomes.items())


def _audio_text(group: Group) -> str:
    if not group.recordings:
        return ""
    return f"{durations.human(group.audio_seconds)}, {counted(group.words, 'word')}"


def _milliseconds(count: float) -> str:
    return durations.human(count / 1000)


def _memory_text(group: Group) -> str:
    """Return the highest figures of memory, that of the process with what it is."""
    parts: list[str] = []
    for name, count in group.memory.items():
        part = f"{name} {readable_size(count)}"
        if name == "process":
            part += _memory_kinds(group)
        parts.append(part)
    return ", ".join(parts)


def _memory_kinds(group: Group) -> str:
    """Return what the figure of the worker's process is, in brackets; "" where that is unknown."""
    words = [kind.words for kind in ledger.MEMORY_KINDS.values() if kind.key in group.memory_kinds]
    if not words:
        return ""
    return f" ({' or '.join(words)})"


def _delta_text(delta: Spread | None) -> str:
    """Return how much more or less memory the worker held than FP32; "" where that is unknown."""
    if delta is None:
        return ""
    text = f"{delta.p50 / MIB:+.0f} MiB in the worker"
    if delta.count > 1:
        text += " (median)"
    return text


def _spread_text(figures: Spread | None, text: Callable[[float], str], unit: str = "") -> str:
    """Return a figure over recordings: the one value there is, or median and maximum, and how many
    recordings there are."""
    if figures is None:
        return ""
    if figures.count == 1:
        return f"{text(figures.p50)} (n=1){unit}"
    high = ""
    if figures.count >= FEWEST_FOR_P95:
        high = f"95 % within {text(figures.p95)}, "
    return f"median {text(figures.p50)}, {high}most {text(figures.max)} (n={figures.count}){unit}"
