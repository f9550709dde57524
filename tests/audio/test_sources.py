"""Live sound: the sample clock, files, pipes, and microphones of a real PipeWire that come, go,
freeze and die."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import pty
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from asrd.audio import devices, files, microphone
from asrd.audio import sound_server as audio_sound_server
from asrd.audio.blocks import AudioBlock
from asrd.audio.devices import Device, choose
from asrd.audio.microphone import ARRIVAL_SECONDS, MAX_BLOCK_SAMPLES, Microphone
from asrd.audio.resampling import BLOCK_SAMPLES, MIN_GAP_SAMPLES, Resampler
from asrd.audio.sources import AudioSource, Pipe, PlayedFile, open_source
from asrd.config.settings import Settings
from asrd.errors import AudioError, ConfigError
from asrd.paths import DATA_FOLDER
from tests.helpers import ROOT
from tests.integration.sound_server import SoundServer, need_sound_server, sound_server
from tests.sound import noise, silence, speech, tone

T = TypeVar("T")


class Heard:
    """What a source delivered, and every state it told of."""

    def __init__(self, source: AudioSource) -> None:
        self.source = source
        self.blocks: list[AudioBlock] = []
        self.told: list[tuple[str, str, bool]] = []
        self.times: list[float] = []

    def open(self, **asked: Callable[[], bool]) -> Heard:
        self.source.open(self._block, self._change, **asked)
        return self

    def _block(self, block: AudioBlock) -> None:
        self.blocks.append(block)
        self.times.append(time.monotonic())

    def _change(self) -> None:
        self.told.append((self.source.name, self.source.problem, self.source.ended))

    @property
    def sound(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.float32), *(block.samples for block in self.blocks)])

    @property
    def problems(self) -> list[str]:
        """Return each problem that was told, and "" for each end of one."""
        said = ["", *(problem for _, problem, _ in self.told)]
        return [after for before, after in itertools.pairwise(said) if after != before]

    async def until(
        self, condition: Callable[[], object], what: str, seconds: float = 30.0
    ) -> None:
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, (
                f"no {what}; told: {self.told}, {len(self.blocks)} blocks"
            )
            await asyncio.sleep(0.02)

    async def more(self, blocks: int = 10) -> None:
        """Wait for so many blocks more."""
        wanted = len(self.blocks) + blocks
        await self.until(lambda: len(self.blocks) >= wanted, "more sound")

    def assert_one_clock(self) -> None:
        """Assert that blocks follow each other from 0, all of whole 20 ms but the last one, and are
        fit to be heard."""
        assert [block.start for block in self.blocks] == [
            0,
            *np.cumsum([len(b.samples) for b in self.blocks]),
        ][:-1]
        most = MAX_BLOCK_SAMPLES if isinstance(self.source, Microphone) else BLOCK_SAMPLES
        assert {len(block.samples) for block in self.blocks[:-1]} <= set(
            range(BLOCK_SAMPLES, most + 1, BLOCK_SAMPLES)
        )
        assert all(
            block.samples.dtype == np.float32 and block.samples.flags.c_contiguous
            for block in self.blocks
        )
        assert np.isfinite(self.sound).all()


async def played_out(heard: Heard) -> Heard:
    heard.open()
    await heard.until(lambda: heard.source.ended, "end")
    await heard.source.close()
    heard.assert_one_clock()
    return heard


# The tape


def recorded(*pieces: np.ndarray, rate: int = 16_000) -> list[AudioBlock]:
    blocks: list[AudioBlock] = []
    tape = Resampler(blocks.append)
    tape.splice(rate)
    for piece in pieces:
        tape.push(piece)
    tape.finish()
    return blocks


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000, 96_000]),
    cuts=st.lists(st.integers(0, 30_000), max_size=12),
)
def test_however_sound_is_cut_the_blocks_are_the_same(rate: int, cuts: list[int]) -> None:
    sound = noise(2.0, 0.2)[:30_000]
    blocks = recorded(*np.split(sound, sorted(cuts)), rate=rate)
    heard = np.concatenate([block.samples for block in blocks])
    expected = soxr.resample(sound, rate, 16_000) if rate != 16_000 else sound
    assert abs(len(heard) - len(expected)) <= 1
    least = min(len(heard), len(expected))
    np.testing.assert_allclose(heard[:least], expected[:least], atol=1e-6)
    assert [block.start for block in blocks] == list(range(0, len(heard), BLOCK_SAMPLES))
    assert not any(block.overflow for block in blocks)


def test_lost_sound_leaves_zeros_and_is_told_once() -> None:
    blocks: list[AudioBlock] = []
    tape = Resampler(blocks.append)
    tape.splice(48_000)
    tape.push(tone(0.51, rate=48_000))
    tape.lose()
    held = len(blocks)
    assert blocks[-1].stop - round(0.51 * 16_000) in range(
        MIN_GAP_SAMPLES, MIN_GAP_SAMPLES + BLOCK_SAMPLES
    ), "what was heard goes out before the gap"
    tape.lose()
    assert len(blocks) == held
    tape.splice(44_100)
    tape.push(tone(0.2, rate=44_100))
    tape.finish()
    assert [index for index, block in enumerate(blocks) if block.overflow] == [held]
    assert np.abs(np.concatenate([b.samples for b in blocks[held - 14 : held]])).max() == 0
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks)][:-1]


def test_a_rate_that_changes_in_the_middle_leaves_one_clock_and_the_same_pitch() -> None:
    blocks: list[AudioBlock] = []
    tape = Resampler(blocks.append)
    for rate in (48_000, 16_000, 44_100, 8000):
        tape.splice(rate)
        for piece in np.array_split(tone(1.0, 440.0, rate=rate), 37):
            tape.push(piece)
    tape.finish()
    sound = np.concatenate([block.samples for block in blocks])
    assert [block.start for block in blocks] == [320 * n for n in range(len(blocks))]
    assert len(sound) == pytest.approx(4 * 16_000, abs=8)
    for second in range(4):
        spectrum = np.abs(
            np.fft.rfft(
                sound[16_000 * second + 800 : 16_000 * second + 15_200] * np.hanning(14_400)
            )
        )
        assert np.argmax(spectrum) * 16_000 / 14_400 == pytest.approx(440, abs=2)


def test_lost_sound_of_known_length_leaves_zeros_of_that_length() -> None:
    blocks: list[AudioBlock] = []
    tape = Resampler(blocks.append)
    tape.splice(16_000)
    for seconds, zeros in ((2.0, 2.0), (0.01, 0.3), (-5.0, 0.3), (1e9, 30.0)):
        tape.push(tone(1.0))
        before = sum(len(block.samples) for block in blocks)
        tape.lose()
        tape.lose(seconds)
        assert (blocks[-1].stop - before) / 16_000 == pytest.approx(zeros, abs=0.02)
    tape.push(tone(1.0))
    tape.finish()
    assert sum(block.overflow for block in blocks) == 4
    assert [block.start for block in blocks] == [320 * n for n in range(len(blocks))]


def test_a_tape_without_sound_has_no_gap_to_tell_of() -> None:
    blocks: list[AudioBlock] = []
    tape = Resampler(blocks.append)
    tape.lose()
    tape.push(tone(0.1))
    tape.finish()
    assert (blocks[0].start, blocks[0].overflow) == (0, False)


def test_what_no_microphone_should_give_is_made_harmless() -> None:
    bad = tone(0.5)
    bad[100:200] = np.nan
    bad[300], bad[301], bad[400], bad[401] = np.inf, -np.inf, 7.0, -1e30
    sound = np.concatenate([block.samples for block in recorded(bad)])
    assert sound[100:200].any() == sound[300] == sound[301] == 0
    assert (sound[400], sound[401]) == (1.0, -1.0)
    np.testing.assert_array_equal(sound[500:], bad[500:])
    assert np.isfinite(
        np.concatenate([block.samples for block in recorded(bad, rate=44_100)])
    ).all()


# Names


@pytest.mark.parametrize("spec", ["", "mike", "file:", "file", "file:-", "pipe:x"])
def test_a_source_that_is_none_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_source(spec)
    assert caught.value.hint


def test_a_file_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such file"):
        open_source(f"file:{tmp_path}/none.wav")


DEVICES = [
    Device("Blue Yeti", "alsa_input.usb-yeti", "server", 48_000, 2, False, index=0),
    Device("Webcam C920", "alsa_input.usb-cam", "server", 32_000, 2, True, index=0),
    Device(
        "Monitor of Webcam speakers",
        "alsa_output.cam.monitor",
        "server",
        48_000,
        2,
        False,
        monitor=True,
        index=0,
    ),
    Device("Yeti", "Yeti", "alsa", 44_100, 2, False, index=3),
]


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        ("", 1),
        ("blue", 0),
        ("YETI", 3),
        ("usb-cam", 1),
        ("webcam", 1),
        ("monitor of", 2),
        ("cam.monitor", 2),
    ],
)
def test_part_of_a_name_chooses(wanted: str, got: int) -> None:
    assert choose(DEVICES, wanted) is DEVICES[got]


def test_a_loudspeaker_is_chosen_only_when_nothing_else_is_meant() -> None:
    assert choose(list(reversed(DEVICES)), "webcam") is DEVICES[1]


SPEAKER = Device(
    "Monitor of Speaker",
    "alsa_output.pci.monitor",
    "server",
    48_000,
    2,
    True,
    monitor=True,
    index=0,
)
BARE = Device(
    "HDA Intel: ALC257 (hw:0,0)", "HDA Intel: ALC257 (hw:0,0)", "alsa", 44_100, 2, False, index=1
)


def test_a_default_that_is_no_microphone_is_none() -> None:
    def absence(found: list[Device]) -> AudioError:
        return AudioError(f"none of {len(found)}", "plug one in")

    assert choose([SPEAKER, DEVICES[0]], "") is DEVICES[0]
    with pytest.raises(AudioError, match="none of 2"):
        choose([SPEAKER, BARE], "", absence)
    with pytest.raises(AudioError, match="none of 0"):
        choose([], "", absence)
    with pytest.raises(AudioError, match="there is no microphone 'yeti': none of 0") as caught:
        choose([], "yeti", absence)
    assert caught.value.hint == "plug one in"
    assert choose([SPEAKER], "speaker") is SPEAKER


def test_a_name_that_is_nobodys() -> None:
    with pytest.raises(AudioError) as caught:
        choose(DEVICES, "Blue Yetti")
    assert "'Blue Yetti'" in caught.value.message
    assert "Blue Yeti" in caught.value.hint


# What pactl says


def pretend_pactl(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "pactl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "echo '['",
        "echo 7",
        "echo null",
        "printf '\\377'",
        """echo '[3, {"name": "x"}]'""",
    ],
)
def test_an_answer_that_cannot_be_read_is_none(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_pactl(tmp_path, script, monkeypatch)
    assert audio_sound_server.sources() == []
    assert audio_sound_server.recorded() is None


def test_without_pactl_nothing_is_known_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert audio_sound_server.sources() == []
    asyncio.run(audio_sound_server.follow(lambda: None))


def test_a_server_that_never_answers_is_told_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_pactl(tmp_path, "exec sleep 60", monkeypatch)
    with pytest.raises(TimeoutError):
        audio_sound_server.sources()
    with pytest.raises(AudioError, match="does not answer"):
        devices.survey()


# Files


def test_a_file_comes_as_slowly_as_it_was_spoken(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(0.73, rate=44_100), 44_100)
    began = time.monotonic()
    heard = asyncio.run(played_out(Heard(open_source(f"file:{path}"))))
    np.testing.assert_array_equal(heard.sound, files.read(path))
    assert heard.told == [(os.fspath(path), "", True)]
    for block, when in zip(heard.blocks, heard.times, strict=True):
        assert when - began >= block.stop / 16_000 - 0.01, "a block came before it was spoken"


def test_a_file_can_be_left_and_played_again(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(0.3), 16_000)

    async def story() -> None:
        heard = Heard(PlayedFile(path)).open()
        await heard.more(2)
        await heard.source.close()
        count = len(heard.blocks)
        assert count < 15
        await asyncio.sleep(0.1)
        assert len(heard.blocks) == count
        again = await played_out(Heard(heard.source))
        assert len(again.sound) == 4800
        path.unlink()
        gone = await played_out(Heard(heard.source))
        assert gone.told == [(os.fspath(path), f"no such file: {path}", True)]

    asyncio.run(story())


def test_a_file_of_nothing_usable_says_so_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(1600, np.nan, np.float32), 16_000, subtype="FLOAT")
    heard = asyncio.run(played_out(Heard(PlayedFile(path))))
    assert heard.told == [(os.fspath(path), f"{path}: holds no audio", True)]


# Pipes


def s16(samples: np.ndarray) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def test_a_pipe_is_heard_to_its_end_with_an_odd_byte_over(caplog: pytest.LogCaptureFixture) -> None:
    sound = s16(speech(1.001))

    async def story() -> None:
        out, into = os.pipe()

        def write() -> None:
            for start in range(0, len(sound), 333):
                os.write(into, sound[start : start + 333])
            os.write(into, b"\x01")
            os.close(into)

        writer = threading.Thread(target=write)
        writer.start()
        heard = await played_out(Heard(Pipe(out)))
        writer.join()
        os.close(out)
        np.testing.assert_array_equal(heard.sound, np.frombuffer(sound, "<i2") / np.float32(32768))
        assert heard.told == [("standard input", "", True)]

    asyncio.run(story())
    assert "in the middle of a sample" in caplog.text


@given(pieces=st.lists(st.integers(0, 3000), max_size=12), most=st.integers(1, 6))
def test_what_comes_at_once_goes_on_at_once(pieces: list[int], most: int) -> None:
    blocks: list[AudioBlock] = []
    tape = Resampler(blocks.append, most * BLOCK_SAMPLES)
    sound = np.arange(sum(pieces), dtype=np.float32) / 100_000
    tape.splice(16_000)
    edges = [0, *np.cumsum(pieces)]
    for left, right in itertools.pairwise(edges):
        before, held = len(blocks), right - left + len(tape._rest)
        tape.push(sound[left:right])
        assert len(blocks) - before == -(-(held // BLOCK_SAMPLES) // most), (
            "no more blocks than it takes"
        )
    tape.finish()
    assert [block.start for block in blocks] == [
        0,
        *np.cumsum([len(block.samples) for block in blocks]),
    ][: len(blocks)]
    assert np.array_equal(
        np.concatenate([np.zeros(0, np.float32), *(block.samples for block in blocks)]), sound
    )


def test_a_pipe_can_be_left_and_taken_up_without_losing_a_sample() -> None:
    sound = np.arange(8000, dtype="<i2")

    async def story() -> None:
        out, into = os.pipe()
        first = Heard(Pipe(out)).open()
        os.write(into, sound[:4000].tobytes() + sound[4000:].tobytes()[:1])
        await first.until(lambda: len(first.blocks) == 4000 // BLOCK_SAMPLES, "sound")
        await asyncio.wait_for(first.source.close(), 5)
        first.assert_one_clock()
        assert len(first.sound) == 4000
        os.write(into, sound[4000:].tobytes()[1:])
        await asyncio.sleep(0.05)
        assert len(first.sound) == 4000
        os.close(into)
        second = await played_out(Heard(first.source))
        os.close(out)
        np.testing.assert_array_equal(
            np.concatenate([first.sound, second.sound]), sound / np.float32(32768)
        )
        assert second.blocks[0].start == 0

    asyncio.run(story())


def test_a_pipe_that_is_faster_than_its_listener_waits() -> None:
    sound = tone(20.0, level=0.3)
    taken: list[AudioBlock] = []

    async def go() -> None:
        with tempfile.TemporaryFile() as file:
            file.write((sound * 32767).astype("<i2").tobytes())
            file.seek(0)
            pipe, ended, limit = Pipe(file.fileno()), asyncio.Event(), 2 * 16_000
            pipe.open(
                taken.append, ended.set, lambda: sum(len(block.samples) for block in taken) < limit
            )
            await asyncio.sleep(1.0)
            held = sum(len(block.samples) for block in taken)
            assert limit <= held <= limit + Pipe.CHUNK
            assert not pipe.ended
            limit = len(sound) + 1
            await asyncio.wait_for(ended.wait(), 20)
            await pipe.close()

    asyncio.run(go())
    assert sum(len(block.samples) for block in taken) == len(sound)


def test_a_file_on_standard_input_is_a_pipe_too(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(s16(tone(3.0)))
    program = (
        "import asyncio, sys\nfrom asrd.audio.sources import open_source\n"
        "async def main():\n"
        "    blocks, source, done = [], open_source('pipe'), asyncio.Event()\n"
        "    source.open(blocks.append, done.set)\n"
        "    await done.wait(); await source.close()\n"
        "    print(source.ended, blocks[-1].stop)\n"
        "asyncio.run(main())"
    )
    with (tmp_path / "a.raw").open("rb") as stream:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, stdin=stream, capture_output=True, text=True
        )
    assert done.stdout == "True 48000\n", done.stderr


def test_an_empty_pipe_ends_without_a_block() -> None:
    with Path(os.devnull).open("rb") as nothing:
        heard = asyncio.run(played_out(Heard(Pipe(nothing.fileno()))))
    assert heard.blocks == []
    assert heard.told == [("standard input", "", True)]


def test_a_terminal_or_nothing_at_all_is_no_pipe() -> None:
    master, terminal = pty.openpty()
    with pytest.raises(AudioError, match="is a terminal"):
        Pipe(terminal)
    os.close(terminal)
    os.close(master)
    with pytest.raises(AudioError, match="is closed"):
        Pipe(terminal)


# A sound card that does what no virtual one can be made to do


class Card:
    """Stands in for the module sounddevice with one bare device of many channels."""

    class PortAudioError(Exception):
        pass

    def __init__(self, channels: int = 2, takes: int = 2) -> None:
        self.channels, self.takes = channels, takes
        self.streams: list[Card.Stream] = []
        self.hang = threading.Event()
        self.hang.set()
        self.default = argparse.Namespace(device=(0, 0))
        self.refuses = 0

    def query_devices(self) -> list[dict[str, Any]]:
        channels = self.channels
        return [
            {
                "name": "Card",
                "index": 0,
                "max_input_channels": channels,
                "default_samplerate": 48_000.0,
            }
        ]

    def _terminate(self) -> None: ...
    def _initialize(self) -> None: ...
    def _exit_handler(self) -> None: ...

    def RawInputStream(self, **words: Any) -> Card.Stream:  # noqa: N802 - its name in sounddevice
        if self.refuses:
            self.refuses -= 1
            raise self.PortAudioError("Device unavailable", -9985)
        if words["channels"] != self.takes:
            raise self.PortAudioError("Invalid number of channels", -9998)
        self.streams.append(Card.Stream(self, words))
        return self.streams[-1]

    class Stream:
        def __init__(self, card: Card, words: dict[str, Any]) -> None:
            self.card, self.words = card, words
            self.closed = threading.Event()

        def start(self) -> None: ...

        def give(self, samples: np.ndarray, overflow: bool = False, at: float = 0.0) -> None:
            status = argparse.Namespace(input_overflow=overflow) if overflow else None
            when = argparse.Namespace(inputBufferAdcTime=at) if at else None
            self.words["callback"](
                np.ascontiguousarray(samples, np.float32).data, len(samples), when, status
            )

        def abort(self, ignore_errors: bool = True) -> None:
            self.card.hang.wait()

        def close(self, ignore_errors: bool = True) -> None:
            self.closed.set()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Card:
    card = Card()
    monkeypatch.setenv("PATH", os.fspath(tmp_path))  # no pactl
    monkeypatch.setattr(devices, "portaudio", lambda: card)
    monkeypatch.setattr(devices, "_cache", [])
    monkeypatch.setattr(devices, "hanging", [])
    monkeypatch.setattr(microphone, "BACK_OFF_SECONDS", (0.02, 0.1))
    return card


async def streaming(card: Card, heard: Heard, number: int = 1) -> Card.Stream:
    """Wait until the microphone listens to its n-th stream; return that."""

    def listening() -> bool:
        line = heard.source._stream
        return (
            line is not None
            and line._stream is not None
            and line._stream in card.streams[number - 1 : number]
        )

    await heard.until(listening, f"stream {number}")
    return card.streams[number - 1]


def test_an_interface_of_many_channels_is_taken_as_it_is_and_averaged(card: Card) -> None:
    card.channels = card.takes = 18

    async def story() -> Heard:
        heard = Heard(Microphone("card")).open()
        stream = await streaming(card, heard)
        sound = np.zeros((48_000, 18), np.float32)
        sound[:, 4] = tone(1.0, rate=48_000)
        for start in range(0, 48_000, 3072):
            stream.give(sound[start : start + 3072])
        await heard.source.close()
        return heard

    heard = asyncio.run(story())
    heard.assert_one_clock()
    assert heard.source.name == "Card"
    assert len(heard.sound) == 16_000
    expected = soxr.resample(tone(1.0, rate=48_000) / 18, 48_000, 16_000)
    np.testing.assert_allclose(heard.sound, expected, atol=1e-6)
    assert card.streams[0].closed.is_set()


def test_a_voice_of_opposite_signs_is_heard_and_told_once(
    card: Card, caplog: pytest.LogCaptureFixture
) -> None:
    voice = np.resize(soxr.resample(speech(1.0), 16_000, 48_000), 48_000)

    async def story() -> Heard:
        heard = Heard(Microphone("card")).open()
        stream = await streaming(card, heard)
        for start in range(0, 48_000, 3072):
            piece = voice[start : start + 3072]
            stream.give(np.stack([piece, -piece], axis=1))
        await heard.source.close()
        return heard

    heard = asyncio.run(story())
    heard.assert_one_clock()
    assert np.abs(heard.sound - soxr.resample(voice, 48_000, 16_000)).max() < 0.01
    assert [record.getMessage() for record in caplog.records] == [
        "Card: its channels cancel each other out; channel 1 is taken instead of their mean"
    ]


def test_what_is_not_a_number_never_ends_the_recording(card: Card) -> None:
    async def story() -> Heard:
        heard = Heard(Microphone()).open()
        stream = await streaming(card, heard)
        for value in (np.nan, np.inf, -np.inf, 1e38, 0.1):
            stream.give(np.full((3072, 2), value))
        await heard.source.close()
        return heard

    heard = asyncio.run(story())
    heard.assert_one_clock()
    assert len(heard.sound) == 5 * 1024
    assert np.abs(heard.sound).max() < 1.2, "a resampler may overshoot a little"


def test_what_was_spoken_until_the_key_is_waited_for_and_nothing_else(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microphone, "MAX_TAIL_SECONDS", 60.0)

    async def story() -> Heard:
        heard = Heard(Microphone()).open()
        stream = await streaming(card, heard)
        stream.give(np.full((3072, 2), 0.1))
        closing = asyncio.create_task(heard.source.close())
        await asyncio.sleep(0)
        stream.give(np.full((3072, 2), 0.2))  # may have been full before the key
        await asyncio.sleep(2 * ARRIVAL_SECONDS)
        assert not closing.done()
        stream.give(np.full((3072, 2), 0.3))
        await asyncio.wait_for(closing, 20)
        return heard

    heard = asyncio.run(story())
    heard.assert_one_clock()
    assert len(heard.sound) == 3 * 1024


def test_while_all_are_patient_sound_comes_in_larger_pieces_and_none_is_lost(card: Card) -> None:
    async def story() -> list[int]:
        calm = [True]
        heard = Heard(Microphone()).open(patient=lambda: calm[0])
        stream = await streaming(card, heard)
        came: list[int] = []

        async def give() -> None:
            before = len(heard.sound)
            stream.give(np.full((3072, 2), 0.1))
            await asyncio.sleep(0.01)
            came.append(len(heard.sound) - before)

        for calm[0] in [True] * 7 + [False] * 2 + [True] * 2:
            await give()
        await heard.source.close()
        heard.assert_one_clock()
        came.append(len(heard.sound))
        return came

    *came, whole = asyncio.run(story())
    assert [n > 0 for n in came] == [n in (0, 3, 6, 7, 8) for n in range(11)], (
        "the first at once, then every third"
    )
    assert whole == 11 * 1024


def test_whoever_closes_is_not_patient(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microphone, "MAX_TAIL_SECONDS", 60.0)

    async def story() -> Heard:
        heard = Heard(Microphone()).open(patient=lambda: True)
        stream = await streaming(card, heard)
        for _ in range(2):
            stream.give(np.full((3072, 2), 0.1))
        closing = asyncio.create_task(heard.source.close())
        await asyncio.sleep(2 * ARRIVAL_SECONDS)
        stream.give(np.full((3072, 2), 0.3))
        await asyncio.wait_for(closing, 20)
        return heard

    assert len(asyncio.run(story()).sound) == 3 * 1024


def test_an_overflow_that_the_card_tells_of_leaves_a_gap(card: Card) -> None:
    async def story() -> Heard:
        heard = Heard(Microphone()).open()
        stream = await streaming(card, heard)
        for overflow in (True, False, True, False):
            stream.give(np.full((3072, 2), 0.1), overflow)
        await heard.source.close()
        return heard

    heard = asyncio.run(story())
    heard.assert_one_clock()
    assert sum(block.overflow for block in heard.blocks) == 1, (
        "the first callback has lost nothing that was wanted"
    )
    assert len(heard.sound) in range(
        4 * 1024 + MIN_GAP_SAMPLES, 4 * 1024 + MIN_GAP_SAMPLES + BLOCK_SAMPLES
    )


def test_a_gap_is_as_long_as_what_the_card_lost(card: Card) -> None:
    async def story() -> Heard:
        heard = Heard(Microphone()).open()
        stream = await streaming(card, heard)
        stream.give(np.full((3072, 2), 0.1), at=100.0)
        stream.give(np.full((3072, 2), 0.1), overflow=True, at=102.064)  # two seconds are missing
        stream.give(np.full((3072, 2), 0.1), overflow=True, at=50.0)  # a clock that jumped
        await heard.source.close()
        return heard

    heard = asyncio.run(story())
    heard.assert_one_clock()
    silent = np.abs(heard.sound) < 0.01
    assert np.count_nonzero(silent) / 16_000 == pytest.approx(2.3, abs=0.05)


def test_a_card_that_falls_silent_is_opened_again_and_recording_goes_on(card: Card) -> None:
    async def story() -> Heard:
        heard = Heard(Microphone()).open()
        first = await streaming(card, heard)
        first.give(np.full((3072, 2), 0.1))
        card.refuses = 2
        second = await streaming(card, heard, 2)
        assert first.closed.is_set()
        first.give(np.full((3072, 2), 0.9))  # a late callback of a stream that was given up
        second.give(np.full((3072, 2), 0.2))
        await heard.until(lambda: not heard.source.problem, "end of the problem")
        await heard.source.close()
        return heard

    heard = asyncio.run(story())
    heard.assert_one_clock()
    assert heard.problems == [
        "Card: delivers no sound",
        "Card: is in use by another program or gone",
        "",
    ]
    assert sum(block.overflow for block in heard.blocks) == 1
    assert heard.sound.max() < 0.5


def test_a_stream_that_ends_is_noticed(card: Card) -> None:
    async def story() -> Heard:
        heard = Heard(Microphone()).open()
        first = await streaming(card, heard)
        first.give(np.full((3072, 2), 0.1))
        first.words["finished_callback"]()
        await streaming(card, heard, 2)
        await heard.source.close()
        return heard

    assert asyncio.run(story()).problems == ["Card: is gone"]


def test_a_card_that_hangs_when_it_is_closed_hangs_nobody(card: Card) -> None:
    async def story() -> Heard:
        heard = Heard(Microphone()).open()
        stream = await streaming(card, heard)
        card.hang.clear()
        stream.give(np.full((3072, 2), 0.1))
        await asyncio.wait_for(heard.source.close(), 5)
        assert not stream.closed.is_set()
        stream.give(np.full((3072, 2), 0.9))
        await asyncio.sleep(0.05)
        again = Heard(Microphone()).open()
        (await streaming(card, again, 2)).give(np.full((3072, 2), 0.1))
        await again.until(lambda: again.blocks, "sound beside the stream that hangs")
        card.hang.set()
        await again.source.close()
        await heard.until(stream.closed.is_set, "end of the stream that hung")
        return heard

    heard = asyncio.run(story())
    heard.assert_one_clock()
    assert heard.sound.max() < 0.5, "after close nothing more is delivered"
    assert devices.hanging == []


def test_a_microphone_that_was_never_there_is_said_and_can_be_closed(card: Card) -> None:
    card.channels = 0

    async def story() -> Heard:
        heard = Heard(Microphone()).open()
        await heard.until(lambda: heard.source.problem, "problem")
        await asyncio.wait_for(heard.source.close(), 5)
        return heard

    heard = asyncio.run(story())
    assert heard.blocks == []
    [problem] = heard.problems
    assert re.match(r"no |there is no |a sound server", problem)
    assert problem.endswith(")"), "and what helps"


def test_a_fault_of_ours_is_told_and_not_taken_for_silence(
    card: Card, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*words: Any) -> None:
        raise MemoryError("no more")

    async def story() -> Heard:
        heard = Heard(Microphone())
        await heard.until(lambda: devices._cache, "list made ahead of time")
        card.query_devices = full  # type: ignore[method-assign]
        devices.forget()
        heard.open()
        await heard.until(lambda: heard.source.problem, "problem")
        await heard.source.close()
        return heard

    assert "internal error: MemoryError: no more" in asyncio.run(story()).problems[0]
    assert "the microphone stopped" in caplog.text


def test_closing_what_was_never_opened_does_nothing(card: Card) -> None:
    asyncio.run(Microphone().close())


# A real PipeWire


@pytest.fixture(scope="module")
def running() -> Iterator[SoundServer]:
    with sound_server() as server:
        yield server


@pytest.fixture
def server(running: SoundServer, monkeypatch: pytest.MonkeyPatch) -> SoundServer:
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    need_sound_server()
    devices.forget()
    return running


def recording(story: Callable[[Heard], Any], wanted: str = "") -> Heard:
    """Record while a story is played; return what was heard."""

    async def whole() -> Heard:
        heard = Heard(Microphone(wanted)).open()
        await heard.until(lambda: heard.blocks or heard.source.problem, "sound")
        await story(heard)
        await asyncio.wait_for(heard.source.close(), 10)
        return heard

    heard = asyncio.run(whole())
    heard.assert_one_clock()
    return heard


def test_what_is_played_is_what_is_heard_block_by_block(server: SoundServer) -> None:
    module = server.add_microphone("blue", "Blue Yeti", rate=44_100, channels=2)
    clip = speech(3.0)

    async def story(heard: Heard) -> None:
        await heard.more()
        with server.playing("blue", np.concatenate([silence(0.2), clip, silence(0.3)])) as player:
            await heard.until(lambda: player.poll() is not None, "end of the clip")
        await heard.more(15)

    heard = recording(story, "blue ye")
    server.remove_microphone(module)
    assert heard.source.name == "Monitor of Blue Yeti"
    assert heard.problems[-1:] in ([], [""])
    size = len(heard.sound) + len(clip)
    across = np.fft.irfft(np.fft.rfft(heard.sound, size) * np.conj(np.fft.rfft(clip, size)), size)
    at = int(across.argmax())
    pieces = [
        np.corrcoef(heard.sound[at + start : at + start + 3200], clip[start : start + 3200])[0, 1]
        for start in range(0, len(clip) - 3200, 3200)
    ]
    assert np.median(pieces) > 0.95, pieces
    assert sum(piece > 0.9 for piece in pieces) >= len(pieces) - 1, pieces
    assert np.sqrt(
        np.square(heard.sound[at : at + len(clip)]).mean() / np.square(clip).mean()
    ) == pytest.approx(1, 0.1)


@pytest.mark.parametrize("through", ["server", "bridge"])
def test_a_voice_of_opposite_signs_is_heard_through_a_server(
    through: str, server: SoundServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = server.add_microphone("wired", "Wired wrongly", channels=2)
    server.set_default("wired")
    voice = speech(2.0)
    with server.playing("wired", np.stack([voice, -voice], axis=1)) as player:
        if through == "bridge":  # what is left where pactl is not installed
            monkeypatch.setenv("PATH", os.fspath(tmp_path))

        async def story(heard: Heard) -> None:
            await heard.until(lambda: player.poll() is not None, "end of the clip")

        heard = recording(story, "wired" if through == "server" else "")
    monkeypatch.undo()
    server.remove_microphone(module)
    assert np.abs(heard.sound).max() > 0.2


def test_the_default_is_followed_and_its_new_name_told(server: SoundServer) -> None:
    modules = [server.add_microphone("one", "First"), server.add_microphone("two", "Second")]
    server.set_default("one")

    async def story(heard: Heard) -> None:
        await heard.until(lambda: heard.source.name == "Monitor of First", "first name")
        server.set_default("two")
        await heard.until(lambda: heard.source.name == "Monitor of Second", "second name")
        with server.playing("two", tone(5.0)):
            await heard.until(
                lambda: np.abs(heard.sound[-1600:]).max() > 0.2, "sound of the second"
            )

    heard = recording(story)
    for module in modules:
        server.remove_microphone(module)
    assert ("Monitor of Second", "", False) in heard.told


def test_a_microphone_that_is_unplugged_is_missed_though_the_server_offers_another(
    server: SoundServer,
) -> None:
    other = server.add_microphone("other", "Webcam")
    module = server.add_microphone("blue", "Blue Yeti")

    async def story(heard: Heard) -> None:
        nonlocal module
        await heard.more()
        server.remove_microphone(module)
        await heard.until(lambda: "Yeti" in heard.source.problem, "problem")
        held = len(heard.blocks)
        module = server.add_microphone("blue", "Blue Yeti")
        with server.playing("blue", tone(60.0)):
            await heard.until(lambda: not heard.source.problem, "end of the problem")
            await heard.until(lambda: np.abs(heard.sound[-1600:]).max() > 0.2, "sound")
        [back] = [index for index, block in enumerate(heard.blocks) if block.overflow]
        assert held <= back
        assert not any(block.samples.any() for block in heard.blocks[held - 15 : back]), (
            "silence while it was away"
        )

    heard = recording(story, "Blue")
    server.remove_microphone(module)
    server.remove_microphone(other)
    assert heard.problems[0] == "Monitor of Blue Yeti: is gone"
    assert all(name == "Monitor of Blue Yeti" for name, _, _ in heard.told), "never the webcam"


def test_the_last_microphone_goes_and_comes_back(server: SoundServer) -> None:
    module = server.add_microphone("blue", "Blue Yeti")
    server.set_default("blue")

    async def story(heard: Heard) -> None:
        nonlocal module
        await heard.more()
        server.remove_microphone(module)
        await heard.until(lambda: heard.source.problem, "problem")
        module = server.add_microphone("blue", "Blue Yeti")
        await heard.until(lambda: not heard.source.problem, "end of the problem")
        await heard.more()

    heard = recording(story)
    server.remove_microphone(module)
    assert heard.problems[0] == "Monitor of Blue Yeti: is gone"
    assert sum(block.overflow for block in heard.blocks) == 1


def test_a_muted_microphone_is_said_to_be_muted(server: SoundServer) -> None:
    module = server.add_microphone("blue", "Blue Yeti")

    async def story(heard: Heard) -> None:
        server.pactl("set-source-mute", "blue.monitor", "1")
        await heard.until(lambda: heard.source.problem, "problem")
        server.pactl("set-source-mute", "blue.monitor", "0")
        await heard.until(lambda: not heard.source.problem, "end of the problem")

    heard = recording(story, "blue")
    server.remove_microphone(module)
    assert heard.problems[-2:] == ["Monitor of Blue Yeti: is muted in the sound server", ""]


def test_a_server_that_freezes_is_noticed_and_recording_goes_on_when_it_thaws(
    server: SoundServer,
) -> None:
    module = server.add_microphone("blue", "Blue Yeti")

    async def story(heard: Heard) -> None:
        await heard.more()
        with server.frozen():
            await heard.until(lambda: "delivers no sound" in heard.source.problem, "problem")
            await heard.until(lambda: "does not answer" in heard.source.problem, "second problem")
        await heard.until(lambda: not heard.source.problem, "end of the problem")
        await heard.more()

    heard = recording(story, "blue")
    server.remove_microphone(module)
    assert sum(block.overflow for block in heard.blocks) == 1


def test_a_microphone_of_a_frozen_server_can_be_closed(server: SoundServer) -> None:
    module = server.add_microphone("blue", "Blue Yeti")

    async def story(heard: Heard) -> None:
        await heard.more()
        with server.frozen():
            began = time.monotonic()
            await asyncio.wait_for(heard.source.close(), 10)
            assert time.monotonic() - began < 5
        await heard.until(lambda: not devices.hanging, "end of the stream that hung")

    recording(story, "blue")
    server.remove_microphone(module)


def test_a_program_ends_though_its_sound_server_is_frozen(server: SoundServer) -> None:
    module = server.add_microphone("blue", "Blue Yeti")
    program = (
        "import asyncio, sys\nfrom asrd.audio.sources import open_source\n"
        "async def main():\n"
        "    heard, source = asyncio.Event(), open_source('mic', 'blue')\n"
        "    source.open(lambda block: heard.set(), lambda: None)\n"
        "    await heard.wait(); print('recording', flush=True)\n"
        "    await asyncio.to_thread(sys.stdin.readline)\n"
        "    await source.close()\n"
        "asyncio.run(main())"
    )
    words = [sys.executable, "-c", program]
    with subprocess.Popen(
        words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as recorder:
        try:
            assert recorder.stdout is not None
            assert recorder.stdout.readline() == "recording\n"
            with server.frozen():
                recorder.communicate("\n", timeout=20)
            assert recorder.returncode == 0
        finally:
            recorder.kill()
    server.remove_microphone(module)


def held() -> tuple[int, int]:
    """Return how many descriptors and threads this process has."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def test_nothing_is_left_of_recordings_that_were_closed(server: SoundServer) -> None:
    module = server.add_microphone("blue", "Blue Yeti")

    async def story() -> None:
        source = Microphone("blue")
        counts = []
        for _ in range(8):
            heard = Heard(source).open()
            await heard.more(4)
            await source.close()
            heard.assert_one_clock()
            await heard.until(
                lambda: all(t.name != "asrd-sound" for t in threading.enumerate()), "end of threads"
            )
            if len(counts) >= 2:  # a thread of PortAudio's own may take a moment longer
                await heard.until(lambda: held() <= counts[1], f"return to {counts[1]}")
            counts.append(held())
        children = subprocess.run(
            ["ps", "--ppid", str(os.getpid()), "-o", "args"], capture_output=True, text=True
        )
        assert "subscribe" not in children.stdout

    asyncio.run(story())
    server.remove_microphone(module)


