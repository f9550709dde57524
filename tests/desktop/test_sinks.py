"""Text out: exactly, into real windows, else to the clipboard; never into a log or a process
list."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asrd.config.settings import Settings
from asrd.desktop import sinks
from asrd.desktop import survey as desktop_survey
from asrd.desktop.clipboard import BorrowedClipboard, put
from asrd.desktop.keyboard import Check
from asrd.desktop.notifications import Desktop
from asrd.desktop.session import session
from asrd.errors import ConfigError, SinkError
from tests.integration.screen import Bus, Sway, Weston, Window, Xorg, until

HARD = 'Grüße, "wörld"! ñ €5 привет, мир. 你好，世界 😀👍🏽 é 100% it\'s'
TEXTS = {
    "plain": "The quick brown fox, 12345 - (a_b) & <c> 'd' \"e\" ~`^/\\?",
    "hard": HARD,
    "dash": "--delay 5 is no option",
    "lines": "first line\nsecond line",
    "many signs": "".join(chr(0x4E00 + index) for index in range(300)),
    "long": "Words that go on and on, wörld. " * 12,
}
SECRET = "zanzibar-quokka"


def window(name: str = "type", desktop: Desktop | None = None) -> sinks.WindowSink:
    """Return a sink for the focused window, as fast as its tool can."""
    return sinks.WindowSink(name, desktop or Desktop(notify=False), delay=2)


def deliver(sink: sinks.Sink, text: str) -> None:
    """Deliver a text from a loop of its own."""
    asyncio.run(sink.deliver(text))


def text_command(directory: Path, name: str, script: str) -> None:
    """Write a program."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


# Which sinks there are


def test_the_settings_name_the_sinks() -> None:
    made = sinks.sinks(
        Settings(
            sinks=(
                "type",
                "paste",
                "clipboard",
                "stdout",
                "command:cat >x",
                "none",
                "journal",
                "type",
            )
        )
    )
    assert [sink.name for sink in made] == ["type", "paste", "clipboard", "stdout", "command:cat"]


@pytest.mark.parametrize("name", ["typ", "command:", "command: ", "Type", ""])
def test_an_unknown_sink_is_an_error_with_the_nearest_name(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sinks.sinks(Settings(sinks=(name,)))
    assert repr(name) in caught.value.message
    assert caught.value.hint


# Standard output


def test_standard_output_gets_one_line_for_each_text(capfd: pytest.CaptureFixture[str]) -> None:
    deliver(sinks.StdoutSink(), HARD + " ")
    deliver(sinks.StdoutSink(), "two\nlines")
    assert capfd.readouterr().out == HARD + "\ntwo\nlines\n"


@contextmanager
def output_to_a_pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make standard output a pipe and yield the end to read."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        yield reading
        monkeypatch.undo()


def test_a_reader_that_stalls_is_an_error_and_blocks_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def both() -> int:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        running = asyncio.create_task(others())
        with pytest.raises(SinkError, match="no program has read"):
            await sinks.StdoutSink(limit=0.1).deliver(SECRET * 10_000)
        running.cancel()
        return turns

    with output_to_a_pipe(monkeypatch) as reading:
        assert asyncio.run(both()) > 5
    os.close(reading)


def test_a_reader_that_is_gone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with output_to_a_pipe(monkeypatch) as reading:
        os.close(reading)
        with pytest.raises(SinkError, match="standard output cannot be written") as caught:
            deliver(sinks.StdoutSink(), SECRET)
    assert caught.value.exit_code == 75


# A command


@pytest.mark.parametrize("text", [*TEXTS.values(), HARD * 20_000], ids=[*TEXTS, "a megabyte"])
def test_a_command_reads_the_text(text: str, tmp_path: Path) -> None:
    deliver(sinks.CommandSink(f"cat >{tmp_path}/text"), text)
    assert (tmp_path / "text").read_bytes().decode() == text


def test_a_command_need_not_read(tmp_path: Path) -> None:
    deliver(sinks.CommandSink(f"touch {tmp_path}/ran"), HARD * 20_000)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [("exit 3", "exit code 3"), ("kill -9 $$", "signal 9"), ("nonsense-xyz", "exit code 127")],
)
def test_a_command_that_fails_is_an_error_without_the_text(line: str, said: str) -> None:
    with pytest.raises(SinkError) as caught:
        deliver(sinks.CommandSink(f"cat; cat >&2; {line}"), SECRET)
    assert said in caught.value.message
    assert SECRET not in f"{caught.value}{caught.value.hint}"


