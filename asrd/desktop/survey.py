"""What works in this graphical session and what does not, tried without typing; for `asrd doctor`."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from asrd import hints
from asrd.desktop import notifications, session
from asrd.desktop.keyboard import CHORDS, UTF8, Check, ask, probe
from asrd.desktop.selections import SELECTIONS, Environment, why
from asrd.desktop.session import kind
from asrd.hints import install


def survey(environment: Mapping[str, str] | None = None) -> list[Check]:
    """Return what works in this session and what does not; takes at most seconds.

    The first is the verdict on the sink `type`; it and the other sinks depend on the others.
    """
    here = {**session.session(environment), **UTF8}
    system = kind(here)
    tools: list[Check] = []
    for name in CHORDS[system]:
        tools.append(probe(name, here))
        if tools[-1].works:
            break
    board = _board(system, here)
    verdict = _verdict(tools, board)
    return [verdict, _display(system, here), *tools, board, _notifications(), _cues()]


def _verdict(tools: Sequence[Check], board: Check) -> Check:
    """Return whether the sink `type` works, by the tools that were tried and the clipboard."""
    typing = ""
    if tools and tools[-1].works:
        typing = tools[-1].name
    only_pastes = typing in ("dotool", "ydotool")
    if typing == "xdotool" and not board.works:
        return Check("type", True, "by xdotool, ASCII on the US layout only", board.fix)
    if typing and (board.works or not only_pastes):
        return Check("type", True, f"by {typing}")
    where = "nowhere: asrd last shows it"
    if board.works:
        where = "to the clipboard, with a notification"
    note = f"nothing can type here; text goes {where}"
    return Check("type", False, note, _first_fix(typing, tools, board))


def _first_fix(typing: str, tools: Sequence[Check], board: Check) -> str:
    """Return the command to run first so that text can be typed."""
    if typing and board.fix:
        return board.fix
    for tool in tools:
        if tool.fix:
            return tool.fix
    return board.fix


def _display(system: str, here: Environment) -> Check:
    if not system:
        return Check("session", False, "no WAYLAND_DISPLAY and no DISPLAY", _display_fix())
    name = here.get("XDG_CURRENT_DESKTOP") or "unknown desktop"
    variable = {"wayland": "WAYLAND_DISPLAY"}.get(system, "DISPLAY")
    return Check("session", True, f"{system}, {name}, {here[variable]}")


def _display_fix() -> str:
    if not hints.managed():
        return "start asrd in a terminal of the desktop: asrd run"
    variables = "WAYLAND_DISPLAY DISPLAY XDG_SESSION_TYPE XDG_CURRENT_DESKTOP"
    return f"in a terminal of the desktop: systemctl --user import-environment {variables}"


CLIPBOARD_PROGRAMS = {"wayland": ("wl-copy", "wl-clipboard"), "x11": ("xclip", "xclip")}
"""Display system -> program that sets the clipboard, and its package."""


def _board(system: str, here: Environment) -> Check:
    if not system:
        return Check("clipboard", False, "no session")
    tool, package = CLIPBOARD_PROGRAMS[system]
    if not shutil.which(tool, path=here.get("PATH")):
        return Check("clipboard", False, f"{tool} is not installed", install(package))
    listing = SELECTIONS[system][0].types
    code, complaint = ask(list(listing), here)
    if code and why(complaint):
        return Check("clipboard", False, f"by {tool}{why(complaint)}")
    return Check("clipboard", True, f"by {tool}")


def _notifications() -> Check:
    with ThreadPoolExecutor(1) as thread:  # the caller's thread may have a loop of its own
        service = thread.submit(lambda: asyncio.run(notifications.notification_service())).result()
    if service:
        return Check("notifications", True, f"shown by {service}")
    if not notifications.bus_address(os.environ):
        fix = "export XDG_RUNTIME_DIR=/run/user/$(id -u)"
        return Check("notifications", False, "there is no session bus", fix)
    if not notifications.bus_answers(os.environ):
        fix = "dbus-run-session -- asrd run"
        if hints.managed():
            fix = f"systemctl --user start dbus, or: {fix}"
        return Check("notifications", False, "the session bus does not answer", fix)
    fix = install("dunst")
    return Check("notifications", False, "no service on the session bus shows them", fix)


def _cues() -> Check:
    player = next(filter(shutil.which, notifications.PLAYERS), "")
    if not player:
        return Check("cues", False, "no player", install("alsa-utils"))
    return Check("cues", True, f"by {player}")
