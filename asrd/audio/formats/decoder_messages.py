"""What libsndfile and libav complain of, in words of ours (pure)."""

from __future__ import annotations

import re

OWN_REASON = re.compile(r"^(?:its decoder |it has \d+ channels|nothing of it can be decoded)")
"""How a reason begins that asrd gave itself."""

DAMAGED_REASON = "a part of it cannot be decoded"

MESSAGE_MEANINGS = tuple(
    (re.compile(pattern, re.IGNORECASE), words)
    for pattern, words in (
        (r"whitelist|not allowed", "it names other files, which asrd does not open"),
        (r"partial file|incomplete frame|premature|truncat|unexpected end|end of file|moov atom|overread|shorter than"
         r"|no .*sound data|no data could be read|no 'data'", "its end is missing"),
        (r"memory|malloc", "its decoder had too little memory"),
        (r"unimplemented|unsupported|not support|unknown (?:encoding|format)|unknown/unsupported|not recogni[sz]ed"
         r"|decoder (?:not found|\S+ not)|no decoder|codec not|not currently supported|wavpack",
         "neither libsndfile nor ffmpeg has a decoder for its audio"),
        (r"channel", "its header states a number of channels that cannot be"),
        (r"header|marker|chunk|malformed|error in|bad |not an? |block alignment", "its header is damaged"),
        (r"invalid|corrupt|error|decod|lost sync|seek|packet|frame", DAMAGED_REASON),
    )
)  # fmt: skip
"""What a message means, by words in it; the first that fits."""


def plain(said: str) -> str:
    """Return what a decoder said as a clause of ours; what asrd gave as a reason itself stays."""
    if OWN_REASON.match(said):
        return said
    return next(
        (words for pattern, words in MESSAGE_MEANINGS if pattern.search(said)), "its decoder failed"
    )
