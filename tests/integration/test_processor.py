"""What hangs on the processor's instructions holds on one with AVX2 alone, too.

oneDNN is told to use no later instructions (ONEDNN_MAX_CPU_ISA). By hand it may be any other of its
names, older or
newer: `ONEDNN_MAX_CPU_ISA=SSE41 pytest -m processor`.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asrd.paths import DATA_FOLDER
from tests.helpers import ROOT

CLIP = DATA_FOLDER / "eval" / "0001.flac"
SAID = "remind me to open a teacher before i start my meeting"
MIN_SELECTED = 20
"""Tests that are marked at least: an empty selection would pass."""

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="oneDNN's limits are those of x86-64"
)


def limited(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program under the limit."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", **more}
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_limit_takes_the_lstm_away_that_asrd_asks_for() -> None:
    program = "import torch; from asrd.worker.casting.capabilities import has_lstm\n"
    program += "print(has_lstm(torch.bfloat16), has_lstm(torch.float32))"
    done = limited("-c", program)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_everything_that_is_marked_passes_with_avx2_alone() -> None:
    done = limited("-m", "pytest", "-q", "-m", "processor", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-4000:]
    assert len(re.findall(r"^[.s]+", done.stdout, re.MULTILINE)[0]) >= MIN_SELECTED


@pytest.mark.parametrize("strategy", ["autocast-bf16", "bf16-mixed"])
def test_the_product_says_so_and_goes_on_in_float32(strategy: str, tmp_path: Path) -> None:
    done = limited(
        *("-m", "asrd", "run", "--model", "demo-tdt", "--strategy", strategy, "--sink", "stdout"),
        *("--source", f"file:{CLIP}"),
        XDG_STATE_HOME=str(tmp_path),
    )
    assert (done.returncode, done.stdout.strip()) == (0, SAID)
    assert f"demo-tdt runs as {strategy} on" in done.stderr
    assert re.search(
        r"but decoder: bfloat16 asked, float32 runs: LSTM cannot run under bfloat16 autocast",
        done.stderr,
    )
