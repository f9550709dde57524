"""What the daemon says to the verbs: sentences made of its state (pure). Knows neither keys nor
sockets."""

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
from asrd.text.wording import counted, hinted, parted, with_hint

SOUND_SECONDS = 1.0
"""How long the answer to a key waits for the first sound; the recording itself has begun
already."""

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
"""First word of what loads -> what that means."""


def begun(settings: Settings, file: Path | None) -> str:
    """Return what is said of a recording that began; a hint stands on a line of its own."""
    if settings.model:
        return "recording"
    return f"recording\n{hinted(choice.CONSEQUENCE, choice.hint(file))}"


def without_sound(said: str, problem: str) -> str:
    """Return what is said of a recording that began and gets no sound: a line for each thing, and
    for its hint.

    Args:
        said: what is said of one that gets some.
        problem: why, as the microphone says it; "" where it says nothing yet.
    """
    why, hint = parted(problem)
    first = hinted(
        f"recording, but {NO_SOUND}: {why}" if why else f"recording, but {NO_SOUND} yet", hint
    )
    rest = said.removeprefix("recording").removeprefix("\n")
    return "\n".join(filter(None, [first, "asrd tries again until you stop the recording", rest]))


def silent(problem: str) -> AudioError:
    """Return the error for a recording whose text was waited for and that got no sound at all."""
    if problem:
        return AudioError(f"no sound came in: {problem}")
    return AudioError("no sound came in", "asrd devices shows which microphone is listened to")


def stopped(seconds: float, problem: str, settings: Settings, file: Path | None) -> str:
    """Return what becomes of a recording that was stopped."""
    if not seconds:
        return f"stopped; no sound came in: {problem}" if problem else "stopped; no sound came in"
    if settings.model:
        return f"stopped; {seconds:.1f} s become text"
    return hinted(f"stopped; {seconds:.1f} s are kept, as {choice.UNCHOSEN}", choice.hint(file))


def last(result: DictationResult, notes: Sequence[RecordingInfo]) -> DictationResult:
    """Return the last text: this daemon's, or that of the newest kept recording that has one."""
    if result.text or result.id:
        return result
    note = next((note for note in reversed(notes) if note.text), None)
    if note is None:
        kept = (
            f"; {counted(len(notes), 'recording')} kept: asrd recordings lists them"
            if notes
            else ""
        )
        return msgspec.structs.replace(
            result, detail=f"nothing was said since the daemon started{kept}"
        )
    outcome = "delivered" if note.delivered else "kept"
    return DictationResult(
        note.id, note.text, outcome, "" if note.delivered else note.reason, seconds=note.seconds
    )


def detail_of(result: DictationResult) -> str:
    """Return why the last recording has no text; "" where it has one."""
    if result.text:
        return ""
    if result.outcome in ("kept", "lost"):
        retry = "; asrd retry tries again" if result.outcome == "kept" else ""
        return f"the last recording did not become text: {result.detail}{retry}"
    if not result.seconds:
        return (
            result.detail
            or "no sound came in during the last recording; asrd devices shows the microphones"
        )
    return result.detail or f"no word was heard in the last recording, {result.seconds:.1f} s"


def note_of(result: DictationResult, recording: bool, transcribing: int, loading: str) -> str:
    """Return what stands beside the last text: that a newer one is on its way, or that this one is
    at no sink."""
    if recording:
        return "a recording is going on; asrd last --wait waits for its text"
    if transcribing:
        model = f" ({loading_words(loading)})" if loading else ""
        these = counted(transcribing, "recording")
        verb = "is" if transcribing == 1 else "are"
        return f"{these} {verb} still being transcribed{model}; asrd last --wait waits for the text"
    if result.text and result.outcome == "kept" and result.detail:
        return f"the text was not delivered: {result.detail}; asrd retry --deliver sends it"
    return ""


def loading_words(loading: str) -> str:
    """Return what loads, as a sentence; a download is one already."""
    stage, _, rest = loading.partition(" ")
    if stage == "cast" and rest:
        return f"the worker converts the weights to {rest}"
    return STAGES.get(stage, f"downloading {rest}" if stage == "download" else loading)


def waiting(notes: Sequence[RecordingInfo]) -> str:
    """Return what an earlier run left behind, and what finishes it."""
    lacking = [note for note in notes if not note.transcribed]
    seconds = sum(note.seconds for note in notes)
    parts = []
    if lacking:
        are = "is" if len(lacking) == 1 else "are"
        parts.append(f"{counted(len(lacking), 'recording')} {are} not text yet")
    if whole := len(notes) - len(lacking):
        parts.append(f"{counted(whole, 'recording')} became text that was not delivered")
    return f"{', '.join(parts)} ({seconds:.0f} s in all); asrd retry --all --deliver finishes them"


def unchanged(error: AsrdError, loaded: Loaded | None, changed: Sequence[str]) -> AsrdError:
    """Return the error of a reload: where the wrong setting stands, and that the old ones stay in
    force.

    A word that is wrong in the settings has the exit code of a wrong setting, whoever found it.

    Args:
        loaded: what was read; None where that failed.
        changed: the settings that were to change.
    """
    kind = ConfigError if isinstance(error, UsageError) else type(error)
    origins = [f"{key} ({loaded.origins.get(key, 'default')})" for key in changed] if loaded else []
    where = f"{' and '.join(origins)}: " if origins else ""
    return kind(f"{where}{error.message}; the settings stay as they were", error.hint)


def complaint(error: AsrdError) -> str:
    """Return an error as one line of the log."""
    return with_hint(error.message, error.hint)


def next_step(socket: str) -> str:
    """Return what a person does next who started the daemon in a terminal.

    Args:
        socket: the control socket where it is not the usual one.
    """
    where = f" --socket {socket}" if socket else ""
    return f"press your hotkey, or run in another terminal: asrd toggle{where}; Ctrl-C ends asrd"
