"""One result -> JSON, a table for a terminal, a page of HTML with plots. Pure.

The page has the style of `asrd compare`'s, and its plots are drawn by the same means.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from asrd.evaluation.report.plots import COLOURS, Plot, svg
from asrd.paths import DATA_FOLDER

from .figures import Ratio, Result

WIDE = 124
"""Columns from which a terminal shows the contenders' intervals."""

NAMES = {
    "R1": "asrd over the bare forward",
    "R2": "stop to text over NeMo's transcribe()",
    "R3": "weights, half over fp32",
    "R4": "load peak over weights",
    "R5": "CPU seconds in an idle hour",
    "R6": "ready for text over import and read",
    "R7": "eight callers over one",
    "R8": "MiB gained in 1000 utterances",
    "R9": "points of WER lost by streaming",
    "R10": "stop to text, an hour over ten seconds",
}


def to_json(result: Result) -> bytes:
    """Return the result as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"


# -- figures as text
# --------------------------------------------------------------------------------------------------


def figure(value: float | None) -> str:
    """Return a figure with three significant digits and a true minus sign, or a dash."""
    if value is None:
        return "–"
    shown = f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    return shown.replace("-", "−") if float(shown) else shown.replace("-", "")


def span(ci: tuple[float, float] | list[float] | None) -> str:
    """Return an interval, or nothing."""
    return "" if ci is None else f"[{figure(ci[0])}, {figure(ci[1])}]"


def goal(ratio: Ratio) -> str:
    """Return a goal with its direction."""
    return f"{'≥' if ratio.at_least else '≤'} {ratio.goal:g}"


def beside(name: str, ratio: Ratio) -> str:
    """Return what else decides, or explains, a ratio: in one line."""
    d = ratio.detail
    match name:
        case "R1":
            words = "same words" if d["same_words"] else "OTHER WORDS"
            return f"{figure(d['added_ms'])} ms added (goal 1), CPU {figure(d['cpu'])}, {words}{_parts(d['parts_ms'])}"
        case "R2":
            lengths = ratio.lengths if isinstance(ratio.lengths, dict) else {}
            each = "; ".join(
                f"{length} s: {figure(one['value'])} (goal {one['goal']:g}), {one['ms']:.0f} of {one['nemo_ms']:.0f} ms"
                for length, one in lengths.items()
            )
            later = d["key_after_a_rest"]
            if later is not None:
                each += f"; with the key half a second later {later['ms']:.0f} ms"
            return (
                f"{each}; {figure(d['slope_ms_per_s'])} ms/s, p99/p50 {figure(d['p99_over_p50'])}"
            )
        case "R4":
            return str(d["model"])
        case "R5":
            listening = 100 * d["recording_silence_of_a_core"]
            return f"recording silence {listening:.2f} % of a core (goal 1); over {d['idle_span_s']:.0f} s each"
        case "R6":
            recording = f"ready to record after {figure(d['record_s'])} s (goal 0.3)"
            return f"{d['text_s']:.1f} of {d['floor_s']:.1f} s; {recording}"
        case "R7":
            rates = (
                f"Jain {figure(d['jain'])} (goal 0.98), {d['rtfx_together']:.0f} times real time"
            )
            if d.get("over_nemo") is None:
                return rates
            return f"{rates}, {figure(d['over_nemo'])} (goal 1) of transcribe() of many at once ({d['nemo']})"
        case "R8":
            rises = [
                f"{key.replace('_', ' of ')} +{rise:g}"
                for key, rise in d.items()
                if _risen(key, rise)
            ]
            return ", ".join(
                [f"{d['utterances']} utterances", *(rises or ["no descriptor, no thread"])]
            )
        case "R9":
            return "; ".join(
                f"{case}: {figure(one['wer_delta'])}, {one['changed_per_100']:.1f}/100 changed"
                f" (floor {one['changed_floor_per_100']:.1f})"
                for case, one in d["cases"].items()
            )
        case "R10":
            return "; ".join(_face(face, one) for face, one in d["faces"].items())
        case _:
            return ""


def _face(face: str, one: dict[str, Any]) -> str:
    """Return how long it takes there after each length."""
    each = ", ".join(f"{length} s: {ms:.1f}" for length, ms in one["ms"].items())
    return f"{face} {figure(one['value'])} ({each} ms)"


def _parts(clips: dict[str, dict[str, float]]) -> str:
    """Return of what asrd's time for the shortest clip consists."""
    clip, ms = min(clips.items(), key=lambda item: sum(item[1].values()))
    if not ms:
        return ""
    each = f"{ms['encoder']:.1f} ms to the encoder's output, {ms['decoder']:.1f} in the decoder"
    return f"; {clip.partition(', ')[2]}: {each}, {ms['between']:.1f} between the processes"


