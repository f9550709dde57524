"""What each kind of failure means for the candidate that had it: one table, kind -> action (pure).

A kind comes from the worker, from its loss, from the plan, or from a trigger that judged answers.
Code asks `action_of(kind)` and branches on the fields, never on names of kinds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from asrd.errors import (
    AsrdError,
    AudioError,
    ConfigError,
    DiskError,
    ModelError,
    NetworkError,
    UsageError,
)


class FailureAction(msgspec.Struct, frozen=True, kw_only=True):
    """What is done about one kind of failure."""

    follow: Literal["next", "smaller", "same device", "other device", "component"] = "next"
    """Which candidate follows.

    next: the next one, which is safer. smaller: one that needs less memory. same device: the next,
    while one on the same device is left; FP32 itself cannot fail so. other device: one that is not
    on this card. component: the same with the named component in FP32, else the next.
    """
    retry: bool = False
    """The same candidate is started once more first: it was bad luck, or came from outside."""
    without_graphs: bool = False
    """A card's worker is started once more without CUDA graphs before its candidate is left."""
    may_return: bool = False
    """It may be over later, so that the candidate may be tried again after a wait."""
    over_after_stop: bool = False
    """It may be over once the worker was stopped: a neighbour left, a card came back."""
    fewer_at_once: bool = False
    """Of several buffers at once, fewer are asked together before the candidate is blamed."""
    ends_worker: bool = False
    """The worker's process cannot recover and ends itself."""
    error: type[AsrdError] | None = None
    """The error for the user where no other candidate would cure it."""


FAILURE_ACTIONS: dict[str, FailureAction] = {
    # what no other precision would cure
    "model": FailureAction(error=ModelError),
    "network": FailureAction(error=NetworkError),
    "disk": FailureAction(error=DiskError),
    "usage": FailureAction(error=UsageError),
    "config": FailureAction(error=ConfigError),
    "audio": FailureAction(error=AudioError),
    # what a worker says of itself
    "non-finite": FailureAction(follow="component"),
    "self-test": FailureAction(),
    "unsupported": FailureAction(),
    "internal": FailureAction(),
    "no-device": FailureAction(follow="other device"),
    "device-lost": FailureAction(
        without_graphs=True, may_return=True, over_after_stop=True, ends_worker=True
    ),
    "out-of-memory": FailureAction(follow="smaller", may_return=True, fewer_at_once=True),
    # how a worker is lost, or is not what was started
    "killed": FailureAction(retry=True, may_return=True),
    "stalled": FailureAction(retry=True, may_return=True),
    "died": FailureAction(retry=True, without_graphs=True, may_return=True),
    "garbage": FailureAction(),
    "dtypes": FailureAction(),
    # before a worker is started
    "no-room": FailureAction(follow="smaller", may_return=True, over_after_stop=True),
    "budget": FailureAction(follow="smaller", may_return=True),
    "hardware": FailureAction(),
    "measured": FailureAction(),
    # what a worker's answers show
    "slow": FailureAction(follow="same device", may_return=True),
    "memory": FailureAction(follow="same device", may_return=True),
    "changed": FailureAction(follow="same device"),
    "empty": FailureAction(follow="same device"),
    "failures": FailureAction(may_return=True),
    "silent": FailureAction(may_return=True),
}
"""Kind of a failure -> what is done about it.

`silent` is `empty` once FP32 found no words either.
"""

UNKNOWN_ACTION = FailureAction()
"""For a kind that is not in the table: the next candidate, for good."""


def action_of(kind: str) -> FailureAction:
    """Return what is done about a kind of failure; for an unknown one, the next candidate
    follows."""
    return FAILURE_ACTIONS.get(kind, UNKNOWN_ACTION)


def kind_of(error: AsrdError) -> str:
    """Return the kind of an error that no other precision would cure; "" for every other error."""
    for kind, action in FAILURE_ACTIONS.items():
        if action.error is not None and isinstance(error, action.error):
            return kind
    return ""
