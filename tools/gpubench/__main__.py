"""Measure what every precision strategy needs and costs on a GPU, in fresh workers, alone on the
card.

    tools/gpu-bench [--json FILE] [--minutes N] [--models a,b] [--strategies a,b] [--device cuda:0]

Goes on where it was stopped: what stands in the JSON file is not measured again on the same
machine, with --rerun unless another program was measured. Exit code 0: all of it is measured; 3:
time was over first, or something failed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import asrd
from asrd.audio.format import SAMPLE_RATE
from asrd.errors import AsrdError, UsageError, nearest
from asrd.evaluation import manifest
from asrd.precision import gpus
from asrd.precision.strategies import find, index_of
from asrd.terminal.arguments import ProgramParser
from asrd.terminal.output import complain

from . import architectures, cells, tables
from .cells import LENGTHS, SHIPPED, UNTIMED, Cell, Found, Result
from .measuring import Bench, Repeats, Sounds

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "asrd" / "data" / "eval" / "manifest.jsonl"
MODELS = (*SHIPPED, *architectures.NAMES)
QUICK = Repeats(timed=3, batches=1, growth=20)


EPILOG = """exit codes: 0 all was measured, 2 wrong command line, 3 something failed or time was over, 78 unknown
strategy."""


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = ProgramParser(
        "tools/gpu-bench", description=(__doc__ or "").split("\n\n")[0], epilog=EPILOG
    )
    parser.add_argument(
        "--json", metavar="FILE", type=Path, default=ROOT / "tools" / "results" / "gpu.json"
    )
    parser.add_argument(
        "--minutes", metavar="N", type=float, default=9.5, help="begin nothing after so long (9.5)"
    )
    every = ", ".join(MODELS)
    parser.add_argument(
        "--models", metavar="a,b", default=",".join(MODELS), help=f"all without it: {every}"
    )
    parser.add_argument("--strategies", metavar="a,b", help="only these")
    parser.add_argument(
        "--cells",
        metavar="KIND,...",
        help="only these kinds: strategy,eager,words,growth,nemo,naive",
    )
    parser.add_argument(
        "--rerun",
        action="store_true",
        help="again what was measured of another state of asrd's code",
    )
    parser.add_argument(
        "--device", default="cuda:0", help="cuda:N, or cpu to try the bench itself (cuda:0)"
    )
    parser.add_argument(
        "--folder",
        metavar="DIR",
        type=Path,
        default=ROOT / "build" / "gpu-bench",
        help="for models",
    )
    parser.add_argument(
        "--clips", metavar="N", type=int, help="hear only so many of the shipped clips"
    )
    parser.add_argument("--quick", action="store_true", help="few repeats, to try the bench itself")
    parser.add_argument(
        "--spares", metavar="N", type=int, default=max(1, min(6, (os.cpu_count() or 2) // 2))
    )
    parser.add_argument(
        "--table", action="store_true", help="only print the tables of what the file holds"
    )
    return parser.parse_args()


def main() -> int:
    """Measure, print the tables, and return the exit code."""
    args = arguments()
    if args.table:
        result = cells.read(args.json)
        print(tables.text(result) if result else f"{args.json} is not there")
        return 0
    try:
        wanted = _wanted(args)
        result = _result(args)
    except AsrdError as error:
        complain(error)
        return error.exit_code

    def stands(cell: Cell) -> bool:
        found = result.cells.get(cell.name)
        if found is None or found.failure or (args.rerun and found.code != _digest()):
            return False
        return found.checkpoint == cells.digest(cell.model)

    todo = [cell for cell in wanted if not stands(cell)]
    asyncio.run(_run(args, todo, result))
    print(tables.text(result))
    failed = [
        cell.name
        for cell in wanted
        if cell.name in result.cells and result.cells[cell.name].failure
    ]
    missing = [cell.name for cell in wanted if not stands(cell) and cell.name not in failed]
    for name in failed:
        print(f"failed: {name}: {result.cells[name].failure}", file=sys.stderr)
    if missing:
        print(
            f"time was over before {len(missing)} of {len(wanted)}: run it again to go on",
            file=sys.stderr,
        )
    return 3 if failed or missing else 0


def _wanted(args: argparse.Namespace) -> list[Cell]:
    models = [word.strip() for word in args.models.split(",")]
    for name in models:
        if name not in MODELS:
            raise UsageError(
                f"unknown model {name!r}", nearest(name, tuple(MODELS), "tools/gpu-bench --help")
            )
    strategies = (
        [find(word.strip()).name for word in args.strategies.split(",")]
        if args.strategies
        else None
    )
    kinds = args.cells.split(",") if args.cells else None
    found = cells.cells(models, strategies)
    return [cell for cell in found if kinds is None or cell.kind in kinds]


def _result(args: argparse.Namespace) -> Result:
    """Return the results so far, or empty ones of this machine."""
    clips, _ = manifest.read(MANIFEST, args.clips)
    said, seconds = (
        [clip.text for clip in clips],
        sum(len(clip.samples) for clip in clips) / SAMPLE_RATE,
    )
    command = shlex.join(["tools/gpu-bench", *_told(sys.argv[1:])])
    started = datetime.now(UTC).isoformat(timespec="seconds")
    fresh = Result(_machine(args.device), _versions(), command, started, said, seconds)
    earlier = cells.read(args.json)
    if earlier is None:
        return fresh
    if earlier.key != fresh.key or earlier.clips != fresh.clips:
        raise UsageError(
            f"{args.json} holds another machine's results", "name another file with --json"
        )
    return earlier


def _told(words: Sequence[str]) -> list[str]:
    """Return a command line without the paths of one machine, which decide nothing of what is
    measured."""
    paths = ("--json", "--folder")
    follows = {number + 1 for number, word in enumerate(words) if word in paths}
    return [
        word
        for number, word in enumerate(words)
        if number not in follows and word.partition("=")[0] not in paths
    ]


def _machine(device: str) -> dict[str, str]:
    found = {"system": f"{platform.system()} {platform.machine()}", "cores": str(os.cpu_count())}
    if device == "cpu":
        return found | {"gpu": "none"}
    index = index_of(device)
    cards = {card.index: card for card in gpus.gpus()}
    if index not in cards:
        raise UsageError(
            f"there is no {device} here", "nvidia-smi lists the cards; --device cpu tries the bench"
        )
    card = cards[index]
    return found | {"gpu": card.name, "memory": f"{card.total >> 20} MiB", "driver": card.driver}


def _versions() -> dict[str, str]:
    found = {"asrd": asrd.__version__, "python": platform.python_version()}
    for package in ("torch", "nemo-toolkit", "torchao"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


async def _run(args: argparse.Namespace, todo: list[Cell], result: Result) -> None:
    """Measure what is to be measured, each kept as soon as it is there; first what may run at
    once."""
    until = time.monotonic() + 60 * args.minutes
    clips, _ = manifest.read(MANIFEST, args.clips)
    buffers = {seconds: manifest.joined(clips, int(seconds * SAMPLE_RATE)) for seconds in LENGTHS}
    paths = {
        name: name if name in SHIPPED else str(args.folder / f"{name}.nemo")
        for name in {c.model for c in todo}
    }
    sounds = Sounds([clip.samples for clip in clips], buffers)
    repeats = QUICK if args.quick else Repeats()
    bench = Bench(args.device, paths, sounds, repeats, args.spares)
    slots = asyncio.Semaphore(max(2, args.spares))
    built = {
        name: asyncio.create_task(_build(name, Path(path)))
        for name, path in paths.items()
        if name not in SHIPPED
    }
    begun, began, code = 0, time.monotonic(), _digest()

    async def one(cell: Cell) -> None:
        nonlocal begun
        failure = await built[cell.model] if cell.model in built else ""
        async with slots:
            if time.monotonic() > until:
                return
            begun += 1
            number = begun
            found = (
                Found(cell, failure) if failure else await bench.measure(cell, len(todo) - begun)
            )
        found.code, found.checkpoint = code, cells.digest(cell.model)
        result.cells[cell.name] = found
        cells.write(args.json, result)
        said = found.failure or tables.line(found)
        took = time.monotonic() - began
        print(
            f"{took:5.0f} s  {number}/{len(todo)}  {cell.name}: {said}", file=sys.stderr, flush=True
        )

    bench.prepare(len(todo))
    try:
        await asyncio.gather(*(one(cell) for cell in todo if cell.kind in UNTIMED))
        await asyncio.gather(*(one(cell) for cell in todo if cell.kind not in UNTIMED))
    finally:
        await bench.close()


@cache
def _digest() -> str:
    """Return a digest of asrd's own files."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "asrd").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


async def _build(name: str, path: Path) -> str:
    """Write a random-weight model where it is not there yet; return why that failed, or ""."""
    if path.exists():
        return ""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".building.nemo")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tools.gpubench.architectures", name, str(beside)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(path.parent), "CUDA_VISIBLE_DEVICES": ""},
    )
    _, said = await process.communicate()
    if process.returncode:
        return (said.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    shutil.move(beside, path)
    return ""


if __name__ == "__main__":
    raise SystemExit(main())
