"""Files that libsndfile has no decoder for, through both decoders; hostile ones cost a process, and
nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile

from asrd.audio.files import SoundFile
from asrd.audio.formats import media, mpeg
from asrd.errors import AudioError
from tests.audio.test_containers import CLIP, DATA_FOLDER
from tests.sound import speech

SECONDS = 6.0
PICTURES = ["-f", "lavfi", "-i", f"testsrc=size=64x64:rate=5:duration={SECONDS}"]

WHOLE = {
    "a.m4a": ["-c:a", "aac"],
    "fast.m4a": ["-c:a", "aac", "-movflags", "+faststart"],
    "fragments.mp4": ["-c:a", "aac", "-movflags", "+frag_keyframe+empty_moov"],
    "alac.m4a": ["-c:a", "alac"],
    "a.mov": ["-c:a", "pcm_s16le"],
    "a.3gp": ["-c:a", "aac"],
    "a.aac": ["-c:a", "aac"],
    "stereo.aac": ["-c:a", "aac", "-ac", "2"],
    "a.webm": ["-c:a", "libopus"],
    "vorbis.webm": ["-c:a", "libvorbis"],
    "live.webm": ["-c:a", "libopus", "-live", "1"],
    "a.mkv": ["-c:a", "aac"],
    "flac.mka": ["-c:a", "flac"],
    "a.wma": ["-c:a", "wmav2"],
    "v1.wma": ["-c:a", "wmav1"],
    "a.ac3": ["-c:a", "ac3"],
    "a.eac3": ["-c:a", "eac3"],
    "a.ts": ["-c:a", "aac"],
    "a.flv": ["-c:a", "aac"],
    "a.avi": ["-c:a", "ac3"],
    "a.tta": ["-c:a", "tta"],
    "a.wv": ["-c:a", "wavpack"],
    "a.mpg": ["-c:a", "mp2"],
    "a.vob": ["-c:a", "ac3"],
    "a.rm": ["-c:a", "real_144", "-ar", "8000"],
    "a.thd": ["-c:a", "truehd", "-strict", "-2", "-ar", "48000"],
    "a.mlp": ["-c:a", "mlp", "-strict", "-2", "-ar", "48000"],
    "a.dts": ["-c:a", "dca", "-strict", "-2", "-ar", "48000"],
    "pcm.avi": ["-c:a", "pcm_s16le"],
    "a.asf": ["-c:a", "mp2"],
    "speex.ogg": ["-c:a", "libspeex"],
    "surround.mkv": ["-c:a", "ac3", "-ac", "6"],
}
"""Files that ffmpeg makes of one sound: name -> how."""

CUT = [
    "fast.m4a",
    "a.aac",
    "a.webm",
    "live.webm",
    "a.mkv",
    "flac.mka",
    "a.wma",
    "pipe.wma",
    "a.ac3",
    "a.ts",
]
CUT += ["a.mpg", "a.vob", "a.rm", "a.thd", "a.mlp", "a.dts", "a.avi", "pcm.avi", "v1.wma"]
CUT += ["a.asf", "speex.ogg", "a.eac3"]

JOINED = [
    "a.m4a",
    "fast.m4a",
    "fragments.mp4",
    "alac.m4a",
    "a.mov",
    "a.3gp",
    "film.mp4",
    "a.webm",
    "stereo.aac",
]
JOINED += ["speex.ogg"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them, and shorter ones."""
    folder = tmp_path_factory.mktemp("media")
    soundfile.write(folder / "in.wav", speech(SECONDS), 16_000)
    outputs = [
        word for name, how in WHOLE.items() for word in ("-map", "0:a", *how, str(folder / name))
    ]
    _ffmpeg("-i", str(folder / "in.wav"), *outputs)
    _ffmpeg(
        *PICTURES,
        "-i",
        str(folder / "in.wav"),
        "-c:v",
        "mpeg4",
        "-c:a",
        "aac",
        str(folder / "film.mp4"),
    )
    _ffmpeg(*PICTURES, "-c:v", "mpeg4", str(folder / "mute.mp4"))
    two = [
        "-i",
        str(folder / "in.wav"),
        "-f",
        "lavfi",
        "-i",
        "anullsrc=r=16000:cl=mono",
        "-t",
        str(SECONDS),
    ]
    default = ["-map", "1", "-map", "0", "-disposition:0", "0", "-disposition:1", "default"]
    _ffmpeg(*two, *default, "-c:a", "aac", str(folder / "two.mkv"))
    piped = [
        "ffmpeg",
        "-nostdin",
        "-v",
        "error",
        "-i",
        str(folder / "in.wav"),
        "-c:a",
        "wmav2",
        "-f",
        "asf",
        "pipe:1",
    ]
    (folder / "pipe.wma").write_bytes(
        subprocess.run(piped, check=True, stdout=subprocess.PIPE).stdout
    )
    for name in CUT:
        content = (folder / name).read_bytes()
        (folder / f"cut-{name}").write_bytes(content[: round(0.611 * len(content))])
    return folder


