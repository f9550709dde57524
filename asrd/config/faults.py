"""Trouble that a user can rehearse: `faults = "non-finite:3"` has the worker fail at its third
buffer, as it might on a bad day, so that what the fallback order does about it can be seen.

The setting is read when a worker starts. Without it nothing here is even imported there, and no
buffer passes a branch. FP32 on the CPU is never struck, so that a rehearsal ends with text; nor is
FP32 anywhere by what only reduced precision can have. Runs on both sides; knows torch's modules by
their methods only.
"""

from __future__ import annotations

import msgspec

from asrd.errors import ConfigError, nearest

KINDS = {
    "non-finite": "the encoder returns NaN; with a component, that one does, while it is not float32; *: anywhere",
    "empty": "no words from that buffer on",
    "garbled": "the first word is a wrong one from that buffer on",
    "slow": "each buffer takes four times as long from that one on",
    "memory": "the worker's memory is read sixteen times too large from that buffer on",
    "oom": "the device has no room for that buffer",
    "die": "the worker ends at that buffer",
    "stall": "the worker never answers that buffer",
}
"""What can be rehearsed."""


class Fault(msgspec.Struct, frozen=True):
    """One thing that goes wrong."""

    kind: str
    buffer: int
    """Which buffer of a worker is struck, counted from 1; of the LASTING kinds it is the first."""
    component: str = ""
    """Of kind non-finite: whose output."""


def parse(text: str) -> tuple[Fault, ...]:
    """Return the faults that "KIND:BUFFER[:COMPONENT],..." asks for. Raises ConfigError."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, _, rest = part.partition(":")
        number, _, component = rest.partition(":")
        if kind not in KINDS:
            raise ConfigError(f"unknown fault {kind!r}", nearest(kind, tuple(KINDS)))
        if not number.isdecimal() or not int(number) or (component and kind != "non-finite"):
            raise ConfigError(
                f"{part!r} is not a fault", "for example oom:5 or non-finite:3:encoder.layers.0"
            )
        found.append(Fault(kind, int(number), component))
    return tuple(found)
