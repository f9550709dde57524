"""The engine against a worker that does each wrong: the caller must get its words, or one clear
error."""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from asrd import protocol
from asrd.engine.batching import WaitingBuffer, select_batch
from asrd.engine.engine import Deadlines, Engine
from asrd.engine.scratch import ScratchFolder
from asrd.errors import AudioError, EngineError, ModelError, NetworkError
from asrd.precision import gpus
from asrd.precision.plan import Candidate, Gpu, Need, Plan
from asrd.precision.strategies import STRATEGY_TABLE
from tests.fakes.worker import as_it_is
from tests.helpers import ROOT
from tests.precision.plans import plan_on

FAKE = (sys.executable, "-m", "tests.fakes.worker")
SOUND = array.array("f", [1.0] * 16_000)
HEARD = "16000 samples sum 16000"
SHORT = Deadlines(load=5.0, answer=1.0, per_second=0.0, stop=5.0)


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def engine(
    script: str,
    candidates: str = "half bfloat16 fp32",
    deadlines: Deadlines = SHORT,
    device: str = "cpu",
) -> Engine:
    plan = Plan(
        "half",
        tuple(Candidate(STRATEGY_TABLE[name], device) for name in candidates.split()),
        "test",
    )
    return Engine(
        plan,
        protocol.Start(script, STRATEGY_TABLE["fp32"]),
        deadlines=deadlines,
        command=FAKE,
        download=as_it_is,
    )


@contextlib.asynccontextmanager
async def running(script: str, candidates: str = "half bfloat16 fp32") -> AsyncIterator[Engine]:
    async with engine(script, candidates) as held:
        yield held


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children() -> str:
    """Return the numbers of this process's children, the dead that were not reaped among them."""
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()


