"""Sleep against a logind of its own on a private bus: what is held when, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asrd.daemon import logind
from tests.helpers import ROOT

TIMEOUT = 30.0

BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>unix:path={path}</listen><auth>EXTERNAL</auth><policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/><allow user="*"/></policy>
</busconfig>"""


@pytest.fixture
def bus_program() -> str:
    found = shutil.which("dbus-daemon")
    if found is None and not os.environ.get("CI"):
        pytest.skip("no dbus-daemon: apt-get install dbus-daemon")
    assert found, "no dbus-daemon: apt-get install dbus-daemon"
    return found


class Machine:
    """A private system bus with a logind on it, and what that logind has said."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder, self.program = folder, program
        self.running: list[asyncio.subprocess.Process] = []
        self.login1: asyncio.subprocess.Process | None = None
        self.early: list[str] = []

    async def boot(self, bus: bool = True, delay: float = 5.0) -> None:
        if bus:
            config = self.folder / "bus.conf"
            config.write_text(BUS.format(path=self.folder / "bus"))
            words = [self.program, f"--config-file={config}", "--nofork", "--print-address"]
            daemon = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
            self.running.append(daemon)
            assert daemon.stdout
            assert await asyncio.wait_for(daemon.stdout.readline(), TIMEOUT)
        self.login1 = await asyncio.create_subprocess_exec(
            *[sys.executable, str(ROOT / "tests" / "fakes" / "login1.py"), str(delay)],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self.running.append(self.login1)
        while (
            said := await self.heard()
        ) != "ready":  # a client may be faster than the line that says so
            self.early.append(said)

    async def says(self) -> str:
        return self.early.pop(0) if self.early else await self.heard()

    async def heard(self) -> str:
        assert self.login1
        assert self.login1.stdout
        return (await asyncio.wait_for(self.login1.stdout.readline(), TIMEOUT)).decode().strip()

    def do(self, line: str) -> None:
        assert self.login1
        assert self.login1.stdin
        self.login1.stdin.write(f"{line}\n".encode())

    async def end(self) -> None:
        for process in reversed(self.running):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def machine(folder: Path, program: str, delay: float = 5.0) -> AsyncIterator[Machine]:
    it = Machine(folder, program)
    try:
        await it.boot(delay=delay)
        yield it
    finally:
        await it.end()


@pytest.fixture(autouse=True)
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path / 'bus'}")


class Notes(asyncio.Queue[str]):
    """What the two calls did, in order."""

    async def next(self) -> str:
        return await asyncio.wait_for(self.get(), TIMEOUT)

    async def sleep(self) -> None:
        self.put_nowait("sleep")

    async def wake(self) -> None:
        self.put_nowait("wake")


INHIBIT = "inhibit sleep asrd delay"


def test_sleep_waits_for_the_call_and_waking_takes_a_new_inhibitor(
    tmp_path: Path, bus_program: str
) -> None:
    async def scene() -> None:
        notes, may_sleep = Notes(), asyncio.Event()

        async def on_sleep() -> None:
            notes.put_nowait("flushing")
            await may_sleep.wait()
            notes.put_nowait("flushed")

        async with machine(tmp_path, bus_program) as it:
            sleep = logind.SleepInhibitor(on_sleep, notes.wake)
            assert await sleep.start()
            assert await it.says() == INHIBIT
            for _ in range(2):
                may_sleep.clear()
                it.do("sleep")
                assert await notes.next() == "flushing"
                assert sleep.held
                may_sleep.set()
                assert await it.says() == "released"
                assert await notes.next() == "flushed"
                it.do("wake")
                assert await it.says() == INHIBIT
                assert await notes.next() == "wake"
            await sleep.stop()
            assert await it.says() == "released"

    asyncio.run(scene())


def test_a_call_that_never_ends_is_cancelled_before_the_limit(
    tmp_path: Path, bus_program: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        notes = Notes()

        async def on_sleep() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                notes.put_nowait("cancelled")

        async with machine(tmp_path, bus_program, delay=0.4) as it:
            sleep = logind.SleepInhibitor(on_sleep, notes.wake)
            assert await sleep.start()
            assert await it.says() == INHIBIT
            it.do("sleep")
            assert await notes.next() == "cancelled"
            assert await it.says() == "released"
            await sleep.stop()

    with caplog.at_level(logging.WARNING, "asrd"):
        asyncio.run(scene())
    assert "not ready to sleep within 0.2 s" in caplog.text


def test_a_call_that_fails_still_lets_the_machine_sleep_and_is_logged(
    tmp_path: Path, bus_program: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        notes = Notes()

        async def on_sleep() -> None:
            raise RuntimeError("the worker would not end")

        async with machine(tmp_path, bus_program) as it:
            sleep = logind.SleepInhibitor(on_sleep, notes.wake)
            assert await sleep.start()
            assert await it.says() == INHIBIT
            it.do("sleep")
            assert await it.says() == "released"
            it.do("wake")
            assert await it.says() == INHIBIT
            assert await notes.next() == "wake"
            await sleep.stop()

    asyncio.run(scene())
    assert "the worker would not end" in caplog.text


def test_sleeping_again_cancels_what_waking_still_does(tmp_path: Path, bus_program: str) -> None:
    async def scene() -> None:
        notes = Notes()

        async def on_wake() -> None:
            notes.put_nowait("loading")
            try:
                await asyncio.Event().wait()
            finally:
                notes.put_nowait("dropped")

        async with machine(tmp_path, bus_program) as it:
            sleep = logind.SleepInhibitor(notes.sleep, on_wake)
            assert await sleep.start()
            assert await it.says() == INHIBIT
            it.do("sleep")
            assert await notes.next() == "sleep"
            it.do("wake")
            assert await notes.next() == "loading"
            it.do("sleep")
            assert {await notes.next(), await notes.next()} == {"dropped", "sleep"}
            await sleep.stop()

    asyncio.run(scene())


def test_only_logind_itself_is_believed(tmp_path: Path, bus_program: str) -> None:
    async def scene() -> None:
        notes = Notes()
        async with machine(tmp_path, bus_program) as it:
            sleep = logind.SleepInhibitor(notes.sleep, notes.wake)
            assert await sleep.start()
            assert await it.says() == INHIBIT
            it.do("forged")
            assert await it.says() == "forged"
            it.do("sleep")
            assert await it.says() == "released"
            it.do("wake")
            assert await it.says() == INHIBIT
            assert [await notes.next(), await notes.next()] == ["sleep", "wake"]
            assert notes.empty()
            await sleep.stop()

    asyncio.run(scene())


def test_a_logind_that_starts_anew_is_asked_again_without_waking_anything(
    tmp_path: Path, bus_program: str
) -> None:
    async def scene() -> None:
        notes = Notes()
        async with machine(tmp_path, bus_program) as it:
            sleep = logind.SleepInhibitor(notes.sleep, notes.wake)
            assert await sleep.start()
            assert await it.says() == INHIBIT
            it.do("quit")
            assert it.login1
            await it.login1.wait()
            await it.boot(bus=False)
            assert await it.says() == INHIBIT
            it.do("sleep")
            assert await it.says() == "released"
            assert await notes.next() == "sleep"
            await sleep.stop()
            assert notes.empty()

    asyncio.run(scene())


def test_a_bus_that_starts_anew_is_found_again(
    tmp_path: Path,
    bus_program: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logind, "RETRY", (0.05, 0.1))

    async def scene() -> None:
        notes = Notes()
        async with machine(tmp_path, bus_program) as it:
            sleep = logind.SleepInhibitor(notes.sleep, notes.wake)
            assert await sleep.start()
            await it.end()
            it.running.clear()
            (tmp_path / "bus").unlink(missing_ok=True)
            await it.boot()
            assert await it.says() == INHIBIT
            it.do("sleep")
            assert await notes.next() == "sleep"
            assert await it.says() == "released"
            await sleep.stop()

    asyncio.run(scene())
    assert "the system bus is gone" in caplog.text


def test_a_machine_that_woke_while_its_bus_was_gone_is_awake_for_us_too(
    tmp_path: Path, bus_program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logind, "RETRY", (0.05, 0.1))

    async def scene() -> None:
        notes = Notes()
        async with machine(tmp_path, bus_program) as it:
            sleep = logind.SleepInhibitor(notes.sleep, notes.wake)
            assert await sleep.start()
            assert await it.says() == INHIBIT
            it.do("sleep")
            assert await it.says() == "released"
            assert await notes.next() == "sleep"
            await it.end()
            it.running.clear()
            (tmp_path / "bus").unlink(missing_ok=True)
            await it.boot()
            assert await notes.next() == "wake"
            await sleep.stop()
            assert notes.empty()

    asyncio.run(scene())


def test_without_a_bus_or_a_logind_nothing_happens(
    tmp_path: Path, bus_program: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        notes = Notes()
        sleep = logind.SleepInhibitor(notes.sleep, notes.wake)
        assert not await sleep.start()
        async with machine(tmp_path, bus_program) as it:
            it.do("quit")
            assert it.login1
            await it.login1.wait()
            assert not await sleep.start()
        assert not sleep.held
        await sleep.stop()

    with caplog.at_level(logging.DEBUG, "asrd"):
        asyncio.run(scene())
    ours = [record for record in caplog.records if record.name == "asrd"]
    assert [record.levelno for record in ours] == [logging.DEBUG] * 2
