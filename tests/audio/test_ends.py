"""Files of every format that libsndfile reads here: whole ones are silent, cut ones warn, joined
ones are all heard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from asrd.audio.files import SoundFile
from asrd.errors import AudioError
from tests.sound import speech
from tests.sound_files import RATE, encoded, put, sized

SOUND = speech(0.7)[: 10 * 1100]

FORMATS = {
    "AIFF": "length", "AU": "length", "AVR": "length", "CAF": "length", "FLAC": "length", "HTK": "length",
    "MAT4": "length", "MAT5": "length", "MPC2K": "length", "NIST": "length", "RF64": "length", "SDS": "length",
    "SVX": "length", "VOC": "length", "W64": "length", "WAV": "length", "WAVEX": "length", "WVE": "length",
    "XI": "none", "MP3": "stream", "OGG": "stream", "PAF": "none", "PVF": "none", "IRCAM": "none",
    "RAW": "unreadable", "SD2": "unreadable",
}  # fmt: skip
"""Every format of libsndfile by how the end of a file shows: its header states a "length"; the end
of a "stream" is marked; "none": a cut behind a whole frame cannot be noticed (a header of XI by
libsndfile has 0 in its place); "unreadable": asrd cannot read it, as it needs a name or a
description."""

CUTS = 3

BYTES = {
    "PCM_S8": 1,
    "PCM_U8": 1,
    "ULAW": 1,
    "ALAW": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
}
BYTES |= {"DPCM_8": 1, "DPCM_16": 2}
"""Of a sample."""


def kinds() -> Iterator[tuple[str, str, int]]:
    """Yield each format, coding and number of channels that libsndfile writes."""
    for name, states in FORMATS.items():
        if states in ("unreadable", "stream") or name not in soundfile.available_formats():
            continue
        for coding in soundfile.available_subtypes(name):
            for channels in (1, 2):
                if soundfile.check_format(name, coding) and not (
                    channels == 2 and name in ("HTK", "WVE", "XI", "SDS")
                ):
                    yield name, coding, channels


def made(name: str, coding: str, channels: int) -> bytes:
    """Return a file, or skip the test where libsndfile writes none of the kind."""
    sound = np.stack([SOUND, SOUND / 2], 1)[:, :channels]
    try:
        return encoded(sound, 8000 if name == "WVE" else RATE, format=name, subtype=coding)
    except soundfile.LibsndfileError as error:
        pytest.skip(str(error))


def heard(path: Path, content: bytes) -> tuple[NDArray[np.float32], list[str]]:
    """Return the sound of a file and what was said of it."""
    path.write_bytes(content)
    with SoundFile(path) as source:
        sound = np.concatenate([block.samples for block in source])
    assert source.complete == (not source.warnings)
    return sound, [warning.removeprefix(f"{path}: ") for warning in source.warnings]


def test_every_format_of_libsndfile_is_in_the_table() -> None:
    assert soundfile.available_formats().keys() <= FORMATS.keys()


@pytest.mark.parametrize(("name", "coding", "channels"), list(kinds()))
def test_a_file_whole_and_joined_is_heard_without_a_word_and_a_cut_one_warns(
    name: str, coding: str, channels: int, tmp_path: Path
) -> None:
    content, path = made(name, coding, channels), tmp_path / "a"
    whole, said = heard(path, content)
    assert said == []
    twice, said = heard(path, 2 * content)
    assert said == []
    assert len(twice) == pytest.approx(2 * len(whole), abs=1)
    # At another rate the resampler bridges no seam; libsndfile takes GSM's padding for the
    # beginning of a block.
    if name != "WVE" and coding != "GSM610":
        np.testing.assert_allclose(twice, np.concatenate([whole, whole]), atol=1e-4)
    random = np.random.default_rng(list(f"{name}{coding}{channels}".encode()))
    for stop in random.integers(len(content) // 2, len(content) - 200, CUTS):
        sound, said = heard(path, content[:stop])
        assert len(sound) <= len(whole)
        if FORMATS[name] == "length":
            assert len(said) == 1
            assert said[0].startswith("is cut short, ")
            blocks = name == "FLAC" or coding.startswith(
                ("ALAC", "DWVW")
            )  # of 0.3 s; or as long as they are loud
            assert len(sound) / len(whole) == pytest.approx(
                stop / len(content), abs=0.5 if blocks else 0.2
            )


@pytest.mark.parametrize(
    ("name", "coding", "channels"), [each for each in kinds() if FORMATS[each[0]] == "none"]
)
def test_without_a_stated_length_only_a_part_of_a_frame_is_told(
    name: str, coding: str, channels: int, tmp_path: Path
) -> None:
    content, path = made(name, coding, channels), tmp_path / "a"
    frame = 32 * channels if (name, coding) == ("PAF", "PCM_24") else channels * BYTES[coding]
    assert heard(path, content[: -20 * frame])[1] == []
    for missing in range(1, min(frame, 9)):
        [said] = heard(path, content[:-missing])[1]
        assert said.startswith("is cut short, ")


def piped(name: str, content: bytes) -> bytes:
    """Return a file as a program leaves it that writes into a pipe, and does not know the
    length."""
    if name in ("WAV", "WAVEX"):
        return sized(put(content, 4, b"\xff" * 4), b"data", 0xFFFF_FFFF)
    if name == "AU":
        return put(content, 8, b"\xff" * 4)
    if name == "CAF":
        return sized(content, b"data", -1, 8, "big")
    if name == "W64":
        return put(content, content.index(b"data") + 16, (2**63 - 1).to_bytes(8, "little"))
    place = content.index(b"COMM") + 10
    return sized(put(put(content, 4, bytes(4)), place, bytes(4)), b"SSND", 0, order="big")


PIPED = [
    (name, coding, channels)
    for name in ("WAV", "WAVEX", "AU", "CAF", "W64", "AIFF")
    for coding in BYTES
    for channels in (1, 2)
    if coding in soundfile.available_subtypes(name)
]


@pytest.mark.parametrize(("name", "coding", "channels"), PIPED)
def test_a_stream_of_unknown_length_ends_behind_a_whole_frame(
    name: str, coding: str, channels: int, tmp_path: Path
) -> None:
    plain = made(name, coding, channels)
    content, path, frame = piped(name, plain), tmp_path / "a", channels * BYTES[coding]
    whole, said = heard(path, plain[: plain.rindex(b"PEAK")] if b"PEAK" in plain[-200:] else plain)
    sound, said = heard(path, content)
    assert said == []
    np.testing.assert_array_equal(sound, whole)
    assert heard(path, content[:-frame])[1] == []
    for missing in range(1, frame):
        sound, said = heard(path, content[:-missing])
        assert len(sound) == len(whole) - 1
        assert [one.split(",")[0] for one in said] == ["is cut short"]


@pytest.mark.parametrize("seed", range(20))
def test_damaged_blocks_of_a_sample_dump_print_nothing(seed: int, tmp_path: Path) -> None:
    """libsndfile prints on standard output at each, where the text of a transcription goes."""
    content, path = bytearray(made("SDS", "PCM_16", 1)), tmp_path / "a.sds"
    random = np.random.default_rng(seed)
    for block in random.integers(1, len(content) // 127, size=5):
        content[21 + 127 * (int(block) - 1)] ^= int(random.integers(1, 256))
    path.write_bytes(content)
    with pytest.raises(AudioError, match="is not an audio file"):
        SoundFile(path)
