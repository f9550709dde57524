"""Measure asrd by its ten ratios, beside everything else that runs the same model, in one run.

    tools/bench [--quick] [--json FILE] [--html FILE]

Exit code 0: every goal that was measured often enough to tell is met; 3: not all of them are.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # of the canary and the detector, both in this process

import asrd
from asrd.audio.format import SAMPLE_RATE
from asrd.errors import UsageError
from asrd.evaluation.manifest import Clip
from asrd.terminal.arguments import ProgramParser
from asrd.terminal.progress import RunProgress

from . import contenders, figures, page, ratios, service, sounds, speed, stopping, words
from .figures import Block, Ratio, Result
from .processes import Host
from .words import Plan

MODEL = "demo-ctc"

NAMES = {
    "A": "bare forward, greedy",
    "B": "NeMo transcribe()",
    "C": "NeMo buffered pipeline",
    "D": "onnx-asr",
    "E": "sherpa-onnx",
    "F": "onnxruntime alone",
    "G": "asrd",
}


class Size(NamedTuple):
    """How much is measured."""

    blocks: int
    stops: tuple[tuple[float, bool, float], ...]
    """Dictations: seconds, whether all of it is in real time, seconds of silence before the key."""
    idle: float
    """Seconds of watching, twice."""
    starts: int
    crowds: tuple[int, float]
    """How often, and for how many seconds each time."""
    utterances: int
    words: tuple[Plan, ...]
    lengths: tuple[float, ...]
    """Seconds of dictations of which the time from stop to text is compared."""
    whole: bool
    """Also what takes a model of the usual size, and Canary's contenders."""
    few: frozenset[str] = frozenset()
    """Ratios that so many repetitions cannot decide."""


QUICK = Size(
    blocks=10,
    stops=((10, True, 0), (10, True, 0.5), (60, False, 0), (120, False, 0)),
    idle=4.0,
    starts=1,
    crowds=(3, 0.7),
    utterances=120,
    words=(Plan(30, True, 3), Plan(30, False, 3)),
    lengths=(10, 120),
    whole=False,
    few=frozenset({"R2", "R5", "R8", "R9", "R10"}),
)
FULL = Size(
    blocks=40,
    stops=((10, True, 0), (10, True, 0.5)) * 6
    + ((10, True, 0),) * 4
    + (*((60, False, 0),) * 4, (120, True, 0), *((120, False, 0),) * 4),
    idle=45.0,
    starts=3,
    crowds=(8, 2.0),
    utterances=1500,
    words=tuple(
        Plan(seconds, pauses, joins)
        for seconds, joins in ((30, 16), (120, 6), (1200, 1))
        for pauses in (True, False)
    ),
    lengths=(10, 600, 3600, 10) * 3 + (10, 3600) * 2,
    whole=True,
)


