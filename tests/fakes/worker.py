"""A worker that is a real program and speaks the real frames, but holds no model and can do each
wrong on demand.

`Start.model` is its script: "STRATEGY=ACT STRATEGY=ACT ...", "*" for every strategy. An act may end
in "@FILE": it is then done once, by whichever worker creates FILE first; after that the worker
behaves. The act "gate" loads only once the file FAKE_WORKER_GATE names is there. The act "hostile"
says the words of the JSON list FAKE_WORKER_WORDS at times outside the buffer. The act
"allergic:ACT" is ACT where a sample is MARK, or no finite number. The act "spoil:RATE:SEED" makes
RATE words of a hundred other ones. The act "measuring:ACT" is ACT where memory is asked for.

Where FAKE_WORKER_TEXTS names a JSON file of number of samples -> text, that is what is heard, and a
worker with half the bytes a weight says that it needs half the memory. The model is then any file,
and FAKE_WORKER_ACTS the script.
"""

from __future__ import annotations

import array
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from asrd import framing, protocol
from asrd.precision.memory import Memory

TEXTS = os.environ.get("FAKE_WORKER_TEXTS", "")
MIB = 1 << 20


async def as_it_is(model: str, tell: object) -> Path:
    """Stand in for the engine's `fetch`: a script is no model, and has no file."""
    return Path(model)


def script(start: protocol.Start) -> str:
    """Return the act for this worker's strategy."""
    told = os.environ.get("FAKE_WORKER_ACTS", "") if TEXTS else start.model
    acts = dict(part.partition("=")[::2] for part in told.split())
    act, _, once = acts.get(start.precision.name, acts.get("*", "ok")).partition("@")
    if once:
        try:
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return "ok"
    return act


LARGE = {"large": "nvml", "large-by-meminfo": "meminfo"}
"""Acts of a worker that holds a byte more than it may -> the instrument that says so."""


def stored(start: protocol.Start, act: str) -> str:
    """Return what the encoder says that it is stored in; the act "liar" says another than was asked
    for."""
    precision = start.precision
    parts = {dtype for path, dtype in precision.parts.items() if path.startswith("encoder.")}
    whole = precision.parts.get("encoder", precision.weights)
    if act == "liar":
        return "float16" if whole != "float16" else "float32"
    return "/".join([whole, *sorted(parts - {whole})])


def ready(start: protocol.Start, act: str = "ok") -> protocol.Ready:
    """Return an introduction that keeps the contract."""
    memory = Memory(4, process=1000)
    if act in LARGE:
        memory = Memory(4, process=start.vram_limit + 1, source=LARGE[act])
    return protocol.Ready(
        requested=start.precision.name,
        effective={"encoder": stored(start, act)},
        fallbacks=[protocol.Fallback("encoder", "tf32", "float32", "TF32 is a unit of CUDA cards")]
        * (act == "otherwise"),
        device=start.device,
        device_name="fake",
        family="ctc",
        target="fake",
        parameters=1,
        weights_bytes=4,
        ledger={"ready": memory},
        load_peak=Memory(4, process=1000),
        self_test=None,
        load_seconds=0.0,
        versions={},
        pid=os.getpid(),
    )


def memory(start: protocol.Start) -> Memory:
    """Return a reading of the ledger."""
    half, source = start.precision.weights != "float32", "rss" if start.device == "cpu" else "nvml"
    return Memory(4, process=(450 if half else 900) * MIB if TEXTS else 1000, source=source)


def known(length: int, act: str) -> str:
    """Return the text of a clip, known by its length, as this act hears it."""
    text = str(json.loads(Path(TEXTS).read_text()).get(str(length), ""))
    if not act.startswith("spoil:"):
        return text
    _, rate, seed = act.split(":")
    draw = random.Random(f"{seed} {length}")
    return " ".join("wrong" if draw.random() < float(rate) / 100 else word for word in text.split())


