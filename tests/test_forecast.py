"""What each strategy would need on a card that need not be here."""

from __future__ import annotations

import pytest

from asrd import checkpoint, forecast, models, weights
from asrd.config import Settings
from asrd.errors import ModelError, PrecisionError, UsageError
from asrd.precision import PRESETS, TABLE, Gpu

GIB = 1 << 30


def card(gib: float, capability: tuple[int, int] = (8, 6), free: float | None = None) -> Gpu:
    return Gpu(0, "Card", capability, int(gib * GIB), int((gib if free is None else free) * GIB))


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_cached", lambda name: None)


def test_every_strategy_has_a_line_and_fp32_is_the_whole() -> None:
    found = forecast.outlook(Settings(model="demo"), [])
    assert [line.strategy for line in found.strategies] == list(TABLE)
    header = checkpoint.header(models.SHIPPED["demo"])
    for line in found.strategies:
        assert line.weights == weights.weights_bytes(header, TABLE[line.strategy])
        assert line.load_peak == line.weights
        assert line.headroom is None
    ratio = {line.strategy: line.ratio for line in found.strategies}
    assert ratio["fp32"] == ratio["16-mixed"] == ratio["autocast-bf16"] == 1.0
    assert ratio["half-naive"] == pytest.approx(0.5, abs=1e-3)
    assert ratio["int8"] < ratio["bfloat16"] < ratio["selective"] < 1.0
    assert (found.exact, found.chosen, found.card, found.limit) == (True, "fp32 on cpu", None, None)


def test_a_card_gives_headroom_and_says_what_it_cannot_run() -> None:
    found = forecast.outlook(Settings(model="canary-1b-flash"), [card(4, (7, 5))])
    lines = {line.strategy: line for line in found.strategies}
    assert not found.exact
    assert found.limit == 4 * GIB
    assert lines["half"].headroom == 4 * GIB - lines["half"].process
    assert "7.5" in lines["bfloat16"].obstacle
    assert lines["half"].obstacle == ""
    assert found.chosen == "fp32"


@pytest.mark.parametrize(
    ("budget", "free", "limit"),
    [("", 4, 4), ("", 3, 3), ("2GiB", 3, 2), ("50%", 3, 2), ("3.5GiB", 3, 3)],
)
def test_the_limit_is_what_is_free_or_allowed_whichever_is_less(budget: str, free: float, limit: float) -> None:
    found = forecast.outlook(Settings(model="demo", vram_budget=budget), [card(4, free=free)])
    assert found.limit == limit * GIB
    assert all(line.headroom == found.limit - line.process for line in found.strategies)


@pytest.mark.parametrize(("gib", "expected"), [(8, "bfloat16"), (2.5, "bfloat16"), (2.0, "fp32 on cpu")])
def test_what_is_expected_to_hold_is_the_first_rung_that_fits(gib: float, expected: str) -> None:
    found = forecast.outlook(Settings(model="canary-1b-flash"), [card(gib)])
    assert (found.chosen, found.expected) == ("bfloat16", expected)


def test_the_users_own_map_and_buffer_are_what_is_reckoned_with() -> None:
    settings = Settings(model="demo", strategy="selective", parts={"encoder": "float16"})
    header = checkpoint.header(models.SHIPPED["demo"])
    own = settings.requested
    assert not isinstance(own, str)
    found = forecast.outlook(settings, [card(4)])
    lines = {line.strategy: line for line in found.strategies}
    assert lines["selective"].weights == weights.weights_bytes(header, own)
    assert lines["selective"].weights != weights.weights_bytes(header, TABLE["selective"])
    longer = forecast.outlook(Settings(model="demo", window=20.0), [card(4)])
    assert longer.strategies[0].activations == 2 * found.strategies[0].activations


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_choose_as_the_engine_would(preset: str) -> None:
    from asrd.precision import plan

    found = forecast.outlook(Settings(model="demo", preset=preset), [card(4)])
    expected = plan("auto", "auto", [card(4)], preset)
    assert (found.plan.rungs, found.plan.reason, found.plan.smaller) == (
        expected.rungs, expected.reason, expected.smaller,
    )  # fmt: skip


def test_the_card_is_the_one_that_the_device_means() -> None:
    cards = [card(4), Gpu(1, "Other", (8, 0), 8 * GIB, 8 * GIB)]
    assert forecast.outlook(Settings(model="demo"), cards).card == cards[1]
    assert forecast.outlook(Settings(model="demo", device="cuda:0"), cards).card == cards[0]
    assert forecast.outlook(Settings(model="demo", device="cpu"), cards).card is None
    with pytest.raises(PrecisionError):
        forecast.outlook(Settings(model="demo", device="cuda:7"), cards)


def test_a_model_without_file_and_known_sizes_is_an_error() -> None:
    with pytest.raises(ModelError, match="someone/else is not in the cache"):
        forecast.outlook(Settings(model="someone/else"), [])
    with pytest.raises(UsageError, match="no component 'joint'"):
        forecast.outlook(Settings(model="demo", strategy="selective", parts={"joint": "float16"}), [])


def test_a_card_is_described_by_name_capability_and_size() -> None:
    found = forecast.hypothetical("NVIDIA RTX A1000: Laptop:8.6:4")
    assert (found.name, found.capability, found.total, found.free) == (
        "NVIDIA RTX A1000: Laptop", (8, 6), 4 * GIB, 4 * GIB,
    )  # fmt: skip
    assert forecast.hypothetical("X:9.0:1.5GiB").total == int(1.5 * GIB)


@pytest.mark.parametrize("text", ["", "X", "X:8.6", "X:8:4", "X:8.6:four", ":8.6:4", "X:8.6:0", "X:8.6:-4"])
def test_what_describes_no_card_is_an_error_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="describes no card") as caught:
        forecast.hypothetical(text)
    assert "RTX A1000:8.6:4" in caught.value.hint
