"""What a round found, and what that adds up to: words lost and doubled, recordings left, orphans,
locks, sound lost.

Pure: no process, no file and no clock. The planted faults prove these functions and those that
    look.
"""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec


class Round(msgspec.Struct):
    """One daemon or worker killed, or one delivery tried, and what was seen afterwards."""

    number: int
    moment: str
    target: str
    """daemon, worker, both; for a delivery: what the sinks were told to do."""
    recording: str = ""
    killed_after: float = 0.0
    """Seconds from the start of the daemon, or of what the moment waited for, to the kill."""
    fed: float | None = None
    """Seconds of sound that were fed until the kill."""
    kept: float | None = None
    """Seconds of it that are in the recording; None where the recording has gone or the daemon
    lived on."""
    in_real_time: bool = True
    """Whether it was fed as fast as it was spoken; else much of it was still in the pipe."""
    expected: str = ""
    """The text of the sound, by a daemon that nobody disturbed."""
    delivered: dict[str, str] = {}
    """Sink -> all that it accepted of this recording, but for what was sent again."""
    again: dict[str, str] = {}
    """Sink -> what it accepted of `retry --again`."""
    uncertain: list[str] = []
    """Sinks of which asrd said that text may have been delivered to them."""
    left: list[str] = []
    """What lies on disk and is neither text nor waiting."""
    orphans: int = 0
    locks: list[str] = []
    remark: str = ""
    """What else was not as it should be."""
    busy: str = ""
    """What a daemon did that did not come to rest; "" where each did."""

    @property
    def sound_lost(self) -> float | None:
        """Seconds that were fed and are not in the recording."""
        if self.fed is None or self.kept is None or not self.in_real_time:
            return None
        return self.fed - self.kept


class Words(NamedTuple):
    """Words that a sink should have accepted and did not, and those that it accepted too often."""

    lost: int = 0
    doubled: int = 0


class Row(msgspec.Struct):
    """All rounds of one moment."""

    moment: str
    rounds: int = 0
    words: int = 0
    """That were said."""
    lost: int = 0
    doubled: int = 0
    maybe: int = 0
    """Words sent again of which asrd had said that they may have been delivered."""
    left: int = 0
    orphans: int = 0
    locks: int = 0
    remarks: int = 0
    sound_lost: list[float] = []
    """Seconds, one a kill."""

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not any((self.lost, self.doubled, self.left, self.orphans, self.locks, self.remarks))


def compare(expected: str, delivered: str, again: str = "", declared: bool = False) -> Words:
    """Return how the words that one sink accepted differ from those that were said.

    Args:
        expected: what was said.
        delivered: what the sink accepted, but for what was sent again.
        again: what it accepted of what was sent again on request.
        declared: whether asrd had said that text may have been delivered to this sink.
    """
    said, had = collections.Counter(expected.split()), collections.Counter(delivered.split())
    more = collections.Counter(again.split())
    doubled = (had - said) + (more - said if declared else more - (said - had))
    return Words(sum((said - had - more).values()), sum(doubled.values()))


def judge(one: Round) -> Words:
    """Return the words of a round that are lost or doubled, over all its sinks."""
    found = [
        compare(one.expected, text, one.again.get(sink, ""), sink in one.uncertain)
        for sink, text in one.delivered.items()
    ]
    return Words(sum(words.lost for words in found), sum(words.doubled for words in found))


def rows(rounds: Iterable[Round]) -> list[Row]:
    """Return one row a moment, in the order in which they first came."""
    table: dict[str, Row] = {}
    for one in rounds:
        row = table.setdefault(one.moment, Row(one.moment))
        words = judge(one)
        row.rounds += 1
        row.words += len(one.expected.split()) * len(one.delivered)
        row.lost += words.lost
        row.doubled += words.doubled
        row.maybe += sum(len(one.again.get(sink, "").split()) for sink in one.uncertain)
        row.left += len(one.left)
        row.orphans += one.orphans
        row.locks += len(one.locks)
        row.remarks += bool(one.remark or one.busy)
        if one.sound_lost is not None:
            row.sound_lost.append(one.sound_lost)
    return list(table.values())


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that so many of 100 do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Return median, 99th percentile and maximum; None without a value."""
    if not values:
        return None
    return statistics.median(values), percentile(values, 99), max(values)
