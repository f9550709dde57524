"""Strategies and plans: pure functions of the request and the card."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrd.errors import ConfigError, PrecisionError
from asrd.precision.fallback import candidates_after
from asrd.precision.needs import fitted, needs_less, width
from asrd.precision.plan import (
    Candidate,
    Evidence,
    Gpu,
    Need,
    Plan,
    Rejected,
    candidates,
    fallback_order,
    for_family,
    obstacle,
)
from asrd.precision.strategies import (
    AUTO_PRESETS,
    STRATEGY_TABLE,
    Precision,
    dtypes,
    quantizes,
    select,
    with_parts,
)
from tests.precision.plans import kinds_that, plan_on

T4 = Gpu(0, "Tesla T4", (7, 5), 16 << 30, 15 << 30)
A1000 = Gpu(1, "NVIDIA RTX A1000", (8, 6), 4 << 30, 3 << 30)


def names(made: Plan) -> list[str]:
    return [candidate.name for candidate in made.candidates]


def test_the_table_has_every_strategy() -> None:
    assert " ".join(STRATEGY_TABLE) == (
        "fp32 tf32 16-mixed bf16-mixed half bfloat16 half-naive autocast-fp16 autocast-bf16 selective phased int8"
    )


@pytest.mark.parametrize("name", STRATEGY_TABLE)
def test_a_strategy_survives_the_wire(name: str) -> None:
    assert (
        msgspec.json.decode(msgspec.json.encode(STRATEGY_TABLE[name]), type=Precision)
        == STRATEGY_TABLE[name]
    )


def test_only_the_baseline_is_plain() -> None:
    plain = [
        p.name
        for p in STRATEGY_TABLE.values()
        if msgspec.structs.replace(p, name="", summary="") == Precision("")
    ]
    assert plain == ["fp32"]


def test_no_card_means_the_cpu_and_says_so() -> None:
    made = plan_on("auto")
    assert names(made) == ["fp32 on cpu"]
    assert "no GPU" in made.reason


def test_a_cpu_that_was_asked_for_is_not_called_a_missing_card() -> None:
    assert (
        plan_on("auto", "cpu", [A1000]).reason
        == "device = cpu, so FP32 on the CPU; not measured: asrd tune"
    )
    assert (
        plan_on("auto", "cpu", [A1000], "conservative").reason
        == "preset conservative leaves only FP32 on the CPU"
    )
    assert plan_on("auto").reason == "no GPU, so FP32 on the CPU; not measured: asrd tune"


def test_a_strategy_on_the_cpu_falls_to_fp32() -> None:
    assert names(plan_on("half", "cpu", [A1000])) == ["half on cpu", "fp32 on cpu"]


def test_native_bfloat16_needs_a_capability_and_emulation_does_not_count() -> None:
    made = plan_on("bfloat16", gpus=[T4])
    assert names(made) == ["fp32", "fp32 on cpu"]
    assert "8.0" in made.reason
    assert "emulate" in made.reason
    assert [r.kind for r in made.rejected] == ["hardware", "hardware"]


def test_auto_is_honest_about_not_having_measured() -> None:
    made = plan_on("auto", gpus=[A1000])
    assert names(made)[0] == "bfloat16"
    assert "not measured" in made.reason
    assert names(plan_on("auto", gpus=[T4]))[0] == "fp32"
    assert names(plan_on("auto", gpus=[A1000], preset="conservative"))[0] == "tf32"


@pytest.mark.parametrize(
    ("card", "preset", "reason"),
    [
        (A1000, "default", "preset default on NVIDIA RTX A1000, by hardware alone"),
        (
            A1000,
            "aggressive",
            "preset aggressive on NVIDIA RTX A1000, by hardware alone; int8 must be measured first",
        ),
        (T4, "default", "Tesla T4 has neither native bfloat16 nor TF32"),
        (
            T4,
            "aggressive",
            "Tesla T4 has neither native bfloat16 nor TF32; half must be measured first",
        ),
    ],
)
def test_what_auto_passes_over_until_it_is_measured_is_named(
    card: Gpu, preset: str, reason: str
) -> None:
    assert (
        plan_on("auto", gpus=[card], preset=preset).reason == f"{reason}; not measured: asrd tune"
    )


def test_auto_goes_by_evidence_and_never_by_stale_evidence() -> None:
    made = plan_on("auto", gpus=[A1000], evidence=Evidence("selective", "measured here: cheap"))
    assert names(made) == ["selective", "tf32", "fp32", "fp32 on cpu"]
    assert made.reason == "measured here: cheap"
    stale = plan_on(
        "auto",
        gpus=[A1000],
        evidence=Evidence("selective", "measured here: cheap", stale="torch is another"),
    )
    assert names(stale)[0] == "bfloat16"
    assert "stale: torch is another" in stale.reason
    assert names(plan_on("half", gpus=[A1000], evidence=Evidence("selective", "")))[0] == "half"


def test_evidence_may_take_what_hardware_alone_never_would_and_nothing_else() -> None:
    for chosen in ("half", "int8"):
        assert (
            names(
                plan_on("auto", gpus=[A1000], preset="aggressive", evidence=Evidence(chosen, ""))
            )[0]
            == chosen
        )
        assert (
            names(plan_on("auto", gpus=[A1000], evidence=Evidence(chosen, "")))[0] == "bfloat16"
        ), "not of this preset"
    assert names(plan_on("auto", gpus=[T4], evidence=Evidence("bfloat16", "")))[0] == "fp32", (
        "not on this card"
    )


def test_what_was_refused_is_no_candidate_but_fp32_always_is() -> None:
    evidence = Evidence(
        "bfloat16", "", {"tf32": "costs too much", "fp32": "nonsense", "bfloat16": "nonsense"}
    )
    made = plan_on("auto", gpus=[A1000], evidence=evidence)
    assert names(made) == ["bfloat16", "fp32", "fp32 on cpu"]
    assert [(one.candidate, one.kind) for one in made.rejected] == [("tf32", "measured")]


def test_candidates_end_with_fp32_and_the_cpu_has_fewer() -> None:
    assert [p.name for p in candidates("default", A1000)] == [
        "bfloat16",
        "selective",
        "tf32",
        "fp32",
    ]
    assert [p.name for p in candidates("default", None)] == ["bfloat16", "fp32"]
    assert [p.name for p in candidates("aggressive", None)] == ["int8", "bfloat16", "fp32"]
    assert [p.name for p in candidates("conservative", None)] == ["fp32"]
    assert names(plan_on("auto", evidence=Evidence("bfloat16", ""))) == [
        "bfloat16 on cpu",
        "fp32 on cpu",
    ]
    assert "leaves only FP32" in plan_on("auto", preset="conservative").reason


@pytest.mark.parametrize("name", STRATEGY_TABLE)
def test_a_fallback_order_starts_at_the_request_ends_at_fp32_and_never_climbs_to_float16(
    name: str,
) -> None:
    steps = fallback_order(STRATEGY_TABLE[name])
    assert steps[0].name == name
    assert steps[-1].name == "fp32"
    assert all("float16" not in dtypes(step) for step in steps[1:])
    assert len({step.name for step in steps}) == len(steps)


@given(
    st.sampled_from([*STRATEGY_TABLE, "auto"]),
    st.integers(5, 12),
    st.integers(0, 9),
    st.sampled_from(list(AUTO_PRESETS)),
)
def test_a_plan_never_holds_a_candidate_that_the_card_cannot_run(
    name: str, major: int, minor: int, preset: str
) -> None:
    card = Gpu(0, "card", (major, minor), 1, 1)
    made = plan_on(name, gpus=[card], preset=preset)
    assert made.candidates[-1].device == "cpu"
    assert made.reason
    for candidate in made.candidates[:-1]:
        assert not obstacle(candidate.precision, card)


@pytest.mark.parametrize(
    ("wanted", "device"),
    [
        ("auto", "cuda:0"),
        ("cuda", "cuda:0"),
        ("cuda:1", "cuda:1"),
        ("a1000", "cuda:1"),
        ("cpu", "cpu"),
    ],
)
def test_a_card_is_chosen_by_index_name_or_free_memory(wanted: str, device: str) -> None:
    assert plan_on("fp32", wanted, [T4, A1000]).candidates[0].device == device


@pytest.mark.parametrize("wanted", ["cuda:7", "H200", "cuda:x"])
def test_a_card_that_is_not_there_is_an_error_that_lists_those_that_are(wanted: str) -> None:
    with pytest.raises(PrecisionError) as caught:
        plan_on("fp32", wanted, [T4])
    assert "Tesla T4" in caught.value.hint


def test_selections() -> None:
    assert [p.name for p in select("all")] == list(STRATEGY_TABLE)
    assert [p.name for p in select("half, fp32,half")] == ["half", "fp32"]
    assert [p.name for p in select("default")] == list(AUTO_PRESETS["default"].candidates)
    for bad in ("", ",", "bf17", "half,,x"):
        with pytest.raises(ConfigError):
            select(bad)


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_on("bflaot16")
    assert "'bfloat16'" in caught.value.hint


def test_parts_are_checked() -> None:
    assert with_parts({"joint": "float16"}).parts == {"joint": "float16"}
    with pytest.raises(ConfigError, match="float8"):
        with_parts({"joint": "float8"})


def test_one_of_two_cards_of_the_same_name_is_meant_by_free_memory_index_or_uuid() -> None:
    twins = [
        Gpu(i, "RTX 3090", (8, 6), 24 << 30, free << 30, uuid=f"GPU-{i}abc")
        for i, free in enumerate((9, 20, 3))
    ]
    for wanted, device in (
        ("rtx 3090", "cuda:1"),
        ("cuda:2", "cuda:2"),
        ("GPU-0a", "cuda:0"),
        ("auto", "cuda:1"),
    ):
        assert plan_on("fp32", wanted, twins).candidates[0].device == device
    with pytest.raises(PrecisionError):
        plan_on("fp32", "GPU-7", twins)


def test_a_card_that_lets_nobody_in_has_no_candidate() -> None:
    made = plan_on("auto", gpus=[msgspec.structs.replace(A1000, mode="prohibited")])
    assert names(made) == ["fp32 on cpu"]
    assert "prohibited" in made.reason
    assert made.reason.endswith("fp32 on cpu instead")


def test_tf32_on_a_card_without_it_says_so() -> None:
    made = plan_on("tf32", gpus=[T4])
    assert names(made) == ["fp32", "fp32 on cpu"]
    assert made.reason == "TF32 needs compute capability 8.0; Tesla T4 has 7.5; fp32 instead"


@pytest.mark.parametrize(("device", "gpus"), [("auto", []), ("cpu", [A1000])])
def test_tf32_on_a_cpu_is_fp32_and_says_so(device: str, gpus: list[Gpu]) -> None:
    made = plan_on("tf32", device, gpus)
    assert names(made) == ["fp32 on cpu"]
    assert made.reason == "TF32 is a unit of CUDA cards, and a CPU has none; fp32 on cpu instead"
    assert [(one.candidate, one.kind) for one in made.rejected] == [("tf32", "hardware")]


def test_what_lightning_makes_of_float16_on_a_cpu_is_said() -> None:
    made = plan_on("16-mixed", "cpu")
    assert names(made) == ["16-mixed on cpu", "fp32 on cpu"]
    assert made.reason == "16-mixed was asked for; on a CPU Lightning makes bfloat16 of its float16"
    for other in ("bf16-mixed", "autocast-fp16", "half"):
        assert plan_on(other, "cpu").reason == f"{other} was asked for"
    assert plan_on("16-mixed", gpus=[A1000]).reason == "16-mixed was asked for"


# -- memory
# -----------------------------------------------------------------------------------------------------------

MIB = 1 << 20


def names_after(made: Plan, kind: str, at: int = 0) -> list[str]:
    return [candidate.name for candidate in candidates_after(made, made.candidates[at:], kind)]


def test_strategies_are_ordered_by_what_they_store() -> None:
    order = sorted(STRATEGY_TABLE, key=lambda name: width(STRATEGY_TABLE[name]))
    assert order[0] == "int8"
    assert (
        width(STRATEGY_TABLE["bfloat16"])
        == width(STRATEGY_TABLE["half"])
        < width(STRATEGY_TABLE["selective"])
        < width(STRATEGY_TABLE["fp32"])
    )
    assert (
        width(STRATEGY_TABLE["tf32"])
        == width(STRATEGY_TABLE["fp32"])
        < width(STRATEGY_TABLE["autocast-bf16"])
    )


def test_want_of_memory_never_leads_to_more_of_it() -> None:
    made = plan_on("bfloat16", gpus=[A1000])
    assert names_after(made, "non-finite") == ["tf32", "fp32", "fp32 on cpu"]
    assert names_after(made, "out-of-memory") == ["fp32 on cpu"]
    aggressive = plan_on("bfloat16", gpus=[A1000], preset="aggressive")
    assert names_after(aggressive, "out-of-memory") == ["int8", "fp32 on cpu"]
    assert names_after(aggressive, "non-finite") == ["tf32", "fp32", "fp32 on cpu"]


def test_what_the_preset_allows_is_taken_where_it_needs_less() -> None:
    assert names_after(plan_on("fp32", gpus=[A1000]), "no-room") == [
        "selective",
        "bfloat16",
        "fp32 on cpu",
    ]
    assert names_after(plan_on("fp32", gpus=[A1000], preset="conservative"), "no-room") == [
        "fp32 on cpu"
    ]
    assert names_after(plan_on("fp32", gpus=[T4]), "no-room") == [
        "fp32 on cpu"
    ]  # its bfloat16 is only emulated


def test_what_failed_before_does_not_come_back_for_want_of_memory() -> None:
    made = plan_on("fp32", gpus=[A1000])
    left = candidates_after(made, made.candidates, "out-of-memory", out={"selective"})
    assert [candidate.name for candidate in left] == ["bfloat16", "fp32 on cpu"]


def test_a_card_that_torch_cannot_use_is_left_at_once() -> None:
    assert names_after(plan_on("bfloat16", gpus=[A1000]), "no-device") == ["fp32 on cpu"]
    assert names_after(plan_on("half", "cpu"), "no-device") == []


def test_an_estimate_and_a_measured_figure_are_not_held_against_each_other() -> None:
    needs = {
        "bfloat16": Need(700 * MIB, measured=True),
        "tf32": Need(512 * MIB),
        "fp32": Need(512 * MIB),
    }
    made = msgspec.structs.replace(
        plan_on("bfloat16", gpus=[A1000], preset="aggressive"), needs=needs
    )
    assert names_after(made, "out-of-memory") == ["int8", "fp32 on cpu"]
    worse = msgspec.structs.replace(made, needs={"bfloat16": Need(700), "int8": Need(800)})
    assert names_after(worse, "out-of-memory") == ["fp32 on cpu"]


def test_on_the_cpu_the_next_candidate_follows() -> None:
    assert names_after(plan_on("half", "cpu"), "out-of-memory") == ["fp32 on cpu"]


NEEDS = {
    name: Need(mib * MIB)
    for name, mib in {"int8": 900, "bfloat16": 1800, "selective": 2200}.items()
}
NEEDS |= {name: Need(3600 * MIB, measured=True) for name in ("tf32", "fp32")}


def sized(name: str, preset: str = "default") -> Plan:
    return msgspec.structs.replace(plan_on(name, gpus=[A1000], preset=preset), needs=NEEDS)


def test_a_limit_takes_out_what_does_not_fit_and_tells_the_figures() -> None:
    made = fitted(sized("bfloat16"), 2000 * MIB)
    assert names(made) == ["bfloat16", "fp32 on cpu"]
    assert made.reason == "bfloat16 was asked for"
    told = "would need 3600 MiB (measured); vram_budget allows 2000 MiB"
    assert made.rejected == (Rejected("tf32", "budget", told), Rejected("fp32", "budget", told))


def test_where_nothing_fits_the_preset_is_asked_and_then_the_cpu() -> None:
    made = fitted(sized("fp32"), 2300 * MIB)
    assert names(made) == ["selective", "bfloat16", "fp32 on cpu"]
    assert made.reason.endswith("vram_budget allows 2300 MiB; selective instead")
    assert names(fitted(sized("bfloat16", "aggressive"), 1000 * MIB)) == ["int8", "fp32 on cpu"]
    assert names(fitted(sized("bfloat16"), 1000 * MIB)) == ["fp32 on cpu"]
    whole = sized("bfloat16")
    assert fitted(whole, 4000 * MIB).candidates == whole.candidates


def test_what_was_refused_for_another_reason_does_not_come_back_for_the_limit() -> None:
    refused = msgspec.structs.replace(
        sized("fp32"), rejected=(Rejected("selective", "quality", "4 points worse"),)
    )
    assert names(fitted(refused, 2300 * MIB)) == ["bfloat16", "fp32 on cpu"]


@given(
    st.sampled_from([*STRATEGY_TABLE, "auto"]),
    st.sampled_from(list(AUTO_PRESETS)),
    st.dictionaries(
        st.sampled_from(list(STRATEGY_TABLE)),
        st.builds(Need, st.integers(1, 5000)),
        max_size=len(STRATEGY_TABLE),
    ),
    st.sampled_from(kinds_that("smaller")),
    st.integers(0, 5000),
)
def test_memory_failures_only_ever_lead_downwards_and_end_on_the_cpu(
    name: str, preset: str, needs: dict[str, Need], kind: str, limit: int
) -> None:
    made = msgspec.structs.replace(plan_on(name, gpus=[A1000], preset=preset), needs=needs)
    bounded = fitted(made, limit)
    for candidate in bounded.candidates[:-1]:
        assert (
            candidate.precision.name not in needs or needs[candidate.precision.name].bytes <= limit
        )
    left: list[Candidate] = list(bounded.candidates)
    out: set[str] = set()
    while left[0].device != "cpu":
        failed = left[0]
        out.add(failed.name)
        left = candidates_after(bounded, left, kind, out)
        assert left[-1] == made.candidates[-1]
        assert all(
            candidate.device == "cpu" or needs_less(bounded, candidate, failed)
            for candidate in left
        )
        assert not {candidate.name for candidate in left} & out


def test_a_family_has_a_map_of_its_own_where_one_was_measured() -> None:
    selective = STRATEGY_TABLE["selective"]
    assert for_family(selective, "aed").parts == {**selective.parts, "decoder": "bfloat16"}
    for family in ("ctc", "rnnt", "tdt", "hybrid", "unknown"):
        assert for_family(selective, family).parts == selective.parts
    other = msgspec.structs.replace(selective, families={"rnnt": {"joint": "bfloat16"}})
    assert (
        for_family(other, "tdt").parts == for_family(other, "hybrid").parts == {"joint": "bfloat16"}
    )
    assert for_family(STRATEGY_TABLE["half"], "aed") == STRATEGY_TABLE["half"]


def test_a_users_own_map_holds_for_every_family_and_may_ask_for_int8() -> None:
    own = with_parts({"encoder": "int8"})
    assert for_family(own, "aed").parts == {"encoder": "int8"}
    assert quantizes(own)
    assert not quantizes(STRATEGY_TABLE["selective"])
    assert dtypes(own) == {"float32", "bfloat16"}
    assert [step.name for step in fallback_order(own)] == ["selective", "bfloat16", "tf32", "fp32"]
    assert "bfloat16" in obstacle(own, T4)
