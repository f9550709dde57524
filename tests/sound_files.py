"""Sound files whose headers know less than their bytes, each with what is true of it: made anew
from a seed."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import soundfile
from numpy.typing import NDArray

from asrd.audio.formats.streams import page_checksum

Order = Literal["big", "little"]
RATE = 16_000
SAID = "LIST" + "\x1a\0\0\0" + "INFOISFT\x0e\0\0\0asrd's tests\0\0"
LIST = SAID.encode("latin-1")
ID3V1 = b"TAG" + b"a title".ljust(125, b"\0")
APE = b"APETAGEX" + b"".join(n.to_bytes(4, "little") for n in (2000, 32, 0, 0)) + bytes(8)
PICTURE = (
    b"ID3\x04\0\0"
    + bytes((0, 4, 58, 40))
    + bytes((7 * i + 13) % 251 for i in range(4 * 16_384 + 58 * 128 + 40))
)


@dataclass(frozen=True)
class Member:
    """One file."""

    name: str
    content: bytes
    parts: float
    """How many times the sound is in it."""
    flaw: str = ""
    """What is said of it; "" for a complete file."""


def encoded(sound: NDArray[np.float32], rate: int = RATE, **kind: object) -> bytes:
    """Return a file by libsndfile."""
    out = io.BytesIO()
    soundfile.write(out, sound, rate, **kind)
    return out.getvalue()


def put(content: bytes, place: int, value: bytes) -> bytes:
    """Return the content with other bytes at a place."""
    return content[:place] + value + content[place + len(value) :]


def sized(
    content: bytes, mark: bytes, value: int, width: int = 4, order: Order = "little"
) -> bytes:
    """Return the content with another length in the chunk of this name."""
    value %= 1 << 8 * width
    return put(content, content.index(mark) + len(mark), value.to_bytes(width, order))


def without_count(mp3: bytes) -> bytes:
    """Return an MP3 without the frame that tells its length."""
    place = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    first = mp3.rindex(b"\xff", 0, place)
    head = mp3[first : first + 2]
    return mp3[mp3.index(head, place) :]


def endless(flac: bytes) -> bytes:
    """Return a FLAC file whose encoder did not know the length."""
    return put(flac, 21, bytes([flac[21] & 0xF0]) + bytes(4))


def pages(ogg: bytes) -> list[bytes]:
    """Return the pages of an Ogg file."""
    found = []
    while ogg:
        count = ogg[26]
        length = 27 + count + sum(ogg[27 : 27 + count])
        found.append(ogg[:length])
        ogg = ogg[length:]
    return found


def page(head: bytes, number: int, granule: int, packets: list[bytes]) -> bytes:
    """Return a page without a mark, of the stream of another page."""
    laces = b"".join(
        bytes([255] * (len(packet) // 255) + [len(packet) % 255]) for packet in packets
    )
    start = (
        head[:5]
        + bytes(1)
        + granule.to_bytes(8, "little")
        + head[14:18]
        + number.to_bytes(4, "little")
    )
    bare = start + bytes(4) + bytes([len(laces)]) + laces + b"".join(packets)
    return put(bare, 22, page_checksum(bare).to_bytes(4, "little"))


def unmarked(ogg: bytes) -> bytes:
    """Return an Ogg file without the mark of its end."""
    found = pages(ogg)
    last = put(put(found[-1], 5, bytes([found[-1][5] & ~4])), 22, bytes(4))
    return b"".join(found[:-1]) + put(last, 22, page_checksum(last).to_bytes(4, "little"))


def voice_message(opus: bytes, count: int = 1) -> bytes:
    """Return an Opus file without the mark of its end and with so many packets a page: Android
    writes 1."""
    head, tags, *rest = pages(opus)
    packets, packet = [], b""
    for one in rest:
        place = 27 + one[26]
        for lace in one[27 : 27 + one[26]]:
            packet, place = packet + one[place : place + lace], place + lace
            if lace < 255:
                packets.append(packet)
                packet = b""
    groups = [packets[first : first + count] for first in range(0, len(packets), count)]
    made, done = [head, tags], 0
    for number, group in enumerate(groups, 2):
        done += len(group)
        made.append(page(tags, number, done * 960, group))
    return b"".join(made)


def around_mp3(mp3: bytes) -> bytes:
    """Return a WAV file with an MP3 in it, whose header states a rate of bits that is not its
    own."""
    form = b"".join(n.to_bytes(2, "little") for n in (0x55, 1))
    form += b"".join(n.to_bytes(4, "little") for n in (RATE, 8000)) + bytes(
        (1, 0, 0, 0, 12, 0, 1, 0, 2, 0, 0, 0)
    )
    form += bytes((0x80, 4, 1, 0, 0x71, 5))
    inner = (
        b"WAVEfmt "
        + len(form).to_bytes(4, "little")
        + form
        + b"data"
        + len(mp3).to_bytes(4, "little")
        + mp3
    )
    return b"RIFF" + len(inner).to_bytes(4, "little") + inner


def complete(sound: NDArray[np.float32]) -> list[Member]:
    """Return files with all of their sound, which must be heard without a word."""
    wav = encoded(sound, format="WAV")
    odd = encoded(sound[:-1] if len(sound) % 2 == 0 else sound, format="WAV", subtype="PCM_U8")
    au, aiff, caf, w64 = (encoded(sound, format=kind) for kind in ("AU", "AIFF", "CAF", "W64"))
    flac, ogg = encoded(sound, format="FLAC"), encoded(sound, format="OGG")
    opus = encoded(sound, format="OGG", subtype="OPUS")
    mp3 = encoded(sound, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    constant = encoded(sound, format="MP3", bitrate_mode="CONSTANT")
    bare = without_count(mp3)
    data = w64.index(b"data") + 16
    return [
        Member("plain.wav", wav, 1),
        Member("ffmpeg-pipe.wav", sized(put(wav, 4, b"\xff" * 4), b"data", 0xFFFF_FFFF), 1),
        Member("sox-pipe.wav", sized(wav, b"data", 0x7FFF_F000), 1),
        Member("arecord-pipe.wav", sized(wav, b"data", 0x8000_0000), 1),
        Member("list-behind.wav", wav + LIST, 1),
        Member("id3-behind.wav", wav + b"id3 " + (2000).to_bytes(4, "little") + bytes([200] * 2000), 1),
        Member("id3-cut.wav", wav + b"id3 " + (2000).to_bytes(4, "little") + bytes([200] * 900), 1),
        Member("tag-behind.wav", wav + ID3V1, 1),
        Member("padded.wav", wav + bytes(4096), 1),
        Member("odd-list.wav", odd + LIST, 1),
        Member("joined.wav", wav + LIST + wav, 2),
        Member("gsm.wav", encoded(sound, format="WAV", subtype="GSM610"), 1),
        Member("ima.wav", encoded(sound, format="WAV", subtype="IMA_ADPCM"), 1),
        Member("ms.wav", encoded(sound, format="WAV", subtype="MS_ADPCM"), 1),
        Member("big-endian.wav", encoded(sound, format="WAV", endian="BIG"), 1),
        Member("g721.au", encoded(sound, format="AU", subtype="G721_32"), 1),
        Member("plain.rf64", encoded(sound, format="RF64") + LIST, 1),
        Member("plain.w64", w64, 1),
        Member("pipe.w64", put(w64, data, (2**63 - 1).to_bytes(8, "little")), 1),
        Member("plain.au", au, 1),
        Member("pipe.au", put(au, 8, b"\xff" * 4), 1),
        Member("plain.aiff", aiff + b"ANNO\0\0\0\x04asrd", 1),
        Member("sox-pipe.aiff", sized(aiff, b"SSND", 0x7F00_0008, order="big"), 1),
        Member("plain.caf", caf, 1),
        Member("pipe.caf", sized(caf, b"data", -1, 8, "big"), 1),
        Member("ffmpeg-pipe.aiff", sized(put(put(aiff, 4, bytes(4)), 22, bytes(4)), b"SSND", 0, order="big"), 1),
        Member("ffmpeg-pipe.rf64", put(encoded(sound, format="RF64"), 20, bytes(24)), 1),
        Member("zero.w64", put(w64, data, bytes(8)), 1),
        Member("zero.caf", sized(caf, b"data", 0, 8, "big"), 1),
        Member("joined.au", au + au, 2),
        Member("joined.aiff", aiff + aiff, 2),
        Member("joined.caf", caf + caf, 2),
        Member("joined.w64", w64 + w64, 2),
        Member("joined-alac.caf", 2 * encoded(sound, format="CAF", subtype="ALAC_16"), 2),
        Member("joined-pipes.wav", 2 * sized(wav, b"data", 0xFFFF_FFFF), 2),
        Member("joined-pipes.au", 2 * put(au, 8, b"\xff" * 4), 2),
        Member("joined-kinds.wav", wav + aiff + au + w64 + caf, 5),
        Member("plain.flac", flac, 1),
        Member("pipe.flac", endless(flac), 1),
        Member("picture.flac", PICTURE + flac, 1),
        Member("tags.flac", flac + APE + ID3V1, 1),
        Member("tagged-pipe.flac", endless(flac) + ID3V1, 1),
        Member("joined.flac", flac + flac, 2),
        Member("joined-pipes.flac", endless(flac) + PICTURE + endless(flac) + flac, 3),
        Member("plain.ogg", ogg, 1),
        Member("chained.ogg", ogg + ogg + ogg, 3),
        Member("plain.opus", opus, 1),
        Member("chained.opus", opus + opus, 2),
        Member("android.opus", voice_message(opus), 1),
        Member("unmarked.opus", voice_message(opus, 50), 1),
        Member("unmarked-libsndfile.opus", unmarked(opus), 1),
        Member("joined-android.opus", voice_message(opus) + voice_message(opus, 50), 2),
        Member("mp3.riff", around_mp3(bare), 1),
        Member("constant-mp3.riff", around_mp3(without_count(constant)), 1),
        Member("mixed.ogg", ogg + opus, 2),
        Member("tagged.ogg", ogg + ID3V1 + bytes(512), 1),
        Member("plain.mp3", mp3, 1),
        Member("bare.mp3", bare, 1),
        Member("constant.mp3", without_count(constant), 1),
        Member("joined.mp3", mp3 + mp3, 2),
        Member("joined-bare.mp3", bare + ID3V1 + bare, 2),
        Member("joined-tagged.mp3", PICTURE + mp3 + PICTURE + bare, 2),
        Member("picture.mp3", PICTURE + bare + APE + ID3V1, 1),
        Member("padded.mp3", bytes(700) + bare + bytes(3000), 1),
        Member("rates.mp3", bare + encoded(np.repeat(sound, 2), 2 * RATE, format="MP3"), 2),
    ]  # fmt: skip


def incomplete(sound: NDArray[np.float32]) -> list[Member]:
    """Return files whose end is missing, or uncertain: what is there is heard, with one warning."""
    wav, wide = encoded(sound, format="WAV"), encoded(sound, format="WAV", subtype="PCM_24")
    au, aiff, caf, w64 = (encoded(sound, format=kind) for kind in ("AU", "AIFF", "CAF", "W64"))
    rf64 = encoded(sound, format="RF64")
    flac, ogg = encoded(sound, format="FLAC"), encoded(sound, format="OGG")
    opus = encoded(sound, format="OGG", subtype="OPUS")
    mp3 = encoded(sound, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    bare, half = without_count(mp3), 2 * (len(sound) // 2)
    unfinished, more, cut = (
        "has an unfinished header",
        "has more audio than its header says",
        "is cut short",
    )
    killed = put(rf64, 28, bytes(16)) if rf64[:4] == b"RF64" else sized(rf64, b"data", 0)

    def part(content: bytes, share: float = 0.6) -> bytes:
        return content[: round(share * len(content))]

    return [
        Member("zero.wav", sized(put(wav, 4, bytes(4)), b"data", 0), 1, unfinished),
        Member("zero24.wav", sized(wide, b"data", 0), 1, unfinished),
        Member("zero.au", put(au, 8, bytes(4)), 1, unfinished),
        Member("zero.rf64", killed, 1, unfinished),
        Member("empty.w64", put(w64, w64.index(b"data") + 16, (24).to_bytes(8, "little")), 1, unfinished),
        Member("empty.aiff", sized(put(aiff, 22, bytes(4)), b"SSND", 8, order="big"), 1, unfinished),
        Member("empty.caf", sized(caf, b"data", 4, 8, "big"), 1, unfinished),
        Member("cut-first.wav", part(wav) + wav, 1.6, cut),
        Member("cut-first.au", part(au) + au, 1.6, cut),
        Member("cut-pipe.wav", sized(wav, b"data", 0xFFFF_FFFF)[:-1], 1, cut),
        Member("half.wav", sized(wav, b"data", half), 1, more),
        Member("half.au", put(au, 8, half.to_bytes(4, "big")), 1, more),
        Member("half.caf", sized(caf, b"data", half, 8, "big"), 1, more),
        Member("half.w64", put(w64, w64.index(b"data") + 16, (half + 24).to_bytes(8, "little")), 1, more),
        Member("cut.wav", part(wav), 0.6, cut),
        Member("cut.w64", part(w64), 0.6, cut),
        Member("cut.au", part(au), 0.6, cut),
        Member("cut.aiff", part(aiff), 0.6, cut),
        Member("cut-joined.wav", wav + part(wav), 1.6, cut),
        Member("cut-gsm.wav", part(encoded(sound, format="WAV", subtype="GSM610")), 0.6, cut),
        Member("cut.flac", part(flac), 0.6, cut),
        Member("cut-pipe.flac", part(endless(flac)), 0.6, cut),
        Member("cut-joined.flac", flac + part(flac), 1.6, cut),
        Member("cut-first.flac", part(flac) + flac, 1.6, cut),
        Member("cut.ogg", part(ogg), 0.6, cut),
        Member("cut.opus", part(opus), 0.6, cut),
        Member("killed.opus", b"".join(pages(voice_message(opus, 50))[:-1]), 0.94, cut),
        Member("cut-android.opus", part(voice_message(opus)), 0.6, cut),
        Member("unmarked.ogg", unmarked(ogg), 1, cut),
        Member("cut-mp3.riff", part(around_mp3(bare)), 0.6, cut),
        Member("cut-chain.ogg", ogg + part(ogg), 1.6, cut),
        Member("cut-first.opus", part(opus) + opus, 1.6, cut),
        Member("cut.mp3", part(mp3), 0.6, cut),
        Member("cut-bare.mp3", part(bare)[: -1 - round(0.01 * len(bare))], 0.6, cut),
        Member("cut-tail.mp3", bare[:-9], 1, cut),
    ]  # fmt: skip