def test_a_server_that_is_killed_and_started_again(server: SoundServer) -> None:
    server.add_microphone("blue", "Blue Yeti")
    server.set_default("blue")

    async def story(heard: Heard) -> None:
        await heard.more()
        server.kill()
        await heard.until(lambda: heard.source.problem, "problem")
        held = len(heard.blocks)
        server.start()
        server.add_microphone("blue", "Blue Yeti")
        await heard.until(lambda: not heard.source.problem, "end of the problem")
        await heard.more()
        [back] = [index for index, block in enumerate(heard.blocks) if block.overflow]
        assert held <= back

    recording(story)


def test_no_server_at_all_is_said_and_one_that_comes_up_is_found(server: SoundServer) -> None:
    server.stop()

    async def story(heard: Heard) -> None:
        assert heard.blocks == []
        assert heard.source.problem
        server.start()
        server.add_microphone("blue", "Blue Yeti")
        await heard.until(lambda: heard.blocks and not heard.source.problem, "sound")

    recording(story, "blue")


def listed(server: SoundServer, *words: str) -> str:
    """Run `asrd devices` as its own process against a server; return what it prints."""
    program = (
        "import argparse, sys\nfrom asrd.cli import devices\nfrom asrd.config.settings import Settings\n"
        "parser = argparse.ArgumentParser()\ndevices.devices_arguments(parser)\n"
        "sys.exit(devices.devices(parser.parse_args(), Settings()))"
    )
    environment = os.environ | server.environment
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, AudioError.exit_code), done.stderr
    return done.stdout


