"""Rehearsed trouble: what is asked for, what a recognizer then does, and real workers that end with
all of the text."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from asrd import protocol
from asrd.audio import files
from asrd.config import faults
from asrd.config.faults import Fault, parse
from asrd.config.loading import load
from asrd.config.settings import Settings
from asrd.dictation import shadow
from asrd.dictation.idle_tasks import IdleTasks
from asrd.engine.engine import Engine
from asrd.engine.planner import plan_for, start_for
from asrd.errors import ConfigError
from asrd.paths import DATA_FOLDER
from asrd.precision.memory import Memory
from asrd.precision.plan import Candidate, Plan
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.worker import fault_injection
from asrd.worker.fault_injection import rehearse, strikes
from tests.dictation.test_transcriber import Room, until

EVALUATION = DATA_FOLDER / "eval"
HALF = protocol.Start("demo", STRATEGY_TABLE["half"])


def test_faults_are_read() -> None:
    assert parse("") == ()
    assert parse("non-finite:3, oom:5") == (Fault("non-finite", 3), Fault("oom", 5))
    assert parse("non-finite:1:encoder.layers.0") == (Fault("non-finite", 1, "encoder.layers.0"),)
    for wrong in ("nan:3", "oom", "oom:0", "oom:x", "oom:3:encoder", ":1"):
        with pytest.raises(ConfigError):
            parse(wrong)


def test_a_wrong_fault_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown fault .oon. \(ASRD_FAULTS\)"):
        load(environment={"HOME": str(tmp_path), "ASRD_FAULTS": "oon:1"})


def test_every_kind_is_done_somehow() -> None:
    assert set(fault_injection.STRIKE) == set(faults.KINDS)
    assert set(fault_injection.LASTING_KINDS) | set(fault_injection.PRECISION_KINDS) <= set(
        faults.KINDS
    )


@pytest.mark.parametrize("kind", faults.KINDS)
def test_the_last_resort_is_never_struck(kind: str) -> None:
    fault = Fault(kind, 1)
    on_card = msgspec.structs.replace(HALF, device="cuda:0")
    assert strikes(fault, HALF)
    assert strikes(fault, on_card)
    assert not strikes(fault, msgspec.structs.replace(HALF, precision=STRATEGY_TABLE["fp32"]))
    exact = msgspec.structs.replace(on_card, precision=STRATEGY_TABLE["fp32"])
    assert strikes(fault, exact) is (kind not in fault_injection.PRECISION_KINDS)


class Recognizer:
    """Hears the same every time."""

    def recognize_together(self, sounds: list[bytes], *_: Any) -> list[protocol.Answer]:
        words = [protocol.Word("open", 0, 10), protocol.Word("it", 10, 20)]
        heard = protocol.Hypothesis("open it", words, 0, 20, "half")
        return [protocol.Answer(0, heard, 0.01, 0.005, 0.01) for _ in sounds]

    def measure(self) -> Memory:
        return Memory(process=100)


def rehearsed(text: str, count: int = 4, start: protocol.Start = HALF) -> list[Any]:
    """Return what a recognizer answers, buffer by buffer."""
    one = Recognizer()
    rehearse(one, msgspec.structs.replace(start, faults=text))
    found: list[Any] = []
    for _ in range(count):
        try:
            found += one.recognize_together([b""], [0], "final")
        except MemoryError as error:
            found.append(str(error))
    return [*found, one.measure().process]


def test_each_strikes_at_its_buffer() -> None:
    *plain, memory = rehearsed("")
    assert memory == 100
    struck = rehearsed("oom:3")
    assert struck == [*plain[:2], "out of memory (rehearsed)", plain[3], 100]
    texts = [answer.hypothesis.text for answer in rehearsed("empty:2")[:-1]]
    assert texts == ["open it", "", "", ""]
    texts = [answer.hypothesis.text for answer in rehearsed("garbled:4")[:-1]]
    assert texts == ["open it"] * 3 + ["garbled it"]
    began = time.perf_counter()
    assert [answer.seconds for answer in rehearsed("slow:3")[:-1]] == [0.01, 0.01, 0.04, 0.04]
    assert time.perf_counter() - began >= 0.06
    assert rehearsed("memory:4")[-1] == 1600
    assert rehearsed("memory:5")[-1] == 100
    fp32 = msgspec.structs.replace(HALF, precision=STRATEGY_TABLE["fp32"])
    assert rehearsed("oom:1,empty:1,slow:1,memory:1", start=fp32) == [*plain, 100]


# -- real workers
# -----------------------------------------------------------------------------------------------------


@cache
def clips(count: int) -> list[np.ndarray]:
    lines = (EVALUATION / "manifest.jsonl").read_text().splitlines()[:count]
    return [files.read(EVALUATION / json.loads(line)["audio_filepath"]) for line in lines]


@cache
def heard(
    strategy: str, trouble: str
) -> tuple[list[str], list[str], list[tuple[str, str]], dict[str, str]]:
    """Return texts, strategies that gave them, candidates that were left and why, and what runs in
    what at the end."""
    settings = Settings(model="demo-ctc", strategy=strategy, device="cpu", faults=trouble)

    async def go() -> tuple[list[str], list[str], list[tuple[str, str]], dict[str, str]]:
        async with Engine(plan_for(settings), start_for(settings)) as engine:
            answers = [(await engine.transcribe(samples)).hypothesis for samples in clips(5)]
            assert engine.ready is not None
            left = [(one.candidate.removesuffix(" on cpu"), one.kind) for one in engine.rejected]
            texts, names = (
                [answer.text for answer in answers],
                [answer.precision for answer in answers],
            )
            return texts, names, left, engine.ready.effective

    return asyncio.run(go())


def test_real_workers_go_by_the_component_to_fp32_and_no_word_is_lost() -> None:
    expected, _, nothing, _ = heard("fp32", "non-finite:3:*,oom:1")
    assert nothing == []
    texts, names, left, effective = heard("bfloat16", "non-finite:3:*")
    assert texts == expected
    encoder = "bfloat16(encoder:float32)"
    assert names == ["bfloat16", "bfloat16", encoder, encoder, "fp32"]
    assert left == [("bfloat16", "non-finite"), (encoder, "non-finite")]
    assert set(effective.values()) == {"float32"}


def test_real_workers_stay_with_the_layer_that_cures() -> None:
    texts, names, left, effective = heard("bfloat16", "non-finite:2:encoder.layers.1")
    assert texts == heard("fp32", "non-finite:3:*,oom:1")[0]
    assert [name for name, _ in itertools.groupby(names)] == [
        "bfloat16",
        "bfloat16(encoder.layers.1:float32)",
    ]
    assert left == [("bfloat16", "non-finite")]
    assert set(effective["encoder"].split("/")) == {"bfloat16", "float32"}
    assert effective["decoder"] == "bfloat16"


def test_a_plan_of_one_candidate_fails_as_it_did() -> None:
    """What is compared must not be replaced by something softer."""

    async def go() -> list[tuple[str, str]]:
        plan = Plan("bfloat16", (Candidate(STRATEGY_TABLE["bfloat16"], "cpu"),), "test")
        start = msgspec.structs.replace(
            HALF, model="demo-ctc", faults="non-finite:1:encoder.layers.1"
        )
        async with Engine(plan, start) as engine:
            with pytest.raises(Exception, match=r"beginning in encoder\.layers\.1"):
                await engine.transcribe(clips(1)[0])
            return [(one.candidate, one.kind) for one in engine.rejected]

    assert asyncio.run(go()) == [("bfloat16 on cpu", "non-finite")]


class RealRoom(Room):
    """A transcriber over workers that hold the shipped model."""

    def hold(self, plan: Plan, start: protocol.Start, **more: Any) -> Engine:
        self.engines.append(Engine(plan, start, **more))
        return self.engines[-1]


def test_a_real_shadow_counts_the_words_that_a_worker_was_made_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One clip through the daemon's own path; the second worker hears it in FP32, where no fault
    strikes."""
    monkeypatch.setattr(shadow, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(shadow, "machine_is_idle", lambda: True)
    caplog.set_level(logging.INFO, "asrd")
    trouble = {
        "faults": "garbled:1",
        "strategy": "bfloat16",
        "device": "cpu",
        "shadow": 1,
        "keep_audio": "never",
    }

    async def go() -> None:
        one = RealRoom(tmp_path, "demo-ctc", **trouble)
        tasks = [
            asyncio.create_task(one.transcriber.run()),
            asyncio.create_task(IdleTasks(one.slot).run()),
        ]
        try:
            async with asyncio.timeout(300):
                result = await one.say(clips(1)[0]).result
                assert result.text.startswith("garbled me to open")
                await until(lambda: one.slot.shadow.figures["recordings"] == 1)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for engine in one.engines:
                await engine.stop()
        figures = one.slot.shadow.figures
        assert (figures["strategy"], figures["changed"], figures["words"]) == (
            "bfloat16",
            1,
            len(result.text.split()),
        )
        assert not list(one.spool.where.iterdir())
        assert "open a teacher" not in "".join(str(vars(record)) for record in caplog.records)

    asyncio.run(go())
