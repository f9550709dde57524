"""Spans and times as people write them, in settings, in `asrd start` and in `asrd report`."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from asrd.cli import main
from asrd.config import amounts, loading
from asrd.text import durations

SPANS = {
    "30": 30.0, "0": 0.0, "0.5": 0.5, "1,5": 1.5, ".5": 0.5, "30m": 30.0, "30 min": 30.0, "30 minutes": 30.0,
    "30 Min.": 30.0, "1h": 60.0, "1 hour": 60.0, "1h30m": 90.0, "1 h 30 min": 90.0, "90 min": 90.0, "2d": 2880.0,
    "2 days": 2880.0, "1w": 10080.0, "90s": 1.5, "90 sec": 1.5, "600 ms": 0.01, " 5 M ": 5.0, "1.5 hours": 90.0,
    "2HRS": 120.0, "1e3": 1000.0, "2.5e+01": 25.0,
}  # fmt: skip
"""What is written where minutes are meant -> minutes."""

NO_SPANS = ["", "soon", "1h 30", "h", "-5", "5 parsecs", "nan", "inf", "1e3 min", "1..5", "ten minutes", "5 min ago",
            "1h-30m", "9" * 30, "5 min!", "½ h", "1:30", "+5", "5%"]  # fmt: skip


@pytest.mark.parametrize(("text", "minutes"), SPANS.items())
def test_a_span_may_have_a_unit_in_every_setting_that_is_one(
    text: str,
    minutes: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for variable in ("ASRD_IDLE", "ASRD_PROMOTE_AFTER"):
        monkeypatch.setenv(variable, text)
    assert main.main(["config", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["promote_after"]["value"] == pytest.approx(minutes)
    assert amounts.idle_seconds(found["idle"]["value"]) == pytest.approx(60 * minutes)


@pytest.mark.parametrize("text", NO_SPANS[1:])
def test_what_is_no_span_is_refused_in_one_sentence(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="not a span"):
        durations.parse(text, "min")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("ASRD_IDLE", text)
    assert main.main(["config"]) == 78
    assert len(capsys.readouterr().err.splitlines()) == 2
    monkeypatch.delenv("ASRD_IDLE")
    assert main.main(["start", f"--seconds={text}"]) == 2
    assert "not a span of time" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(20))
def test_a_span_is_the_sum_of_its_parts(seed: int) -> None:
    draw = random.Random(seed)
    chosen = draw.sample(sorted(durations.SPELLINGS), draw.randint(1, 4))
    parts = [(draw.randint(1, 60), unit, draw.choice(durations.SPELLINGS[unit])) for unit in chosen]
    text = draw.choice(("", " ")).join(
        f"{count}{draw.choice(('', ' '))}{spelling}" for count, _, spelling in parts
    )
    expected = sum(count * durations.SECONDS[unit] for count, unit, _ in parts)
    assert durations.parse(text, "s") == pytest.approx(expected), text


UNITS = [
    ("window", "8 s", 8), ("pre_roll", "1.5s", 1.5), ("draft_every", "250 ms", 0.25), ("demote_empty", "1 min", 60),
    ("type_delay", "5ms", 5), ("promote_after", "1h", 60), ("takes_days", "2 weeks", 14), ("takes_mb", "1 GB", 1000),
    ("demote_slower", "15 %", 15), ("max_wer_delta", "0,3", 0.3),
]  # fmt: skip


@pytest.mark.parametrize(("key", "text", "value"), UNITS)
def test_each_setting_counts_in_its_own_unit(
    key: str, text: str, value: float, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text(f'{key} = "{text}"')
    assert getattr(
        loading.load(tmp_path / "c.toml", environment={}).settings, key
    ) == pytest.approx(value)


MOMENTS = {
    "25h": "-90000.000s", "-25h": "-90000.000s", "90 min": "-5400.000s", "2d": "-172800.000s", "1w": "-604800.000s",
    "2 days ago": "-172800.000s", "1h30m": "-5400.000s", "today": "today", "Yesterday": "yesterday", "now": "now",
    "2026-11-22": "2026-11-22 00:00:00", "2026-11-22 10:00": "2026-11-22 10:00:00", "": "",
    "2026-11-22T10:00": "2026-11-22 10:00:00", "2026-11-22T10:00:05": "2026-11-22 10:00:05",
    "2026-11-22T10:00:00Z": "@1795341600.000000", "2026-11-22T12:00:00+02:00": "@1795341600.000000",
    "20261122": "2026-11-22 00:00:00", "10:00": "10:00", "yesterday 10:00": "yesterday 10:00", "-2h": "-7200.000s",
    "1 month": "-1month", "2 months ago": "-2month", "6Months": "-6month", "1 year ago": "-1year", "1y": "-1year",
    "2 years": "-2year", "an hour ago": "-3600.000s", "a day": "-86400.000s", "An hour": "-3600.000s",
    "a month ago": "-1month", "a week ago": "-604800.000s", "1.5h": "-5400.000s", "25 hours ago": "-90000.000s",
}  # fmt: skip
"""What is written behind --since -> what journalctl is asked."""


@pytest.mark.parametrize(("text", "asked"), MOMENTS.items())
def test_a_time_is_a_span_ago_a_word_or_a_date(text: str, asked: str) -> None:
    assert durations.moment(text) == asked


@pytest.mark.parametrize("text", ["25", "7", "-3"])
def test_a_number_without_a_unit_is_no_time(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["report", f"--since={text}"]) == 2
    said = capsys.readouterr().err
    assert "has no unit" in said
    assert "h," in said


HUMAN = {
    0.0: "0 ms", 0.0004: "0.4 ms", 0.029: "29 ms", 0.1234: "123 ms", 0.99: "990 ms", 1.0: "1.0 s", 2.3: "2.3 s",
    59.9: "59.9 s", 60.0: "1 min 00 s", 59.97: "1 min 00 s", 245.0: "4 min 05 s", 3600.0: "1 h 00 min",
    3718.0: "1 h 01 min", 12_000.0: "3 h 20 min", 172_800.0: "2 d 0 h", 200_000.0: "2 d 7 h",
}  # fmt: skip


@pytest.mark.parametrize(("seconds", "text"), HUMAN.items())
def test_a_span_is_printed_as_a_person_says_it(seconds: float, text: str) -> None:
    assert durations.human(seconds) == text
