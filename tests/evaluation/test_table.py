"""The report as a pure function of a comparison: JSON that comes back, a table that fits, a page
that needs nothing."""

from __future__ import annotations

import json
import random
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest

from asrd.evaluation import judging
from asrd.evaluation.report import cells, documents, plots, sentences
from asrd.evaluation.report import page as report_page
from asrd.evaluation.report import table as report_table
from asrd.evaluation.results import Comparison, NoiseFloor, Run, Skipped, Speech, StrategyResult
from asrd.precision import memory
from asrd.precision.strategies import STRATEGY_TABLE, Precision
from tests.fakes.engine import MIB, ready

REFERENCES = [f"open the door number {i % 7} now please" for i in range(40)]
EVIL = '<script>alert("x")</script>'


def measured(name: str, role: str = "asked", wrong: int = 0, **changes: object) -> Run:
    texts = [text.replace("door", EVIL) if i < wrong else text for i, text in enumerate(REFERENCES)]
    one = Run(
        STRATEGY_TABLE[name],
        role,  # type: ignore[arg-type]
        ready=ready(STRATEGY_TABLE[name]),
        ledger={
            phase: memory.Memory(process=900 * MIB) for phase in ("warm-up", "steady", "after")
        },
        latency=[0.1 + i / 1000 for i in range(15)],
        round_trip=[0.11] * 15,
        texts=texts,  # type: ignore[arg-type]
        compute=4.0,
    )
    return msgspec.structs.replace(one, **changes)


def comparison(*others: Run, limit: float = 1.5, **changes: object) -> Comparison:
    runs = [measured("fp32", "baseline"), measured("fp32", "again"), *others]
    floor, bounds, rows = judging.judge(runs, REFERENCES, 400.0, limit, "en")
    result = Comparison(
        model=f"demo {EVIL}",
        device="cpu",
        versions={"asrd": "0.1.0", "torch": "2.13.0"},
        noise_floor=floor,
        criteria=bounds,
        rows=rows,
        partial=False,
        unfinished=[],
        manifest=Speech("m.jsonl", 40, 280, 400.0, "en", [Skipped(7, f"bad {EVIL}")]),
        device_name="A CPU",
        family="aed",
        parameters=10_000_000,
        repeats=15,
        started="2026-11-22T18:00:00+00:00",
        seconds=99.0,
        command="asrd compare --strategies all",
    )
    return msgspec.structs.replace(result, **changes)


@pytest.fixture(scope="module")
def full() -> Comparison:
    """Every strategy, with one of each fate."""
    fates = {
        "half-naive": measured("half-naive", wrong=20),
        "16-mixed": Run(
            STRATEGY_TABLE["16-mixed"], "asked", failure=f"unsupported: no kernel {EVIL}"
        ),
        "autocast-fp16": measured(
            "autocast-fp16", texts=REFERENCES[:3], failure="non-finite: nan at clip 4 of 40"
        ),
        "phased": measured("phased", partial_texts=list(REFERENCES), partial_latency=[0.05] * 3),
        "half": measured("half", latency=[0.3] * 15),
    }
    return comparison(
        *(fates.get(name, measured(name)) for name in STRATEGY_TABLE if name != "fp32")
    )


# -- JSON
# -------------------------------------------------------------------------------------------------------------


def test_json_comes_back_as_the_same_comparison(full: Comparison) -> None:
    assert documents.from_json(documents.to_json(full)) == full


def test_json_has_the_keys_that_scripts_rely_on(full: Comparison) -> None:
    said = json.loads(documents.to_json(full))
    assert {
        "model",
        "device",
        "versions",
        "noise_floor",
        "criteria",
        "rows",
        "partial",
        "definitions",
    } <= set(said)
    row = next(row for row in said["rows"] if row["strategy"] == "half")
    assert {
        *(
            "strategy",
            "requested",
            "effective",
            "fallback_reason",
            "weights_bytes",
            "ledger",
            "load_peak_over_weights",
        ),
        *(
            "latency_ms",
            "rtfx",
            "wer",
            "wer_delta",
            "wer_delta_ci",
            "changed_per_100",
            "utterances",
            "words",
            "errors",
        ),
        *("verdict", "passed"),
    } <= set(row)
    assert set(row["latency_ms"]) == {"p50", "p95"}
    assert {"allocated", "reserved", "process", "device"} <= set(row["ledger"]["steady"])
    assert {"name", "limit", "value", "passed"} <= set(row["criteria"][0])


