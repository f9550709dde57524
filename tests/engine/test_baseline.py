"""What compare keeps for the daemon."""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from asrd.engine import baseline
from asrd.errors import DiskError

FOUND = baseline.Baseline(
    "2026-11-22T00:00:00", {"fp32": baseline.BaselineFigures(100, "rss", 5.0, 4.0, None)}
)


def test_the_last_comparison_of_a_model_on_a_kind_of_device_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert baseline.find("demo", "cpu") is None
    baseline.keep("demo", "cuda:1", FOUND)
    other = baseline.Baseline("later", {})
    baseline.keep("demo", "cpu", other)
    assert baseline.find("demo", "cuda:0") == FOUND
    assert baseline.find("demo", "cpu") == other
    assert stat.S_IMODE(baseline.path().stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "damaged", [lambda whole: whole[:20], lambda whole: whole.replace(b"fp32", b"fp\xff2")]
)
def test_a_damaged_file_is_nothing_and_is_replaced_which_is_told_once(
    damaged: Callable[[bytes], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    baseline.keep("demo", "cpu", FOUND)
    baseline.path().write_bytes(damaged(baseline.path().read_bytes()))
    assert baseline.read() == {}
    assert caplog.text == ""
    baseline.keep("demo", "cpu", FOUND)
    baseline.keep("demo", "cpu", FOUND)
    assert baseline.find("demo", "cpu") == FOUND
    assert caplog.text.count("what was measured before cannot be read from") == 1


def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asrd").write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(DiskError, match=r"the baseline cannot be kept in .*baselines\.json"):
        baseline.keep("demo", "cpu", FOUND)


@pytest.mark.parametrize(
    ("before", "after", "stays"),
    [
        ({}, {}, False),
        ({"utterances": 180}, {"utterances": 180}, False),
        ({"utterances": 180}, {"utterances": 179}, True),
        ({"repeats": 15}, {"repeats": 1}, True),
        ({"utterances": 10}, {"utterances": 180}, False),
        ({"strategies": {"fp32": 1, "half": 1}}, {"utterances": 180}, True),
        ({"strategies": {"fp32": 1, "half": 1}, "made": "a"}, {"made": "b"}, False),
        ({"utterances": 180, "made": "a"}, {"made": "a"}, True),
        ({"utterances": 180}, {"made": "b"}, True),
        ({"utterances": 180, "card": "one"}, {"card": "other"}, False),
    ],
)
def test_what_knows_more_of_the_same_thing_outweighs(
    before: dict[str, object], after: dict[str, object], stays: bool
) -> None:
    old, new = (msgspec.structs.replace(FOUND, **change) for change in (before, after))
    assert baseline.outweighs(old, new, new.strategies) is stays


def test_a_strategy_that_was_tried_and_failed_is_known_of() -> None:
    old = msgspec.structs.replace(
        FOUND, strategies=FOUND.strategies | {"half": FOUND.strategies["fp32"]}
    )
    assert not baseline.outweighs(old, FOUND, {"fp32", "half"})


def test_a_file_of_before_is_read() -> None:
    old = b'{"measured":"then","strategies":{},"card":"one"}'
    assert msgspec.json.decode(old, type=baseline.Baseline) == baseline.Baseline("then", {}, "one")
