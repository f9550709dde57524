"""What a comparison found: its values, and in words what each of them means.

Knows the shape of results only; `verdict` fills them, `report` shows them. Word error rates and
their differences are percent and percentage points throughout; memory is bytes, latency
milliseconds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from asrd.precision.ledger import MEMORY_RESOLUTION
from asrd.precision.memory import Memory
from asrd.precision.strategies import Precision
from asrd.protocol import Ready, SelfTest
from asrd.scoring import BOOTSTRAP_RESAMPLES, FEWEST_UTTERANCES, Percentiles

SCHEMA = 3
"""Version of the JSON; grows when a key changes its name or its meaning."""

RESOLUTION = 0.25
"""Points of WER that too little speech may have missed under any bound: none proves that not one
word ever changes."""

GROWTH_BYTES = 64 << 20
"""Bytes that a worker may gain, beyond what FP32's gains, from the timed buffers to the end of the
manifest."""

Verdict = Literal["better", "same", "worse", "undecided"]
Role = Literal["baseline", "again", "asked", "component"]
"""component: one component put down by itself, which shows a price and is not judged as a
strategy."""

DEFINITIONS = {
    "wer": "Word error rate in percent: word edits over reference words, summed over all utterances (jiwer), after the "
    "Whisper normaliser on both sides, before which typography is made one (apostrophes, dashes, invisible signs, "
    "compatibility forms, digits; Arabic vowel signs and Hebrew points left out). An utterance without an answer "
    "counts as an empty one.",
    "metric": "WER, or CER: a character error rate, where most letters of the references are of scripts without "
    "spaces. Every figure that counts words then counts characters, under its name as ever.",
    "wer_delta": "WER minus FP32's on the same utterances, in absolute percentage points.",
    "wer_delta_ci": "95 % interval of wer_delta: paired bootstrap over utterances, "
    f"{BOOTSTRAP_RESAMPLES} resamples, fixed seed. None below {FEWEST_UTTERANCES} utterances, where a "
    "bootstrap says nothing. No change in N utterances gives [0, 0]; it still leaves "
    "room for a change in 3/N of all utterances.",
    "changed_per_100": "Word edits between this hypothesis and FP32's, per 100 words of FP32's. It sees changes that "
    "cancel out in the WER.",
    "changed_ci": "95 % interval of changed_per_100, by the same bootstrap, and with the same limits.",
    "encoder_error": "Root mean square of the difference between the encoder's output and FP32's for the fixed buffer "
    "of 10.000 s, over the root mean square of FP32's; measured where components are. It sees what no word shows.",
    "saved": "FP32's weights_bytes minus this row's.",
    "noise_floor": "What FP32 differs from itself in this same run. wer, changed_per_100: first against second FP32 "
    "run. latency: largest relative difference among three FP32 runs (the last one after all strategies), at least the "
    "95 % interval of the median within the first. memory: the same of steady process memory, at least "
    f"{MEMORY_RESOLUTION >> 20} MiB, by which two runs of one program differ for no reason.",
    "verdict": "On words alone. worse: the whole interval lies above the noise floor. better: the whole interval lies "
    "below minus the noise floor. same: no word changed, or the whole interval lies within plus/minus the limit of "
    "wer_delta; and there are words enough that even the upper 97.5 % bound of what so few changes leave open "
    f"(Wilson's, for a difference of counts) lies within that limit, or within {RESOLUTION:g} points where it is less. "
    "undecided: everything else; more speech would decide.",
    "passed": "Every required criterion is met. A strategy can be worse and pass: a real price, within the limit.",
    "weights_bytes": "Exact bytes of the model's parameters and buffers, counted in the worker.",
    "ledger": "Bytes by phase, each from its own instrument: allocated and reserved from torch, process from NVML for "
    "the worker's pid (on the CPU: its anonymous resident memory), device from NVML for the whole card. Phases: import "
    "(program, no model), load, cast, ready, warm-up (after the first buffers), steady (after the timed buffers), "
    "after (after the whole manifest). `kind` says what process is: anonymous (main memory, private to the worker), "
    "gpu (by NVML, of the process) or gpu-change (of the whole card); resident: with what the process shares.",
    "growth_bytes": "What the worker gained from steady to after, by the same instrument.",
    "load_peak_over_weights": "On a GPU: highest torch-allocated bytes while loading (NVML's process bytes where torch "
    "cannot tell), over weights_bytes. On the CPU: (highest resident bytes while loading - resident bytes after "
    "import) over weights_bytes.",
    "latency_ms": "Milliseconds inside the worker from samples to words for one fixed buffer of 10.000 s (the first "
    "clips of the manifest, joined), after warm-up; percentiles over the repeats.",
    "round_trip_ms": "The same buffers seen from the asking process: pipes and scheduling included.",
    "cpu_ms": "Processor time of the worker for the same buffers, all threads; other programs disturb it less.",
    "rtfx": "Seconds of speech in the manifest over seconds of compute in the worker.",
    "effective": "Component -> dtype, read back from the loaded model. 'X as Y': stored as X, seen to compute in Y.",
}
"""What each figure means, in words; a report carries them with it."""


# -- what was measured
# ------------------------------------------------------------------------------------------------


class Run(msgspec.Struct):
    """Everything one worker showed, before any judgement; filled in while it runs."""

    precision: Precision
    role: Role
    ready: Ready | None = None
    """None: the worker never became ready."""
    ledger: dict[str, Memory] = {}
    """Phases after ready: warm-up, steady, after."""
    latency: list[float] = []
    """Seconds in the worker for the fixed buffer, one per repeat."""
    cpu: list[float] = []
    """Processor seconds of the worker for the same buffers."""
    round_trip: list[float] = []
    """Seconds for the same requests, seen from outside."""
    texts: list[str | None] = []
    """Hypothesis per clip; None where that clip failed. Shorter than the manifest: the worker was
    lost there."""
    compute: float = 0.0
    """Seconds in the worker for `texts`."""
    partial_texts: list[str] = []
    """Hypotheses of partial results, for a precision that has one of its own."""
    partial_latency: list[float] = []
    failure: str = ""
    """Why it did not start, or stopped; one sentence."""
    component: str = ""
    """What was put down by itself, and to what; empty for a strategy."""
    dtype: str = ""
    encoded: bytes = b""
    """The encoder's output for the fixed buffer, float32 frame by frame; empty where nobody asked
    for it."""


# -- what a report says
# -----------------------------------------------------------------------------------------------


class Criterion(msgspec.Struct, frozen=True):
    """One bound and how a strategy stands to it."""

    name: str
    limit: float
    value: float | None
    """None: could not be measured; then it is not met."""
    passed: bool
    required: bool = True
    """False: shown, but does not decide."""


class Bound(msgspec.Struct, frozen=True):
    """A criterion as it holds for every row."""

    name: str
    limit: float
    meaning: str
    required: bool = True


class NoiseFloor(msgspec.Struct, frozen=True):
    """What FP32 differs from itself; None where the second run gave no figure."""

    wer: float | None = None
    """Percentage points."""
    changed_per_100: float | None = None
    latency: float | None = None
    """Relative: 0.05 is five percent."""
    memory: float | None = None
    """Relative."""
    fp32_p50_ms: list[float] = []
    """The median latencies behind `latency`, in the order they were taken."""


class Change(msgspec.Struct, frozen=True):
    """One utterance whose text differs from FP32's; all three normalised."""

    utterance: int
    """Position among the compared clips, from 0."""
    reference: str
    baseline: str
    hypothesis: str


