"""The command line: verb -> "module:name". Only the module of the verb that was asked for is
imported.

A verb's module offers `<name>_arguments(parser)` and `<name>(args, settings) -> exit code`.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asrd import __version__
from asrd.daemon import older_names
from asrd.errors import AsrdError, DiskError, UsageError, nearest
from asrd.terminal.arguments import Parser
from asrd.terminal.output import complain, replace_unwritable, tell_renamed

VERBS = {
    "run": ("asrd.cli.run:run", "run the dictation daemon"),
    "toggle": ("asrd.cli.control:toggle", "start recording, or stop: bind this to a key"),
    "start": ("asrd.cli.control:start", "start recording; with --wait print the text"),
    "stop": ("asrd.cli.control:stop", "stop recording; the text is delivered"),
    "cancel": ("asrd.cli.control:cancel", "stop recording and drop it"),
    "status": (
        "asrd.cli.control:status",
        "show what the daemon does; --follow keeps printing, --waybar prints for a bar",
    ),
    "last": ("asrd.cli.control:last", "print the last text again"),
    "recordings": ("asrd.cli.control:recordings", "list the recordings that are kept"),
    "retry": ("asrd.cli.control:retry", "transcribe a kept recording again"),
    "use": ("asrd.cli.control:use", "change the precision of the running daemon"),
    "reload": ("asrd.cli.control:reload", "make the daemon read its configuration again"),
    "doctor": (
        "asrd.cli.doctor:doctor",
        "show what works on this machine, what is missing, and what fixes it",
    ),
    "service": ("asrd.cli.service:service", "install, remove or print the systemd user service"),
    "report": ("asrd.cli.report:report", "sum up a day of dictation, from the journal"),
    "devices": ("asrd.cli.devices:devices", "list the microphones"),
    "transcribe": ("asrd.cli.transcribe:transcribe", "transcribe audio files"),
    "compare": (
        "asrd.cli.compare:compare",
        "measure what each precision strategy saves and costs",
    ),
    "tune": ("asrd.cli.tune:tune", "measure here which strategy auto may use; auto then uses it"),
    "plan": (
        "asrd.cli.plan:plan",
        "show what each strategy would need here, and which one would run",
    ),
    "models": ("asrd.cli.models:models", "list known models, which are cached, and their sizes"),
    "config": ("asrd.cli.config:config", "list each setting, its value and where it came from"),
}

OLDER_VERBS = older_names.VERBS
"""Verb of an older release -> its name today; accepted for one release."""

OLDER_FLAGS = {"--takes": "--recordings", "--alone": "--no-daemon", "--anew": "--rerun"}
"""Flag of an older release -> its name today, with whatever verb has that one; accepted for one
release."""

ASKING = (
    *("toggle", "start", "stop", "cancel", "status", "last"),
    *("recordings", "retry", "use", "reload"),
)
"""Verbs that only ask the daemon; a key is bound to them, so they read no settings but where to
ask."""

SETTINGS = {
    "model": ("M", "path of a .nemo file, demo, demo-ctc, demo-tdt, or a name on the hub"),
    "strategy": ("S", "precision strategy, or auto"),
    "preset": ("P", "bounds for auto: conservative, default, aggressive"),
    "device": ("D", "auto, cpu, cuda, cuda:N, or a part of a card's name"),
}
"""Settings that every verb takes as flags."""

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of a write to standard output; asrd reports those of its own files where it writes
them."""


