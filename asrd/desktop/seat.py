"""Whether a Wayland session has a keyboard, asked of the compositor itself. Runs in the daemon.

A session without one (a tablet, a screen without a desk) gets a keyboard for as long as `wtype`
runs. A window hears of its keys only once it has answered to the new keyboard, so a busy window
would miss them.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping

ANSWER_SECONDS = 1.0
"""What the compositor gets to answer."""

KEYBOARD = 2
"""The bit of `wl_seat.capabilities` that means a keyboard."""

DISPLAY, REGISTRY, FIRST_SYNC, FIRST_SEAT = 1, 2, 3, 4
"""Object numbers of this client, which leave none out; the second sync follows the last seat."""

Event = tuple[int, int, bytes]
"""Object, number of the event, arguments."""


def has_keyboard(environment: Mapping[str, str]) -> bool:
    """Return whether a seat of the session has a keyboard; True where the compositor does not
    tell."""
    name = environment.get("WAYLAND_DISPLAY") or "wayland-0"
    path = os.path.join(environment.get("XDG_RUNTIME_DIR") or "/", name)
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(ANSWER_SECONDS)
            line.connect(path)
            return any(capabilities & KEYBOARD for capabilities in _capabilities(line))
    except (OSError, struct.error):
        return True


def _capabilities(line: socket.socket) -> Iterator[int]:
    """Yield what each seat has. Raises OSError; struct.error where that is no Wayland."""
    line.sendall(_request(DISPLAY, 1, _words(REGISTRY)) + _request(DISPLAY, 0, _words(FIRST_SYNC)))
    seats = 0
    for target, number, arguments in _events(line):
        if target == REGISTRY and number == 0 and _interface(arguments) == b"wl_seat":
            bound = arguments[:4] + _words(8) + b"wl_seat\0" + _words(1, FIRST_SEAT + seats)
            line.sendall(_request(REGISTRY, 0, bound))
            seats += 1
        elif (
            target == FIRST_SYNC
        ):  # every seat is bound; its capabilities come before the next answer
            line.sendall(_request(DISPLAY, 0, _words(FIRST_SEAT + seats)))
        elif target == FIRST_SEAT + seats:
            return
        elif target >= FIRST_SEAT and number == 0:
            yield int(struct.unpack("=I", arguments)[0])


def _events(line: socket.socket) -> Iterator[Event]:
    """Yield what the compositor sends. Raises OSError at its end."""
    data = b""
    while True:
        while len(data) < 8 or len(data) < _size(data):
            more = line.recv(1 << 16)
            if not more:
                raise ConnectionResetError
            data += more
        target, second = struct.unpack("=II", data[:8])
        size = _size(data)
        yield target, second & 0xFFFF, data[8:size]
        data = data[size:]


def _size(data: bytes) -> int:
    """Return the length of the first event. Raises struct.error where none is so short."""
    size = int(struct.unpack("=I", data[4:8])[0]) >> 16
    if size < 8:
        raise struct.error
    return size


def _interface(arguments: bytes) -> bytes:
    """Return what `wl_registry.global` announces."""
    length = struct.unpack("=I", arguments[4:8])[0]
    return arguments[8 : 8 + length].rstrip(b"\0")


def _request(target: int, number: int, arguments: bytes) -> bytes:
    return _words(target, (8 + len(arguments)) << 16 | number) + arguments


def _words(*values: int) -> bytes:
    return struct.pack(f"={len(values)}I", *values)
