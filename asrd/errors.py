"""Every error a user can see: one sentence, a hint, an exit code.

Knows nothing of the rest. Foreign exceptions (NeMo, soundfile, the hub) are translated into these
once, at the border where they enter; `cli.main` prints them. Exit codes are those of sysexits(3)
where it has one, so that a service manager can tell what a restart may cure from what it may not.
"""

from __future__ import annotations

from collections.abc import Sequence


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
    """A command line or request that cannot be: unknown verb or flag, an argument that is missing
    or wrong."""

    exit_code = 2


class ConfigError(AsrdError):
    """A setting that cannot be: unknown key or word, wrong type, contradiction. A restart does not
    cure it.

    It is the same error wherever the word was written: file, variable, flag, `asrd use`, `compare
    --strategies`.
    """

    exit_code = 78


class ModelError(AsrdError):
    """A checkpoint that is missing, broken or of another kind."""

    exit_code = 66


class AudioError(AsrdError):
    """Audio that cannot be read, or is empty; its code is also that of a file whose end is
    missing."""

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
    """No worker could answer: every candidate of the plan was tried and rejected."""

    exit_code = 75


class UnansweredError(EngineError):
    """No worker could answer for one buffer, though each had passed its self-test.

    Other buffers are not concerned.
    """


class SinkError(AsrdError):
    """Text that did not arrive where it was sent; the message never quotes it."""

    exit_code = 75


class UncertainError(SinkError):
    """Text that may have arrived, in whole or in part, though its sink did not say so."""


class ClaimedError(AsrdError):
    """A recording that another process works on."""

    exit_code = 75


class BusyError(AsrdError):
    """The daemon has no place for a request now; nothing of it was done, so it may be asked
    again."""

    exit_code = 75


class NothingError(AsrdError):
    """There is nothing to make text of. Nobody did anything wrong; the exit code is that of no
    text."""

    exit_code = 1


class ControlError(AsrdError):
    """No daemon answers on the control socket."""

    exit_code = 69


class SocketError(AsrdError):
    """The control socket cannot be made: another daemon has it, or the place does not allow it."""

    exit_code = 73


MAX_NAMES = 8
"""Names in a hint; of more, a command lists them all."""


def nearest(word: str, names: Sequence[str], listing: str = "") -> str:
    """Return a hint for an unknown word: the nearest name, or all of them where they are few.

    Args:
        word: what was written.
        names: the names there are.
        listing: the command that lists them, for a hint that would be too long.
    """
    import difflib

    folded = {_folded(name): name for name in names}
    close = difflib.get_close_matches(_folded(word.strip()), folded, n=1, cutoff=0.55)
    if close:
        return f"did you mean {folded[close[0]]!r}?"
    if len(names) > MAX_NAMES and listing:
        return f"{listing} lists them all"
    shown = ", ".join(names[:MAX_NAMES])
    if len(names) > MAX_NAMES:
        shown += ", ..."
    return f"known: {shown}"


def _folded(word: str) -> str:
    return word.lower().replace("_", "-")
