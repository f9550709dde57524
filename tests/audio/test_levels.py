"""How loud speech is, and when a person is told."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from asrd.audio import blocks, files, levels
from asrd.audio.levels import Loudness, judge
from asrd.audio.vad import Vad
from asrd.cli import status_page
from asrd.paths import DATA_FOLDER
from tests.sound import RATE, noise, silence

CLIPS = sorted((DATA_FOLDER / "eval").glob("*.flac"))[:6]
Sound = NDArray[np.float32]


def active(voice: Sound) -> float:
    """Return the power of the frames of a voice within 20 dB of its loudest ones, in dBFS, as one
    would by hand."""
    powers = np.square(voice[: len(voice) // 320 * 320].reshape(-1, 320)).mean(axis=1)
    return float(10 * np.log10(powers[powers >= np.quantile(powers, 0.95) / 100].mean()))


def spoken(clip: int = 0, dbfs: float = -25.0) -> Sound:
    """Return a clip at a level, with half a second of silence on both sides."""
    voice = files.read(CLIPS[clip])
    scaled = voice * np.float32(10 ** ((dbfs - active(voice)) / 20))
    return np.concatenate([silence(0.5), scaled, silence(0.5)])


def measured(sound: Sound, block: int = 320) -> Loudness:
    """Return the levels of a recording as a recording takes them, by the detector that it uses."""
    found, vad = Loudness(), Vad()
    for start in range(0, len(sound), block):
        before = vad.open
        vad.push(blocks.AudioBlock(start, sound[start : start + block]))
        found.push(sound[start : start + block], before or vad.open)
    return found


@pytest.mark.parametrize("clip", range(len(CLIPS)))
@pytest.mark.parametrize("dbfs", [-61, -55, -45.5, -35, -25, -15])
def test_the_level_of_speech_is_what_it_was_made_at(clip: int, dbfs: float) -> None:
    assert measured(spoken(clip, dbfs)).speech == pytest.approx(dbfs, abs=2.0)


@pytest.mark.parametrize("block", [320, 3200, 4800])
def test_it_hardly_depends_on_how_sound_is_cut(block: int) -> None:
    assert measured(spoken(), block).speech == pytest.approx(-25, abs=2.0)


MEMBERS: dict[str, tuple[Sound, str, int]] = {
    # name: the sound, a word of what is said of it, and the decibels that are advised
    "a good level": (spoken(0, -25), "", 0),
    "a low level": (spoken(1, -40), "", 0),
    "a high level": (spoken(2, -18), "", 0),
    "just good enough": (spoken(3, -42), "", 0),
    "just too quiet": (spoken(3, -49), "very quiet", 25),
    "quiet": (spoken(0, -55), "very quiet", 30),
    "hardly there": (spoken(1, -61), "very quiet", 40),
    "quiet under hiss": (spoken(2, -55) + noise(len(spoken(2)) / RATE, 1e-4)[: len(spoken(2))], "very quiet", 30),
    "good under hiss": (spoken(2, -25) + noise(len(spoken(2)) / RATE, 1e-3)[: len(spoken(2))], "", 0),
    "cut off": (np.clip(spoken(0, -3), -1, 1), "cut off", -10),
    "cut off hard": (np.clip(spoken(1, 10), -1, 1), "cut off", -10),
    "cut off, with a rest": (np.concatenate([silence(20), np.clip(spoken(2, 0), -1, 1)]), "cut off", -10),
    "loud, and not cut off": (spoken(4) / np.abs(spoken(4)).max() * np.float32(0.98), "", 0),
    "peaks at full scale": (spoken(5) / np.abs(spoken(5)).max(), "", 0),
    "nothing at all": (silence(3), "silence", 0),
    "the last bit flickers": (np.round(noise(3, 0.3)) .astype(np.float32) / 32768, "silence", 0),
    "a quiet room": (noise(3, 3e-4), "", 0),
    "a loud fan": (noise(3, 3e-2), "", 0),
    "one good sentence after minutes of rest": (np.concatenate([silence(120), spoken(0)]), "", 0),
    "one quiet sentence after minutes of rest": (np.concatenate([silence(120), spoken(0, -55)]), "very quiet", 30),
    "nothing yet": (silence(0), "", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", MEMBERS)
def test_what_is_said_of_a_level(name: str) -> None:
    sound, word, decibels = MEMBERS[name]
    found = judge(measured(sound))
    assert (word in found.problem) if word else not found.problem
    assert found.advised_db == pytest.approx(decibels, abs=5 if decibels > 0 else 0)


@pytest.mark.parametrize("clip", range(len(CLIPS)))
@pytest.mark.parametrize("dbfs", [-50, -60, -66, -70, -74, -78, -82, -86, -90, -95, -105])
def test_no_recording_that_is_too_soft_goes_without_a_warning(clip: int, dbfs: float) -> None:
    found = judge(measured(spoken(clip, dbfs)), spoken=True)
    assert found.kind in ("quiet", "silent"), found
    assert found.kind == "silent" or found.advised_db >= 25
    quiet_room = judge(measured(noise(3, 1e-4)))
    assert not quiet_room.problem, "where nobody was to speak, a soft sound is not a fault"


def test_an_hour_takes_the_memory_of_a_second() -> None:
    found = Loudness()
    for _ in range(3600):
        found.push(noise(1.0), True)
    assert found._speech.nbytes + found._rest.nbytes < 4096
    assert found.speech == pytest.approx(-40, abs=0.5)


def test_the_noise_is_what_lies_between() -> None:
    sound = (
        np.concatenate([spoken(), silence(2)])
        + noise(len(spoken()) / RATE + 2, 1e-3)[: len(spoken()) + 2 * RATE]
    )
    assert measured(sound).noise == pytest.approx(-60, abs=1.5)
    assert levels.QUIET_DBFS < -40


REPLIES = {
    (None, None, ""): "mic: too short to measure",
    (None, -87.0, ""): "mic: no speech, -87 dBFS",
    (-24.2, None, ""): "mic: speech at -24 dBFS",
    (-24.2, -70.0, ""): "mic: speech at -24 dBFS, -70 dBFS between",
    (-60.0, -80.0, "is very quiet"): "mic is very quiet",
    (None, -120.0, "delivers nothing"): "mic delivers nothing",
}
"""Levels of the speech and of what is between, and what is wrong -> what the status says."""


@pytest.mark.parametrize("levels_of", REPLIES)
def test_the_status_says_of_every_recording_how_loud_it_was(
    levels_of: tuple[float | None, float | None, str],
) -> None:
    speech, noise, problem = levels_of
    reply = {"device": "mic", "speech_dbfs": speech, "noise_dbfs": noise, "problem": problem}
    assert status_page.level(reply) == REPLIES[levels_of]
    assert status_page.level(None) == ""