async def turns(count: int) -> None:
    """Let the loop turn so often."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_good_worker_answers_with_the_samples_and_positions_it_was_given() -> None:
    async def go() -> None:
        async with running("*=ok") as held:
            first = await held.transcribe(SOUND, start=320)
            second = await held.transcribe(SOUND[:8000], start=16_320)
            assert (first.hypothesis.text, first.hypothesis.start) == (HEARD, 320)
            assert (second.hypothesis.text, second.hypothesis.stop) == (
                "8000 samples sum 8000",
                24_320,
            )
            assert held.candidate.precision.name == "half"
            assert held.rejected == []

    asyncio.run(go())


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        ("nan", "non-finite"),
        ("oom", "out-of-memory"),
        ("die", "died"),
        ("abort", "died"),
        ("half", "died"),
        ("kill", "killed"),
        ("freeze", "stalled"),
        ("stall", "stalled"),
        ("garbage", "garbage"),
        ("binary", "garbage"),
        ("endless", "garbage"),
        ("close", "garbage"),
        ("wrong-id", "garbage"),
        ("wrong-type", "garbage"),
        ("refuse", "unsupported"),
        ("die-loading", "died"),
        ("stall-loading", "stalled"),
        ("old", "garbage"),
    ],
)
def test_each_wrong_costs_the_candidate_and_not_the_buffer(act: str, kind: str) -> None:
    async def go() -> None:
        deadlines = Deadlines(load=2.0, answer=1.0, per_second=0.0, stop=1.0)
        async with engine(f"half={act} *=ok", deadlines=deadlines) as held:
            answer = await held.transcribe(SOUND)
            assert answer.hypothesis.text == HEARD
            assert answer.hypothesis.precision == "bfloat16"
            assert [(r.candidate, r.kind) for r in held.rejected] == [("half on cpu", kind)]

    asyncio.run(go())


@pytest.mark.parametrize("act", ["kill", "freeze"])
def test_a_blow_from_outside_costs_one_restart_and_not_the_candidate(
    act: str, at_root: Path
) -> None:
    async def go() -> None:
        async with running(f"*={act}@{at_root}/once") as held:
            answer = await held.transcribe(SOUND)
            assert (answer.hypothesis.text, answer.hypothesis.precision) == (HEARD, "half")
            assert held.rejected == []

    asyncio.run(go())


def test_a_worker_killed_between_two_buffers_is_replaced_on_the_same_candidate() -> None:
    async def go() -> None:
        async with running("*=ok") as held:
            first = await held.start()
            os.kill(first.pid, signal.SIGKILL)
            answer = await held.transcribe(SOUND)
            assert answer.hypothesis.precision == "half"
            assert held.ready is not None
            assert held.ready.pid != first.pid

    asyncio.run(go())


def test_when_no_candidate_answers_the_error_names_each_and_why_and_each_is_there_for_the_next_sound() -> (
    None
):
    async def go() -> None:
        async with running("half=nan bfloat16=oom fp32=die") as held:
            with pytest.raises(EngineError) as caught:
                await held.transcribe(SOUND)
            for part in ("half on cpu", "put out nan", "CUDA out of memory", "exit code 9"):
                assert part in caught.value.message
            assert (held.candidates, held.rejected, held.left) == (held.plan.candidates, [], [])
            assert (await held.start()).requested == "half"

    asyncio.run(go())


@pytest.mark.parametrize(("act", "error"), [("model", ModelError), ("network", NetworkError)])
def test_what_no_candidate_can_cure_is_raised_at_once(act: str, error: type[Exception]) -> None:
    async def go() -> None:
        async with running(f"*={act}") as held:
            with pytest.raises(error):
                await held.start()
            assert held.rejected == []

    asyncio.run(go())


def test_a_worker_that_is_not_what_its_candidate_says_is_refused() -> None:
    async def go() -> None:
        async with running("half=liar") as held:
            answer = await held.transcribe(SOUND)
            assert answer.hypothesis.precision == "bfloat16"
            [refused] = held.rejected
            assert (refused.candidate, refused.kind) == ("half on cpu", "dtypes")
            assert (
                refused.detail
                == "encoder is stored in float32 under half on cpu, which allows float16"
            )

    asyncio.run(go())


def test_the_component_goes_up_before_the_model_and_the_same_sound_is_asked_again() -> None:
    async def go(script: str) -> tuple[str, list[str]]:
        async with running(script) as held:
            answer = await held.transcribe(SOUND, start=320)
            assert (answer.hypothesis.text, answer.hypothesis.start) == (HEARD, 320)
            assert held.ready is not None
            assert held.ready.requested == answer.hypothesis.precision
            assert [candidate.name for candidate in held.left] == [
                one.candidate for one in held.rejected
            ]
            return answer.hypothesis.precision, [one.candidate for one in held.rejected]

    layer, encoder = "half(encoder.layers.3:float32)", "half(encoder:float32)"
    assert asyncio.run(go("half=nan-in-layer")) == (layer, ["half on cpu"])
    assert asyncio.run(go(f"half=nan-in-layer {layer}=nan-in-layer"))[0] == encoder
    every = f"half=nan-in-layer {layer}=nan-in-layer {encoder}=nan-in-layer"
    assert asyncio.run(go(every)) == (
        "bfloat16",
        [f"{name} on cpu" for name in ("half", layer, encoder)],
    )


def test_a_candidate_that_answers_is_left_where_another_helps_and_only_then() -> None:
    async def go() -> None:
        async with running("*=ok", "half fp32") as held:
            await held.transcribe(SOUND)
            half, fp32 = held.candidates
            assert await held.fall_back(half, "slow", "too slow", {"p50_ms": 5.0})
            assert held.pid is None
            assert await held.fall_back(half, "slow", "another caller thinks so too")
            assert (await held.transcribe(SOUND)).hypothesis.precision == "fp32"
            pid = held.pid
            assert not await held.fall_back(fp32, "slow", "it is the measure itself")
            assert held.pid == pid
            [left] = held.rejected
            assert (left.candidate, left.kind, left.figures) == (
                "half on cpu",
                "slow",
                {"p50_ms": 5.0},
            )

    asyncio.run(go())


def test_every_answer_is_told_with_its_length_and_each_lost_worker_is_counted(
    at_root: Path,
) -> None:
    async def go() -> None:
        told: list[tuple[float, str]] = []
        held = engine(f"*=kill@{at_root}/once")
        held._queue._on_answer = lambda seconds, phase, answer: told.append((seconds, phase))
        async with held:
            await held.transcribe(SOUND)
            await held.transcribe(SOUND[:8000], phase="partial")
            assert told == [(1.0, "final"), (0.5, "partial")]
            assert (held.failures, held.rejected) == (1, [])

    asyncio.run(go())


def test_no_child_and_no_scratch_folder_stays_behind(at_root: Path) -> None:
    async def go() -> list[int]:
        pids = []
        async with running("half=stall bfloat16=garbage *=ok") as held:
            pids.append((await held.start()).pid)
            await held.transcribe(SOUND)
            assert held.pid is not None
            pids.append(held.pid)
        return pids

    assert not any(alive(pid) for pid in asyncio.run(go()))
    assert list(at_root.iterdir()) == []


def test_what_a_killed_daemon_unpacked_goes_and_what_a_living_one_holds_stays(
    at_root: Path,
) -> None:
    held = ScratchFolder()  # of a daemon that lives
    old, fresh = at_root / "asrd-worker-old", at_root / "asrd-worker-fresh"
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "weights.ckpt").write_bytes(b"x" * 1000)
    hour_ago = time.time() - 3600
    for path in (old, Path(held.path)):
        os.utime(path, (hour_ago, hour_ago))
    again = ScratchFolder()
    assert sorted(at_root.iterdir()) == sorted([fresh, Path(held.path), Path(again.path)])
    held.remove()
    again.remove()
    again.remove()
    assert list(at_root.iterdir()) == [fresh]


@pytest.mark.parametrize("moment", ["asked", "loading", "starting"])
def test_halted_at_any_moment_it_asks_the_same_sound_again_once_it_may(
    at_root: Path, moment: str
) -> None:
    async def go() -> None:
        held = engine(
            f"*={'stall' if moment == 'asked' else 'stall-loading'}@{at_root}/once", "half"
        )
        async with held:
            if moment == "asked":
                await held.start()
            asking = asyncio.create_task(held.transcribe(SOUND, start=320))
            while held.pid is None and moment != "starting":
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3 if moment != "starting" else 0.0)
            await held.halt()
            await asyncio.sleep(0.5)
            assert held.pid is None
            assert not asking.done()
            held.go_on()
            answer = await asking
            assert (answer.hypothesis.text, answer.hypothesis.start) == (HEARD, 320)
            assert held.rejected == []

    asyncio.run(go())


def test_a_cancelled_caller_leaves_the_next_one_its_own_answer() -> None:
    async def go() -> None:
        held = engine(
            "*=stall@" + os.environ["TMPDIR"] + "/once", deadlines=Deadlines(5.0, 60.0, 0.0, 1.0)
        )
        async with held:
            await held.start()
            waiting = asyncio.create_task(held.transcribe(SOUND[:100]))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(waiting, 0.5)
            assert (await held.transcribe(SOUND)).hypothesis.text == HEARD

    asyncio.run(go())


def test_a_start_cancelled_at_any_moment_leaves_nothing(at_root: Path) -> None:
    async def go() -> None:
        for delay in range(0, 60, 3):
            held = engine("*=ok")
            starting = asyncio.create_task(held.start())
            for _ in range(delay):
                await asyncio.sleep(0)
            starting.cancel()
            async with asyncio.timeout(10):
                await asyncio.gather(starting, return_exceptions=True)
                await held.stop()
            assert list(at_root.iterdir()) == []

    asyncio.run(go())
    assert children() == ""


def test_a_start_cancelled_again_and_again_leaves_nothing(at_root: Path) -> None:
    async def go(delay: int, pause: int) -> None:
        held = engine("*=ok")
        starting = asyncio.create_task(held.start())
        await turns(delay)
        for _ in range(4):
            starting.cancel()
            await turns(pause)
        async with asyncio.timeout(10):
            await asyncio.wait([starting])
            await held.stop()
        assert list(at_root.iterdir()) == []
        assert children() == ""

    for delay in range(16):
        for pause in (1, 2, 3, 5):
            asyncio.run(go(delay, pause))


def test_the_end_of_the_loop_at_any_moment_of_a_start_or_an_end_leaves_nothing(
    at_root: Path,
) -> None:
    """What ends a loop cancels each task there is by itself; another process, as it may also wait
    for ever."""
    program = (
        "import asyncio\n"
        "from tests.engine.test_engine import children, engine, turns\n"
        "async def go(delay, cancel):\n"
        "    starting = asyncio.create_task(engine('*=ok').start())\n"
        "    await turns(delay)\n"
        "    if cancel:\n"
        "        starting.cancel()\n"
        "        await turns(delay % 3)\n"
        "for delay in range(20):\n"
        "    for cancel in (False, True):\n"
        "        asyncio.run(go(delay, cancel))\n"
        "        assert children() == '', (delay, cancel)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert list(at_root.iterdir()) == []


@pytest.mark.parametrize(("device", "most"), [("cpu", 1), ("cuda:0", 8)])
def test_callers_at_once_are_each_given_their_own(device: str, most: int) -> None:
    async def go() -> None:
        async with engine("*=ok", device=device) as held:
            answers = await asyncio.gather(
                *(held.transcribe(SOUND[: 9_000 + n], start=n) for n in range(12))
            )
            assert [a.hypothesis.text for a in answers] == [
                f"{9_000 + n} samples sum {9_000 + n}" for n in range(12)
            ]
            assert [a.hypothesis.start for a in answers] == list(range(12))
            assert [a.headroom for a in answers] == (
                [1.0] * 12 if most == 1 else [8.0] * 8 + [4.0] * 4
            )

    asyncio.run(go())


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_each_goes_on_from_what_was_said_before_it_alone(device: str) -> None:
    async def go() -> None:
        async with engine("*=ok", device=device) as held:
            context = protocol.DecodingContext("open the", 70)
            asked = [
                held.transcribe(SOUND[:100], context=context if n == 1 else None) for n in range(3)
            ]
            texts = [answer.hypothesis.text for answer in await asyncio.gather(*asked)]
            assert texts == [
                "100 samples sum 100",
                "100 samples sum 100 behind open the 70",
                "100 samples sum 100",
            ]

    asyncio.run(go())


def test_what_is_asked_together_is_alike_and_drafts_come_last() -> None:
    async def go() -> None:
        sounds = {n: memoryview(bytes(4 * n)) for n in (1_000, 1_100, 1_900, 10_000)}
        draft = WaitingBuffer(sounds[1_000], 0, "partial")
        finals = [
            WaitingBuffer(sounds[n], 0, "final") for n in (1_000, 10_000, 1_100, 1_900, 1_000)
        ]
        assert select_batch([draft], 8) == [draft]
        assert select_batch([draft, *finals], 8) == [finals[0], finals[2], finals[4]]
        assert select_batch([draft, *finals], 2) == [finals[0], finals[2]]
        assert select_batch([finals[1], draft], 8) == [finals[1]]
        assert select_batch([], 8) == []

    asyncio.run(go())


def test_callers_take_turns_however_many_ask() -> None:
    """Eight that never stop asking are answered equally often, and a draft waits for one turn of
    each other."""

    async def go() -> None:
        order: list[int] = []

        async def speak(number: int, held: Engine) -> None:
            for _ in range(10):
                await held.transcribe(SOUND, start=number)
                order.append(number)

        async with running("*=ok") as held:
            await asyncio.gather(*(speak(number, held) for number in range(8)))
        assert order == list(range(8)) * 10

    asyncio.run(go())


@pytest.mark.parametrize(("act", "kind"), [("die-between", "died"), ("nan-between", "non-finite")])
def test_a_worker_lost_among_several_costs_the_candidate_and_no_buffer(act: str, kind: str) -> None:
    async def go() -> None:
        async with engine(f"half={act} *=ok", device="cuda:0") as held:
            answers = await asyncio.gather(*(held.transcribe(SOUND, start=n) for n in range(5)))
            assert [a.hypothesis.start for a in answers] == list(range(5))
            assert {a.hypothesis.precision for a in answers} == {"bfloat16"}
            assert {a.headroom for a in answers} == {5.0}
            assert [
                (r.candidate, r.kind) for r in held.rejected if r.candidate != "CUDA graphs"
            ] == [("half", kind)]

    asyncio.run(go())


def test_no_room_for_several_costs_their_number_and_not_the_candidate() -> None:
    async def go() -> None:
        async with engine("*=crowded", device="cuda:0") as held:
            answers = await asyncio.gather(*(held.transcribe(SOUND, start=n) for n in range(5)))
            assert [a.hypothesis.start for a in answers] == list(range(5))
            assert {a.hypothesis.precision for a in answers} == {"half"}
            assert (held.max_together, held.rejected) == (1, [])

    asyncio.run(go())


def test_a_worker_that_died_is_told_by_what_it_said_and_not_by_remarks() -> None:
    async def go() -> None:
        async with engine("half=die-remarking") as held:
            await held.transcribe(SOUND)
            assert [one.detail for one in held.rejected] == [
                "the worker ended with exit code 9: Bus error"
            ]

    asyncio.run(go())


def test_when_no_candidate_answers_every_caller_is_told() -> None:
    async def go() -> None:
        async with engine("*=nan", device="cuda:0") as held:
            told = await asyncio.gather(
                *(held.transcribe(SOUND) for _ in range(3)), return_exceptions=True
            )
            assert [type(error) for error in told] == [AudioError] * 3

    asyncio.run(go())


def test_a_caller_that_leaves_does_not_take_the_others_answers_along(at_root: Path) -> None:
    """One of two that are asked together, and one of two that wait, are cancelled; nobody starts a
    worker again."""

    async def go() -> None:
        async with engine("*=ok", device="cuda:0") as held:
            pid = (await held.start()).pid
            os.kill(pid, signal.SIGSTOP)
            asked = [asyncio.create_task(held.transcribe(SOUND, start=n)) for n in range(2)]
            await asyncio.sleep(0.05)
            waiting = [asyncio.create_task(held.transcribe(SOUND, start=n)) for n in range(2, 4)]
            await asyncio.sleep(0.05)
            asked[0].cancel()
            waiting[0].cancel()
            await asyncio.sleep(0.05)
            os.kill(pid, signal.SIGCONT)
            left = await asyncio.gather(*asked, *waiting, return_exceptions=True)
            assert [type(one).__name__ for one in left] == [
                "CancelledError",
                "Answer",
                "CancelledError",
                "Answer",
            ]
            assert held.pid == pid
            assert (await held.transcribe(SOUND)).hypothesis.text == HEARD

    asyncio.run(go())


def test_callers_that_all_leave_take_the_worker_along_and_not_who_waits(at_root: Path) -> None:
    async def go() -> None:
        async with engine(
            f"*=slow@{at_root}/once", deadlines=Deadlines(answer=60.0), device="cuda:0"
        ) as held:
            asked = [asyncio.create_task(held.transcribe(SOUND, start=n)) for n in range(2)]
            while held.ready is None or held._queue.asked == []:
                await asyncio.sleep(0.01)
            pid = held.pid
            assert pid
            waiting = asyncio.create_task(held.transcribe(SOUND, start=2))
            await asyncio.sleep(0.05)
            for one in asked:
                one.cancel()
            answer = await waiting
            assert answer.hypothesis.start == 2
            assert not alive(pid)
            assert all(one.cancelled() for one in asked)

    asyncio.run(go())


def test_the_ledger_is_read_and_progress_is_told() -> None:
    async def go() -> None:
        told: list[protocol.Progress] = []
        held = engine("*=ok")
        held._session._on_progress = told.append
        async with held:
            assert (await held.measure("steady")).process == 1000
        assert [p.stage for p in told] == ["import"]

    asyncio.run(go())


def test_what_the_encoder_puts_out_is_asked_for_in_turn() -> None:
    async def go() -> None:
        async with running("*=ok") as held:
            answer, encoded = await asyncio.gather(held.transcribe(SOUND), held.encode(SOUND))
            assert answer.hypothesis.text.startswith(f"{len(SOUND)} samples")
            assert encoded == SOUND.tobytes()[: protocol.MAX_ENCODED_BYTES]

    asyncio.run(go())


def test_a_large_buffer_goes_through() -> None:
    async def go() -> None:
        async with running("*=ok") as held:
            answer = await held.transcribe(array.array("f", [0.0]) * (16_000 * 600))
            assert answer.hypothesis.text == "9600000 samples sum 0"

    asyncio.run(go())


def test_a_worker_that_does_not_take_a_large_buffer_is_stalled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asrd.engine.process.SEND_SECONDS", 0.5)

    async def go() -> None:
        async with running("*=ok") as held:
            pid = (await held.start()).pid
            os.kill(pid, signal.SIGSTOP)
            async with asyncio.timeout(10):
                answer = await held.transcribe(array.array("f", [0.0]) * (16_000 * 60))
            assert answer.hypothesis.text == "960000 samples sum 0"
            assert (held.failures, held.rejected) == (1, [])

    asyncio.run(go())


def test_a_worker_ends_when_its_daemon_is_killed(at_root: Path) -> None:
    """The worker must not outlive a daemon that got SIGKILL: its stdin ends."""
    program = (
        "import asyncio, sys, time\n"
        "from tests.engine.test_engine import engine\n"
        "async def go():\n"
        "    held = engine('*=ok')\n"
        "    print((await held.start()).pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(go())\n"
    )

    async def go() -> None:
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
        )
        assert parent.stdout is not None
        pid = int(await parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        await parent.wait()
        for _ in range(100):
            if not alive(pid):
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the worker outlived its daemon")

    asyncio.run(go())


def test_a_worker_is_gone_when_its_caller_was_cancelled_twice() -> None:
    """A signal can come while the loop is busy: then the second cancellation meets the end that the
    first began."""

    async def go() -> None:
        one = engine("*=stall", deadlines=Deadlines(answer=30.0))
        await one.start()
        pid = one.pid
        assert pid
        asking = asyncio.create_task(one.transcribe(SOUND))
        await asyncio.sleep(0.1)
        for _ in range(3):
            asking.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not alive(pid)
        assert list(Path(os.environ["TMPDIR"]).iterdir()) == []

    asyncio.run(go())


@pytest.mark.parametrize(("longest", "overdue"), [(60.0, False), (-60.0, True)])
def test_a_worker_that_is_not_ended_in_time_is_overdue(
    longest: float, overdue: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        async with engine("*=ok") as held:
            await held.start()
            worker, allowed = held._session._worker, asyncio.Event()
            assert worker is not None
            stop = worker._stop

            async def late(patience: float) -> None:
                await allowed.wait()
                await stop(patience)

            monkeypatch.setattr(worker, "_stop", late)
            monkeypatch.setattr(worker, "longest", lambda patience: longest)
            ending = asyncio.create_task(held.stop())
            await asyncio.sleep(0.05)
            assert held.overdue is overdue
            allowed.set()
            await ending
            assert not held.overdue

    asyncio.run(go())


def test_what_only_canary_knows_is_told_where_another_model_is_asked_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def go(**asked: object) -> list[str]:
        caplog.clear()
        start = msgspec.structs.replace(protocol.Start("*=ok", STRATEGY_TABLE["fp32"]), **asked)
        async with Engine(
            engine("*=ok").plan, start, deadlines=SHORT, command=FAKE, download=as_it_is
        ) as held:
            await held.start()
        return [record.message for record in caplog.records if "Canary" in record.message]

    logging.getLogger("asrd").propagate = True
    assert asyncio.run(go(source_lang="de", target_lang="de")) == []
    (told,) = asyncio.run(go(source_lang="de", target_lang="en", pnc=True))
    assert "translation and pnc" in told


# -- a card's memory
# --------------------------------------------------------------------------------------------------

MIB = 1 << 20
CARD = Gpu(0, "A card", (8, 6), 4096 * MIB, 4000 * MIB)
NEEDS = {"int8": 900, "bfloat16": 1800, "selective": 2200, "tf32": 3600, "fp32": 3600}


def on_a_card(
    script: str, name: str = "bfloat16", preset: str = "default", limit: int = 0
) -> Engine:
    made = plan_on(name, gpus=[CARD], preset=preset)
    needs = {strategy: Need(mib * MIB) for strategy, mib in NEEDS.items()}
    start = protocol.Start(script, STRATEGY_TABLE["fp32"], vram_limit=limit)
    return Engine(
        msgspec.structs.replace(made, needs=needs),
        start,
        deadlines=SHORT,
        command=FAKE,
        download=as_it_is,
    )


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """What is free of the card, in MiB, start after start; the last one stays. None: NVML cannot
    tell."""
    left: list[int | None] = [4000]

    def read(index: int) -> int | None:
        mib = left.pop(0) if len(left) > 1 else left[0]
        return None if mib is None else mib * MIB

    monkeypatch.setattr(gpus, "free_bytes", read)
    return left


@pytest.mark.parametrize(
    ("name", "preset", "act", "answers"),
    [
        ("bfloat16", "default", "oom", "fp32 on cpu"),
        ("bfloat16", "default", "oom-loading", "fp32 on cpu"),
        ("bfloat16", "aggressive", "oom", "int8"),
        ("fp32", "default", "oom", "selective"),
        ("fp32", "conservative", "oom", "fp32 on cpu"),
        ("bfloat16", "default", "nan", "tf32"),
        ("bfloat16", "aggressive", "no-device", "fp32 on cpu"),
    ],
)
def test_after_want_of_memory_only_what_needs_less_is_tried(
    free: list[int | None], name: str, preset: str, act: str, answers: str
) -> None:
    async def go() -> None:
        async with on_a_card(
            f"{name}={act}@{os.environ['TMPDIR']}/once *=ok", name, preset
        ) as held:
            answer = await held.transcribe(SOUND)
            assert answer.hypothesis.text == HEARD
            assert held.candidate.name == answers
            assert [one.candidate for one in held.rejected] == [name]

    asyncio.run(go())


def test_a_full_card_is_found_out_before_a_worker_is_started_and_no_sound_is_lost(
    free: list[int | None],
) -> None:
    async def go() -> None:
        free[:] = [1000]
        async with on_a_card("*=ok", preset="aggressive") as held:
            assert (await held.transcribe(SOUND)).hypothesis.text == HEARD
            assert held.candidate.name == "int8"
            told = "would need 1800 MiB (estimated); 1000 MiB of the card are free"
            assert [(one.candidate, one.kind, one.detail) for one in held.rejected] == [
                ("bfloat16", "no-room", told)
            ]

    asyncio.run(go())


def test_a_neighbour_that_fills_the_card_in_mid_service_costs_the_candidate_and_not_the_sound(
    free: list[int | None], at_root: Path
) -> None:
    async def go() -> None:
        free[:] = [4000, 500]
        async with on_a_card(f"bfloat16=oom@{at_root}/once *=ok", preset="aggressive") as held:
            assert (await held.start()).pid
            assert (await held.transcribe(SOUND)).hypothesis.text == HEARD
            told = [(one.candidate, one.kind) for one in held.rejected]
            assert told == [("bfloat16", "out-of-memory"), ("int8", "no-room")]
            assert held.candidate.name == "fp32 on cpu"

    asyncio.run(go())


def test_a_neighbour_that_left_gives_the_candidate_back_after_a_rest(
    free: list[int | None],
) -> None:
    async def go() -> None:
        free[:] = [100]
        async with on_a_card("*=ok") as held:
            assert (await held.start()).device == "cpu"
            await held.stop()
            free[:] = [4000]
            assert (await held.start()).device == "cuda:0"
            assert (held.candidate.name, held.rejected) == ("bfloat16", [])

    asyncio.run(go())


def test_what_failed_for_good_stays_out_after_a_rest(free: list[int | None]) -> None:
    async def go() -> None:
        async with on_a_card("bfloat16=nan tf32=die *=ok") as held:
            assert (await held.transcribe(SOUND)).hypothesis.precision == "fp32"
            await held.stop()
            await held.start()
            assert held.candidate.name == "fp32"
            assert [one.candidate for one in held.rejected] == ["bfloat16", "CUDA graphs", "tf32"]

    asyncio.run(go())


def test_a_card_that_vanished_is_not_tried_and_may_come_back(
    free: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        free[:] = [None]
        lost = ["card 0 does not answer"]
        monkeypatch.setattr(gpus, "lost_cards", lambda: lost)
        async with on_a_card("*=ok") as held:
            assert (await held.start()).device == "cpu"
            assert [(one.candidate, one.kind) for one in held.rejected] == [
                (name, "device-lost") for name in ("bfloat16", "tf32", "fp32")
            ]
            assert held.rejected[0].detail == lost[0]
            assert "nvidia-smi" in held.rejected[0].hint
            await held.stop()
            lost.clear()
            free[:] = [4000]
            assert (await held.start()).device == "cuda:0"

    asyncio.run(go())


def test_a_card_lost_under_graphs_is_tried_without_them_before_the_candidate_is_left(
    free: list[int | None],
) -> None:
    async def go() -> None:
        async with on_a_card("bfloat16=graphs *=ok") as held:
            answer = await held.transcribe(SOUND)
            assert answer.hypothesis.precision == held.candidate.name == "bfloat16"
            assert [(one.candidate, one.kind) for one in held.rejected] == [
                ("CUDA graphs", "device-lost")
            ]
            assert "graphs = false" in held.rejected[0].hint
        async with on_a_card("bfloat16=lost *=ok") as held:
            assert (await held.transcribe(SOUND)).hypothesis.precision == "tf32"
            assert [one.candidate for one in held.rejected] == ["CUDA graphs", "bfloat16"]

    asyncio.run(go())


def test_where_nvml_cannot_tell_the_worker_is_started(free: list[int | None]) -> None:
    async def go() -> None:
        free[:] = [None]
        async with on_a_card("*=ok") as held:
            assert (await held.start()).device == "cuda:0"

    asyncio.run(go())


@pytest.mark.parametrize(("act", "device"), [("large", "cpu"), ("large-by-meminfo", "cuda:0")])
def test_a_worker_above_the_budget_goes_where_the_figure_is_its_own(
    free: list[int | None], act: str, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        async with on_a_card(f"*={act}", limit=2000 * MIB) as held:
            assert (await held.start()).device == device
            told = [(one.kind, one.detail) for one in held.rejected]
            said = "the worker holds 2000 MiB (GPU, by NVML); vram_budget allows 2000 MiB"
            assert told == ([("budget", said)] if device == "cpu" else [])

    asyncio.run(go())
    assert ("other processes disturb that figure" in caplog.text) is (device != "cpu")


def test_why_a_card_cannot_be_used_is_told_with_what_helps(
    free: list[int | None], caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        async with on_a_card(f"*=no-device@{os.environ['TMPDIR']}/once") as held:
            assert (await held.start()).device == "cpu"
            assert [(one.detail, one.hint) for one in held.rejected] == [
                ("torch is built without CUDA", "install another")
            ]

    asyncio.run(go())
    assert "torch is built without CUDA (install another)" in caplog.text
