"""Strategies and plans: pure functions of the request and the card."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrd.errors import PrecisionError, UsageError
from asrd.precision import (
    PRESETS,
    TABLE,
    Evidence,
    Gpu,
    Plan,
    Precision,
    candidates,
    dtypes,
    ladder,
    obstacle,
    plan,
    select,
    with_parts,
)

T4 = Gpu(0, "Tesla T4", (7, 5), 16 << 30, 15 << 30)
A1000 = Gpu(1, "NVIDIA RTX A1000", (8, 6), 4 << 30, 3 << 30)


def names(made: Plan) -> list[str]:
    return [rung.name for rung in made.rungs]


def test_the_table_has_every_strategy() -> None:
    assert " ".join(TABLE) == (
        "fp32 tf32 16-mixed bf16-mixed half bfloat16 half-naive autocast-fp16 autocast-bf16 selective phased int8"
    )


@pytest.mark.parametrize("name", TABLE)
def test_a_strategy_survives_the_wire(name: str) -> None:
    assert msgspec.json.decode(msgspec.json.encode(TABLE[name]), type=Precision) == TABLE[name]


def test_only_the_baseline_is_plain() -> None:
    plain = [p.name for p in TABLE.values() if msgspec.structs.replace(p, name="", summary="") == Precision("")]
    assert plain == ["fp32"]


def test_no_card_means_the_cpu_and_says_so() -> None:
    made = plan("auto")
    assert names(made) == ["fp32 on cpu"]
    assert "no GPU" in made.reason


def test_a_strategy_on_the_cpu_falls_to_fp32() -> None:
    assert names(plan("half", "cpu", [A1000])) == ["half on cpu", "fp32 on cpu"]


def test_native_bfloat16_needs_a_capability_and_emulation_does_not_count() -> None:
    made = plan("bfloat16", gpus=[T4])
    assert names(made) == ["fp32", "fp32 on cpu"]
    assert "8.0" in made.reason
    assert "emulate" in made.reason
    assert [r.kind for r in made.rejected] == ["hardware", "hardware"]


def test_auto_is_honest_about_not_having_measured() -> None:
    made = plan("auto", gpus=[A1000])
    assert names(made)[0] == "bfloat16"
    assert "not measured" in made.reason
    assert names(plan("auto", gpus=[T4]))[0] == "fp32"
    assert names(plan("auto", gpus=[A1000], preset="conservative"))[0] == "tf32"


def test_auto_goes_by_evidence_and_never_by_stale_evidence() -> None:
    made = plan("auto", gpus=[A1000], evidence=Evidence("selective", "measured here: cheap"))
    assert names(made) == ["selective", "tf32", "fp32", "fp32 on cpu"]
    assert made.reason == "measured here: cheap"
    stale = plan("auto", gpus=[A1000], evidence=Evidence("selective", "measured here: cheap", stale="torch is another"))
    assert names(stale)[0] == "bfloat16"
    assert "stale: torch is another" in stale.reason
    assert names(plan("half", gpus=[A1000], evidence=Evidence("selective", "")))[0] == "half"


def test_evidence_may_take_what_hardware_alone_never_would_and_nothing_else() -> None:
    for chosen in ("half", "int8"):
        assert names(plan("auto", gpus=[A1000], preset="aggressive", evidence=Evidence(chosen, "")))[0] == chosen
        assert names(plan("auto", gpus=[A1000], evidence=Evidence(chosen, "")))[0] == "bfloat16", "not of this preset"
    assert names(plan("auto", gpus=[T4], evidence=Evidence("bfloat16", "")))[0] == "fp32", "not on this card"


def test_what_was_refused_is_no_rung_but_fp32_always_is() -> None:
    evidence = Evidence("bfloat16", "", {"tf32": "costs too much", "fp32": "nonsense", "bfloat16": "nonsense"})
    made = plan("auto", gpus=[A1000], evidence=evidence)
    assert names(made) == ["bfloat16", "fp32", "fp32 on cpu"]
    assert [(one.rung, one.kind) for one in made.rejected] == [("tf32", "measured")]


def test_candidates_end_with_fp32_and_the_cpu_has_fewer() -> None:
    assert [p.name for p in candidates("default", A1000)] == ["bfloat16", "selective", "tf32", "fp32"]
    assert [p.name for p in candidates("default", None)] == ["bfloat16", "fp32"]
    assert [p.name for p in candidates("aggressive", None)] == ["int8", "bfloat16", "fp32"]
    assert [p.name for p in candidates("conservative", None)] == ["fp32"]
    assert names(plan("auto", evidence=Evidence("bfloat16", ""))) == ["bfloat16 on cpu", "fp32 on cpu"]
    assert "leaves only FP32" in plan("auto", preset="conservative").reason


@pytest.mark.parametrize("name", TABLE)
def test_a_ladder_starts_at_the_request_ends_at_fp32_and_never_climbs_to_float16(name: str) -> None:
    steps = ladder(TABLE[name])
    assert steps[0].name == name
    assert steps[-1].name == "fp32"
    assert all("float16" not in dtypes(step) for step in steps[1:])
    assert len({step.name for step in steps}) == len(steps)


@given(st.sampled_from([*TABLE, "auto"]), st.integers(5, 12), st.integers(0, 9), st.sampled_from(list(PRESETS)))
def test_a_plan_never_holds_a_rung_that_the_card_cannot_run(name: str, major: int, minor: int, preset: str) -> None:
    card = Gpu(0, "card", (major, minor), 1, 1)
    made = plan(name, gpus=[card], preset=preset)
    assert made.rungs[-1].device == "cpu"
    assert made.reason
    for rung in made.rungs[:-1]:
        assert not obstacle(rung.precision, card)


@pytest.mark.parametrize(
    ("wanted", "device"),
    [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("a1000", "cuda:1"), ("cpu", "cpu")],
)
def test_a_card_is_chosen_by_index_name_or_free_memory(wanted: str, device: str) -> None:
    assert plan("fp32", wanted, [T4, A1000]).rungs[0].device == device


@pytest.mark.parametrize("wanted", ["cuda:7", "H200", "cuda:x"])
def test_a_card_that_is_not_there_is_an_error_that_lists_those_that_are(wanted: str) -> None:
    with pytest.raises(PrecisionError) as caught:
        plan("fp32", wanted, [T4])
    assert "Tesla T4" in caught.value.hint


def test_selections() -> None:
    assert [p.name for p in select("all")] == list(TABLE)
    assert [p.name for p in select("half, fp32,half")] == ["half", "fp32"]
    assert [p.name for p in select("default")] == list(PRESETS["default"].candidates)
    for bad in ("", ",", "bf17", "half,,x"):
        with pytest.raises(UsageError):
            select(bad)


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(UsageError) as caught:
        plan("bflaot16")
    assert "'bfloat16'" in caught.value.hint


def test_parts_are_checked() -> None:
    assert with_parts({"joint": "float16"}).parts == {"joint": "float16"}
    with pytest.raises(UsageError, match="float8"):
        with_parts({"joint": "float8"})
