"""Kill the real daemon and worker, let sinks fail, and count what that costs.

    tools/torture PART... [--seed N] [--rounds N | --minutes M] [--quick] [--json FILE]

Parts: kills (SIGKILL in each moment of a daemon's life) and delivery (sinks that fail, hang, die or
    accept half).
Exit code 0: nothing was lost, doubled or left; 3: something was; 2: an instrument did not notice a
planted fault.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from asrd.errors import UsageError, nearest
from asrd.terminal.arguments import ProgramParser

from . import delivery, kills, microphone, page, planted
from .daemon import BrokenError
from .delivery import Delivery
from .findings import Round, rows
from .home import end_marked, home
from .house import House
from .kills import Kills
from .microphone import SoundServer
from .page import Part
from .suspend import Logind

MAX_TEMPORARY_PATH = 40
"""Characters of the folder for temporary files: the path of a socket in it may have 107."""

ROUNDS = 50
"""Of each moment in a full run."""

MOMENTS = (
    *("recording", "loading", "decoding", "delivering", "falling back", "switching", "pruning"),
    *("reloading", "suspending", "retrying", "at random"),
)

PLANTED_EARLIEST = 0.8
"""Of a sound, from where on a daemon is killed for a fault that is planted: there are words and
seconds to lose."""

PLANTED_PACE = 6.0
"""Times as fast as speech, of rounds that only prove instruments."""

SOUND = ("microphone, quiet", "microphone, speech")
"""Moments that need a sound server; left out where that is not installed."""

QUICK = {"recording": 8, "loading": 1, "decoding": 1, "falling back": 1, "switching": 1}
QUICK |= {
    "pruning": 1,
    "delivering": 1,
    "retrying": 1,
    "reloading": 1,
    "suspending": 1,
    "microphone, speech": 2,
}
"""Rounds of each moment in a quick run; only the daemon is killed there, as a worker that comes
again takes time."""


SINKS = {"kills": ("one",), "delivery": ("one", "two", "three")}
"""Sinks of a part's houses."""


class BlindError(Exception):
    """Instruments that did not report what was planted; one sentence each."""


class Rounds(Protocol):
    """What plays the rounds of a part in one house."""

    def play(self, moment: str, target: str) -> None:
        """Play one round. Raises BrokenError, OSError."""

    def close(self) -> None:
        """End what a round left for the next. Raises BrokenError."""