class Bench:
    """One run.

    Args:
        size: how much of everything.
        only: the ratios that are wanted.
        threads: of every contender; asrd takes as many of them as it finds worth it.
        faults: seeded in asrd: leak or slow.
        folder: for everything that is written on the way.
        progress: where to tell.
    """

    def __init__(
        self,
        size: Size,
        only: set[str],
        threads: int,
        faults: Sequence[str],
        folder: Path,
        progress: RunProgress,
    ) -> None:
        self.size, self.only, self.threads, self.faults = size, only, threads, faults
        self.folder, self._progress = folder, progress
        self.ratios: dict[str, Ratio] = {}
        self.contenders: dict[str, Any] = {}
        self.machine: dict[str, Any] = {}
        self.versions: dict[str, str] = {
            "asrd": asrd.__version__,
            "python": platform.python_version(),
        }
        self._part = 0

    def run(self) -> None:
        """Measure everything that is wanted; first what wants the machine for itself."""
        if self.only & {"R2", "R5", "R6"}:
            self._daemon()
        if "R10" in self.only:
            self._lengths()
        if "R8" in self.only:
            self._growth()
        if self.only & {"R1", "R7", "R9"}:
            self._engine()
        if self.only & {"R3", "R4"}:
            self._sizes()
        for name in self.size.few & set(self.ratios):
            self.ratios[name].enough = False

    def _tell(self, name: str, total: int = 0) -> Callable[[Any], None]:
        """Begin a part; return what tells how far it is."""
        self._part += 1
        self._progress.begin(name, self._part)
        count = iter(range(1, 1 << 30))

        def told(so_far: Any) -> None:
            done = so_far if isinstance(so_far, int) else next(count)
            self._progress.step("measuring", done, total)

        return told

    def _host(self, kind: str, model: str = MODEL) -> Host:
        host = Host(kind, self.folder, model, self.threads)
        self.versions |= host.versions
        return host

    def _daemon(self) -> None:
        """R6, R5, R2: one daemon, nothing beside it until NeMo is asked for the same."""
        self._tell("R6, the start of the daemon")

        def make() -> service.Service:
            return service.Service(self.folder, MODEL, self.threads, *self.faults)

        starts = self.size.starts if "R6" in self.only else 0
        checkpoint = contenders.DATA / f"{MODEL}.nemo"
        found, daemon = service.start_ups(make, checkpoint, starts)
        if found:
            self.ratios["R6"] = ratios.start_up(found)
        try:
            if "R5" in self.only:
                self._tell("R5, a daemon that does nothing")
                self.ratios["R5"] = ratios.idleness(
                    **service.idleness(daemon, self.folder, self.size.idle)
                )
            if "R2" in self.only:
                tell = self._tell("R2, from the key to the text", len(self.size.stops))
                nemo = self._host("torch")
                self.ratios["R2"] = ratios.stops(
                    service.stops(daemon, nemo, self.folder, self.size.stops, tell)
                )
                nemo.close()
        finally:
            daemon.down()

    def _lengths(self) -> None:
        """R10: a daemon of its own, whose sink is the bench."""
        tell = self._tell("R10, from the key to the text, by length", len(self.size.lengths))
        daemon = service.Service(self.folder, MODEL, self.threads, *self.faults, sinks="stdout")
        daemon.up()
        try:
            self.ratios["R10"] = stopping.lengths(
                stopping.endings(daemon, self.folder, self.size.lengths, tell)
            )
        finally:
            daemon.down()

    def _growth(self) -> None:
        """R8: a daemon of its own, which is tidy."""
        tell = self._tell("R8, utterance after utterance", self.size.utterances)
        daemon = service.Service(self.folder, MODEL, self.threads, "tidy", *self.faults)
        daemon.up()
        try:
            self.ratios["R8"] = ratios.growth(
                service.endurance(daemon, self.folder, self.size.utterances, tell)
            )
        finally:
            daemon.down()

    def _engine(self) -> None:
        """R1, R7, R9: one engine, and the other contenders."""
        self._tell("asrd's engine")
        ours = speed.Ours(MODEL, self.threads, *self.faults)
        self.versions |= ours.ready.versions
        self.machine["cpu"] = ours.ready.device_name
        if "R1" in self.only:
            clips = chosen()
            seconds = {name: len(clip.samples) / SAMPLE_RATE for name, clip in clips.items()}
            blocks = self._blocks(ours, ["torch", "onnx"], MODEL, clips)
            self.ratios["R1"] = ratios.overhead(blocks, seconds)
            self.contenders[MODEL] = figures.table(blocks, seconds, NAMES)
            if self.size.whole:
                canary = speed.Ours("demo", self.threads, *self.faults)
                kept = self._blocks(canary, ["torch"], "demo", clips)
                self.contenders["demo"] = figures.table(
                    kept, seconds, NAMES | {"A": "bare forward, NeMo's decoder"}
                )
                canary.close()
        if "R7" in self.only:
            self._tell("R7, eight callers")
            some = sounds.near(sounds.clips(), 5, 16)
            many = self._host("many")
            way, nemo = speed.best_of_many(many, some, self.folder)
            self.ratios["R7"] = ratios.concurrency(
                speed.crowds(ours, some, *self.size.crowds, nemo), way
            )
            many.close()
        if "R9" in self.only:
            tell = self._tell("R9, words", len(self.size.words))
            self.ratios["R9"] = ratios.streaming(words.cases(ours, self.size.words, tell))
        ours.close()

    def _blocks(
        self, ours: speed.Ours, kinds: list[str], model: str, clips: dict[str, Clip]
    ) -> list[Block]:
        """Return the blocks that count; how many do not is told of the first model's."""
        count = self.size.blocks if model == MODEL else self.size.blocks // 2
        tell = self._tell(f"R1, {model} by everything that runs it", count)
        hosts = [self._host(kind, model) for kind in kinds]
        made = speed.blocks(ours, hosts, clips, self.folder, count, tell)
        for host in hosts:
            host.close()
        kept, dropped = figures.quiet(made)
        if model == MODEL:
            self.machine |= {
                "blocks": len(made),
                "dropped": dropped,
                "noisy": dropped > 0 and len(kept) == len(made),
            }
            self.machine["canary_ms"] = [
                round(1000 * one, 3) for block in made for one in block.canaries[1:]
            ]
        return kept

    def _sizes(self) -> None:
        """R3 and R4."""
        self._tell("R3, R4, weights and the load peak")
        half, full, _ = speed.sizes(MODEL, self.threads)
        large = None
        if self.size.whole and "R4" in self.only:
            file = speed.large(self.folder)
            *large, peak = speed.sizes(str(file), self.threads, self_test=False)
            self.ratios["R4"] = ratios.load_peak(
                peak, large[1], "a FastConformer of 108 million random weights"
            )
        if "R3" in self.only:
            self.ratios["R3"] = ratios.weights(half, full, large)


