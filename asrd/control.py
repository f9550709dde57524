"""The control socket seen from outside: where it is, what is said on it, and the verbs that only ask the daemon.

One JSON object a line each way. A reply has `ok`; where that is false also `error`, `hint` and `code`, the exit code.
Imports little: a key is bound to these verbs, and a person waits for them.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import durations, filenames, hints, ledger, places, text_files
from .client import persistent
from .errors import AsrdError, BusyError, ControlError, SinkError, SocketError, UsageError
from .spacing import joined_texts
from .terminal import one_line, tell, tell_json
from .wording import counted

if TYPE_CHECKING:
    from .config import Settings

MAX_LINE = 1 << 16
"""Bytes of one line; longer is answered with an error."""

BACKLOG = 1024
"""Clients that may wait to be let in; the kernel caps it (net.core.somaxconn)."""

MAX_PATH = 107
"""Bytes of a Unix socket's path that Linux takes."""

PATIENCE = 30.0
"""Seconds that a daemon may take for an answer that needs no worker; as many as systemd gives one to start."""

LENGTHY = ("use", "reload", "retry", "transcribe")
"""Verbs that wait for a worker."""

LATE = 2.0
"""Seconds of speech that are not text yet from which on a person is told that the machine does not keep up."""

MARKS = {"LISTENING": "●", "FLUSHING": "…", "LOADING": "◌", "IDLE": "○", "PARKED": "◦", "STOPPING": "×"}
"""What a bar shows for a state."""


class Place:
    """The one setting that a verb which only asks needs; reading all of them would take longer than the asking."""

    def __init__(self, socket: str = "", origin: str = "") -> None:
        self.socket = socket
        self.origin = origin
        """What named it: --socket, ASRD_SOCKET or the configuration; "" where nothing did."""


def place(flag: str | None, file: Path | None, environment: Mapping[str, str] = os.environ) -> Place:
    """Return where to ask: the flag, ASRD_SOCKET or the file's `socket`. Raises ConfigError for a broken file."""
    if flag:
        return Place(flag, "--socket")
    if given := environment.get("ASRD_SOCKET"):
        return Place(given, "ASRD_SOCKET")
    where = file or places.config_file(environment)
    try:
        text = text_files.read(where)
    except (OSError, text_files.NotTextError):
        return Place()  # the verbs that need the other settings complain of it
    if "socket" not in text:
        return Place()
    import tomllib

    try:
        named = filenames.named(str(tomllib.loads(text).get("socket", "")))
        return Place(named, f"the setting socket in {where}")
    except tomllib.TOMLDecodeError as error:
        from . import config, misnomers

        raise misnomers.not_toml(where, text, error, config.KNOWN, config.propose) from error


