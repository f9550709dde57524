"""Names that an older release used on the control socket; sent and accepted for one release beside
today's. Imports little."""

from __future__ import annotations

from typing import Any

VERBS = {"takes": "recordings"}
"""Verb of an older release -> its name today."""

KEYS = {
    "said": "message",
    "take": "recording",
    "trouble": "error",
    "below": "fallback",
    "otherwise": "precision_note",
}
"""Key of a reply of an older release -> its name today."""

STATES = {"PARKED": "UNLOADED"}
"""State of an older release -> its name today."""

_OLDER_STATES = {now: older for older, now in STATES.items()}


def with_older(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a reply with the keys of an older release beside today's.

    The state has one key, so its older name has a key of its own: `older_state`.
    """
    older = {old: reply[key] for old, key in KEYS.items() if key in reply and old not in reply}
    if "state" in reply:
        older["older_state"] = _OLDER_STATES.get(reply["state"], reply["state"])
    return reply | older


def with_todays(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a reply, perhaps of an older daemon, with today's keys and today's state."""
    todays = {key: reply[old] for old, key in KEYS.items() if old in reply and key not in reply}
    if reply.get("state") in STATES:
        todays["state"] = STATES[reply["state"]]
    return reply | todays
