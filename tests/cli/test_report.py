"""The figures of a day: sums that can be checked by hand, and the real journal."""

from __future__ import annotations

import argparse
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrd.cli import journal_history, report
from asrd.config.settings import Settings
from asrd.errors import AsrdError, UsageError


def entry(name: str, at: float = 1000.0, message: str = "", **fields: Any) -> dict[str, Any]:
    written = {f"ASRD_{key.upper()}": str(value) for key, value in fields.items()}
    return {
        "__REALTIME_TIMESTAMP": str(int(at * 1e6)),
        "MESSAGE": message,
        "ASRD_EVENT": name,
        **written,
    }


def take(**fields: Any) -> dict[str, Any]:
    figures = dict(
        audio_seconds=2,
        words=5,
        rtf=0.1,
        stop_to_text_ms=100,
        strategy="bfloat16",
        outcome="delivered",
    )
    return entry("take", **(figures | fields))


def test_a_day_is_the_sum_of_its_entries() -> None:
    found = journal_history.history(
        [
            entry("starting", at=1.0),
            take(
                at=2.0,
                process_bytes=5,
                device_bytes=9,
                effective="bfloat16",
                baseline_process_delta_bytes=-4,
            ),
            take(audio_seconds=3.5, words=0, outcome="empty", rtf=0.3, process_bytes=7),
            take(
                strategy="fp32", outcome="kept", effective="float32", baseline_process_delta_bytes=2
            ),
            entry("kept"),
            entry("rejected", strategy="half", message="not finite"),
            entry("rejected", strategy="half", message="not finite"),
            entry("vram-alert", at=9.5),
        ],
        "today",
    )
    assert (found.first, found.last) == (1.0, 1000.0)
    assert (found.all.recordings, found.all.audio_seconds, found.all.words) == (3, 7.5, 10)
    assert found.all.outcomes == {"delivered": 1, "empty": 1, "kept": 1}
    assert found.all.memory == {"process": 7, "device": 9}
    assert found.all.effective == ["bfloat16", "float32"]
    assert found.all.process_delta == journal_history.Spread(2, -4.0, 2.0, 2.0)
    assert {name: group.recordings for name, group in found.strategies.items()} == {
        "bfloat16": 2,
        "fp32": 1,
    }
    assert found.strategies["bfloat16"].rtf == journal_history.Spread(2, 0.1, 0.3, 0.3)
    assert found.rejected == [journal_history.Rejection("half", "not finite", 2)]
    assert found.events == {"kept": 1, "starting": 1, "vram-alert": 1}


def test_steps_down_and_disagreement_are_summed_up() -> None:
    step = {"before": "bfloat16", "strategy": "tf32", "kind": "slow"}
    shadows = [entry("shadow", strategy="bfloat16", words=50, changed=n % 2) for n in range(20)]
    found = journal_history.history(
        [
            *(entry("demoted", **(step | {"kind": kind})) for kind in ("slow", "slow", "empty")),
            *shadows,
            entry("shadow", strategy="half", words=10, changed=3),
            entry("promoted"),
        ]
    )
    assert found.fallbacks == [
        journal_history.Step("bfloat16", "tf32", "slow", 2), journal_history.Step("bfloat16", "tf32", "empty", 1)
    ]  # fmt: skip
    both = found.shadow["bfloat16"]
    assert (both.recordings, both.changed, both.words, both.per_100) == (20, 10, 1000, 1.0)
    assert both.low is not None
    assert both.high is not None
    assert 0 < both.low < 1 < both.high < 2
    assert found.shadow["half"] == journal_history.Disagreement(1, 3, 10, 30.0, None, None), (
        "too few for an interval"
    )
    lines = report.described(found)
    assert "fell back from bfloat16 to tf32 (slow): 2 times" in lines
    assert (
        "half differs from FP32 in 30.00 words of 100: 1 recording of 10 words transcribed twice"
        in lines
    )
    assert "times a better precision was tried again: 1" in lines
    odd = journal_history.history([entry("shadow", strategy="half", words="many", changed=1)])
    assert odd.shadow["half"] == journal_history.Disagreement(0, 0, 0, None, None, None)


