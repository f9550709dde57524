"""What each strategy would need on a card that need not be here."""

from __future__ import annotations

from pathlib import Path

import pytest

from asrd.config.settings import Settings
from asrd.engine import baseline, model_facts, planner
from asrd.errors import ConfigError, ModelError, PrecisionError, UsageError
from asrd.models import checkpoint, memory_estimate, names
from asrd.precision.gpus import GpuSelection
from asrd.precision.plan import Gpu, Plan, device_for
from asrd.precision.strategies import AUTO_PRESETS, STRATEGY_TABLE
from tests.precision.plans import plan_on

GIB = 1 << 30


def card(gib: float, capability: tuple[int, int] = (8, 6), free: float | None = None) -> Gpu:
    return Gpu(0, "Card", capability, int(gib * GIB), int((gib if free is None else free) * GIB))


def planned(settings: Settings, cards: list[Gpu]) -> Plan:
    """Return what the engine gets for these settings with these cards."""
    return planner.plan_with(settings, GpuSelection(cards, card=device_for(settings.device, cards)))


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_cached", lambda name: None)


def test_every_strategy_has_a_line_and_fp32_is_the_whole() -> None:
    found = planner.plan_report(Settings(model="demo"), [])
    assert [line.strategy for line in found.strategies] == list(STRATEGY_TABLE)
    header = checkpoint.header(names.SHIPPED["demo"])
    for line in found.strategies:
        assert line.weights == memory_estimate.weights_bytes(header, STRATEGY_TABLE[line.strategy])
        assert line.load_peak == line.weights
        assert line.headroom is None
    ratio = {line.strategy: line.ratio for line in found.strategies}
    assert ratio["fp32"] == ratio["16-mixed"] == ratio["autocast-bf16"] == 1.0
    assert ratio["half-naive"] == pytest.approx(0.5, abs=1e-3)
    assert ratio["int8"] < ratio["bfloat16"] < ratio["selective"] < 1.0
    assert (found.exact, found.chosen, found.card, found.limit) == (True, "fp32 on cpu", None, None)


def test_a_card_gives_headroom_and_says_what_it_cannot_run() -> None:
    found = planner.plan_report(Settings(model="canary-1b-flash"), [card(4, (7, 5))])
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
def test_the_limit_is_what_is_free_or_allowed_whichever_is_less(
    budget: str, free: float, limit: float
) -> None:
    found = planner.plan_report(Settings(model="demo", vram_budget=budget), [card(4, free=free)])
    assert found.limit == limit * GIB
    assert all(line.headroom == found.limit - line.process for line in found.strategies)


@pytest.mark.parametrize(
    ("gib", "expected"), [(8, "bfloat16"), (2.5, "bfloat16"), (2.0, "fp32 on cpu")]
)
def test_what_is_expected_to_hold_is_the_first_candidate_that_fits(
    gib: float, expected: str
) -> None:
    found = planner.plan_report(Settings(model="canary-1b-flash"), [card(gib)])
    assert (found.chosen, found.expected) == ("bfloat16", expected)


def test_the_users_own_map_and_buffer_are_what_is_reckoned_with() -> None:
    settings = Settings(model="demo", strategy="selective", parts={"encoder": "float16"})
    header = checkpoint.header(names.SHIPPED["demo"])
    own = settings.requested
    assert not isinstance(own, str)
    found = planner.plan_report(settings, [card(4)])
    lines = {line.strategy: line for line in found.strategies}
    assert lines["selective"].weights == memory_estimate.weights_bytes(header, own)
    assert lines["selective"].weights != memory_estimate.weights_bytes(
        header, STRATEGY_TABLE["selective"]
    )
    longer = planner.plan_report(Settings(model="demo", window=20.0), [card(4)])
    assert longer.strategies[0].activations == 2 * found.strategies[0].activations


@pytest.mark.parametrize("preset", AUTO_PRESETS)
def test_presets_choose_as_the_engine_would(preset: str) -> None:
    found = planner.plan_report(Settings(model="demo", preset=preset), [card(4)])
    expected = plan_on("auto", "auto", [card(4)], preset)
    assert (found.plan.candidates, found.plan.reason, found.plan.smaller) == (
        expected.candidates, expected.reason, expected.smaller,
    )  # fmt: skip


