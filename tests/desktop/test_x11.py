"""Whatever layout an X server has, and however it came there: the text is exact, and the locks are
as before."""

from __future__ import annotations

import asyncio
import random
import string
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from asrd.desktop import sinks
from asrd.desktop.notifications import Desktop
from asrd.desktop.selections import X11
from asrd.desktop.x11 import FIRST_KEYCODE, SHIFT_KEYCODE, SHIFT_KEYSYM, US_KEYS, types_us
from tests.integration.screen import Window, Xorg, need

PRINTABLE = string.ascii_letters + string.digits + string.punctuation + " "

TYPED = ("us", "us altgr-intl", "us mac", "pl", "kr", "cn")
"""Layouts that have all of ASCII where the US layout has it: xdotool types there."""

PASTED = ("fr", "us dvorak", "us intl", "fr bepo", "cz", "tr", "de nodeadkeys", "gb", "ru", "us,ru")

SWAPS = (
    "keycode 29 = z Z",
    "keycode 10 = exclam 1",
    "keycode 61 = slash question Cyrillic_a",
    "remove shift = Shift_L",
)


class Case(NamedTuple):
    """A layout, what loads it, and how a text of ASCII is to arrive."""

    layout: str
    program: str
    way: str


def cases() -> list[Case]:
    """Return the members: each layout by a program that chance picks, each that is typed by
    both."""
    chance = random.Random(11)
    made = [
        Case(layout, program, "xdotool")
        for layout in TYPED[:3]
        for program in ("setxkbmap", "xkbcomp")
    ]
    made += [
        Case(layout, chance.choice(("setxkbmap", "xkbcomp")), "xdotool") for layout in TYPED[3:]
    ]
    made += [Case(layout, "xkbcomp", "paste by xdotool") for layout in ("de", "de neo", "de bone")]
    made += [
        Case(layout, chance.choice(("setxkbmap", "xkbcomp")), "paste by xdotool")
        for layout in PASTED
    ]
    made += [Case(swap, "xmodmap", "paste by xdotool") for swap in SWAPS]
    return made


class Screen(NamedTuple):
    """An X server with a window that has the focus."""

    xorg: Xorg
    window: Window

    def load(self, case: Case) -> None:
        """Load a layout; what `setxkbmap -query` says of it is true for setxkbmap's own alone."""
        self.xorg.say("setxkbmap", "-layout", "us", "-variant", "")
        layout, _, variant = case.layout.partition(" ")
        if case.program == "setxkbmap":
            self.xorg.say("setxkbmap", "-layout", layout, "-variant", variant)
        elif case.program == "xmodmap":
            self.xorg.say("xmodmap", "-e", case.layout)
        else:
            source = f"setxkbmap -layout {layout} -variant '{variant}' -print"
            self.xorg.say("sh", "-c", f"{source} | xkbcomp -w0 - $DISPLAY >log 2>&1")

    def deliver(self, text: str, name: str = "type") -> str:
        """Send a text to the window, which has to get it exactly; return the way."""
        before, sink = self.window.text, sinks.WindowSink(name, Desktop(notify=False), delay=1)
        asyncio.run(sink.deliver(text))
        self.window.expect(before + text)
        return sink.way

    def facts(self) -> list[str]:
        """Return what the server says of its keyboard."""
        program = [sys.executable, "-P", X11[2], "keys"]
        return self.xorg.say(*program).split()


@pytest.fixture(scope="module")
def display() -> Iterator[tuple[Xorg, Window]]:
    need("Xvfb", "xterm", "xdotool", "xclip", "setxkbmap", "xkbcomp", "xmodmap")
    xorg = Xorg()
    try:
        yield xorg, xorg.window()
    finally:
        xorg.close()


