"""The members of a .nemo file: files and folders with plain names, each once, within bounds.

A tar names what it holds in any order, any number of times, anywhere on the disk, and its headers
say how much to read before a program looks at them. What is read or unpacked of a model file comes
through here. Runs on both sides.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from asrd.errors import ModelError
from asrd.models.untrusted_yaml import shown

GZIP = b"\x1f\x8b"
"""How a gzipped file begins."""

MAX_MEMBERS = 1000
"""Members of an archive; those of NeMo have at most a hundred."""

MAX_NAME_BYTES = 64 << 10
"""Of a header that holds a long name or other facts of the member behind it."""

MAX_SMALL_BYTES = 16 << 20
"""Of a member other than weights: configs, tokenizers, vocabularies."""

MAX_EXPANSION = 20
"""How many times larger than a gzipped file its members may be together; weights do not compress to
half."""

SPARE_BYTES = 64 << 20
"""What a gzipped file may unpack to beside that: small files compress well."""

WEIGHTS_END = "model_weights.ckpt"
"""How the names of members that hold weights end."""

HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
)  # fmt: skip
"""Kinds of headers that tarfile reads into memory before it yields a member."""

HINT = "copy or download it again, from its publisher"


class _HeaderError(Exception):
    """A header of an archive is outside the bounds; says how, after the archive's name."""


class _Member(tarfile.TarInfo):
    """A member whose header is looked at before tarfile goes by it."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in HEADERS and self.size > MAX_NAME_BYTES):
            raise _HeaderError(f"is damaged: an archive's header gives {self.size} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._refuse_sparse()
        processed: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # not in the stubs
        return processed

    def _refuse_sparse(self, *_: object) -> None:
        """Refuse a sparse member before tarfile reads its map, which may be as long as the file."""
        raise _HeaderError(f"is refused: its member {shown(self.name)} is a sparse file")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


def members(
    file: IO[bytes], path: Path, size: int
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str]]:
    """Yield the archive, each member and its name without `./`, from the beginning of an open .nemo
    file.

    Args:
        path: named in messages.
        size: bytes of the file.

    Raises:
        ModelError: a member outside the bounds, and the file is cut short. tarfile.ReadError,
            EOFError, OSError, zlib.error: damage.
    """
    file.seek(0)
    zipped = file.read(2) == GZIP
    file.seek(0)
    bounds = _Bounds(path, size, zipped)
    try:
        with tarfile.open(str(path), "r:gz" if zipped else "r:", file, tarinfo=_Member) as archive:
            for member in archive:
                yield archive, member, bounds.name(member)
    except _HeaderError as error:
        raise ModelError(f"{path} {error}", HINT) from error


class _Bounds:
    """What the members of one archive may be, together."""

    def __init__(self, path: Path, size: int, zipped: bool) -> None:
        self._path, self._size, self._zipped = path, size, zipped
        self._limit = MAX_EXPANSION * size + SPARE_BYTES if zipped else size
        self._seen, self._total = set[str](), 0

    def name(self, member: tarfile.TarInfo) -> str:
        """Return the name of the next member. Raises ModelError: it is outside the bounds."""
        path, seen = self._path, self._seen
        name = _plain_name(member, path)
        self._total += member.size
        if name in seen or len(seen) >= MAX_MEMBERS:
            what = (
                f"holds {shown(name)} twice"
                if name in seen
                else f"holds more than {MAX_MEMBERS} files"
            )
            raise ModelError(f"{path} is refused: it {what}", HINT)
        seen.add(name)
        if not self._zipped and member.offset_data + member.size > self._size:
            raise ModelError(f"{path} is cut short", "copy or download it again")
        if self._total > self._limit:
            raise ModelError(
                f"{path} is refused: it unpacks to more than {MAX_EXPANSION} times its size", HINT
            )
        if member.isfile() and member.size > MAX_SMALL_BYTES and not name.endswith(WEIGHTS_END):
            most = f"{MAX_SMALL_BYTES >> 20} MiB"
            what = f"its member {shown(name)} has {member.size} bytes; at most {most} are allowed"
            raise ModelError(f"{path} is refused: {what}", HINT)
        return name


MAX_DIRECTORY_BYTES = 16 << 20
"""Of the directory at the end of a zip, which zipfile reads whole; one of 100,000 tensors has half
of it."""


def unzipped(content: IO[bytes]) -> zipfile.ZipFile:
    """Return an open zip whose directory is within bounds. Raises zipfile.BadZipFile: it is not, or
    no zip."""
    # What zipfile.is_zipfile() asks; nothing public says how long the directory is before it is
    # read.
    end = zipfile._EndRecData(content)  # type: ignore[attr-defined]  # not in the stubs
    if end and end[5] > MAX_DIRECTORY_BYTES:
        raise zipfile.BadZipFile(f"a directory of {end[5]} bytes")
    content.seek(0)
    return zipfile.ZipFile(content)


def _plain_name(member: tarfile.TarInfo, path: Path) -> str:
    """Return a member's name, which may begin with `./`. Raises ModelError: one that leads
    elsewhere, or no file."""
    name = member.name.removeprefix("./")
    if name.startswith("/") or ".." in name.split("/") or "\0" in name or not name:
        raise ModelError(
            f"{path} is refused: its member {shown(member.name)} leads out of the archive", HINT
        )
    if not (member.isfile() or member.isdir()) or member.issparse():
        raise ModelError(
            f"{path} is refused: its member {shown(member.name)} is a link or a device", HINT
        )
    return name.rstrip("/")
