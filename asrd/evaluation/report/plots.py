"""The plots of the report, as SVG that takes its colours from the page around it.

Pure: figures of one comparison in, markup out; no display, no file, no network. matplotlib is
    imported here and
nowhere else, and only when a page is asked for.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from asrd import paths
from asrd.evaluation.results import Comparison, StrategyResult
from asrd.precision import ledger
from asrd.text.sizes import MIB

COLOURS = {
    "ink": "#010203",
    "faint": "#010204",
    "mark": "#010205",
    "soft": "#010206",
    "good": "#010207",
    "bad": "#010208",
}
"""Name of a CSS variable of the page -> the stand-in that matplotlib draws with."""

WIDTH = 5.2
"""Inches of a plot: 375 CSS pixels, one telephone, at 72 to the inch, so that its text is read at
its own size."""


class Plot(NamedTuple):
    """One plot."""

    title: str
    caption: str
    svg: str


def draw(comparison: Comparison) -> list[Plot]:
    """Return the plots for which there are figures."""
    wanted: list[tuple[str, str, Callable[..., None], Callable[[StrategyResult], object]]] = [
        ("Weights", "MiB of parameters and buffers", _weights, lambda row: row.weights_bytes),
        (
            "Memory of the worker, by phase",
            _memory_caption(comparison),
            _memory,
            lambda row: _bytes(row, "steady"),
        ),
        (
            f"{comparison.metric} against FP32",
            "points; line: 95 % interval, dotted: limit, grey band: noise floor",
            _words,
            _delta,
        ),
        (
            "Latency of a 10-s buffer",
            "ms; bar: median, line to the 95th percentile",
            _latency,
            lambda row: row.latency_ms,
        ),
    ]
    plots = []
    for title, caption, paint, has in wanted:
        rows = [row for row in comparison.strategies if has(row) is not None]
        if rows:
            names = list(map(_name, rows))
            plots.append(
                Plot(
                    title,
                    caption,
                    svg(title, names, partial(paint, rows=rows, comparison=comparison)),
                )
            )
    return plots


def _memory_caption(comparison: Comparison) -> str:
    kinds = {}
    for row in comparison.strategies:
        kinds[ledger.source_words(ledger.source_of(row.ledger.get("steady")))] = True
    return f"MiB ({' or '.join(kinds)}); bar: steady state"


def _delta(row: StrategyResult) -> float | None:
    if row.role == "baseline":
        return None
    return row.wer_delta


def _name(row: StrategyResult) -> str:
    if row.role == "again":
        return f"{row.strategy} again"
    return row.strategy


def _bytes(row: StrategyResult, phase: str) -> float | None:
    memory = row.ledger.get(phase)
    if phase == "load peak":
        memory = row.load_peak
    if memory is None or (value := ledger.worker_bytes(memory)) is None:
        return None
    return value / MIB


def svg(title: str, names: Sequence[str], paint: Callable[[Any], None]) -> str:
    """Return one plot with a line per name, the first on top; `paint` draws into its axes, line n
    at height n."""
    os.environ.update(paths.library_folders())
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink, faint = COLOURS["ink"], COLOURS["faint"]
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.family": "sans-serif",
        "font.size": 10.5,
        "text.color": ink,
        "axes.edgecolor": faint,
        "axes.labelcolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "legend.frameon": False,
    }
    with mpl.rc_context(style):
        figure = Figure(
            figsize=(WIDTH, 0.27 * len(names) + 0.75), facecolor="none", layout="constrained"
        )
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(facecolor="none")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="both", length=0)
        axes.grid(axis="x", color=faint, linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        paint(axes)
        stream = io.StringIO()
        figure.savefig(
            stream,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _inline(stream.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """Return matplotlib's document as an element for a page: variables for colours, own ids, no
    fixed size."""
    body = svg[svg.index("<svg") :]
    prefix = re.sub(r"\W+", "-", title.lower()).strip("-")
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{prefix}-", body)
    for variable, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r"<metadata>.*?</metadata>", "", body, count=1, flags=re.DOTALL)
    head, _, rest = body.partition(">")
    head = re.sub(r' (width|height)="[^"]*pt"', "", head)
    return head.replace("<svg", f'<svg role="img" aria-label="{title}"', 1) + ">" + rest


def _shade(row: StrategyResult) -> str:
    if row.role != "asked":
        return COLOURS["soft"]
    return COLOURS["mark"]


def _weights(axes: Any, rows: list[StrategyResult], comparison: Comparison) -> None:
    values = [(row.weights_bytes or 0) / MIB for row in rows]
    axes.barh(range(len(rows)), values, height=0.62, color=list(map(_shade, rows)))
    for place, value in enumerate(values):
        offset = {"xytext": (4, 0), "textcoords": "offset points"}
        axes.annotate(f"{value:.1f}", (value, place), va="center_baseline", fontsize=9, **offset)
    axes.set_xlim(0, max(values) * 1.14 or 1)


def _memory(axes: Any, rows: list[StrategyResult], comparison: Comparison) -> None:
    steady = [_bytes(row, "steady") or 0 for row in rows]
    axes.barh(range(len(rows)), steady, height=0.62, color=COLOURS["soft"], alpha=0.6)
    for phase, mark in {"import": "|", "load peak": "^", "ready": "o", "after": "D"}.items():
        points = []
        for place, row in enumerate(rows):
            if (value := _bytes(row, phase)) is not None:
                points.append((value, place))
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(
                x,
                y,
                mark,
                label=phase,
                color=COLOURS["mark"],
                markersize=5,
                markeredgewidth=1.3,
                fillstyle="none",
            )
    axes.set_xlim(left=0)
    axes.figure.legend(loc="outside lower center", ncols=4, fontsize=9, handletextpad=0.1)


def _words(axes: Any, rows: list[StrategyResult], comparison: Comparison) -> None:
    floor = comparison.noise_floor.wer or 0.0
    limits = {bound.name: bound.limit for bound in comparison.criteria}
    limit = limits.get("wer_delta")
    axes.axvline(0, color=COLOURS["faint"], linewidth=1.2)
    if floor:
        axes.axvspan(-floor, floor, color=COLOURS["soft"], alpha=0.5, linewidth=0)
    if limit:
        axes.axvline(limit, color=COLOURS["bad"], linewidth=1, linestyle=":")
        axes.axvline(-limit, color=COLOURS["good"], linewidth=1, linestyle=":")
    for place, row in enumerate(rows):
        colour = {"worse": COLOURS["bad"], "better": COLOURS["good"]}.get(
            row.verdict, COLOURS["mark"]
        )
        if row.wer_delta_ci is not None:
            axes.plot(
                row.wer_delta_ci, (place, place), color=colour, linewidth=2, solid_capstyle="butt"
            )
        axes.plot(row.wer_delta, place, "o", color=colour, markersize=5)
    axes.margins(x=0.08)


def _latency(axes: Any, rows: list[StrategyResult], comparison: Comparison) -> None:
    for place, row in enumerate(rows):
        if row.latency_ms is not None:
            axes.barh(place, row.latency_ms.p50, height=0.62, color=_shade(row))
            axes.plot(
                (row.latency_ms.p50, row.latency_ms.p95),
                (place, place),
                color=COLOURS["ink"],
                linewidth=1,
            )
            axes.plot(row.latency_ms.p95, place, "|", color=COLOURS["ink"], markersize=6)
    base = comparison.baseline
    if base is not None and base.latency_ms is not None:
        axes.axvline(base.latency_ms.p50, color=COLOURS["ink"], linewidth=0.8, linestyle=":")
    axes.set_xlim(left=0)
