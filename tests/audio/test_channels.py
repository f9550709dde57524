"""Several channels become one, whatever their signs: a voice is never averaged away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from asrd.audio import files
from asrd.audio.channels import Mixer
from asrd.paths import DATA_FOLDER
from tests.sound import RATE, hum, noise, tone

Sound = NDArray[np.float32]

EVALUATION = sorted((DATA_FOLDER / "eval").glob("*.flac"))
VOICE, OTHER = (np.resize(files.read(path), 3 * RATE) for path in EVALUATION[:2])
HUM = (0.02 * hum(len(VOICE) / RATE, 1)).astype(np.float32)
EITHER = -1
"""The voice comes out of the mean and of a channel; between words, where only the hum is, it does
not matter."""
EDGE = np.concatenate([np.zeros(RATE, np.float32), np.ones(len(VOICE) - RATE, np.float32)])
"""From one second on."""


def hiss(seed: int) -> Sound:
    return noise(len(VOICE) / RATE, 0.01, seed)[: len(VOICE)]


def stacked(*channels: Sound) -> Sound:
    return np.stack(channels, axis=1).astype(np.float32)


MEMBERS: dict[str, tuple[Callable[[], Sound], int, float]] = {
    # name: its channels, the channel that is taken (0: the mean), and the amplitude of the voice in
    # what comes out
    "one channel": (lambda: stacked(VOICE), 0, 1),
    "the same twice": (lambda: stacked(VOICE, VOICE), 0, 1),
    "opposite signs": (lambda: stacked(VOICE, -VOICE), 1, 1),
    "opposite signs, the second louder": (lambda: stacked(0.5 * VOICE, -VOICE), 2, -1),
    "opposite signs, the first louder": (lambda: stacked(VOICE, -0.8 * VOICE), 1, 1),
    "opposite signs, very quiet": (lambda: stacked(0.003 * VOICE, -0.003 * VOICE), 1, 0.003),
    "opposite signs and noise": (lambda: stacked(VOICE + hiss(1), hiss(2) - VOICE), 1, 1),
    "opposite signs and hum in common": (lambda: stacked(VOICE + HUM, HUM - VOICE), 1, 1),
    "opposite signs and a direct current": (lambda: stacked(VOICE + 0.2, 0.2 - VOICE), 1, 1),
    "opposite signs of direct currents": (lambda: stacked(VOICE + 0.2, VOICE - 0.2), 0, 1),
    "opposite signs of a hum": (lambda: stacked(VOICE + HUM, VOICE - HUM), EITHER, 1),
    "opposite signs from a second on": (lambda: stacked(VOICE, VOICE - 2 * EDGE * VOICE), 1, 1),
    "opposite signs for a second": (lambda: stacked(VOICE, 2 * EDGE * VOICE - VOICE), 1, 1),
    "a dead first channel": (lambda: stacked(hiss(3) / 10, VOICE), 0, 0.5),
    "a silent second channel": (lambda: stacked(VOICE, 0 * VOICE), 0, 0.5),
    "two speakers": (lambda: stacked(VOICE, OTHER), 0, 0.5),
    "the second an echo of the first": (lambda: stacked(VOICE, 0.5 * np.roll(VOICE, 400)), 0, 0.5),
    "three, of which two cancel": (lambda: stacked(VOICE, VOICE, -VOICE), 1, 1),
    "three, of which the outer ones cancel": (lambda: stacked(VOICE, 0 * VOICE, -VOICE), 1, 1),
    "four of one sign": (lambda: stacked(VOICE, VOICE, VOICE, VOICE), 0, 1),
    "six, the voice in the centre": (
        lambda: stacked(*(VOICE if n == 2 else hiss(n) / 10 for n in range(6))),
        0,
        1 / 6,
    ),
    "six that alternate": (lambda: stacked(*((-1) ** n * VOICE for n in range(6))), 1, 1),
    "noise alone": (lambda: stacked(hiss(1), hiss(2)), 0, 0),
    "one noise of opposite signs": (lambda: stacked(hiss(1), -hiss(1)), 1, 0),
    "silence": (lambda: stacked(0 * VOICE, 0 * VOICE), 0, 0),
}


def mixed(sound: Sound, block: int) -> tuple[Sound, int]:
    """Return what becomes of channels that come in blocks, and the channel that was taken."""
    mixer = Mixer(sound.shape[1])
    parts = [mixer.mix(sound[first : first + block]) for first in range(0, len(sound), block)]
    return np.concatenate(parts), mixer.cancelling


@pytest.mark.parametrize("block", [320, 1024, 4000, 16_000])
@pytest.mark.parametrize("name", MEMBERS)
def test_a_voice_outlives_its_channels(name: str, block: int) -> None:
    make, taken, amplitude = MEMBERS[name]
    made, cancelling = mixed(make(), block)
    assert len(made) == len(VOICE)
    assert made.flags.c_contiguous
    assert made.dtype == np.float32
    assert cancelling == taken or taken == EITHER
    steps, wanted = np.diff(made), np.diff(VOICE)
    found = float(steps @ wanted / (wanted @ wanted))
    assert found == pytest.approx(amplitude, abs=0.12 * max(abs(amplitude), 0.1))


def test_channels_that_agree_are_their_mean_to_the_bit() -> None:
    sound = stacked(VOICE, OTHER)
    assert np.array_equal(mixed(sound, 4000)[0], sound.mean(axis=1, dtype=np.float32))


def test_no_click_where_the_choice_changes() -> None:
    low = tone(1.0, 200.0, 0.5)
    sound = np.concatenate([stacked(low, low), stacked(low, -low)])
    made, taken = mixed(sound, 4000)
    assert taken == 1
    assert np.abs(np.diff(made)).max() < 1.5 * np.abs(np.diff(low)).max()


def test_a_file_whose_channels_cancel_is_heard_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "balanced.wav"
    soundfile.write(path, stacked(VOICE, -VOICE), RATE)
    assert np.abs(files.read(path)).max() > 0.2
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: its channels cancel each other out; channel 1 is taken instead of their mean"
    ]


def test_a_block_with_a_nan_decides_nothing() -> None:
    mixer = Mixer(2)
    mixer.mix(np.full((320, 2), np.nan, np.float32))
    assert mixer.cancelling == 0
    mixer.mix(stacked(VOICE, VOICE)[RATE : RATE + 320])
    assert mixer.cancelling == 0