def test_devices_lists_what_the_server_has(server: SoundServer) -> None:
    modules = [
        server.add_microphone("one", "First", rate=32_000),
        server.add_microphone("two", "Second", channels=2),
    ]
    server.set_default("two")
    found = {entry["id"]: entry for entry in json.loads(listed(server, "--json"))}
    assert found["one.monitor"]["rate"] == 32_000
    assert found["two.monitor"]["name"] == "Monitor of Second"
    assert [name for name, entry in found.items() if entry["default"]] == ["two.monitor"]
    lines = listed(server).splitlines()
    assert [
        line
        for line in lines
        if line.startswith("*") and "Monitor of Second" in line and "default" in line
    ]
    for module in modules:
        server.remove_microphone(module)


def chosen(server: SoundServer) -> dict[str, Any]:
    """Return what the list in JSON says of the device that is recorded from."""
    found: dict[str, Any] = next(
        entry for entry in json.loads(listed(server, "--json")) if entry["chosen"]
    )
    return found


def asked_until(ask: Callable[[], T], holds: Callable[[T], bool], times: int = 12) -> T:
    """Return the first answer of which something holds; fail after so many others."""
    answers: list[T] = []
    while len(answers) < times:
        answers.append(ask())
        if holds(answers[-1]):
            return answers[-1]
    raise AssertionError(answers)


