"""One comparison -> a table for a terminal, JSON, a page of HTML with plots.

Pure: the same comparison gives the same bytes; nothing is measured, judged or asked of the network
    here. rich, jinja2
and matplotlib are imported by the function that needs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec

from asrd.evaluation.results import (
    Bound,
    Comparison,
    Criterion,
    PartialFigures,
    StrategyResult,
)
from asrd.precision import ledger as precision_ledger
from asrd.scoring import Percentiles
from asrd.terminal.grids import Column, Grid, Line, rendered
from asrd.text import filenames

MIB = 1 << 20

SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""Dtypes as a narrow column spells them; the one that contains another comes first."""

WIDE = 116
"""Columns from which a terminal shows the effective dtypes in the table."""

FULL = 120
"""Columns from which growth has a column of its own, and is not below the memory."""

ROOMY = 126
"""Columns from which each delta stands on one line."""

NARROW = 90
"""Columns below which only what decides is shown."""

INSTRUMENTS = ("allocated", "reserved", "process", "device")

PHASES = ("import", "load", "load peak", "cast", "ready", "warm-up", "steady", "after")


# -- JSON
# -------------------------------------------------------------------------------------------------------------


def to_json(comparison: Comparison) -> bytes:
    """Return the comparison as indented JSON; `from_json` gives the same comparison back."""
    return msgspec.json.format(filenames.to_json(comparison), indent=2) + b"\n"


def from_json(content: bytes) -> Comparison:
    """Return the comparison that `to_json` wrote. Raises msgspec.DecodeError for anything else."""
    return msgspec.json.decode(content, type=Comparison)


# -- figures as text
# --------------------------------------------------------------------------------------------------


def figure(value: float | None, digits: int = 1, sign: str = "") -> str:
    """Return a figure with a true minus sign and no minus before a zero, or a dash where there is
    none."""
    if value is None:
        return "–"
    rounded = round(value, digits) + 0.0  # -0.0 + 0.0 is 0.0
    return f"{rounded:{sign}.{digits}f}".replace("-", "−")


def mib(value: int | None) -> str:
    return "–" if value is None else figure(value / MIB, 1 if value < 1000 * MIB else 0)


def pair(value: Percentiles | None) -> str:
    if value is None:
        return "–"
    digits = 1 if value.p50 < 100 else 0
    if value.p95 == value.p50:  # of one repeat: a percentile of one value says nothing
        return figure(value.p50, digits)
    return f"{figure(value.p50, digits)}/{figure(value.p95, digits)}"


def _interval(row: StrategyResult) -> str:
    if row.wer_delta_ci is None:
        return "no interval" if row.wer_delta is not None else ""
    low, high = row.wer_delta_ci
    return f"[{figure(low, 2, '+')}, {figure(high, 2, '+')}]"


def steady(row: StrategyResult) -> int | None:
    memory = row.ledger.get("steady")
    return None if memory is None else precision_ledger.worker_bytes(memory)


def grew(row: StrategyResult) -> str:
    """Return the MiB that a worker gained after `steady`, with their sign."""
    gained = precision_ledger.growth_bytes(row.ledger)
    return "–" if gained is None else figure(gained / MIB, 0, "+" if round(gained / MIB) else "")


def name(row: StrategyResult) -> str:
    """Return the strategy as a row is called: the FP32 runs say which they are."""
    return f"{row.strategy} again" if row.role == "again" else row.strategy


def effective(row: StrategyResult) -> str:
    """Return the effective dtypes in few words: the most common one, then the components that
    differ."""
    if not row.effective:
        return "–"
    short = {component: shorten(dtype) for component, dtype in row.effective.items()}
    common = Counter(short.values()).most_common(1)[0][0]
    rest: dict[str, list[str]] = {}
    for component, dtype in short.items():
        if dtype != common:
            rest.setdefault(dtype, []).append(component)
    return "; ".join([common, *(f"{dtype} {', '.join(parts)}" for dtype, parts in rest.items())])


def shorten(dtype: str) -> str:
    for long, short in SHORT.items():
        dtype = dtype.replace(long, short)
    return dtype


def indistinct(row: StrategyResult, comparison: Comparison) -> bool:
    """Return whether a row's words differ from FP32's by no more than FP32's own from one run to
    the next.

    Not where there are too few of them to tell.
    """
    floor = comparison.noise_floor
    if row.role == "baseline" or row.verdict == "undecided" or floor.wer is None:
        return False
    if row.wer_delta is None or row.changed_per_100 is None:
        return False
    return abs(row.wer_delta) <= floor.wer and row.changed_per_100 <= (floor.changed_per_100 or 0.0)