def overview() -> str:
    """Return the text of `asrd --help`."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {about}" for verb, (_, about) in VERBS.items()]
    return "\n".join(
        [
            "usage: asrd VERB [options]",
            "",
            "Dictation on NVIDIA NeMo speech models, with the truth about precision.",
            "",
            *lines,
            "",
            "  asrd VERB --help   the flags and arguments of a verb",
            "  asrd help          the pages of the documentation; asrd help TOPIC shows one",
            "  asrd completion    completions for bash, zsh or fish",
            "  asrd --version     the version of asrd",
            "",
            "exit codes: 0 done, 1 no text, 2 wrong command line, 3 criteria not met, 65 bad or incomplete audio,",
            "66 no such model, 69 not available here, 70 internal, 73 cannot write,",
            "75 no worker could answer, or busy, 78 wrong setting, wherever it was written, 130 interrupted",
        ]
    )


def parser_for(verb: str) -> tuple[argparse.ArgumentParser, Any]:
    """Return the parser of a verb and the function that does it. Raises UsageError."""
    verb = OLDER_VERBS.get(verb, verb)
    if verb not in VERBS:
        raise UsageError(f"unknown verb {verb!r}", _verb_hint(verb))
    target, about = VERBS[verb]
    module_name, _, name = target.partition(":")
    module = importlib.import_module(module_name)
    parser = Parser(f"asrd {verb}", description=about)
    parser.older_flags = OLDER_FLAGS
    parser.elsewhere = lambda flag, value: _elsewhere(verb, flag, value)
    parser.stray = lambda word: _stray(verb, word)
    getattr(module, f"{name}_arguments")(parser)
    common = parser.add_argument_group(
        "settings (over ASRD_* variables, over the configuration file)"
    )
    for key, (meta, text) in _settings_flags(verb).items():
        common.add_argument(f"--{key}", metavar=meta, help=text)
    common.add_argument("--config", metavar="FILE", type=Path, help="configuration file to read")
    common.add_argument(
        "--debug", action="store_true", help="show tracebacks and what the worker prints"
    )
    return parser, getattr(module, name)


def _settings_flags(verb: str) -> dict[str, tuple[str, str]]:
    """Return the settings that a verb takes as flags, with placeholder and help."""
    if verb in ASKING:
        return {"socket": ("PATH", "control socket")}
    return SETTINGS


def every_parser() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each verb. Imports all of their modules."""
    return {verb: parser_for(verb)[0] for verb in VERBS}


OTHER_VERBS = {
    "history": "report", "listen": "run", "daemon": "run", "serve": "run", "record": "start",
    "dictate": "toggle", "precision": "use", "strategy": "use", "strategies": "plan", "mics": "devices",
    "microphones": "devices", "settings": "config", "benchmark": "compare", "bench": "compare", "check": "doctor",
    "install": "service", "uninstall": "service", "restart": "reload", "text": "last", "list": "models",
}  # fmt: skip
"""What a person may call a verb -> the verb."""


def _verb_hint(word: str) -> str:
    """Return what an unknown verb should have been."""
    if (meant := OTHER_VERBS.get(word.lower())) is not None:
        return f"did you mean 'asrd {meant}'?"
    if Path(word).suffix.lower() in (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".opus"):
        return f"to transcribe a file: asrd transcribe {word}"
    return nearest(word, (*VERBS, "help", "completion"), "asrd --help")


MAX_NAMED_VERBS = 3
"""Verbs that a hint names."""


def _elsewhere(verb: str, flag: str, value: str) -> str:
    """Return where a flag belongs that `verb` does not have: to another verb, or into the settings;
    "" where to neither."""
    if owners := _owners(verb, flag):
        return owners
    from asrd.config import misnomers, settings

    key = flag.removeprefix("--").replace("-", "_")
    own = misnomers.setting(key, settings.FIELDS)
    if not own:
        return misnomers.ELSEWHERE.get(key, "")
    if f"--{own}" in _flags(verb):
        return f"did you mean --{own}?"
    plain = None
    if value:
        plain = misnomers.plain(value)
    line = settings.propose(own, plain)
    if verb in ASKING:
        return f"the daemon reads it from the configuration: {line}, then: asrd reload"
    variable = settings.propose_variable(own, value)
    return f"it is a setting: before asrd {verb} {variable}, or in the configuration {line}"


def _owners(verb: str, flag: str) -> str:
    """Return which other verbs have a flag; "" where none has it."""
    # What --help shows for a parser whose verb does not read settings is still a flag of the
    # others.
    owners: list[str] = []
    for other in VERBS:
        if other != verb and flag in _flags(other):
            owners.append(f"asrd {other}")
    if not owners:
        return ""
    text = f"{flag} is a flag of {', '.join(owners[:MAX_NAMED_VERBS])}"
    if len(owners) > MAX_NAMED_VERBS:
        text += " and others"
    return text


