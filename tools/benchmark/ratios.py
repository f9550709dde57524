"""Every ratio but R10 (`stopping`): what was measured -> a value, its interval, its goal, whether
it was met. Pure.

Each function is one of them; its `definition` is what the report shows. Times are seconds unless a
name says otherwise.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from asrd.scoring import Edits, interval

from .figures import (
    MIB,
    Block,
    Interval,
    Ratio,
    blockwise,
    flips,
    jain,
    median_interval,
    paired,
    slope,
)


def overhead(blocks: Sequence[Block], clips: Mapping[str, float]) -> Ratio:
    """R1."""
    long = [clip for clip, seconds in clips.items() if seconds > 8]
    value, ci = median_interval(blockwise(blocks, "G", "A", long))
    added = [
        statistics.median(1000 * (b.runs["G"][c].seconds - b.runs["A"][c].seconds) for c in long)
        for b in blocks
    ]
    more, more_ci = median_interval(added)
    same = not flips(blocks, "G")
    return Ratio(
        value=value,
        ci=ci,
        goal=1.02,
        met=same and value is not None and more is not None and value <= 1.02 and more <= 1.0,
        definition="asrd's engine, from samples in memory to final text, over the bare forward pass with greedy "
        "decoding on the same clips of about ten seconds; and at most 1 ms added, and the same words",
        detail={
            "added_ms": more,
            "added_ms_ci": more_ci,
            "added_ms_goal": 1.0,
            "cpu": median_interval(blockwise(blocks, "G", "A", long, "cpu"))[0],
            "parts_ms": {clip: _parts(blocks, clip) for clip in clips},
            "same_words": same,
        },
    )


def _parts(blocks: Sequence[Block], clip: str) -> dict[str, float]:
    """Return of what asrd's milliseconds for one clip consist, as `Run.parts` has it: medians."""
    found = [block.runs["G"][clip].parts for block in blocks]
    return {name: 1000 * statistics.median(parts[name] for parts in found) for name in found[0]}


class Stop(msgspec.Struct, frozen=True):
    """One dictation into the daemon, and what NeMo takes for the same sound."""

    length: float
    """Seconds that were spoken before the key."""
    seconds: float
    """From the stop request to the final text."""
    whole: float
    """transcribe() of all of it."""
    changed: int
    """Words that differ between the two."""
    words: int
    real_time: bool = True
    """False: all but the last ten seconds were fed faster than they were spoken."""
    rest: float = 0.0
    """Seconds of silence between the last sound and the key."""


STOP_GOALS = {10: 0.5, 60: 0.10, 120: 0.05}


def stops(recordings: Sequence[Stop]) -> Ratio:
    """R2; what decides are the recordings whose key came with the last sound."""
    found, rested = [s for s in recordings if not s.rest], [s for s in recordings if s.rest]
    lengths: dict[str, Any] = {}
    for length in sorted({stop.length for stop in found}):
        some = [stop for stop in found if stop.length == length]
        value, ci = median_interval(paired([s.seconds for s in some], [s.whole for s in some]))
        goal = STOP_GOALS[min(STOP_GOALS, key=lambda known: abs(known - length))]
        lengths[f"{length:g}"] = {
            "value": value,
            "ci": ci,
            "goal": goal,
            "met": value is not None and value <= goal,
            "ms": 1000 * statistics.median(s.seconds for s in some),
            "nemo_ms": 1000 * statistics.median(s.whole for s in some),
            "recordings": len(some),
            "in_real_time": sum(s.real_time for s in some),
            "changed_words_per_100": 100
            * sum(s.changed for s in some)
            / max(1, sum(s.words for s in some)),
        }
    longest = lengths[max(lengths, key=float)]
    rise, rise_ci = _rise(found)
    spread = _spread([stop.seconds for stop in found])
    return Ratio(
        value=longest["value"],
        ci=longest["ci"],
        goal=longest["goal"],
        met=all(entry["met"] for entry in lengths.values()) and rise <= 0.5 and spread <= 2.0,
        definition="the daemon, from the stop request on its socket to the final text there, over NeMo's transcribe() "
        "of the whole dictation; at the longest length. Every length has to reach its own goal, the time must not "
        "rise with the length by more than 0.5 ms a second, and its 99th percentile be at most twice its median",
        lengths=lengths,
        detail={
            "slope_ms_per_s": rise,
            "slope_ci": rise_ci,
            "slope_goal": 0.5,
            "p99_over_p50": spread,
            "p99_goal": 2.0,
            "key_after_a_rest": {
                "ms": 1000 * statistics.median(s.seconds for s in rested),
                "value": statistics.median(
                    paired([s.seconds for s in rested], [s.whole for s in rested])
                ),
                "rest_s": rested[0].rest,
                "recordings": len(rested),
            }
            if rested
            else None,
        },
    )