def _ffmpeg(*words: str) -> None:
    subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-y", *words], check=True)


def heard(path: Path) -> tuple[np.ndarray, SoundFile]:
    with SoundFile(path) as source:
        return np.concatenate([block.samples for block in source]), source


@pytest.mark.parametrize("name", [*WHOLE, "film.mp4", "pipe.wma"])
def test_a_media_file_is_heard_to_its_end(
    name: str, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("av")
    sound, source = heard(files / name)
    assert (caplog.messages, source.complete) == ([], True)
    assert len(sound) / 16_000 == pytest.approx(SECONDS, abs=0.15)
    assert (
        0.02 < np.abs(sound[-8000:]).max() < 0.6
    )  # the mean of six channels, of which one speaks, is quiet


@pytest.mark.parametrize("name", ["a.m4a", "a.webm", "stereo.aac", "film.mp4", "a.wma"])
def test_the_ffmpeg_program_does_as_well(
    name: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "backend", lambda: "ffmpeg")
    sound, source = heard(files / name)
    assert source.complete
    assert len(sound) / 16_000 == pytest.approx(SECONDS, abs=0.15)


@pytest.mark.parametrize("name", JOINED)
def test_joined_media_files_are_heard_one_after_the_other(
    name: str, files: Path, tmp_path: Path
) -> None:
    content = (files / name).read_bytes()
    joined = tmp_path / name
    joined.write_bytes(2 * content)
    sound, source = heard(joined)
    assert source.complete
    assert len(sound) / 16_000 == pytest.approx(2 * SECONDS, abs=0.3)
    if name == "fast.m4a":
        joined.write_bytes(content + content[: len(content) // 2])
        sound, source = heard(joined)
        assert not source.complete
        assert len(sound) / 16_000 == pytest.approx(1.5 * SECONDS, abs=0.4)


@pytest.mark.parametrize("name", CUT)
def test_a_media_file_cut_short_warns(
    name: str, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound, source = heard(files / f"cut-{name}")
    assert not source.complete
    assert len(caplog.messages) == 1
    assert f"cut-{name}: is cut short, " in caplog.text
    assert "nvalid data" not in caplog.text
    assert 2.0 < len(sound) / 16_000 < 5.0


def free_format(mp3: bytes) -> bytes:
    """Return an MP3 of frames of one length without the number that names it."""
    frames, place = bytearray(mp3), 0
    while place < len(mp3):
        one = mpeg.header(mp3[place : place + 4])
        assert one is not None
        frames[place + 2] &= 0x0F
        place += one.length
    return bytes(frames)


@pytest.mark.parametrize("bitrate", [32, 48, 64, 96, 128])
def test_an_mp3_of_free_format_is_heard_to_its_end(
    bitrate: int, files: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.mp3"
    how = ["-c:a", "libmp3lame", "-b:a", f"{bitrate}k", "-write_xing", "0", "-id3v2_version", "0"]
    _ffmpeg("-i", str(files / "in.wav"), *how, str(path))
    content = free_format(path.read_bytes())
    for copies, missing, complete in (
        (1, 0, True),
        (2, 0, True),
        (1, 5, False),
        (1, len(content) // 3, False),
    ):
        path.write_bytes((copies * content)[: copies * len(content) - missing])
        sound, source = heard(path)
        assert source.complete == complete
        assert len(sound) / 16_000 == pytest.approx(
            SECONDS * (copies - missing / len(content)), abs=0.3
        )


def test_of_several_tracks_the_default_one_is_heard_with_a_word(
    files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound, source = heard(files / "two.mkv")
    assert source.complete
    assert np.abs(sound).max() > 0.05, "the silent track was taken"
    [word] = caplog.messages
    assert word.endswith(
        "two.mkv: has 2 audio tracks, of which the one marked as default, or the first, is used"
    )


PLAYLISTS = {
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:6,\n{path}\n#EXT-X-ENDLIST\n",
    "network.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:6,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    "a.ffconcat": "ffconcat version 1.0\nfile '{path}'\n",
    "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
    "a.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{path}</BaseURL></MPD>',
    "a.pls": "[playlist]\nFile1={path}\nNumberOfEntries=1\n",
}


@pytest.mark.parametrize("backend", ["pyav", "ffmpeg"])
@pytest.mark.parametrize("name", PLAYLISTS)
def test_what_names_other_files_is_refused(
    name: str, backend: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "backend", lambda: backend)
    path = tmp_path / name
    path.write_text(PLAYLISTS[name].format(path=files / "a.ts"))
    with pytest.raises(AudioError, match="is not an audio file that can be read"):
        SoundFile(path)


def test_pictures_without_sound_are_one_sentence(files: Path) -> None:
    with pytest.raises(AudioError, match="has no audio in it"):
        SoundFile(files / "mute.mp4")


def test_without_a_decoder_one_sentence_says_what_to_install(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "backend", lambda: "")
    with pytest.raises(AudioError, match="is not an audio file that libsndfile can read") as caught:
        SoundFile(files / "a.m4a")
    assert "asrd[media]" in caught.value.hint
    assert "install ffmpeg" in caught.value.hint


HEAD = 'import os, time; os.write(1, b\'{"channels": 1, "seconds": 0, "note": "", "error": ""}\\n\' + bytes(64000)); '


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("os.kill(os.getpid(), 11)", "its decoder was ended by signal 11"),
        ("time.sleep(60)", "its decoder gave nothing for"),
        ("raise SystemExit('[mov @ 0x1] it is broken')", "its decoder failed"),
    ],
)
def test_a_decoder_that_fails_on_the_way_leaves_what_it_gave(
    does: str, said: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "DECODER_COMMAND", (sys.executable, "-c", HEAD + does))
    monkeypatch.setattr(media, "STALL_SECONDS", 1.0)
    sound, source = heard(files / "a.m4a")
    assert len(sound) == 16_000
    assert not source.complete
    assert said in source.warnings[0]


def test_a_decoder_ends_with_its_reader(files: Path) -> None:
    source = SoundFile(files / "a.m4a")
    process = source._decoder._process  # type: ignore[union-attr] - what is closed is not seen from outside
    source.close()
    assert process.returncode is not None
    code = "import sys, os; from asrd.audio.files import SoundFile; s = SoundFile(sys.argv[1]);"
    code += "print(s._decoder._process.pid, flush=True); os.kill(os.getpid(), 9)"
    done = subprocess.run(
        [sys.executable, "-c", code, files / "a.m4a"], capture_output=True, text=True, check=False
    )
    pid, deadline = int(done.stdout), time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_verb_reads_media_files_and_leaves_out_bad_ones(files: Path, tmp_path: Path) -> None:
    _ffmpeg(
        "-i",
        str(DATA_FOLDER / "eval" / CLIP["audio_filepath"]),
        "-c:a",
        "aac",
        str(tmp_path / "a clip.m4a"),
    )
    (tmp_path / "bad.m3u8").write_text(PLAYLISTS["a.m3u8"].format(path=tmp_path / "a clip.m4a"))
    names = [files / "mute.mp4", tmp_path / "bad.m3u8", tmp_path / "a clip.m4a"]
    words = [
        sys.executable,
        "-m",
        "asrd",
        "transcribe",
        "--json",
        "--no-daemon",
        "--model",
        "demo-ctc",
        *map(str, names),
    ]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ)
    )
    found: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 65
    assert [line.partition(": ")[2].partition(": ")[2][:24] for line in done.stderr.splitlines()] == [
        "has no audio in it (it i", "is not an audio file tha"
    ]  # fmt: skip
    assert len(found) == 1
    assert jiwer.wer(CLIP["text"], found[0]["text"]) <= 0.35
    assert found[0]["complete"] is True
