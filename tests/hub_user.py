"""A user with nothing but a hub: fresh HOME, HF_HOME and HF_ENDPOINT, the download process and the
verbs."""

from __future__ import annotations

import io
import os
import random
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from asrd import framing, protocol
from asrd.models.downloader import ENVIRONMENT
from asrd.models.names import SHIPPED
from tests.fakes.hub_server import Hub
from tests.helpers import ROOT

NAME = "someone/tiny"
FILE = f"{NAME}/tiny.nemo"
MODEL = SHIPPED["demo-ctc"]
SIZE = MODEL.stat().st_size

FOREIGN = re.compile(r"HF_|HUGGING|TRANSFORMERS_|XDG_|ASRD_|DBUS_|.*_proxy$", re.IGNORECASE)
"""Variables of whoever runs the tests that a user of these tests does not have."""

QUICK = "from asrd.models import download; download.WAITS_SECONDS = (0.05,) * 4; raise SystemExit(download.main())"
"""The download process with short rests between its attempts."""


@dataclass
class User:
    """Someone on a machine of their own."""

    hub: Hub
    home: Path
    hf_home: Path
    more: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not FOREIGN.match(key)}
        own = {
            "HOME": str(self.home),
            "HF_HOME": str(self.hf_home),
            "HF_ENDPOINT": self.hub.endpoint,
        }
        return kept | own | self.more

    @property
    def blobs(self) -> Path:
        return self.hf_home / "hub" / f"models--{NAME.replace('/', '--')}" / "blobs"

    @property
    def parts(self) -> list[Path]:
        """What broken downloads have left."""
        return sorted(self.blobs.glob("*.incomplete"))

    @property
    def here(self) -> int:
        """Bytes of the download that goes on."""
        return sum(part.stat().st_size for part in self.parts)

    def start(self, command: Sequence[str | Path], **environment: str) -> subprocess.Popen[str]:
        """Start a program with pipes for its outputs."""
        return subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=ROOT, env=self.environment | environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def verb(self, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Do a verb to its end."""
        with self.start(("-m", "asrd", *words), **environment) as process:
            out, err = process.communicate(timeout=240)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def download(self, name: str = NAME, quick: bool = True, **environment: str) -> Outcome:
        """Run the download process to its end."""
        own = ("-c", QUICK) if quick else ("-P", "-m", "asrd.models.download")
        with self.start((*own, name), **(ENVIRONMENT | environment)) as process:
            out, err = process.communicate(timeout=120)
        assert "Traceback" not in err, err
        return Outcome(
            process.returncode, [framing.unpack_reply(line.encode()) for line in out.splitlines()]
        )


@dataclass
class Outcome:
    """What a download process said."""

    code: int
    frames: list[protocol.Reply]

    @property
    def path(self) -> Path:
        last = self.frames[-1]
        assert isinstance(last, protocol.Downloaded), last
        assert self.code == 0
        return Path(last.path)

    @property
    def failed(self) -> protocol.Failed:
        last = self.frames[-1]
        assert isinstance(last, protocol.Failed), last
        assert last.kind != "internal", last.trace
        assert "\n" not in last.detail + last.hint
        return last

    @property
    def reports(self) -> list[protocol.Download]:
        found = [frame.download for frame in self.frames if isinstance(frame, protocol.Progress)]
        return [one for one in found if one is not None]


# -- model files
# ------------------------------------------------------------------------------------------------------


def members() -> dict[str, bytes]:
    """Return the members of a shipped model by name, without a folder in front."""
    with tarfile.open(MODEL) as archive:
        files = [one for one in archive if one.isfile()]
        return {
            one.name.removeprefix("./"): cast("IO[bytes]", archive.extractfile(one)).read()
            for one in files
        }


def packed(
    content: dict[str, bytes], order: Sequence[str], prefix: str = "", gz: bool = False
) -> bytes:
    """Return a .nemo file with these members in this order."""
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w:gz" if gz else "w:", **({"compresslevel": 1} if gz else {})
    ) as archive:
        for name in order:
            about = tarfile.TarInfo(prefix + name)
            about.size = len(content[name])
            archive.addfile(about, io.BytesIO(content[name]))
    return out.getvalue()


def arranged(content: dict[str, bytes], place: str, generator: random.Random) -> list[str]:
    """Return names of members: the config first, last, or anywhere; the weights as they fall."""
    rest = [name for name in content if name != "model_config.yaml"]
    generator.shuffle(rest)
    at = {"first": 0, "last": len(rest), "before": rest.index("model_weights.ckpt")}[place]
    return [*rest[:at], "model_config.yaml", *rest[at:]]
