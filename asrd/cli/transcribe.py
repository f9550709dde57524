"""The verb transcribe: audio files -> text, subtitles or JSON.

Every file, however long, goes block by block through voice detection and the streaming window to
the one worker. Where a daemon runs under the same settings, its worker transcribes the files, and
no model is loaded here. Runs on the daemon's side.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from asrd.audio.files import SoundFile, blocks
from asrd.audio.format import SAMPLE_RATE
from asrd.cli.cells import shown
from asrd.cli.file_progress import FileProgress
from asrd.cli.file_transcript import FileTranscript, whole_words
from asrd.cli.subtitles import subtitles
from asrd.config.settings import ENGINE, Settings
from asrd.daemon import client
from asrd.engine.engine import Engine
from asrd.engine.planner import plan_for, start_for
from asrd.errors import (
    AsrdError,
    AudioError,
    ControlError,
    DiskError,
    SocketError,
    UsageError,
)
from asrd.models import choice, downloader
from asrd.protocol import Word
from asrd.streaming.session import StreamingSession
from asrd.terminal.output import one_line, tell, tell_document
from asrd.terminal.progress import DownloadBar
from asrd.text import filenames
from asrd.text.characters import without_controls
from asrd.text.wording import with_hint

MAX_NAMED_SETTINGS = 2
"""Settings that differ from the daemon's and that a message names."""


def transcribe_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `asrd transcribe`."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="audio file of any kind and length; -: standard input",
    )
    parser.add_argument(
        "--no-daemon", action="store_true", help="load a model here, even if a daemon has it loaded"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--json", action="store_true", help="one JSON object a line for each file, with word times"
    )
    shape.add_argument(
        "--words", action="store_true", help="one word a line: start, stop, confidence, text"
    )
    shape.add_argument(
        "--srt", action="store_true", help="subtitles in SubRip's format, of one file"
    )
    shape.add_argument(
        "--vtt", action="store_true", help="subtitles in WebVTT's format, of one file"
    )


def transcribe(args: argparse.Namespace, settings: Settings) -> int:
    """Transcribe every file; return 0, or the exit code of the worst that could not be read.

    A file that cannot be read is one line on standard error, and the rest go on. When it is
    interrupted, or no worker can answer any more, the words so far are printed first.

    Raises: UsageError, and what `engine.Engine.start` raises.
    """
    named, settings = settings, choice.or_demo(settings)
    if (args.srt or args.vtt) and len(args.files) > 1:
        raise UsageError(
            "subtitles are written for one file at a time", "run asrd transcribe once for each file"
        )
    by_daemon = not args.no_daemon and "-" not in args.files and daemon_has_model(settings)
    with asyncio.Runner() as runner, FileProgress(sys.stderr) as progress:
        work = _Transcription(args, named, settings, by_daemon, runner, progress)
        try:
            return work.run()
        finally:
            runner.run(work.engine.stop())


class _OpenFile(msgspec.Struct):
    """A file that is open and is being transcribed."""

    number: int
    """Its place on the command line, from 0."""
    source: SoundFile
    transcript: FileTranscript