def hear(
    message: protocol.Recognize, payload: bytes, name: str, act: str = ""
) -> Iterator[protocol.Answer]:
    """Yield hypotheses that prove which samples arrived, at which position, and how many buffers
    with them."""
    place = 0
    for buffer in message.buffers:
        samples = array.array("f", payload[place : place + buffer.size])
        place += buffer.size
        text = (
            known(len(samples), act) if TEXTS else f"{len(samples)} samples sum {sum(samples):.0f}"
        )
        text += f" behind {buffer.context.text} {buffer.context.until}" if buffer.context else ""
        stop = buffer.start + len(samples)
        words = [protocol.Word(word, buffer.start, stop) for word in text.split()]
        heard = protocol.Hypothesis(text, words, buffer.start, stop, name)
        yield protocol.Answer(message.id, heard, 0.01, 0.005, 0.01, float(len(message.buffers)))


REMARKS = "Bus error\nW1127 20:55:16.614 7 x.py:1] deprecated\n[NeMo W 2026-11-27] slow"
"""Why it dies, and what libraries say beside that."""


def die(code: int) -> None:
    os._exit(code)


def bear(apart: bool) -> None:
    """Start a child that holds all three pipes, and say its number."""
    child = subprocess.Popen(["sleep", "15"], start_new_session=apart)
    print(f"child {child.pid}", file=sys.stderr, flush=True)


ON_BEGIN: dict[str, Callable[[], object]] = {
    "loud": lambda: print("x" * (4 * framing.MAX_LINE_BYTES), file=sys.stderr, flush=True),
    "parent": lambda: bear(False),
    "parent-of-a-stranger": lambda: bear(True),
}
"""What happens before the worker loads, which it then does well."""

ON_LOAD: dict[str, Callable[[], object]] = {
    "refuse": lambda: say(protocol.Failed("unsupported", "cannot do that here")),
    "no-room": lambda: say(protocol.Failed("out-of-memory", "CUDA out of memory")),
    "model": lambda: say(protocol.Failed("model", "no such checkpoint", "look elsewhere")),
    "network": lambda: say(protocol.Failed("network", "the hub cannot be reached")),
    "no-device": lambda: say(
        protocol.Failed("no-device", "torch is built without CUDA", "install another")
    ),
    "oom-loading": lambda: say(protocol.Failed("out-of-memory", "CUDA out of memory")),
    "die-loading": lambda: die(3),
    "stall-loading": lambda: time.sleep(3600),
    "old": lambda: sys.stdout.buffer.write(b'{"type":"ready","protocol":0}\n'),
}

ON_BUFFER: dict[str, Callable[[int], object]] = {
    "nan": lambda n: say(protocol.Failed("non-finite", "the encoder put out nan", id=n)),
    "nan-in-layer": lambda n: say(
        protocol.Failed("non-finite", "the encoder put out nan", id=n, component="encoder.layers.3")
    ),
    "oom": lambda n: say(protocol.Failed("out-of-memory", "CUDA out of memory", id=n)),
    "die": lambda n: die(9),
    "die-remarking": lambda n: (print(REMARKS, file=sys.stderr, flush=True), die(9)),
    "lost": lambda n: (
        say(protocol.Failed("device-lost", "CUDA error: an illegal memory access", id=n)),
        die(70),
    ),
    "abort": lambda n: os.abort(),
    "kill": lambda n: os.kill(os.getpid(), signal.SIGKILL),
    "freeze": lambda n: os.kill(os.getpid(), signal.SIGSTOP),
    "stall": lambda n: time.sleep(3600),
    "garbage": lambda n: raw(b"Traceback (most recent call last):\n"),
    "binary": lambda n: raw(b"\xff\xfe\x00{}\n"),
    "endless": lambda n: raw(b"x" * (framing.MAX_LINE_BYTES + 10)),
    "half": lambda n: (raw(b'{"type":"answer","id":'), die(0)),
    "close": lambda n: (sys.stdout.buffer.close(), os.close(1), time.sleep(3600)),
    "wrong-id": lambda n: say(protocol.Reading(n + 7, "steady", Memory())),
    "wrong-type": lambda n: say(protocol.Reading(n, "steady", Memory())),
}


MARK = 0.123
"""A sample that an allergic worker does not bear."""


