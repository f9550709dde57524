"""A session without a keyboard: found out by asking the compositor, and no key is lost on a window
that is busy."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import struct
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from asrd.desktop import sinks
from asrd.desktop.notifications import Desktop
from asrd.desktop.seat import has_keyboard
from tests.integration.screen import Sway, need

POINTER, KEYBOARD, TOUCH = 1, 2, 4


class Compositor(NamedTuple):
    """What a compositor announces: beside other things its seats, in pieces of so many bytes."""

    seats: tuple[int, ...]
    piece: int
    ends: str = ""
    """at once, half-way, or with what is no Wayland; "" where it answers to the end."""


def compositors() -> dict[str, tuple[Compositor, bool]]:
    """Return the members by name, and whether each counts as one with a keyboard."""
    chance, made = random.Random(14), {}
    for number in range(24):
        seats = tuple(chance.randrange(8) for _ in range(chance.choice((0, 1, 1, 1, 2, 3))))
        ends = ("", "", "", "at once", "half-way", "no Wayland")[number % 6]
        one = Compositor(seats, chance.choice((1, 7, 4096)), ends)
        made[f"{number}: seats {seats}, {one.piece} bytes, {ends or 'answers'}"] = (
            one, bool(ends) or any(each & KEYBOARD for each in seats)
        )  # fmt: skip
    return made


def event(target: int, number: int, arguments: bytes) -> bytes:
    return struct.pack("=II", target, (8 + len(arguments)) << 16 | number) + arguments


def announced(name: int, interface: str) -> bytes:
    text = interface.encode() + b"\0"
    padded = text + bytes(-len(text) % 4)
    return event(2, 0, struct.pack("=II", name, len(text)) + padded + struct.pack("=I", 7))


def play(listening: socket.socket, one: Compositor) -> None:
    """Answer one client as a compositor does: what it made last is the number of its second
    sync."""
    line, _ = listening.accept()
    with line:
        line.recv(4096)
        if one.ends == "at once":
            return
        first = b"".join(
            announced(10 + each, name) for each, name in enumerate(("wl_shm", "wl_compositor"))
        )
        first += b"".join(announced(20 + each, "wl_seat") for each in range(len(one.seats)))
        first = bytes(40) if one.ends == "no Wayland" else first + event(3, 0, bytes(4))
        first = first[:30] if one.ends == "half-way" else first
        last = 4 + len(one.seats)
        second = b"".join(
            event(4 + each, 0, struct.pack("=I", has)) for each, has in enumerate(one.seats)
        )
        send(line, first, one.piece)
        if one.ends:
            return
        asked = b""
        while not asked.endswith(struct.pack("=III", 1, 12 << 16, last)):
            asked += line.recv(4096)
        send(line, second + event(last, 0, bytes(4)), one.piece)


def send(line: socket.socket, data: bytes, piece: int) -> None:
    for at in range(0, len(data), piece):
        try:
            line.sendall(data[at : at + piece])
        except OSError:  # the client has heard enough
            return


@pytest.mark.parametrize(("one", "expected"), compositors().values(), ids=compositors())
def test_a_keyboard_is_there_if_a_seat_has_one_or_nobody_tells(
    tmp_path: Path, one: Compositor, expected: bool
) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(tmp_path / "wayland-1"))
        listening.listen()
        playing = threading.Thread(target=play, args=(listening, one))
        playing.start()
        assert (
            has_keyboard({"XDG_RUNTIME_DIR": os.fspath(tmp_path), "WAYLAND_DISPLAY": "wayland-1"})
            is expected
        )
        playing.join(10)


def test_no_compositor_counts_as_one_with_a_keyboard(tmp_path: Path) -> None:
    assert has_keyboard({"XDG_RUNTIME_DIR": os.fspath(tmp_path)})


@pytest.mark.parametrize("name", ["type", "paste"])
def test_a_busy_window_gets_the_text_though_the_session_has_no_keyboard(
    no_session: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    need("sway", "swaymsg", "foot", "wtype", "wl-copy")
    sway = Sway(keyboard=False)
    try:
        assert not has_keyboard(sway.environment)
        for variable in ("WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "XDG_SESSION_TYPE"):
            monkeypatch.setenv(variable, sway.environment[variable])
        target = sway.window()
        group = sway.processes[-1].pid
        os.killpg(group, signal.SIGSTOP)
        late = threading.Timer(1.0, os.killpg, (group, signal.SIGCONT))
        late.start()
        asyncio.run(
            sinks.WindowSink(name, Desktop(notify=False), delay=2).deliver("late, not lost ")
        )
        target.expect("late, not lost ")
        late.join()
    finally:
        sway.close()