class PartialFigures(msgspec.Struct, frozen=True):
    """Partial results of a strategy that computes them in a dtype of their own."""

    latency_ms: Percentiles | None
    wer: float | None
    changed_per_100: float | None
    """Against FP32's texts of the same clips."""
    changed_ci: tuple[float, float] | None = None


class StrategyResult(msgspec.Struct, frozen=True):
    """One strategy, judged. See DEFINITIONS for what each figure means."""

    strategy: str
    role: Role
    requested: str
    effective: dict[str, str]
    fallback_reason: str
    """Why components do not run as asked; empty where they do."""
    weights_bytes: int | None
    ledger: dict[str, Memory]
    load_peak: Memory | None
    load_peak_over_weights: float | None
    load_seconds: float | None
    latency_ms: Percentiles | None
    round_trip_ms: Percentiles | None
    rtfx: float | None
    wer: float | None
    wer_delta: float | None
    wer_delta_ci: tuple[float, float] | None
    changed_per_100: float | None
    utterances: int
    """Utterances that were answered."""
    words: int
    """Reference words of all utterances of the manifest."""
    errors: int
    """Utterances without an answer; 1 where the worker failed before the first."""
    failure: str
    verdict: Verdict
    passed: bool
    criteria: list[Criterion]
    cpu_ms: Percentiles | None = None
    changes: list[Change] = []
    changed_utterances: int = 0
    self_test: SelfTest | None = None
    partial_results: PartialFigures | None = None
    component: str = ""
    """What was put down by itself; empty for a strategy."""
    dtype: str = ""
    """What it was put down to."""
    changed_ci: tuple[float, float] | None = None
    encoder_error: float | None = None
    """Relative: 0.01 is one percent."""
    growth_bytes: int | None = None


class Skipped(msgspec.Struct, frozen=True):
    """A line of the manifest that was left out."""

    line: int
    reason: str


class Speech(msgspec.Struct, frozen=True):
    """The speech that was compared on."""

    path: str
    utterances: int
    words: int
    seconds: float
    language: str
    skipped: list[Skipped] = []
    metric: str = "WER"
    """CER where most letters are of scripts without spaces: there `wer`, `words` and the rest count
    characters."""

    @property
    def units(self) -> str:
        """What its figures count, in the plural."""
        if self.metric == "CER":
            return "characters"
        return "words"


class Comparison(msgspec.Struct, frozen=True):
    """The one result; table, JSON and HTML are functions of it."""

    model: str
    device: str
    versions: dict[str, str]
    noise_floor: NoiseFloor
    criteria: list[Bound]
    rows: list[StrategyResult]
    partial: bool
    """True: interrupted; `rows` holds what was complete."""
    unfinished: list[str]
    """Strategies that were asked for and not measured."""
    manifest: Speech
    device_name: str = ""
    family: str = ""
    target: str = ""
    parameters: int = 0
    repeats: int = 0
    threads: int = 0
    started: str = ""
    """ISO 8601, UTC."""
    seconds: float = 0.0
    """Wall time of the whole comparison."""
    command: str = ""
    metric: str = "WER"
    """As the manifest's."""
    definitions: dict[str, str] = msgspec.field(default_factory=DEFINITIONS.copy)
    schema: int = SCHEMA

    @property
    def baseline(self) -> StrategyResult | None:
        """The first FP32 row; None where it was interrupted before."""
        for row in self.rows:
            if row.role == "baseline":
                return row
        return None

    @property
    def asked(self) -> list[StrategyResult]:
        """The rows that are judged: strategies but the FP32 runs that set the baseline and the
        noise floor."""
        return [row for row in self.rows if row.role == "asked"]

    @property
    def strategies(self) -> list[StrategyResult]:
        """The rows of whole strategies, FP32's among them."""
        return [row for row in self.rows if row.role != "component"]

    @property
    def components(self) -> list[StrategyResult]:
        """The rows in which one component went down by itself."""
        return [row for row in self.rows if row.role == "component"]
