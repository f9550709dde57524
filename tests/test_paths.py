"""A file is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asrd import paths


@pytest.mark.parametrize("beside", ["", ".asrd-1.new"])
def test_a_file_is_replaced_whole_and_for_the_user_alone(tmp_path: Path, beside: str) -> None:
    file = tmp_path / "kept.json"
    file.write_bytes(b"before")
    file.chmod(0o644)
    paths.write_whole(file, b"after", beside)
    assert file.read_bytes() == b"after"
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["kept.json"]


def test_a_name_as_long_as_names_can_be_is_written_beside_a_shorter_one(tmp_path: Path) -> None:
    file = tmp_path / ("n" * 255)
    with pytest.raises(OSError, match="too long"):
        paths.write_whole(file, b"text")
    paths.write_whole(file, b"text", ".asrd-1.new")
    assert file.read_bytes() == b"text"


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    with pytest.raises(OSError, match="directory"):
        paths.write_whole(folder, b"text", ".asrd-1.new")
    assert os.listdir(tmp_path) == ["kept"]
