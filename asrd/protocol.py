"""What crosses between the daemon and its worker: each message as a type.

Defines the shapes of messages; how they lie on a pipe is `framing`. Runs on both sides; imports
neither torch nor numpy.

Audio is float32, mono, 16 kHz, little endian. Positions are integer sample indices on the one clock
of the program.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from asrd.precision.memory import Memory
from asrd.precision.strategies import Precision

PROTOCOL_VERSION = 4
"""Both sides say it in their first message; a worker of another version is refused."""

MAX_ENCODED_BYTES = 640 << 10
"""Bytes of encoder output in one answer, which is a line: 12 s of an encoder that is 1,024 wide."""


class Word(msgspec.Struct, frozen=True, gc=False):
    """One word and where it was spoken."""

    text: str
    start: int
    """First sample."""
    stop: int
    """One past the last sample."""
    confidence: float | None = None
    """Probability in 0..1, the lowest of the word's tokens; None where the decoder gives none."""
    joined: bool = False
    """No space stands before it, as in scripts without spaces, or where it is a piece of one long
    word."""
    same_token: bool = False
    """Its beginning and the end of the word before are one token, so that a decoder says either
    both or none."""


class Hypothesis(msgspec.Struct, frozen=True):
    """The text of one buffer, and when each word was spoken."""

    text: str
    words: list[Word]
    start: int
    """First sample of the buffer."""
    stop: int
    """One past the buffer's last sample."""
    precision: str = ""
    """Name of the candidate that answered."""
    truncated: bool = False
    """True when the decoder ran on or looped and was cut by the guard."""
    resumed: bool = False
    """True where decoding went on behind `DecodingContext`: of what was final, nothing is in it
    again."""


class Fallback(msgspec.Struct, frozen=True):
    """A component that does not run as asked, and why."""

    component: str
    wanted: str
    got: str
    reason: str


def fallback_reasons(fallbacks: Sequence[Fallback]) -> str:
    """Return one clause for each reason, with all the components that share it; "" where all runs
    as asked."""
    groups: dict[str, list[str]] = {}
    for one in fallbacks:
        reason = f"{one.wanted} asked, {one.got} runs: {one.reason.rstrip('.')}"
        groups.setdefault(reason, []).append(one.component)
    return "; ".join(f"{', '.join(components)}: {reason}" for reason, components in groups.items())


class SelfTest(msgspec.Struct, frozen=True):
    """The shipped clip, as this worker transcribed it."""

    expected: str
    text: str
    seconds: float
    """Compute time of the clip, after warm-up."""
    passed: bool
    """Finite encoder output and text on clear speech; on the shipped demo models, the expected
    words."""


# -- from the daemon to the worker
# ------------------------------------------------------------------------------------


class Start(msgspec.Struct, tag="start", frozen=True):
    """First message: everything a worker is for life."""

    model: str
    """A path to a .nemo file, a shipped name (demo, demo-ctc, demo-tdt) or a hub name
    (owner/name)."""
    precision: Precision
    device: str = "cpu"
    """cpu, or cuda:N."""
    source_lang: str = "en"
    target_lang: str = "en"
    pnc: bool | None = None
    """Ask Canary for punctuation and capitals, or for none; None: as the checkpoint's own prompt
    does."""
    vocabulary: tuple[str, ...] = ()
    """Phrases that are preferred where the audio leaves a choice."""
    boost: float = 0.0
    """How much, in nats a token; 0 is not at all."""
    timestamps_model: bool = False
    """Load the second, hidden FP32 model that newer Canary files carry for their own timestamps."""
    threads: int = 0
    """CPU threads for torch; 0 is one for a small model and torch's choice, every core, for
    others."""
    vram_limit: int = 0
    """Bytes of the card that the whole process may hold, the CUDA context among them; 0 is no
    limit."""
    self_test: bool = True
    graphs: bool = True
    """On a card, replay whole steps of the encoder and the decoder as CUDA graphs where that is
    possible."""
    faults: str = ""
    """Failures to rehearse, as in `faults.parse`; "" for none."""
    path: str = ""
    """The .nemo file that `model` names. Where it is empty, the worker looks the name up, without
    the network."""
    protocol: int = PROTOCOL_VERSION


class DecodingContext(msgspec.Struct, frozen=True):
    """What is final already of the speech that a buffer goes on with. A decoder that can goes on
    behind it."""

    text: str
    """Its last words, one at least."""
    until: int
    """One past the last sample of the last of them, which lies in the buffer."""


class Buffer(msgspec.Struct, frozen=True):
    """One of the buffers of a Recognize."""

    start: int
    """Sample index of its first sample."""
    size: int
    """Bytes of its samples."""
    context: DecodingContext | None = msgspec.field(default=None, name="said")
    """None where its speech begins in it; named as protocol 4 has it on the wire."""


class Recognize(msgspec.Struct, tag="recognize", frozen=True):
    """Asks for one buffer, or for several to be computed together; their samples follow as payload,
    in order.

    Each is answered by an Answer of its own, in order, or all of them by one Failed.
    """

    id: int
    buffers: list[Buffer]
    phase: str = "final"
    """warmup, draft or final; a phased precision treats them differently."""

    @property
    def payload(self) -> int:
        """Bytes that follow the line."""
        return sum(buffer.size for buffer in self.buffers)


