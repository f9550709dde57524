"""File descriptors of the daemon: their limit, and how many clients it allows."""

from __future__ import annotations

import contextlib
import resource

CONNECTIONS = 2000
"""Clients connected at once, fewer where the descriptor limit is low. The kernel holds more until
one leaves.

From half of them on, clients that have been silent for a while are ended, so that the other half is
for new ones.
"""

SPARE_DESCRIPTORS = 128
"""Descriptors that are no client's: the microphone's, the worker's, those of files and sinks."""

MAX_DESCRIPTORS = 4096
"""Soft limit that the daemon gives itself. More would slow programs that close every descriptor
before they begin."""


def connections() -> int:
    """Return how many clients may be connected at once under this process's descriptor limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(CONNECTIONS, soft - SPARE_DESCRIPTORS))


def raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors, which is 1,024 in most sessions, as far as the daemon
    can use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
