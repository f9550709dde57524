"""The process loop of the worker: requests from standard input, replies to standard output.

Started as `python -P -m asrd.worker`; the only program that imports torch and NeMo. It has one
thread and no event loop: it reads a frame and answers it. The real stdout is kept for frames before
any library is imported; everything else that prints goes to stderr. Between two frames it holds no
audio. A worker ends with its precision: the daemon starts another for another one.
"""

from __future__ import annotations

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
from asrd.worker.recognizer import NonFiniteError, Recognizer
from asrd.worker.self_test import SelfTestError

WORKER_ERRORS: dict[type[BaseException], str] = {
    NonFiniteError: "non-finite",
    SelfTestError: "self-test",
    BudgetError: "budget",
    NoDeviceError: "no-device",
}
"""Errors of the worker alone -> their kind in `protocol.Failed`."""


def _failure(error: BaseException, number: int | None) -> protocol.Failed:
    """Return the message for an exception: of asrd's by its type, of torch's by its text."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, AsrdError) and (kind := _own_kind(error)):
        return protocol.Failed(kind, error.message, error.hint, number, trace)
    kind = WORKER_ERRORS.get(type(error)) or cuda_errors.kind_of(error) or "internal"
    message, hint = cuda_errors.first_line(error), getattr(error, "hint", "")
    component = getattr(error, "component", "")
    return protocol.Failed(kind, message, hint, number, trace, component)


def _own_kind(error: AsrdError) -> str:
    """Return the kind of one of asrd's errors; "" where its type has none."""
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
    """Yield the requests up to `Stop`, or to the end of the stream."""
    while (frame := framing.read_request(stream)) is not None:
        if isinstance(frame[0], protocol.Stop):
            return
        yield frame


def _serve(
    requests: Iterator[tuple[protocol.Request, bytes]], send: Callable[[protocol.Reply], None]
) -> int:
    """Answer frames until the daemon ends them; return the exit code."""
    first = next(requests, None)
    if first is None:
        return 0
    start, _ = first
    if not isinstance(start, protocol.Start) or start.protocol != protocol.PROTOCOL_VERSION:
        detail = f"a {type(start).__name__} of another protocol where Start was due"
        send(protocol.Failed("internal", detail))
        return 70
    if start.device == "cpu":
        return _answer(start, requests, send)
    # CUDA keeps the card awake for this worker's whole life, so NVML is opened once beside it.
    with nvml.opened:
        return _answer(start, requests, send)


def _answer(
    start: protocol.Start,
    requests: Iterator[tuple[protocol.Request, bytes]],
    send: Callable[[protocol.Reply], None],
) -> int:
    """Load what `start` names, then answer frames until the daemon ends them; return the exit
    code."""
    try:
        recognizer = startup.start_recognizer(start, send)
        if start.faults:
            from asrd.worker import fault_injection

            fault_injection.rehearse(recognizer, start)
        send(startup.ready_message(recognizer))
    except Exception as error:
        send(_failure(error, None))
        return 70
    for message, payload in requests:
        try:
            if isinstance(message, protocol.Recognize):
                for answer in _recognize(recognizer, message, payload):
                    send(msgspec.structs.replace(answer, id=message.id))
            elif isinstance(message, protocol.Encode):
                send(protocol.Encoded(message.id, recognizer.encode(payload)))
            elif isinstance(message, protocol.Measure):
                send(protocol.Reading(message.id, message.phase, recognizer.measure()))
        except Exception as error:
            failure = _failure(error, getattr(message, "id", None))
            send(failure)
            # A poisoned CUDA context never recovers; only a new process does.
            if failures.action_of(failure.kind).ends_worker:
                return 70
    return 0


def _recognize(
    recognizer: Recognizer, message: protocol.Recognize, payload: bytes
) -> list[protocol.Answer]:
    """Return the answers for the buffers of a request, whose samples follow one another."""
    audios: list[bytes] = []
    starts: list[int] = []
    contexts: list[protocol.DecodingContext | None] = []
    first = 0
    for buffer in message.buffers:
        audios.append(payload[first : first + buffer.size])
        starts.append(buffer.start)
        contexts.append(buffer.context)
        first += buffer.size
    return recognizer.recognize_together(audios, starts, message.phase, contexts)


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
    # Interpreter teardown under CUDA and threads can hang or crash; every reply is flushed already.
    os._exit(code)
