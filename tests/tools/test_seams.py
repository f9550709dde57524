"""tools/bench-seams: it runs, its stream is dictation's, and a transducer goes on from what was
committed."""

from __future__ import annotations

import asyncio

import pytest

from asrd.scoring import edits
from tests.helpers import ROOT, load_tool

TOOL = ROOT / "tools" / "bench-seams"


tool = load_tool("bench-seams")


@pytest.fixture(scope="module")
def glued() -> tool.Sound:
    """Speech without a pause for longer than two windows."""
    [sound] = tool.sounds("glued", 24, 24)
    return sound


@pytest.fixture(scope="module")
def ear() -> tool.Transducer:
    return tool.Transducer("demo-tdt")


def test_a_stream_says_about_what_was_said(glued: tool.Sound) -> None:
    heard = asyncio.run(tool.stream(glued, tool.Ear("demo-ctc")))
    assert tool.rate([glued.text], [heard]) < 25


def test_a_transducer_goes_on_as_dictation_has_it(glued: tool.Sound, ear: tool.Transducer) -> None:
    plain = tool.Ear("demo-tdt")
    assert asyncio.run(tool.stream(glued, ear)) == asyncio.run(tool.stream(glued, plain))


@pytest.mark.parametrize("way", ["anew", "across pauses"])
def test_every_way_says_about_what_was_said(
    glued: tool.Sound, ear: tool.Transducer, way: str
) -> None:
    ear.way = way
    heard = asyncio.run(tool.stream(glued, ear))
    ear.way = "carried"
    assert edits([glued.text], [heard]).rate < 30