def path(settings: Settings | Place, environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the control socket is. Raises SocketError when that cannot be: no folder, or too long a name."""
    if settings.socket:
        where = Path(settings.socket).expanduser()
    elif runtime := environment.get("XDG_RUNTIME_DIR") or _runtime():
        # A relative folder counts here: daemon and client are given the same one, and the daemon has no other.
        where = Path(runtime) / "asrd.sock"
    else:
        raise SocketError(
            "there is no runtime directory for the control socket: XDG_RUNTIME_DIR is not set",
            "log in through a session manager, or set ASRD_SOCKET to a path in a folder of your own",
        )
    if len(os.fsencode(where)) > MAX_PATH:
        raise SocketError(
            f"the control socket's path is longer than {MAX_PATH} bytes: {where}",
            f"have {_origin(settings, environment)} name a shorter one",
        )
    return where


def _origin(settings: Settings | Place, environment: Mapping[str, str] = os.environ) -> str:
    """Return what named the socket, or what can name another."""
    if not settings.socket:
        return "--socket or ASRD_SOCKET"
    if isinstance(settings, Place):
        return settings.origin or "--socket"
    return "ASRD_SOCKET" if environment.get("ASRD_SOCKET") == settings.socket else "--socket, or the setting socket,"


def _runtime() -> str:
    """Return the user's runtime directory where only the variable is missing, as under sudo or cron."""
    usual = f"/run/user/{os.getuid()}"
    return usual if os.access(usual, os.W_OK) else ""


def listen(settings: Settings | Place) -> socket.socket:
    """Bind the control socket, for the user alone. Raises SocketError: another daemon, no right, no folder.

    A socket that nobody answers on is left over from a daemon that was killed, and is replaced.
    """
    where = path(settings)
    with _alone(where.parent):
        return _bind(where, _origin(settings))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Look at a socket and replace it as one act: of two daemons that start at once, one meets the other's socket."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # binding says what is wrong with it
        yield
        return
    try:
        deadline = time.monotonic() + 2.0  # whoever holds it longer is no asrd
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def _bind(where: Path, origin: str) -> socket.socket:
    if answers(where, origin):
        raise SocketError(
            f"another asrd is running and listens on {where}",
            f"asrd toggle, asrd status and the other verbs reach it; to end it: {hints.stop(where)}",
        )
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    # Under another name first: a client never meets a socket that is bound and not yet its owner's alone.
    new = where.with_name(f".{os.getpid()}")
    try:
        if where.is_socket():
            where.unlink()
        new.unlink(missing_ok=True)
        one.bind(os.fspath(new))
        new.chmod(0o600)
        one.listen(BACKLOG)
        os.link(new, where)
    except FileExistsError as error:
        one.close()
        raise SocketError(
            f"{where} is there and is no socket", f"remove it, or have {origin} name another path"
        ) from error
    except OSError as error:
        one.close()
        raise SocketError(
            f"the control socket {where} cannot be made: {error.strerror or error}",
            f"have {origin} name a path that you may write",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink()
    return one


def forget(settings: Settings | Place) -> None:
    """Remove the control socket of this process, once it is closed; not that of a daemon started meanwhile."""
    with contextlib.suppress(OSError, SocketError):
        where = path(settings)
        if not answers(where):
            where.unlink()


def answers(where: Path, origin: str = "--socket or ASRD_SOCKET") -> bool:
    """Whether a daemon listens there. Raises SocketError where that may not even be asked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(os.fspath(where))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except PermissionError as error:
            hint = f"have {origin} name a path of your own"
            raise SocketError(f"{where} belongs to another user", hint) from error
        except OSError:
            return where.is_socket()
    return True


# -- asking -----------------------------------------------------------------------------------------------------------


def ask(settings: Settings | Place, **request: Any) -> Iterator[dict[str, Any]]:
    """Send one request and yield the replies to it; a daemon that is busy is asked again for some seconds.

    Raises:
        ControlError: no daemon, or one that hangs, or it went away before its last answer.
        BusyError: it had no place for so long.
        AsrdError: what the daemon answered, with its exit code.
    """
    return persistent(lambda: _ask(path(settings), request, _origin(settings)))


def _ask(where: Path, request: dict[str, Any], origin: str) -> Iterator[dict[str, Any]]:
    """Ask once. Raises as `ask`, BusyError at once."""
    patient = request["verb"] in LENGTHY or request.get("wait") or request.get("follow")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(PATIENCE)
        _send(line, where, request, origin)
        if patient:
            line.settimeout(None)
        try:
            with line.makefile("rb") as replies:
                for reply in replies:
                    found = json.loads(reply)
                    if not found["ok"]:
                        raise _refused(found)
                    yield found
                    if not found.get("more"):
                        return
        except TimeoutError as error:
            raise _hangs(where) from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ControlError("the daemon's answer broke off", hints.explain(where)) from error
        raise ControlError("the daemon ended before its last answer", hints.explain(where))


def _send(line: socket.socket, where: Path, request: dict[str, Any], origin: str) -> None:
    """Connect and send the request. Raises BusyError, ControlError."""
    try:
        line.connect(os.fspath(where))
        given = {key: value for key, value in request.items() if value not in (None, False, "")}
        line.sendall(json.dumps(filenames.spelt(given)).encode() + b"\n")
    except BlockingIOError as error:  # nothing was sent
        hint = f"try again; where it hangs: {hints.restart(where)}"
        raise BusyError(f"too many clients wait for the asrd on {where}", hint) from error
    except (BrokenPipeError, ConnectionResetError):
        return  # a daemon that has no place says so and hangs up: its answer is there to be read
    except TimeoutError as error:
        raise _hangs(where) from error
    except PermissionError as error:
        hint = f"ask as that user, or have {origin} name your own daemon's"
        raise ControlError(f"{where} belongs to another user", hint) from error
    except OSError as error:
        raise ControlError(f"no asrd listens on {where}", hints.start(where)) from error


def _hangs(where: Path) -> ControlError:
    return ControlError(
        f"the asrd on {where} gives no answer within {PATIENCE:.0f} s", f"start it anew: {hints.restart(where)}"
    )


def _refused(reply: Mapping[str, Any]) -> AsrdError:
    kind = BusyError if reply.get("busy") else AsrdError
    error = kind(str(reply.get("error", "the daemon refused")), str(reply.get("hint", "")))
    error.exit_code = int(reply.get("code", 70))
    return error


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
    return _told(args, reply, reply["said"])


stop_arguments = cancel_arguments = reload_arguments = toggle_arguments


def stop(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Stop recording; what was said becomes text."""
    reply = _one(args, settings, verb="stop")
    return _told(args, reply, reply["said"])


def cancel(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Stop recording and forget what was said."""
    reply = _one(args, settings, verb="cancel")
    return _told(args, reply, reply["said"])


def reload(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Have the daemon read its configuration again."""
    reply = _watched(settings, verb="reload")
    now = f"; now {reply['now']}{_loaded_in(reply)}" if reply.get("now") else ""
    changed = "" if str(reply["said"]).startswith("nothing changed") else "changed: "
    return _told(args, reply, f"{changed}{reply['said']}{now}")


def _watched(settings: Settings | Place, **request: Any) -> dict[str, Any]:
    """Ask for what takes a worker's start, showing on standard error how far it is; return the last reply."""
    from .progress import ProgressLine

    reply: dict[str, Any] = {}
    with ProgressLine() as shown:
        for reply in ask(settings, follow=True, **request):
            if reply.get("more"):
                shown.show(str(reply.get("progress", "")), now=bool(reply.get("waits")))
    return reply


def start_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `asrd start` takes."""
    _shape(parser)
    parser.add_argument("--wait", action="store_true", help="print the text here and send it nowhere else")
    span = durations.seconds_argument
    silence = "stop by itself so long after the last speech; without any, after 30 s, or so long if that is more"
    parser.add_argument("--silence", type=span, metavar="S", help=silence)
    parser.add_argument("--seconds", type=span, metavar="S", help="stop by itself after so many seconds")


def start(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Start recording; with --wait print what was said once it has stopped. Returns 1 when no word was heard."""
    reply: dict[str, Any] = {}
    for reply in ask(settings, verb="start", wait=args.wait, silence=args.silence, seconds=args.seconds):
        if not reply.get("more") and args.wait:
            return _text(args, reply, f"no word was heard in {reply.get('seconds', 0.0):.1f} s")
        if not args.wait:
            return _told(args, reply, reply["said"])
        if reply.get("capture"):
            tell(f"asrd: {one_line(reply['said'])}", sys.stderr)
    return 1


def _text(args: argparse.Namespace, reply: dict[str, Any], none: str) -> int:
    """Print the text of a reply and return 0; where it has none, say so on standard error and return 1."""
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
    return _told(args, reply, f"{reply['said']}{_loaded_in(reply)}")


def last_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `asrd last` takes."""
    _shape(parser)
    parser.add_argument("--wait", action="store_true", help="wait for a recording that is not text yet")


def last(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Print the last text again. Returns 1 where there is none."""
    reply = _one(args, settings, verb="last", wait=args.wait)
    if reply.get("note"):
        tell(f"asrd: {one_line(reply['note'])}", sys.stderr)
    return _text(args, reply, reply.get("detail") or "there is no text yet")


def takes_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `asrd takes` takes."""
    _shape(parser)


def takes(args: argparse.Namespace, settings: Settings | Place) -> int:
    """List the recordings that are kept; without a daemon too."""
    from .takes import Spool, folder

    notes = Spool(folder()).all()
    if args.json:
        for note in notes:
            tell_json({name: getattr(note, name) for name in note.__struct_fields__})
        return 0
    from .listing import show

    rows = []
    for note in notes:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(note.began))
        rest = f"; may have been delivered to {' and '.join(note.uncertain)}" if note.uncertain else ""
        rows.append((note.id, when, f"{note.seconds:.1f} s", f"{note.fate}{rest}"))
    if rows:
        show(("recording", "began", ">length", "state"), rows)
    else:
        tell("no recording is kept")
    return 0


def retry_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `asrd retry` takes."""
    _shape(parser)
    parser.add_argument("take", nargs="?", default="", help="its name or the beginning of it; the newest if left out")
    parser.add_argument("--all", action="store_true", help="every recording that waits, oldest first")
    to_sinks = "send the text to the sinks instead of printing it here"
    parser.add_argument("--deliver", dest="to_sinks", action="store_true", help=to_sinks)
    again = (
        "send also what may have been delivered before the daemon or a sink ended; with it, --deliver may be left out"
    )
    parser.add_argument("--again", action="store_true", help=again)


def retry(args: argparse.Namespace, settings: Settings | Place) -> int:
    """Turn kept recordings into text after all."""
    if args.take and args.all:
        raise UsageError(f"asrd retry --all takes no name, and {args.take} is one", "leave the name or --all out")
    to_sinks, code = args.to_sinks or args.again, 0
    asked = {"take": args.take, "all": args.all, "deliver": args.to_sinks, "again": args.again}
    for reply in ask(settings, verb="retry", **asked):
        for note in reply.get("notes", ()):
            tell(f"asrd: {one_line(note)}", sys.stderr)
        uncertain = to_sinks and reply.get("uncertain")
        if uncertain:
            code = SinkError.exit_code
        if "text" in reply and (args.json or not uncertain):
            _told(args, reply, f"{reply['take']} was delivered" if to_sinks else reply["text"])
    return code


# -- status -----------------------------------------------------------------------------------------------------------


def status_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `asrd status` takes."""
    _shape(parser)
    parser.add_argument("--follow", action="store_true", help="go on: a line for each change, levels while recording")
    parser.add_argument("--waybar", action="store_true", help="JSON for a waybar module, with or without --follow")


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
        ("waiting", f"{counted(reply['waiting'], 'recording')}; asrd takes lists them" if reply["waiting"] else ""),
        ("sinks", ", ".join(reply["sinks"])),
        ("daemon", f"asrd {reply['version']}, process {reply['pid']}, up {reply['uptime']:.0f} s"),
    ]
    return "\n".join(f"{name:<9} {one_line(text)}" for name, text in rows if text)


def _strategy(reply: Mapping[str, Any]) -> str:
    """Return which strategy runs and where; before a worker runs, which one was asked for."""
    if not reply["strategy"]:
        return f"no model is loaded; {reply['requested']} is asked for"
    return f"{reply['strategy']} (asked for {reply['requested']}) on {reply['device']}{_loaded_in(reply)}"


def _loaded_in(reply: Mapping[str, Any]) -> str:
    """Return how long the worker took from its start until it was ready; "" where that is not known."""
    return f", loaded in {reply['load_seconds']:.1f} s" if reply.get("load_seconds") is not None else ""


def waybar(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Return a status as waybar's custom modules take it; below what was asked for, "below" is a second class."""
    state = str(reply["state"])
    css: str | list[str] = "trouble" if reply.get("trouble") or reply.get("capture") else state.lower()
    css = [str(css), "below"] if reply.get("below") else css
    tooltip = page(reply).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")  # it is Pango markup
    return {"text": MARKS.get(state, "?"), "alt": state.lower(), "class": css, "tooltip": tooltip}


def _below(below: Mapping[str, Any] | None) -> str:
    """Return what does not run though it was asked for, why, and when it is tried again."""
    if below is None:
        return ""
    again = below.get("again_in")
    when = "" if again is None else f"; tried again after {max(1, round(again / 60))} min without trouble"
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
