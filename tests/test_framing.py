"""Frames: what is written is read, and garbage is called garbage."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrd import framing, protocol
from asrd.precision.strategies import STRATEGY_TABLE


def frame(message: protocol.Request, payload: bytes = b"") -> bytes:
    return b"".join(bytes(piece) for piece in framing.pack(message, payload))


@given(
    st.integers(0, 2**40), st.sampled_from(["warmup", "partial", "final"]), st.binary(max_size=400)
)
def test_buffers_are_read_as_they_were_written(start: int, phase: str, audio: bytes) -> None:
    audio = audio[: len(audio) // 4 * 4]
    half = len(audio) // 8 * 4
    said = protocol.DecodingContext("was für\n", start + 9)
    buffers = [protocol.Buffer(start, half), protocol.Buffer(start + 5, len(audio) - half, said)]
    several = protocol.Recognize(7, buffers, phase)
    encode, measure = protocol.Encode(9, len(audio)), protocol.Measure(8, "steady")
    sent = [(several, audio), (encode, audio), (measure, b""), (protocol.Stop(), b"")]
    stream = io.BytesIO(b"".join(frame(message, payload) for message, payload in sent))
    assert [framing.read_request(stream) for _ in sent] == sent
    assert framing.read_request(stream) is None


@pytest.mark.parametrize("name", STRATEGY_TABLE)
def test_start_carries_the_whole_precision(name: str) -> None:
    start = protocol.Start("demo", STRATEGY_TABLE[name], "cuda:1", pnc=False)
    assert framing.unpack_request(frame(start)) == start


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(noise: bytes) -> None:
    stream = io.BytesIO(noise)
    try:
        while framing.read_request(stream) is not None:
            pass
    except framing.GarbageError:
        pass
    with pytest.raises(framing.GarbageError):
        framing.unpack_reply(noise + b"\n")


@pytest.mark.parametrize("size", [-4, 3, framing.MAX_PAYLOAD_BYTES + 4])
def test_a_payload_that_cannot_be_audio_is_refused(size: int) -> None:
    with pytest.raises(framing.GarbageError, match="float32"):
        framing.read_request(io.BytesIO(frame(protocol.Recognize(1, [protocol.Buffer(0, size)]))))


def test_a_payload_cut_short_is_the_end_and_not_a_buffer() -> None:
    assert (
        framing.read_request(
            io.BytesIO(frame(protocol.Recognize(1, [protocol.Buffer(0, 8)]), b"1234"))
        )
        is None
    )


def test_a_line_without_an_end_is_refused() -> None:
    with pytest.raises(framing.GarbageError):
        framing.read_request(io.BytesIO(b"{" * (framing.MAX_LINE_BYTES + 5)))


def test_the_longest_encoder_output_fits_a_line() -> None:
    encoded = protocol.Encoded(1, bytes(range(256)) * (protocol.MAX_ENCODED_BYTES // 256))
    line = b"".join(bytes(piece) for piece in framing.pack(encoded))
    assert len(line) < framing.MAX_LINE_BYTES
    assert framing.unpack_reply(line) == encoded
