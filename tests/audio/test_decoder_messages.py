"""No word of libsndfile or libav reaches a person: each message becomes a clause of ours."""

from __future__ import annotations

import os

import pytest
import soundfile

from asrd.audio.formats.decoder_messages import DAMAGED_REASON, MESSAGE_MEANINGS, plain

CLAUSES = {words for _, words in MESSAGE_MEANINGS} | {"its decoder failed"}

LIBAV = {
    "Invalid data found when processing input": DAMAGED_REASON,
    "error while decoding: Invalid data found when processing input": DAMAGED_REASON,
    "mov,mp4,m4a,3gp,3g2,mj2: moov atom not found": "its end is missing",
    "matroska,webm: File ended prematurely": "its end is missing",
    "ac3: incomplete frame": "its end is missing",
    "partial file": "its end is missing",
    "asf: Packet corrupt (stream = 0, dts = 99)": DAMAGED_REASON,
    "Error submitting packet to decoder: Invalid argument": DAMAGED_REASON,
    "hls: Protocol 'http' not on whitelist 'pipe'!": "it names other files, which asrd does not open",
    "Format not on whitelist 'aac'": "it names other files, which asrd does not open",
    "Cannot allocate memory": "its decoder had too little memory",
    "Decoder not found": "neither libsndfile nor ffmpeg has a decoder for its audio",
    "End of file": "its end is missing",
    "something new that libav says": "its decoder failed",
}
"""What libav says, and what asrd makes of it."""

OURS = [
    "its decoder was ended by signal 11",
    "its decoder gave nothing for 60 s",
    "it has 99 channels",
]


@pytest.mark.parametrize("said", LIBAV)
def test_a_message_of_libav_becomes_a_clause(said: str) -> None:
    assert plain(said) == LIBAV[said]


@pytest.mark.parametrize("said", OURS)
def test_a_reason_of_asrd_stays(said: str) -> None:
    assert plain(said) == said


def test_every_message_of_libsndfile_and_of_the_system_becomes_a_clause() -> None:
    strings = [
        soundfile._ffi.string(soundfile._snd.sf_error_number(number)).decode()
        for number in range(1, 180)
    ]
    for said in [*strings, *map(os.strerror, range(1, 100))]:
        assert plain(said) in CLAUSES