class _Transcription:
    """The files of one command line, and the worker or the daemon that transcribes them.

    Args:
        args: the command line.
        named: the settings as the user gave them, which may name no model.
        settings: the same with the demo model where none is named.
        by_daemon: the worker of the running daemon transcribes.
        runner: runs what is asynchronous.
        progress: shows how far each file is.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        named: Settings,
        settings: Settings,
        by_daemon: bool,
        runner: asyncio.Runner,
        progress: FileProgress,
    ) -> None:
        self.engine = Engine(plan_for(settings), start_for(settings), on_progress=progress.loading)
        self._args, self._named, self._settings = args, named, settings
        self._by_daemon = by_daemon
        self._runner, self._progress = runner, progress
        self._waiting: deque[tuple[int, str]] = deque(enumerate(args.files))
        self._group_size = 1
        """Files that the worker computes together; known once it has started."""
        self._exit_code = 0

    def run(self) -> int:
        """Transcribe all files; return the worst exit code."""
        while self._waiting:
            with contextlib.ExitStack() as opened:
                group = self._open_group(opened)
                try:
                    self._transcribe_group(group)
                finally:
                    self._progress.hide()
                    for file in group:
                        self._print_result(file)
        return self._exit_code

    def _open_group(self, opened: contextlib.ExitStack) -> list[_OpenFile]:
        """Open as many of the next files as the worker computes together."""
        group: list[_OpenFile] = []
        while self._waiting and len(group) < self._group_size:
            number, path = self._waiting.popleft()
            try:
                source = opened.enter_context(SoundFile(path))
            except (AudioError, DiskError) as error:
                self._note(_complain(error))
                continue
            # Once, and not for files that cannot be read.
            self._named = choice.for_files(self._named)
            self._start_engine(path, source)
            transcript = FileTranscript(path, source.seconds, self._settings)
            group.append(_OpenFile(number, source, transcript))
        return group

    def _start_engine(self, path: str, source: SoundFile) -> None:
        """Show the file; have the model here and the worker running, unless the daemon has them."""
        if self._by_daemon:
            self._progress.show(path, source.seconds)
            return
        # The download has a bar of its own, so it comes before the file's.
        self._runner.run(_download(self._settings.model))
        self._progress.show(path, source.seconds)
        self._runner.run(self.engine.start())
        self._group_size = self.engine.max_together

    def _transcribe_group(self, group: list[_OpenFile]) -> None:
        if self._by_daemon:
            for file in group:
                code = _transcribe_by_daemon(file.transcript, self._settings, self._progress.at)
                self._note(code)
        elif group:
            work = _transcribe_together(group, self._settings, self.engine, self._progress.at)
            self._note(self._runner.run(work))

    def _print_result(self, file: _OpenFile) -> None:
        """Print the words of a file, also those of one that was interrupted."""
        transcript = file.transcript
        if transcript.ended or transcript.words:
            _print(transcript, self._args, file.number)
        if transcript.ended and not transcript.words:
            tell(one_line(f"asrd: {transcript.path}: no speech was found in it"), sys.stderr)

    def _note(self, exit_code: int) -> None:
        self._exit_code = max(self._exit_code, exit_code)


async def _download(model: str) -> None:
    """Have the model here, showing how its download goes. Raises: as `downloader.fetch`."""
    with DownloadBar() as bar:
        await downloader.fetch(model, bar.show)


# -- by a worker of its own
# -----------------------------------------------------------------------------------------------------------


async def _transcribe_together(
    group: list[_OpenFile],
    settings: Settings,
    engine: Engine,
    on_position: Callable[[float], None],
) -> int:
    """Send several files to the worker at once; return the worst exit code."""

    async def transcribed(file: _OpenFile) -> int:
        try:
            await _transcribe_file(file.source, file.transcript, settings, engine, on_position)
        except AudioError as error:
            return _complain(error)
        return file.transcript.exit_code

    jobs = [asyncio.create_task(transcribed(file)) for file in group]
    try:
        return max(await asyncio.gather(*jobs))
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)


async def _transcribe_file(
    source: SoundFile,
    transcript: FileTranscript,
    settings: Settings,
    engine: Engine,
    on_position: Callable[[float], None],
) -> None:
    """Send one file to the worker, filling `transcript`; `on_position` gets seconds of the file."""
    began = time.perf_counter()
    session = StreamingSession(settings)
    transcript.words = session.transcript.words
    try:
        async for block in blocks(source):
            session.push(block)
            await session.decode(engine, fall_back=engine.fall_back)
            on_position(block.stop / SAMPLE_RATE)
            transcript.duration = block.stop / SAMPLE_RATE
            # A long silence waits for nothing, and Ctrl-C needs a place to come in.
            await asyncio.sleep(0)
        session.finish()
        await session.decode(engine, fall_back=engine.fall_back)
        transcript.ended = True
    finally:
        transcript.warnings, transcript.whole = source.warnings, source.complete
        transcript.seconds = time.perf_counter() - began
        transcript.strategy, transcript.device = session.strategy, session.device


# -- by the daemon
# -----------------------------------------------------------------------------------------------------------


def daemon_has_model(settings: Settings) -> bool:
    """Return whether a daemon runs whose worker is the one that these settings ask for."""
    try:
        reply = next(iter(client.ask(settings, verb="status")))
    except (ControlError, SocketError):
        return False
    names = {key: getattr(settings, key) for key in ENGINE}
    wanted = msgspec.json.decode(filenames.to_json(names))
    running = reply.get("engine")
    if running != wanted:
        if isinstance(running, dict):
            _tell_difference(running, wanted)
        return False
    if reply.get("download"):
        tell(one_line(f"asrd: waiting for the daemon: {reply['loading']}"), sys.stderr)
    return True


def _tell_difference(running: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Print why the daemon's worker is not used."""
    others = [key for key in wanted if running.get(key) != wanted[key]]
    names = " and ".join(others[:MAX_NAMED_SETTINGS]) or "engine"
    tell(
        one_line(f"asrd: the daemon uses a different {names}, so asrd loads a model here"),
        sys.stderr,
    )


