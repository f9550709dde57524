"""What a sound file holds by its own bytes, whatever its header says: its streams, and whether its end is missing."""

from __future__ import annotations

from . import chunked_files, mpeg_files, streams
from .layout import FileBytes, Layout

SURVEYS = (chunked_files.survey, streams.flac, streams.ogg, mpeg_files.survey)


def survey(descriptor: int) -> Layout:
    """Return where the sound of an open file lies; of a kind that is not known here, the file as it is.

    Raises OSError: it cannot be read.
    """
    file = FileBytes(descriptor)
    if not file.size:
        return Layout()
    for kind in SURVEYS:
        found = kind(file)
        if found is not None:
            return found
    return Layout()