def _stray(verb: str, word: str) -> str:
    """Return where a word belongs that a verb has no place for: an audio file; "" where that is not
    known."""
    from asrd.config.proposals import looks_like_file

    if not looks_like_file(word):
        return ""
    if verb == "run":
        return f"asrd run --source {shlex.quote(f'file:{word}')}"
    return f"asrd transcribe {shlex.quote(word)}"


def _flags(verb: str) -> set[str]:
    parser, _ = parser_for(verb)
    return set(parser._option_string_actions) - {"--debug"}


def run(words: Sequence[str]) -> int:
    """Do what the command line says; return the exit code. Raises AsrdError."""
    words = _with_todays_verb(words)
    if words and words[0] == "help":
        from asrd.cli import help as pages

        if not (len(words) == 2 and words[1] in VERBS and words[1] not in pages.TOPICS):
            return pages.help_pages(words[1:])
        words = [words[1], "--help"]
    if words and words[0] == "completion":
        from asrd.cli.completion import completion

        return completion(words[1:], every_parser)
    if not words:
        print(overview())
        return 2
    if words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"asrd {__version__}")
        return 0
    if words[0].startswith("-"):
        raise UsageError(f"{words[0]} comes after the verb", _flag_hint(words))
    parser, act = parser_for(words[0])
    args = parser.parse_args(words[1:])
    if args.debug:
        os.environ["ASRD_DEBUG"] = "1"
    if words[0] in ASKING:
        from asrd.daemon.control_socket import place

        return int(act(args, place(args.socket, args.config)))
    import logging

    from asrd.config import loading, settings

    flags: dict[str, Any] = dict.fromkeys(SETTINGS)
    for key in settings.FIELDS:
        value = getattr(args, key, None)
        if value is not None:
            flags[key] = value
    loaded = loading.load(args.config, flags)
    _log(args.debug)
    for note in loaded.idle:
        logging.getLogger("asrd").warning("%s", note)
    args.loaded = loaded
    args.reread = lambda: loading.load(args.config, flags)
    return int(act(args, loaded.settings))


def _flag_hint(words: Sequence[str]) -> str:
    """Return how a command line that begins with a flag should look."""
    if words[0] in ("-v", "-V"):
        return "asrd --version"
    verb = next(filter(VERBS.__contains__, words[1:]), "VERB")
    return f"asrd {verb} {words[0]} ...; asrd --help lists the verbs"


def _with_todays_verb(words: Sequence[str]) -> list[str]:
    """Return a command line with today's name of its verb; print a line for an older name."""
    verb = words[0] if words else ""
    if verb not in OLDER_VERBS:
        return list(words)
    today = OLDER_VERBS[verb]
    tell_renamed(verb, today)
    return [today, *words[1:]]


def _log(debug: bool) -> None:
    import logging

    from asrd.journal import JournalFormatter

    form, level = "asrd: %(message)s", logging.WARNING
    if debug:
        form, level = "%(name)s: %(message)s", logging.DEBUG
    handler = logging.StreamHandler()
    handler.setFormatter(JournalFormatter(form))
    logger = logging.getLogger("asrd")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level)


def _run_whole(words: Sequence[str]) -> int:
    """Run a command line and print all of its output. Raises DiskError: no room for the output."""
    try:
        code = run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in DISK_ERRORS:
            raise
        _silence()
        why = "make room where standard output goes, or send it elsewhere"
        raise DiskError(f"cannot write all of the output: {error.strerror}", why) from error
    return code


def _silence() -> None:
    """Drop the rest of standard output, so that the interpreter's last flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def main(words: Sequence[str] | None = None) -> int:
    """Entry point: run, and turn every error into one sentence, a hint and an exit code."""
    if words is None:
        words = sys.argv[1:]
    replace_unwritable()
    try:
        return _run_whole(words)
    except AsrdError as error:
        if os.environ.get("ASRD_DEBUG"):
            raise
        complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("asrd: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _silence()
        return 141
    except Exception as error:
        if os.environ.get("ASRD_DEBUG"):
            raise
        why = f"internal error: {type(error).__name__}: {error}"
        complain(AsrdError(why, "run again with --debug and report what it prints"))
        return 70
