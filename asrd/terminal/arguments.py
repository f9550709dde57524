"""The command line's parser: every complaint is one sentence and a hint, and help never breaks a
name.

Knows argparse and its wording; does not know the verbs. `ProgramParser` is for programs beside
asrd, as in tools/.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from asrd.errors import UsageError, nearest
from asrd.terminal.output import complain, one_line, tell_renamed

NUMBERS = {"int": "not a whole number", "float": "not a number"}
"""Type of an argument -> what a wrong value is."""

MIN_LIKENESS = 0.7
"""Likeness of two flags from which one counts as a misspelling of the other."""


class HelpFormatter(argparse.HelpFormatter):
    """Help whose lines end between words: a hyphen is part of a name."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return self._wrapped(text, width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in self._wrapped(text, width - len(indent)))

    def _wrapped(self, text: str, width: int) -> list[str]:
        plain = " ".join(text.split())
        return textwrap.wrap(plain, max(11, width), break_on_hyphens=False, break_long_words=False)


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError where argparse would print its usage and exit.

    Args:
        prog: the words that start the program.
        words: for ArgumentParser.
    """

    def __init__(self, prog: str | None = None, **words: Any) -> None:
        usual: dict[str, Any] = {"formatter_class": HelpFormatter, "allow_abbrev": False}
        super().__init__(prog, **(usual | words))
        self.elsewhere: Callable[[str, str], str] = lambda flag, value: ""
        """Return a hint for a flag that this parser lacks, and the word behind it; "" where it
        knows none."""
        self.stray: Callable[[str], str] = lambda word: ""
        """Return a hint for a word that this parser has no place for; "" where it knows none."""
        self.older_flags: Mapping[str, str] = {}
        """Flag of an older release -> its name today; where this parser has that one, it accepts
        both."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return what the words mean. Raises UsageError."""
        if args is None:
            args = sys.argv[1:]
        words = self._renamed(list(args))
        self._check_flags(words)
        found, rest = self.parse_known_args(words, namespace)
        if rest := [word for word in rest if word != "--"]:
            hint = self.stray(rest[0]) or f"{self.prog} --help"
            raise UsageError(f"{self.prog} takes no further word: {rest[0]!r}", hint)
        return found

    def print_help(self, file: Any = None) -> None:
        """Print the help, in colours on a terminal."""
        if file is None and sys.stdout.isatty():
            self.formatter_class = _coloured
        super().print_help(file)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with argparse's complaint in our words."""
        raise UsageError(*self._explained(message))

    def _renamed(self, words: list[str]) -> list[str]:
        """Return the words with today's names of older flags, saying so on standard error."""
        end = words.index("--") if "--" in words else len(words)
        for place, word in enumerate(words[:end]):
            flag, equals, value = word.partition("=")
            today = self.older_flags.get(flag)
            if today in self._option_string_actions and flag not in self._option_string_actions:
                tell_renamed(flag, today)
                words[place] = f"{today}{equals}{value}"
        return words

    def _check_flags(self, words: Sequence[str]) -> None:
        """Raise UsageError for the first flag that there is not, before argparse misses anything
        else."""
        for place, word in enumerate(words):
            if word == "--":
                return
            flag, equals, value = word.partition("=")
            if not re.match(r"--?[A-Za-z]", flag) or flag in self._option_string_actions:
                continue
            if not flag.startswith("--") and flag[:2] in self._option_string_actions:
                continue  # -hx is -h and -x to argparse, -ofile is -o with a value
            if not equals:
                value = _first_word(words[place + 1 :])
            raise UsageError(f"{self.prog} has no flag {flag}", self._flag_hint(flag, value))

    def _flag_hint(self, flag: str, value: str) -> str:
        """Return what a flag should have been: one of this parser's, or something else's."""
        import difflib

        if os.path.exists(flag):
            return f"for the file of that name write ./{flag}"
        own = [name for name in self._option_string_actions if name.startswith("--")]
        wanted = "--" + flag.lstrip("-").lower().replace("_", "-")
        if wanted in own:
            return f"did you mean {wanted}?"
        if hint := self.elsewhere(wanted, value):
            return hint
        for close in difflib.get_close_matches(wanted, own, n=1, cutoff=MIN_LIKENESS):
            return f"did you mean {close}?"
        return f"{self.prog} --help lists its flags"

    def _explained(self, message: str) -> tuple[str, str]:
        """Return argparse's complaint as a sentence and a hint."""
        see = f"{self.prog} --help"
        if match := re.fullmatch(r"the following arguments are required: (.+)", message, re.DOTALL):
            return f"{self.prog} needs {match[1]}", see
        if match := re.fullmatch(r"one of the arguments (.+) is required", message, re.DOTALL):
            return f"{self.prog} needs one of {match[1]}", see
        if match := re.match(r"argument (.+?): (.+)$", message, re.DOTALL):
            return self._of_argument(match[1], match[2])
        return one_line(message), see

    def _action(self, name: str) -> argparse.Action | None:
        """Return an argument by its name in argparse's complaints."""
        for action in self._actions:
            if name in (*action.option_strings, _label(action)):
                return action
        return None

    def _of_argument(self, name: str, why: str) -> tuple[str, str]:
        """Return what is wrong with an argument, and a hint."""
        action, see = self._action(name), f"{self.prog} --help"
        if match := re.match(r"invalid choice: (.+?) \(choose from", why, re.DOTALL):
            choices: list[str] = []
            if action is not None:
                choices += map(str, action.choices or ())
            hint = nearest(_unquoted(match[1]), choices, see)
            return f"{match[1]} is no {name.lstrip('-')}", hint
        if match := re.match(r"invalid (\w+) value: (.+)$", why, re.DOTALL):
            what = NUMBERS.get(match[1], "not right")
            return f"{name} is {match[2]}, which is {what}", see
        if why.startswith("expected"):
            shown = "VALUE"
            if action is not None and isinstance(action.metavar, str):
                shown = action.metavar
            return f"{name} needs a value", f"write {name.split('/')[-1]} {shown}"
        if match := re.match(r"not allowed with argument (.+)$", why):
            return f"{name} and {match[1]} exclude each other", "keep one of them"
        if why.startswith("ignored explicit argument"):
            return f"{name} takes no value", f"write {name.split('/')[-1]} alone"
        return f"{name}: {why}", see


def _first_word(words: Sequence[str]) -> str:
    """Return the first word that is no flag; "" where there is none."""
    for word in words:
        if not word.startswith("-"):
            return word
    return ""


def _coloured(prog: str) -> argparse.HelpFormatter:
    """Return a formatter whose headings and flags have colours where the terminal has them."""
    # Imported here, as argparse makes a formatter for each argument that a verb adds.
    from rich_argparse import RichHelpFormatter

    class ColouredHelpFormatter(RichHelpFormatter):
        group_name_formatter = str
        help_markup = text_markup = False

    return ColouredHelpFormatter(prog)


def _label(action: argparse.Action) -> str:
    """Return how argparse's complaints call an argument."""
    if action.option_strings:
        return "/".join(action.option_strings)
    return str(action.metavar or action.dest)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text


class ProgramParser(Parser):
    """A parser for a program that does not catch errors: complaints go to standard error, the exit
    code is 2."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return what the words mean; exit with 2 and a sentence where they mean nothing."""
        try:
            return super().parse_args(args, namespace)
        except UsageError as error:
            self.stop(error)

    def stop(self, error: UsageError) -> NoReturn:
        """Print an error and exit with its code."""
        complain(error)
        raise SystemExit(error.exit_code)