def test_every_key_of_a_row_that_needs_words_has_them(full: Comparison) -> None:
    needed = {
        "wer",
        "wer_delta",
        "wer_delta_ci",
        "changed_per_100",
        "load_peak_over_weights",
        "latency_ms",
        "rtfx",
    }
    assert needed | {"verdict", "passed", "ledger", "noise_floor"} <= set(full.definitions)


# -- the table
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "width", [40, 50, 60, 66, 70, 72, 76, 80, 85, 90, 99, 100, 110, 115, 116, 119, 120, 126, 200]
)
def test_the_table_fits_its_width_and_cuts_nothing(full: Comparison, width: int) -> None:
    shown = report_table.table(msgspec.structs.replace(full, model="demo"), width)
    assert not [line for line in shown.splitlines() if len(line) > width and len(line.split()) > 1]
    assert "…" not in shown
    for name in STRATEGY_TABLE:
        assert re.search(rf"^{name}\b", shown, re.MULTILINE), name
    wide = report_table.table(msgspec.structs.replace(full, model="demo"), 300)
    numbers = [set(re.findall(r"\d+(?:\.\d+)?(?:/\d+(?:\.\d+)?)?", text)) for text in (shown, wide)]
    assert numbers[0] <= numbers[1], "no number is broken"


def lacking(*names: str, missed: str = "") -> StrategyResult:
    """Return a row of which nobody could tell some criteria, and that does not meet another."""
    row = comparison(measured("half")).rows[-1]
    criteria = [
        msgspec.structs.replace(one, value=None, passed=False) if one.name in names
        else msgspec.structs.replace(one, value=99.0, passed=False) if one.name == missed
        else msgspec.structs.replace(one, value=0.0, passed=True)
        for one in row.criteria
    ]  # fmt: skip
    return msgspec.structs.replace(row, criteria=criteria, passed=False)


CRITERIA = ("errors", "wer_delta", "memory", "latency")


@pytest.mark.parametrize("seed", range(24))
def test_what_was_not_measured_is_no_failure(seed: int) -> None:
    draw = random.Random(seed)
    names = draw.sample(CRITERIA[1:], draw.randint(1, 3))
    told = cells.outcome(lacking(*names))
    assert told == f"not measured: {', '.join(name for name in CRITERIA if name in names)}"
    assert cells.outcome(lacking(*names, missed="errors")) == "FAIL: errors"
    runs = comparison(measured("half"))
    runs = msgspec.structs.replace(runs, rows=[*runs.rows[:-1], lacking(*names)])
    for width in (60, 80, 120, 160):
        assert "FAIL" not in report_table.table(runs, width)
        assert "not measured" in " ".join(report_table.table(runs, width).split())
    page = report_page.html(runs)
    assert 'class="open"' in page
    assert "FAIL" not in page


def test_the_table_says_what_happened(full: Comparison) -> None:
    shown = " ".join(report_table.table(full, 120).split())
    assert "bfloat16 bf16; fp32" in shown
    assert "worse FAIL" in shown
    assert (
        "Noise floor, FP32 against itself: 0.00 points of WER, 0.00 words in 100 changed" in shown
    )
    assert "Words not distinguishable from FP32: tf32," in shown
    assert "int8: encoder: int8 asked, bfloat16 runs: torchao is not installed" in shown
    assert "autocast-fp16: non-finite: nan at clip 4 of 40" in shown
    assert "half: latency 2.804 × (limit ≤" in shown
    assert (
        "phased: partial results need 50.0 ms (FP32: 107/113) and change 0.00 words in 100 (WER 0.00 %)"
        in shown
    )
    assert "wer_delta ≤ 1.50 points" in shown
    assert "1 lines skipped" in shown
    assert "torch 2.13.0" in shown


