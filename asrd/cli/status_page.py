"""What a status reply looks like: one line, a page, JSON for waybar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asrd.precision import ledger
from asrd.terminal.output import one_line
from asrd.text.spacing import joined_texts
from asrd.text.wording import counted

LATE_SECONDS = 2.0
"""Seconds of speech without text from which on the status says that the machine is behind."""

STREAMING_LABELS = {"cache-aware": "cost what is new"}
"""Kind of streaming -> what the page says of the cost of partial results."""

MARKS = {
    "LISTENING": "●",
    "FLUSHING": "…",
    "LOADING": "◌",
    "IDLE": "○",
    "UNLOADED": "◦",
    "STOPPING": "×",
}
"""What a bar shows for a state."""


def line(reply: Mapping[str, Any]) -> str:
    """Return a status as one line."""
    recording = reply.get("recording")
    parts = [f"{MARKS.get(reply['state'], '?')} {reply['state']}"]
    if recording:
        parts += _progress(recording, reply.get("loading", ""))
    elif reply.get("download"):
        parts.append(str(reply["loading"]))
    if fallback := reply.get("fallback"):
        parts.append(f"fell back from {fallback['wanted']} ({fallback['kind']})")
    parts += [reply.get("error", ""), reply.get("capture", "")]
    return "  ".join(filter(None, parts))


def _progress(recording: Mapping[str, Any], loading: str) -> list[str]:
    """Return the length of a recording, its level, what delays its text, and the text."""
    parts = [f"{recording['seconds']:.1f} s {_meter(recording['level'])}"]
    behind = recording.get("behind", 0)
    if loading:
        parts.append(f"the model loads: {loading}")
    elif behind >= LATE_SECONDS:
        parts.append(f"{behind:.0f} s behind")
    return [*parts, _words(recording)]


def _words(recording: Mapping[str, Any]) -> str:
    """Return the text so far; words that may still change end in dots."""
    parts = [recording.get("text") or ""]
    if partial := recording.get("partial"):
        parts.append(f"{partial} ...")
    return joined_texts(parts)


def page(reply: Mapping[str, Any]) -> str:
    """Return a status for a person who asked once."""
    rows = [
        ("state", line(reply)),
        ("model", reply["model"] or "none"),
        ("note", reply.get("model_note", "")),
        ("strategy", _strategy(reply)),
        ("dtypes", _dtypes(reply["effective"])),
        ("but", reply.get("precision_note", "")),
        ("partials", STREAMING_LABELS.get(reply["streaming"], "")),
        ("memory", _memory(reply["memory"])),
        ("level", level(reply.get("level"))),
        ("fallback", _fallback(reply.get("fallback"))),
        ("shadow", _shadow(reply.get("shadow"))),
        ("faults", _faults(reply.get("faults"))),
        ("rejected", "; ".join(reply["rejected"])),
        ("waiting", _waiting(reply["waiting"])),
        ("sinks", ", ".join(reply["sinks"])),
        ("daemon", f"asrd {reply['version']}, process {reply['pid']}, up {reply['uptime']:.0f} s"),
    ]
    return "\n".join(f"{name:<9} {one_line(text)}" for name, text in rows if text)


def _dtypes(effective: Mapping[str, str]) -> str:
    return ", ".join(map(" ".join, effective.items()))


def _faults(faults: str | None) -> str:
    if not faults:
        return ""
    return f"rehearsed: {faults}"


def _waiting(count: int | None) -> str:
    if not count:
        return ""
    return f"{counted(count, 'recording')}; asrd recordings lists them"


def _strategy(reply: Mapping[str, Any]) -> str:
    """Return which strategy runs and where; before a worker runs, which one was asked for."""
    if not reply["strategy"]:
        return f"no model is loaded; {reply['requested']} is asked for"
    asked = f"{reply['strategy']} (asked for {reply['requested']})"
    return f"{asked} on {reply['device']}{loaded_in(reply)}"


def loaded_in(reply: Mapping[str, Any]) -> str:
    """Return how long the worker took from its start until it was ready; "" where that is not
    known."""
    seconds = reply.get("load_seconds")
    if seconds is None:
        return ""
    return f", loaded in {seconds:.1f} s"


OLDER_CLASSES = {"unloaded": "parked", "error": "trouble", "fallback": "below"}
"""Class of a waybar module -> its name in an older release, sent beside it for one release."""


def waybar(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Return a status as waybar's custom modules take it.

    After a fallback, "fallback" is a second class. `alt`, which chooses an icon, is one word; it
    keeps the older name of a state for one release.
    """
    state = str(reply["state"]).lower()
    classes = [state]
    if reply.get("error") or reply.get("capture"):
        classes = ["error"]
    if reply.get("fallback"):
        classes.append("fallback")
    classes += [OLDER_CLASSES[name] for name in classes if name in OLDER_CLASSES]
    # It is Pango markup.
    tooltip = page(reply).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return {
        "text": MARKS.get(reply["state"], "?"),
        "alt": OLDER_CLASSES.get(state, state),
        "class": classes if len(classes) > 1 else classes[0],
        "tooltip": tooltip,
    }


def _fallback(fallback: Mapping[str, Any] | None) -> str:
    """Return what does not run though it was asked for, why, and when it is tried again."""
    if fallback is None:
        return ""
    text = f"{fallback['wanted']} was asked for and is not used: {fallback['detail']}"
    if (seconds := fallback.get("again_in")) is None:
        return text
    return f"{text}; tried again after {max(1, round(seconds / 60))} min without trouble"


def _shadow(shadow: Mapping[str, Any] | None) -> str:
    """Return the disagreement with FP32 as a line; "" where nothing is compared."""
    if shadow is None:
        return ""
    if shadow.get("per_100") is None:
        waiting = counted(shadow["waiting"], "recording")
        return f"nothing is compared with FP32 yet; {waiting} to compare"
    recordings = shadow.get("recordings", shadow.get("takes", 0))  # an older daemon says takes
    low = shadow.get("low")
    interval = ""
    if low is not None:
        interval = f" [{low:.1f}, {shadow['high']:.1f}]"
    basis = f"{counted(recordings, 'recording')}, {counted(shadow['words'], 'word')}"
    rate = f"{shadow['per_100']:.1f}{interval} words of 100"
    return f"{shadow['strategy']} differs from FP32 in {rate} ({basis})"


def _memory(memory: Mapping[str, Any] | None) -> str:
    if not memory:
        return ""
    return ledger.reading_text(memory)


def level(found: Mapping[str, Any] | None) -> str:
    """Return how loud the last recording of a microphone was; "" where none is known."""
    if found is None:
        return ""
    if found["problem"]:
        return f"{found['device']} {found['problem']}"
    if found["speech_dbfs"] is None and found["noise_dbfs"] is None:
        return f"{found['device']}: too short to measure"
    if found["speech_dbfs"] is None:
        return f"{found['device']}: no speech, {found['noise_dbfs']:.0f} dBFS"
    between = ""
    if found["noise_dbfs"] is not None:
        between = f", {found['noise_dbfs']:.0f} dBFS between"
    return f"{found['device']}: speech at {found['speech_dbfs']:.0f} dBFS{between}"


def _meter(level: float | None) -> str:
    """Return a level in dB below full scale as a bar of ten."""
    full = 0
    if level is not None:
        full = max(0, min(10, round(10 + level / 6)))
    return "▮" * full + "▯" * (10 - full)
