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
    Gpu,
    Plan,
    Precision,
    dtypes,
    for_family,
    ladder,
    obstacle,
    plan,
    quantizes,
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


def test_a_family_has_a_map_of_its_own_where_one_was_measured() -> None:
    selective = TABLE["selective"]
    assert for_family(selective, "aed").parts == {**selective.parts, "decoder": "bfloat16"}
    for family in ("ctc", "rnnt", "tdt", "hybrid", "unknown"):
        assert for_family(selective, family).parts == selective.parts
    other = msgspec.structs.replace(selective, families={"rnnt": {"joint": "bfloat16"}})
    assert for_family(other, "tdt").parts == for_family(other, "hybrid").parts == {"joint": "bfloat16"}
    assert for_family(TABLE["half"], "aed") == TABLE["half"]


def test_a_users_own_map_holds_for_every_family_and_may_ask_for_int8() -> None:
    own = with_parts({"encoder": "int8"})
    assert for_family(own, "aed").parts == {"encoder": "int8"}
    assert quantizes(own)
    assert not quantizes(TABLE["selective"])
    assert dtypes(own) == {"float32", "bfloat16"}
    assert [step.name for step in ladder(own)] == ["selective", "bfloat16", "tf32", "fp32"]
    assert "bfloat16" in obstacle(own, T4)