def test_fields_that_are_missing_or_no_figures_are_left_out_of_the_figures() -> None:
    bare = {"__REALTIME_TIMESTAMP": "1000000", "MESSAGE": None, "ASRD_EVENT": "take"}
    odd = {
        **bare,
        "ASRD_RTF": "nan",
        "ASRD_WORDS": ["1", "2"],
        "ASRD_AUDIO_SECONDS": "1e-3",
        "ASRD_PROCESS_BYTES": "",
    }
    found = journal_history.history([bare, odd, {**bare, "ASRD_EVENT": "rejected"}])
    assert found.all == journal_history.Group(
        recordings=2, audio_seconds=0.001, words=0, outcomes={"?": 2}
    )
    assert found.rejected == [journal_history.Rejection("?", "", 1)]
    assert report.described(found)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300))
def test_percentiles_are_values_that_occurred_and_cover_their_share(values: list[float]) -> None:
    found = journal_history.spread(values)
    assert found is not None
    for percent, value in ((50, found.p50), (95, found.p95)):
        assert value in values
        assert sum(each <= value for each in values) >= percent / 100 * len(values)
        assert sum(each < value for each in values) < percent / 100 * len(values)
    assert found.max == max(values)


def test_percentiles_by_hand() -> None:
    assert journal_history.spread([]) is None
    assert journal_history.spread([float(n) for n in range(1, 101)]) == journal_history.Spread(
        100, 50.0, 95.0, 100.0
    )
    assert journal_history.spread([3.0]) == journal_history.Spread(1, 3.0, 3.0, 3.0)


def test_words_for_a_day() -> None:
    mib = 1 << 20
    two = [
        take(
            audio_seconds=3718,
            process_bytes=7 * mib,
            baseline_process_delta_bytes=-3 * mib,
            effective="bfloat16",
        ),
        take(strategy="fp32", outcome="kept"),
        entry("kept"),
        entry("rejected", strategy="half", message="half: not finite"),
    ]
    lines = report.described(journal_history.history(two, "-2h", "now"))
    assert lines[0] == "recordings since -2h until now: 2"
    assert "  audio         1 h 02 min, 10 words" in lines
    assert "  stop to text  median 100 ms, most 100 ms (n=2)" in lines
    assert "  memory, most  process 7.0 MiB" in lines
    assert "  against FP32  -3 MiB in the worker" in lines
    assert "recordings kept for asrd retry: 1" in lines
    assert "could not run half, 1 time: half: not finite" in lines
    assert (
        report.described(journal_history.history([], "today"))[0]
        == "the journal has no entries of asrd since today"
    )


@pytest.mark.parametrize(
    "words", [["--since", "-2h"], ["--since=-2h"], ["--since", "-90min", "--json"]]
)
def test_a_time_may_begin_with_a_dash(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    report.report_arguments(parser)
    assert parser.parse_args(words).since in ("-2h", "-90min")


def journalctl(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a journalctl of our own on PATH: for what the real one does on other machines."""
    program = folder / "journalctl"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


def test_a_machine_without_a_journal_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AsrdError, match="journalctl is not installed"):
        list(journal_history.entries("today"))
    journalctl(tmp_path, "echo 'No journal files were opened.' >&2; exit 1", monkeypatch)
    with pytest.raises(AsrdError, match="cannot be read: No journal files"):
        list(journal_history.entries("today"))


def test_only_this_users_entries_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journalctl(tmp_path, 'echo "[\\"$*\\"]"', monkeypatch)
    ((words,),) = [list(each) for each in journal_history.entries("-2h", "now")]
    assert "--since=-2h --until=now" in words
    assert f"_UID={os.getuid()} ASRD_EVENT=take ASRD_EVENT=kept" in words


def test_a_time_that_is_none_is_the_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journalctl(tmp_path, "echo 'Failed to parse timestamp: soon' >&2; exit 1", monkeypatch)
    with pytest.raises(UsageError, match="'soon' is not a time"):
        report.report(argparse.Namespace(since="soon", until="", json=False), Settings())
    journalctl(tmp_path, f"echo '{json.dumps(take())}'", monkeypatch)
    assert report.report(argparse.Namespace(since="today", until="", json=True), Settings()) == 0
    assert json.loads(capsys.readouterr().out)["all"]["words"] == 5
