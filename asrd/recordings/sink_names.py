"""Names of sinks as people see them, made from their settings (pure).

The arguments of a command may be secret, so its name is the program alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
"""How a word of the shell begins that sets a variable, whose value may be secret."""


def shown(sinks: Iterable[str], among: Iterable[str] = ()) -> str:
    """Return sinks as people see them: of a command its program, as its arguments may be secret.

    Args:
        among: all the sinks among which commands of one program are numbered.
    """
    wanted = [sink for sink in sinks if sink.strip()]
    names = sink_names([*among, *wanted])
    return " and ".join(dict.fromkeys(map(names.__getitem__, wanted)))


def sink_names(keys: Iterable[str]) -> dict[str, str]:
    """Return the name of each sink by its setting; commands of one program are numbered:
    command:curl#1, #2.

    Args:
        keys: in the order of the settings; none is empty.
    """
    names = {key: sink_name(key) for key in keys if key.strip()}
    totals, numbers = Counter(names.values()), Counter[str]()
    for key, name in names.items():
        numbers[name] += 1
        if totals[name] > 1:
            names[key] = f"{name}#{numbers[name]}"
    return names


def sink_name(key: str) -> str:
    """Return a sink's setting as people see it: of a command the program, without variables and
    arguments."""
    kind, colon, line = key.partition(":")
    if kind != "command" or not colon:
        return key.split(maxsplit=1)[0]
    for word in line.split():
        if not ASSIGNMENT.match(word):
            return f"command:{word}"
    return "command:"
