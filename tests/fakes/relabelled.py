"""The shipped models with other letters: every token stands for a Chinese one, so that real speech
is known text.

A bijection of tokens changes nothing that a model computes. Its text, letter by letter, names the
tokens of the plain model's text, without a space: a model of a script that has none, on speech that
can be had.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from asrd.paths import DATA_FOLDER

HAN = 0x4E00
"""The first of as many Chinese letters as there are tokens."""


def relabelled(name: str, folder: Path) -> Path:
    """Write a shipped model with Chinese letters for its tokens; return the file."""
    path = folder / f"{name}-han.nemo"
    with tarfile.open(DATA_FOLDER / f"{name}.nemo") as old, tarfile.open(path, "w") as new:
        contents = {
            member.name: old.extractfile(member) for member in old.getmembers() if member.isfile()
        }
        data = {
            member: content.read() for member, content in contents.items() if content is not None
        }
        models = (member for member in data if member.endswith("tokenizer.model"))
        model = max(models, key=lambda member: len(_pieces(data[member])))
        table = _table(data[model])
        for member, content in data.items():
            info = tarfile.TarInfo(member)
            changed = _relabelled(member, content, table, member == model)
            info.size = len(changed)
            new.addfile(info, io.BytesIO(changed))
    return path


def plain(text: str, name: str) -> str:
    """Return the plain model's text for that of a relabelled one."""
    pieces = _pieces(_tokenizer(name))
    return (
        "".join(pieces[ord(char) - HAN] for char in text if not char.isspace())
        .replace("▁", " ")
        .strip()
    )


def chinese(text: str, name: str) -> str:
    """Return what the relabelled model writes for a text of the plain one, as its tokenizer has
    it."""
    from sentencepiece import SentencePieceProcessor

    return "".join(
        chr(HAN + number)
        for number in SentencePieceProcessor(model_proto=_tokenizer(name)).encode(text)
    )


def _tokenizer(name: str) -> bytes:
    with tarfile.open(DATA_FOLDER / f"{name}.nemo") as archive:
        members = [
            member for member in archive.getmembers() if member.name.endswith("tokenizer.model")
        ]
        return max(
            (_read(archive, member) for member in members), key=lambda model: len(_pieces(model))
        )


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(member)
    assert content is not None
    return content.read()


def _pieces(model: bytes) -> list[str]:
    return [piece.piece for piece in _proto(model).pieces]


def _proto(model: bytes):  # type: ignore[no-untyped-def]  # a generated class without types
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    return proto


def _table(model: bytes) -> dict[str, str]:
    """Return the new text of each ordinary token."""
    normal = 1
    pieces = enumerate(_proto(model).pieces)
    return {piece.piece: chr(HAN + number) for number, piece in pieces if piece.type == normal}


def _relabelled(member: str, content: bytes, table: dict[str, str], tokenizer: bool) -> bytes:
    """Return a file of the model with the new texts in it."""
    if tokenizer:
        proto = _proto(content)
        proto.normalizer_spec.add_dummy_prefix = False
        for piece in proto.pieces:
            piece.piece = table.get(piece.piece, piece.piece)
        return bytes(proto.SerializeToString())
    if member.endswith(("vocab.txt", "tokenizer.vocab", ".yaml")):
        return "\n".join(_line(line, table) for line in content.decode().split("\n")).encode()
    return content


def _line(line: str, table: dict[str, str]) -> str:
    """Return a line of a list of tokens, of the kinds that NeMo writes, with the new text."""
    token, tab, score = line.partition("\t")
    bullet = (
        token[: len(token) - len(token.lstrip())] + "- " if token.lstrip().startswith("- ") else ""
    )
    old = token.removeprefix(bullet).strip("'\"")
    return bullet + table[old] + tab + score if old in table else line
