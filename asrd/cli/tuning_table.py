"""The table of what asrd tune measured: each candidate of auto, its figures and its verdict."""

from __future__ import annotations

from asrd.cli.cells import shown
from asrd.engine.tuned import KEPT_RECORDINGS, TunedStrategy, TuningResult
from asrd.evaluation.normalising import units
from asrd.precision import ledger
from asrd.terminal import listing
from asrd.text.sizes import mib_figure


def show_evidence(record: TuningResult) -> None:
    """Print by which figures `auto` chose, and why it refused a candidate."""
    cost = "differs" if record.speech == KEPT_RECORDINGS else record.metric
    narrow = listing.columns() < listing.PIPE_COLUMNS
    joint = "\n" if narrow else " "
    headings = [
        "strategy",
        units(record.metric),
        f">{cost}{joint}[95 %]",
        f">at{joint}most",
        ">changed",
        ">MiB",
        ">ms",
        ">failed",
        "",
    ]
    rows = [_row(one, joint, record.chosen) for one in record.candidates]
    if narrow and not any(one.failures for one in record.candidates):
        _drop_column(headings, rows, headings.index(">failed"))
    listing.show(headings, rows)
    listing.say("", *_remarks(record))


def _row(one: TunedStrategy, joint: str, chosen: str) -> list[str]:
    """Return a candidate's line of the table.

    Args:
        joint: what stands between a figure and its interval.
        chosen: the strategy that auto uses.
    """
    return [
        one.strategy,
        one.verdict,
        _interval(one, joint),
        _signed(one.most),
        shown(one.changed, str),
        shown(one.memory, mib_figure),
        shown(one.p50_ms, "{:.1f}".format),
        str(one.failures),
        _outcome(one, chosen),
    ]


def _drop_column(headings: list[str], rows: list[list[str]], column: int) -> None:
    for row in (headings, *rows):
        del row[column]


def _outcome(one: TunedStrategy, chosen: str) -> str:
    if one.refused:
        return "refused"
    if one.strategy == chosen:
        return "chosen"
    return "fit"


def _interval(one: TunedStrategy, joint: str) -> str:
    """Return what a candidate costs in points, with the 95 % interval where there is one."""
    if one.interval is None:
        return _signed(one.delta)
    low, high = one.interval
    return f"{_signed(one.delta)}{joint}[{_signed(low)}, {_signed(high)}]"


def _signed(points: float | None) -> str:
    return shown(points, _signed_points)


def _signed_points(points: float) -> str:
    # 0.0 is added so that a small negative figure is not shown as -0.00.
    return f"{round(points, 2) + 0.0:+.2f}"


def _remarks(record: TuningResult) -> list[str]:
    """Return why candidates were refused, and what was measured on what."""
    lines: list[str] = []
    kinds: dict[str, None] = {}
    for one in record.candidates:
        if one.refused:
            lines.append(f"{one.strategy}: {one.refused}")
        if one.source:
            kinds[ledger.source_words(one.source)] = None
    counted = units(record.metric)
    lines.append(
        f"Measured {record.measured} on {record.key.device}: {record.utterances} utterances, {record.words} {counted}, "
        f"{record.seconds / 60:.1f} minutes of {_speech(record)}; ms for a buffer of 10 s, "
        f"memory: {'; '.join(kinds) or 'none'}; "
        f"fp32's {counted} are its second run's against its first. The limit is {record.limit:.2f} points."
    )
    if record.hint:
        lines.append(record.hint)
    return lines


def _speech(record: TuningResult) -> str:
    if record.speech == KEPT_RECORDINGS:
        return "the recordings that are kept"
    return record.speech
