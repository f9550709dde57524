"""Noise floor, criteria and verdicts against hand-computed values."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from asrd import protocol
from asrd.evaluation import judging
from asrd.evaluation.normalising import normaliser
from asrd.evaluation.results import Run
from asrd.evaluation.rows import describe, encoder_error, load_peak_ratio, verdict
from asrd.precision import memory
from asrd.precision.ledger import MEMORY_RESOLUTION
from asrd.precision.strategies import FP32_BASELINE, STRATEGY_TABLE, Precision
from tests.fakes.engine import MIB, WEIGHTS, ready


def test_normalisers() -> None:
    assert normaliser("en")("It's twenty-one, Colour!") == "it is 21 color"
    assert normaliser("de")("Über, Straße!") == "über strasse"
    assert normaliser("ja")("雨です。") == "雨 で す"


@pytest.mark.parametrize(
    ("ci", "changed", "floor", "limit", "upper", "expected"),
    [
        ((0.0, 0.0), 0, 0.0, 0.5, 0.2, "same"),
        (None, 0, None, 0.0, 0.2, "same"),
        ((0.1, 0.3), 5, 0.0, 0.5, 0.2, "worse"),
        ((0.1, 3.0), 5, 0.2, 0.5, 0.2, "undecided"),
        ((0.3, 3.0), 5, 0.2, 0.5, 0.2, "worse"),
        ((-0.4, -0.1), 5, 0.0, 0.5, 0.2, "better"),
        ((-0.4, -0.1), 5, 0.2, 0.5, 0.2, "same"),
        ((-0.1, 0.4), 5, 0.0, 0.5, 0.2, "same"),
        ((-0.1, 0.6), 5, 0.0, 0.5, 0.2, "undecided"),
        ((-0.6, 0.1), 5, 0.0, 0.5, 0.2, "undecided"),
        ((0.0, 0.1), 1, 0.0, 0.0, 0.2, "undecided"),
        (None, 3, 0.0, 0.5, 0.2, "undecided"),
        (None, None, 0.0, 0.5, 0.2, "undecided"),
        ((0.0, 0.0), 0, 0.0, 0.5, 192.0, "undecided"),
        ((0.0, 0.0), 0, 0.0, 0.5, 0.5, "same"),
        ((0.0, 0.0), 0, 0.0, 0.0, 0.26, "undecided"),
        ((-0.1, 0.4), 5, 0.0, 0.5, 0.6, "undecided"),
        ((0.1, 0.3), 5, 0.0, 0.5, 0.6, "worse"),
        ((-0.4, -0.1), 5, 0.0, 0.5, 0.6, "better"),
    ],
)
def test_verdict(
    ci: tuple[float, float] | None,
    changed: int | None,
    floor: float | None,
    limit: float,
    upper: float,
    expected: str,
) -> None:
    assert verdict(ci, changed, floor, limit, upper) == expected


def test_load_peak_by_its_two_definitions() -> None:
    cpu = ready(FP32_BASELINE)
    assert load_peak_ratio(cpu) == pytest.approx(2.0)
    card = msgspec.structs.replace(
        cpu, device="cuda:0", load_peak=memory.Memory(allocated=42 * MIB, process=900 * MIB)
    )
    assert load_peak_ratio(card) == pytest.approx(42 / 40)
    blind = msgspec.structs.replace(card, load_peak=memory.Memory(process=80 * MIB))
    assert load_peak_ratio(blind) == pytest.approx(2.0)
    assert load_peak_ratio(msgspec.structs.replace(cpu, weights_bytes=0)) is None


@pytest.mark.parametrize("precision", STRATEGY_TABLE.values(), ids=lambda p: p.name)
def test_describe_names_every_dtype_asked_for(precision: Precision) -> None:
    said = describe(precision)
    for dtype in {
        precision.weights,
        precision.autocast,
        *precision.parts.values(),
        *precision.phases.values(),
    } - {None}:
        assert str(dtype) in said


# -- whole judgements
# -------------------------------------------------------------------------------------------------

REFERENCES = [f"open the door number {i % 7} now please" for i in range(40)]

ENOUGH = 1.5
"""Points of WER under which so few words decide when none of them changes."""


def measured(name: str = "fp32", role: str = "asked", **changes: object) -> Run:
    """A complete run that heard everything right, but for `changes`."""
    chosen = STRATEGY_TABLE[name]
    steady = memory.Memory(WEIGHTS, process=900 * MIB)
    one = Run(
        chosen,
        role,  # type: ignore[arg-type]
        ready=ready(chosen),
        ledger={"steady": steady},
        latency=[0.1] * 15,
        round_trip=[0.11] * 15,
        texts=list(REFERENCES),
        compute=4.0,
    )
    return msgspec.structs.replace(one, **changes)


def spoiled(count: int) -> list[str | None]:
    """The references with one wrong word in each of the first `count`."""
    return [
        text.replace("door", "store") if i < count else text for i, text in enumerate(REFERENCES)
    ]


def judged(*others: Run, limit: float = 0.5, again: float = 0.1, mib: int = 900):
    runs = [measured(role="baseline"), measured(role="again"), *others]
    last = measured(
        role="again",
        latency=[again] * 15,
        ledger={"steady": memory.Memory(process=mib * MIB)},
        texts=[],
    )
    return judging.judge(runs, REFERENCES, 400.0, limit, "en", last)


def test_two_identical_runs_are_the_same() -> None:
    floor, _, rows = judged(measured("tf32"), limit=ENOUGH)
    assert (floor.wer, floor.changed_per_100, floor.latency, floor.memory) == (
        0.0,
        0.0,
        0.0,
        pytest.approx(MEMORY_RESOLUTION / MIB / 900),
    )
    for row in rows:
        assert (row.verdict, row.passed, row.wer_delta, row.wer_delta_ci) == (
            "same",
            True,
            0.0,
            (0.0, 0.0),
        )
        assert row.rtfx == pytest.approx(100)
        assert row.words == 280


def test_the_same_few_words_under_a_narrow_limit_are_undecided() -> None:
    _, _, rows = judged(measured("tf32"))
    assert {(row.verdict, row.passed, row.changed_per_100) for row in rows} == {
        ("undecided", True, 0.0)
    }


def test_a_strategy_that_is_truly_worse_is_worse_and_fails() -> None:
    _, _, rows = judged(measured("half", texts=spoiled(20)))
    row = rows[-1]
    assert (row.verdict, row.passed) == ("worse", False)
    assert row.wer == pytest.approx(100 * 20 / 280)
    assert row.wer_delta == row.wer
    assert row.changed_per_100 == row.wer
    assert [c.name for c in row.criteria if not c.passed] == ["wer_delta"]
    assert row.changed_utterances == 20
    assert row.changes[0].hypothesis == "open the store number 0 now please"


def test_a_strategy_that_is_truly_better_is_better() -> None:
    runs = [
        measured(role="baseline", texts=spoiled(20)),
        measured(role="again", texts=spoiled(20)),
        measured("tf32"),
    ]
    _, _, rows = judging.judge(runs, REFERENCES, 400.0, 0.5)
    assert (rows[-1].verdict, rows[-1].passed) == ("better", True)


def test_words_that_change_without_a_change_of_wer_are_seen() -> None:
    wrong = spoiled(20)
    other = [text and text.replace("store", "shore") for text in wrong]
    runs = [
        measured(role="baseline", texts=wrong),
        measured(role="again", texts=wrong),
        measured("half", texts=other),
    ]
    _, _, rows = judging.judge(runs, REFERENCES, 400.0, ENOUGH)
    assert (rows[-1].wer_delta, rows[-1].verdict) == (0.0, "same")
    assert rows[-1].changed_per_100 == pytest.approx(100 * 20 / 280)


def test_punctuation_and_case_are_no_change() -> None:
    _, _, rows = judged(
        measured("half", texts=[text.capitalize() + "." for text in REFERENCES]), limit=ENOUGH
    )
    assert rows[-1].verdict == "same"
    assert rows[-1].changes == []


def test_fp32_that_differs_from_itself_raises_the_floor() -> None:
    runs = [
        measured(role="baseline"),
        measured(role="again", texts=spoiled(10)),
        measured("half", texts=spoiled(10)),
    ]
    floor, bounds, rows = judging.judge(runs, REFERENCES, 400.0, 0.5)
    assert floor.wer == pytest.approx(100 * 10 / 280)
    assert next(b.limit for b in bounds if b.name == "wer_delta") == floor.wer
    assert rows[-1].verdict != "worse"


def test_a_clip_without_an_answer_counts_as_empty_and_fails() -> None:
    texts: list[str | None] = [*REFERENCES[:-1], None]
    _, _, rows = judged(measured("half", texts=texts, failure="line 40: too short"))
    row = rows[-1]
    assert (row.errors, row.utterances, row.passed) == (1, 39, False)
    assert row.wer == pytest.approx(100 * 7 / 280)


def test_a_lost_worker_has_no_wer() -> None:
    _, _, rows = judged(measured("half", texts=REFERENCES[:11], failure="non-finite"))
    row = rows[-1]
    assert (row.errors, row.utterances, row.wer, row.rtfx, row.verdict, row.passed) == (
        29,
        11,
        None,
        None,
        "undecided",
        False,
    )
    assert row.latency_ms is not None


def test_a_worker_that_never_started() -> None:
    _, _, rows = judged(Run(STRATEGY_TABLE["16-mixed"], "asked", failure="unsupported"))
    row = rows[-1]
    assert (row.errors, row.utterances, row.verdict, row.passed) == (40, 0, "undecided", False)
    assert (row.weights_bytes, row.latency_ms, row.effective, row.ledger) == (None, None, {}, {})


@pytest.mark.parametrize(
    ("seconds", "passed"), [(0.09, True), (0.1, True), (0.109, True), (0.111, False)]
)
def test_latency_is_held_against_the_drift_of_fp32(seconds: float, passed: bool) -> None:
    _, bounds, rows = judged(measured("half", latency=[seconds] * 15), again=0.11)
    assert next(b.limit for b in bounds if b.name == "latency") == pytest.approx(1.1)
    assert rows[-1].passed is passed


@pytest.mark.parametrize(("mib", "passed"), [(500, True), (900, True), (915, True), (917, False)])
def test_memory_is_held_against_fp32(mib: int, passed: bool) -> None:
    _, _, rows = judged(measured("half", ledger={"steady": memory.Memory(process=mib * MIB)}))
    assert rows[-1].passed is passed


def test_memory_is_held_against_the_drift_of_fp32() -> None:
    floor, _, rows = judged(
        measured("half", ledger={"steady": memory.Memory(process=989 * MIB)}), mib=990
    )
    assert floor.memory == pytest.approx(0.1)
    assert rows[-1].passed


def test_one_reason_is_said_once_for_all_its_components() -> None:
    told = [
        protocol.Fallback(part, "tf32", "float32", "no CUDA.") for part in ("encoder", "decoder")
    ]
    other = protocol.Fallback("joint", "float16", "float32", "no kernel")
    said = msgspec.structs.replace(ready(STRATEGY_TABLE["tf32"]), fallbacks=[*told, other])
    _, _, rows = judged(measured("tf32", ready=said))
    assert rows[-1].fallback_reason == (
        "encoder, decoder: tf32 asked, float32 runs: no CUDA; joint: float16 asked, float32 runs: no kernel"
    )


def test_memory_falls_back_to_torchs_own_where_the_driver_hides_processes() -> None:
    assert judging.memory_of({"steady": memory.Memory(allocated=5)}) == 5
    assert judging.memory_of({"steady": memory.Memory(allocated=5, process=9)}) == 9
    assert judging.memory_of({}) is None


def test_weights_are_shown_where_fewer_bits_were_asked_for_and_do_not_decide() -> None:
    whole = ready(STRATEGY_TABLE["half"])
    same_size = msgspec.structs.replace(whole, weights_bytes=WEIGHTS)
    _, _, rows = judged(measured("half"), measured("half", ready=same_size), measured("tf32"))
    half, fat, tf32 = ({c.name: c for c in row.criteria} for row in rows[-3:])
    assert half["weights"].value == pytest.approx(0.5)
    assert half["weights"].passed
    assert not fat["weights"].passed
    assert rows[-2].passed, "it informs only"
    assert "weights" not in tf32


def test_fallbacks_are_spelled_out() -> None:
    _, _, rows = judged(measured("int8"))
    assert (
        rows[-1].fallback_reason == "encoder: int8 asked, bfloat16 runs: torchao is not installed"
    )


def test_drafts_are_heard_by_themselves() -> None:
    partial = [text or "" for text in spoiled(14)]
    _, _, rows = judged(
        measured("phased", partial_texts=partial, partial_latency=[0.05] * 5), limit=ENOUGH
    )
    figures = rows[-1].partial_results
    assert figures is not None
    assert figures.latency_ms is not None
    assert figures.latency_ms.p50 == pytest.approx(50)
    assert figures.changed_per_100 == pytest.approx(100 * 14 / 280)
    assert rows[-1].verdict == "same"


def test_nothing_measured_is_no_rows() -> None:
    assert judging.judge([], REFERENCES, 1.0, 0.5)[2] == []


def test_without_a_second_fp32_the_floor_is_unknown() -> None:
    floor, _, rows = judging.judge([measured(role="baseline")], REFERENCES, 400.0, 0.5)
    assert (floor.wer, floor.changed_per_100, floor.latency) == (None, None, None)
    assert rows[0].passed


def test_the_encoders_error_by_hand() -> None:
    fp32 = np.array([3.0, 4.0], np.float32)
    assert encoder_error(fp32.tobytes(), fp32.tobytes()) == 0.0
    assert encoder_error(
        np.array([3.0, 4.5], np.float32).tobytes(), fp32.tobytes()
    ) == pytest.approx(0.1)
    for other in (
        b"",
        np.array([3.0], np.float32).tobytes(),
        np.array([3.0, np.nan], np.float32).tobytes(),
    ):
        assert encoder_error(other, fp32.tobytes()) is None
    assert encoder_error(b"", b"") is None


def test_a_component_is_no_measure_of_the_noise_floor_and_is_not_judged_as_a_strategy() -> None:
    other = measured("half", "component", texts=spoiled(20), component="encoder", dtype="float16")
    runs = [measured(role="baseline"), measured(role="again"), other]
    floor, _, rows = judging.judge(runs, REFERENCES, 400.0, 0.5)
    assert (floor.wer, floor.changed_per_100) == (0.0, 0.0)
    assert (rows[-1].component, rows[-1].dtype, rows[-1].role) == (
        "encoder",
        "float16",
        "component",
    )
    assert rows[-1].changed_per_100 == pytest.approx(
        100 * 20 / sum(len(text.split()) for text in REFERENCES)
    )


def test_what_is_asked_of_a_family_is_told_of_that_family() -> None:
    runs = [measured(role="baseline"), measured(role="again"), measured("selective")]
    rows = judging.judge(runs, REFERENCES, 400.0, 0.5)[2]
    assert rows[-1].requested.endswith("decoder bfloat16"), "the stand-in says that it is an aed"