class Encode(msgspec.Struct, tag="encode", frozen=True):
    """Asks what the encoder puts out for one buffer; its samples follow as payload."""

    id: int
    size: int
    """Bytes of its samples."""


class Measure(msgspec.Struct, tag="measure", frozen=True):
    """Asks for a reading of the ledger, to be kept under `phase`."""

    id: int
    phase: str


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Asks the worker to end."""


# -- from the worker, or a download, to the daemon
# --------------------------------------------------------------------


class Download(msgspec.Struct, frozen=True):
    """How far the download of a model has come."""

    model: str
    """Its name on the hub."""
    bytes: int
    """Of its file that are here."""
    total: int | None
    """Bytes of the whole file; None where the server does not say."""
    note: str = ""
    """What the download waits for; empty while bytes arrive."""

    @property
    def text(self) -> str:
        """The figures for a person."""
        text = f"{self.model}: {self._size}"
        if self.note:
            text += f" ({self.note})"
        return text

    @property
    def kept(self) -> str:
        """What stays of a download that ends before its time, and what becomes of it."""
        return f"{self._size} of {self.model} are kept; the next download continues from there"

    @property
    def _size(self) -> str:
        """The size of what is here, and of the whole where the server says it."""
        if self.total is None:
            return decimal(self.bytes)
        return f"{decimal(self.bytes)} of {decimal(self.total)}"


def decimal(count: int) -> str:
    """Return bytes as the hub shows them: decimal megabytes and gigabytes."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.1f} MB"


class Progress(msgspec.Struct, tag="progress", frozen=True):
    """Loading goes on; resets the engine's load deadline."""

    stage: str
    """download, import, restore, cast, move, warm-up or self-test."""
    detail: str = ""
    fraction: float | None = None
    """0..1; None where the stage has no measure."""
    download: Download | None = None
    """Of the stage download, which is another process than the worker."""


class Downloaded(msgspec.Struct, tag="downloaded", frozen=True):
    """The last message of a download process that succeeded."""

    path: str
    """The .nemo file in the hub's cache."""


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The worker has passed its self-test. What is effective was read back from the model, not copied from
    the request."""

    requested: str
    effective: dict[str, str]
    """Component -> dtype of its weights, "X as Y" where the arithmetic was seen to run in another
    dtype Y."""
    fallbacks: list[Fallback]
    device: str
    device_name: str
    family: str
    """ctc, rnnt, tdt, hybrid or aed."""
    target: str
    """Class of the checkpoint, as its config names it."""
    parameters: int
    weights_bytes: int
    ledger: dict[str, Memory]
    """By phase: import, load, cast, ready."""
    load_peak: Memory
    """Highest figures seen while loading."""
    self_test: SelfTest | None
    load_seconds: float
    """From the start of the worker's process; the worker itself counts from the model's file on."""
    versions: dict[str, str]
    pid: int
    streaming: str = "buffer"
    """What a partial buffer costs: buffer, all of it each time; cache-aware, what is new since the last
    one."""
    graphs: dict[str, str] = {}
    """encoder, decoder -> what of it is replayed as CUDA graphs, and why not more; empty where none
    are wanted."""
    remarks: list[str] = []
    """What of the model file's config was passed on unknown, or left empty."""
    protocol: int = PROTOCOL_VERSION


class Answer(msgspec.Struct, tag="answer", frozen=True):
    """The hypothesis for one buffer, and what it cost: of several that were asked together, an
    equal share."""

    id: int
    hypothesis: Hypothesis
    seconds: float
    """Wall time inside the worker from samples to words."""
    encoder_seconds: float
    cpu_seconds: float
    headroom: float | None = None
    """Largest |encoder output| over 65504, the largest float16."""
    tokens: int = 0
    """Tokens of the text that the decoder wrote."""


class Reading(msgspec.Struct, tag="reading", frozen=True):
    """Answers Measure."""

    id: int
    phase: str
    memory: Memory


class Encoded(msgspec.Struct, tag="encoded", frozen=True):
    """Answers Encode."""

    id: int
    values: bytes
    """float32, all dimensions of the first frame, then of the next; as many whole frames as fit
    into MAX_ENCODED_BYTES bytes."""


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The worker could not do it. `id` is None while loading."""

    kind: str
    """What went wrong.

    out-of-memory; budget, the limit is too low; non-finite; self-test; unsupported, this precision
    here; no-device, the card under any precision; device-lost, it was there and a new process may
    get it back; model, audio, network, disk, usage or internal.
    """
    detail: str
    """One sentence."""
    hint: str = ""
    id: int | None = None
    trace: str = ""
    """The traceback, for --debug."""
    component: str = ""
    """Of kind non-finite: the first module whose output was not, as `parts` would name it."""


Request = Start | Recognize | Encode | Measure | Stop
Reply = Progress | Downloaded | Ready | Answer | Encoded | Reading | Failed
