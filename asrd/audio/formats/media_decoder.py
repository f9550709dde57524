"""A process of its own that decodes the media file on its standard input, and writes float32
samples at 16 kHz.

Started as `python -P -m asrd.audio.formats.media_decoder pyav|ffmpeg`, imported by nobody. One line
of JSON comes
first: the number of channels, the seconds its header names where those can be relied on, a note, an
    error. What libav
complains of is on standard error. It opens no other file: a playlist that names some is refused, as
is every network address.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import Any

from asrd import framing
from asrd.audio.format import SAMPLE_RATE

CONTAINER_FORMATS = (
    "aac,ac3,adts,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,dtshd,eac3,flac,flv,loas,matroska,webm,mlp,mov,mp4,m4a,"
    "3gp,3g2,mj2,mp3,mpc,mpc8,mpeg,mpegts,nut,oga,ogg,oma,qcp,rm,shn,tak,truehd,tta,voc,w64,wav,wv,xwma"
)
"""Containers that hold their sound themselves. What names other files (hls, concat, dash, sdp ...)
is not here."""

MAX_MEMORY_BYTES = 4 << 30
MAX_FILE_BYTES = 1 << 20
"""What it may write into a file: libav's complaints."""
CPU_SECONDS = 60
BYTES_A_SECOND = 20_000
"""What a processor decodes at least, far below any codec: a file gets CPU_SECONDS, and a second for
so many bytes."""
MAX_CHANNELS = 64

ASF_FACTS = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
"""How the file properties and the data of an ASF file (wma) begin."""
ASF_BROADCAST = 1
"""Of its flags: the writer did not know the end."""
ASF_END_BYTES = 12
"""Of the mark that a writer into a pipe may set behind the last packet."""
MAX_ASF_HEAD_BYTES = 1 << 20


def main() -> int:
    """Decode; return the exit code."""
    framing.die_with_parent()
    _bound(os.fstat(0).st_size)
    os.lseek(0, 0, os.SEEK_SET)
    if sys.argv[1] == "pyav":
        return _with_pyav()
    return _with_ffmpeg()


