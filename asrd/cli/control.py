"""The verbs that only ask the daemon, over its control socket.

Imports little: a key is bound to these verbs, and a person waits for them.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from asrd.cli.status_page import line, loaded_in, page, waybar
from asrd.daemon.client import ask
from asrd.daemon.control_socket import Place
from asrd.errors import ControlError, SinkError, UsageError
from asrd.terminal.output import one_line, tell, tell_json
from asrd.text import durations

if TYPE_CHECKING:
    from asrd.config.settings import Settings


def _ask_once(
    args: argparse.Namespace, settings: Settings | Place, **request: Any
) -> dict[str, Any]:
    return next(iter(ask(settings, **request)))


def _add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the daemon's answer as it came")


def _print_reply(args: argparse.Namespace, reply: dict[str, Any], text: str) -> int:
    """Print a text, or with --json the reply it was made of; return 0."""
    if args.json:
        tell_json(reply)
    else:
        tell(text)
    return 0


def toggle_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `asrd toggle`."""
    _add_json_flag(parser)


def toggle(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Start recording, or stop it."""
    reply = _ask_once(args, settings, verb="toggle")
    return _print_reply(args, reply, reply["message"])


stop_arguments = cancel_arguments = reload_arguments = toggle_arguments


def stop(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Stop recording; the recording becomes text."""
    reply = _ask_once(args, settings, verb="stop")
    return _print_reply(args, reply, reply["message"])


def cancel(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Stop recording and drop the recording."""
    reply = _ask_once(args, settings, verb="cancel")
    return _print_reply(args, reply, reply["message"])


def reload(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Have the daemon read its configuration again."""
    reply = _ask_with_progress(settings, verb="reload")
    text = str(reply["message"])
    if not text.startswith("nothing changed"):
        text = f"changed: {text}"
    if reply.get("now"):
        text += f"; now {reply['now']}{loaded_in(reply)}"
    return _print_reply(args, reply, text)


def _ask_with_progress(settings: Settings | Place, **request: Any) -> dict[str, Any]:
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
    """Declare the arguments of `asrd start`."""
    _add_json_flag(parser)
    parser.add_argument(
        "--wait", action="store_true", help="print the text here and send it nowhere else"
    )
    span = durations.seconds_argument
    silence = "stop this long after the last speech; if nothing is spoken, after this long, but at least 30 s"
    parser.add_argument("--silence", type=span, metavar="S", help=silence)
    parser.add_argument("--seconds", type=span, metavar="S", help="stop after this long")


def start(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Start recording; with --wait print the text once it has stopped.

    Returns 1 when no words were recognized.
    """
    reply: dict[str, Any] = {}
    for reply in ask(
        settings, verb="start", wait=args.wait, silence=args.silence, seconds=args.seconds
    ):
        if not reply.get("more") and args.wait:
            seconds = reply.get("seconds", 0.0)
            return _print_text(args, reply, f"no words were recognized in {seconds:.1f} s")
        if not args.wait:
            return _print_reply(args, reply, reply["message"])
        if reply.get("capture"):
            tell(f"asrd: {one_line(reply['message'])}", sys.stderr)
    return 1


def _print_text(args: argparse.Namespace, reply: dict[str, Any], none: str) -> int:
    """Print the text of a reply and return 0; without text print `none` on standard error and
    return 1."""
    text = reply["text"]
    if text or args.json:
        _print_reply(args, reply, text)
    if text:
        return 0
    tell(f"asrd: {one_line(none)}", sys.stderr)
    return 1


def use_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `asrd use`."""
    _add_json_flag(parser)
    parser.add_argument("wanted", metavar="STRATEGY", help="precision strategy to use from now on")


def use(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Change the precision of a running daemon; on failure the old worker stays."""
    reply = _ask_with_progress(settings, verb="use", strategy=args.wanted)
    return _print_reply(args, reply, f"{reply['message']}{loaded_in(reply)}")


def last_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `asrd last`."""
    _add_json_flag(parser)
    parser.add_argument(
        "--wait", action="store_true", help="wait for a recording that is still being transcribed"
    )


def last(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Print the last text again. Returns 1 where there is none."""
    reply = _ask_once(args, settings, verb="last", wait=args.wait)
    if reply.get("note"):
        tell(f"asrd: {one_line(reply['note'])}", sys.stderr)
    return _print_text(args, reply, reply.get("detail") or "there is no text yet")


def recordings_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `asrd recordings`."""
    _add_json_flag(parser)


def recordings(args: argparse.Namespace, settings: Settings | Place) -> int:
    """List the recordings that are kept; without a daemon too."""
    import msgspec

    from asrd.recordings.store import RecordingStore, folder

    notes = RecordingStore(folder()).all()
    if args.json:
        for note in notes:
            tell_json(msgspec.structs.asdict(note))
        return 0
    from asrd.terminal.listing import show

    rows = []
    for note in notes:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(note.began))
        state = note.fate
        if note.uncertain:
            state += f"; may have been delivered to {' and '.join(note.uncertain)}"
        rows.append((note.id, when, f"{note.seconds:.1f} s", state))
    if rows:
        show(("recording", "began", ">length", "state"), rows)
    else:
        tell("no recordings are kept")
    return 0


def retry_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `asrd retry`."""
    _add_json_flag(parser)
    parser.add_argument(
        "recording",
        nargs="?",
        default="",
        help="name of a recording, or the beginning of it; the newest if left out",
    )
    parser.add_argument(
        "--all", action="store_true", help="transcribe every recording that waits, oldest first"
    )
    to_sinks = "send the text to the sinks instead of printing it here"
    parser.add_argument("--deliver", dest="to_sinks", action="store_true", help=to_sinks)
    again = "also send text that may have been delivered before the daemon or a sink ended; includes --deliver"
    parser.add_argument("--again", action="store_true", help=again)


def retry(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Transcribe kept recordings again."""
    if args.recording and args.all:
        raise UsageError(
            f"asrd retry --all takes no recording name; remove {args.recording}",
            f"asrd retry --all, or asrd retry {args.recording}",
        )
    to_sinks = args.to_sinks or args.again
    code = 0
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
            text = reply["text"]
            if to_sinks:
                text = f"{reply['recording']} was delivered"
            _print_reply(args, reply, text)
    return code


# -- status
# -----------------------------------------------------------------------------------------------------------


def status_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `asrd status`."""
    _add_json_flag(parser)
    parser.add_argument(
        "--follow",
        action="store_true",
        help="keep running: print a line for each change, and levels while recording",
    )
    parser.add_argument(
        "--waybar", action="store_true", help="JSON for a waybar module, with or without --follow"
    )


def status(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Print what the daemon does; to a bar also that none runs."""
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