def _rise(found: Sequence[Stop]) -> tuple[float, Interval | None]:
    """Return by how many milliseconds the time rises for each second of dictation; 0 where all are
    of one length."""
    if len({stop.length for stop in found}) < 2:
        return 0.0, None
    return slope([stop.length for stop in found], [1000 * stop.seconds for stop in found])


def _spread(values: Sequence[float]) -> float:
    import numpy as np

    return float(np.percentile(values, 99) / np.median(values))


def weights(half: int, full: int, large: Sequence[int] | None = None) -> Ratio:
    """R3: bytes of the weights under half and under fp32; `large` the same of a model of the usual
    size, or None."""
    value = half / full if large is None else large[0] / large[1]
    return Ratio(
        value=value,
        ci=(value, value),
        goal=0.505,
        met=value <= 0.505,
        definition="exact bytes of parameters and buffers under strategy half over those under fp32, as the worker "
        "counts them; the filters of the features stay in FP32, which is 1 part in 200 of the demo and nothing of a "
        "model of the usual size. On a GPU `asrd compare` tells what that is of the process",
        detail={"half_bytes": half, "fp32_bytes": full, "demo": half / full},
    )


def load_peak(value: float | None, weights_bytes: int, model: str) -> Ratio:
    """R4: the load peak over the resident weights, on the CPU."""
    return Ratio(
        value=value,
        ci=None,
        goal=1.5,
        met=value is not None and value <= 1.5,
        definition="highest anonymous resident memory while the model loads, above that after the import of torch and "
        "NeMo, over the bytes of its weights; what Python allocates on the way is in it, a copy of the weights would "
        "make it 2. The goal of 1.05 is that of a GPU's memory, which no CPU can tell: `asrd compare` does",
        detail={"weights_bytes": weights_bytes, "model": model, "gpu_goal": 1.05},
    )


def idleness(
    idle_cpu: float, idle: float, silence_cpu: float, silence: float, wakeups: float | None
) -> Ratio:
    """R5.

    Args:
        idle_cpu, idle: processor seconds of daemon and worker, and over how many seconds, with
        nothing to do. silence_cpu, silence: the same while silence is recorded.
        wakeups: voluntary context switches a second while idle.
    """
    value, listening = 3600 * idle_cpu / idle, silence_cpu / silence
    return Ratio(
        value=value,
        ci=None,
        goal=0.5,
        met=value <= 0.5 and listening <= 0.01,
        definition="processor seconds of daemon and worker in an hour of doing nothing, scaled up from the span that "
        "was watched; and at most 1 % of one core while silence is recorded",
        detail={
            "idle_span_s": idle,
            "recording_silence_of_a_core": listening,
            "recording_silence_goal": 0.01,
            "silence_span_s": silence,
            "wakeups_per_s": wakeups,
        },
    )


class StartUp(msgspec.Struct, frozen=True):
    """One start of the daemon, and what no program on NeMo can do without, one after the other."""

    record: float
    """From exec until a key press would be recorded."""
    text: float
    """From exec until it could be text."""
    floor: float
    """From exec of a bare interpreter until torch and NeMo are imported and the checkpoint is
    read."""


def start_up(found: Sequence[StartUp]) -> Ratio:
    """R6."""
    value, ci = median_interval([one.text / one.floor for one in found])
    record, record_ci = median_interval([one.record for one in found])
    return Ratio(
        value=value,
        ci=ci,
        goal=1.3,
        met=value is not None and record is not None and value <= 1.3 and record <= 0.3,
        definition="from exec of the daemon until it is ready for text (model loaded, self-test passed), over a bare "
        "import of torch and NeMo and one reading of the checkpoint; and at most 0.3 s until it is ready to record",
        detail={
            "record_s": record,
            "record_ci": record_ci,
            "record_goal": 0.3,
            "text_s": statistics.median(one.text for one in found),
            "floor_s": statistics.median(one.floor for one in found),
            "starts": len(found),
        },
    )


class Crowd(msgspec.Struct, frozen=True):
    """One engine asked by one caller, and then by several at once (or the other way round)."""

    alone: float
    """Audio seconds a second."""
    together: float
    shares: tuple[float, ...]
    """Audio seconds that each caller got."""
    nemo: float | None = None
    """Audio seconds a second of NeMo's transcribe() of many sounds at once."""


