"""A worker's process: however it or what it started behaves, it ends when it is told to, and so
does the caller."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from asrd import protocol
from asrd.engine.process import WorkerProcess, kill_all
from asrd.precision.strategies import STRATEGY_TABLE
from tests.engine.test_engine import FAKE, alive, children
from tests.helpers import ROOT


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@asynccontextmanager
async def loaded(act: str) -> AsyncIterator[WorkerProcess]:
    """Hold a worker that said that it is ready."""
    worker = await WorkerProcess.spawn(FAKE)
    try:
        await worker.send(protocol.Start(f"*={act}", STRATEGY_TABLE["fp32"]))
        while not isinstance(await worker.receive(10.0), protocol.Ready):
            pass
        yield worker
    finally:
        await worker.end(0.0)


async def child_of(worker: WorkerProcess) -> int:
    """Return the number of what the worker started, once it was said."""
    while not (said := [line for line in worker.noise if line.startswith("child ")]):
        await asyncio.sleep(0.01)
    return int(said[0].split()[1])


def test_an_endless_line_of_noise_is_read_over_and_told_once() -> None:
    async def go() -> None:
        async with loaded("loud") as worker:
            await worker.end(5.0)
            assert worker.process.returncode == 0
            assert [line for line in worker.noise if "too long" in line] == [
                "(a line too long to be shown)"
            ]

    asyncio.run(go())


@pytest.mark.parametrize("patience", [0.0, 3.0])
@pytest.mark.parametrize("blow", [None, signal.SIGSTOP, signal.SIGKILL])
def test_the_end_takes_along_what_the_worker_started(
    patience: float, blow: signal.Signals | None
) -> None:
    async def go() -> None:
        async with loaded("parent") as worker:
            child = await child_of(worker)
            if blow is not None:
                os.kill(worker.process.pid, blow)
            began = time.monotonic()
            await worker.end(patience)
            assert time.monotonic() - began < patience + 2.0
            assert not alive(worker.process.pid)
            assert not alive(child)

    asyncio.run(go())


@pytest.mark.parametrize("patience", [0.0, 3.0])
def test_the_end_does_not_wait_for_what_left_the_workers_group(
    at_root: Path, patience: float
) -> None:
    async def go() -> None:
        async with loaded("parent-of-a-stranger") as worker:
            child = await child_of(worker)
            began = time.monotonic()
            await worker.end(patience)
            assert time.monotonic() - began < 4.0
            assert alive(child)
            os.kill(child, signal.SIGKILL)

    asyncio.run(go())
    assert list(at_root.iterdir()) == []
    assert children() == ""


def test_a_worker_that_even_a_kill_does_not_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        async with loaded("ok") as worker:
            with monkeypatch.context() as patch:
                patch.setattr("asrd.engine.process.KILL_SECONDS", 0.2)
                patch.setattr(worker, "kill", lambda: None)
                await worker.end(0.0)
            assert f"the worker {worker.process.pid} was killed and does not end" in caplog.text
            os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()

    asyncio.run(go())


def test_all_workers_are_killed_at_once_with_what_they_started() -> None:
    async def go() -> None:
        async with loaded("parent") as one, loaded("stall") as two:
            pids = [one.process.pid, two.process.pid, await child_of(one)]
            assert all(alive(pid) for pid in pids)
            kill_all()
            assert all(
                [await one._exit(2.0) == -signal.SIGKILL, await two._exit(2.0) == -signal.SIGKILL]
            )
            await asyncio.sleep(0.1)
            assert not any(alive(pid) for pid in pids)
        assert WorkerProcess.live == set()
        kill_all()

    asyncio.run(go())


def test_a_program_that_is_not_there_leaves_nothing(at_root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(WorkerProcess.spawn([str(at_root / "missing")]))
    assert list(at_root.iterdir()) == []
    assert WorkerProcess.live == set()
