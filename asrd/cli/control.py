"""The control socket seen from outside: where it is, what is said on it, and the verbs that only
ask the daemon.

One JSON object a line each way. A reply has `ok`; where that is false also `error`, `hint` and
`code`, the exit code. Imports little: a key is bound to these verbs, and a person waits for them.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from asrd.errors import (
    ControlError,
    SinkError,
    UsageError,
)
from asrd.terminal.output import one_line, tell, tell_json
from asrd.text import durations

if TYPE_CHECKING:
    from asrd.config.settings import Settings
from asrd.cli.status_page import line, loaded_in, page, waybar
from asrd.daemon.client import ask
from asrd.daemon.control_socket import Place


def _one(args: argparse.Namespace, settings: Settings | Place, **request: Any) -> dict[str, Any]:
    return next(iter(ask(settings, **request)))


def _shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the daemon's answer as it came")


def _told(args: argparse.Namespace, reply: dict[str, Any], text: str) -> int:
    tell_json(reply) if args.json else tell(text)
    return 0


def toggle_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `asrd toggle` takes."""
    _shape(parser)


def toggle(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Start recording, or stop it."""
    reply = _one(args, settings, verb="toggle")
    return _told(args, reply, reply["message"])


stop_arguments = cancel_arguments = reload_arguments = toggle_arguments


def stop(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Stop recording; what was said becomes text."""
    reply = _one(args, settings, verb="stop")
    return _told(args, reply, reply["message"])


def cancel(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Stop recording and forget what was said."""
    reply = _one(args, settings, verb="cancel")
    return _told(args, reply, reply["message"])


def reload(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Have the daemon read its configuration again."""
    reply = _watched(settings, verb="reload")
    now = f"; now {reply['now']}{loaded_in(reply)}" if reply.get("now") else ""
    changed = "" if str(reply["message"]).startswith("nothing changed") else "changed: "
    return _told(args, reply, f"{changed}{reply['message']}{now}")


def _watched(settings: Settings | Place, **request: Any) -> dict[str, Any]:
    """Ask for what takes a worker's start, showing on standard error how far it is; return the last
    reply."""
    from asrd.terminal.progress import ProgressLine

    reply: dict[str, Any] = {}
    with ProgressLine() as shown:
        for reply in ask(settings, follow=True, **request):
            if reply.get("more"):
                shown.show(str(reply.get("progress", "")), now=bool(reply.get("waits")))
    return reply


def start_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `asrd start` takes."""
    _shape(parser)
    parser.add_argument(
        "--wait", action="store_true", help="print the text here and send it nowhere else"
    )
    span = durations.seconds_argument
    silence = "stop by itself so long after the last speech; without any, after 30 s, or so long if that is more"
    parser.add_argument("--silence", type=span, metavar="S", help=silence)
    parser.add_argument(
        "--seconds", type=span, metavar="S", help="stop by itself after so many seconds"
    )


def start(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Start recording; with --wait print what was said once it has stopped. Returns 1 when no word
    was heard."""
    reply: dict[str, Any] = {}
    for reply in ask(
        settings, verb="start", wait=args.wait, silence=args.silence, seconds=args.seconds
    ):
        if not reply.get("more") and args.wait:
            return _text(args, reply, f"no word was heard in {reply.get('seconds', 0.0):.1f} s")
        if not args.wait:
            return _told(args, reply, reply["message"])
        if reply.get("capture"):
            tell(f"asrd: {one_line(reply['message'])}", sys.stderr)
    return 1


def _text(args: argparse.Namespace, reply: dict[str, Any], none: str) -> int:
    """Print the text of a reply and return 0; where it has none, say so on standard error and
    return 1."""
    if reply["text"] or args.json:
        _told(args, reply, reply["text"])
    if not reply["text"]:
        tell(f"asrd: {one_line(none)}", sys.stderr)
    return 0 if reply["text"] else 1


def use_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `asrd use` takes."""
    _shape(parser)
    parser.add_argument("wanted", metavar="STRATEGY", help="precision strategy to use from now on")


def use(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Change the precision of a running daemon; on failure the old worker stays."""
    reply = _watched(settings, verb="use", strategy=args.wanted)
    return _told(args, reply, f"{reply['message']}{loaded_in(reply)}")


def last_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `asrd last` takes."""
    _shape(parser)
    parser.add_argument(
        "--wait", action="store_true", help="wait for a recording that is not text yet"
    )


def last(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Print the last text again. Returns 1 where there is none."""
    reply = _one(args, settings, verb="last", wait=args.wait)
    if reply.get("note"):
        tell(f"asrd: {one_line(reply['note'])}", sys.stderr)
    return _text(args, reply, reply.get("detail") or "there is no text yet")


def recordings_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `asrd recordings` takes."""
    _shape(parser)


def recordings(args: argparse.Namespace, settings: Settings | Place) -> int:
    """List the recordings that are kept; without a daemon too."""
    from asrd.recordings.store import RecordingStore, folder

    notes = RecordingStore(folder()).all()
    if args.json:
        for note in notes:
            tell_json({name: getattr(note, name) for name in note.__struct_fields__})
        return 0
    from asrd.terminal.listing import show

    rows = []
    for note in notes:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(note.began))
        rest = (
            f"; may have been delivered to {' and '.join(note.uncertain)}" if note.uncertain else ""
        )
        rows.append((note.id, when, f"{note.seconds:.1f} s", f"{note.fate}{rest}"))
    if rows:
        show(("recording", "began", ">length", "state"), rows)
    else:
        tell("no recording is kept")
    return 0


def retry_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `asrd retry` takes."""
    _shape(parser)
    parser.add_argument(
        "recording",
        nargs="?",
        default="",
        help="its name or the beginning of it; the newest if left out",
    )
    parser.add_argument(
        "--all", action="store_true", help="every recording that waits, oldest first"
    )
    to_sinks = "send the text to the sinks instead of printing it here"
    parser.add_argument("--deliver", dest="to_sinks", action="store_true", help=to_sinks)
    again = "send also what may have been delivered before the daemon or a sink ended; includes --deliver"
    parser.add_argument("--again", action="store_true", help=again)


def retry(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Turn kept recordings into text after all."""
    if args.recording and args.all:
        raise UsageError(
            f"asrd retry --all takes no name, and {args.recording} is one",
            "leave the name or --all out",
        )
    to_sinks, code = args.to_sinks or args.again, 0
    asked = {
        "recording": args.recording,
        "all": args.all,
        "deliver": args.to_sinks,
        "again": args.again,
    }
    for reply in ask(settings, verb="retry", **asked):
        for note in reply.get("notes", ()):
            tell(f"asrd: {one_line(note)}", sys.stderr)
        uncertain = to_sinks and reply.get("uncertain")
        if uncertain:
            code = SinkError.exit_code
        if "text" in reply and (args.json or not uncertain):
            _told(args, reply, f"{reply['recording']} was delivered" if to_sinks else reply["text"])
    return code


# -- status
# -----------------------------------------------------------------------------------------------------------


def status_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `asrd status` takes."""
    _shape(parser)
    parser.add_argument(
        "--follow",
        action="store_true",
        help="go on: a line for each change, levels while recording",
    )
    parser.add_argument(
        "--waybar", action="store_true", help="JSON for a waybar module, with or without --follow"
    )


def status(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Say what the daemon does; to a bar also that there is none."""
    try:
        for reply in ask(settings, verb="status", follow=args.follow):
            if args.waybar:
                tell_json(waybar(reply))
            elif args.json:
                tell_json(reply)
            elif args.follow:
                tell(one_line(line(reply)))
            else:
                tell(page(reply))
    except ControlError:
        if not args.waybar:
            raise
        tell_json({"text": "", "class": "off", "tooltip": "asrd is not running"})
    return 0