def outcome(row: StrategyResult) -> str:
    """Return pass, FAIL with the criteria that were not met, or "not measured" with those that
    nobody could tell.

    An FP32 baseline is called so.
    """
    if row.role == "baseline":
        return "baseline"
    if row.passed:
        return "pass"
    if failed := _failed(row):
        return f"FAIL: {', '.join(failed)}"
    return (
        f"not measured: {', '.join(c.name for c in row.criteria if c.required and c.value is None)}"
    )


def _failed(row: StrategyResult) -> list[str]:
    """Return the required criteria that a row was measured by and does not meet."""
    return [c.name for c in row.criteria if c.required and not c.passed and c.value is not None]


# -- sentences
# --------------------------------------------------------------------------------------------------------


def summary(comparison: Comparison) -> str:
    """Return the outcome in one or two sentences."""
    rows = comparison.asked
    good = [row.strategy for row in rows if row.passed]
    said = f"{len(good)} of {len(rows)} strategies meet every criterion"
    said += f": {', '.join(good)}." if good else "."
    if not rows and comparison.components:
        said = components_sentence(comparison)
    elif not rows:
        said = "No strategy was measured." if comparison.partial else "Only FP32 was asked for."
    if comparison.partial:
        said += f" Interrupted: {', '.join(comparison.unfinished) or 'the last latency check'} not measured."
    return said


def components_sentence(comparison: Comparison) -> str:
    """Return which components cost words by themselves, beyond what FP32 changes from run to
    run."""
    floor = comparison.noise_floor.changed_per_100 or 0.0
    rows = [row for row in comparison.components if row.changed_per_100 is not None]
    costly = sorted(
        (row for row in rows if (row.changed_per_100 or 0.0) > floor), key=lambda row: row.strategy
    )
    sure = [
        row.strategy for row in costly if row.changed_ci is not None and row.changed_ci[0] > floor
    ]
    perhaps = [row.strategy for row in costly if row.strategy not in sure]
    said = [
        f"Of {len(rows)} components lowered one by one, {len(rows) - len(costly)} change no word"
    ]
    said += [f"{len(perhaps)} change so few that only more speech could tell"] if perhaps else []
    said += [f"{len(sure)} change some beyond doubt: {', '.join(sure)}"] if sure else []
    return "; ".join(said) + "."


def floor_sentence(comparison: Comparison) -> str:
    """Return in words what FP32 differs from itself."""
    floor = comparison.noise_floor
    if floor.wer is None:
        return "Noise floor: not known, as FP32 did not run twice."
    changed = f"{figure(floor.changed_per_100, 2)} {comparison.manifest.units} in 100 changed"
    words = f"{figure(floor.wer, 2)} points of {comparison.metric}, {changed}"
    latency = "–" if floor.latency is None else f"{figure(100 * floor.latency)} %"
    memory = "–" if floor.memory is None else f"{figure(100 * floor.memory)} %"
    return (
        f"Noise floor, FP32 against itself: {words}, latency {latency}, memory {memory}. "
        "What lies below it is not distinguishable from FP32."
    )


def speech_sentence(comparison: Comparison) -> str:
    """Return on what was compared."""
    speech = comparison.manifest
    why = "; CER, as most letters are of a script without spaces" if speech.metric == "CER" else ""
    counted = f"{speech.words} {speech.units}"
    said = f"{speech.utterances} utterances, {counted}, {figure(speech.seconds)} s of {speech.path}"
    return said + (f", {len(speech.skipped)} lines skipped" if speech.skipped else "") + why


def device_sentence(comparison: Comparison) -> str:
    """Return model, device and versions."""
    model = f"{comparison.model} ({comparison.family}, {figure(comparison.parameters / 1e6)} M parameters)"
    known = ", ".join(f"{key} {value}" for key, value in comparison.versions.items())
    return f"{model} on {comparison.device} ({comparison.device_name}); {known}"


def memory_sentence(comparison: Comparison) -> str:
    """Return what the figures of memory are; "" where there is none."""
    said = precision_ledger.sources_sentence(
        memory for row in comparison.rows for memory in row.ledger.values()
    )
    return f"{said} grew: what it gained from steady to the end of the manifest." if said else ""