def _bound(size: int) -> None:
    """Bound what this process may use."""
    seconds = CPU_SECONDS + size // BYTES_A_SECOND
    for kind, limit in (
        (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds),
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(
            kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
        )


def _say(channels: int = 0, seconds: float = 0.0, note: str = "", error: str = "") -> None:
    """Write the line before the samples."""
    head = {"channels": channels, "seconds": seconds, "note": note, "error": error}
    os.write(1, json.dumps(head).encode() + b"\n")


def _complain(line: str) -> None:
    os.write(2, line.encode() + b"\n")


def _check_packets(container: str) -> None:
    """Complain of a file of packets of one size whose last one is cut, which libav leaves out
    without a word."""
    size = os.fstat(0).st_size
    if container == "mpegts" and all(size % packet for packet in (188, 192, 204)):
        _complain("partial file")
    packet, before = _piped_asf() if container == "asf" else (0, 0)
    if packet and (size - before) % packet and os.pread(0, 2, size - ASF_END_BYTES) != b"$E":
        _complain("partial file")


def _piped_asf() -> tuple[int, int]:
    """Return the size of an ASF file's packets, and where they begin; zeros where it was written to
    its end.

    Written into a pipe it has no length and no index, and libav guesses a length.
    """
    head = os.pread(0, MAX_ASF_HEAD_BYTES, 0)
    facts, data = head.find(ASF_FACTS), head.find(ASF_DATA)
    flags = head[facts + 88 : facts + 89] if facts >= 0 else b""
    if data < 0 or not flags or not flags[0] & ASF_BROADCAST:
        return 0, 0
    return int.from_bytes(head[facts + 92 : facts + 96], "little"), data + 50


def _note(count: int) -> str:
    return (
        f"has {count} audio tracks, of which the one marked as default, or the first, is used"
        if count > 1
        else ""
    )


def _trusted(container: str, seconds: float | None) -> float:
    """Return the length that a header names, where a container has one that is more than a
    guess."""
    known = container.startswith("mov") or (container == "asf" and not _piped_asf()[0])
    return seconds if seconds and known else 0.0


# -- PyAV
# -------------------------------------------------------------------------------------------------------------


def _with_pyav() -> int:
    import av

    av.logging.restore_default_callback()
    av.logging.set_level(av.logging.ERROR)
    options = {"format_whitelist": CONTAINER_FORMATS, "protocol_whitelist": "pipe"}
    try:
        container: Any = av.open(
            os.fdopen(0, "rb"), container_options=options, metadata_errors="replace"
        )
    except (av.FFmpegError, ValueError, OSError) as error:
        _say(error=getattr(error, "strerror", None) or str(error))
        return 1
    with container:
        tracks = list(container.streams.audio)
        if not tracks:
            _say(error="no sound")
            return 1
        track = next(
            (track for track in tracks if track.disposition & av.stream.Disposition.default),
            tracks[0],
        )
        track.thread_type = "SLICE"
        _check_packets(container.format.name)
        return _decode(container, track, len(tracks))


def _decode(container: Any, track: Any, count: int) -> int:
    """Write the samples of one track; what cannot be decoded is left out, and told on standard
    error."""
    import av

    seconds = (
        float(track.duration * track.time_base) if track.duration and track.time_base else None
    )
    trusted = _trusted(container.format.name, seconds)
    resampler: Any = None
    packets = container.demux(track)
    while True:
        try:
            packet = next(packets)
            frames = packet.decode()
        except StopIteration:
            break
        except av.FFmpegError as error:
            _complain(f"error while decoding: {error.strerror}")
            if isinstance(error, av.EOFError | av.error.OSError):
                break
            continue
        for frame in frames:
            if resampler is None:
                channels = frame.layout.nb_channels
                if not 0 < channels <= MAX_CHANNELS:
                    _say(error=f"it has {channels} channels")
                    return 1
                resampler = av.AudioResampler("flt", frame.layout, SAMPLE_RATE)
                _say(channels, trusted, _note(count))
            _write(resampler.resample(frame))
    if resampler is None:
        _complain("nothing of it can be decoded")
        return 1
    _write(resampler.resample(None))
    return 0


def _write(frames: list[Any]) -> None:
    """Write samples, frame by frame."""
    for frame in frames:
        data = memoryview(frame.to_ndarray()).cast("B")
        while data:
            data = data[os.write(1, data) :]


# -- ffmpeg
# -----------------------------------------------------------------------------------------------------------


def _with_ffmpeg() -> int:
    """Ask ffprobe for the tracks, then become ffmpeg."""
    source = [
        "-v",
        "error",
        "-protocol_whitelist",
        "file",
        "-format_whitelist",
        CONTAINER_FORMATS,
        "-i",
        "/proc/self/fd/0",
    ]
    shown = "stream=index,channels,duration:stream_disposition=default:format=format_name"
    # ffprobe is to end with this process, which ends with its own parent.
    asked = ["ffprobe", "-of", "json", "-select_streams", "a", "-show_entries", shown, *source]
    found = subprocess.run(
        asked, stdin=0, stdout=subprocess.PIPE, check=False, preexec_fn=framing.die_with_parent
    )
    if found.returncode:
        return 1
    facts = json.loads(found.stdout)
    tracks = facts.get("streams", [])
    if not tracks:
        _say(error="no sound")
        return 1
    track = next(
        (track for track in tracks if track.get("disposition", {}).get("default")), tracks[0]
    )
    channels = int(track.get("channels") or 0)
    if not 0 < channels <= MAX_CHANNELS:
        _say(error=f"it has {channels} channels")
        return 1
    container = facts.get("format", {}).get("format_name", "")
    _check_packets(container)
    seconds = _trusted(container, float(track.get("duration") or 0.0))
    _say(channels, seconds, _note(len(tracks)))
    shape = ["-ac", str(channels), "-ar", str(SAMPLE_RATE), "-f", "f32le", "pipe:1"]
    chosen = ["-map", f"0:{track['index']}"]
    return os.execvp("ffmpeg", ["ffmpeg", "-nostdin", "-threads", "1", *source, *chosen, *shape])


if __name__ == "__main__":
    sys.exit(main())