class Player:
    """Plays the rounds of a part, several houses at once.

    Args:
        part: its name.
        folder: for everything that is written.
        args: of the command line: jobs, seed, minutes.
    """

    def __init__(self, part: str, folder: Path, args: argparse.Namespace) -> None:
        self.part, self.folder, self.jobs, self.seed = part, folder, args.jobs, args.seed
        self.deadline = time.monotonic() + (60 * args.minutes if args.minutes else float("inf"))
        self.sound = False
        """Whether a round of the plan needs a microphone."""
        self.rounds: list[Round] = []
        self._plan: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._failed: list[BaseException] = []

    def play(self, plan: list[tuple[str, str]], faults: tuple[str, ...] = ()) -> None:
        """Play all of a plan. Raises what ended a house early."""
        self.sound = any(moment in SOUND for moment, _ in plan)
        for step in plan:
            self._plan.put(step)
        threads = [self._thread(n, faults if n == 0 else ()) for n in range(self.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failed:
            raise self._failed[0]

    def _thread(self, number: int, faults: tuple[str, ...]) -> threading.Thread:
        return threading.Thread(target=self._house, args=(number, faults), daemon=True)

    def _house(self, number: int, faults: tuple[str, ...]) -> None:
        try:
            with home(self.folder, f"{self.part}-{number}") as one, contextlib.ExitStack() as stack:
                house = House(
                    one, random.Random(f"{self.seed} {self.part} {number}"), SINKS[self.part]
                )
                planter = planted.Planter(house, faults)
                stack.enter_context(planter.planting())
                self._live_in(house, self._rounds(house, stack, faults))
                planter.finish()
                self.rounds += house.rounds
        except BaseException as error:
            self._failed.append(error)

    def _rounds(self, house: House, stack: contextlib.ExitStack, faults: tuple[str, ...]) -> Rounds:
        """Return what plays the rounds, with the servers that it needs; faults want rounds with
        words in them."""
        if self.part == "delivery":
            return Delivery(house)
        one = house.home
        logind = stack.enter_context(Logind(one.folder, one.environment_of_server("logind")))
        server = (
            stack.enter_context(SoundServer(one.folder.parent / f"sound-{one.mark}"))
            if self.sound
            else None
        )
        player = Kills(house, logind, server)
        player.earliest = PLANTED_EARLIEST if faults else player.earliest
        return player

    def _live_in(self, house: House, rounds: Rounds) -> None:
        while time.monotonic() < self.deadline:
            try:
                moment, target = self._plan.get_nowait()
            except queue.Empty:
                break
            self._round(house, rounds, moment, target)
        rounds.close()
        house.last()

    def _round(self, house: House, rounds: Rounds, moment: str, target: str) -> None:
        """Play a round; what no round foresees is the round's remark, and the next one finds a home
        without processes and recordings of this one."""
        try:
            rounds.play(moment, target)
        except (BrokenError, OSError, ValueError) as error:
            tell(f"{moment}, {target}: {error}")
            house.home.clear()
            with contextlib.suppress(BrokenError, OSError):
                rounds.close()
            house.start_afresh(str(error))
        tell(f"{self.part} {len(house.rounds)}: {moment}, {target}")


def tell(sentence: str) -> None:
    """Say on standard error how far it is."""
    print(f"asrd torture: {sentence}", file=sys.stderr, flush=True)


def prove(folder: Path, seed: int) -> None:
    """Plant each fault in a house of its own. Raises BlindError where it is not reported as it was
    planted."""
    with home(folder, "planted") as one:
        house = House(one, random.Random(seed))
        house.orphan_seconds = planted.QUICK_ORPHAN_SECONDS
        planter = planted.Planter(house, planted.FAULTS)
        with Logind(one.folder, one.environment_of_server("logind")) as logind, planter.planting():
            player = Kills(house, logind)
            player.pace, player.earliest = PLANTED_PACE, PLANTED_EARLIEST
            for _ in (*planted.FAULTS, "and one without"):
                player.play("recording", "daemon")
            house.last()
        planter.finish()
    struck = {fault: followed.round for fault, followed in planter.rounds.items()}
    others = [round_ for round_ in house.rounds if round_ not in list(struck.values())]
    if found := planted.blind(struck, others):
        raise BlindError("; ".join(found))


def prove_delivery(folder: Path, seed: int) -> None:
    """Lose and double deliveries in a house of its own. Raises BlindError where they are not
    reported so."""
    with home(folder, "planted-delivery") as one:
        house = House(one, random.Random(seed), SINKS["delivery"])
        planter = planted.DeliveryPlanter(house)
        house.before_collecting = planter.plant
        rounds = Delivery(house)
        for _ in (*planted.DELIVERIES, "and one without"):
            rounds.leave_one()
        house.last()
    if found := planter.blind():
        raise BlindError("; ".join(found))


def play_kills(args: argparse.Namespace, folder: Path) -> Part:
    """Play part kills. Raises BlindError."""
    began = time.monotonic()
    tell("kills: planting faults")
    prove(folder, args.seed)
    tell(f"kills: each of {len(planted.FAULTS)} planted faults was reported")
    chosen = wanted(args, [*MOMENTS, *usable_sound()])
    if args.quick:
        plan = [(moment, "daemon") for moment in chosen for _ in range(QUICK.get(moment, 0))]
    else:
        plan = kills.schedule(random.Random(args.seed), chosen, args.rounds)
    player = Player("kills", folder, args)
    player.play(plan, tuple(args.plant))
    return finished("kills", player.rounds, list(planted.FAULTS), began)


def play_delivery(args: argparse.Namespace, folder: Path) -> Part:
    """Play part delivery. Raises BlindError."""
    began = time.monotonic()
    tell("delivery: planting faults")
    prove_delivery(folder, args.seed)
    tell(f"delivery: each of {len(planted.DELIVERIES)} planted faults was reported")
    chosen = wanted(args, list(delivery.MOMENTS))
    plan = delivery.schedule(random.Random(args.seed), chosen, args.rounds)
    if args.quick:
        plan, args.jobs = list(delivery.QUICK), 1  # one daemon for most of them
    player = Player("delivery", folder, args)
    player.play(plan)
    return finished("delivery", player.rounds, list(planted.DELIVERIES), began)


def wanted(args: argparse.Namespace, moments: list[str]) -> list[str]:
    """Return those moments of a part that were asked for."""
    return [moment for moment in moments if moment in (args.moments or moments)]


def usable_sound() -> tuple[str, ...]:
    """Return the moments that need a sound server, or none where it is not installed, which is
    told."""
    if lacking := microphone.missing():
        tell(f"no kill under a real microphone: {', '.join(lacking)} are not installed")
        return ()
    return SOUND


def finished(name: str, rounds: list[Round], faults: list[str], began: float) -> Part:
    """Return a part with its rows, in the order of the moments."""
    order = {moment: place for place, moment in enumerate((*MOMENTS, *SOUND, *delivery.MOMENTS))}
    found = sorted(rows(rounds), key=lambda row: order.get(row.moment, len(order)))
    odd = [one for one in rounds if not all(row.clean for row in rows([one]))]
    return Part(name, found, faults, round(time.monotonic() - began, 1), odd)


Play = Callable[[argparse.Namespace, Path], Part]

PARTS: dict[str, Play] = {"kills": play_kills, "delivery": play_delivery}


EPILOG = "\n".join(
    [
        "moments of kills, each a name for --moments:",
        *(f"  {moment}" for moment in (*MOMENTS, *SOUND)),
        "moments of delivery:",
        *(f"  {moment}" for moment in delivery.MOMENTS),
        "",
        "columns of the table:",
        "  rounds      rounds that were played",
        "  words       words that were spoken",
        "  lost        words that a sink lacks",
        "  doubled     words that a sink has too often",
        "  maybe       words sent again after asrd had said that they may have been delivered",
        "  left        files that are neither text nor waiting",
        "  orphans     processes that outlived the daemon",
        "  locks       locks that stayed",
        "  odd         anything else",
        "  sound lost  seconds between the kill and the end of the recording: median / 99th percentile / most",
        "",
        "exit codes:",
        "  0    nothing was lost, doubled or left",
        "  2    wrong command line, or an instrument did not notice a planted fault",
        "  3    something was lost, doubled or left",
        "  130  interrupted",
    ]
)


def arguments() -> ProgramParser:
    """Return what the command line takes."""
    parser = ProgramParser(
        "tools/torture",
        description=str(__doc__).splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART", help=" or ".join(PARTS))
    parser.add_argument(
        "--seed", type=int, default=1, help="of everything that is left to chance (default 1)"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"of each moment (default {ROUNDS})"
    )
    length.add_argument(
        "--minutes", type=float, help="begin no round after so many minutes of a part"
    )
    length.add_argument(
        "--quick", action="store_true", help="about two minutes: one round of most moments"
    )
    parser.add_argument(
        "--moments", type=lambda text: text.split(";"), help="these alone: 'recording;loading'"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="homes at once (default: cores)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    kinds = ", ".join(planted.FAULTS)
    parser.add_argument("--plant", metavar="FAULT", action="append", default=[], choices=planted.FAULTS,
                        help=f"plant this fault in the run itself, which then ends with 3: {kinds}")  # fmt: skip
    return parser


def main(words: list[str] | None = None) -> int:
    """Play the parts, print their tables, write the JSON; return the exit code."""
    parser = arguments()
    args = parser.parse_args(words)
    if unknown := set(args.moments or ()) - {*MOMENTS, *SOUND, *delivery.MOMENTS}:
        wrong, known = min(unknown), (*MOMENTS, *SOUND, *delivery.MOMENTS)
        parser.stop(
            UsageError(
                f"there is no moment {wrong!r}", nearest(wrong, known, "tools/torture --help")
            )
        )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        where = (
            tempfile.gettempdir() if len(tempfile.gettempdir()) <= MAX_TEMPORARY_PATH else "/tmp"
        )
        with tempfile.TemporaryDirectory(
            prefix="asrd-torture-", dir=where, ignore_cleanup_errors=True
        ) as folder:
            parts = [played(name, args, Path(folder)) for name in dict.fromkeys(args.parts)]
    except BlindError as error:
        print(f"asrd torture: there are no figures, as instruments are blind: {error}")
        return 2
    except (
        KeyboardInterrupt
    ):  # the houses' threads end with this process, and what they started now
        end_marked(f"{os.getpid()}-")
        return 130
    told = page.report(args.seed, args.quick, " ".join(words or sys.argv[1:]), parts)
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")
    return 0 if told.clean else 3


def played(name: str, args: argparse.Namespace, folder: Path) -> Part:
    """Play a part and print its table. Raises BlindError."""
    part = PARTS[name](args, folder)
    print(page.table(part), flush=True)
    return part


if __name__ == "__main__":
    sys.exit(main())
