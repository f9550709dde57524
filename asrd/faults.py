"""Trouble that a user can rehearse: `faults = "non-finite:3"` has the worker fail at its third buffer, as it might on a
bad day, so that what the ladder does about it can be seen.

The setting is read when a worker starts. Without it nothing here is even imported there, and no buffer passes a branch.
FP32 on the CPU is never struck, so that a rehearsal ends with text; nor is FP32 anywhere by what only reduced precision
can have. Runs on both sides; knows torch's modules by their methods only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from . import ladder, wire
from .errors import ConfigError, nearest
from .spacing import join

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

LASTING = ("empty", "garbled", "slow", "memory")
PRECISE = ("non-finite", "empty", "garbled", "slow")
"""Kinds that FP32 is never struck by."""


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
            raise ConfigError(f"{part!r} is no fault", "for example oom:5 or non-finite:3:encoder.layers.0")
        found.append(Fault(kind, int(number), component))
    return tuple(found)


def strikes(fault: Fault, start: wire.Start) -> bool:
    """Whether a worker that is started so is struck by a fault at all."""
    if fault.kind in PRECISE:
        return not ladder.plain(start.precision)
    return start.device != "cpu" or not ladder.plain(start.precision)


def rehearse(recognizer: Any, start: wire.Start) -> None:
    """Have a recognizer that proved itself fail as its faults say, at the buffers they name."""
    faults = [fault for fault in parse(start.faults) if strikes(fault, start)]
    hear, measure, count = recognizer.recognize_together, recognizer.measure, 0

    def heard(*asked: Any) -> list[wire.Answer]:
        nonlocal count
        count += 1
        act: Callable[..., list[wire.Answer]] = hear
        for fault in faults:
            if fault.buffer == count or (fault.kind in LASTING and fault.buffer < count):
                act = partial(STRIKE[fault.kind], act, recognizer, fault)
        return act(*asked)

    def measured() -> wire.Memory:
        memory: wire.Memory = measure()
        struck = any(fault.kind == "memory" and fault.buffer <= count for fault in faults)
        return msgspec.structs.replace(memory, process=16 * (memory.process or 0)) if struck else memory

    recognizer.recognize_together, recognizer.measure = heard, measured


Act = Callable[..., list[wire.Answer]]


def _not_finite(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[wire.Answer]:
    module = recognizer.model.get_submodule(fault.component if fault.component not in ("", "*") else "encoder")
    precision = recognizer.start.precision
    lowered = bool(precision.autocast or precision.phases) or str(next(module.parameters()).dtype) != "torch.float32"
    if not lowered and fault.component != "*":
        return act(*asked)
    recognizer._replay = None  # nothing that is hooked on later is replayed
    if fault.component not in ("", "*"):
        handle = module.register_forward_hook(lambda module, given, output: _spoilt(output))
        try:
            return act(*asked)
        finally:
            handle.remove()
    encode = recognizer._encode
    recognizer._encode = lambda sounds: _spoilt(encode(sounds))
    try:
        return act(*asked)
    finally:
        recognizer._encode = encode


def _spoilt(output: Any) -> Any:
    return (_spoilt(output[0]), *output[1:]) if isinstance(output, tuple) else output * float("nan")


def _empty(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[wire.Answer]:
    return [_with_words(answer, []) for answer in act(*asked)]


def _garbled(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[wire.Answer]:
    answers = act(*asked)
    words = [answer.hypothesis.words for answer in answers]
    changed = [[msgspec.structs.replace(w, text="garbled") for w in heard[:1]] + heard[1:] for heard in words]
    return [_with_words(answer, heard) for answer, heard in zip(answers, changed, strict=True)]


def _with_words(answer: wire.Answer, words: list[wire.Word]) -> wire.Answer:
    text = join(words)
    heard = msgspec.structs.replace(answer.hypothesis, text=text, words=words)
    return msgspec.structs.replace(answer, hypothesis=heard)


def _slow(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[wire.Answer]:
    answers = act(*asked)
    time.sleep(3 * sum(answer.seconds for answer in answers))
    return [msgspec.structs.replace(answer, seconds=4 * answer.seconds) for answer in answers]


def _oom(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[wire.Answer]:
    raise MemoryError("out of memory (rehearsed)")


def _die(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[wire.Answer]:
    os._exit(9)


def _stall(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[wire.Answer]:
    time.sleep(24 * 3600)
    return act(*asked)


STRIKE: dict[str, Callable[..., list[wire.Answer]]] = {
    "non-finite": _not_finite,
    "empty": _empty,
    "garbled": _garbled,
    "slow": _slow,
    "memory": lambda act, recognizer, fault, *asked: act(*asked),
    "oom": _oom,
    "die": _die,
    "stall": _stall,
}
"""Kind -> what it makes of an answer."""
