"""Keys into the focused window: typing a text, or one chord that pastes it; and what of that a
session can do.

Every program is given the text on its standard input. Which of them work depends on the display
system and on what the compositor allows, and shows only when tried. Runs in the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from typing import NamedTuple

from asrd.desktop.clipboard import PROOF_SECONDS, BorrowedClipboard
from asrd.desktop.programs import run
from asrd.desktop.seat import has_keyboard
from asrd.desktop.selections import X11, Environment, why, x11_environment
from asrd.desktop.session import kind
from asrd.errors import SinkError, UncertainError
from asrd.hints import install

log = logging.getLogger("asrd.keyboard")

ANNOUNCE_MS = 200
"""A new virtual keyboard loses its first key unless the compositor gets this time to announce
it."""

FIRST_KEYBOARD_MS = 1500
"""The same where it is the only keyboard: each key is lost on a window that has not answered to it
by then."""

UTF8 = {"LC_ALL": "C.UTF-8"}
"""wtype and xdotool decode their input by locale, and a user service may have none."""

KEYBOARD_SECONDS = 4.0
"""Time for an X server to describe its keyboard; a stopped one never does."""

TYPING_MARGIN_SECONDS = 10.0
"""Time that typing may take beyond the sum of its delays."""


class PartlyError(UncertainError):
    """A way failed when some of the text may have been typed: another way would type it twice."""


class UnprovedError(SinkError):
    """A text was pasted, but the window was not seen to take it; it is in the clipboard."""


async def _keyboard(environment: Environment) -> list[str]:
    """Return the facts about an X server's keyboard (`x11 keys`); none where it does not answer.

    The server is asked for the layout that it uses: the one that `setxkbmap -query` knows of may
    have been replaced since.
    """
    try:
        ended = await run(
            *X11, "keys", environment=x11_environment(environment), limit=KEYBOARD_SECONDS
        )
    except SinkError as error:
        log.debug("the keyboard is unknown: %s", error)
        return []
    return ended.output.decode().split()


def _plain(text: str) -> bool:
    """Whether xdotool types every sign of a text by a key of the US layout.

    What the layout has no key for, it types by remapping a key under the window's eyes, and dead
    keys swallow what follows: signs go missing at any delay. That leaves printable ASCII on the US
    layout.
    """
    return all(sign == "\n" or (sign.isascii() and sign.isprintable()) for sign in text)


@contextlib.asynccontextmanager
async def _caps_lock_kept(facts: list[str], environment: Environment) -> AsyncIterator[None]:
    """Have Caps Lock afterwards as it was: xdotool --clearmodifiers switches it off, and not on
    again."""
    try:
        yield
    finally:
        if "caps" in facts:
            await run(
                *X11, "caps", environment=x11_environment(environment), limit=KEYBOARD_SECONDS
            )


async def _typed(*words: str, text: str, environment: Environment, delay: int) -> None:
    limit = TYPING_MARGIN_SECONDS + len(text) * (4 * delay + 20) / 1000
    try:
        ended = await run(*words, environment=environment, text=text.encode(), limit=limit)
    except SinkError as error:
        if isinstance(error.__cause__, TimeoutError):
            raise PartlyError(error.message, "some of it may have been typed") from error
        raise
    if ended.code:
        raise SinkError(f"{words[0]} failed{why(ended.complaint)}")


async def _wtype(environment: Environment) -> tuple[str, ...]:
    """Return how wtype begins, with the time that its keyboard needs to be known."""
    wait_ms = FIRST_KEYBOARD_MS
    if await asyncio.to_thread(has_keyboard, environment):
        wait_ms = ANNOUNCE_MS
    return "wtype", "-s", str(wait_ms)


async def by_wtype(text: str, environment: Environment, delay: int) -> None:
    """Type through a virtual keyboard whose keymap is made for the text: exact for all of
    Unicode."""
    await _typed(
        *await _wtype(environment),
        "-d",
        str(max(1, delay)),
        "-",
        text=text,
        environment=environment,
        delay=delay,
    )


async def by_xdotool(text: str, environment: Environment, delay: int) -> None:
    """Type through the X server's test extension, where that is exact.

    Raises:
        SinkError: it is not exact here, or failed.
    """
    facts: list[str] = []
    if _plain(text):
        facts = await _keyboard(environment)
    if "us" not in facts:
        raise SinkError("xdotool types only ASCII exactly, and only on the plain US layout")
    if "window" not in facts:
        raise SinkError("no window has the focus")
    words = ("xdotool", "type", "--clearmodifiers", "--delay", str(delay), "--file", "-")
    async with _caps_lock_kept(facts, environment):
        await _typed(*words, text=text, environment=environment, delay=delay)


CHORDS = {
    "wayland": ("wtype", "dotool", "ydotool"),
    "x11": ("xdotool", "dotool", "ydotool"),
    "": (),
}
"""Display system -> what can press Shift+Insert there. xdotool is none for Wayland: it would reach
XWayland only."""


async def by_pasting(text: str, tool: str, environment: Environment) -> None:
    """Lend the text to the clipboard, press Shift+Insert, and see whether the focused window
    fetched it.

    Raises:
        UnprovedError: that was not seen; the text is in the clipboard.
        PartlyError: as before, but the text is not in the clipboard.
        SinkError: nothing was pasted.
    """
    lent = BorrowedClipboard(text, environment)
    try:
        async with lent:
            lent.pasted = True
            try:
                await _press(tool, environment)
            except SinkError as error:
                # A tool that fails has pressed nothing; one that hangs may have.
                lent.pasted = isinstance(error.__cause__, TimeoutError)
                raise
            proved = await lent.taken()
    except SinkError as error:
        if lent.pasted:
            raise PartlyError(
                error.message, "the text may have been pasted; asrd last prints it"
            ) from error
        raise
    if not proved:
        raise UnprovedError(_unproved(lent, environment), "press Ctrl+V if it is missing")


def _unproved(lent: BorrowedClipboard, environment: Environment) -> str:
    if kind(environment) == "wayland" and lent.fetched:
        return "what was pasted was fetched, and Wayland does not tell by whom"
    return f"the focused window did not take what was pasted within {PROOF_SECONDS:.0f} s"


async def _press(tool: str, environment: Environment) -> None:
    """Press Shift+Insert, which no keyboard layout moves."""
    words, text = [tool], b""
    if tool == "wtype":
        words = [*await _wtype(environment), "-M", "shift", "-k", "Insert", "-m", "shift"]
    elif tool == "xdotool":
        words += ["key", "--clearmodifiers", "shift+Insert"]
    elif tool == "dotool":
        text = b"key shift+insert\n"
    else:
        words += await _ydotool_words(tool, environment)
    facts: list[str] = []
    if tool == "xdotool":
        facts = await _keyboard(environment)
    async with _caps_lock_kept(facts, environment):
        ended = await run(*words, environment=environment, text=text, limit=5.0)
    if ended.code:
        raise SinkError(f"{tool} failed{why(ended.complaint)}")


async def _ydotool_words(tool: str, environment: Environment) -> list[str]:
    """Return the arguments that press Shift+Insert: names of keys before version 1.0, then codes."""
    usage = await run(tool, environment=environment, limit=2.0)
    if "recorder" in usage.complaint + usage.output.decode(errors="replace"):
        return ["key", "shift+insert"]
    return ["key", "42:1", "110:1", "110:0", "42:0"]


class Check(NamedTuple):
    """One thing that text output may need: whether it works here, what was found, and the command
    that mends it."""

    name: str
    works: bool
    note: str
    fix: str = ""


UINPUT = (
    """echo 'KERNEL=="uinput", GROUP="input", MODE="0660", OPTIONS+="static_node=uinput"' """
    '| sudo tee /etc/udev/rules.d/80-uinput.rules && sudo usermod -aG input "$USER" && sudo modprobe uinput'
)


def probe(name: str, here: Environment) -> Check:
    """Ask a typing tool to do nothing; what cannot type says so."""
    if not shutil.which(name, path=here.get("PATH")):
        package = "" if name == "dotool" else install(name)
        return Check(name, False, "not installed", package)
    if name in ("dotool", "ydotool"):
        if os.access("/dev/uinput", os.W_OK) or (name == "ydotool" and _socket(here)):
            return Check(name, True, "presses keys through /dev/uinput")
        return Check(name, False, "/dev/uinput cannot be written", UINPUT)
    code, complaint = ask(
        [name, "-s", "1"] if name == "wtype" else [name, "getmouselocation"], here
    )
    if code:
        return Check(name, False, (why(complaint).lstrip(": ") or f"exit code {code}"))
    return Check(name, True, "tried")


def _socket(here: Environment) -> bool:
    """Whether ydotool's daemon listens where its client would look."""
    usual = f"{here.get('XDG_RUNTIME_DIR')}/.ydotool_socket"
    return os.path.exists(here.get("YDOTOOL_SOCKET", "")) or os.path.exists(usual)


def ask(words: list[str], here: Environment) -> tuple[int, str]:
    """Run a harmless command; return its exit code, 124 when it did not end, and what it complained
    of."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            words, env=dict(here), stdin=subprocess.DEVNULL, capture_output=True, timeout=2
        )
        return done.returncode, done.stderr.decode(errors="replace")
    return 124, ""
