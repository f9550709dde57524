"""Every error a user can see: one sentence, a hint, an exit code.

Knows nothing of the rest. Foreign exceptions (NeMo, soundfile, the hub) are translated into these once, at the border
where they enter; `cli.main` prints them. Exit codes are those of sysexits(3) where it has one, so that a service
manager can tell what a restart may cure from what it may not.
"""

from __future__ import annotations


class AsrdError(Exception):
    """An error with one sentence for the user and, where there is one, a hint that helps.

    Args:
        message: what is wrong, one sentence, naming the thing (path, key, device).
        hint: what the user can do about it; empty when there is nothing to add.
    """

    exit_code = 70

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(AsrdError):
    """A wrong word on the command line: unknown verb, strategy or model name."""

    exit_code = 2


class ConfigError(AsrdError):
    """A setting that cannot be: unknown key, wrong type, contradiction. A restart does not cure it."""

    exit_code = 78


class ModelError(AsrdError):
    """A checkpoint that is missing, broken or of another kind."""

    exit_code = 66


class AudioError(AsrdError):
    """Sound that cannot be read, or holds none; its code is also that of a file whose end is missing."""

    exit_code = 65


class ManifestError(AsrdError):
    """A manifest without one usable line."""

    exit_code = 65


class NetworkError(AsrdError):
    """The hub cannot be reached and the model is not in the cache."""

    exit_code = 69


class DiskError(AsrdError):
    """No room, or no right, to write where it must be written."""

    exit_code = 73


class PrecisionError(AsrdError):
    """A strategy that this device cannot run at all."""

    exit_code = 69


class EngineError(AsrdError):
    """No worker could answer: every rung of the plan was tried and rejected."""

    exit_code = 75


class SoundError(EngineError):
    """No worker could answer for one sound, though each had proved itself: others are not concerned."""


class SinkError(AsrdError):
    """Text that did not arrive where it was sent; the message never quotes it."""

    exit_code = 75


class UncertainError(SinkError):
    """Text that may have arrived, in whole or in part, though its sink did not say so."""


class ClaimedError(AsrdError):
    """A recording that somebody else has in hand."""

    exit_code = 75


class BusyError(AsrdError):
    """The daemon has no place for a request now; nothing of it was done, so it may be asked again."""

    exit_code = 75


class ControlError(AsrdError):
    """No daemon answers on the control socket."""

    exit_code = 69


class SocketError(AsrdError):
    """The control socket cannot be made: another daemon has it, or the place does not allow it."""

    exit_code = 73


FINAL: dict[str, type[AsrdError]] = {
    "model": ModelError,
    "network": NetworkError,
    "disk": DiskError,
    "usage": UsageError,
    "audio": AudioError,
}
"""Kind of a failure in another process -> error; no other precision would cure it."""


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return "did you mean ...?" for the known name closest to `word`, or the list of all when none is close."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.55)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
