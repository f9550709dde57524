"""Sound files of every kind, and everything that can be wrong with one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from asrd.audio import files
from asrd.errors import AsrdError, AudioError, DiskError
from tests.sound import noise, tone


def write(path: Path, samples: np.ndarray, rate: int = 16_000, **kind: str) -> Path:
    soundfile.write(path, samples, rate, **kind)
    return path


def refused(path: Path | str) -> AudioError:
    """Return the error of a file, which must be one of ours, with one sentence that has the
    name."""
    with pytest.raises(AsrdError) as caught:
        files.read(path)
    error = caught.value
    assert str(path) in error.message
    assert "\n" not in error.message
    assert type(error) is AudioError
    return error


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_blocks_are_what_one_call_of_soxr_gives(tmp_path: Path, rate: int) -> None:
    sound = noise(3.217, 0.1)[: round(3.217 * rate)]
    sound = np.resize(sound, round(3.217 * rate)).astype(np.float32)
    path = write(tmp_path / "a.wav", sound, rate, subtype="FLOAT")
    blocks = list(files.SoundFile(path))
    heard = np.concatenate([block.samples for block in blocks])
    expected = soxr.resample(sound, rate, 16_000) if rate != 16_000 else sound
    assert len(heard) == round(len(sound) * 16_000 / rate)
    np.testing.assert_allclose(heard[: len(expected)], expected[: len(heard)], atol=1e-6)
    assert [block.start for block in blocks] == list(
        np.cumsum([0, *map(len, (b.samples for b in blocks))])
    )[:-1]
    assert all(
        block.samples.dtype == np.float32 and block.samples.flags.c_contiguous for block in blocks
    )


@settings(max_examples=25, deadline=None)
@given(
    frames=st.integers(1, 30_000),
    rate=st.sampled_from([5512, 8000, 11025, 22050, 32000, 44100, 96000, 192_000]),
)
def test_length_is_exact_for_every_rate(
    tmp_path_factory: pytest.TempPathFactory, frames: int, rate: int
) -> None:
    path = write(tmp_path_factory.mktemp("r") / "a.wav", noise(2)[:frames], rate)
    assert len(files.read(path)) == round(min(frames, 32_000) * 16_000 / rate)


def test_every_format_of_the_library_reads_alike(tmp_path: Path) -> None:
    sound = tone(1.0)
    kinds = {
        "WAV": 1e-4,
        "FLAC": 1e-4,
        "AIFF": 1e-4,
        "CAF": 1e-4,
        "AU": 1e-4,
        "W64": 1e-4,
        "RF64": 1e-4,
        "OGG": 0.05,
    }
    for kind, tolerance in kinds.items():
        heard = files.read(write(tmp_path / f"a.{kind.lower()}", sound, format=kind))
        assert len(heard) == len(sound), kind
        assert np.abs(heard[800:-800] - sound[800:-800]).max() < tolerance, kind


def test_mp3_keeps_length_and_level(tmp_path: Path) -> None:
    heard = files.read(write(tmp_path / "a.mp3", tone(1.0, rate=44_100), 44_100, format="MP3"))
    assert len(heard) == 16_000
    assert np.sqrt(np.square(heard).mean()) == pytest.approx(0.3 / np.sqrt(2), rel=0.15)


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]
)
def test_every_sample_format_reads_alike(tmp_path: Path, subtype: str) -> None:
    heard = files.read(write(tmp_path / "a.wav", tone(0.5), subtype=subtype))
    assert np.abs(heard - tone(0.5)).max() < 0.02


@pytest.mark.parametrize("channels", [1, 2, 5, 6, 12])
def test_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    sound = np.stack([tone(0.3, 200 + 50 * i) for i in range(channels)], axis=1)
    heard = files.read(write(tmp_path / "a.wav", sound, subtype="FLOAT"))
    np.testing.assert_allclose(heard, sound.mean(axis=1), atol=1e-6)


def test_offset_and_overload_pass_through(tmp_path: Path) -> None:
    sound = np.clip(tone(0.5, level=3.0), -1.5, 1.2) + np.float32(0.25)
    np.testing.assert_array_equal(
        files.read(write(tmp_path / "a.wav", sound, subtype="FLOAT")), sound
    )


def test_one_sample_is_a_file(tmp_path: Path) -> None:
    assert files.read(write(tmp_path / "a.wav", tone(1)[1:2])).shape == (1,)


def test_a_file_can_be_read_twice(tmp_path: Path) -> None:
    with files.SoundFile(write(tmp_path / "a.flac", noise(1), 22_050)) as source:
        first, second = ([block.samples for block in source] for _ in range(2))
        np.testing.assert_array_equal(np.concatenate(first), np.concatenate(second))


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 48_000, 2) as out:
        for _ in range(20):
            out.write(np.zeros((480_000, 2), np.float32))
    tracemalloc.start()
    total = sum(len(block.samples) for block in files.SoundFile(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 200 * 16_000
    assert peak < 2 << 20


# -- what is wrong with a file
# ----------------------------------------------------------------------------------------


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "meeting.wav", tone(0.1))
    assert refused(tmp_path / "meetin.wav").hint == f"did you mean {tmp_path / 'meeting.wav'}?"
    assert "no folder" in refused(tmp_path / "none" / "a.wav").hint


def test_folder_and_device_are_not_files(tmp_path: Path) -> None:
    assert "directory" in refused(tmp_path).message
    assert "device" in refused("/dev/zero").message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_the_right_to_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(0.1))
    path.chmod(0)
    assert "permission denied" in refused(path).message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.wav", b""),
        ("text.wav", b"this is not sound\n" * 99),
        ("bytes.raw", bytes(range(256)) * 40),
        ("half-a-header.wav", b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00"),
        ("video.mp4", b"\x00\x00\x00\x20ftypisom" + bytes(400)),
        ("name\n.wav", b"x"),
    ],
)
def test_what_is_no_sound(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AudioError) as caught:
        files.read(path)
    assert "ffmpeg" in caught.value.hint


def test_header_without_samples(tmp_path: Path) -> None:
    assert "no audio" in refused(write(tmp_path / "a.wav", tone(0))).message


def test_header_with_a_mad_rate(tmp_path: Path) -> None:
    assert (
        "2000000000 samples per second"
        in refused(write(tmp_path / "a.wav", tone(0.1), 2_000_000_000)).message
    )


@pytest.mark.parametrize("kind", ["wav", "flac", "aiff", "au", "w64"])
def test_file_cut_short_is_used_as_far_as_it_goes(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / f"a.{kind}", noise(5, 0.1))
    os.truncate(path, path.stat().st_size // 2)
    with caplog.at_level(logging.WARNING, "asrd"):
        heard = files.read(path)
    assert 30_000 < len(heard) < 41_000
    assert len(caplog.records) == 1
    assert f"{path}: is cut short, 2." in caplog.text
    assert "of 5.0 s" in caplog.text


def test_length_that_a_pipe_could_not_know_is_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.wav", noise(1))
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = (0xFFFFFFFF).to_bytes(4, "little")
    path.write_bytes(content)
    assert len(files.read(path)) == 16_000
    assert not caplog.records


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_silence(
    tmp_path: Path, bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    sound = tone(2.0)
    sound[100:300] = bad
    heard = files.read(write(tmp_path / "a.wav", sound, subtype="FLOAT"))
    assert np.isfinite(heard).all()
    assert not heard[100:300].any()
    assert heard[400:].any()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "200 samples" in caplog.text


def test_numbers_too_large_for_float32_are_no_numbers(tmp_path: Path) -> None:
    sound = np.array([0.5, 1e300, -0.5])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(
            files.read(write(tmp_path / "a.wav", sound, subtype="DOUBLE")),
            np.float32([0.5, 0, -0.5]),
        )


def test_nothing_but_nan_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.full((4000, 2), np.nan, np.float32), subtype="FLOAT")
    assert "finite" in refused(path).hint


# -- pipes
# ------------------------------------------------------------------------------------------------------------

COUNT = "import sys; from asrd.audio import files; print(len(files.read('-')))"


def piped(stdin: object, code: str = COUNT, **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=60, **more)  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_standard_input_as_a_file_and_as_a_pipe(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"a.{kind}", noise(1.5), 8000)
    with path.open("rb") as stream:
        assert piped(stream).stdout == "48000\n"
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        assert piped(cat.stdout).stdout == "48000\n"


def test_standard_input_that_is_closed_or_empty() -> None:
    assert "standard input: is closed" in piped(None, "import os; os.close(0)\n" + COUNT).stderr
    assert "standard input: is not an audio file" in piped(subprocess.DEVNULL).stderr


def test_named_pipe(tmp_path: Path) -> None:
    content = write(tmp_path / "a.flac", noise(1)).read_bytes()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(content,))
    writer.start()
    assert len(files.read(fifo)) == 16_000
    writer.join()


def test_no_room_for_what_comes_through_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=_write_ignoring_a_closed_pipe, args=(fifo,))
    writer.start()
    with pytest.raises(DiskError, match="cannot be spooled") as caught:
        files.read(fifo)
    writer.join()
    assert "TMPDIR" in caught.value.hint


def _write_ignoring_a_closed_pipe(fifo: Path) -> None:
    try:
        fifo.write_bytes(bytes(100_000))
    except BrokenPipeError:
        return
