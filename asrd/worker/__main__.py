"""The process loop of the worker: requests from standard input, replies to standard output.

Started as `python -P -m asrd.worker`; the only program that imports torch and NeMo. One thread,
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import BinaryIO

import msgspec

from asrd import framing, protocol
from asrd.errors import AsrdError, PrecisionError
from asrd.precision import cuda_errors, failures, nvml
from asrd.worker import startup
from asrd.worker.device import BudgetError, NoDeviceError
from asrd.worker.loading.libraries import import_nemo
from asrd.worker.recognizer import NonFiniteError
from asrd.worker.self_test import SelfTestError

OWN: dict[type[BaseException], str] = {
    NonFiniteError: "non-finite",
    SelfTestError: "self-test",
    BudgetError: "budget",
    NoDeviceError: "no-device",
}
"""Errors of the worker alone as kinds of wire.Failed."""


def _failure(error: BaseException, number: int | None) -> protocol.Failed:
    """Return the message for an exception: our own by its type, torch's by what it says."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, AsrdError) and (kind := _own_kind(error)):
        return protocol.Failed(kind, error.message, error.hint, number, trace)
    name = OWN.get(type(error)) or cuda_errors.kind_of(error) or "internal"
    said, hint, component = (
        cuda_errors.first_line(error),
        getattr(error, "hint", ""),
        getattr(error, "component", ""),
    )
    return protocol.Failed(name, said, hint, number, trace, component)


def _own_kind(error: AsrdError) -> str:
    """Return the kind of one of asrd's errors; "" where its type tells none."""
    if isinstance(error, PrecisionError):
        return "unsupported"
    return failures.kind_of(error)


def _reserve_stdout() -> BinaryIO:
    """Return the real stdout for frames; descriptor 1 leads to stderr from here on, for C libraries
    too."""
    frames = os.fdopen(os.dup(1), "wb", buffering=1 << 20)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return frames


def _requests(stream: BinaryIO) -> Iterator[tuple[protocol.Request, bytes]]:
    while (frame := framing.read_request(stream)) is not None and not isinstance(
        frame[0], protocol.Stop
    ):
        yield frame


def _serve(
    requests: Iterator[tuple[protocol.Request, bytes]], say: Callable[[protocol.Reply], None]
) -> int:
    """Answer frames until the daemon ends them; return the exit code."""
    first = next(requests, None)
    if first is None:
        return 0
    start, _ = first
    if not isinstance(start, protocol.Start) or start.protocol != protocol.PROTOCOL_VERSION:
        say(
            protocol.Failed(
                "internal", f"a {type(start).__name__} of another protocol where Start was due"
            )
        )
        return 70
    on_card = (
        start.device != "cpu"
    )  # CUDA keeps it awake for this worker's whole life: NVML is opened once beside it
    with nvml.opened if on_card else contextlib.nullcontext():
        return _answer(start, requests, say)


def _answer(
    start: protocol.Start,
    requests: Iterator[tuple[protocol.Request, bytes]],
    say: Callable[[protocol.Reply], None],
) -> int:
    """Load what `start` names, then answer frames until the daemon ends them; return the exit
    code."""
    try:
        recognizer = startup.start_recognizer(start, say)
        if start.faults:
            from asrd.worker import fault_injection

            fault_injection.rehearse(recognizer, start)
        say(startup.ready_message(recognizer))
    except Exception as error:
        say(_failure(error, None))
        return 70
    for message, payload in requests:
        try:
            if isinstance(message, protocol.Recognize):
                edges = list(
                    itertools.accumulate((buffer.size for buffer in message.buffers), initial=0)
                )
                sounds = [payload[first:stop] for first, stop in itertools.pairwise(edges)]
                starts = [buffer.start for buffer in message.buffers]
                contexts = [buffer.context for buffer in message.buffers]
                for answer in recognizer.recognize_together(
                    sounds, starts, message.phase, contexts
                ):
                    say(_numbered(answer, message.id))
            elif isinstance(message, protocol.Encode):
                say(protocol.Encoded(message.id, recognizer.encode(payload)))
            elif isinstance(message, protocol.Measure):
                say(protocol.Reading(message.id, message.phase, recognizer.measure()))
        except Exception as error:
            failure = _failure(error, getattr(message, "id", None))
            say(failure)
            # A poisoned CUDA context never recovers; only a new process does.
            if failures.action_of(failure.kind).ends_worker:
                return 70
    return 0


def _numbered(answer: protocol.Answer, number: int) -> protocol.Answer:
    return msgspec.structs.replace(answer, id=number)


def main() -> int:
    """Run a worker on stdin and stdout; return the exit code."""
    frames = _reserve_stdout()
    framing.die_with_parent()
    if "--early" in sys.argv[1:]:  # a spare, whose import is over when it is given a model
        import_nemo()
    try:
        return _serve(_requests(sys.stdin.buffer), lambda message: framing.write(frames, message))
    except framing.GarbageError as error:
        print(f"asrd.worker: {error}", file=sys.stderr)  # noqa: T201
        return 76
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    code = main()
    # Interpreter teardown under CUDA and threads can hang or crash; everything said is already
    # flushed.
    os._exit(code)
