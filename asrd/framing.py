"""Messages as frames on a pipe: one JSON line, and behind it the raw bytes of their audio.

Knows lines and sizes; what a message means is `protocol`. Runs on both sides.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any, BinaryIO

import msgspec

from asrd.protocol import Downloaded, Encode, Recognize, Reply, Request
from asrd.text import filenames

MAX_LINE_BYTES = 1 << 20
"""Bytes of one JSON line; longer is garbage, not a message."""

MAX_PAYLOAD_BYTES = 64 << 20
"""Bytes of audio in one frame (about 17 minutes)."""

_encode = msgspec.json.Encoder().encode
_request = msgspec.json.Decoder(Request)
_reply = msgspec.json.Decoder(Reply)


ESCAPED_SURROGATE = b"\\udc"
"""What a line contains where a name is not UTF-8, and hardly any other line."""


class GarbageError(Exception):
    """Bytes on the pipe that are no message of this protocol."""


def pack(message: Request | Reply, *payload: bytes | memoryview) -> list[bytes | memoryview]:
    """Return the pieces of one frame; a payload goes with Recognize and Encode: their buffers'
    samples, in order."""
    return [_line(message) + b"\n", *filter(len, payload)]


def _line(message: Request | Reply) -> bytes:
    """Return a message as JSON.

    A file's name that is not UTF-8 keeps its bytes where it is to be opened, as the lone surrogates
    that Python holds them as; in what a worker reports, it is only to be read.
    """
    try:
        return _encode(message)
    except UnicodeEncodeError:
        if isinstance(message, Request | Downloaded):
            return json.dumps(msgspec.to_builtins(message)).encode()
        return filenames.to_json(message)


def _with_surrogates(line: bytes, kind: Any) -> Any:
    """Decode a line with such a name, which msgspec refuses. Raises msgspec.DecodeError."""
    try:
        return msgspec.convert(filenames.from_json(line), kind)
    except (ValueError, RecursionError) as error:
        raise msgspec.DecodeError(f"{error}") from error


def unpack_request(line: bytes) -> Request:
    """Decode one line that came from the daemon. Raises GarbageError."""
    try:
        if ESCAPED_SURROGATE in line:
            request: Request = _with_surrogates(line, Request)
            return request
        return _request.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise GarbageError(f"not a request: {line[:80]!r} ({error})") from error


def unpack_reply(line: bytes) -> Reply:
    """Decode one line that came from the worker. Raises GarbageError."""
    try:
        if ESCAPED_SURROGATE in line:
            reply: Reply = _with_surrogates(line, Reply)
            return reply
        return _reply.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise GarbageError(f"not a reply: {line[:80]!r} ({error})") from error


def read_request(stream: BinaryIO) -> tuple[Request, bytes] | None:
    """Read one frame of the daemon from a blocking stream; None at its end. Raises GarbageError."""
    line = stream.readline(MAX_LINE_BYTES)
    if not line:
        return None
    if not line.endswith(b"\n"):
        raise GarbageError(f"a line of {len(line)} bytes without an end")
    message = unpack_request(line)
    sizes = _payload_sizes(message)
    size = sum(sizes)
    if size > MAX_PAYLOAD_BYTES or any(part < 0 or part % 4 for part in sizes):
        raise GarbageError(f"a payload of {size} bytes is not float32 audio")
    payload = stream.read(size) if size else b""
    if len(payload) != size:
        return None
    return message, payload


def _payload_sizes(message: Request) -> list[int]:
    """Return the bytes of each buffer that follows a message's line."""
    if isinstance(message, Recognize):
        return [buffer.size for buffer in message.buffers]
    if isinstance(message, Encode):
        return [message.size]
    return []


def write(stream: BinaryIO, message: Request | Reply, *payload: bytes | memoryview) -> None:
    """Write one frame to a blocking stream and flush it."""
    stream.writelines(pack(message, *payload))
    stream.flush()


def die_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends, however it ends."""
    import ctypes
    import signal

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