def criterion_text(bound: Bound | Criterion) -> str:
    """Return a criterion's limit with its unit."""
    if bound.name == "errors":
        return f"{bound.limit:g}"
    if bound.name == "growth":
        return f"≤ {figure(bound.limit, 0)} MiB"
    return (
        f"≤ {figure(bound.limit, 2)} points"
        if bound.name == "wer_delta"
        else f"≤ {figure(bound.limit, 3)} ×"
    )


def value_text(criterion: Criterion) -> str:
    """Return a criterion's value with its unit."""
    if criterion.value is None:
        return "not measured"
    if criterion.name == "errors":
        return f"{criterion.value:g}"
    if criterion.name == "growth":
        return f"{figure(criterion.value, 0, '+')} MiB"
    if criterion.name == "wer_delta":
        return f"{figure(criterion.value, 2, '+')} points"
    return f"{figure(criterion.value, 3)} ×"


def remarks(comparison: Comparison) -> list[str]:
    """Return a line for what cannot be told from FP32, and for each fall-back, failure, missed
    criterion and draft."""
    same = [row.strategy for row in comparison.asked if indistinct(row, comparison)]
    lines = [UNDECIDED] if any(row.verdict == "undecided" for row in comparison.strategies) else []
    lines += [f"Words not distinguishable from FP32: {', '.join(same)}."] if same else []
    lines += [components_sentence(comparison)] if comparison.asked and comparison.components else []
    base = comparison.baseline
    for row in comparison.rows:
        if row.failure:
            lines.append(f"{name(row)}: {row.failure}")
        if row.fallback_reason:
            lines.append(f"{name(row)}: {row.fallback_reason}")
        missed = [
            c
            for c in row.criteria
            if not c.passed and c.name != "errors" and (c.value is not None or not row.failure)
        ]
        if missed and row.role == "asked":
            said = ", ".join(
                f"{c.name} {value_text(c)} (limit {criterion_text(c)}{'' if c.required else ', does not decide'})"
                for c in missed
            )
            lines.append(f"{name(row)}: {said}")
        if row.draft is not None:
            latency = pair(row.draft.latency_ms)
            before = pair(base.latency_ms if base else None)
            changed, wer = changed_words(row.draft), figure(row.draft.wer, 2)
            said = f"partial results need {latency} ms (FP32: {before}) and change {changed} "
            said += f"{comparison.manifest.units} in 100 ({comparison.metric} {wer} %)"
            lines.append(f"{name(row)}: {said}")
    return lines


UNDECIDED = (
    "undecided: too little speech to tell whether the words are better, the same or worse; more clips would decide "
    "(compare without --limit, or a --manifest of your own)."
)


# -- the table
# --------------------------------------------------------------------------------------------------------


def table(comparison: Comparison, width: int = 120, colour: bool = False) -> str:
    """Return the comparison as text for a terminal of `width` columns; below NARROW only what
    decides is shown."""
    notes = [
        summary(comparison),
        floor_sentence(comparison),
        *remarks(comparison),
        "Criteria: "
        + "; ".join(f"{b.name} {criterion_text(b)}" for b in comparison.criteria if b.required),
        *filter(None, [memory_sentence(comparison)]),
        speech_sentence(comparison),
        device_sentence(comparison),
    ]
    tables = [
        _grid(comparison, width),
        *([_parts_grid(comparison, width)] if comparison.components else []),
    ]
    return rendered([*tables, *notes], width, colour)


def _columns(width: int, metric: str) -> list[tuple[str, str, Callable[[StrategyResult], str]]]:
    """Return (heading, justification, cell) of the columns that a width has room for."""
    wide = width >= WIDE
    columns: list[tuple[str, str, Callable[[StrategyResult], str]]] = [("strategy", "left", name)]
    if wide:
        columns.append(("effective", "left", effective))
    columns += [
        ("weights\nMiB", "right", lambda row: mib(row.weights_bytes)),
        ("load\npeak", "right", lambda row: figure(row.load_peak_over_weights, 2)),
        *_memory_columns(beside=width >= FULL),
        ("10 s ms\np50/p95", "right", lambda row: pair(row.latency_ms)),
        ("RTFx", "right", lambda row: figure(row.rtfx, 0 if (row.rtfx or 0) >= 100 else 1)),
        (f"{metric}\n%", "right", lambda row: figure(row.wer, 2)),
        ("delta [95 %]\npoints", "left", lambda row: delta(row, " " if width >= ROOMY else "\n")),
        ("chg\n/100", "right", lambda row: figure(row.changed_per_100, 1)),
        ("verdict", "left", lambda row: row.verdict if row.role != "baseline" else "–"),
        (
            "",
            "left",
            lambda row: outcome(row).partition(":")[0] if row.role != "baseline" else "base",
        ),
    ]
    small = (
        "strategy",
        "weights\nMiB",
        "steady\n+grew",
        "10 s ms\np50/p95",
        f"{metric}\n%",
        "delta [95 %]\npoints",
        "verdict",
        "",
    )
    return columns if width >= NARROW else [column for column in columns if column[0] in small]


