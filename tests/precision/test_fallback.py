"""Which candidate follows, what a worker must be, and when a better one may return."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrd.engine.verify import mismatch
from asrd.precision import fallback
from asrd.precision.fallback import RetryBackoff, is_full_fp32, restored, retry_plan
from asrd.precision.plan import Candidate, Gpu, Plan, Rejected
from asrd.precision.strategies import FP32_BASELINE, STRATEGY_TABLE, Precision, with_parts
from asrd.protocol import Fallback, Ready
from tests.fakes.engine import ready as introduced
from tests.precision.plans import kinds_that, plan_on

CARD = Gpu(0, "A card", (8, 6), 1 << 33, 1 << 33)
KINDS = [
    "non-finite",
    "out-of-memory",
    "budget",
    "slow",
    "memory",
    "changed",
    "empty",
    "failures",
    "died",
    "dtypes",
]


def candidates(strategy: str, device: str = "auto") -> tuple[Candidate, ...]:
    return plan_on(strategy, device, [CARD]).candidates


def after(found: Sequence[Candidate], kind: str, component: str = "") -> tuple[Candidate, ...]:
    """Return what is left of candidates that are a plan by themselves."""
    return fallback.candidates_after(Plan("", tuple(found), ""), found, kind, component)


def names(found: tuple[Candidate, ...]) -> list[str]:
    return [candidate.name for candidate in found]


# -- which follows
# ----------------------------------------------------------------------------------------------------


def test_one_candidate_down_and_never_to_float16() -> None:
    assert names(candidates("bfloat16")) == ["bfloat16", "tf32", "fp32", "fp32 on cpu"]
    assert names(after(candidates("bfloat16"), "died")) == ["tf32", "fp32", "fp32 on cpu"]


def test_what_had_no_room_is_followed_by_what_needs_less() -> None:
    for kind in kinds_that("smaller"):
        assert names(after(candidates("bfloat16"), kind)) == ["fp32 on cpu"]
        assert names(after(candidates("int8"), kind)) == ["fp32 on cpu"]
        assert names(after(candidates("fp32", "cpu"), kind)) == [], "there is nothing smaller"


def test_what_is_measured_against_fp32_never_leaves_the_device_or_fp32() -> None:
    for kind in kinds_that("same device"):
        assert names(after(candidates("bfloat16"), kind)) == ["tf32", "fp32", "fp32 on cpu"]
        assert after(candidates("bfloat16", "cpu")[:1] + candidates("fp32")[-1:], kind), (
            "the same device is left"
        )
        assert after(candidates("fp32"), kind) == ()


def test_the_component_goes_first_then_the_whole_of_it_then_the_model() -> None:
    left = candidates("half", "cpu")
    seen = []
    while len(left) > 1:
        left = after(left, "non-finite", "encoder.layers.3")
        seen.append(left[0].name)
    assert seen == [
        "half(encoder.layers.3:float32) on cpu", "half(encoder:float32) on cpu", "fp32 on cpu"
    ]  # fmt: skip
    assert after(candidates("half", "cpu"), "non-finite")[0].name == "fp32 on cpu", (
        "nobody knows where it began"
    )


def test_a_plan_of_one_candidate_is_a_wish_for_that_one() -> None:
    for kind in KINDS:
        assert after([Candidate(STRATEGY_TABLE["half"], "cpu")], kind, "encoder") == ()


@pytest.mark.parametrize("name", ["fp32", "tf32", "int8", "autocast-bf16", "16-mixed", "phased"])
def test_a_component_cannot_be_restored_where_parts_do_not_reach(name: str) -> None:
    assert restored(STRATEGY_TABLE[name], "encoder.layers.3") is None


def test_what_is_float32_already_is_not_restored() -> None:
    mine = with_parts({"encoder": "bfloat16"})
    assert restored(mine, "decoder") is None
    assert restored(mine, "preprocessor") is None
    found = restored(mine, "encoder.layers.0")
    assert found is not None
    assert found.parts == {"encoder": "bfloat16", "encoder.layers.0": "float32"}


@given(
    st.sampled_from(sorted(STRATEGY_TABLE)), st.sampled_from(["auto", "cpu"]),
    st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(["", "encoder", "encoder.layers.1"])), max_size=12),
)  # fmt: skip
def test_every_way_down_ends_and_only_ever_gains_range(
    name: str, device: str, trouble: list[tuple[str, str]]
) -> None:
    whole = plan_on(name, device, [CARD])
    left: Sequence[Candidate] = whole.candidates
    seen = {left[0].name}
    for kind, component in trouble:
        after_it = fallback.candidates_after(whole, left, kind, component, seen)
        if not after_it:
            assert kind in kinds_that("same device") or len(left) == 1
            continue
        here, there = left[0], after_it[0]
        assert there.name not in seen
        seen.add(there.name)
        low = {"float16"} & (fallback.dtypes(there.precision) - fallback.dtypes(here.precision))
        assert not low, f"{here.name} -> {there.name} goes to float16"
        assert all(candidate in (*left[1:], *whole.smaller) for candidate in after_it[1:])
        left = after_it
    assert left[-1].precision == FP32_BASELINE


# -- what a worker must be
# --------------------------------------------------------------------------------------------


def said(
    precision: Precision, effective: dict[str, str], fallbacks: tuple[Fallback, ...] = ()
) -> str:
    told = introduced(precision)
    told = msgspec.structs.replace(
        told, effective=effective, fallbacks=list(fallbacks), family="ctc"
    )
    return mismatch(Candidate(precision, "cpu"), told)


@pytest.mark.parametrize("name", sorted(STRATEGY_TABLE))
def test_what_the_worker_double_says_is_right(name: str) -> None:
    assert mismatch(Candidate(STRATEGY_TABLE[name], "cpu"), introduced(STRATEGY_TABLE[name])) == ""


def test_a_worker_of_another_candidate_is_refused() -> None:
    told: Ready = introduced(STRATEGY_TABLE["half"])
    assert "says that it is half on cpu" in mismatch(Candidate(STRATEGY_TABLE["fp32"], "cpu"), told)
    assert "half on cpu" in mismatch(Candidate(STRATEGY_TABLE["half"], "cuda:0"), told)


@pytest.mark.parametrize(
    ("name", "effective", "wrong"),
    [
        ("fp32", "float32", False),
        ("fp32", "float16", True),
        ("fp32", "float32/bfloat16", True),
        ("fp32", "float32 as tf32", True),
        ("fp32", "float32 as bfloat16", True),
        ("tf32", "float32 as tf32", False),
        ("bfloat16", "bfloat16", False),
        ("bfloat16", "bfloat16 as float32", False),
        ("bfloat16", "float16", True),
        ("bfloat16", "float32", True),
        ("half", "bfloat16", True),
        ("autocast-fp16", "float32 as float16/bfloat16", False),
        ("autocast-fp16", "float16", True),
        ("phased", "float32 as bfloat16", False),
        ("int8", "int8/bfloat16", False),
        ("int8", "bfloat16", False),
        ("int8", "float16", True),
    ],
)
def test_dtypes_are_those_of_the_candidate(name: str, effective: str, wrong: bool) -> None:
    assert (
        bool(said(STRATEGY_TABLE[name], {"preprocessor": "float32", "encoder": effective})) is wrong
    )
    assert (
        said(STRATEGY_TABLE[name], {"preprocessor": "float32", "timestamps_asr_model": "float32"})
        == ""
    )


def test_what_a_fallback_names_may_be_what_it_says() -> None:
    fell = Fallback("decoder", "float16", "float32", "no LSTM")
    assert said(STRATEGY_TABLE["half"], {"encoder": "float16", "decoder": "float32"}, (fell,)) == ""
    assert "decoder" in said(STRATEGY_TABLE["half"], {"encoder": "float16", "decoder": "float32"})
    assert "decoder" in said(STRATEGY_TABLE["fp32"], {"decoder": "float16"}, (fell,))


def test_parts_decide_and_what_they_name_must_be_there() -> None:
    selective = STRATEGY_TABLE["selective"]
    assert said(selective, {"encoder": "bfloat16/float32", "decoder": "float32"}) == ""
    assert said(selective, {"encoder": "bfloat16", "decoder": "bfloat16"})
    mine = with_parts({"encoder": "bfloat16", "decoder": "float16"})
    assert said(mine, {"encoder": "bfloat16", "transf_decoder": "float16"}) == ""
    layer = restored(STRATEGY_TABLE["half"], "encoder.layers.3")
    assert layer is not None
    assert said(layer, {"encoder": "float16/float32", "decoder": "float16"}) == ""
    assert "nothing of encoder" in said(layer, {"encoder": "float16", "decoder": "float16"})
    whole = restored(layer, "encoder.layers.3")
    assert whole is not None
    assert said(whole, {"encoder": "float32", "decoder": "float16"}) == ""
    assert said(whole, {"encoder": "float16", "decoder": "float16"})


def test_only_fp32_is_plain() -> None:
    assert [name for name, one in STRATEGY_TABLE.items() if is_full_fp32(one)] == ["fp32"]


# -- the way back
# -----------------------------------------------------------------------------------------------------


def test_what_may_be_over_returns_and_what_is_the_candidates_own_does_not() -> None:
    bf16, tf32, fp32, cpu = candidates("bfloat16")
    start = Plan("bfloat16", (bf16, tf32, fp32, cpu), "asked")
    why = [Rejected("bfloat16", "non-finite", "nan"), Rejected("tf32", "slow", "slow")]
    found = retry_plan(start, [bf16, tf32], [fp32, cpu], why)
    assert found is not None
    assert names(found.candidates) == ["tf32", "fp32", "fp32 on cpu"]
    assert [one.candidate for one in found.rejected] == ["bfloat16"]
    assert retry_plan(start, [bf16], [tf32], why) is None
    assert retry_plan(start, [], [bf16], []) is None


def test_what_returns_does_so_in_the_order_of_the_plan() -> None:
    half, bf16, tf32, fp32, cpu = candidates("half")
    layer = restored(STRATEGY_TABLE["half"], "encoder.layers.3")
    assert layer is not None
    start = Plan("half", (half, bf16, tf32, fp32, cpu), "asked")
    found = retry_plan(start, [half, tf32, fp32, Candidate(layer, half.device), bf16], [cpu], [])
    assert found is not None
    assert names(found.candidates) == [
        "half",
        layer.name,
        "bfloat16",
        "tf32",
        "fp32",
        "fp32 on cpu",
    ]


def test_each_try_in_vain_doubles_the_wait() -> None:
    backoff = RetryBackoff(30)
    assert backoff.seconds_left(0) is None
    backoff.note_failure(100)
    assert backoff.seconds_left(100) == 1800
    assert backoff.seconds_left(1000) == 900
    backoff.note_failure(1000)
    assert backoff.seconds_left(1000) == 1800, "the wait begins anew with each failure"
    backoff.note_retry(2800, held=False)
    assert backoff.seconds_left(2800) == 3600
    backoff.note_retry(6400, held=True)
    assert backoff.seconds_left(6400) is None
    backoff.note_failure(6500)
    assert backoff.seconds_left(6500) == 7200, "it held for a moment only"
    backoff.note_retry(13700, held=True)
    backoff.note_failure(13700 + 2 * 7200 + 1)
    assert backoff.seconds_left(13700 + 2 * 7200 + 1) == 1800, "it held"


def test_it_can_be_told_never_to_return() -> None:
    backoff = RetryBackoff(0)
    backoff.note_failure(5)
    assert backoff.seconds_left(10**9) is None


@given(
    st.floats(0.1, 1000),
    st.lists(st.tuples(st.floats(0, 10**6), st.sampled_from(["t", "y", "n"])), max_size=40),
)
def test_a_wait_is_as_long_as_asked_and_a_day_at_most(
    minutes: float, acts: list[tuple[float, str]]
) -> None:
    backoff, now = RetryBackoff(minutes), 0.0
    for step, act in acts:
        now += step
        if act == "t":
            backoff.note_failure(now)
        else:
            backoff.note_retry(now, held=act == "y")
        left = backoff.seconds_left(now)
        if left is not None:
            rounding = 1e-6 * max(1, now)
            assert (
                min(60 * minutes, fallback.MAX_WAIT_SECONDS) - rounding
                <= left
                <= fallback.MAX_WAIT_SECONDS + rounding
            )
