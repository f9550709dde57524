"""A stand-in for engine.Engine that keeps the same contract, asserts that its caller does, and
hears what it is told.

A clip is known by its length in samples: `Script.texts` maps lengths to what FP32 hears,
`Script.heard` changes single clips per strategy. Latency, memory and failures are set per strategy;
nothing sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from asrd import protocol
from asrd.errors import AsrdError, AudioError, EngineError
from asrd.precision import memory
from asrd.precision.plan import Plan, Rejected, for_family
from asrd.precision.strategies import Precision

MIB = 1 << 20
WEIGHTS = 40 * MIB


@dataclass
class Script:
    """What the workers of one comparison will do."""

    texts: dict[int, str] = field(default_factory=dict)
    heard: dict[str, dict[int, str]] = field(default_factory=dict)
    """Strategy -> length of a clip -> another text."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Strategy -> seconds for one buffer; 0.1 otherwise."""
    steady: dict[str, int] = field(default_factory=dict)
    """Strategy -> bytes of the process in the steady state; 900 MiB otherwise."""
    astray: dict[str, float] = field(default_factory=dict)
    """Strategy -> relative error of the encoder's output."""
    broken: dict[str, AsrdError] = field(default_factory=dict)
    """Strategy -> why it does not start."""
    lost: dict[str, int] = field(default_factory=dict)
    """Strategy -> length of the clip that ends its worker."""
    refused: dict[str, int] = field(default_factory=dict)
    """Strategy -> length of the clip that it cannot hear, and goes on."""
    interrupt: tuple[str, int] | None = None
    """Strategy and length of the clip at which Ctrl-C is pressed."""
    swallow: bool = False
    """Lose the cancellation, as asyncio.wait_for can."""
    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    requests: list[tuple[str, int, str]] = field(default_factory=list)
    """Strategy, length, phase of each buffer."""

    def engine(self, plan: Plan, start: protocol.Start, *, on_progress=None) -> Engine:
        return Engine(self, plan, start, on_progress)


class Engine:
    def __init__(self, script: Script, plan: Plan, start: protocol.Start, on_progress) -> None:
        assert isinstance(start, protocol.Start)
        assert len(plan.candidates) == 1, (
            "a comparison must not fall to another candidate in silence"
        )
        self.script, self.candidate, self.on_progress = script, plan.candidates[0], on_progress
        self.name = self.candidate.precision.name
        self.ready: protocol.Ready | None = None
        self.rejected: list[Rejected] = []
        self.entered = self.gone = False

    async def __aenter__(self) -> Engine:
        assert not self.entered
        self.entered = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.entered
        self.script.stopped.append(self.name)

    def _lose(self, kind: str, detail: str) -> EngineError:
        self.gone = True
        self.rejected.append(Rejected(self.candidate.name, kind, detail))
        return EngineError("no candidate is left that could answer")

    async def _interrupt(self) -> None:
        if not self.script.swallow:
            raise KeyboardInterrupt
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    async def start(self) -> protocol.Ready:
        assert self.entered
        assert self.ready is None
        self.script.started.append(self.name)
        self.on_progress(protocol.Progress("import"))
        if self.name in self.script.broken:
            error = self.script.broken[self.name]
            raise (
                self._lose("unsupported", error.message)
                if isinstance(error, EngineError)
                else error
            )
        self.ready = ready(self.candidate.precision, self.candidate.device)
        return self.ready

    async def transcribe(
        self, samples, start: int = 0, phase: str = "final", context=None
    ) -> protocol.Answer:
        assert self.ready is not None
        assert not self.gone
        assert isinstance(samples, np.ndarray)
        assert samples.dtype == np.float32
        assert samples.ndim == 1
        assert samples.flags.c_contiguous
        length, script = len(samples), self.script
        script.requests.append((self.name, length, phase))
        if script.interrupt == (self.name, length):
            await self._interrupt()
        if script.lost.get(self.name) == length:
            raise self._lose("non-finite", "the encoder's output is not finite")
        if script.refused.get(self.name) == length:
            raise AudioError("this clip is too short to hear")
        own = script.heard.get(self.name, {})
        text = own.get(length, script.texts.get(length, ""))
        seconds = script.seconds.get(self.name, 0.1) * (0.5 if phase == "partial" else 1)
        return protocol.Answer(
            1, protocol.Hypothesis(text, [], start, start + length), seconds, seconds / 2, seconds
        )

    async def encode(self, samples) -> bytes:
        assert self.ready is not None
        assert not self.gone
        assert samples.dtype == np.float32
        found = np.arange(1, 9, dtype=np.float32)
        return (found * (1 + self.script.astray.get(self.name, 0.0))).tobytes()

    async def measure(self, phase: str) -> memory.Memory:
        assert self.ready is not None
        assert not self.gone
        return memory.Memory(
            self.ready.weights_bytes, process=self.script.steady.get(self.name, 900 * MIB)
        )


def ready(precision: Precision, device: str = "cpu") -> protocol.Ready:
    """What a worker of this precision would say of itself."""
    weights = WEIGHTS // 2 if precision.weights != "float32" else WEIGHTS
    features = "float32" if precision.features == "float32" else precision.weights
    encoder = precision.parts.get("encoder", precision.weights)
    decoder = for_family(precision, "aed").parts.get("decoder", precision.weights)
    effective = {"preprocessor": features, "encoder": encoder, "decoder": decoder}
    fallbacks = []
    if precision.quantize:
        fallbacks = [
            protocol.Fallback("encoder", "int8", precision.weights, "torchao is not installed")
        ]
    phases = {"import": 700, "load": 800, "cast": 820, "ready": 840}
    return protocol.Ready(
        requested=precision.name,
        effective=effective,
        fallbacks=fallbacks,
        device=device,
        device_name="A CPU",
        family="aed",
        target="nemo.EncDecMultiTaskModel",
        parameters=WEIGHTS // 4,
        weights_bytes=weights,
        ledger={phase: memory.Memory(weights, process=mib * MIB) for phase, mib in phases.items()},
        load_peak=memory.Memory(process=700 * MIB + 2 * weights),
        self_test=protocol.SelfTest("open the door", "open the door", 0.05, True),
        load_seconds=12.5,
        versions={"torch": "2.13.0", "nemo": "3.0.0"},
        pid=1,
    )
