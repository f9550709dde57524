"""What compare keeps for the daemon."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from asrd import baseline
from asrd.errors import DiskError

FOUND = baseline.Known("2026-11-22T00:00:00", {"fp32": baseline.Measure(100, "rss", 5.0, 4.0, None)})


def test_the_last_comparison_of_a_model_on_a_kind_of_device_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert baseline.known("demo", "cpu") is None
    baseline.keep("demo", "cuda:1", FOUND)
    other = baseline.Known("later", {})
    baseline.keep("demo", "cpu", other)
    assert baseline.known("demo", "cuda:0") == FOUND
    assert baseline.known("demo", "cpu") == other
    assert stat.S_IMODE(baseline.path().stat().st_mode) == 0o600


@pytest.mark.parametrize("damaged", [lambda whole: whole[:20], lambda whole: whole.replace(b"fp32", b"fp\xff2")])
def test_a_damaged_file_is_nothing_and_is_replaced(
    damaged: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    baseline.keep("demo", "cpu", FOUND)
    baseline.path().write_bytes(damaged(baseline.path().read_bytes()))
    assert baseline.read() == {}
    baseline.keep("demo", "cpu", FOUND)
    assert baseline.known("demo", "cpu") == FOUND


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "asrd").write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(DiskError, match=r"the baseline cannot be kept in .*baselines\.json"):
        baseline.keep("demo", "cpu", FOUND)
