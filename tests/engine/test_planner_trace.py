"""The way of a decision: facts are gathered once, then a pure function decides."""

from __future__ import annotations

import functools
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import asrd
from asrd.config.settings import Settings
from asrd.engine import baseline, planner
from asrd.precision import cuda_errors, gpus
from asrd.precision.plan import Gpu

HOUSE = Path(asrd.__file__).parent
ORDER = re.findall(r"^    (\w+)  +\w", (HOUSE / "__init__.py").read_text(), re.MULTILINE)
PLANNER = str(HOUSE / "engine" / "planner.py")
MOST_CLIMBS = 3
LOOKUPS = {
    "nvml.ask", "gpus.gpus", "names.resolve", "checkpoint.header", "model_facts.header_of", "tuned.find", "tuned.read",
    "baseline.find", "baseline.read", "text_files.plain", "paths.state",
}  # fmt: skip
"""Functions that ask NVML or the file system."""

CARD = Gpu(0, "A card", (8, 6), 4 << 30, 4 << 30)
CASES = [
    Settings(model=model, strategy=strategy, vram_budget=budget, device=device)
    for model in ("demo", "demo-ctc")
    for strategy in ("auto", "half", "int8", "selective")
    for budget, device in (("", "auto"), ("2GiB", "cuda:0"), ("50%", "A card"))
]
"""24 ways to ask for a precision."""


class Trace:
    """Functions of asrd in the order in which they are entered, as (rank of package, module, name,
    whether the planner called it, rank of the caller's package)."""

    def __init__(self) -> None:
        self.entered: list[tuple[int, str, str, bool, int]] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (here := rank(frame)) is not None:
            caller = frame.f_back
            by_planner = caller is not None and caller.f_code.co_filename == PLANNER
            while caller is not None and rank(caller) is None:
                caller = caller.f_back
            above = here if caller is None else rank(caller) or 0
            code = frame.f_code
            asked = by_planner and code.co_filename != PLANNER
            self.entered.append((here, module_of(code.co_filename), code.co_name, asked, above))

    @property
    def climbs(self) -> int:
        """Calls of a lower package into a higher one, and times that the planner, after it asked a
        lower package, asks a higher one."""
        upward = sum(here > above for here, _, _, _, above in self.entered)
        asked = [here for here, _, _, by_planner, _ in self.entered if by_planner]
        back = sum(now > before for before, now in itertools.pairwise(asked))
        return upward + back

    def count(self, name: str) -> int:
        return sum(function == name for _, _, function, _, _ in self.entered)


def rank(frame: FrameType) -> int | None:
    """Return the place of a frame's package in the order of the house; None outside of asrd."""
    return rank_of(frame.f_code.co_filename)


@functools.cache
def module_of(file: str) -> str:
    return Path(file).stem


@functools.cache
def rank_of(file: str) -> int | None:
    path = Path(file)
    if not path.is_relative_to(HOUSE):
        return None
    name = path.relative_to(HOUSE).with_suffix("").parts[0]
    return ORDER.index(name) if name in ORDER else None


def traced(act: Callable[[], Any]) -> Trace:
    trace = Trace()
    sys.setprofile(trace)
    try:
        act()
    finally:
        sys.setprofile(None)
    return trace


@pytest.fixture(autouse=True)
def one_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(gpus, "gpus", lambda: [CARD])
    monkeypatch.setattr(cuda_errors, "torch_build", lambda: None)


def name_of(settings: Settings) -> str:
    budget = settings.vram_budget or "no budget"
    return f"{settings.model} {settings.strategy} {budget} {settings.device}"


@pytest.mark.parametrize("settings", CASES, ids=name_of)
def test_a_plan_climbs_three_times_at_most_and_chooses_the_card_once(settings: Settings) -> None:
    trace = traced(lambda: planner.plan_for(settings))
    assert trace.count("device_for") == 1
    assert trace.count("gather") == trace.count("decide") == 1
    assert trace.climbs <= MOST_CLIMBS


@pytest.mark.parametrize("settings", CASES, ids=name_of)
def test_deciding_looks_nothing_up(settings: Settings) -> None:
    seen = gpus.GpuSelection([CARD], card=CARD)
    facts = planner.gather(settings, seen)
    trace = traced(lambda: planner.decide(settings, facts))
    assert LOOKUPS.isdisjoint(f"{module}.{name}" for _, module, name, _, _ in trace.entered)
    assert planner.decide(settings, facts) == planner.decide(settings, facts)


def test_one_climb_more_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up inside the decision is what this file is against."""
    settings = Settings(model="demo", vram_budget="2GiB")
    honest = traced(lambda: planner.plan_for(settings)).climbs
    fitted = planner.fitted

    def planted(*given: Any) -> Any:
        made = fitted(*given)
        baseline.find("demo", "cuda")
        return made

    # The copy is compiled as a line of the planner, as one that somebody writes there would be.
    code = planted.__code__.replace(co_filename=PLANNER)
    planted.__code__ = code
    monkeypatch.setattr(planner, "fitted", planted)
    assert traced(lambda: planner.plan_for(settings)).climbs > MOST_CLIMBS >= honest
