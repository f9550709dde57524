"""Manifests with every kind of bad line, and the fixed buffer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrd.errors import ManifestError
from asrd.evaluation import manifest
from asrd.evaluation.manifest import Clip
from tests.sound import tone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "two.flac", tone(2.0), 16_000)
    soundfile.write(tmp_path / "slow.wav", tone(1.0, rate=8_000), 8_000)
    return tmp_path


def write(folder: Path, *lines: object) -> Path:
    path = folder / "manifest.jsonl"
    path.write_bytes(
        b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)
    )
    return path


def test_paths_are_relative_to_the_manifest_and_rates_are_converted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    clips, skipped = manifest.read(
        write(
            folder,
            {"audio_filepath": "two.flac", "text": "hello", "duration": 2.0, "lang": "en"},
            {"audio_filepath": str(folder / "slow.wav"), "text": "slow"},
        )
    )
    assert [(clip.line, clip.text, len(clip.samples)) for clip in clips] == [
        (1, "hello", 32_000),
        (2, "slow", 16_000),
    ]
    assert all(clip.samples.dtype == np.float32 for clip in clips)
    assert skipped == []


def test_offset_and_duration_cut(folder: Path) -> None:
    entry = {"audio_filepath": "two.flac", "text": "x"}
    clips, _ = manifest.read(
        write(
            folder,
            entry,
            entry | {"offset": 0.5, "duration": 1.0},
            entry | {"offset": 1.5},
            entry | {"duration": 9.0},
        )
    )
    whole, middle, end, longer = (clip.samples for clip in clips)
    assert np.array_equal(middle, whole[8_000:24_000])
    assert np.array_equal(end, whole[24_000:])
    assert np.array_equal(longer, whole)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"not json", "malformed"),
        (b'{"audio_filepath": "two.flac", "text": "\xff"}', ""),
        (b'["two.flac", "hello"]', "Expected `object`"),
        ({"audio_filepath": "two.flac"}, "`text`"),
        ({"text": "hello"}, "`audio_filepath`"),
        ({"audio_filepath": "two.flac", "text": 7}, "`str`"),
        ({"audio_filepath": "two.flac", "text": "x", "offset": "1"}, "offset"),
        ({"audio_filepath": "none.flac", "text": "x"}, "none.flac"),
        ({"audio_filepath": "manifest.jsonl", "text": "x"}, "not an audio file"),
        ({"audio_filepath": ".", "text": "x"}, "directory"),
        ({"audio_filepath": "-", "text": "x"}, "/-"),
        ({"audio_filepath": "two\u0000.flac", "text": "x"}, ""),
        ({"audio_filepath": "two.flac", "text": "x", "offset": 2.0}, "outside"),
        ({"audio_filepath": "two.flac", "text": "x", "offset": -1.0}, "outside"),
        ({"audio_filepath": "two.flac", "text": "x", "duration": 0.0}, "outside"),
        ({"audio_filepath": "two.flac", "text": "x", "offset": 1e300}, "outside"),
    ],
)
def test_a_bad_line_is_told_by_its_number_and_the_rest_goes_on(
    folder: Path, bad: object, reason: str
) -> None:
    good = {"audio_filepath": "two.flac", "text": "hello"}
    clips, skipped = manifest.read(write(folder, good, b"", bad, good))
    assert [clip.line for clip in clips] == [1, 4]
    assert [one.line for one in skipped] == [3]
    assert reason in skipped[0].reason
    assert "\n" not in skipped[0].reason


def test_a_byte_order_mark_and_windows_line_ends(folder: Path) -> None:
    path = folder / "m.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"audio_filepath": "two.flac", "text": "a"}\r\n\r\n')
    clips, skipped = manifest.read(path)
    assert (len(clips), skipped) == (1, [])


def test_a_limit_is_spread_over_the_whole_manifest(folder: Path) -> None:
    path = write(folder, *({"audio_filepath": "two.flac", "text": str(i)} for i in range(10)))
    assert [clip.text for clip in manifest.read(path, 3)[0]] == ["0", "3", "6"]
    assert len(manifest.read(path, 10)[0]) == len(manifest.read(path, 99)[0]) == 10


@pytest.mark.parametrize("path", ["none.jsonl", "."])
def test_a_manifest_that_cannot_be_read(tmp_path: Path, path: str) -> None:
    with pytest.raises(ManifestError, match="cannot read the manifest"):
        manifest.read(tmp_path / path)


@pytest.mark.parametrize("lengths", [[3], [10], [4, 4, 4], [25], [10, 10]])
def test_the_buffer_has_its_exact_length_and_starts_with_the_clips(lengths: list[int]) -> None:
    clips = [Clip(i, "", np.full(n, i, np.float32)) for i, n in enumerate(lengths)]
    buffer = manifest.joined(clips, 10)
    cycle = np.concatenate([clip.samples for clip in clips] * 10)[:10]
    assert np.array_equal(buffer, cycle)
    assert buffer.dtype == np.float32
    assert buffer.flags.c_contiguous
