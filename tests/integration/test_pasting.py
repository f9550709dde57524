"""A paste counts when the focused window took the text; a clipboard manager's fetch is none."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest

from asrd.desktop.keyboard import UnprovedError, by_pasting
from tests.integration.screen import Window, Xorg, need, until

FORMER = "former content"

POLLS = "while :; do xclip -selection clipboard -o >/dev/null 2>&1; sleep {}; done"
"""A clipboard manager that looks again and again."""

KEEPS = (
    "while :; do if new=$(xclip -selection clipboard -o -t UTF8_STRING 2>/dev/null); then kept=$new; "
    'else printf %s "$kept" | xclip -selection clipboard -in; fi; sleep {}; done'
)
"""One that also fills a clipboard that became empty."""

MANAGERS = {"none": "", "polls": POLLS, "keeps": KEEPS}


class Case(NamedTuple):
    """A paste: the manager that runs, and how long the window answers nothing; None: it ignores the
    chord."""

    manager: str
    period: float
    late_seconds: float | None


def cases() -> dict[str, Case]:
    """Return the members by name; a window that takes the chord gets the text, and the clipboard is
    as before."""
    chance, made = random.Random(6), {}
    for number in range(24):
        manager = ("none", "polls", "keeps")[number % 3]
        late = None if number % 4 == 3 else chance.choice((0.0, chance.uniform(0.3, 2.0)))
        case = Case(manager, round(chance.uniform(0.05, 0.6), 2), late)
        answers = "ignores it" if late is None else f"after {late:.1f} s"
        made[f"{number}: {manager} each {case.period} s, window {answers}"] = case
    return made


CASES = cases()


class Outcome(NamedTuple):
    """What a paste came to."""

    proved: bool
    text: str
    typed: str
    clipboard: str
    primary: str


class Desk:
    """An X server with a window that has the focus."""

    def __init__(self, ignores: bool) -> None:
        self.xorg = Xorg()
        action = "ignore()" if ignores else "insert-selection(CLIPBOARD)"
        self.window: Window = self.xorg.window("t", f"#override Shift<KeyPress>Insert: {action}")
        self._group = self.xorg.processes[-1].pid

    @contextmanager
    def manager(self, case: Case) -> Iterator[None]:
        """Have a clipboard manager."""
        if case.manager == "none":
            yield
            return
        process = self.xorg.start("sh", "-c", MANAGERS[case.manager].format(case.period))
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    async def paste(self, text: str, case: Case) -> Outcome:
        """Paste a text, with the window stopped for as long as the case says."""
        await asyncio.to_thread(
            self.xorg.say,
            "sh",
            "-c",
            f"printf %s '{FORMER}' | xclip -selection clipboard >log 2>&1",
        )
        before, loop = self.window.text, asyncio.get_running_loop()
        with self.manager(case):
            await asyncio.sleep(2 * case.period)
            if case.late_seconds:
                os.killpg(self._group, signal.SIGSTOP)
                loop.call_later(case.late_seconds, os.killpg, self._group, signal.SIGCONT)
            try:
                await by_pasting(text, "xdotool", self.xorg.environment)
                proved = True
            except UnprovedError:
                proved = False
            await asyncio.sleep(0.3)
            typed = self.window.text.removeprefix(before)
        return Outcome(proved, text, typed, self.content("clipboard"), self.content("primary"))

    def content(self, selection: str) -> str:
        """Return what a selection has; "" when it is empty."""
        read = f"xclip -selection {selection} -o -t UTF8_STRING 2>/dev/null || true"
        return self.xorg.say("sh", "-c", read)


async def paste_all(desk: Desk, names: list[str]) -> dict[str, Outcome]:
    """Paste one after the other at one desk."""
    return {
        name: await desk.paste(f"Grüße {number}, 你好 ", CASES[name])
        for number, name in enumerate(names)
    }


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """Every case, at four desks at the same time."""
    need("Xvfb", "xterm", "xdotool", "xclip")
    ignored = [name for name, case in CASES.items() if case.late_seconds is None]
    taken = [name for name in CASES if name not in ignored]
    rows = [ignored[::2], ignored[1::2], taken[::2], taken[1::2]]

    async def everything(desks: list[Desk]) -> list[dict[str, Outcome]]:
        return await asyncio.gather(*(paste_all(*pair) for pair in zip(desks, rows, strict=True)))

    with ExitStack() as stack:
        desks = [Desk(ignores) for ignores in (True, True, False, False)]
        for desk in desks:
            stack.callback(desk.xorg.close)
        return {name: each for row in asyncio.run(everything(desks)) for name, each in row.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_in_the_window_or_in_the_clipboard(
    name: str, outcomes: dict[str, Outcome]
) -> None:
    found = outcomes[name]
    if CASES[name].late_seconds is None:
        assert found == Outcome(False, found.text, "", found.text, found.text)
    else:
        assert found == Outcome(True, found.text, found.text, FORMER, "")


def test_a_window_that_is_later_than_asrd_waits_pastes_the_text_and_nothing_else() -> None:
    need("Xvfb", "xterm", "xdotool", "xclip")
    desk = Desk(ignores=False)
    try:
        late = Case("polls", 0.1, 5.0)
        found = asyncio.run(desk.paste("too late ", late))
        assert (found.proved, found.typed, found.clipboard) == (False, "", "too late ")
        os.killpg(desk._group, signal.SIGCONT)
        until(lambda: desk.window.text == "too late ", "the paste")
        time.sleep(0.3)
        assert desk.content("clipboard") == "too late "
    finally:
        desk.xorg.close()
