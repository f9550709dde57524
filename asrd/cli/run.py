"""Verb run: the daemon in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import os
from collections.abc import Callable

from asrd import __version__, journal
from asrd.audio.files import SoundFile
from asrd.audio.sources import AudioSource, open_source
from asrd.config import faults
from asrd.config.settings import Settings
from asrd.daemon import control_socket, descriptors, sd_notify
from asrd.daemon.announcements import log_notes, warn_of_text
from asrd.daemon.control_server import refuse_rest
from asrd.daemon.daemon import Daemon
from asrd.daemon.handlers import Handlers
from asrd.daemon.settings_changes import SettingsChanges
from asrd.engine.engine import Engine
from asrd.errors import AudioError
from asrd.models import choice


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `asrd run`."""
    parser.add_argument(
        "--source", metavar="S", help="mic, file:PATH (in real time, ends with it) or pipe"
    )
    parser.add_argument(
        "--microphone",
        metavar="NAME",
        help="part of an input device's name; asrd devices lists them",
    )
    parser.add_argument(
        "--sink",
        dest="sinks",
        metavar="S",
        action="append",
        help="type, paste, clipboard, stdout, command:CMD, none",
    )
    when = "take: the text at the end of a recording; segment: a line at each pause"
    parser.add_argument("--deliver", metavar="WHEN", help=when)
    kinds = "; ".join(f"{kind}: {about}" for kind, about in faults.KINDS.items())
    parser.add_argument("--faults", metavar="KIND:BUFFER,...", help=f"rehearse a fault. {kinds}")
    parser.add_argument("--socket", metavar="PATH", help="control socket")


def _check_file(source: str) -> None:
    """Open a file that is to be played, so that what is wrong with it is said first. Raises
    AudioError."""
    kind, _, path = source.partition(":")
    if kind == "file" and os.path.isdir(path):
        raise AudioError(f"{path}: is a directory", "name one file in it: --source file:PATH")
    # A named pipe can be opened only once.
    if kind == "file" and (os.path.isfile(path) or not os.path.exists(path)):
        with SoundFile(path):
            pass


def run(
    args: argparse.Namespace,
    settings: Settings,
    hold: Callable[..., Engine] = Engine,
    listen: Callable[[str, str], AudioSource] = open_source,
) -> int:
    """Be the daemon until a signal ends it. Raises SocketError, ConfigError, UsageError."""
    descriptors.raise_descriptor_limit()
    if settings.source != "mic":
        _check_file(settings.source)
        settings = choice.for_files(settings)
    alone = settings.source != "mic" and not settings.socket
    given = sd_notify.inherited_control()
    line = None if alone else given or control_socket.listen(settings)
    journal.log_to_journal()
    chosen = [key for key, origin in args.loaded.origins.items() if origin != "default"]
    about = f"asrd {__version__}, {settings.model or 'no model'} under {settings.strategy}"
    if chosen:
        about += f"; you set {', '.join(chosen)}"
    journal.event("starting", about, version=__version__, settings=chosen)
    warn_of_text(settings)
    if settings.faults:
        journal.event("faults", f"faults are rehearsed: {settings.faults}", logging.WARNING)
    log_notes(args.loaded)

    having = functools.partial(choice.for_source, source=settings.source)

    async def serve() -> int:
        daemon = Daemon(having(args.loaded), hold, listen)
        changes = SettingsChanges(daemon, lambda: having(args.reread()))
        handlers = Handlers(daemon, changes)
        return await daemon.serve(line, handlers.answer, changes.reload_quietly)

    try:
        return asyncio.run(serve())
    finally:
        if line is not None and line is not given:
            refuse_rest(line)
            line.close()
            control_socket.forget(settings)