@pytest.fixture
def screen(
    display: tuple[Xorg, Window], no_session: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Screen]:
    """The module's X server as this test's session, with the US layout and no key held
    afterwards."""
    xorg, window = display
    for name, value in xorg.environment.items():
        if name in ("DISPLAY", "XDG_SESSION_TYPE"):
            monkeypatch.setenv(name, value)
    one = Screen(xorg, window)
    one.load(Case("us", "setxkbmap", ""))
    yield one
    for key in ("Super_L", "Shift_L", "Control_L", "Alt_L"):
        xorg.say("xdotool", "keyup", key)
    if "caps" in one.facts():
        xorg.say("xdotool", "key", "Caps_Lock")


@pytest.mark.parametrize("case", cases(), ids=str)
def test_the_text_is_exact_in_every_layout(case: Case, screen: Screen) -> None:
    screen.load(case)
    text = "".join(random.Random(str(case)).sample(PRINTABLE, 40)) + "~`^ "
    assert screen.deliver(text) == case.way


@pytest.mark.parametrize("lock", ["Caps_Lock", "Num_Lock"])
@pytest.mark.parametrize(("name", "text"), [("type", "Hello, World (x) "), ("paste", "Grüße A ")])
def test_a_lock_changes_no_text_and_stays_on(
    lock: str, name: str, text: str, screen: Screen
) -> None:
    screen.xorg.say("xdotool", "key", lock)
    before = screen.facts()
    assert ("caps" in before) == (lock == "Caps_Lock")
    screen.deliver(text, name)
    assert screen.facts() == before


@pytest.mark.parametrize("key", ["Super_L", "Shift_L", "Control_L", "Alt_L"])
def test_a_modifier_of_the_hotkey_that_is_still_held_changes_no_text(
    key: str, screen: Screen
) -> None:
    screen.xorg.say("xdotool", "keydown", key)
    screen.deliver("Hello, World (x) ", "type")
    screen.deliver("Grüße A ", "paste")


# What is a US layout


def us_columns() -> list[list[int]]:
    """Return the keyboard of a server with the US layout: for each keycode two levels of two
    layouts, and two more."""
    columns = [[0] * 6 for _ in range(FIRST_KEYCODE, 256)]
    for keycode, (plain, shifted) in US_KEYS.items():
        columns[keycode - FIRST_KEYCODE] = [plain, shifted, plain, shifted, 0, 0]
    columns[SHIFT_KEYCODE - FIRST_KEYCODE][0] = SHIFT_KEYSYM
    return columns


def test_the_us_layout_is_one() -> None:
    assert types_us(us_columns(), [SHIFT_KEYCODE])
    assert not types_us(us_columns(), [62]), "Shift is not what the layout calls so"


@pytest.mark.parametrize("seed", range(25))
def test_a_layout_with_one_key_changed_is_none(seed: int) -> None:
    chance, columns = random.Random(seed), us_columns()
    keycode = chance.choice([*US_KEYS])
    row = columns[keycode - FIRST_KEYCODE]
    how = chance.choice(("other sign", "dead key", "second layout", "earlier key"))
    if how == "other sign":
        row[0] = row[2] = 0xE4
    elif how == "dead key":
        row[1] = 0xFE50 + chance.randrange(16)
    elif how == "second layout":
        row[2:4] = 0x6C6, 0x6E6
    else:
        columns[0][chance.randrange(6)] = row[0]
    assert not types_us(columns, [SHIFT_KEYCODE]), how


def test_a_server_that_is_not_there_ends_the_program() -> None:
    words = [sys.executable, "-P", X11[2], "keys"]
    done = subprocess.run(
        words, env={"DISPLAY": ":987"}, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode != 0, done.stdout) == (True, "")


def test_where_no_window_gets_the_keys_the_text_is_left_in_the_clipboard(
    no_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("Xvfb", "xdotool", "xclip")
    xorg = Xorg()
    try:
        for name in ("DISPLAY", "XDG_SESSION_TYPE"):
            monkeypatch.setenv(name, xorg.environment[name])
        sink = sinks.WindowSink("type", Desktop(notify=False), delay=1)
        said = asyncio.run(sink.deliver("nobody reads this "))
        assert "clipboard" in (said or "")
        assert xorg.clipboard() == "nobody reads this "
    finally:
        xorg.close()