def test_devices_says_how_loud_the_chosen_one_is(server: SoundServer) -> None:
    module = server.add_microphone("quiet", "Quiet")
    server.set_default("quiet")
    server.pactl("set-source-volume", "quiet.monitor", "50%")
    clip = files.read(DATA_FOLDER / "eval" / "0129.flac")
    # The second in which asrd listens may be a pause, or come before the player's first sound: it
    # is asked again.
    with server.playing("quiet", np.tile(clip * np.float32(0.4), 40)):
        found = asked_until(lambda: chosen(server), lambda one: one["level"]["kind"] == "quiet")
        assert found["volume_percent"] == 50
        is_quiet = "Monitor of Quiet is very quiet: speech is at -"
        said = asked_until(
            lambda: listed(server).splitlines(), lambda lines: lines[-2].startswith(is_quiet)
        )
    assert [line for line in said if line.startswith("*") and "50 %" in line]
    silent = "Monitor of Quiet delivers only silence now"
    asked_until(lambda: listed(server).splitlines(), lambda lines: lines[-2] == silent)
    assert "Quiet: " not in listed(server, "--no-level")
    fix = devices.volume_fix("nobody", -10)
    assert (
        subprocess.run(fix.split(), env=os.environ | server.environment, check=False).returncode
        == 0
    )
    server.remove_microphone(module)


