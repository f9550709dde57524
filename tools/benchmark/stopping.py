"""R10: the time from the stop request to text and replies, after dictations of very different
lengths.

Every dictation ends alike: the same ten seconds in real time, with a pause before the key, so the
text is there when the key comes. What lies before them is fed as fast as the daemon wants it. So
only what grows with the length differs.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from asrd.audio.format import SAMPLE_RATE

from . import sounds
from .figures import Interval, Ratio
from .service import Sent, save

FACES = {
    "client": "text at the client that waits for it",
    "sink": "text at the sink",
    "reply": "reply to the stop request",
    "journal": "stop_to_text_ms of the same",
}
"""Where the time is taken."""

GOAL = 1.5

FEWEST_DICTATIONS = 3
"""Of the shortest and of the longest, below which the ratio is undecided."""

TAIL_SECONDS = 10.0
"""The end of each dictation, which is played in real time."""

REST_SECONDS = 0.5
"""Silence between the last sound and the key."""

FRAME = 512
"""Samples that the detector hears at once: every dictation ends at the same place of one."""

PACE = 100.0
"""How much faster what lies before the tail is played at most: the microphone waits while the
daemon is behind."""


class Ending(msgspec.Struct, frozen=True):
    """The end of two dictations of the same sound: one whose client waits, and one for a sink."""

    length: float
    """Seconds that were spoken before the key."""
    seconds: dict[str, float]
    """From the stop request, by FACES."""
    interrupted: tuple[int, int]
    """Times that others took the processor from the daemon meanwhile: with a client, with a
    sink."""
    load: float
    """Processes that wanted to run, over the minute before."""


class Dictating(Protocol):
    """What of a `service.Service` is measured here."""

    interrupted: int
    """As `service.Service` has it."""

    def dictate(self, sound: Path, lead: int = 0, pace: float = 1.0) -> tuple[float, str]:
        """Return the seconds until the text is at the client that waits, and the text."""

    def send(self, sound: Path, lead: int = 0, pace: float = 1.0) -> Sent:
        """Return when the text was at the sink, and what else was told."""

    def settle(self) -> None:
        """Return when the recording was put away."""


def endings(
    service: Dictating, folder: Path, lengths: Sequence[float], tell: Callable[[int], None]
) -> list[Ending]:
    """Dictate so many seconds, one length after the other, each twice.

    Raises: SystemExit where the text of a dictation differs between the client and the sink.
    """
    clips, found = sounds.clips(), []
    last = round((TAIL_SECONDS + sounds.PAUSE - REST_SECONDS) * SAMPLE_RATE)
    for number, length in enumerate(lengths):
        tail = sounds.joined(clips, TAIL_SECONDS, seed=0).samples[-last:]
        tail = tail[: round(TAIL_SECONDS * SAMPLE_RATE)]
        lead = round((length - TAIL_SECONDS) * SAMPLE_RATE / FRAME) * FRAME
        before = (
            sounds.joined(clips, lead / SAMPLE_RATE, seed=number + 1).samples[:lead]
            if lead
            else tail[:0]
        )
        file = save(folder, "dictation", np.concatenate([before, tail]))
        seconds, heard = service.dictate(file, lead, PACE)
        interrupted = service.interrupted
        service.settle()
        sent = service.send(file, lead, PACE)
        times = interrupted, service.interrupted
        service.settle()
        if heard.split() != sent.text.split():
            raise SystemExit(f"asrd: the sink got other words than the client after {length:g} s")
        taken = {"client": seconds, "sink": sent.sink, "reply": sent.reply, "journal": sent.journal}
        found.append(Ending(length, taken, times, os.getloadavg()[0]))
        tell(number + 1)
    file.unlink()
    return found


def lengths(found: Sequence[Ending]) -> Ratio:
    """R10, of two lengths or more; the face whose time grows most decides."""
    every = sorted({one.length for one in found})
    of_length = {length: [one for one in found if one.length == length] for length in every}
    shortest, longest = of_length[every[0]], of_length[every[-1]]
    faces: dict[str, dict[str, Any]] = {}
    for face in FACES:
        value, ci = _over(
            [one.seconds[face] for one in longest], [one.seconds[face] for one in shortest]
        )
        middle = {
            f"{length:g}": 1000 * statistics.median(one.seconds[face] for one in some)
            for length, some in of_length.items()
        }
        faces[face] = {"value": value, "ci": ci, "ms": middle, "met": value <= GOAL}
    worst = max(faces.values(), key=lambda face: face["value"])
    return Ratio(
        value=worst["value"],
        ci=worst["ci"],
        goal=GOAL,
        met=all(face["met"] for face in faces.values()),
        enough=min(len(shortest), len(longest)) >= FEWEST_DICTATIONS,
        definition="the daemon, from the stop request on its socket to the text at the client that waits for it, to "
        "the text at a sink, to the reply, and by its own clock: the median after the longest dictation over that "
        "after the shortest; the worst of the four. All end with the same ten seconds in real time and half a second "
        "of silence; what lies before is fed as fast as the daemon takes it. No block of sound is waited for: the "
        "microphone is closed at the request. What the daemon waits for a processor counts",
        lengths={f"{length:g}": {"dictations": len(some)} for length, some in of_length.items()},
        detail={
            "faces": faces,
            "interrupted": [one.interrupted for one in found],
            "loads": [round(one.load, 2) for one in found],
            "all_ms": [
                [one.length, *(round(1000 * one.seconds[face], 3) for face in FACES)]
                for one in found
            ],
        },
    )


def _over(long: Sequence[float], short: Sequence[float]) -> tuple[float, Interval | None]:
    """Return one median over another and its interval; no interval for fewer than two values of
    either."""
    value = statistics.median(long) / statistics.median(short)
    if min(len(long), len(short)) < 2:
        return value, None
    dice = np.random.default_rng(0)
    drawn = [np.median(dice.choice(some, (9999, len(some))), axis=1) for some in (long, short)]
    low, high = np.percentile(drawn[0] / drawn[1], (2.5, 97.5))
    return value, (float(low), float(high))
