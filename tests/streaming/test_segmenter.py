"""Every sample of speech goes out, silence does not, and no buffer is longer than the window."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrd.audio.blocks import AudioBlock
from asrd.audio.vad import Vad, VadEvent
from asrd.streaming.segmenter import GRID_SAMPLES, SegmentBuffer, Segmenter
from tests.sound import RATE, noise, silence, speech

Script = list[tuple[int, int, list[tuple[int, int]]]]
"""Segments: opening, closing, pauses within."""


def drive(
    script: Script,
    length: int,
    *,
    block: int = 4000,
    delay: int = 3000,
    start: int = 0,
    until: Callable[[SegmentBuffer], int] = lambda buffer: buffer.stop - RATE,
    window: Segmenter | None = None,
) -> list[tuple[SegmentBuffer, int]]:
    """Feed a ramp (so that every sample tells its place) with scripted events; return buffers with
    what was committed.

    An event is told `delay` samples after the place that it names, as a detector would.
    """
    window = window or Segmenter()
    told = []
    for begin, end, pauses in script:
        told.append(VadEvent("open", begin, begin + delay))
        for left, right in pauses:
            told += [
                VadEvent("pause", left, min(left + delay, right)),
                VadEvent("resume", right, right + 512),
            ]
        told += [VadEvent("pause", end, end + delay), VadEvent("close", end, end + delay)]
    told.sort(key=lambda event: event.known_at)
    out: list[tuple[SegmentBuffer, int]] = []

    def drain() -> None:
        while (buffer := window.take()) is not None:
            committed = buffer.stop if buffer.final else until(buffer)
            out.append((buffer, committed))
            window.commit(committed)

    for position in range(0, length, block):
        stop = min(position + block, length)
        events = [e for e in told if position < e.known_at <= stop]
        shifted = [VadEvent(e.kind, e.at + start, e.known_at + start) for e in events]
        window.push(
            AudioBlock(start + position, np.arange(position, stop, dtype=np.float32)), shifted
        )
        drain()
    rest = [e for e in told if e.known_at > length]
    window.note([VadEvent(e.kind, min(e.at, length) + start, length + start) for e in rest])
    drain()
    return out


def spans(out: list[tuple[SegmentBuffer, int]], start: int = 0) -> list[tuple[float, float, bool]]:
    return [((b.start - start) / RATE, (b.stop - start) / RATE, b.final) for b, _ in out]


def on_grid(sample: int) -> int:
    """Return the place of the grid at or before a sample."""
    return sample // GRID_SAMPLES * GRID_SAMPLES


def test_a_pause_seals_what_was_said_and_silence_is_skipped() -> None:
    script: Script = [(RATE, 3 * RATE, []), (50 * RATE, 52 * RATE, [])]
    assert spans(drive(script, 60 * RATE)) == [(0.96, 3, True), (50, 52, True)]


def test_what_brings_a_buffer_onto_the_grid_is_told_from_what_was_heard() -> None:
    (first, _), (second, _) = drive([(RATE, 3 * RATE, []), (50 * RATE, 52 * RATE, [])], 60 * RATE)
    assert (first.lead, second.lead) == (RATE - first.start, 0)
    assert first.lead == 0.04 * RATE


def test_speech_that_opens_right_behind_a_close_does_not_reach_into_it() -> None:
    out = drive([(0, 2 * RATE + 100, []), (2 * RATE + 100, 4 * RATE, [])], 6 * RATE, delay=90)
    assert [(b.start, b.stop) for b, _ in out] == [(0, 2 * RATE + 100), (2 * RATE + 100, 4 * RATE)]


def test_buffers_hold_the_samples_they_claim() -> None:
    script: Script = [(RATE + 7, 41 * RATE + 3, []), (60 * RATE, 62 * RATE, [])]
    for buffer, _ in drive(script, 70 * RATE, start=10**9):
        offset = buffer.start - 10**9
        np.testing.assert_array_equal(
            buffer.samples, np.arange(offset, offset + len(buffer.samples), dtype=np.float32)
        )
        assert buffer.samples.flags.c_contiguous


def test_speech_without_a_pause_overlaps_by_the_left_context() -> None:
    out = drive([(0, 35 * RATE, [])], 40 * RATE, window=Segmenter(left=2.0))
    assert [buffer.final for buffer, _ in out] == [False] * (len(out) - 1) + [True]
    assert 5 <= len(out) <= 7
    for (_, committed), (following, _) in pairwise(out):
        assert following.start == on_grid(committed - 2 * RATE)


def test_a_full_window_is_sealed_at_its_last_pause() -> None:
    pauses = [(3 * RATE, 3 * RATE + 4000), (8 * RATE, 8 * RATE + 4800)]
    out = drive([(0, 15 * RATE, pauses)], 20 * RATE)
    assert spans(out) == [(0, 8.15, True), (8.08, 15, True)]


def test_a_pause_that_is_still_going_on_seals_a_full_window() -> None:
    window = Segmenter()
    window.push(AudioBlock(0, np.zeros(9 * RATE, np.float32)), [VadEvent("open", 0, 3000)])
    window.push(
        AudioBlock(9 * RATE, np.zeros(RATE + 4000, np.float32)),
        [VadEvent("pause", 152_000, 160_000)],
    )
    first = window.take()
    assert first is not None
    assert (first.start, first.stop, first.final) == (0, 156_000, True)
    window.note([VadEvent("close", 155_000, 164_000)])
    assert window.take() is None, "what is left of the segment is silence"


def test_the_edge_of_an_open_buffer_lies_where_it_is_quiet() -> None:
    sound = noise(12, 0.3)
    quiet = slice(round(9.5 * RATE), round(9.56 * RATE))
    sound[quiet] = 0
    window = Segmenter()
    window.push(AudioBlock(0, sound), [VadEvent("open", 0, 3000)])
    buffer = window.take()
    assert buffer is not None
    assert not buffer.final
    assert quiet.start < buffer.stop < quiet.stop


def test_nothing_comes_until_the_open_buffer_is_committed() -> None:
    window = Segmenter()
    for start in range(0, 40 * RATE, RATE):
        window.push(AudioBlock(start, noise(1)), [VadEvent("open", 0, 3000)] if not start else [])
    first = window.take()
    assert first is not None
    assert window.take() is None
    window.commit(first.stop - RATE)
    second = window.take()
    assert second is not None
    assert second.start == on_grid(first.stop - RATE - window.left)


def test_a_window_that_commits_nothing_moves_on_all_the_same() -> None:
    out = drive([(0, 60 * RATE, [])], 61 * RATE, until=lambda buffer: 0)
    assert len(out) < 30
    covered(out, [(0, 60 * RATE, [])], Segmenter())


def test_a_little_too_much_is_one_sealed_buffer_with_less_context() -> None:
    window = Segmenter(left=3.0)
    window.push(AudioBlock(0, noise(20)), [VadEvent("open", 0, 3000)])
    assert window.take() is not None
    window.commit(9 * RATE)
    window.note([VadEvent("close", 17 * RATE, 20 * RATE)])
    last = window.take()
    assert last is not None
    assert (last.start, last.stop, last.final) == (
        on_grid(7 * RATE) + GRID_SAMPLES,
        17 * RATE,
        True,
    )


def test_a_sealed_buffer_that_the_model_gave_up_on_goes_out_again() -> None:
    window = Segmenter(left=2.0)
    window.push(
        AudioBlock(0, np.arange(20 * RATE, dtype=np.float32)), [VadEvent("open", RATE, 2 * RATE)]
    )
    window.note([VadEvent("close", 9 * RATE, 10 * RATE), VadEvent("open", 12 * RATE, 13 * RATE)])
    window.note([VadEvent("close", 14 * RATE, 15 * RATE)])
    out = []
    while (buffer := window.take()) is not None:
        out.append(buffer)
        window.commit(5 * RATE if buffer.start < 2 * RATE else buffer.stop)
    assert spans([(b, b.stop) for b in out]) == [(0.96, 9, True), (2.96, 9, True), (12, 14, True)]
    assert out[1].samples[0] == 2.96 * RATE


def test_a_model_that_always_gives_up_is_not_asked_for_ever() -> None:
    window = Segmenter()
    window.push(
        AudioBlock(0, noise(20)),
        [VadEvent("open", 0, 3000), VadEvent("close", 9 * RATE, 10 * RATE)],
    )
    asked = 0
    while (buffer := window.take()) is not None:
        asked += 1
        window.commit(buffer.start + 1)
    assert asked <= 8


def test_speech_before_the_held_sound_is_refused() -> None:
    window = Segmenter(lookback=1000)
    for start in range(0, 10 * RATE, RATE):
        window.push(AudioBlock(start, noise(1)), [])
        window.note(
            [VadEvent("open", start, start + RATE), VadEvent("close", start + 9, start + RATE)]
        )
        while window.take():
            pass
    with pytest.raises(ValueError, match="lookback"):
        window.note([VadEvent("open", 0, 10 * RATE)])


def test_silence_is_not_kept() -> None:
    window, vad = Segmenter(), Vad()
    for start in range(0, 120 * RATE, 4000):
        block = AudioBlock(start, silence(0.25))
        window.push(block, vad.push(block))
        assert window.take() is None
        assert window.held < RATE


def covered(out: list[tuple[SegmentBuffer, int]], script: Script, window: Segmenter) -> None:
    """Assert that buffers tile all speech: sealed ones meet, open ones overlap where they must,
    none strays.

    And that all begin on the grid, for which they may reach back by less than a frame.
    """
    assert all(len(buffer.samples) <= window.size for buffer, _ in out)
    assert all(buffer.start % GRID_SAMPLES == 0 for buffer, _ in out)
    script = [(on_grid(begin), end, pauses) for begin, end, pauses in script]
    for begin, end, _ in script:
        mine = [(buffer, committed) for buffer, committed in out if begin <= buffer.start < end]
        assert mine[0][0].start == begin
        assert end <= mine[-1][0].stop <= end + 3000
        for (buffer, committed), (following, _) in pairwise(mine):
            if buffer.final:
                assert following.start == on_grid(buffer.stop)
            else:
                assert following.start <= max(
                    committed, buffer.start + window.left + window.size // 4
                )
                assert buffer.start + window.size // 8 < following.start < buffer.stop
    assert len(out) == sum(any(begin <= b.start < end for begin, end, _ in script) for b, _ in out)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """Return segments of 0.3 to 40 s with pauses inside, with silences of 0.5 s and more between
    them."""
    script: Script = []
    position = draw(st.integers(0, RATE))
    for _ in range(draw(st.integers(1, 4))):
        begin = position
        pauses = []
        for _ in range(draw(st.integers(0, 4))):
            position += draw(st.integers(2000, 12 * RATE))
            rest = draw(st.integers(3500, 7000))
            pauses.append((position, position + rest))
            position += rest
        position += draw(st.integers(4800, 15 * RATE))
        script.append((begin, position, pauses))
        position += draw(st.integers(8000, 3 * RATE))
    return script


@settings(max_examples=150, deadline=None)
@given(script=scripts(), block=st.integers(320, 30_000), seed=st.integers(0, 2**32))
def test_speech_is_tiled_whatever_is_said(script: Script, block: int, seed: int) -> None:
    random = np.random.default_rng(seed)

    def until(buffer: SegmentBuffer) -> int:
        return int(random.integers(buffer.start, buffer.stop + 1))

    out = drive(script, script[-1][1] + RATE, block=block, until=until)
    covered(out, script, Segmenter())


def test_a_detector_and_a_window_together() -> None:
    sound = np.concatenate([silence(2), speech(1.5), silence(20), speech(14), silence(2)])
    vad, window, out = Vad(), Segmenter(), []

    def drain() -> None:
        while (buffer := window.take()) is not None:
            out.append(buffer)
            window.commit(buffer.stop if buffer.final else buffer.stop - RATE)

    for start in range(0, len(sound), 4000):
        block = AudioBlock(start, sound[start : start + 4000])
        window.push(block, vad.push(block))
        drain()
    window.note(vad.finish())
    drain()
    assert out[0].final
    assert 1.6 < out[0].start / RATE < 1.9
    assert 3.5 < out[0].stop / RATE < 3.9
    assert 23 < out[1].start / RATE < 23.5
    assert out[-1].final
    assert 37.5 < out[-1].stop / RATE < 37.9