def _risen(key: str, rise: Any) -> bool:
    return key.startswith(("fds_", "threads_")) and rise > 0


def remarks(result: Result) -> list[str]:
    """Return sentences on the run itself."""
    machine = result.machine
    said = [
        f"{machine['cpu']}, {machine['cores']} cores; {machine['threads']} threads each, asrd as many of them"
    ]
    said[0] += f" as are worth it; {machine['mode']} run"
    said[0] += f" of {machine['seconds']:.0f} s, load {machine['load']:.2f} when it began."
    if "blocks" in machine:
        said.append(
            f"{machine['dropped']} of {machine['blocks']} blocks were dropped: their canary had moved by 10 %."
        )
        if machine["noisy"]:
            said.append(
                "TOO FEW BLOCKS WERE QUIET, so all of them count: measure again on a machine that does nothing else."
            )
    if few := [name for name, ratio in result.ratios.items() if not ratio.enough]:
        said.append(f"{', '.join(few)}: too few repetitions to tell; a run without --quick does.")
    if machine.get("seeded"):
        said.append(f"A fault was seeded: {machine['seeded']}.")
    return said


# -- the table
# --------------------------------------------------------------------------------------------------------


def table(result: Result, width: int = 120, colour: bool = False) -> str:
    """Return the result as text for a terminal of `width` columns."""
    from rich.console import Console

    stream = io.StringIO()
    console = Console(
        file=stream, width=max(80, width), force_terminal=colour, legacy_windows=False
    )
    console.print(_ratios(result), highlight=False)
    for model, rows in result.contenders.items():
        console.print()
        console.print(_contenders(model, rows, width >= WIDE), highlight=False)
    console.print()
    for remark in remarks(result):
        console.print(remark, markup=False, highlight=False)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _grid(title: str, *columns: tuple[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    shape: dict[str, Any] = {
        "box": box.SIMPLE_HEAD,
        "padding": (0, 1, 0, 0),
        "pad_edge": False,
        "show_edge": False,
    }
    grid = Table(title=title, title_justify="left", title_style="bold", **shape)
    for heading, justify in columns:
        grid.add_column(heading, justify=justify, no_wrap=heading not in ("ratio", "beside it"))
    return grid


STYLES = {"met": "green", "not met": "red", "undecided": "yellow"}


def _ratios(result: Result) -> Any:
    grid = _grid(
        "asrd on the CPU", ("", "left"), ("ratio", "left"), ("value", "right"), ("95 %", "left"), ("goal", "left"),
        ("", "left"), ("beside it", "left"),
    )  # fmt: skip
    for name, ratio in result.ratios.items():
        verdict = ratio.verdict.upper() if ratio.verdict == "not met" else ratio.verdict
        cells = (
            name,
            NAMES[name],
            figure(ratio.value),
            span(ratio.ci),
            goal(ratio),
            verdict,
            beside(name, ratio),
        )
        grid.add_row(*cells, style=STYLES[ratio.verdict])
    return grid


def _contenders(model: str, rows: dict[str, Any], wide: bool) -> Any:
    every = list(next(iter(rows.values()))["ms"])
    clips = [every[0], every[-1]]
    headings = [
        "",
        "contender",
        *(f"{clip.partition(', ')[2]}: ms" for clip in clips),
        "over bare",
        "asrd over it",
    ]
    grid = _grid(
        f"{model} (in brackets: CPU)", *zip([*headings, "words"], ["left"] * 7, strict=True)
    )
    for who, row in rows.items():
        times = [f"{row['ms'][clip]:.1f} ({row['cpu_ms'][clip]:.1f})" for clip in clips]
        over = [
            " ".join(
                filter(
                    None, [figure(row[key]), span(row[f"{key}_ci"]) * wide, f"({figure(row[cpu])})"]
                )
            )
            for key, cpu in (("over_bare", "cpu_over_bare"), ("asrd_over_it", "asrd_cpu_over_it"))
        ]
        flips = f"{len(row['flips'])} clips differ" if row["flips"] else "the same"
        grid.add_row(who, row["name"], *times, *over, flips)
    return grid


# -- the page
# ---------------------------------------------------------------------------------------------------------


def html(result: Result) -> str:
    """Return one self-contained page: no script, no network, readable on a telephone and in the
    dark."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(figure=figure, span=span, goal=goal)
    template = environment.from_string(Path(__file__).with_name("page.html.j2").read_text("utf-8"))
    report = (DATA_FOLDER / "report.html.j2").read_text("utf-8")
    style = report.partition("<style>")[2].partition("</style>")[0]
    return template.render(
        style=style,
        result=result,
        names=NAMES,
        beside={name: beside(name, ratio) for name, ratio in result.ratios.items()},
        remarks=remarks(result),
        plots=plots(result),
    )


def plots(result: Result) -> list[Plot]:
    """Return the plots for which there are figures."""
    drawn: list[Plot] = []

    def add(title: str, caption: str, names: list[str], paint: Callable[[Any], None]) -> None:
        if names:
            drawn.append(Plot(title, caption, svg(title, names, paint)))

    against = {
        name: part for name, ratio in result.ratios.items() if (part := of_goal(ratio)) is not None
    }
    add(
        "Part of the goal that was used",
        "1 is the goal, left of it is better",
        list(against),
        partial(_goals, against),
    )
    for model, rows in result.contenders.items():
        long = max(
            next(iter(rows.values()))["ms"], key=lambda clip: next(iter(rows.values()))["ms"][clip]
        )
        names = [f"{who} {row['name']}" for who, row in rows.items()]
        caption = f"ms for {long}; bar: wall time, diamond: CPU time of all threads"
        add(f"The same model, {model}", caption, names, partial(_times, [*rows.values()], long))
    stops = result.ratios.get("R2")
    if stops is not None and isinstance(stops.lengths, dict):
        names = [f"{length} s" for length in stops.lengths]
        caption = "ms; bar: the daemon, diamond: NeMo's transcribe() of the whole dictation"
        add("From the key to the text", caption, names, partial(_stops, [*stops.lengths.values()]))
    growth = result.ratios.get("R8")
    if growth is not None:
        caption = "MiB of resident memory above the first reading, over utterances"
        add("Growth", caption, [""] * 6, partial(_growth, growth.detail["series"]))
    return drawn


def of_goal(ratio: Ratio) -> float | None:
    """Return which part of its goal a ratio uses up: above 1 it is missed."""
    if ratio.value is None:
        return None
    return (
        ratio.goal / ratio.value
        if ratio.at_least and ratio.value
        else max(0.0, ratio.value / ratio.goal)
    )


def _goals(parts: dict[str, float], axes: Any) -> None:
    colours = [COLOURS["bad"] if part > 1 else COLOURS["good"] for part in parts.values()]
    axes.barh(
        range(len(parts)), [min(part, 2.0) for part in parts.values()], height=0.62, color=colours
    )
    axes.axvline(1, color=COLOURS["ink"], linewidth=1, linestyle=":")
    for place, part in enumerate(parts.values()):
        _write(axes, f"{part:.2f}", min(part, 2.0), place)
    axes.set_xlim(0, 2.3)


def _times(rows: list[dict[str, Any]], clip: str, axes: Any) -> None:
    for place, row in enumerate(rows):
        ours = row["asrd_over_it"] == 1
        axes.barh(place, row["ms"][clip], height=0.62, color=COLOURS["mark" if ours else "soft"])
        axes.plot(
            row["cpu_ms"][clip], place, "D", color=COLOURS["ink"], markersize=4, fillstyle="none"
        )
        _write(axes, f"{row['ms'][clip]:.1f}", max(row["ms"][clip], row["cpu_ms"][clip]), place)
    axes.set_xlim(0, 1.15 * max(max(row["ms"][clip], row["cpu_ms"][clip]) for row in rows))


def _stops(rows: list[dict[str, Any]], axes: Any) -> None:
    for place, row in enumerate(rows):
        axes.barh(place, row["ms"], height=0.62, color=COLOURS["mark"])
        axes.plot(row["nemo_ms"], place, "D", color=COLOURS["ink"], markersize=5, fillstyle="none")
        _write(
            axes, f"{row['ms']:.0f} of {row['nemo_ms']:.0f}", max(row["ms"], row["nemo_ms"]), place
        )
    axes.set_xlim(0, 1.25 * max(max(row["ms"], row["nemo_ms"]) for row in rows))


def _growth(series: list[list[float]], axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    x, *both = zip(*series, strict=True)
    for name, values, colour in zip(("daemon", "worker"), both, ("soft", "mark"), strict=True):
        axes.plot(
            x,
            [value - values[0] for value in values],
            label=name,
            color=COLOURS[colour],
            linewidth=1.6,
        )
    heights = [value - values[0] for values in both for value in values]
    ticks = MaxNLocator(5).tick_values(min(heights), max(heights))
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(ticks[0], ticks[-1])
    axes.grid(axis="y", color=COLOURS["faint"], linewidth=0.6)
    axes.legend(loc="center right", fontsize=9)


def _write(axes: Any, text: str, value: float, place: int) -> None:
    offset = {"xytext": (6, 0), "textcoords": "offset points"}
    axes.annotate(text, (value, place), va="center_baseline", fontsize=9, **offset)
