"""What libmpg123 prints by itself, and what others print meanwhile."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrd.audio import files, library_noise
from tests.sound import speech

ODD = 24
"""Damaged files, each by its own seed."""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return MP3s in which some bytes were changed."""
    folder = tmp_path_factory.mktemp("odd")
    soundfile.write(folder / "whole.mp3", speech(3), 16_000)
    whole, made = (folder / "whole.mp3").read_bytes(), []
    for seed in range(ODD):
        chance, data = random.Random(seed), bytearray(whole)
        for _ in range(chance.choice([5, 50])):
            data[chance.randrange(200, len(data))] = chance.randrange(256)
        made.append(folder / f"{seed}.mp3")
        made[-1].write_bytes(data)
    return made


READ = """
import logging, sys
from asrd.audio import files
logging.getLogger("asrd").setLevel(logging.DEBUG)
logging.getLogger("asrd").addHandler(logging.FileHandler(sys.argv[1]))
for path in sys.argv[2:]:
    try:
        files.read(path)
    except files.AudioError as error:
        print(error.message)
"""


def test_no_line_of_a_damaged_mp3_is_on_standard_error(odd: list[Path], tmp_path: Path) -> None:
    words = [sys.executable, "-c", READ, os.fspath(tmp_path / "log"), *map(os.fspath, odd)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    logged = (tmp_path / "log").read_text()
    assert "mpg123" not in done.stderr
    assert "Note:" not in done.stderr
    assert logged.count("libmpg123: ") > 10, (
        "the library has nothing to say of these files, so this shows nothing"
    )
    assert "libmpg123/layer3.c" in logged


def test_other_lines_arrive_where_they_were_sent(capfd: pytest.CaptureFixture[str]) -> None:
    with library_noise.kept_out():
        os.write(
            2,
            b"[src/libmpg123/layer3.c:1] error: odd\nours\n\nNote: Trying to resync...\nfirst half, ",
        )
        os.write(2, b"second half\n")
    assert capfd.readouterr().err == "ours\nfirst half, second half\n"


def test_lines_of_other_threads_are_neither_lost_nor_doubled(
    capfd: pytest.CaptureFixture[str],
) -> None:
    count, ended = 400, threading.Event()

    def write() -> None:
        for number in range(count):
            os.write(2, b"line %d\n" % number)
            time.sleep(0)
        ended.set()

    threads = [threading.Thread(target=write)]
    threads[0].start()
    while not ended.is_set():
        with library_noise.kept_out():
            os.write(2, b"Note: noise\n")
    threads[0].join()
    found = capfd.readouterr().err.splitlines()
    assert sorted(found) == sorted(f"line {number}" for number in range(count))


def test_more_than_a_pipe_holds_makes_nobody_wait(capfd: pytest.CaptureFixture[str]) -> None:
    with library_noise.kept_out():
        for _ in range(300):
            os.write(2, b"[src/libmpg123/x] " + bytes([65]) * 1000 + b"\n")
    assert capfd.readouterr().err == ""


def test_without_standard_error_or_while_somebody_has_it_sound_is_read(
    odd: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_noise, "WAIT_SECONDS", 0.01)
    with library_noise.descriptor_2, library_noise.kept_out():
        pass
    code = f"from asrd.audio import files; print(len(files.read({str(odd[0].with_name('whole.mp3'))!r})))"
    words = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", code]
    assert int(subprocess.run(words, capture_output=True, timeout=60, check=True).stdout) > 40_000


def test_other_kinds_of_files_turn_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.flac", np.zeros(16_000, np.float32) + 0.1, 16_000)
    with files.SoundFile(tmp_path / "a.flac") as source:
        monkeypatch.setattr(library_noise, "kept_out", None)
        assert sum(len(block.samples) for block in source) == 16_000


def test_what_the_library_said_is_in_the_debug_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "asrd"), library_noise.kept_out():
        os.write(2, b"Note: \x1b[31mred\n")
    assert caplog.messages == [r"libmpg123: Note: \u001b[31mred"]
