"""What verbs list: each name whole and once, on terminals of any width and in a pipe."""

from __future__ import annotations

import io
import json
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from asrd.cli import devices, journal_history, main, report
from asrd.config import settings
from asrd.models import architectures
from asrd.models.names import SHIPPED
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.recordings.store import RecordingStore, folder
from asrd.terminal import listing
from tests.helpers import have_own_folders

WIDTHS = (20, 40, 60, 80, 100, 200)


class Terminal(io.TextIOWrapper):
    """A terminal that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "utf-8", write_through=True)

    def isatty(self) -> bool:
        """Say yes."""
        return True

    def text(self) -> str:
        """Return what was written, without colours."""
        written: bytes = self.buffer.getvalue()  # type: ignore[attr-defined]  # it is the BytesIO from above
        return re.sub(r"\x1b\[[0-9;]*m", "", written.decode())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have_own_folders(tmp_path, monkeypatch)
    monkeypatch.setenv("HF_HOME", str(tmp_path))


def shown(width: int, monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """Return what a verb prints on a terminal so wide, or in a pipe where the width is 0."""
    stream = Terminal() if width else io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", str(width or 100))
    assert main.main(words) == 0
    if isinstance(stream, Terminal):
        return stream.text()
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]  # it is the BytesIO from above


@pytest.mark.parametrize("width", [0, *WIDTHS])
@pytest.mark.parametrize(
    ("words", "names"),
    [
        (
            ("models",),
            [*SHIPPED, *(name.partition("/")[2] for name in architectures.ARCHITECTURES)],
        ),
        (("plan", "--model", "demo"), list(STRATEGY_TABLE)),
        (("config",), list(settings.FIELDS)),
    ],
)
def test_each_name_stands_once_and_whole_at_every_width(
    width: int, words: tuple[str, ...], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(width, monkeypatch, *words)
    table = text.split("\n\n")[1 if words[0] == "plan" else 0]
    for name in names:
        found = [
            line
            for line in table.splitlines()
            if re.match(rf"(> +| *)({re.escape(name)})( |$)", line)
        ]
        named = [line for line in found if not line.startswith("    ")]
        assert len(named) == 1, (name, found)
    if width:
        long = [line for line in text.splitlines() if len(line) > width and len(line.split()) > 1]
        assert not long, "only a name that is longer than the terminal may leave it"


def made_up(seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    letters = "abc-._/é语 "
    return [
        ["*" if draw.random() < 0.2 else "", "".join(draw.choices(letters, k=draw.randint(1, 60))).strip() or "x",
         str(draw.randint(0, 10**9)), " ".join(draw.choices(["wide", "words", "of-a-kind"], k=draw.randint(0, 9)))]
        for _ in range(draw.randint(1, 12))
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("width", WIDTHS)
def test_names_of_any_kind_stay_whole(
    seed: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, stream = made_up(seed), Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", str(width or 100))
    listing.show(("", "name", ">bytes", "remarks"), rows, "name")
    text = stream.text()
    for row in rows:
        assert any(row[1] in line for line in text.splitlines()), row
        assert row[2] in text


def test_microphones_are_listed_by_their_whole_names(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "alsa_input.usb-Blue_Microphones_Yeti_Stereo_Microphone_REV8-00.analog-stereo"
    device = SimpleNamespace(
        name=name,
        through="PipeWire",
        rate=48000,
        channels=2,
        default=True,
        muted=False,
        monitor=False,
        volume_percent=None,
    )
    monkeypatch.setattr(devices, "survey", lambda: [device])
    monkeypatch.setattr(devices, "choose", lambda found, wanted: device)
    for width in (0, 40, 60, 80):
        text = shown(width, monkeypatch, "devices", "--no-level")
        assert text.count(name) == 1
        assert any(name in line for line in text.splitlines())


@pytest.mark.parametrize("width", [0, *WIDTHS])
def test_kept_recordings_are_listed_by_their_whole_names(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, spool, names = random.Random(width), RecordingStore(folder()), []
    for number in range(20):
        take = spool.begin()
        take.append(bytes(4 * draw.randrange(16_000, 99_000)))
        names.append(take.id)
        spool.keep_for_retry(
            take,
            " ".join(
                draw.choices(["command:curl-x#1 ended", "no-room", "grüße"], k=number % 7 + 1)
            ),
        )
    text = shown(width, monkeypatch, "takes")
    rows = [line for line in text.splitlines() if not line.startswith("    ")]
    assert [line.split()[0] for line in rows if line.split()[0] in names] == names
    assert len(re.findall(r"\b\d+\.\d s\b", text.replace("\n    ", " "))) == len(names)
    if width:
        assert not [
            line for line in text.splitlines() if len(line) > width and len(line.split()) > 1
        ]


def test_json_has_every_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(json.loads(shown(0, monkeypatch, "config", "--json"))) == set(settings.FIELDS)
    found = json.loads(shown(0, monkeypatch, "plan", "--model", "demo", "--json"))
    assert [line["strategy"] for line in found["strategies"]] == list(STRATEGY_TABLE)
    known = {
        entry["name"]: entry for entry in json.loads(shown(0, monkeypatch, "models", "--json"))
    }
    assert {*SHIPPED, *architectures.ARCHITECTURES} <= set(known)
    assert known["nvidia/canary-1b"]["unconfirmed"] == "vocabulary"


FIGURES = {
    (2300.0,): "2.3 s (n=1)", (29.0,): "29 ms (n=1)", (0.4,): "0.4 ms (n=1)",
    (100.0, 2300.0): "median 100 ms, most 2.3 s (n=2)",
    (1000.0,): "1.0 s (n=1)", (61_000.0,): "1 min 01 s (n=1)", (999.4,): "999 ms (n=1)",
    tuple(float(n) for n in range(1, 21)): "median 10 ms, 95 % within 19 ms, most 20 ms (n=20)",
}  # fmt: skip


@pytest.mark.parametrize(("values", "text"), FIGURES.items(), ids=lambda value: str(value)[:30])
def test_a_report_has_human_figures(values: tuple[float, ...], text: str) -> None:
    takes = [
        {
            "__REALTIME_TIMESTAMP": "1",
            "ASRD_EVENT": "take",
            "ASRD_STOP_TO_TEXT_MS": str(value),
            "ASRD_OUTCOME": "kept",
        }
        for value in values
    ]
    lines = report.described(journal_history.history(takes, "today"))
    assert f"  stop to text  {text}" in lines
    assert not re.search(r"p9\d|\d\.0 ms|1 recordings", "\n".join(lines))


@pytest.mark.parametrize("seed", range(20))
def test_figures_of_any_size_are_human(seed: int) -> None:
    draw = random.Random(seed)
    values = [10 ** draw.uniform(-2, 7) for _ in range(draw.choice((1, 2, 19, 20, 50)))]
    found = journal_history.spread(values)
    assert found is not None
    lines = report.described(journal_history.history([
        {"__REALTIME_TIMESTAMP": "1", "ASRD_EVENT": "take", "ASRD_STOP_TO_TEXT_MS": str(value),
         "ASRD_RTF": str(value / 1000), "ASRD_AUDIO_SECONDS": "1", "ASRD_WORDS": "1"}
        for value in values
    ], "today"))  # fmt: skip
    text = "\n".join(lines)
    assert f"(n={len(values)})" in text
    assert not re.search(r"\d{4,} ms|e[+-]\d|nan|inf", text)
    assert ("95 %" in text) == (len(values) >= 20)
    assert ("median" in text) == (len(values) > 1)
