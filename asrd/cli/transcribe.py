"""The verb transcribe: sound files -> text, subtitles or JSON.

Every file, however long, goes block by block through the detector and the window to the one worker;
its words are joined by their times. Where a daemon runs under the same settings, that worker is its
own, and none is loaded here. Knows the order of things and how to print them. Runs on the daemon's
side.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

import msgspec

from asrd.audio.files import SoundFile, blocks
from asrd.audio.format import SAMPLE_RATE
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
from asrd.protocol import Progress, Word
from asrd.streaming.session import StreamingSession
from asrd.streaming.voice_commands import write
from asrd.terminal.output import one_line, tell, tell_document
from asrd.terminal.progress import DownloadBar
from asrd.text import filenames
from asrd.text.characters import without_controls
from asrd.text.spacing import continues, join, width

CUE_SECONDS, CUE_LETTERS, CUE_GAP = 6.0, 84, 0.8
"""The longest subtitle, in seconds and in letters, and the silence in seconds that always ends
one."""


class FileTranscript:
    """One file on its way to text: what is known so far, at any moment.

    Args:
        path: the file as the user named it.
        duration: seconds, as its header states them.
        settings: for the model's name and the spoken commands.
    """

    def __init__(self, path: str, duration: float, settings: Settings) -> None:
        self.path = path
        self.duration = duration
        self.model = settings.model
        self._phrases, self._capitals = settings.phrases, settings.capitals
        self.words: list[Word] = []
        self.strategy = self.device = ""
        self.seconds = 0.0
        """Wall time spent on it, without the start of the worker."""
        self.ended = False
        """Whether all of the sound that is there was heard."""
        self.whole = True
        """False for a file whose end is missing, or uncertain."""
        self.warnings: list[str] = []
        """What was wrong with the file, a sentence each."""

    @property
    def code(self) -> int:
        """The exit code for the file."""
        return 0 if self.whole else AudioError.exit_code

    @property
    def text(self) -> str:
        """The words so far, with spoken commands obeyed where the settings say so."""
        return write(self.words, self._phrases, self._capitals)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints: times in seconds from the start of the file."""
        return {
            **filenames.exact("path", self.path),
            "text": self.text,
            "words": [
                {
                    "text": word.text,
                    "start": round(word.start / SAMPLE_RATE, 3),
                    "stop": round(word.stop / SAMPLE_RATE, 3),
                    "confidence": word.confidence,
                    "joined": word.joined,
                }
                for word in whole_words(self.words)
            ],
            "duration": round(self.duration, 3),
            "rtfx": round(self.duration / self.seconds, 1) if self.seconds else None,
            "strategy": self.strategy,
            "device": self.device,
            "model": self.model,
            "complete": self.ended and self.whole,
            "warning": "; ".join(self.warnings) or None,
        }


