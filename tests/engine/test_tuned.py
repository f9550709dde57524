"""Verdicts on disk: what they hold for, what makes them stale, and what a plan makes of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from asrd.config.settings import Settings
from asrd.engine import planner, tuned
from asrd.engine.tuned import TunedStrategy, TuningResult
from asrd.errors import DiskError, PrecisionError
from asrd.models import names
from asrd.precision import gpus
from asrd.precision.plan import Gpu

CARD = Gpu(0, "Card", (8, 6), 8 << 30, 7 << 30, "580.1")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(gpus, "gpus", list)
    monkeypatch.setattr(names, "_cached", lambda name: None)
    return tmp_path / "asrd" / "verdicts.json"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "own.nemo").write_bytes(b"weights")
    return Settings(model=str(tmp_path / "own.nemo"))


def record(
    settings: Settings, gpu: Gpu | None = None, chosen: str = "bfloat16", **more: Any
) -> TuningResult:
    key = tuned.key_for(settings, gpu)
    assert key is not None
    refused = TunedStrategy(
        "tf32", "costs too much", "worse", 1.0, (0.7, 1.3), 1.4, 9, 900, "nvml", 5.0, 0
    )
    return TuningResult(
        key,
        chosen,
        "measured here: cheap",
        [refused],
        "m.jsonl",
        180,
        1910,
        900.0,
        "then",
        0.5,
        **more,
    )


def test_a_verdict_is_kept_for_the_user_alone_and_comes_back(
    settings: Settings, kept: Path
) -> None:
    assert tuned.find(settings, None) == (None, "")
    tuned.keep(record(settings))
    assert tuned.find(settings, None) == (record(settings), "")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_verdicts_of_other_devices_and_bounds_stand_beside_it_and_a_new_one_replaces_its_own(
    settings: Settings,
) -> None:
    strict = msgspec.structs.replace(settings, max_wer_delta=0.1)
    for one, gpu in ((settings, None), (settings, CARD), (strict, CARD)):
        tuned.keep(record(one, gpu))
    tuned.keep(record(settings, CARD, "tf32"))
    assert len(tuned.read()) == 3
    assert [tuned.find(one, CARD)[0].chosen for one in (settings, strict)] == ["tf32", "bfloat16"]  # type: ignore[union-attr]


def test_a_plan_goes_by_what_was_measured(settings: Settings) -> None:
    tuned.keep(record(settings))
    made = planner.plan_for(settings)
    assert [candidate.name for candidate in made.candidates] == ["bfloat16 on cpu", "fp32 on cpu"]
    assert made.reason == "measured here: cheap"
    assert (
        planner.plan_for(msgspec.structs.replace(settings, strategy="half"))
        .candidates[0]
        .precision.name
        == "half"
    )


def test_no_candidate_falls_to_what_was_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "gpus", lambda: [CARD])
    assert [candidate.name for candidate in planner.plan_for(settings).candidates] == [
        "bfloat16",
        "tf32",
        "fp32",
        "fp32 on cpu",
    ]
    tuned.keep(record(settings, CARD))
    made = planner.plan_for(settings)
    assert [candidate.name for candidate in made.candidates] == ["bfloat16", "fp32", "fp32 on cpu"]
    assert [(one.candidate, one.kind, one.detail) for one in made.rejected] == [
        ("tf32", "measured", "costs too much")
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"torch": "2.12.0"}, f"torch was 2.12.0 and is {tuned._version('torch')}"),
        ({"asrd": "0.0.9"}, "asrd was 0.0.9 and is 0.1.0"),
        ({"device": "Other CPU"}, "the device was Other CPU and is"),
        ({"driver": "570.2"}, "the driver was 570.2 and is unset"),
        ({"size": 3}, "the model's file has changed"),
        ({"modified": 3}, "the model's file has changed"),
        (
            {"preset": "aggressive", "bound": 1.0},
            "the preset was aggressive and is default; max_wer_delta was 1 and",
        ),
        ({"languages": "de > de"}, "the language was de > de and is en > en"),
    ],
)
def test_a_verdict_found_with_something_else_is_stale_and_decides_nothing(
    settings: Settings, change: dict[str, Any], said: str
) -> None:
    old = record(settings)
    tuned.keep(msgspec.structs.replace(old, key=msgspec.structs.replace(old.key, **change)))
    assert tuned.find(settings, None)[1].startswith(said)
    made = planner.plan_for(settings)
    assert [candidate.name for candidate in made.candidates] == ["fp32 on cpu"]
    assert f"not measured: asrd tune; what was measured is stale: {said}" in made.reason


def test_a_file_that_was_written_anew_makes_its_verdict_stale(settings: Settings) -> None:
    tuned.keep(record(settings))
    os.utime(settings.model, ns=(1, 1))
    assert tuned.find(settings, None)[1] == "the model's file has changed"
    Path(settings.model).unlink()
    assert tuned.find(settings, None)[1] == "the model's file is not here"
    assert planner.plan_for(settings).candidates[0].name == "fp32 on cpu"


def test_of_several_that_are_stale_the_nearest_is_told(settings: Settings) -> None:
    old = record(settings)
    tuned.keep(msgspec.structs.replace(old, key=msgspec.structs.replace(old.key, torch="1.0")))
    tuned.keep(record(settings, CARD))
    assert tuned.find(settings, None)[1].startswith("torch was 1.0")


def test_a_verdict_for_what_the_preset_does_not_name_decides_nothing(settings: Settings) -> None:
    tuned.keep(record(settings, chosen="half-naive"))
    assert planner.plan_for(settings).candidates[0].name == "fp32 on cpu"


def test_the_outlook_shows_it_for_this_machine_and_not_for_an_imagined_one() -> None:
    settings = Settings(model="demo-ctc")
    tuned.keep(record(settings))
    found = planner.plan_report(settings, [])
    assert (found.chosen, found.evidence, found.stale) == ("bfloat16 on cpu", record(settings), "")
    assert planner.plan_report(settings, [CARD], imagined=True).evidence is None
    assert "driver was unset and is 580.1" in planner.plan_report(settings, [CARD]).stale


@pytest.mark.parametrize(
    "damaged", [lambda whole: whole[:50], lambda whole: whole.replace(b"cheap", b"che\xffp")]
)
def test_a_damaged_file_is_told_and_replaced(
    damaged: Callable[[bytes], bytes],
    settings: Settings,
    kept: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tuned.keep(record(settings))
    kept.write_bytes(damaged(kept.read_bytes()))
    assert tuned.find(settings, None) == (None, "")
    assert "the verdict of asrd tune cannot be read" in caplog.text
    tuned.keep(record(settings))
    assert tuned.find(settings, None)[0] == record(settings)


def test_a_folder_that_cannot_be_written_is_one_sentence(settings: Settings, kept: Path) -> None:
    kept.parent.write_text("in the way")
    for act in (lambda: tuned.keep(record(settings)), tuned.check_room):
        with pytest.raises(
            DiskError, match=r"the verdict cannot be saved in .*verdicts\.json"
        ) as told:
            act()
        assert "XDG_STATE_HOME" in told.value.hint


def test_a_device_that_is_not_there_is_an_error_as_ever(settings: Settings) -> None:
    with pytest.raises(PrecisionError):
        planner.plan_for(msgspec.structs.replace(settings, device="cuda:3"))
