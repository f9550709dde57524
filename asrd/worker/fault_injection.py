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

LASTING_KINDS = ("empty", "garbled", "slow", "memory")
"""Kinds that strike at their buffer and at every later one."""

PRECISION_KINDS = ("non-finite", "empty", "garbled", "slow")
"""Kinds that never strike FP32."""

Act = Callable[..., list[protocol.Answer]]
"""Answers buffers, as `Recognizer.recognize_together`."""


def strikes(fault: Fault, start: protocol.Start) -> bool:
    """Return whether a fault strikes a worker that is started so at all."""
    if fault.kind in PRECISION_KINDS:
        return not fallback.is_full_fp32(start.precision)
    return start.device != "cpu" or not fallback.is_full_fp32(start.precision)


def rehearse(recognizer: Any, start: protocol.Start) -> None:
    """Have a recognizer that passed its self-test fail as its faults say, at the buffers they
    name."""
    faults = [fault for fault in parse(start.faults) if strikes(fault, start)]
    recognize, measure, count = recognizer.recognize_together, recognizer.measure, 0

    def faulty_recognize(*asked: Any) -> list[protocol.Answer]:
        nonlocal count
        count += 1
        act: Act = recognize
        for fault in faults:
            if fault.buffer == count or (fault.kind in LASTING_KINDS and fault.buffer < count):
                act = partial(STRIKE[fault.kind], act, recognizer, fault)
        return act(*asked)

    def faulty_measure() -> Memory:
        memory: Memory = measure()
        for fault in faults:
            if fault.kind == "memory" and fault.buffer <= count:
                return msgspec.structs.replace(memory, process=16 * (memory.process or 0))
        return memory

    recognizer.recognize_together, recognizer.measure = faulty_recognize, faulty_measure


def _not_finite(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[protocol.Answer]:
    """Answer with NaN behind the fault's component, which is the encoder where it names none."""
    whole = fault.component in ("", "*")
    module = recognizer.model.get_submodule("encoder" if whole else fault.component)
    if fault.component != "*" and not _is_lowered(recognizer.start.precision, module):
        return act(*asked)
    recognizer._fast_encoder = None  # no replay sees a hook that is added later
    if not whole:
        handle = module.register_forward_hook(lambda module, given, output: _spoilt(output))
        try:
            return act(*asked)
        finally:
            handle.remove()
    encode = recognizer._encode
    recognizer._encode = lambda buffers: _spoilt(encode(buffers))
    try:
        return act(*asked)
    finally:
        recognizer._encode = encode


def _is_lowered(precision: Any, module: Any) -> bool:
    """Return whether a module computes in less than FP32."""
    if precision.autocast or precision.phases:
        return True
    return str(next(module.parameters()).dtype) != "torch.float32"


def _spoilt(output: Any) -> Any:
    """Return an output, or the first of several, as NaN."""
    if isinstance(output, tuple):
        return (_spoilt(output[0]), *output[1:])
    return output * float("nan")


def _empty(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[protocol.Answer]:
    return [_with_words(answer, []) for answer in act(*asked)]


def _garbled(act: Act, recognizer: Any, fault: Fault, *asked: Any) -> list[protocol.Answer]:
    answers = []
    for answer in act(*asked):
        words = list(answer.hypothesis.words)
        if words:
            words[0] = msgspec.structs.replace(words[0], text="garbled")
        answers.append(_with_words(answer, words))
    return answers


def _with_words(answer: protocol.Answer, words: list[protocol.Word]) -> protocol.Answer:
    hypothesis = msgspec.structs.replace(answer.hypothesis, text=join(words), words=words)
    return msgspec.structs.replace(answer, hypothesis=hypothesis)


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


STRIKE: dict[str, Act] = {
    "non-finite": _not_finite,
    "empty": _empty,
    "garbled": _garbled,
    "slow": _slow,
    "memory": lambda act, recognizer, fault, *asked: act(*asked),
    "oom": _oom,
    "die": _die,
    "stall": _stall,
}
"""Kind -> the function that answers in place of the recognizer."""