def test_a_row_by_hand() -> None:
    shown = report_table.table(comparison(measured("half", wrong=14)), 140)
    line = next(line for line in shown.splitlines() if line.startswith("half"))
    cells = re.split(r"\s{2,}", line)
    assert cells[2:6] == ["20.0", "2.00", "900.0", "0"]
    assert cells[6:9] == ["107/113", "100", "5.00"], (
        "14 of 280 words are lost: the normaliser drops what stands in brackets"
    )
    assert cells[9].startswith("+5.00 [+")
    assert cells[-3:] == ["5.0", "worse", "FAIL"]


def test_words_too_few_to_tell_are_not_called_indistinguishable() -> None:
    assert "Words not distinguishable from FP32: half." in sentences.remarks(
        comparison(measured("half"))
    )
    few = comparison(measured("half"), limit=0.5)
    assert few.rows[-1].verdict == "undecided"
    assert not any("not distinguishable" in line for line in sentences.remarks(few))
    assert "no word changed" in report_table.table(few, 120), "which is what was seen"


def test_a_figure_that_nvml_did_not_give_is_told_as_such() -> None:
    hidden = {"steady": memory.Memory(process=900 * MIB, source="meminfo")}
    said = sentences.memory_sentence(comparison(measured("half", ledger=hidden)))
    assert "NVML does not see the process" in said
    assert "NVML" not in sentences.memory_sentence(comparison(measured("half")))


def test_colour_only_when_asked_for(full: Comparison) -> None:
    assert "\x1b[" not in report_table.table(full, 120)
    assert "\x1b[" in report_table.table(full, 120, colour=True)


def test_figures_have_true_signs_and_no_minus_zero() -> None:
    assert cells.figure(-0.001, 2, "+") == "+0.00"
    assert cells.figure(-0.25, 2, "+") == "−0.25"
    assert cells.figure(None) == "–"


def test_effective_names_what_differs() -> None:
    row = comparison(measured("half")).rows[-1]
    assert cells.effective(row) == "fp16; fp32 preprocessor"
    mixed = msgspec.structs.replace(
        row, effective={"encoder": "float32 as bfloat16", "decoder": "float32 as bfloat16"}
    )
    assert cells.effective(mixed) == "fp32 as bf16"


@pytest.mark.parametrize("width", [60, 120])
def test_an_empty_partial_comparison(width: int) -> None:
    nothing = comparison(
        rows=[],
        partial=True,
        unfinished=["fp32", "half"],
        criteria=[],
        noise_floor=NoiseFloor(),
    )
    shown = " ".join(report_table.table(nothing, width).split())
    assert "No strategy was measured. Interrupted: fp32, half not measured." in shown
    assert "partial" in report_page.html(nothing)