def _transcribe_by_daemon(
    transcript: FileTranscript, settings: Settings, on_position: Callable[[float], None]
) -> int:
    """Have the daemon transcribe one file, filling `transcript`; return its exit code.

    An error of the file itself is printed and concerns this file only.

    Raises: as client.ask.
    """
    began = time.perf_counter()
    try:
        _ask_daemon(transcript, settings, on_position)
    except AsrdError as error:
        if error.exit_code != AudioError.exit_code:
            raise
        return _complain(error)
    finally:
        transcript.seconds = time.perf_counter() - began
    for warning in transcript.warnings:
        tell(one_line(f"asrd: {warning}"), sys.stderr)
    return transcript.exit_code


def _ask_daemon(
    transcript: FileTranscript, settings: Settings, on_position: Callable[[float], None]
) -> None:
    reply: dict[str, Any] = {}
    path = filenames.exact("path", os.path.abspath(transcript.path))
    for reply in client.ask(settings, verb="transcribe", **path):
        transcript.words += _cleaned(msgspec.convert(reply["words"], list[Word]))
        position = 0.0
        if transcript.words:
            position = transcript.words[-1].stop / SAMPLE_RATE
        on_position(position)
    transcript.duration = reply["seconds"]
    transcript.strategy, transcript.device = reply["strategy"], reply["device"]
    transcript.whole = not reply.get("incomplete")
    for warning in reply.get("warnings", []):
        transcript.warnings.append(without_controls(str(warning)))
    transcript.ended = True


def _cleaned(words: list[Word]) -> list[Word]:
    """Return words as an engine would give them; the socket they came over may be a stranger's."""
    cleaned: list[Word] = []
    for word in words:
        text = without_controls(word.text)
        if text:
            cleaned.append(msgspec.structs.replace(word, text=text))
    return cleaned


# -- output
# -----------------------------------------------------------------------------------------------------------


def _complain(error: AsrdError) -> int:
    """Print why one file was left out; return its exit code."""
    tell(one_line(f"asrd: {with_hint(error.message, error.hint)}"), sys.stderr)
    return error.exit_code


def _print(transcript: FileTranscript, args: argparse.Namespace, number: int) -> None:
    """Print one file on standard output in the shape that was asked for; `number` counts files from
    0."""
    if args.json:
        tell_document(transcript.as_dict())
        return
    text = _text(transcript, args)
    if len(args.files) > 1:
        if number:
            tell("")
        tell(f"==> {one_line(transcript.path)} <==")
    tell(text)


def _text(transcript: FileTranscript, args: argparse.Namespace) -> str:
    """Return a transcript in the shape that was asked for."""
    if args.srt:
        return subtitles(transcript.words, "srt").rstrip("\n")
    if args.vtt:
        return subtitles(transcript.words, "vtt").rstrip("\n")
    if args.words:
        return "\n".join(map(_word_line, whole_words(transcript.words)))
    return transcript.text


def _word_line(word: Word) -> str:
    """Return a word with its start and stop in seconds and its confidence, tabs between them."""
    confidence = shown(word.confidence, "{:.3f}".format)
    start, stop = word.start / SAMPLE_RATE, word.stop / SAMPLE_RATE
    return f"{start:.2f}\t{stop:.2f}\t{confidence}\t{word.text}"
