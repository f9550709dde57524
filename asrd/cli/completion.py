"""`asrd completion`: what a shell proposes behind `asrd`, which shtab makes of the verbs' parsers.

Imports the module of every verb, which a key press never does.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence

from asrd.cli.help import TOPICS
from asrd.config.settings import CHOICES
from asrd.models import architectures, names
from asrd.precision.strategies import AUTO_PRESETS, STRATEGY_TABLE
from asrd.terminal.arguments import Parser

SHELLS = ("bash", "zsh", "fish")

FILES = ("FILE", "PATH", "F", "F.jsonl")
"""How a verb's help calls a value that is a file's name."""

WORDS = {
    "strategy": ("auto", *STRATEGY_TABLE),
    "wanted": ("auto", *STRATEGY_TABLE),
    "preset": tuple(AUTO_PRESETS),
    "device": ("auto", "cpu", "cuda"),
    "deliver": CHOICES["deliver"],
    "sinks": ("type", "paste", "clipboard", "stdout", "journal", "none"),
}
"""Argument of a verb -> the words that a shell proposes for its value."""

OTHER_WORDS = {
    "help": ("show a page of the documentation", "TOPIC", TOPICS),
    "completion": ("print the completions for a shell", "SHELL", SHELLS),
}
"""Word in a verb's place that is no verb -> what it does, its argument, and what that may be."""


Parsers = Mapping[str, argparse.ArgumentParser]
"""Verb -> its parser."""


def completion(words: Sequence[str], parsers: Callable[[], Parsers]) -> int:
    """Print the completions for a shell; return 0. Raises UsageError."""
    parser = Parser("asrd completion", description=__doc__.splitlines()[0])
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    shell = parser.parse_args(words).shell

    import shtab

    print(shtab.complete(whole_parser(parsers()), shell, preamble=model_functions()[shell]))
    return 0


def whole_parser(parsers: Parsers) -> argparse.ArgumentParser:
    """Return one parser with each verb's as a sub-command, and with what a shell proposes."""
    whole = argparse.ArgumentParser("asrd")
    verbs = whole.add_subparsers(metavar="VERB")
    for verb, parser in parsers.items():
        for action in parser._actions:
            propose(action)
        about = parser.description
        verbs.add_parser(verb, parents=[parser], add_help=False, help=about, description=about)
    for word, (about, name, choices) in OTHER_WORDS.items():
        verbs.add_parser(word, help=about).add_argument(name.lower(), metavar=name, choices=choices)
    return whole


def propose(action: argparse.Action) -> None:
    """Note on an argument what a shell proposes for its value."""
    import shtab

    if action.dest == "model":
        asked = dict.fromkeys(SHELLS, "_asrd_models") | {"fish": "(_asrd_models)"}
        action.complete = asked  # type: ignore[attr-defined]
    elif action.metavar in FILES:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif action.dest in WORDS:
        action.choices = WORDS[action.dest]


def model_functions() -> dict[str, str]:
    """Return for each shell the function that proposes names of models and files."""
    known = shlex.join([*names.SHIPPED, *architectures.ARCHITECTURES])
    return {
        "bash": f'_asrd_models() {{ compgen -W "{known}" -- "$1"; compgen -f -- "$1"; }}',
        "zsh": f"_asrd_models() {{ compadd {known}; _files }}",
        "fish": f"function _asrd_models\n  printf '%s\\n' {known}\n"
        "  __fish_complete_path (commandline -ct)\nend",
    }
