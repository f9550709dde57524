"""The bench: statistics by hand, verdicts on series with and without a fault, the report, a small
real run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrd.dictation import recording
from asrd.scoring import Edits
from asrd.worker import __main__, recognizer
from tests.helpers import ROOT
from tools.benchmark import __main__ as bench
from tools.benchmark import (
    figures,
    page,
    player,
    processes,
    ratios,
    service,
    sounds,
    speed,
    stopping,
    words,
)
from tools.benchmark.figures import MIB, Block, Result, Run
from tools.benchmark.ratios import Case, Crowd, Reading, StartUp, Stop
from tools.benchmark.service import Sent
from tools.benchmark.stopping import FACES, Ending

CLIPS = {"0001, 9.9 s": 9.9, "0002, 9.8 s": 9.8, "0003, 1.4 s": 1.4}
TEXT = "call helen at noon"


def blocks(
    factor: float, added: float = 0.0, count: int = 15, text: str = TEXT, canary: float = 0.01
) -> list[Block]:
    """Return blocks in which asrd takes `factor` of the bare model's time and `added` seconds, on a
    noisy machine."""
    dice, found = random.Random(1), []
    for _ in range(count):
        runs: dict[str, dict[str, Run]] = {who: {} for who in "ABG"}
        busy = dice.uniform(1.0, 1.5)  # what neighbours do to a whole block
        for clip, seconds in CLIPS.items():
            bare = 0.005 * seconds * busy
            for who, time_ in {"A": bare, "B": 1.4 * bare, "G": factor * bare + added}.items():
                runs[who][clip] = Run(
                    time_ * dice.uniform(0.998, 1.002), time_, text if who == "G" else TEXT
                )
        found.append(Block((canary, canary), runs))
    return found


def readings(per_utterance: float = 0.0, fds: float = 0.0, count: int = 250) -> list[Reading]:
    """Return what is held every fourth utterance: warm-up, noise of 40 KiB, and so many bytes kept
    of each."""
    dice, found = random.Random(2), []
    for n in range(4, 4 * count + 1, 4):
        warm = 30 * MIB * (1 - 0.98 ** min(n, 200))
        worker = int(800 * MIB + warm + per_utterance * n + dice.gauss(0, 40 << 10))
        found.append(Reading(n, (60 * MIB, worker), (14, 9 + int(fds * n)), (3, 5)))
    return found


# -- statistics
# -------------------------------------------------------------------------------------------------------


def test_the_median_and_its_interval() -> None:
    values = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98]
    middle, ci = figures.median_interval(values)
    assert middle == 1.0
    assert ci is not None
    assert min(values) <= ci[0] < 1.0 < ci[1] <= max(values)
    assert figures.median_interval(values) == (middle, ci), (
        "the same figures give the same interval"
    )
    assert figures.median_interval([2.0]) == (2.0, None)
    assert figures.median_interval([]) == (None, None)
    assert figures.median_interval([3.0, 3.0]) == (3.0, (3.0, 3.0))


def test_pairs_have_to_be_pairs() -> None:
    assert figures.paired([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="argument"):
        figures.paired([1.0], [1.0, 2.0])


def test_the_slope_does_not_mind_outliers() -> None:
    x = [float(n) for n in range(100)]
    y = [0.5 * n + 3 for n in x]
    y[10] = y[60] = 1000.0
    found, (low, high) = figures.slope(x, y)
    assert found == pytest.approx(0.5)
    assert low <= found <= high


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=20))
def test_fairness_is_between_one_for_all_and_all_for_one(shares: list[float]) -> None:
    assert 1 / len(shares) - 1e-9 <= figures.jain(shares) <= 1 + 1e-9
    assert figures.jain([shares[0]] * 8) == pytest.approx(1.0)
    assert figures.jain([shares[0]] + [0.0] * 7) == pytest.approx(1 / 8)


def test_blocks_are_dropped_where_the_canary_moved() -> None:
    calm, loud = blocks(1.0), blocks(1.0, count=3, canary=0.0115)
    kept, dropped = figures.quiet([*calm, *loud])
    assert (len(kept), dropped) == (15, 3)
    assert (
        figures.quiet(
            [*calm[:2], Block((0.01, 0.02), calm[0].runs), Block((0.02, 0.01), calm[0].runs)]
        )[1]
        == 2
    )
    kept, dropped = figures.quiet(
        [Block((0.01 * 2**n, 0.01 * 2**n), calm[0].runs) for n in range(8)]
    )
    assert (len(kept), dropped) == (8, 8), "with too few quiet blocks all count, and it is said"


def test_one_long_text_is_judged_clip_by_clip() -> None:
    said = ["one two three", "four five", "six"]
    assert figures.by_clip(said, "one two three four five six", str) == Edits((0, 0, 0), (3, 2, 1))
    assert figures.by_clip(said, "one too three four five six seven eight", str) == Edits(
        (1, 0, 2), (3, 2, 1)
    )
    assert figures.by_clip(said, "one two three six", str) == Edits((0, 2, 0), (3, 2, 1))
    assert figures.by_clip(said, "", str) == Edits((3, 2, 1), (3, 2, 1))


# -- verdicts
# ---------------------------------------------------------------------------------------------------------


def test_a_small_overhead_meets_the_goal_on_a_noisy_machine() -> None:
    ratio = ratios.overhead(blocks(1.005), CLIPS)
    assert ratio.met
    assert ratio.value == pytest.approx(1.005, abs=0.002)
    assert ratio.ci is not None
    assert ratio.ci[1] < 1.02


@pytest.mark.parametrize(
    ("factor", "added", "text"),
    [(1 + player.SLOW, 0.0, TEXT), (1.0, 0.0011, TEXT), (1.0, 0.0, "call helen at one")],
)
def test_a_slow_down_and_other_words_are_told(factor: float, added: float, text: str) -> None:
    assert not ratios.overhead(blocks(factor, added, text=text), CLIPS).met


def test_of_what_the_time_for_a_short_clip_consists_is_told() -> None:
    whole = blocks(1.0)
    for block in whole:
        for clip, run in block.runs["G"].items():
            parts = {
                "encoder": 0.7 * run.seconds,
                "decoder": 0.2 * run.seconds,
                "between": 0.1 * run.seconds,
            }
            block.runs["G"][clip] = msgspec.structs.replace(run, parts=parts)
    ratio = ratios.overhead(whole, CLIPS)
    short = ratio.detail["parts_ms"]["0003, 1.4 s"]
    assert short["encoder"] == pytest.approx(3.5 * short["decoder"], rel=0.01)
    assert f"1.4 s: {short['encoder']:.1f} ms to the encoder's output" in page.beside("R1", ratio)
    assert "1.4 s" not in page.beside("R1", ratios.overhead(blocks(1.0), CLIPS))


def test_the_table_of_contenders_lists_the_words_that_differ() -> None:
    table = figures.table(blocks(1.1, text="call helen"), CLIPS, bench.NAMES)
    assert table["A"]["over_bare"] == 1.0
    assert table["B"]["over_bare"] == pytest.approx(1.4, abs=0.01)
    assert table["B"]["asrd_over_it"] == pytest.approx(1.1 / 1.4, abs=0.01)
    assert table["B"]["flips"] == []
    assert table["G"]["flips"][0] == {"clip": "0001, 9.9 s", "bare": TEXT, "heard": "call helen"}


def test_growth_is_that_of_the_second_half_and_a_leak_is_told() -> None:
    assert ratios.growth(readings()).met
    leaking = ratios.growth(readings(per_utterance=player.LEAK))
    assert not leaking.met
    assert leaking.value == pytest.approx(1000 * player.LEAK / MIB, rel=0.1)
    assert not ratios.growth(readings(fds=0.1)).met


def stop(length: float, seconds: float, whole: float) -> Stop:
    return Stop(length, seconds, whole, 1, 40)


def test_stops_are_held_against_the_goal_of_their_length() -> None:
    flat = [
        stop(length, 0.03, whole)
        for length, whole in ((10, 0.08), (60, 0.5), (120, 1.2))
        for _ in range(3)
    ]
    ratio = ratios.stops(flat)
    assert ratio.met
    assert ratio.value == pytest.approx(0.025)
    assert isinstance(ratio.lengths, dict)
    assert set(ratio.lengths) == {"10", "60", "120"}
    assert ratio.lengths["60"]["goal"] == 0.10
    rising = [
        stop(length, length / 1000, whole) for length, whole in ((10, 0.08), (60, 1.0), (120, 4.0))
    ] * 3
    assert ratios.stops(rising).detail["slope_ms_per_s"] == pytest.approx(1.0)
    assert not ratios.stops(rising).met
    assert not ratios.stops([*flat, stop(10, 0.05, 0.08), stop(10, 0.2, 0.08)]).met


def ending(length: float, seconds: float) -> Ending:
    return Ending(length, dict.fromkeys(FACES, seconds), (1, 0), 0.1)


class Timed:
    """A daemon by whose clock a dictation's end takes so long: a time for each face, times what its
    length adds."""

    interrupted = 0

    def __init__(self, grows: dict[str, float], dice: random.Random) -> None:
        self._grows, self._dice = grows, dice

    def _seconds(self, face: str, sound: Path) -> float:
        long = len(np.load(sound, mmap_mode="r")) / sounds.SAMPLE_RATE > max(LENGTHS) - 1
        usual = 0.001 * (1 + list(FACES).index(face))
        return (
            usual * self._dice.uniform(0.95, 1.05) * (self._grows.get(face, 1.0) if long else 1.0)
        )

    def dictate(self, sound: Path, lead: int = 0, pace: float = 1.0) -> tuple[float, str]:
        return self._seconds("client", sound), TEXT

    def send(self, sound: Path, lead: int = 0, pace: float = 1.0) -> Sent:
        return Sent(
            *(self._seconds(face, sound) for face in ("sink", "reply", "journal")), f"{TEXT} "
        )

    def settle(self) -> None: ...


LENGTHS = (10, 12, 14)


def growing() -> dict[str, tuple[dict[str, float], bool]]:
    """Return by name what the longest dictation takes over the shortest, face by face, and whether
    that is allowed."""
    dice = random.Random(10)
    found: dict[str, tuple[dict[str, float], bool]] = {"nothing grows": ({}, True)}
    for face in FACES:
        for low, high, met in (
            (0.6, 1.0, True),
            (1.0, 1.3, True),
            (1.75, 3.0, False),
            (3.0, 25.0, False),
        ):
            factor = dice.uniform(low, high)
            found[f"{face} takes {factor:.2f}"] = {face: factor}, met
    for factor, met in ((1.3, True), (1.75, False), (22.0, False)):  # 4 ms became 89 after an hour
        found[f"all take {factor:.2f}"] = dict.fromkeys(FACES, factor), met
    return found


@pytest.mark.parametrize("name", growing())
def test_what_grows_with_the_dictation_misses_the_goal_wherever_it_shows(
    name: str, tmp_path: Path
) -> None:
    factors, met = growing()[name]
    found = stopping.endings(
        Timed(factors, random.Random(name)), tmp_path, LENGTHS * 3, lambda _: None
    )
    ratio = stopping.lengths(found)
    assert ratio.met is met
    assert ratio.value == pytest.approx(max([1.0, *factors.values()]), rel=0.11)
    assert ratio.verdict == ("met" if met else "not met")
    assert "client" in page.beside("R10", ratio)
    assert stopping.lengths(found[:3]).verdict == "undecided", "one of each length is too few"


def test_other_words_at_the_sink_end_the_bench(tmp_path: Path) -> None:
    class Loses(Timed):
        def send(self, sound: Path, lead: int = 0, pace: float = 1.0) -> Sent:
            return Sent(0.001, 0.001, 0.001, "call")

    with pytest.raises(SystemExit, match="other words"):
        stopping.endings(Loses({}, random.Random(1)), tmp_path, LENGTHS, lambda _: None)


def test_dictations_of_every_length_end_with_the_same_sound(tmp_path: Path) -> None:
    ends, leads = [], []

    class Hears(Timed):
        def dictate(self, sound: Path, lead: int = 0, pace: float = 1.0) -> tuple[float, str]:
            samples = np.load(sound)
            leads.append(lead)
            ends.append(samples[lead:])
            return super().dictate(sound, lead, pace)

    stopping.endings(Hears({}, random.Random(1)), tmp_path, LENGTHS, lambda _: None)
    asked = [(length - stopping.TAIL_SECONDS) * sounds.SAMPLE_RATE for length in LENGTHS]
    assert leads == pytest.approx(asked, abs=stopping.FRAME / 2)
    assert not any(lead % stopping.FRAME for lead in leads), (
        "the detector is at the same place of a frame"
    )
    assert all(np.array_equal(end, ends[0]) for end in ends)
    rest = round(stopping.REST_SECONDS * sounds.SAMPLE_RATE)
    assert not ends[0][-rest:].any()
    assert ends[0][-2 * rest : -rest].any()


def test_a_daemon_that_rereads_reads_all_of_a_recording_before_its_last_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(
        recording.Dictation, "write", lambda self, whole: done.append(f"write {whole}")
    )
    monkeypatch.setattr(Path, "read_bytes", lambda self: done.append(f"read {self.name}"))
    player.reread()
    one = SimpleNamespace(recording=SimpleNamespace(path=tmp_path / "one.wav"))
    for whole in (False, True):
        recording.Dictation.write(one, whole)  # type: ignore[arg-type]  # of a recording it looks at the file alone
    assert done == ["write False", "read one.wav", "write True"]


def test_what_decides_beside_the_ratio_itself() -> None:
    assert ratios.idleness(0.001, 60, 0.3, 60, 0.0).met
    assert not ratios.idleness(0.001, 60, 0.9, 60, 0.0).met
    assert not ratios.idleness(0.02, 60, 0.3, 60, 0.0).met
    assert ratios.start_up([StartUp(0.2, 10.0, 9.0)] * 3).met
    assert not ratios.start_up([StartUp(0.4, 10.0, 9.0)] * 3).met
    assert ratios.concurrency([Crowd(100, 97, (1.0,) * 8)] * 3).met
    assert not ratios.concurrency([Crowd(100, 97, (4.0, *(1.0,) * 7))] * 3).met
    assert not ratios.concurrency([Crowd(100, 90, (1.0,) * 8)] * 3).met
    ahead, behind = (
        ratios.concurrency([Crowd(100, 97, (1.0,) * 8, nemo)] * 3, "batches of 8")
        for nemo in (90, 98)
    )
    assert (ahead.met, behind.met) == (True, False)
    assert ahead.detail["over_nemo"] == pytest.approx(97 / 90)
    assert ratios.weights(5027, 10_000).met
    assert not ratios.weights(10_000, 10_000).met
    assert not ratios.load_peak(2.0, 1, "a model").met


def test_streaming_is_judged_by_its_worst_case() -> None:
    right, wrong = Edits((0,) * 40, (10,) * 40), Edits((0,) * 39 + (3,), (10,) * 40)
    good = Case("30 s", right, right, "whole", "whole", 4, 3, 400)
    bad = Case("120 s", wrong, right, "whole", "whole", 3, 3, 400)
    assert ratios.streaming([good]).met
    ratio = ratios.streaming([good, bad])
    assert ratio.value == pytest.approx(0.75)
    assert not ratio.met
    for changed, floor, met in ((5, 3, False), (5, 5, False), (4, 3, True), (0, 0, True)):
        assert (
            ratios.streaming(
                [Case("30 s", right, right, "whole", "whole", changed, floor, 400)]
            ).met
            is met
        )


# -- the report
# -------------------------------------------------------------------------------------------------------


@pytest.fixture
def result() -> Result:
    right = Edits((0,) * 40, (10,) * 40)
    found = {
        "R1": ratios.overhead(blocks(1.1), CLIPS),
        "R2": ratios.stops([stop(10, 0.03, 0.08), stop(60, 0.03, 0.5)]),
        "R3": ratios.weights(5000, 10_000),
        "R4": ratios.load_peak(1.06, 10_000, "a <large> model"),
        "R5": ratios.idleness(0.001, 60, 0.3, 60, 0.1),
        "R6": ratios.start_up([StartUp(0.2, 10.0, 9.0)] * 3),
        "R7": ratios.concurrency([Crowd(100, 97, (1.0,) * 8)] * 3),
        "R8": ratios.growth(readings()),
        "R9": ratios.streaming([Case("30 s", right, right, "whole", "whole", 2, 3, 400)]),
        "R10": stopping.lengths([ending(10, 0.004), ending(600, 0.004), ending(3600, 0.005)] * 3),
    }
    machine = {
        "cpu": "A CPU",
        "cores": 2,
        "threads": 2,
        "mode": "full",
        "seconds": 1.0,
        "load": 0.1,
        "blocks": 15,
    }
    machine |= {
        "dropped": 0,
        "noisy": False,
        "seeded": "",
        "command": "tools/bench",
        "started": "2026-11-26",
    }
    contenders = {"demo-ctc": figures.table(blocks(1.1, text="<b>"), CLIPS, bench.NAMES)}
    return Result(found, contenders, machine, {"asrd": "0.1.0"})


def test_the_json_has_the_shape_that_is_promised(result: Result) -> None:
    told = json.loads(page.to_json(result))
    assert list(told) == ["ratios", "contenders", "machine", "versions"]
    assert list(told["ratios"]) == [f"R{n}" for n in range(1, 11)]
    for ratio in told["ratios"].values():
        assert {"value", "ci", "goal", "met", "definition"} <= set(ratio)
        assert isinstance(ratio["met"], bool)
        assert ratio["ci"] is None or len(ratio["ci"]) == 2
    assert set(told["ratios"]["R2"]["lengths"]) == {"10", "60"}
    assert not result.met
    assert told["ratios"]["R1"]["met"] is False


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits_and_says_what_was_not_met(result: Result, width: int) -> None:
    text = page.table(result, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("NOT MET") == 1
    for name in result.ratios:
        assert f"\n{name} " in text


def test_what_too_few_repetitions_came_to_is_no_verdict(result: Result) -> None:
    result.ratios["R1"].enough = False
    assert result.met
    assert not result.ratios["R1"].met
    text = page.table(result, 140)
    assert "NOT MET" not in text
    assert text.count("undecided") == 1
    assert "R1: too few repetitions" in text
    assert ">undecided<" in page.html(result)
    assert json.loads(page.to_json(result))["ratios"]["R1"]["enough"] is False


class Links(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe", "b"), (
            "nothing active, nothing foreign, nothing unescaped"
        )
        self.found += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]


def test_the_page_needs_nothing_but_itself(result: Result) -> None:
    parser, text = Links(), page.html(result)
    parser.feed(text)
    assert all(link.startswith("#") for link in parser.found)
    assert text.count("<svg") == 4
    for ratio in result.ratios.values():
        assert ratio.definition.split(",")[0].partition("'")[0] in text


def test_a_goal_is_used_up_in_both_directions(result: Result) -> None:
    assert page.of_goal(result.ratios["R7"]) == pytest.approx(0.95 / 0.97)
    assert page.of_goal(result.ratios["R3"]) == pytest.approx(0.5 / 0.505)


# -- the instruments
# --------------------------------------------------------------------------------------------------


def test_joined_sounds_are_the_same_every_time_and_know_their_joins() -> None:
    clips = sounds.clips()
    one, again, other = (sounds.joined(clips, 30, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.samples, again.samples)
    assert one.texts == again.texts
    assert one.texts != other.texts
    pieces = np.split(one.samples, one.cuts)
    assert len(pieces) == len(one.texts)
    assert len(one.samples) >= 30 * sounds.SAMPLE_RATE
    assert not pieces[0][-round(sounds.PAUSE * sounds.SAMPLE_RATE) :].any()


def test_one_voice_speaks_sentences_through() -> None:
    sound, again = sounds.spoken(40, 3), sounds.spoken(40, 3)
    assert np.array_equal(sound.samples, again.samples)
    assert len(sound.samples) >= 40 * sounds.SAMPLE_RATE
    assert len(sound.texts) == len(sound.cuts) + 1 > 8
    frames = (
        np.abs(sound.samples[: len(sound.samples) // 4000 * 4000]).reshape(-1, 4000).max(axis=1)
    )
    assert frames.min() > 0.02  # of 0.25 s, no one is silent


def test_where_there_are_pauses_streaming_is_one_offline_pass() -> None:
    ours = speed.Ours("demo-ctc", 1)
    try:
        (paused, through) = words.cases(
            ours, [words.Plan(60, True, 1), words.Plan(30, False, 1)], lambda _: None
        )
    finally:
        ours.close()
    assert (paused.against, paused.changed) == ("cut at the pauses", 0)
    assert paused.floor > 0
    assert paused.words > 100
    assert (through.how, through.against) == ("whole", "whole")
    assert through.changed <= max(3, through.floor)


def test_processor_time_is_that_of_the_process() -> None:
    before = processes.cpu_seconds([os.getpid()])
    own = time.process_time()
    sum(range(300_000))
    assert processes.cpu_seconds([os.getpid()]) - before == pytest.approx(
        time.process_time() - own, abs=0.005
    )
    with subprocess.Popen(["sleep", "20"]) as child:
        assert child.pid in processes.children(os.getpid())
        assert processes.cpu_seconds([child.pid]) < 1.0
        assert processes.holding(child.pid).threads == 1
        child.kill()


def test_a_slow_worker_is_slower_than_the_real_one_by_what_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside: list[float] = []

    def recognize(*_: Any) -> str:
        began = time.perf_counter()
        time.sleep(0.03)
        inside.append(time.perf_counter() - began)
        return "heard"

    monkeypatch.setattr(recognizer.Recognizer, "recognize_together", recognize)
    monkeypatch.setattr(__main__, "main", lambda: 0)
    assert player.worker("slow") == 0
    began = time.perf_counter()
    assert recognizer.Recognizer.recognize_together(None, [b""], [0], "final") == "heard"  # type: ignore[arg-type]
    assert time.perf_counter() - began >= (1 + player.SLOW) * inside[0]


@pytest.mark.parametrize("faults", [(), ("leak",)])
def test_growth_of_a_real_worker_is_its_leak(faults: tuple[str, ...]) -> None:
    """One and the same utterance leaves the allocator nothing to grow for: what grows is what is
    kept."""
    ours = speed.Ours("demo-ctc", 1, "tidy", *faults)
    sound = sounds.near(sounds.clips(), 1, 1)[0].samples
    found = []
    for number in range(1, 101):
        ours.run(sound)
        ours.wait(ours.engine.measure("steady"))
        held = processes.holding(ours.engine.pid or 0)
        found.append(Reading(number, (0, held.rss), (0, held.fds), (0, held.threads)))
    ours.close()
    ratio = ratios.growth(found)
    assert ratio.value is not None
    assert (ratio.value > 0.5 * 1000 * player.LEAK / MIB) is bool(faults)
    assert not (faults and ratio.met)


def test_a_worker_keeps_nothing_for_each_length_that_it_has_heard() -> None:
    """Left to itself torch keeps some 60 KiB for each of several hundred lengths."""
    ours = speed.Ours("demo-ctc", 1, "tidy")
    sound = sounds.near(sounds.clips(), 4, 1)[0].samples

    def rss_after(frames: range) -> int:
        for frame in frames:
            ours.run(sound[: 160 * frame])
        ours.wait(ours.engine.measure("steady"))
        return processes.holding(ours.engine.pid or 0).rss

    some = rss_after(range(100, 300, 2))  # until what it may keep is full
    more = rss_after(range(300, 400))
    ours.close()
    assert more - some < 2 * MIB


def test_the_daemon_is_heard_through_its_socket(tmp_path: Path) -> None:
    clip = sounds.clips()[0]
    daemon = service.Service(tmp_path, "demo-ctc", 1, sinks="stdout")
    record, text = daemon.up()
    try:
        assert 0 < record < text
        file = service.save(tmp_path, "clip", clip.samples)
        seconds, heard = daemon.dictate(file, 1 << 30, 1000.0)
        assert seconds > 0
        sent = daemon.send(file, 1 << 30, 1000.0)
        assert sent.text == heard.strip()
        assert sent.journal > 0
        assert sent.sink > 0
        assert sent.reply > 0
        assert figures.by_clip([clip.text], heard, str).errors[0] <= 1
        held = service.endurance(daemon, tmp_path, 8, lambda done: None)
        assert [one.utterances for one in held] == [4, 8]
    finally:
        daemon.down()


def test_a_small_run_measures_judges_and_writes(tmp_path: Path) -> None:
    words = [
        "--quick",
        "--only",
        "R7",
        "--threads",
        "1",
        "--json",
        tmp_path / "b.json",
        "--html",
        tmp_path / "b.html",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tools.benchmark", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 3), done.stderr
    told = json.loads((tmp_path / "b.json").read_text())
    assert done.returncode == (0 if told["ratios"]["R7"]["met"] else 3)
    assert told["ratios"]["R7"]["detail"]["callers"] == 8
    assert told["ratios"]["R7"]["detail"]["rtfx_alone"] > 1
    assert told["ratios"]["R7"]["detail"]["rtfx_nemo"] > 1
    assert told["versions"]["torch"]
    assert "<svg" in (tmp_path / "b.html").read_text()


def test_an_unknown_ratio_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.benchmark", "--only", "R11"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "R11" in done.stderr
