"""The session's variables, its programs, notifications and cues: found when they are there,
harmless when not."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import wave
from pathlib import Path

import pytest

from asrd.desktop import notifications, programs, session
from asrd.errors import SinkError
from tests.integration.screen import Bus, Sway


def systemctl(directory: Path, printed: str) -> None:
    """Put a user manager's answer in place of the real one's."""
    (directory / "printed").write_text(printed)
    (directory / "systemctl").write_text(f"#!/bin/sh\nexec cat {directory}/printed\n")
    (directory / "systemctl").chmod(0o755)


# The session


def test_a_living_display_is_used_as_it_is(sway: Sway) -> None:
    assert session.kind(os.environ) == "wayland"
    assert session.session() == dict(os.environ)


def test_a_display_announced_after_the_start_is_found(
    sway: Sway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = "".join(
        f"{name}={sway.environment[name]}\n" for name in ("WAYLAND_DISPLAY", "SWAYSOCK")
    )
    systemctl(tmp_path, f"{shown}HOME=/elsewhere\nXDG_CURRENT_DESKTOP=$'Some\\x20Thing'\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("WAYLAND_DISPLAY", "XDG_SESSION_TYPE"):
        monkeypatch.delenv(name)
    found = session.session()
    assert session.kind(found) == "wayland"
    assert found["SWAYSOCK"] == sway.environment["SWAYSOCK"]
    assert found["XDG_CURRENT_DESKTOP"] == "Some Thing"
    assert found["HOME"] == os.environ["HOME"]


def test_a_display_that_is_gone_gives_way_to_the_new_one(
    sway: Sway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    systemctl(tmp_path, f"WAYLAND_DISPLAY={sway.environment['WAYLAND_DISPLAY']}\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-7")
    assert session.session()["WAYLAND_DISPLAY"] == sway.environment["WAYLAND_DISPLAY"]


@pytest.mark.parametrize("answer", ["exit 1", "exec sleep 1000", "printf '=\\n=\\n$'", ""])
def test_no_user_manager_is_no_session(
    answer: str, no_session: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert session.kind(session.session()) == ""


def test_x11_goes_before_wayland_where_the_session_says_so(sway: Sway) -> None:
    both = {**sway.environment, "DISPLAY": ":5"}
    assert session.kind(both) == "wayland"
    assert session.kind(both | {"XDG_SESSION_TYPE": "x11"}) == "x11"
    assert session.kind(both | {"WAYLAND_DISPLAY": "wayland-7", "XDG_SESSION_TYPE": ""}) == "x11"


def test_xwayland_alone_is_no_session_to_type_into(sway: Sway) -> None:
    alone = {**sway.environment, "DISPLAY": ":5"}
    del alone["WAYLAND_DISPLAY"]
    assert session.kind(alone) == ""


# Programs


def test_a_program_that_leaves_a_child_behind_keeps_nobody_waiting() -> None:
    ended = asyncio.run(
        programs.run("sh", "-c", "cat; sleep 3 & echo done >&2", environment=os.environ, text=b"ok")
    )
    assert ended == (0, b"ok", "done\n")


def test_a_program_that_is_missing_is_an_error() -> None:
    with pytest.raises(SinkError, match="no-such-program is not installed"):
        asyncio.run(programs.run("no-such-program", environment=os.environ))


# Notifications


def test_a_notification_is_shown_and_the_next_of_its_kind_takes_its_place(bus: Bus) -> None:
    async def show() -> list[bool]:
        shown = notifications.Desktop()
        return [
            await shown.notify("The microphone is gone", "first"),
            await shown.notify("The microphone is gone", "second: ü & <b>😀", "critical"),
            await shown.notify("Another matter", urgency="low"),
            await shown.notify("Con\x1b[2Jtrols\n", "a\u202eb\nc\x07"),
        ]

    assert asyncio.run(show()) == [True, True, True, True]
    assert sorted(bus.notifications()) == [
        ("Another matter", ""),
        ("Con\\u001b[2Jtrols\\u000a", "a\\u202eb\nc\\u0007"),
        ("The microphone is gone", "second: ü &amp; &lt;b&gt;😀"),
    ]


def test_no_notifications_when_they_are_off(bus: Bus) -> None:
    assert asyncio.run(notifications.Desktop(notify=False).notify("Nothing")) is False
    assert bus.notifications() == []


def test_no_bus_is_not_fatal(no_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asyncio.run(notifications.Desktop().notify("Nobody hears")) is False
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert asyncio.run(notifications.Desktop().notify("Nobody hears")) is False
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "nonsense")
    assert asyncio.run(notifications.Desktop().notify("Nobody hears")) is False


def test_a_bus_without_a_notification_service_is_not_fatal(bus: Bus) -> None:
    dunst = bus.processes.pop()
    dunst.kill()
    dunst.wait()
    assert asyncio.run(notifications.Desktop().notify("Nobody hears")) is False
    assert asyncio.run(notifications.notification_service()) == ""


def test_a_bus_that_says_nothing_is_given_up(no_session: None, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(f"{tmp_path}/runtime/bus")
        mute.listen()
        assert (
            asyncio.run(asyncio.wait_for(notifications.Desktop().notify("Nobody hears"), 20))
            is False
        )


# Cues


@pytest.mark.parametrize("name", notifications.CUES)
def test_a_cue_is_a_sound_file_of_two_tones(name: str) -> None:
    with wave.open(io.BytesIO(notifications.tones(*notifications.CUES[name]))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 48_000)
        assert file.getnframes() == 2 * 3360
        assert any(file.readframes(100))


def test_a_cue_is_played_without_waiting_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pw-play").write_text(
        f'#!/bin/sh\ncp "$1" {tmp_path}/part && mv {tmp_path}/part {tmp_path}/played\n'
    )
    (tmp_path / "pw-play").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    async def play() -> None:
        shown = notifications.Desktop(cues=True)
        shown.cue("start")
        assert not (tmp_path / "played").exists()
        await shown.close()

    asyncio.run(play())
    assert (tmp_path / "played").read_bytes() == notifications.tones(*notifications.CUES["start"])


def test_a_player_that_fails_is_followed_by_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for player, script in (("pw-play", "exit 1"), ("paplay", f"touch {tmp_path}/played")):
        (tmp_path / player).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / player).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    async def play() -> None:
        shown = notifications.Desktop(cues=True)
        shown.cue("stop")
        await shown.close()

    asyncio.run(play())
    assert (tmp_path / "played").exists()


@pytest.mark.parametrize("player", ["exit 1", "exec sleep 1000", ""])
def test_cues_are_never_fatal(player: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "aplay").write_text(f"#!/bin/sh\n{player}\n")
    (tmp_path / "aplay").chmod(0o755 if player else 0o644)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if player else str(tmp_path))
    monkeypatch.setattr(notifications, "PLAYERS", ("aplay",))

    async def play() -> None:
        shown = notifications.Desktop(cues=True)
        shown.cue("start")
        shown.cue("no such cue")
        await shown.close()

    asyncio.run(play())
    notifications.Desktop(cues=True).cue("start")  # outside any loop
