"""A key that is held counts once; a person who presses twice is obeyed twice."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from asrd.daemon.key_presses import REPEAT_DELAY_SECONDS, ToggleKey
from tests.daemon.test_daemon import Start, daemon  # noqa: F401 (a fixture)
from tests.integration.screen import Sway, need

SETTLE_SECONDS = 0.5


class FakeRecorder:
    """Keeps the calls that a real recorder would act on."""

    def __init__(self) -> None:
        self.current: Any = None
        self.calls: list[str] = []

    def start(self) -> dict[str, Any]:
        assert self.current is None
        self.current = SimpleNamespace(
            recording=SimpleNamespace(id="1", seconds=0.0), began_at=time.monotonic()
        )
        self.calls.append("start")
        return {"message": "recording"}

    async def stop(self, cancelled: bool = False) -> None:
        if self.current is not None:
            self.current = None
            self.calls.append("drop" if cancelled else "stop")


def held(chance: random.Random, seconds: float = 0.0) -> list[float]:
    """Return when a held key asks for a toggle: at once, after the delay, then at the rate; up to
    30 ms late."""
    delay, interval = chance.uniform(0.2, 1.0), chance.uniform(0.02, 0.1)
    end = seconds or delay + chance.uniform(0.1, 1.2)
    moments = [0.0, *(delay + step * interval for step in range(int((end - delay) / interval) + 1))]
    return sorted(moment + chance.uniform(0, 0.03) for moment in moments)


def then(first: list[float], pause: float, second: list[float]) -> list[float]:
    """Return two rows of moments with a pause between them."""
    return first + [first[-1] + pause + moment for moment in second]


def table() -> dict[str, tuple[list[float], bool, int]]:
    """Return, by name, the moments of toggles, whether they end in a recording, and how many
    recordings stay."""
    chance, rows = random.Random(14), {}
    for number in range(10):
        rows[f"held to start {number}"] = held(chance), True, 1
    for number in range(4):
        rows[f"held to stop {number}"] = then([0.0], 1.3, held(chance)), False, 1
    for number in range(4):
        rows[f"held to start, then pressed {number}"] = (
            then(held(chance), chance.uniform(0.3, 1.5), [0.0]),
            False,
            1,
        )
    for number in range(3):
        rows[f"held, and held again {number}"] = then(held(chance), 1.3, held(chance)), False, 1
    for gap in (0.25, 0.4, 0.6, 0.9, 1.15):
        rows[f"pressed twice in {gap} s"] = [0.0, gap], False, 1
    for gap in (0.3, 0.7):
        rows[f"pressed three times, {gap} s apart"] = [0.0, gap, 2 * gap], True, 2
    rows["pressed once"] = [0.0], True, 1
    rows["pressed, and bounced"] = [0.0, 0.004, 0.011, 0.03], True, 1
    rows["pressed twice, the second bounced long after"] = [0.0, 1.5, 1.504, 1.51], False, 1
    rows["held on a slow machine"] = [0.0, 0.62, 0.93, 0.97, 1.05, 1.4, 1.44], True, 1
    return rows


TABLE = table()


async def play(moments: list[float]) -> FakeRecorder:
    """Ask for a toggle at each moment, as many processes do, and wait until the last is decided."""
    recorder, jobs = FakeRecorder(), []

    def spawn(job: Coroutine[Any, Any, Any]) -> None:
        jobs.append(asyncio.ensure_future(job))

    key = ToggleKey(recorder, recorder.start, spawn)  # type: ignore[arg-type] # stands in for a Recorder
    began = time.monotonic()
    for moment in moments:
        await asyncio.sleep(began + moment - time.monotonic())
        await key.toggle()
    await asyncio.sleep(SETTLE_SECONDS)
    await asyncio.gather(*jobs)
    return recorder


@pytest.fixture(scope="module")
def played() -> dict[str, FakeRecorder]:
    """Every row of the table, played at the same time."""

    async def everything() -> list[FakeRecorder]:
        return await asyncio.gather(*(play(moments) for moments, _, _ in TABLE.values()))

    return dict(zip(TABLE, asyncio.run(everything()), strict=True))


@pytest.mark.parametrize("name", TABLE)
def test_a_row_of_toggles_ends_as_the_person_meant_it(
    name: str, played: dict[str, FakeRecorder]
) -> None:
    moments, records, kept = TABLE[name]
    recorder = played[name]
    assert (recorder.current is not None) == records, f"{moments}: {recorder.calls}"
    if name != "held on a slow machine":  # its gap of 0.31 s is cut out of the recording
        assert recorder.calls.count("start") - recorder.calls.count("drop") == kept, (
            f"{moments}: {recorder.calls}"
        )


@pytest.fixture(scope="module")
def fired() -> list[float]:
    """When a real sway runs its binding while its key is held for 1.5 s; the process starts are its
    own."""
    need("sway", "swaymsg", "wtype")
    sway = Sway()
    try:
        for key, name in (("Mod4+d", "fired"), ("--no-repeat Mod4+e", "once")):
            script = sway.root / f"{name}.sh"
            script.write_text(f"#!/bin/sh\ndate +%s.%N >>{sway.root}/{name}\n")
            script.chmod(0o755)
            sway.bind(key, str(script))
        for key in "de":
            sway.say(
                "wtype", "-s", "300", "-M", "logo", "-P", key, "-s", "1500", "-p", key, "-m", "logo"
            )
        time.sleep(0.5)
        assert len((sway.root / "once").read_text().split()) == 1, "--no-repeat fires once"
        moments = sorted(map(float, (sway.root / "fired").read_text().split()))
        return [moment - moments[0] for moment in moments]
    finally:
        sway.close()


def ask_at(one: Any, moments: list[float]) -> list[dict[str, Any]]:
    """Ask a daemon for a toggle at each moment, one after the other; return its answers."""
    began, answers = time.monotonic(), []
    for moment in moments:
        time.sleep(max(0.0, began + moment - time.monotonic()))
        answers.append(one.ask(verb="toggle"))
    time.sleep(SETTLE_SECONDS)
    return answers


def test_the_key_of_a_real_sway_held_starts_one_recording_and_held_again_stops_it(
    fired: list[float],
    daemon: Start,  # noqa: F811 (the fixture)
) -> None:
    assert len(fired) > 10, "sway repeats a binding"
    one = daemon()
    answers = ask_at(one, fired)
    assert one.state == "LISTENING"
    [take] = {answer["recording"] for answer in answers if "recording" in answer}
    assert one.recorded(take) > fired[-1] - 0.3, "no gap that nobody records"
    time.sleep(REPEAT_DELAY_SECONDS)
    ask_at(one, fired)
    one.until(lambda: one.state == "IDLE")
    assert one.settled().count("samples") >= 1
    assert list(one.takes.iterdir()) == []
    ask_at(one, [1.2, 1.6])
    one.until(lambda: one.state == "IDLE")
    assert one.ask(verb="last")["seconds"] > 0.35


def test_a_start_that_arrives_after_the_release_starts_nothing(daemon: Start) -> None:  # noqa: F811 (the fixture)
    one = daemon()
    for verb in ("start", "start", "start", "stop"):
        one.ask(verb=verb)
    assert one.ask(verb="start")["ignored"]
    assert one.state != "LISTENING"
    time.sleep(0.3)
    assert one.ask(verb="start")["message"] == "recording"
