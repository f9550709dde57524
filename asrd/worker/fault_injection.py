"""How a worker fails when a fault was asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from asrd import protocol
from asrd.config.faults import Fault, parse
from asrd.precision import fallback
from asrd.precision.memory import Memory
from asrd.text.spacing import join

LASTING = ("empty", "garbled", "slow", "memory")
PRECISE = ("non-finite", "empty", "garbled", "slow")
"""Kinds that FP32 is never struck by."""


def strikes(fault: Fault, start: protocol.Start) -> bool:
    """Whether a worker that is started so is struck by a fault at all."""
    if fault.kind in PRECISE:
        return not fallback.is_full_fp32(start.precision)
    return start.device != "cpu" or not fallback.is_full_fp32(start.precision)


def rehearse(recognizer: Any, start: protocol.Start) -> None:
    """Have a recognizer that proved itself fail as its faults say, at the buffers they name."""
    faults = [fault for fault in parse(start.faults) if strikes(fault, start)]
    hear, measure, count = recognizer.recognize_together, recognizer.measure, 0

    def heard(*asked: Any) -> list[protocol.Answer]:
        nonlocal count
        count += 1
        act: Callable[..., list[protocol.Answer]] = hear
        for fault in faults:
            if fault.buffer == count or (fault.kind in LASTING and fault.buffer < count):
                act = partial(STRIKE[fault.kind], act, recognizer, fault)
        return act(*asked)

    def measured() -> Memory:
        memory: Memory = measure()
        struck = any(fault.kind == "memory" and fault.buffer <= count for fault in faults)
        return (
            msgspec.structs.replace(memory, process=16 * (memory.process or 0))
            if struck
            else memory
        )

    recognizer.recognize_together, recognizer.measure = heard, measured


Act = Callable[..., list[protocol.Answer]]


def _not_finite(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[protocol.Answer]:
    module = recognizer.model.get_submodule(
        fault.component if fault.component not in ("", "*") else "encoder"
    )
    precision = recognizer.start.precision
    lowered = (
        bool(precision.autocast or precision.phases)
        or str(next(module.parameters()).dtype) != "torch.float32"
    )
    if not lowered and fault.component != "*":
        return act(*asked)
    recognizer._fast_encoder = None  # nothing that is hooked on later is replayed
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


def _empty(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[protocol.Answer]:
    return [_with_words(answer, []) for answer in act(*asked)]


def _garbled(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[protocol.Answer]:
    answers = act(*asked)
    words = [answer.hypothesis.words for answer in answers]
    changed = [
        [msgspec.structs.replace(w, text="garbled") for w in heard[:1]] + heard[1:]
        for heard in words
    ]
    return [_with_words(answer, heard) for answer, heard in zip(answers, changed, strict=True)]


def _with_words(answer: protocol.Answer, words: list[protocol.Word]) -> protocol.Answer:
    text = join(words)
    heard = msgspec.structs.replace(answer.hypothesis, text=text, words=words)
    return msgspec.structs.replace(answer, hypothesis=heard)


def _slow(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[protocol.Answer]:
    answers = act(*asked)
    time.sleep(3 * sum(answer.seconds for answer in answers))
    return [msgspec.structs.replace(answer, seconds=4 * answer.seconds) for answer in answers]


def _oom(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[protocol.Answer]:
    raise MemoryError("out of memory (rehearsed)")


def _die(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[protocol.Answer]:
    os._exit(9)


def _stall(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[protocol.Answer]:
    time.sleep(24 * 3600)
    return act(*asked)


STRIKE: dict[str, Callable[..., list[protocol.Answer]]] = {
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
