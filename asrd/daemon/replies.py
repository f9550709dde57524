"""The daemon's messages to the verbs: sentences made of its state (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from asrd.config.loading import Loaded
from asrd.config.settings import Settings
from asrd.dictation.recording import DictationResult
from asrd.errors import AsrdError, AudioError, ConfigError, UsageError
from asrd.models import choice
from asrd.recordings.files import RecordingInfo
from asrd.text.wording import be, counted, hinted, parted, with_hint

SOUND_SECONDS = 1.0
"""Time that the answer to a key waits for the first audio; the recording has begun already."""

NO_SOUND = "no sound comes in"

STAGES = {
    "starting": "the worker starts",
    "import": "the worker imports the model's code",
    "restore": "the worker reads the weights",
    "cast": "the worker converts the weights",
    "move": "the worker moves the weights to their device",
    "warm-up": "the worker warms up",
    "self-test": "the worker tests itself on a known clip",
}
"""First word of a step of loading -> the step as a sentence."""


def begun(settings: Settings, file: Path | None) -> str:
    """Return the message for a recording that began; a hint stands on a line of its own."""
    if settings.model:
        return "recording"
    return f"recording\n{hinted(choice.CONSEQUENCE, choice.hint(file))}"


def without_audio(message: str, problem: str) -> str:
    """Return the message for a recording that began and gets no audio: a line for each fact, and for
    its hint.

    Args:
        message: the message for a recording that gets audio.
        problem: the problem of the microphone; "" where none is known yet.
    """
    why, hint = parted(problem)
    first = f"recording, but {NO_SOUND} yet"
    if why:
        first = f"recording, but {NO_SOUND}: {why}"
    lines = [hinted(first, hint), "asrd tries again until you stop the recording"]
    rest = message.removeprefix("recording").removeprefix("\n")
    return "\n".join(filter(None, [*lines, rest]))


def no_audio(problem: str) -> AudioError:
    """Return the error for a recording that a client waited for and that got no audio at all."""
    if problem:
        return AudioError(f"no sound came in: {problem}")
    return AudioError("no sound came in", "asrd devices shows which microphone is used")


def stopped(seconds: float, problem: str, settings: Settings, file: Path | None) -> str:
    """Return the message for a recording that was stopped."""
    if not seconds and problem:
        return f"stopped; no sound came in: {problem}"
    if not seconds:
        return "stopped; no sound came in"
    if settings.model:
        return f"stopped; {seconds:.1f} s become text"
    return hinted(f"stopped; {seconds:.1f} s are kept, as {choice.UNCHOSEN}", choice.hint(file))


def last(result: DictationResult, notes: Sequence[RecordingInfo]) -> DictationResult:
    """Return the last text: this daemon's, or that of the newest kept recording that has one."""
    if result.text or result.id:
        return result
    texts = [note for note in notes if note.text]
    if texts:
        return _kept_result(texts[-1])
    detail = "there was no recording since the daemon started"
    if notes:
        detail += f"; {counted(len(notes), 'recording')} kept: asrd recordings lists them"
    return msgspec.structs.replace(result, detail=detail)


def _kept_result(note: RecordingInfo) -> DictationResult:
    """Return the result of a recording that an earlier daemon kept."""
    if note.delivered:
        return DictationResult(note.id, note.text, "delivered", seconds=note.seconds)
    return DictationResult(note.id, note.text, "kept", note.reason, seconds=note.seconds)


def detail_of(result: DictationResult) -> str:
    """Return why the last recording has no text; "" where it has one."""
    if result.text:
        return ""
    if result.outcome == "kept":
        reason = f"{result.detail}; asrd retry tries again"
        return f"the last recording did not become text: {reason}"
    if result.outcome == "lost":
        return f"the last recording did not become text: {result.detail}"
    if result.detail:
        return result.detail
    if not result.seconds:
        return "no sound came in during the last recording; asrd devices shows the microphones"
    return f"no words were recognized in the last recording, {result.seconds:.1f} s"


def note_of(result: DictationResult, recording: bool, transcribing: int, loading: str) -> str:
    """Return the note beside the last text: that a newer one is on its way, or that this one is at no
    sink."""
    if recording:
        return "a recording is going on; asrd last --wait waits for its text"
    if transcribing:
        message = f"{counted(transcribing, 'recording')} {be(transcribing)} still being transcribed"
        if loading:
            message += f" ({loading_words(loading)})"
        return f"{message}; asrd last --wait waits for the text"
    if result.text and result.outcome == "kept" and result.detail:
        return f"the text was not delivered: {result.detail}; asrd retry --deliver sends it"
    return ""


def loading_words(loading: str) -> str:
    """Return a step of loading as a sentence."""
    stage, _, rest = loading.partition(" ")
    if stage == "cast" and rest:
        return f"the worker converts the weights to {rest}"
    if stage == "download":
        return f"downloading {rest}"
    return STAGES.get(stage, loading)


def waiting(notes: Sequence[RecordingInfo]) -> str:
    """Return the message for recordings of an earlier run, with the command that finishes them."""
    lacking = [note for note in notes if not note.transcribed]
    seconds = sum(note.seconds for note in notes)
    parts = []
    if lacking:
        count = len(lacking)
        parts.append(f"{counted(count, 'recording')} {be(count)} not text yet")
    if whole := len(notes) - len(lacking):
        parts.append(f"{counted(whole, 'recording')} became text that was not delivered")
    return f"{', '.join(parts)} ({seconds:.0f} s in all); asrd retry --all --deliver finishes them"


def unchanged(error: AsrdError, loaded: Loaded | None, changed: Sequence[str]) -> AsrdError:
    """Return the error of a reload: the place of the wrong setting, and that the old ones stay in
    force.

    A word that is wrong in the settings has the exit code of a wrong setting, whichever part found
    it.

    Args:
        loaded: the settings that were read; None where that failed.
        changed: the settings that were to change.
    """
    kind = type(error)
    if isinstance(error, UsageError):
        kind = ConfigError
    message = f"{error.message}; the settings stay as they were"
    if loaded is not None and changed:
        origins = [f"{key} ({loaded.origins.get(key, 'default')})" for key in changed]
        message = f"{' and '.join(origins)}: {message}"
    return kind(message, error.hint)


def complaint(error: AsrdError) -> str:
    """Return an error as one line of the log."""
    return with_hint(error.message, error.hint)


def next_step(socket: str) -> str:
    """Return the next step of a person who started the daemon in a terminal.

    Args:
        socket: the control socket where it is not the usual one.
    """
    toggle = "asrd toggle"
    if socket:
        toggle += f" --socket {socket}"
    return f"press your hotkey, or run in another terminal: {toggle}; Ctrl-C ends asrd"