def _memory_columns(beside: bool) -> list[tuple[str, str, Callable[[StrategyResult], str]]]:
    """Return the memory while it works, and what it grew by: beside it, or below where there is no
    room."""
    if beside:
        return [
            ("steady\nMiB", "right", lambda row: mib(steady(row))),
            ("grew\nMiB", "right", grew),
        ]
    return [("steady\n+grew", "right", lambda row: f"{mib(steady(row))}\n{grew(row)}")]


def delta(row: StrategyResult, joint: str) -> str:
    if row.role == "baseline" or row.wer_delta is None:
        return "–"
    if not row.changed_utterances:
        return "no word changed"
    return f"{figure(row.wer_delta, 2, '+')}{joint}{_interval(row)}"


def saved(row: StrategyResult, comparison: Comparison) -> int | None:
    """Return the bytes of weights that a row saves against FP32."""
    base = comparison.baseline
    if base is None or base.weights_bytes is None or row.weights_bytes is None:
        return None
    return base.weights_bytes - row.weights_bytes


def error_text(row: StrategyResult) -> str:
    """Return the error of the encoder's output in percent; two figures that count."""
    error = row.encoder_error
    return "–" if error is None else "0" if error == 0 else f"{100 * error:.2g}"


def changed_words(one: StrategyResult | PartialFigures, joint: str = " ") -> str:
    """Return the words changed per 100 with their interval."""
    if one.changed_per_100 == 0 or one.changed_ci is None:
        return figure(one.changed_per_100, 2)
    low, high = one.changed_ci
    return f"{figure(one.changed_per_100, 2)}{joint}[{figure(low, 2)}, {figure(high, 2)}]"


def _parts_grid(comparison: Comparison, width: int) -> Grid:
    """Return the table of what each component costs by itself."""
    joint = " " if width >= WIDE else "\n"
    columns: list[tuple[str, str, Callable[[StrategyResult], str]]] = [
        ("component", "left", lambda row: row.component),
        ("to", "left", lambda row: shorten(row.dtype)),
        ("saves\nMiB", "right", lambda row: mib(saved(row, comparison))),
        ("encoder\nerror %", "right", error_text),
        ("changed [95 %]\n/100", "left", lambda row: changed_words(row, joint)),
        ("delta [95 %]\npoints", "left", lambda row: delta(row, joint)),
        ("10 s ms\np50/p95", "right", lambda row: pair(row.latency_ms)),
    ]
    shown = columns if width >= NARROW else columns[:-1]
    lines = []
    for row, following in zip(
        comparison.components, [*comparison.components[1:], None], strict=True
    ):
        ends = following is None or following.component != row.component
        lines.append(Line([cell(row) for _, _, cell in shown], ends_section=ends))
    heads = [
        Column(heading, justify == "right", heading == "component") for heading, justify, _ in shown
    ]
    return Grid("One component at a time, the rest FP32", heads, lines)


def _grid(comparison: Comparison, width: int) -> Grid:
    columns = _columns(width, comparison.metric)
    lines = [
        Line([cell(row) for _, _, cell in columns], _style(row)) for row in comparison.strategies
    ]
    heads = [
        Column(heading, justify == "right", heading == "effective")
        for heading, justify, _ in columns
    ]
    title = f"{comparison.model} on {comparison.device}" + (
        " (partial)" if comparison.partial else ""
    )
    return Grid(title, heads, lines)


def _style(row: StrategyResult) -> str:
    """Return the colour of a row: FP32's own runs have none."""
    return {"pass": "green", "fail": "red", "open": "yellow", "base": ""}[mark(row)]


def mark(row: StrategyResult) -> str:
    """Return how a row stands, as the page's classes call it: base, pass, fail, or open where not
    all was measured."""
    if row.role != "asked":
        return "base"
    if row.passed:
        return "pass"
    return "fail" if _failed(row) else "open"