def test_the_card_is_the_one_that_the_device_means() -> None:
    cards = [card(4), Gpu(1, "Other", (8, 0), 8 * GIB, 8 * GIB)]
    assert planner.plan_report(Settings(model="demo"), cards).card == cards[1]
    assert planner.plan_report(Settings(model="demo", device="cuda:0"), cards).card == cards[0]
    assert planner.plan_report(Settings(model="demo", device="cpu"), cards).card is None
    with pytest.raises(PrecisionError):
        planner.plan_report(Settings(model="demo", device="cuda:7"), cards)


def test_a_model_without_file_and_known_sizes_is_an_error() -> None:
    with pytest.raises(ModelError, match="someone/else is not in the cache"):
        planner.plan_report(Settings(model="someone/else"), [])
    with pytest.raises(ConfigError, match="no component 'joint'"):
        planner.plan_report(
            Settings(model="demo", strategy="selective", parts={"joint": "float16"}), []
        )


def test_a_card_is_described_by_name_capability_and_size() -> None:
    found = planner.parse_gpu("NVIDIA RTX A1000: Laptop:8.6:4")
    assert (found.name, found.capability, found.total, found.free) == (
        "NVIDIA RTX A1000: Laptop", (8, 6), 4 * GIB, 4 * GIB,
    )  # fmt: skip
    assert planner.parse_gpu("X:9.0:1.5GiB").total == int(1.5 * GIB)


@pytest.mark.parametrize(
    "text", ["", "X", "X:8.6", "X:8:4", "X:8.6:four", ":8.6:4", "X:8.6:0", "X:8.6:-4"]
)
def test_what_describes_no_card_is_an_error_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="describes no card") as caught:
        planner.parse_gpu(text)
    assert "RTX A1000:8.6:4" in caught.value.hint


# -- what was measured
# ------------------------------------------------------------------------------------------------

MIB = 1 << 20


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison of the demo model on Card, in which only some strategies can be reckoned
    with."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    process = {
        "fp32": (1400, "nvml"),
        "bfloat16": (700, "meminfo"),
        "half": (None, "nvml"),
        "tf32": (1, "rss"),
    }
    rows = {
        name: baseline.BaselineFigures(mib and mib * MIB, source, 1.0, 0.0, None)
        for name, (mib, source) in process.items()
    }
    rows["selective"] = baseline.BaselineFigures(800 * MIB, "nvml", 1.0, 0.0, None)
    baseline.keep("demo", "cuda:0", baseline.Baseline("2026-11-26T00:00:00", rows, "Card"))


@pytest.mark.usefixtures("seen")
def test_what_was_measured_here_goes_before_the_estimate_and_stands_beside_it() -> None:
    found = planner.plan_report(Settings(model="demo"), [card(4)])
    lines = {line.strategy: line for line in found.strategies}
    assert (lines["fp32"].measured, lines["fp32"].source, lines["fp32"].need) == (
        1400 * MIB,
        "nvml",
        1400 * MIB,
    )
    assert (lines["bfloat16"].measured, lines["bfloat16"].source) == (700 * MIB, "meminfo")
    assert lines["fp32"].headroom == 4 * GIB - 1400 * MIB
    for name in ("half", "tf32", "int8"):
        assert (lines[name].measured, lines[name].source, lines[name].need) == (
            None,
            "",
            lines[name].process,
        )
    assert found.plan.needs["fp32"].measured
    assert not found.plan.needs["int8"].measured


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize(
    ("settings", "other", "imagined"),
    [
        (Settings(model="demo"), Gpu(0, "Another", (8, 6), 4 * GIB, 4 * GIB), False),
        (Settings(model="demo"), card(4), True),
        (Settings(model="demo-ctc"), card(4), False),
        (Settings(model="demo", timestamps_model=True), card(4), False),
    ],
)
def test_figures_of_another_card_model_or_load_are_not_taken_for_these(
    settings: Settings, other: Gpu, imagined: bool
) -> None:
    found = planner.plan_report(settings, [other], imagined)
    assert [line.strategy for line in found.strategies if line.measured is not None] == []


@pytest.mark.usefixtures("seen")
def test_a_map_of_the_users_own_was_not_measured_under_the_name_of_the_shipped_one() -> None:
    own = Settings(model="demo", strategy="selective", parts={"encoder": "float16"})
    for settings, measured in ((own, None), (Settings(model="demo"), 800 * MIB)):
        lines = {
            line.strategy: line for line in planner.plan_report(settings, [card(4)]).strategies
        }
        assert lines["selective"].measured == measured


