"""Part `delivery`: sinks that refuse, hang, die, are slow or read half; retries, two at once, and
killed ones.

Each sink is to accept every text once. A text goes there again only by `retry --again`, and only
where asrd had said that it may have been delivered.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time

from . import sounds
from .daemon import BrokenError, Daemon
from .home import SAMPLE_RATE
from .house import FAST, Followed, House, finish

MOMENTS = ("refused", "while speaking", "uncertain", "two retries", "killed")
"""What happens: sinks refuse; they do while somebody speaks; they hang or die; two retry at once; a
kill in between."""

QUICK = (
    *(
        ("while speaking", "segment"),
        ("refused", "take"),
        ("uncertain", "take"),
        ("two retries", "take"),
    ),
    ("killed", "take"),
)
"""Rounds of a quick run, in the order in which one daemon can play most of them."""

REFUSALS = ("refuse", "deaf", "half")
UNCERTAIN = ("die", "die", "die", "hang")
"""A hanging sink costs its ten seconds, so it is rarer."""

MODES = {"refused": REFUSALS, "uncertain": UNCERTAIN, "while speaking": (*REFUSALS, *UNCERTAIN)}

SEGMENTS = 4


class Delivery:
    """The rounds of one house with three sinks."""

    def __init__(self, house: House) -> None:
        self.house, self.draw = house, house.draw
        self._daemon: Daemon | None = None
        """One with its model, left by the round before."""
        self._deliver = ""
        self._short = sounds.endless(self.draw, 1.3, 2.6)
        self.moments = {
            "refused": self.retried,
            "uncertain": self.retried,
            "while speaking": self.while_speaking,
            "two retries": self.two_retries,
            "killed": self.killed,
        }

    def play(self, moment: str, target: str) -> None:
        """Play one round. Raises BrokenError, OSError.

        Args:
            moment: what happens.
            target: how text is delivered: segment or take.
        """
        one = self.house.begin(moment, target)
        self._all_accept()
        self.moments[moment](one)

    def leave_one(self) -> None:
        """Leave a recording for the next daemon, whose sinks all accept."""
        one = self.house.begin("refused", "take")
        self._all_accept()
        self._recorded(one)
        self.house.open.append(one)

    def _all_accept(self) -> None:
        for name in self.house.sinks:
            self.house.home.mode(name, "accept")

    def _spoil(self, one: Followed) -> None:
        """Tell sinks how to end the next times; at least one of them not well."""
        kinds = MODES.get(one.round.moment, (*REFUSALS, "die"))
        for name in self.draw.sample(self.house.sinks, self.draw.randint(1, len(self.house.sinks))):
            modes = [
                self.draw.choice((*kinds, "accept")) for _ in range(self.draw.randint(1, SEGMENTS))
            ]
            modes[self.draw.randrange(len(modes))] = self.draw.choice(kinds)
            self.house.home.mode(name, ",".join(modes))

    def _recorded(self, one: Followed) -> None:
        """Leave a recording that a daemon made that was killed before it was text."""
        daemon = self.house.daemon(loaded=False)
        feeder = daemon.feed(sounds.joined(self.draw, [next(self._short) for _ in range(2)]), FAST)
        feeder.wait()
        daemon.until_recorded(len(feeder.sound) / SAMPLE_RATE)
        daemon.kill("daemon", feeder)
        self.house.look(one, daemon, feeder)
        self.house.open.remove(one)

    def _ready(self, one: Followed) -> Daemon:
        """Return a daemon with its model, that of the round before where it delivers as this round
        wants it."""
        if self._daemon is None or self._deliver != one.round.target:
            self.close()
            other = str(self.house.home.runtime / "other.sock")
            self._daemon = self.house.daemon(
                source="mic", deliver=one.round.target, ASRD_SOCKET=other
            )
            self._daemon.ready()
            self.house.alone = False
            self._deliver = one.round.target
        self.house.heal(self._daemon, but=one)
        return self._daemon

    def close(self) -> None:
        """End the daemon that was left. Raises BrokenError."""
        daemon, self._daemon = self._daemon, None
        self.house.alone = True
        if daemon is not None and (code := daemon.stop()):
            raise BrokenError(f"the daemon ended with {code}: {daemon.last_words()}")

    # -- moments
    # ------------------------------------------------------------------------------------------------------

    def retried(self, one: Followed) -> None:
        """Retry a recording until every sink has it, each refusing some times."""
        self._recorded(one)
        daemon = self._ready(one)
        self._spoil(one)
        self.house.retry(daemon, one)
        self._all_accept()
        self._settle(one, daemon)

    def while_speaking(self, one: Followed) -> None:
        """Speak several segments, some of which some sinks do not take; what is missing comes with
        the next daemon."""
        self.close()
        daemon = self.house.daemon(deliver=one.round.target)
        daemon.ready()
        self.house.heal(daemon)
        self._spoil(one)
        feeder = daemon.feed(
            sounds.joined(self.draw, [next(self._short) for _ in range(SEGMENTS)]), FAST
        )
        feeder.wait()
        daemon.end_sound()
        finish(daemon)
        self.house.lived_on(one, daemon, feeder.sound)
        self._all_accept()

    def two_retries(self, one: Followed) -> None:
        """Retry everything twice at the same time; each recording is taken by one of them."""
        self._recorded(one)
        daemon = self._ready(one)
        self.house.home.mode(self.house.sinks[0], "slow")
        askers = [threading.Thread(target=_retry_all, args=(daemon,)) for _ in range(2)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        self.house.collect(one)
        self._settle(one, daemon)

    def killed(self, one: Followed) -> None:
        """Kill the daemon while it delivers a recording to its sinks."""
        self._recorded(one)
        daemon = self._ready(one)
        for name in self.house.sinks:
            self.house.home.mode(name, self.draw.choice(("slow", "late", "accept")))
        asker = threading.Thread(target=_retry_all, args=(daemon,))
        asker.start()
        time.sleep(self.draw.uniform(0.0, 1.5))
        daemon.kill("daemon")
        self._daemon, self.house.alone = None, True
        asker.join()
        self.house.look_again(one, daemon)
        self._all_accept()

    def _settle(self, one: Followed, daemon: Daemon) -> None:
        """Retry what is still missing, and learn what was said."""
        self.house.open.append(one)
        self.house.heal(daemon)


def _retry_all(daemon: Daemon) -> None:
    """Ask for everything that waits; a refusal is for the one who counts, as it is for a user who
    asked twice."""
    with contextlib.suppress(BrokenError, OSError, ValueError):
        daemon.ask(verb="retry", all=True, deliver=True)


def schedule(draw: random.Random, moments: list[str], rounds: int) -> list[tuple[str, str]]:
    """Return what happens and how text is delivered, so many rounds of each, mixed."""
    plan = [
        (moment, ("segment", "take")[number % 2]) for moment in moments for number in range(rounds)
    ]
    draw.shuffle(plan)
    return plan