def allergen(payload: bytes) -> bool:
    """Whether a sound holds what an allergic worker does not bear: MARK, or what overflows on its
    way."""
    return any(abs(one - MARK) < 1e-6 or not abs(one) < 1e10 for one in array.array("f", payload))


def changed(act: str, answer: protocol.Answer) -> protocol.Answer:
    """Return an answer that says or costs something else than a good one."""
    heard = answer.hypothesis
    if act == "deaf":
        heard = msgspec.structs.replace(heard, text="", words=[])
    elif act == "garbled":
        words = [msgspec.structs.replace(heard.words[0], text="garbled"), *heard.words[1:]]
        heard = msgspec.structs.replace(
            heard, text=" ".join(word.text for word in words), words=words
        )
    elif act == "hostile":
        texts = json.loads(Path(os.environ["FAKE_WORKER_WORDS"]).read_text())
        words = [
            protocol.Word(text, (-1) ** at * 10**18, (-2) ** 62, 1e300)
            for at, text in enumerate(texts)
        ]
        heard = protocol.Hypothesis("\n".join(texts), words, -5, 10**18, heard.precision)
    seconds = 90.0 if act == "slow-answers" else answer.seconds
    return msgspec.structs.replace(answer, hypothesis=heard, seconds=seconds)


ON_SEVERAL: dict[str, Callable[[int], object]] = {
    "crowded": lambda n: say(protocol.Failed("out-of-memory", "CUDA out of memory", id=n)),
    "die-between": lambda n: die(9),
    "nan-between": lambda n: say(protocol.Failed("non-finite", "the encoder put out nan", id=n)),
    "slow": lambda n: time.sleep(3600),
}
"""What happens after the first answer to several buffers."""


def raw(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def say(message: protocol.Reply) -> None:
    framing.write(sys.stdout.buffer, message)


def main() -> int:
    frame = framing.read_request(sys.stdin.buffer)
    assert frame is not None
    start = frame[0]
    assert isinstance(start, protocol.Start)
    act = script(start)
    if (
        start.device != "cpu" and "FAKE_DEVICE" in os.environ
    ):  # as CUDA does, for as long as the process lives
        os.open(os.environ["FAKE_DEVICE"], os.O_RDONLY)
    if act == "graphs":  # of a worker whose graphs lose it its card
        act = "lost" if start.graphs else "ok"
    print("a line of noise on stderr", file=sys.stderr, flush=True)
    ON_BEGIN.get(act, lambda: None)()
    say(protocol.Progress("import"))
    if gate := os.environ.get("FAKE_WORKER_GATE"):
        Path(gate).with_name("started").touch()
    if act == "gate":
        while not os.path.exists(os.environ["FAKE_WORKER_GATE"]):
            time.sleep(0.01)
        say(protocol.Progress("load"))
    if act in ON_LOAD:
        ON_LOAD[act]()
        return 70
    say(ready(start, act))
    while (frame := framing.read_request(sys.stdin.buffer)) is not None:
        message, payload = frame
        if isinstance(message, protocol.Stop):
            return 0
        if isinstance(message, protocol.Measure) and act.startswith("measuring:"):
            ON_BUFFER[act.partition(":")[2]](message.id)
        elif isinstance(message, protocol.Measure):
            read = memory(start)
            read = msgspec.structs.replace(read, process=1 << 40) if act == "heavy" else read
            say(protocol.Reading(message.id, message.phase, read))
        elif isinstance(message, protocol.Encode):
            say(protocol.Encoded(message.id, payload[: protocol.MAX_ENCODED_BYTES]))
        elif (
            isinstance(message, protocol.Recognize)
            and act.startswith("allergic:")
            and allergen(payload)
        ):
            ON_BUFFER[act.partition(":")[2]](message.id)
        elif isinstance(message, protocol.Recognize) and act in ON_BUFFER:
            ON_BUFFER[act](message.id)
        elif isinstance(message, protocol.Recognize):
            answers = list(hear(message, payload, start.precision.name, act))
            if act in ON_SEVERAL and len(answers) > 1:
                say(answers[0])
                ON_SEVERAL[act](message.id)
            else:
                for answer in answers:
                    say(changed(act, answer))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