# -- the page
# ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what a browser would fetch or run, ids, and whether tags close."""

    VOID = frozenset(("meta", "br", "link", "img", "use", "path"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        for key in ("src", "href", "xlink:href", "action"):
            if key in given and not str(given[key]).startswith("#"):
                self.outside.append(f"{tag} {key}={given[key]}")
        if tag in ("script", "link", "iframe", "img") or any(key.startswith("on") for key in given):
            self.outside.append(tag)
        if "id" in given:
            self.ids.append(str(given["id"]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_whole_and_needs_nothing_from_outside(full: Comparison) -> None:
    text = report_page.html(full)
    page = Page(text)
    assert page.open == []
    assert page.outside == []
    assert len(page.ids) == len(set(page.ids))
    assert "url(http" not in text
    assert "@import" not in text


def test_the_page_escapes_what_people_and_models_wrote(full: Comparison) -> None:
    assert "<script" not in report_page.html(full)
    assert "&lt;script&gt;" in report_page.html(full)


def test_the_page_tells_everything(full: Comparison) -> None:
    said = " ".join(" ".join(Page(report_page.html(full)).words).split())
    for row in full.rows:
        assert cells.name(row) in said
        assert row.requested in said
        assert row.failure in said
        assert row.fallback_reason in said
    assert "encoder float16" in said
    assert "asrd compare --strategies all" in said
    assert "Heard otherwise than FP32: 20 of 40 utterances" in said
    assert "not distinguishable" in said
    assert "line 7: bad" in said
    for meaning in full.definitions.values():
        assert " ".join(meaning.split()) in said


def test_the_page_is_the_same_every_time(full: Comparison) -> None:
    assert report_page.html(full) == report_page.html(full)


# -- the plots
# --------------------------------------------------------------------------------------------------------


def test_plots_are_well_formed_and_take_their_colours_from_the_page(full: Comparison) -> None:
    drawn = plots.draw(full)
    assert [plot.title for plot in drawn] == [
        "Weights",
        "Memory of the worker, by phase",
        "WER against FP32",
        "Latency of a 10-s buffer",
    ]
    for plot in drawn:
        root = ET.fromstring(plot.svg.replace("xlink:href", "href"))
        assert root.get("viewBox")
        assert root.get("width") is None
        assert set(re.findall(r"#[0-9a-f]{6}", plot.svg)) <= {"#ffffff", "#000000"}
        assert "var(--ink)" in plot.svg
        names = {
            "".join(element.itertext()).strip()
            for element in root.iter()
            if element.tag.endswith("text")
        }
        assert {"half-naive", "tf32"} <= names


def test_the_bars_of_the_weights_are_as_long_as_the_weights() -> None:
    svg = plots.draw(comparison(measured("half")))[0].svg
    bars = re.findall(
        r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*"[^>]*style="fill: var\(--(?:soft|mark)\)"', svg
    )
    lengths = [float(right) - float(left) for left, right in bars]
    assert [length / lengths[0] for length in lengths] == pytest.approx([1, 1, 0.5], abs=1e-4)


def test_a_plot_without_figures_is_left_out() -> None:
    lost = Run(STRATEGY_TABLE["half"], "asked", failure="x")
    runs = comparison(lost)
    titles = [plot.title for plot in plots.draw(msgspec.structs.replace(runs, rows=runs.rows[-1:]))]
    assert titles == []


# -- components
# -------------------------------------------------------------------------------------------------------


def component(name: str, dtype: str, wrong: int = 0, error: float = 0.0) -> Run:
    down = Precision(f"{name} {dtype}", parts={"encoder": dtype})  # type: ignore[dict-item]
    weights = msgspec.structs.replace(ready(STRATEGY_TABLE["fp32"]), weights_bytes=30 * MIB)
    changes = {
        "precision": down,
        "ready": weights,
        "component": name,
        "dtype": dtype,
        "encoded": output(error),
    }
    return measured("fp32", "component", wrong, **changes)


def output(error: float) -> bytes:
    return (np.arange(1, 9, dtype=np.float32) * (1 + error)).tobytes()


@pytest.fixture
def by_component() -> Comparison:
    runs = [
        measured("fp32", "baseline", encoded=output(0.0)),
        measured("fp32", "again", encoded=output(0.0)),
    ]
    runs += [
        component("attention", "bfloat16", 0, 0.01),
        component(f"attention {EVIL}", "int8", 20, 0.034),
    ]
    runs += [component("norms", "float16", 1)]
    floor, _, rows = judging.judge(runs, REFERENCES, 400.0, 0.5)
    return comparison(rows=rows, noise_floor=floor)


@pytest.mark.parametrize("width", [72, 100, 160])
def test_components_have_a_table_of_their_own(by_component: Comparison, width: int) -> None:
    shown = report_table.table(by_component, width)
    assert max(map(len, shown.splitlines())) <= width
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    listed = "attention to bf16, saves MiB 10.0, encoder error % 1, changed [95 %] /100 0.00, delta [95 %] points no"
    first = "attention bf16 10.0 1 0.00 no word changed" if width > 72 else listed
    assert f" {first}" in " ".join(lines)
    assert "One component at a time, the rest FP32" in lines
    assert sum(line.startswith("fp32") for line in lines) == 2, "components are no strategies"


def test_what_components_cost_is_said_in_words(by_component: Comparison) -> None:
    said = sentences.summary(by_component)
    assert said.startswith("Of 3 components lowered one by one, 1 change no word; 1 change so few")
    assert said.endswith(f"1 change some beyond doubt: attention {EVIL} int8.")


def test_components_on_the_page_are_those_of_the_result(by_component: Comparison) -> None:
    page = report_page.html(by_component)
    assert EVIL not in page
    section = page[page.index("One component at a time") : page.index("<h2>Criteria")]
    assert section.count("<tr>") == 1 + 3
    assert "3.4" in section
    assert "One component at a time" not in report_page.html(comparison())
    assert documents.from_json(documents.to_json(by_component)) == by_component
    assert by_component.asked == []