def test_devices_without_a_server_is_an_empty_list(server: SoundServer, tmp_path: Path) -> None:
    nowhere = SoundServer(tmp_path)
    assert json.loads(listed(nowhere, "--json")) == []


def test_settings_name_the_microphone() -> None:
    assert Settings().microphone == ""


ALSA = {
    "nothing": ("", "no default device", "unset ALSA_CONFIG_PATH"),
    "no such file": (None, "no default device", "unset ALSA_CONFIG_PATH"),
    "no devices": ("defaults.x 1\n", "no default device", "unset ALSA_CONFIG_PATH"),
    "one device, no default": ("pcm.x { type null }\n", "no default device", "unset"),
    "two devices, no default": (
        "pcm.x { type null }\npcm.y { type null }\n",
        "no default device",
        "unset",
    ),
    "controls alone": ("ctl.x { type null }\n", "no default device", "unset"),
    "a default of nothing": ("pcm.default { type null }\n", "", ""),
    "dmix alone": ("pcm.dmix { type null }\n", "", ""),
    "an open bracket": ("pcm {", "cannot be read", "unset"),
    "a missing file is included": ("</usr/share/alsa/nope.conf>\n", "cannot be read", "unset"),
    "a comment": ("# nothing\n", "no default device", "unset"),
    "an unknown type": ("</usr/share/alsa/alsa.conf>\npcm.!default { type nosuch }\n", "", ""),
    "a number for a device": ("</usr/share/alsa/alsa.conf>\npcm.!default 7\n", "", ""),
    "a card that is not there": (
        "</usr/share/alsa/alsa.conf>\npcm.!default { type hw card 99 }\n",
        "",
        "",
    ),
    "the usual": ("</usr/share/alsa/alsa.conf>\n", "", ""),
}
"""Configuration of ALSA -> what is said of it, and what helps; "" where PortAudio can start."""


