"""The members of a .nemo file: files and folders with plain names, each once, within bounds.

A tar names what it holds in any order, any number of times, anywhere on the disk, and its headers say how much to read
before a program looks at them. What is read or unpacked of a model file comes through here. Runs on both sides.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import ModelError
from .untrusted_yaml import shown

MAX_MEMBERS = 1000
"""Members of an archive; those of NeMo have at most a hundred."""

MAX_NAME_BYTES = 1 << 20
"""Of a header that holds a long name or other facts of the member behind it."""

MAX_SMALL_BYTES = 64 << 20
"""Of a member other than weights: configs, tokenizers, vocabularies."""

MAX_EXPANSION = 20
"""How many times larger than a gzipped file its members may be together; weights do not compress to half."""

SPARE_BYTES = 64 << 20
"""What a gzipped file may unpack to beside that: small files compress well."""

WEIGHTS_END = "model_weights.ckpt"
"""How the names of members that hold weights end."""

HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
)  # fmt: skip
"""Kinds of headers that tarfile reads into memory before it yields a member."""

HINT = "copy or download it again, from its publisher"


class _Member(tarfile.TarInfo):
    """A member whose size is looked at before tarfile goes by it."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in HEADERS and self.size > MAX_NAME_BYTES):
            raise ModelError(f"{archive.name!s} is damaged: an archive's header gives {self.size} bytes", HINT)
        processed: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # not in the stubs
        return processed


def members(file: IO[bytes], path: Path, size: int) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str]]:
    """Yield the archive, each member and its name without `./`, from the beginning of an open .nemo file.

    Args:
        path: named in messages.
        size: bytes of the file.

    Raises:
        ModelError: a member outside the bounds, and the file is cut short. tarfile.ReadError, EOFError, OSError,
            zlib.error: damage.
    """
    file.seek(0)
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    limit = MAX_EXPANSION * size + SPARE_BYTES if zipped else size
    seen, total = set[str](), 0
    with tarfile.open(str(path), "r:gz" if zipped else "r:", file, tarinfo=_Member) as archive:
        for member in archive:
            name = _plain_name(member, path)
            total += member.size
            if name in seen or len(seen) >= MAX_MEMBERS:
                what = f"holds {shown(name)} twice" if name in seen else f"holds more than {MAX_MEMBERS} files"
                raise ModelError(f"{path} is refused: it {what}", HINT)
            seen.add(name)
            if not zipped and member.offset_data + member.size > size:
                raise ModelError(f"{path} is cut short", "copy or download it again")
            if total > limit:
                raise ModelError(f"{path} is refused: it unpacks to more than {MAX_EXPANSION} times its size", HINT)
            if member.isfile() and member.size > MAX_SMALL_BYTES and not name.endswith(WEIGHTS_END):
                most = f"{MAX_SMALL_BYTES >> 20} MiB"
                what = f"its member {shown(name)} has {member.size} bytes, at most {most}"
                raise ModelError(f"{path} is refused: {what}", HINT)
            yield archive, member, name


def _plain_name(member: tarfile.TarInfo, path: Path) -> str:
    """Return a member's name, which may begin with `./`. Raises ModelError: one that leads elsewhere, or no file."""
    name = member.name.removeprefix("./")
    if name.startswith("/") or ".." in name.split("/") or "\0" in name or not name:
        raise ModelError(f"{path} is refused: its member {shown(member.name)} leads out of the archive", HINT)
    if not (member.isfile() or member.isdir()) or member.issparse():
        raise ModelError(f"{path} is refused: its member {shown(member.name)} is a link or a device", HINT)
    return name.rstrip("/")