@pytest.mark.usefixtures("seen")
def test_a_budget_is_held_against_what_was_measured() -> None:
    made = planned(Settings(model="demo", strategy="fp32", vram_budget="1000MiB"), [card(4)])
    assert made.candidates[0].name == "selective"
    assert made.rejected[0].detail == "would need 1400 MiB (measured); vram_budget allows 1000 MiB"


@pytest.mark.usefixtures("seen")
def test_what_cuda_takes_here_is_reckoned_with_for_strategies_that_were_not_measured() -> None:
    found = planner.plan_report(Settings(model="demo"), [card(4)])
    lines = {line.strategy: line for line in found.strategies}
    assert found.context > memory_estimate.CONTEXT
    assert lines["tf32"].process == lines["fp32"].process == 1400 * MIB
    other = planner.plan_report(
        Settings(model="demo"), [Gpu(0, "Another", (8, 6), 4 * GIB, 4 * GIB)]
    )
    assert other.context == memory_estimate.CONTEXT
    assert {line.strategy: line.process for line in other.strategies}["fp32"] < 1000 * MIB


def test_the_plan_is_what_the_engine_gets_and_knows_what_each_candidate_needs() -> None:
    settings = Settings(model="demo", strategy="bfloat16")
    made = planned(settings, [card(4)])
    assert made == planner.plan_report(settings, [card(4)]).plan
    for candidate in made.candidates[:-1]:
        assert made.needs[candidate.precision.name].bytes > 0
    assert planned(Settings(model="someone/else"), [card(4)]).needs == {}
    assert planned(settings, []).needs == {}


@pytest.mark.parametrize("budget", ["0", "0%", "1MiB"])
def test_a_budget_that_nothing_fits_into_leaves_the_cpu(budget: str) -> None:
    found = planner.plan_report(Settings(model="demo", vram_budget=budget), [card(4)])
    assert [candidate.device for candidate in found.plan.candidates] == ["cpu"]
    assert found.limit is not None
    assert found.limit <= MIB


SPOKEN = {
    # model, setting, code -> refused, warned of, or nothing
    ("demo", "source_lang", "de"): "refused", ("demo", "target_lang", "fr"): "refused",
    ("demo", "source_lang", "en"): "",
    ("demo", "source_lang", "en-GB"): "", ("demo-ctc", "source_lang", "de"): "warned",
    ("demo-tdt", "target_lang", "es"): "warned", ("demo-ctc", "source_lang", "en-US"): "",
    ("nvidia/canary-1b", "source_lang", "de"): "", ("nvidia/canary-1b", "target_lang", "fr"): "",
    ("nvidia/canary-1b", "source_lang", "it"): "refused", ("nvidia/canary-1b-flash", "target_lang", "ja"): "refused",
    ("canary-180m-flash", "source_lang", "pt-BR"): "refused", ("canary-180m-flash", "source_lang", "es"): "",
    ("nvidia/canary-1b-v2", "source_lang", "it"): "", ("nvidia/parakeet-tdt-0.6b-v2", "source_lang", "de"): "warned",
    ("parakeet-tdt-0.6b-v2", "source_lang", "de"): "warned", ("parakeet-tdt-0.6b-v3", "source_lang", "de"): "",
    ("nvidia/parakeet-ctc-1.1b", "target_lang", "fr"): "warned", ("parakeet-rnnt-0.6b", "source_lang", "pl"): "warned",
    ("nobody/knows-it", "source_lang", "de"): "", ("", "source_lang", "de"): "",
    (str(names.SHIPPED["demo"]), "source_lang", "en-GB"): "",
}  # fmt: skip


@pytest.mark.parametrize("asked", SPOKEN, ids=str)
def test_a_language_that_the_model_has_not_is_told_before_it_is_loaded(
    asked: tuple[str, str, str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, key, code = asked
    settings = Settings(model=model, **{key: code})  # type: ignore[arg-type]
    with caplog.at_level("WARNING", "asrd"):
        if SPOKEN[asked] == "refused":
            with pytest.raises(ConfigError, match="is not a language of this model") as caught:
                model_facts.check_languages(settings)
            assert caught.value.hint.startswith(f'write {key} = "en"')
        else:
            model_facts.check_languages(settings)
    assert bool(caplog.records) == (SPOKEN[asked] == "warned")