def soft(seed: int = 17) -> dict[str, tuple[str | None, str, str]]:
    """Return made-up configurations: devices of any names, without a default among them; seeded."""
    draw = random.Random(seed)
    names = [
        ["".join(draw.choices("abcxyz", k=4)) for _ in range(draw.randint(1, 4))] for _ in range(8)
    ]
    return {
        " ".join(some): (
            "".join(f"pcm.{name} {{ type null }}\n" for name in some),
            "no default device",
            "unset",
        )
        for some in names
    }


@pytest.mark.parametrize("name", ALSA | soft())
def test_no_configuration_of_alsa_ends_the_process(name: str, tmp_path: Path) -> None:
    text, said, helps = (ALSA | soft())[name]
    if text is not None:
        (tmp_path / "asound.conf").write_text(text)
    environment = {
        "PATH": os.environ["PATH"], "HOME": os.fspath(tmp_path), "XDG_RUNTIME_DIR": os.fspath(tmp_path),
        "ALSA_CONFIG_PATH": os.fspath(tmp_path / "asound.conf"),
    }  # fmt: skip
    program = (
        "from asrd.audio import devices\ntry: devices.survey()\n"
        "except devices.AudioError as error: print(error.message, error.hint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (said in done.stdout) if said else not done.stdout
    assert helps in done.stdout
    if name == "nothing":
        done = subprocess.run(
            [sys.executable, "-m", "asrd", "devices"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr.splitlines()) == (
            65, ["asrd: ALSA's configuration has no default device", "  hint: unset ALSA_CONFIG_PATH"],
        )  # fmt: skip