def concurrency(found: Sequence[Crowd], way: str = "") -> Ratio:
    """R7; `way` is how NeMo was asked."""
    value, ci = median_interval([one.together / one.alone for one in found])
    fairness = jain([sum(part) for part in zip(*(one.shares for one in found), strict=True)])
    beside = [(one.together, one.nemo) for one in found if one.nemo]
    over, over_ci = median_interval([ours / theirs for ours, theirs in beside])
    return Ratio(
        value=value,
        ci=ci,
        goal=0.95,
        at_least=True,
        met=value is not None
        and value >= 0.95
        and fairness >= 0.98
        and (over is None or over >= 1.0),
        definition="audio seconds a second that one engine gives to eight callers at once over what it gives to one; "
        "and Jain's fairness between the eight of at least 0.98. On a CPU the limit is 1. And no fewer than NeMo's "
        "transcribe() gives for the same sounds at once, in the batches and with the threads that suit it best",
        detail={
            "jain": fairness,
            "jain_goal": 0.98,
            "callers": len(found[0].shares),
            "rtfx_alone": statistics.median(one.alone for one in found),
            "rtfx_together": statistics.median(one.together for one in found),
            "rtfx_nemo": statistics.median(theirs for _, theirs in beside) if beside else None,
            "nemo": way,
            "over_nemo": over,
            "over_nemo_ci": over_ci,
        },
    )


class Reading(msgspec.Struct, frozen=True):
    """What daemon and worker hold after so many utterances; each (daemon, worker)."""

    utterances: int
    rss: tuple[int, int]
    """Bytes."""
    fds: tuple[int, int]
    threads: tuple[int, int]


def growth(readings: Sequence[Reading]) -> Ratio:
    """R8: over the second half of the run."""
    late = readings[len(readings) // 2 :]
    x = [float(one.utterances) for one in late]
    rss, ci = slope(x, [sum(one.rss) / MIB for one in late])
    rises = {
        f"{what}_{who}": 1000 * slope(x, [float(getattr(one, what)[side]) for one in late])[0]
        for what in ("fds", "threads")
        for side, who in enumerate(("daemon", "worker"))
    }
    memory = {
        f"rss_mib_{who}": 1000 * slope(x, [one.rss[side] / MIB for one in late])[0]
        for side, who in enumerate(("daemon", "worker"))
    }
    value = 1000 * rss
    return Ratio(
        value=value,
        ci=(1000 * ci[0], 1000 * ci[1]),
        goal=1.0,
        met=value <= 1.0 and all(rise <= 0 for rise in rises.values()),
        definition="MiB of resident memory that daemon and worker together gain for each thousand utterances, nearly "
        "all of another length (Theil-Sen over the second half of the run), garbage collected and free pages given "
        "back before each reading, as the room that loading leaves in the heap would hide a leak, and what the "
        "allocator keeps for later looks like one; and no file descriptor and no thread",
        detail={
            "utterances": readings[-1].utterances,
            **memory,
            **rises,
            "series": [
                [one.utterances, *(round(part / MIB, 2) for part in one.rss)] for one in readings
            ],
        },
    )


class Case(msgspec.Struct, frozen=True):
    """One long sound, heard as a stream and by offline decodes of it."""

    name: str
    streaming: Edits
    """Edits against what was said, clip by clip."""
    offline: Edits
    how: str
    """Which offline decode was the best."""
    against: str
    """Which of those that cannot be told from the best in WER streaming is nearest to."""
    changed: int
    """Word edits between that one and streaming."""
    floor: int
    """Word edits between that offline decode and the same of the sound begun half a frame
    earlier."""
    words: int
    """Of the offline text."""


def streaming(cases: Sequence[Case]) -> Ratio:
    """R9."""
    rows: dict[str, dict[str, Any]] = {}
    for case in cases:
        delta = (case.streaming.rate or 0.0) - (case.offline.rate or 0.0)
        changed, floor = (100 * count / max(1, case.words) for count in (case.changed, case.floor))
        rows[case.name] = {
            "wer_delta": delta,
            "ci": interval(case.streaming, case.offline),
            "wer": case.streaming.rate,
            "wer_offline": case.offline.rate,
            "offline": case.how,
            "against": case.against,
            "changed_per_100": changed,
            "changed_floor_per_100": floor,
            "words": case.words,
            "met": delta <= 0.5 and changed <= 1.0,
        }
    worst = max(rows.values(), key=lambda row: row["wer_delta"])
    return Ratio(
        value=worst["wer_delta"],
        ci=worst["ci"],
        goal=0.5,
        met=all(row["met"] for row in rows.values()),
        definition="absolute points of WER that dictation block by block loses against the best offline decode of the "
        "same sound (all of it at once, two minutes at most, or each stretch between two pauses at once); the worst "
        "case. And in each case of 100 words at most 1 changed, against that decode, or of two whose WER cannot be "
        "told apart the nearer one. With pauses: shipped clips. Without: sentences spoken through by one voice. Beside "
        "it, as floor, what the offline decode itself changes when the sound begins half a frame earlier",
        detail={"cases": rows, "changed_goal": 1.0},
    )