def transcribe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `asrd transcribe` takes."""
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
    """Write down every file; return 0, or the exit code of the worst that could not be read.

    A file that cannot be read is one line on standard error, and the rest go on. When it is
    interrupted, or no worker can answer any more, the words so far are printed first.

    Raises: UsageError, and what `engine.Engine.start` raises.
    """
    named, settings = settings, choice.or_demo(settings)
    if (args.srt or args.vtt) and len(args.files) > 1:
        raise UsageError(
            "subtitles are written for one file at a time", "run asrd transcribe once for each file"
        )
    lent = not args.no_daemon and "-" not in args.files and served(settings)
    worst, size, waiting = 0, 1, list(enumerate(args.files))
    with asyncio.Runner() as runner, Meter(sys.stderr) as meter:
        engine = Engine(plan_for(settings), start_for(settings), on_progress=meter.loading)
        try:
            while waiting:
                with contextlib.ExitStack() as opened:
                    group: list[tuple[int, SoundFile, FileTranscript]] = []
                    while waiting and len(group) < size:
                        number, path = waiting.pop(0)
                        try:
                            source = opened.enter_context(SoundFile(path))
                        except (AudioError, DiskError) as error:
                            worst = max(worst, _complain(error))
                            continue
                        named = choice.for_files(
                            named
                        )  # once, and not for files that cannot be read
                        if not lent:  # with a bar of its own, and not for files that cannot be read
                            runner.run(_download(settings.model))
                        meter.show(path, source.seconds)
                        if not lent:
                            runner.run(engine.start())
                            size = engine.max_together
                        group.append(
                            (number, source, FileTranscript(path, source.seconds, settings))
                        )
                    try:
                        for _, _, heard in group if lent else []:
                            worst = max(worst, _ask(heard, settings, meter.at))
                        if group and not lent:
                            worst = max(worst, runner.run(_all(group, settings, engine, meter.at)))
                    finally:
                        meter.hide()
                        for number, _, heard in group:
                            if heard.ended or heard.words:
                                _print(heard, args, number)
                            if heard.ended and not heard.words:
                                tell(
                                    one_line(f"asrd: {heard.path}: no speech was found in it"),
                                    sys.stderr,
                                )
        finally:
            runner.run(engine.stop())
    return worst


async def _download(model: str) -> None:
    """Have the model here, showing how its download goes. Raises: as `downloader.fetch`."""
    with DownloadBar() as bar:
        await downloader.fetch(model, bar.show)


async def _all(
    group: list[tuple[int, SoundFile, FileTranscript]],
    settings: Settings,
    engine: Engine,
    tell: Callable[[float], None],
) -> int:
    """Send files to the worker at once, as many as it computes together; return the worst exit
    code."""

    async def one(source: SoundFile, heard: FileTranscript) -> int:
        try:
            await _hear(source, heard, settings, engine, tell)
        except AudioError as error:
            return _complain(error)
        return heard.code

    jobs = [asyncio.create_task(one(source, heard)) for _, source, heard in group]
    try:
        return max(await asyncio.gather(*jobs))
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)


def served(settings: Settings) -> bool:
    """Return whether a daemon runs whose worker is the one that these settings ask for."""
    try:
        reply = next(iter(client.ask(settings, verb="status")))
    except (ControlError, SocketError):
        return False
    wanted = msgspec.json.decode(filenames.to_json({key: getattr(settings, key) for key in ENGINE}))
    same = bool(reply.get("engine") == wanted)
    if not same and isinstance(reply.get("engine"), dict):
        others = [key for key in wanted if reply["engine"].get(key) != wanted[key]]
        said = f"asrd: the daemon runs with another {' and '.join(others[:2]) or 'engine'}, so a model is loaded here"
        tell(one_line(said), sys.stderr)
    if same and reply.get("download"):
        tell(one_line(f"asrd: waiting for the daemon: {reply['loading']}"), sys.stderr)
    return same


def _ask(heard: FileTranscript, settings: Settings, show: Callable[[float], None]) -> int:
    """Have the daemon write down one file, filling `heard`; return its exit code. Raises as
    control.ask.

    What the daemon says of the sound itself concerns this file only: it is printed, and no error.
    """
    began = time.perf_counter()
    reply: dict[str, Any] = {}
    whole = filenames.exact("path", os.path.abspath(heard.path))
    try:
        for reply in client.ask(settings, verb="transcribe", **whole):
            heard.words += _cleaned(msgspec.convert(reply["words"], list[Word]))
            show(heard.words[-1].stop / SAMPLE_RATE if heard.words else 0.0)
        heard.duration, heard.strategy, heard.device = (
            reply["seconds"],
            reply["strategy"],
            reply["device"],
        )
        heard.whole = not reply.get("incomplete")
        heard.warnings = [without_controls(str(warning)) for warning in reply.get("warnings", [])]
        heard.ended = True
    except AsrdError as error:
        if error.exit_code != AudioError.exit_code:
            raise
        return _complain(error)
    finally:
        heard.seconds = time.perf_counter() - began
    for warning in heard.warnings:
        tell(one_line(f"asrd: {warning}"), sys.stderr)
    return heard.code


def _cleaned(words: list[Word]) -> list[Word]:
    """Return words that came over a socket, which may be a stranger's, as an engine would give
    them."""
    cleaned = [msgspec.structs.replace(word, text=without_controls(word.text)) for word in words]
    return [word for word in cleaned if word.text]


async def _hear(
    source: SoundFile,
    heard: FileTranscript,
    settings: Settings,
    engine: Engine,
    tell: Callable[[float], None],
) -> None:
    """Send one file to the worker, filling `heard`."""
    began = time.perf_counter()
    dictation = StreamingSession(settings)
    heard.words = dictation.transcript.words
    try:
        async for block in blocks(source):
            dictation.push(block)
            await dictation.decode(engine, fall_back=engine.fall_back)
            tell(block.stop / SAMPLE_RATE)
            heard.duration = block.stop / SAMPLE_RATE
            await asyncio.sleep(
                0
            )  # a long silence has nothing to wait for, and Ctrl-C needs a place to come in
        dictation.finish()
        await dictation.decode(engine, fall_back=engine.fall_back)
        heard.ended = True
    finally:
        heard.warnings, heard.whole = source.warnings, source.complete
        heard.seconds = time.perf_counter() - began
        heard.strategy, heard.device = dictation.strategy, dictation.device


def _complain(error: AsrdError) -> int:
    """Print why one file was left out; return its exit code."""
    tell(one_line(f"asrd: {error.message}" + f" ({error.hint})" * bool(error.hint)), sys.stderr)
    return error.exit_code


def _print(heard: FileTranscript, args: argparse.Namespace, number: int) -> None:
    """Print one file on standard output in the shape that was asked for; `number` counts files from
    0."""
    words = heard.words
    if args.json:
        tell_document(heard.as_dict())
        return
    if args.srt or args.vtt:
        shown = subtitles(words, "srt" if args.srt else "vtt").rstrip("\n")
    elif args.words:
        shown = "\n".join(
            f"{word.start / SAMPLE_RATE:.2f}\t{word.stop / SAMPLE_RATE:.2f}\t"
            f"{'-' if word.confidence is None else f'{word.confidence:.3f}'}\t{word.text}"
            for word in whole_words(words)
        )
    else:
        shown = heard.text
    if len(args.files) > 1:
        tell(("\n" if number else "") + f"==> {one_line(heard.path)} <==")
    tell(shown)


def cues(words: Iterable[Word]) -> list[list[Word]]:
    """Group words into subtitles: a long silence, six seconds, 84 letters or the end of a sentence
    ends one.

    A Chinese or Japanese letter counts for two.
    """
    groups: list[list[Word]] = []
    for word in words:
        if groups:
            cue = groups[-1]
            length = width(join([*cue, word]))
            silence = (word.start - cue[-1].stop) / SAMPLE_RATE
            seconds = (word.stop - cue[0].start) / SAMPLE_RATE
            sentence = cue[-1].text.endswith((".", "?", "!", "。", "？", "！"))
            if (
                silence < CUE_GAP
                and seconds <= CUE_SECONDS
                and length <= CUE_LETTERS
                and not sentence
            ):
                cue.append(word)
                continue
        groups.append([word])
    return groups


def subtitles(words: Iterable[Word], shape: str) -> str:
    """Return the words as subtitles, `shape` srt (SubRip) or vtt (WebVTT)."""
    point = "," if shape == "srt" else "."
    parts = ["WEBVTT\n"] if shape == "vtt" else []
    for number, cue in enumerate(cues(words), 1):
        span = f"{_clock(cue[0].start, point)} --> {_clock(cue[-1].stop, point)}"
        parts.append(f"{number}\n{span}\n{_two_lines(cue)}\n")
    return "\n".join(parts)


def _clock(sample: int, point: str) -> str:
    """Return a position as hours:minutes:seconds and thousandths."""
    thousandths = round(sample * 1000 / SAMPLE_RATE)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _two_lines(cue: Sequence[Word]) -> str:
    """Return a cue's text, one that is longer than half a cue broken between the words nearest to
    its middle."""
    text = join(cue)
    whole = width(text)
    breaks = [
        number for number in range(1, len(cue)) if not continues(cue[number - 1], cue[number])
    ]
    if whole <= CUE_LETTERS // 2 or not breaks:
        return text
    middle = min(breaks, key=lambda number: abs(width(join(cue[:number])) - whole // 2))
    return join(cue[:middle]) + "\n" + join(cue[middle:])


def whole_words(words: Iterable[Word]) -> list[Word]:
    """Return words with the pieces of one that was too long to come as a whole made one again."""
    found: list[Word] = []
    for word in words:
        if found and continues(found[-1], word):
            text, sure = found[-1].text + word.text, _least(found[-1].confidence, word.confidence)
            found[-1] = msgspec.structs.replace(
                found[-1], text=text, stop=word.stop, confidence=sure
            )
        else:
            found.append(word)
    return found


def _least(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else min(one, other)


class Meter:
    """How far the present file has come, on a terminal; nothing anywhere else."""

    def __init__(self, stream: TextIO) -> None:
        self._bar: Any = None
        if stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(file=stream), transient=True)
            self._task = self._bar.add_task("", total=None)
        self._name, self._seconds = "", 0.0

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()

    def show(self, name: str, seconds: float) -> None:
        """Begin with a file of so many seconds."""
        self._name, self._seconds = name, seconds
        if self._bar:
            self._bar.reset(self._task, total=seconds, description=one_line(name))
            self._bar.start()

    def loading(self, progress: Progress) -> None:
        """Show what the worker does before it can answer."""
        if self._bar:
            self._bar.update(
                self._task, description=f"worker: {progress.stage} {progress.detail}".rstrip()
            )

    def at(self, seconds: float) -> None:
        """Show how much of the file was heard."""
        if self._bar:
            about = f"{one_line(self._name)}: {seconds:.0f} of {self._seconds:.0f} s"
            self._bar.update(self._task, completed=seconds, description=about)

    def hide(self) -> None:
        """Clear the line, so that text can be printed."""
        if self._bar:
            self._bar.stop()