HANG = 'trap "" TERM; sleep 1000 & echo $$ $! >{0}.part; mv {0}.part {0}; wait; sleep 1000'
"""A command that ignores SIGTERM and has a child; it writes both process ids."""


def alive(pids: list[str]) -> list[str]:
    """Return the processes that still run; one that nobody reaped yet does not."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        found += [pid] if state not in "ZX" else []
    return found


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(SinkError, match="did not end within 1 s") as caught:
        deliver(sinks.CommandSink(HANG.format(pids), limit=1.0), SECRET)
    assert SECRET not in f"{caught.value}{caught.value.hint}"
    running = pids.read_text().split()
    assert len(running) == 2
    until(lambda: not alive(running), f"the end of {running}")


def test_a_cancelled_delivery_ends_its_command(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    async def cancelled() -> None:
        task = asyncio.create_task(sinks.CommandSink(HANG.format(pids)).deliver(SECRET))
        while not pids.exists():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    running = pids.read_text().split()
    until(lambda: not alive(running), f"the end of {running}")


# Windows


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_typing_into_foot_is_exact(sway: Sway, text: str) -> None:
    target = sway.window()
    sink = window()
    deliver(sink, text)
    target.expect(text)
    assert sink.way == "wtype"


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_typing_into_xterm_is_exact(xorg: Xorg, text: str) -> None:
    target = xorg.window()
    sink = window()
    deliver(sink, text)
    target.expect(text)
    assert sink.way == ("xdotool" if text.isascii() else "paste by xdotool")


@pytest.mark.parametrize("layout", ["ru", "de", "us,ru"])
def test_the_keyboard_layout_does_not_matter(xorg: Xorg, layout: str) -> None:
    xorg.say("setxkbmap", layout)
    target = xorg.window()
    deliver(window(), TEXTS["plain"])
    target.expect(TEXTS["plain"])


def test_texts_arrive_one_after_the_other(sway: Sway) -> None:
    target = sway.window()
    sink = window()
    for text in ("one ", "zwei ", "три "):
        deliver(sink, text)
    target.expect("one zwei три ")


def test_a_service_without_a_locale_types_all_the_same(
    sway: Sway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LANG", "LC_ALL", "LC_CTYPE"):
        monkeypatch.delenv(name, raising=False)
    target = sway.window()
    deliver(window(), HARD)
    target.expect(HARD)


def test_the_hotkey_itself_reaches_a_command_and_its_text_the_window(
    sway: Sway, tmp_path: Path
) -> None:
    target = sway.window()
    fired = (sway.root / "fired", tmp_path / "fired here")
    sway.bind("Mod4+d", f"touch {fired[0]}")
    sway.bind_here("Mod4+e", "touch", str(fired[1]))
    sway.press("logo", "d")
    sway.press("logo", "e")
    for file in fired:
        until(file.exists, f"the hotkey: {file}")
    deliver(window(), HARD)
    target.expect(HARD)


@pytest.mark.parametrize("before", ["", "vorher: ünïcode\nzweite Zeile"], ids=["empty", "text"])
def test_pasting_gives_the_clipboard_back(xorg: Xorg, before: str) -> None:
    if before:
        deliver(sinks.ClipboardSink(), before)
    target = xorg.window()
    sink = window("paste")
    deliver(sink, HARD)
    target.expect(HARD)
    assert sink.way == "paste by xdotool"
    if before:
        assert xorg.clipboard() == before
    else:
        with pytest.raises(AssertionError):
            xorg.clipboard()


def test_texts_that_are_pasted_at_the_same_time_do_not_mix(xorg: Xorg) -> None:
    deliver(sinks.ClipboardSink(), "before")
    target, sink, texts = xorg.window(), window("paste"), ("één ", "twee ", "drie ")

    async def together() -> None:
        await asyncio.gather(*map(sink.deliver, texts))

    asyncio.run(together())
    target.expect("".join(texts))
    assert xorg.clipboard() == "before"


def test_where_nobody_tells_who_fetches_the_text_stays_in_the_clipboard(
    sway: Sway, caplog: pytest.LogCaptureFixture
) -> None:
    deliver(sinks.ClipboardSink(), "before")
    target = sway.window()
    sink = window("paste")
    deliver(sink, HARD)
    target.expect(HARD)
    assert sink.way.startswith(
        "clipboard, as what was pasted was fetched, and Wayland does not tell by whom"
    )
    assert (sway.clipboard(), sway.clipboard("--primary")) == (HARD, HARD)
    [warning] = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert "press Ctrl+V" in warning
    assert HARD not in caplog.text


def test_a_window_that_is_late_pastes_though_a_clipboard_manager_fetched_first(sway: Sway) -> None:
    sway.start("sh", "-c", "while :; do wl-paste >/dev/null 2>&1; sleep 0.2; done")
    deliver(sinks.ClipboardSink(), "before")
    target = sway.window()
    group = sway.processes[-1].pid
    os.killpg(group, signal.SIGSTOP)
    late = threading.Timer(1.2, os.killpg, (group, signal.SIGCONT))
    late.start()
    deliver(window("paste"), HARD)
    target.expect(HARD)
    late.join()
    assert sway.clipboard() == HARD


def test_pasting_gives_a_picture_back(xorg: Xorg) -> None:
    xorg.say(
        "sh",
        "-c",
        "head -c 200000 /dev/urandom >picture; xclip -selection clipboard -t image/png picture >log 2>&1",
    )
    target = xorg.window()
    deliver(window("paste"), HARD)
    target.expect(HARD)
    xorg.say("sh", "-c", "xclip -selection clipboard -o -t image/png | cmp - picture")


def test_a_secret_in_the_clipboard_is_not_copied_on(xorg: Xorg) -> None:
    secret = "printf secret | xclip -selection clipboard -t x-kde-passwordManagerHint >log 2>&1"
    xorg.say("sh", "-c", secret)
    target = xorg.window()
    deliver(window("paste"), HARD)
    target.expect(HARD)
    with pytest.raises(AssertionError):
        xorg.clipboard()


@pytest.mark.parametrize("screen", ["sway", "xorg"])
def test_what_somebody_copies_meanwhile_stays(screen: str, request: pytest.FixtureRequest) -> None:
    nest: Sway | Xorg = request.getfixturevalue(screen)
    deliver(sinks.ClipboardSink(), "before")

    async def lend() -> None:
        async with BorrowedClipboard("lent", session()):
            await put("copied meanwhile", session())

    asyncio.run(lend())
    assert nest.clipboard() == "copied meanwhile"


@pytest.mark.parametrize("screen", ["sway", "xorg"])
def test_a_paste_that_is_cancelled_at_any_moment_gives_the_clipboard_back(
    screen: str, request: pytest.FixtureRequest
) -> None:
    nest: Sway | Xorg = request.getfixturevalue(screen)
    deliver(sinks.ClipboardSink(), "before")

    async def cancelled(moment: float) -> None:
        async def paste() -> None:
            async with BorrowedClipboard(SECRET, session()) as lent:
                await lent.taken(1000)

        task = asyncio.create_task(paste())
        await asyncio.sleep(moment)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for moment in (0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.5):
        asyncio.run(cancelled(moment))
        assert nest.clipboard() == "before"


def test_a_window_that_takes_no_paste_leaves_the_text_in_the_clipboard(
    bus: Bus, xorg: Xorg
) -> None:
    target = xorg.window(translations="#override Shift<KeyPress>Insert: ignore()")
    sink = window("type", Desktop())
    instead = asyncio.run(sink.deliver(HARD))
    assert instead is not None
    assert instead.startswith("the text is in the clipboard, as the focused window did not take")
    assert target.text == ""
    assert xorg.clipboard() == HARD
    assert "did not take" in sink.way
    [(summary, body)] = bus.notifications()
    assert "clipboard" in summary
    assert HARD not in summary + body


def test_a_compositor_without_a_virtual_keyboard_gets_the_text_in_its_clipboard(
    weston: Weston, bus: Bus
) -> None:
    target = weston.window()
    sink = window("type", Desktop())
    deliver(sink, HARD)
    assert weston.clipboard() == HARD
    assert target.text == ""
    assert "no virtual keyboard" in sink.way
    [(summary, body)] = bus.notifications()
    assert "clipboard" in summary
    assert "Ctrl+V" in body


@pytest.mark.parametrize("tool", ["dotool", "ydotool"])
def test_a_helper_that_presses_keys_is_enough(
    weston: Weston, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    press = f"DISPLAY={weston.environment['DISPLAY']} exec xdotool key shift+Insert"
    asked = {
        "dotool": '[ "$(cat)" = "key shift+insert" ]',
        "ydotool": '[ "$*" = "key 42:1 110:1 110:0 42:0" ]',
    }
    text_command(weston.root / "bin", tool, f"if {asked[tool]}; then {press}; fi")
    monkeypatch.setenv("PATH", f"{weston.root}/bin:{os.environ['PATH']}")
    target = weston.window()
    sink = window()
    deliver(sink, HARD)
    target.expect(HARD)
    assert "Wayland does not tell by whom" in sink.way


def test_where_nothing_works_the_error_says_what_was_tried(seatless: Weston) -> None:
    with pytest.raises(SinkError) as caught:
        deliver(window(), SECRET)
    assert "no virtual keyboard" in caught.value.message
    assert "no seat" in caught.value.message
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["type", "paste", "clipboard"])
def test_without_a_session_it_says_so(no_session: None, name: str) -> None:
    [sink] = sinks.sinks(Settings(sinks=(name,)))
    with pytest.raises(SinkError, match="no graphical session"):
        deliver(sink, SECRET)


def test_a_compositor_that_went_away_is_no_session(sway: Sway) -> None:
    sway.close()
    with pytest.raises(SinkError):
        deliver(window(), SECRET)


def test_a_tool_that_fails_part_way_is_not_followed_by_another(
    sway: Sway, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_command(sway.root / "bin", "wtype", "sleep 1000")
    monkeypatch.setenv("PATH", f"{sway.root}/bin:{os.environ['PATH']}")
    monkeypatch.setattr("asrd.desktop.keyboard.TYPING_MARGIN_SECONDS", 0.2)
    target = sway.window()
    with pytest.raises(SinkError, match="wtype did not end"):
        deliver(window(), SECRET)
    assert target.text == ""
    with pytest.raises(AssertionError):
        sway.clipboard()


# Silence


def command_lines(found: set[str], stop: threading.Event) -> None:
    """Collect the argument list of every process of the machine until told to stop."""
    while not stop.is_set():
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue


@pytest.mark.parametrize("screen", ["sway", "xorg"])
@pytest.mark.parametrize("name", ["type", "paste", "clipboard", "command:cat >/dev/null"])
def test_no_text_in_a_process_list_or_a_log(
    screen: str, name: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    target: Window = request.getfixturevalue(screen).window()
    found: set[str] = set()
    stop = threading.Event()
    watch = threading.Thread(target=command_lines, args=(found, stop))
    caplog.set_level(logging.DEBUG)
    [sink] = sinks.sinks(Settings(sinks=(name,), type_delay=5))
    watch.start()
    try:
        deliver(sink, f"{SECRET} é " * 3)
        if name in ("type", "paste"):
            target.expect(f"{SECRET} é " * 3)
    finally:
        stop.set()
        watch.join()
    tool = {
        "sway": {"type": "wtype", "paste": "wl-copy"},
        "xorg": {"type": "xclip", "paste": "xdotool"},
    }[screen]
    assert any(line.startswith(tool.get(name, "")) for line in found), "the watch saw the tool"
    assert not [line for line in found if SECRET in line]
    assert SECRET not in caplog.text


# What works here


def survey() -> dict[str, Check]:
    """Return the survey by name."""
    return {check.name: check for check in desktop_survey.survey()}


def test_the_survey_of_sway(sway: Sway) -> None:
    target = sway.window()
    found = survey()
    assert found["type"] == Check("type", True, "by wtype")
    assert found["session"].note.startswith("wayland, sway")
    assert found["clipboard"].works
    assert not found["notifications"].works
    assert target.text == ""


def test_the_survey_of_x11(bus: Bus, xorg: Xorg) -> None:
    found = survey()
    assert found["type"].note == "by xdotool"
    assert found["clipboard"].works
    assert found["notifications"].note == "shown by dunst"


def test_the_survey_without_a_virtual_keyboard(weston: Weston) -> None:
    found = survey()
    assert not found["type"].works
    assert "to the clipboard" in found["type"].note
    assert found["type"].fix
    assert "no virtual keyboard" in found["wtype"].note


def test_the_survey_names_what_is_missing(
    sway: Sway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = survey()
    assert found["type"].fix.endswith("wtype")
    assert found["clipboard"].fix.endswith("wl-clipboard")
    assert "nowhere" in found["type"].note


def test_the_survey_without_a_session(no_session: None) -> None:
    found = survey()
    assert not any(found[name].works for name in ("type", "session", "clipboard"))
    assert "asrd run" in found["session"].fix, "no user manager answers here"


def test_the_survey_may_be_asked_inside_a_loop(no_session: None) -> None:
    async def inside() -> list[Check]:
        return survey()

    assert asyncio.run(inside())


def test_screens_leave_nothing_behind(sway: Sway) -> None:
    sway.window()
    pids = [str(process.pid) for process in sway.processes]
    sway.close()
    assert not alive(pids)
    assert not sway.root.exists()
