"""Progress: sparse lines in a pipe, bars on a terminal."""

from __future__ import annotations

import contextlib
import io

import pytest

from asrd import protocol
from asrd.terminal import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO) -> str:
    with progress.RunProgress(2, stream) as shown:
        shown.begin("fp32", 1)
        shown.loading(protocol.Progress("restore", "encoder", 0.5))
        for done in range(180):
            shown.step("clips", done + 1, 180)
        shown.done()
        shown.begin("half", 2)
        shown.done("unsupported: [no] kernel")
    return stream.getvalue()


def test_lines_in_a_pipe_are_few_and_plain() -> None:
    assert run(io.StringIO()).splitlines() == [
        "fp32 (1/2) starting",
        "half (2/2) starting",
        "half (2/2): unsupported: [no] kernel",
    ]


def test_a_line_in_a_pipe_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    lines = run(io.StringIO()).splitlines()
    assert "fp32 (1/2) restore encoder" in lines
    assert "fp32 (1/2) clips 40/180" in lines


@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        ("/a/very/long/folder/" * 9 + "model.nemo", "restore model.nemo"),
        ("encoder/a", "restore encoder/a"),
        ("", "restore"),
    ],
)
def test_of_a_path_only_the_name_is_shown(
    detail: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    stream = io.StringIO()
    with progress.RunProgress(2, stream) as one:
        one.begin("fp32", 1)
        one.loading(protocol.Progress("restore", detail))
    assert stream.getvalue().splitlines()[-1] == f"fp32 (1/2) {shown}"


def test_bars_on_a_terminal_and_failures_above_them() -> None:
    shown = run(Terminal())
    assert "half (2/2): unsupported: [no] kernel" in shown
    assert "runs" in shown
    assert "starting" in shown


def arriving(count: int, note: str = "") -> protocol.Progress:
    state = protocol.Download("someone/tiny", count, 5_000_000, note)
    return protocol.Progress("download", state.text, count / 5_000_000, state)


def test_a_download_is_few_lines_in_a_pipe() -> None:
    stream = io.StringIO()
    with progress.DownloadBar(stream) as bar:
        for count in range(0, 5_000_001, 100_000):
            bar.show(arriving(count))
    assert stream.getvalue().splitlines() == [
        "asrd: downloading someone/tiny: 0.0 MB of 5.0 MB",
        "asrd: downloaded someone/tiny: 5.0 MB of 5.0 MB",
    ]


def test_a_download_that_fails_is_not_told_as_one_that_came() -> None:
    stream = io.StringIO()
    with contextlib.suppress(KeyboardInterrupt), progress.DownloadBar(stream) as bar:
        bar.show(arriving(100))
        raise KeyboardInterrupt
    assert stream.getvalue().splitlines() == [
        "asrd: downloading someone/tiny: 0.0 MB of 5.0 MB",
        "asrd: 0.0 MB of 5.0 MB of someone/tiny are kept; the next download continues from there",
    ]


def test_a_model_that_is_here_prints_nothing() -> None:
    stream = io.StringIO()
    with progress.DownloadBar(stream):
        pass
    assert stream.getvalue() == ""


def test_a_download_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress.DownloadBar(stream) as bar:
        bar.show(arriving(2_500_000, "another process is downloading it"))
    shown = stream.getvalue()
    assert "someone/tiny (another process is downloading it)" in shown
    assert "2.5/5.0 MB" in shown