def chosen() -> dict[str, Clip]:
    """Return the clips of R1 by name: two of about ten seconds, one of about five, the shortest."""
    every = sounds.clips()
    clips = [*sounds.near(every, 10, 2), *sounds.near(every, 5, 1), *sounds.near(every, 1, 1)]
    return {f"{clip.line:04d}, {len(clip.samples) / SAMPLE_RATE:.1f} s": clip for clip in clips}


EPILOG = """exit codes: 0 every goal that was measured often enough to tell is met, 2 wrong command line, 3 some goal is
missed."""


def arguments() -> ProgramParser:
    """Return what the command line takes."""
    cores = len(os.sched_getaffinity(0))
    parser = ProgramParser("tools/bench", description=str(__doc__).splitlines()[0], epilog=EPILOG)
    parser.add_argument(
        "--quick", action="store_true", help="three minutes instead of twenty; leaves R4 out"
    )
    parser.add_argument("--only", metavar="R1,R8", help="these ratios alone")
    parser.add_argument("--threads", type=int, default=cores,
                        help=f"of every contender; asrd may take fewer (default {cores}, the cores)")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures there")
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="also write a page with plots there"
    )
    fault = parser.add_mutually_exclusive_group()
    fault.add_argument("--seed-leak", dest="fault", action="store_const", const="leak", default="",
                       help="let asrd's worker keep 10 KiB of each utterance: R8 has to notice")  # fmt: skip
    fault.add_argument("--seed-slow", dest="fault", action="store_const", const="slow",
                       help="let asrd's worker take 10 %% longer: R1 has to notice")  # fmt: skip
    fault.add_argument("--seed-reread", dest="fault", action="store_const", const="reread",
                       help="let asrd read all of a recording before its text: R10 has to notice")  # fmt: skip
    return parser


def main() -> int:
    """Measure, print the table, write the files; return the exit code."""
    parser = arguments()
    args = parser.parse_args()
    wanted = set(filter(None, (args.only or "").upper().split(","))) or set(page.NAMES)
    if unknown := wanted - set(page.NAMES):
        wrong = ", ".join(sorted(unknown))
        parser.stop(
            UsageError(
                f"there is no ratio {wrong}", "name some of R1 to R10: tools/bench --only R1,R8"
            )
        )
    size = QUICK if args.quick else FULL
    if args.quick and (shows := {"leak": "R8", "reread": "R10"}.get(args.fault)):
        wrong = f"--seed-{args.fault} shows in {shows} alone, which --quick cannot decide"
        parser.stop(UsageError(wrong, "leave --quick out"))
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": args.threads,
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
        "mode": "quick" if args.quick else "full",
        "seeded": args.fault,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(["tools/bench", *sys.argv[1:]]),
    }
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="asrd-bench-") as folder,
        RunProgress(parts(size, wanted)) as progress,
    ):
        bench = Bench(
            size, wanted, args.threads, [args.fault] if args.fault else [], Path(folder), progress
        )
        bench.run()
    machine |= bench.machine | {"seconds": round(time.monotonic() - began, 1)}
    found = {name: bench.ratios[name] for name in page.NAMES if name in bench.ratios}
    result = Result(found, bench.contenders, machine, bench.versions)
    terminal = sys.stdout.isatty()
    print(page.table(result, os.get_terminal_size().columns if terminal else 140, colour=terminal))
    if args.json:
        args.json.write_bytes(page.to_json(result))
    if args.html:
        args.html.write_text(page.html(result))
    return 0 if result.met else 3


def parts(size: Size, wanted: set[str]) -> int:
    """Return how many parts a run has, for its bars."""
    daemon = len(wanted & {"R2", "R5", "R8", "R10"}) + bool(wanted & {"R2", "R5", "R6"})
    engine = (
        len(wanted & {"R1", "R7", "R9"})
        + bool(wanted & {"R1", "R7", "R9"})
        + (size.whole and "R1" in wanted)
    )
    return daemon + engine + bool(wanted & {"R3", "R4"})


if __name__ == "__main__":
    sys.exit(main())
