"""What a status reply looks like: one line, a page, JSON for waybar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from asrd.precision import ledger
from asrd.terminal.output import one_line
from asrd.text.spacing import joined_texts
from asrd.text.wording import counted

if TYPE_CHECKING:
    pass

LATE = 2.0
"""Seconds of speech that are not text yet from which on a person is told that the machine does not
keep up."""

MARKS = {
    "LISTENING": "●",
    "FLUSHING": "…",
    "LOADING": "◌",
    "IDLE": "○",
    "PARKED": "◦",
    "STOPPING": "×",
}
"""What a bar shows for a state."""


def line(reply: Mapping[str, Any]) -> str:
    """Return a status as one line."""
    take = reply.get("take") or {}
    parts = [f"{MARKS.get(reply['state'], '?')} {reply['state']}"]
    if take:
        parts.append(f"{take['seconds']:.1f} s {_meter(take['level'])}")
        if reply.get("loading"):
            parts.append(f"the model loads: {reply['loading']}")
        elif (behind := take.get("behind", 0)) >= LATE:
            parts.append(f"{behind:.0f} s behind")
        parts.append(_words(take))
    elif reply.get("download"):
        parts.append(str(reply["loading"]))
    if below := reply.get("below"):
        parts.append(f"below {below['wanted']} ({below['kind']})")
    parts += [part for part in (reply.get("trouble"), reply.get("capture")) if part]
    return "  ".join(filter(None, parts))


def _words(take: Mapping[str, Any]) -> str:
    """Return what was said so far; what may still change ends in dots."""
    draft = f"{take['draft']} ..." if take.get("draft") else ""
    return joined_texts((take.get("text") or "", draft))


def page(reply: Mapping[str, Any]) -> str:
    """Return a status for a person who asked once."""
    rows = [
        ("state", line(reply)),
        ("model", reply["model"] or "none"),
        ("note", reply.get("model_note", "")),
        ("strategy", _strategy(reply)),
        ("dtypes", ", ".join(f"{part} {dtype}" for part, dtype in reply["effective"].items())),
        ("but", reply.get("otherwise", "")),
        ("drafts", "cost what is new" if reply["streaming"] == "cache-aware" else ""),
        ("memory", _memory(reply["memory"])),
        ("level", level(reply.get("level"))),
        ("below", _below(reply.get("below"))),
        ("shadow", _shadow(reply.get("shadow"))),
        ("faults", f"rehearsed: {reply['faults']}" if reply.get("faults") else ""),
        ("rejected", "; ".join(reply["rejected"])),
        (
            "waiting",
            f"{counted(reply['waiting'], 'recording')}; asrd takes lists them"
            if reply["waiting"]
            else "",
        ),
        ("sinks", ", ".join(reply["sinks"])),
        ("daemon", f"asrd {reply['version']}, process {reply['pid']}, up {reply['uptime']:.0f} s"),
    ]
    return "\n".join(f"{name:<9} {one_line(text)}" for name, text in rows if text)


def _strategy(reply: Mapping[str, Any]) -> str:
    """Return which strategy runs and where; before a worker runs, which one was asked for."""
    if not reply["strategy"]:
        return f"no model is loaded; {reply['requested']} is asked for"
    return f"{reply['strategy']} (asked for {reply['requested']}) on {reply['device']}{loaded_in(reply)}"


def loaded_in(reply: Mapping[str, Any]) -> str:
    """Return how long the worker took from its start until it was ready; "" where that is not
    known."""
    return (
        f", loaded in {reply['load_seconds']:.1f} s"
        if reply.get("load_seconds") is not None
        else ""
    )


def waybar(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Return a status as waybar's custom modules take it; below what was asked for, "below" is a
    second class."""
    state = str(reply["state"])
    css: str | list[str] = (
        "trouble" if reply.get("trouble") or reply.get("capture") else state.lower()
    )
    css = [str(css), "below"] if reply.get("below") else css
    tooltip = (
        page(reply).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )  # it is Pango markup
    return {"text": MARKS.get(state, "?"), "alt": state.lower(), "class": css, "tooltip": tooltip}


def _below(below: Mapping[str, Any] | None) -> str:
    """Return what does not run though it was asked for, why, and when it is tried again."""
    if below is None:
        return ""
    again = below.get("again_in")
    when = (
        ""
        if again is None
        else f"; tried again after {max(1, round(again / 60))} min without trouble"
    )
    return f"{below['wanted']} was asked for and is not used: {below['detail']}{when}"


def _shadow(shadow: Mapping[str, Any] | None) -> str:
    """Return the disagreement with FP32 as a line; "" where nothing is compared."""
    if shadow is None:
        return ""
    if shadow.get("per_100") is None:
        return f"nothing is compared with FP32 yet; {counted(shadow['waiting'], 'recording')} to compare"
    low = shadow.get("low")
    both = f" [{low:.1f}, {shadow['high']:.1f}]" if low is not None else ""
    takes = f"{counted(shadow['takes'], 'recording')}, {counted(shadow['words'], 'word')}"
    return f"{shadow['strategy']} differs from FP32 in {shadow['per_100']:.1f}{both} words of 100 ({takes})"


def _memory(memory: Mapping[str, Any] | None) -> str:
    return ledger.told(memory) if memory else ""


def level(found: Mapping[str, Any] | None) -> str:
    """Return how loud the last recording of a microphone was; "" where none is known."""
    if found is None:
        return ""
    if found["problem"]:
        return f"{found['device']} {found['problem']}"
    if found["speech_dbfs"] is None and found["noise_dbfs"] is None:
        return f"{found['device']}: too short to tell"
    if found["speech_dbfs"] is None:
        return f"{found['device']}: no speech, {found['noise_dbfs']:.0f} dBFS"
    between = f", {found['noise_dbfs']:.0f} dBFS between" if found["noise_dbfs"] is not None else ""
    return f"{found['device']}: speech at {found['speech_dbfs']:.0f} dBFS{between}"


def _meter(level: float | None) -> str:
    """Return a level in dB below full scale as a bar of ten."""
    full = 0 if level is None else max(0, min(10, round(10 + level / 6)))
    return "▮" * full + "▯" * (10 - full)
