"""Files whose headers do not know their end: all of the sound is heard, and only what is incomplete
warns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest

from asrd import journal
from asrd.audio import files
from asrd.audio.files import SoundFile
from asrd.audio.formats import containers
from asrd.errors import AudioError
from asrd.paths import DATA_FOLDER
from tests.daemon.test_daemon import Start, daemon  # noqa: F401 - a fixture
from tests.helpers import ROOT
from tests.sound import speech
from tests.sound_files import LIST, RATE, Member, complete, encoded, incomplete, without_count

SOUND = speech(3.2)
LOSSLESS = (".flac", ".aiff", ".caf", ".au", ".w64", ".rf64")
EVAL = DATA_FOLDER / "eval"
CLIPS = list(map(json.loads, (EVAL / "manifest.jsonl").read_text().splitlines()))
CLIP = next(line for line in CLIPS if line["sound"] == "clean" and line["group"] == "trained voice")


def named(members: list[Member]) -> Any:
    return pytest.mark.parametrize("member", members, ids=[member.name for member in members])


def heard(member: Member, folder: Path) -> tuple[np.ndarray, SoundFile]:
    """Return the sound of a file, and the file, which was heard twice with the same result."""
    path = folder / member.name
    path.write_bytes(member.content)
    with SoundFile(path) as source:
        first, second = (np.concatenate([block.samples for block in source]) for _ in range(2))
        np.testing.assert_array_equal(first, second)
    return first, source


@named(complete(SOUND))
def test_a_complete_file_is_heard_to_its_end_without_a_word(
    member: Member, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound, source = heard(member, tmp_path)
    assert (caplog.messages, source.warnings, source.complete) == ([], [], True)
    exact = member.name.endswith(LOSSLESS) and "g721" not in member.name
    slack = 1 if exact else 0.13 * RATE * member.parts
    assert len(sound) == pytest.approx(member.parts * len(SOUND), abs=slack)
    loud = np.abs(sound[-RATE // 2 :]).max()
    assert loud > 0.05, "its end is missing"


@pytest.mark.parametrize("level", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_last_frame_of_silence_is_no_padding(tmp_path: Path, level: float, rate: int) -> None:
    sound = np.concatenate([SOUND, np.zeros(RATE, np.float32)])
    mp3 = encoded(sound, rate, format="MP3", bitrate_mode="CONSTANT", compression_level=level)
    bare = without_count(mp3)
    zeros = bare.rstrip(b"U").ljust(
        len(bare), b"\0"
    )  # lame fills a frame with a letter, ffmpeg with zeros
    heard_of, source = heard(Member("silent-end.mp3", zeros, 1), tmp_path)
    assert source.complete
    assert len(heard_of) >= len(sound) * RATE // rate


@named(incomplete(SOUND))
def test_an_incomplete_file_is_heard_as_far_as_it_goes_and_warns_once(
    member: Member, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound, source = heard(member, tmp_path)
    assert not source.complete
    assert len(source.warnings) == 1
    assert source.warnings[0].startswith(f"{tmp_path / member.name}: {member.flaw}, ")
    assert caplog.messages == source.warnings * 2
    slack = (
        1.1 if member.name.endswith((".ogg", ".opus")) else 0.35
    )  # seconds: a page of Ogg is lost as a whole
    assert len(sound) == pytest.approx(member.parts * len(SOUND), abs=slack * RATE)


def sparse(path: Path, header: bytes, length: int, behind: bytes = b"") -> containers.Layout:
    """Return the layout of a file of `length` bytes of sound, of which only few are not zero and
    none is on disk."""
    with path.open("wb") as file:
        file.write(header)
        for place in range(0, length, 1 << 30):
            file.seek(len(header) + place)
            file.write(b"\x01" * 64)
        file.seek(len(header) + length % (1 << 32))
        file.write(b"\x01" * 64)
        file.seek(len(header) + length - 8)
        file.write(b"\x01" * 8 + behind)
    with path.open("rb") as file:
        return containers.survey(file.fileno())


@pytest.mark.parametrize("gibibytes", [4.0, 4.5, 5.25, 8.5, 9.0])
@pytest.mark.parametrize("behind", [b"", LIST], ids=["", "list"])
@pytest.mark.parametrize("kind", ["wav", "au"])
def test_lengths_that_wrapped_are_no_flaw(
    tmp_path: Path, gibibytes: float, behind: bytes, kind: str
) -> None:
    length = round(gibibytes * (1 << 30)) + 64
    plain = encoded(SOUND[:1], format=kind.upper())
    place, order = (40, "little") if kind == "wav" else (8, "big")
    size = (length % (1 << 32)).to_bytes(4, "little" if order == "little" else "big")
    header = (plain[:place] + size + plain[place + 4 :])[: 44 if kind == "wav" else 24]
    layout = sparse(tmp_path / f"a.{kind}", header, length, behind)
    assert layout.flaw == ""
    [pieces] = layout.parts
    assert sum(len(piece) for piece in pieces) == len(header) + length


def test_bytes_of_any_kind_behind_a_header_are_one_error_or_sound(tmp_path: Path) -> None:
    """Headers of every kind with random bytes in them: never another exception, never an endless
    search."""
    random = np.random.default_rng(15)
    path = tmp_path / "a"
    for member in [*complete(SOUND[:4000]), *incomplete(SOUND[:4000])]:
        for _ in range(4):
            content = bytearray(member.content)
            for place in random.integers(0, min(len(content), 4000), size=8):
                content[place] = random.integers(0, 256)
            path.write_bytes(content[: random.integers(1, len(content))])
            with path.open("rb") as file:
                containers.survey(file.fileno())


def test_a_file_that_becomes_shorter_while_it_is_read_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(np.tile(SOUND, 4), format="WAV") + encoded(SOUND, format="WAV"))
    with SoundFile(path) as source:
        blocks = iter(source)
        next(blocks)
        os.truncate(path, 200_000)
        count = sum(len(block.samples) for block in blocks)
    assert count < 100_000
    assert not source.complete


# -- through the verb
# -------------------------------------------------------------------------------------------------


BROKEN_NAME = "new\nline: of\ta\x1b[1m name.wav"


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], subprocess.CompletedProcess[str], Path]:
    """One call of `asrd transcribe` over every kind of file, bad ones first."""
    folder = tmp_path_factory.mktemp("files")
    clip = files.read(EVAL / CLIP["audio_filepath"])
    members = [*complete(clip), *incomplete(clip)]
    (folder / "nan.wav").write_bytes(
        encoded(np.full(4000, np.nan, np.float32), format="WAV", subtype="FLOAT")
    )
    (folder / "empty.wav").write_bytes(encoded(clip[:0], format="WAV"))
    for member in members:
        (folder / member.name).write_bytes(member.content)
    (folder / BROKEN_NAME).write_bytes(encoded(clip, format="WAV")[:-40_000])
    names = ["nan.wav", "empty.wav", BROKEN_NAME, *(member.name for member in members)]
    words = [
        sys.executable,
        "-m",
        "asrd",
        "transcribe",
        "--json",
        "--no-daemon",
        "--model",
        "demo-ctc",
    ]
    done = subprocess.run(
        [*words, *(str(folder / name) for name in names)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found = {Path(one["path"]).name: one for one in map(json.loads, done.stdout.splitlines())}
    return found, done, folder


def test_every_word_of_every_complete_file_is_text(run: Any) -> None:
    found, done, _ = run
    for member in complete(SOUND):
        one = found[member.name]
        assert (one["complete"], one["warning"]) == (True, None), member.name
        assert f"/{member.name}: " not in done.stderr
        assert jiwer.wer(" ".join([CLIP["text"]] * int(member.parts)), one["text"]) <= 0.35, (
            member.name,
            one["text"],
        )


def test_incomplete_files_give_their_text_and_one_warning_each(run: Any) -> None:
    found, done, folder = run
    assert done.returncode == 65
    for member in incomplete(SOUND):
        one = found[member.name]
        assert one["complete"] is False
        assert one["warning"].startswith(f"{folder / member.name}: {member.flaw}, "), member.name
        assert done.stderr.splitlines().count(f"asrd: {one['warning']}") == 1
        if member.parts >= 1:
            assert jiwer.wer(CLIP["text"], one["text"]) <= 1.0, (member.name, one["text"])
            assert len(one["text"].split()) >= len(CLIP["text"].split()) - 1, (
                member.name,
                one["text"],
            )


def test_bad_files_before_good_ones_are_a_line_each(run: Any) -> None:
    _, done, folder = run
    for name in ("nan.wav", "empty.wav"):
        [line] = [line for line in done.stderr.splitlines() if f"{folder / name}:" in line]
        assert "holds no audio" in line


def test_a_line_break_in_a_name_breaks_no_line(run: Any) -> None:
    _, done, _ = run
    [line] = [line for line in done.stderr.splitlines() if "name.wav" in line]
    assert line.startswith("asrd: /")
    assert "name.wav: is cut short, " in line


@pytest.mark.parametrize("seed", range(20))
def test_nor_in_the_log(seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(seed)
    name = (
        "".join("\n\r\t\v\x1b\x85\u2028ab %"[place] for place in random.integers(0, 11, size=12))
        + "\n.wav"
    )
    heard(Member(name, encoded(SOUND[:8000], format="WAV")[:9000], 1), tmp_path)
    for record in caplog.records:
        assert len(journal.JournalFormatter("asrd: %(message)s").format(record).splitlines()) == 1


def test_a_daemon_says_the_same_of_a_file(daemon: Start, tmp_path: Path) -> None:  # noqa: F811 - a fixture
    for member in incomplete(SOUND)[:8]:
        (tmp_path / member.name).write_bytes(member.content)
    (tmp_path / "nan.wav").write_bytes(
        encoded(np.full(4000, np.nan, np.float32), format="WAV", subtype="FLOAT")
    )
    (tmp_path / "whole.wav").write_bytes(encoded(SOUND, format="WAV"))
    one = daemon()
    one.settled()
    names = [
        str(tmp_path / name)
        for name in ("nan.wav", *(m.name for m in incomplete(SOUND)[:8]), "whole.wav")
    ]
    verb = one.verb("transcribe", "--json", *names)
    out, errors = verb.communicate(timeout=60)
    assert verb.returncode == 65, errors
    told = {Path(line["path"]).name: line for line in map(json.loads, out.splitlines())}
    assert "nan.wav: holds no audio" in errors
    assert told.keys() == {Path(name).name for name in names[1:]}
    for member in incomplete(SOUND)[:8]:
        assert told[member.name]["complete"] is False
        assert errors.count(f"{tmp_path / member.name}: {member.flaw}, ") == 1
    assert (told["whole.wav"]["complete"], told["whole.wav"]["warning"]) == (True, None)
    verb = one.verb("transcribe", str(tmp_path / "whole.wav"))
    assert (verb.communicate(timeout=60)[1], verb.returncode) == ("", 0)


PLAYED = {
    "whole.wav": (encoded(SOUND[:8000], format="WAV"), 0, ""),
    "gsm.wav": (encoded(SOUND[:8000], format="WAV", subtype="GSM610"), 0, ""),
    "nan.wav": (
        encoded(np.full(4000, np.nan, np.float32), format="WAV", subtype="FLOAT"),
        65,
        "holds no audio",
    ),
    "text.wav": (b"no sound" * 99, 65, "is not an audio file"),
    "cut.wav": (encoded(SOUND[:16_000], format="WAV")[:16_000], 65, "is cut short"),
    "cut.flac": (encoded(SOUND[:16_000], format="FLAC")[:9_000], 65, "is cut short"),
}


@pytest.mark.parametrize("name", PLAYED)
def test_a_daemon_on_a_file_ends_with_it_and_says_what_was_wrong(
    name: str,
    daemon: Start,  # noqa: F811 - a fixture
    tmp_path: Path,
) -> None:
    content, code, sentence = PLAYED[name]
    (tmp_path / name).write_bytes(content)
    one = daemon(up=False)
    with one.log.open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fakes.deaf_daemon", "run", f"--source=file:{tmp_path / name}",
             "--sink=stdout"],
            cwd=ROOT, env=one.environment, stdout=log, stderr=log, timeout=60, check=False,
        )  # fmt: skip
    said = one.log.read_text()
    assert done.returncode == code, said
    if sentence:
        assert said.count(f"{name}: {sentence}") == 1, said


def test_a_manifest_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    from asrd.evaluation import manifest

    lines = []
    for name, (content, _, _) in PLAYED.items():
        (tmp_path / name).write_bytes(content)
        lines.append(json.dumps({"audio_filepath": name, "text": "words"}))
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    clips, skipped = manifest.read(tmp_path / "m.jsonl")
    assert len(clips) == 4
    assert [(one.line, one.reason.partition(": ")[2]) for one in skipped] == [
        (3, "holds no audio"), (4, "is not an audio file that can be read"),
    ]  # fmt: skip


def test_a_directory_in_a_list_of_files_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="is a directory"):
        SoundFile(tmp_path)
