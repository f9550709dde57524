"""What a person reads on a terminal: text, JSON and complaints, with no character in them that a
terminal obeys.

Much of it comes from elsewhere: a file's name, a socket that anybody may have made, a model.
Imports little.
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any, TextIO

from asrd.errors import AsrdError
from asrd.text import filenames
from asrd.text.characters import printable


def tell(text: str, stream: TextIO | None = None) -> None:
    """Print a text at once, on standard output where no stream is given."""
    print(printable(text), file=stream, flush=True)


def tell_line(text: str, bold: bool = False) -> None:
    """Print a text on standard output, in bold where that is asked for and the terminal has it."""
    text, stream = printable(text), sys.stdout
    if (
        bold
        and stream.isatty()
        and "NO_COLOR" not in os.environ
        and os.environ.get("TERM") != "dumb"
    ):
        text = f"\x1b[1m{text}\x1b[0m"
    print(text, file=stream, flush=True)


def tell_json(value: Any) -> None:
    """Print a value as one line of JSON; what a terminal might obey is escaped in it, so its
    meaning stays."""
    tell(json.dumps(filenames.spelt(value), ensure_ascii=not _takes_utf8()))


def tell_document(value: Any, indent: int = -1) -> None:
    """Print a value with msgspec's types as JSON, as `tell_json` does, on lines with `indent` where
    that is not -1."""
    import msgspec

    text = msgspec.json.format(filenames.to_json(value), indent=indent).decode()
    if not _takes_utf8():
        text = json.dumps(json.loads(text), indent=None if indent < 0 else indent)
    tell(text)


def _takes_utf8() -> bool:
    """Return whether standard output is UTF-8, which JSON has to be; elsewhere only ASCII is that
    too."""
    encoding = str(getattr(sys.stdout, "encoding", None) or "utf-8")
    return encoding.replace("-", "").replace("_", "").lower() == "utf8"


def replace_unwritable() -> None:
    """Have standard output write "?" for a character that its encoding lacks, rather than fail at
    it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def complain(error: AsrdError) -> None:
    """Print an error and its hint on standard error, a line each."""
    tell(f"asrd: {one_line(error.message)}", sys.stderr)
    if error.hint:
        tell(f"  hint: {one_line(error.hint)}", sys.stderr)


def one_line(text: str) -> str:
    """Return a text that stays on its line, whatever name is quoted in it."""
    return printable(text, breaks=False)


def tell_renamed(older: str, today: str) -> None:
    """Print on standard error that a word of the command line has another name now."""
    line = f"asrd: {older} is called {today} now; the older name works for one release"
    tell(line, sys.stderr)
