"""The table of requests, and the status as one type."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from asrd.daemon.control_server import VERBS
from asrd.daemon.older_names import KEYS
from asrd.daemon.status import Status
from tests.daemon.test_daemon import Inside
from tests.dictation.test_transcriber import case


@case
async def test_each_verb_has_a_handler_and_a_status_is_its_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Inside(tmp_path, monkeypatch) as one:
        assert set(one.handlers.table) == set(VERBS)
        reply = await one.ask("status")
        expected = {*Status.__struct_fields__, "more", "older_state"}
        renamed = {older for older, today in KEYS.items() if today in Status.__struct_fields__}
        assert set(reply) == expected | renamed
        told = msgspec.convert(reply, Status)
        assert (told.schema, told.state, told.engine["strategy"]) == (1, "UNLOADED", "half")
        await one.daemon.slot.load()
        assert msgspec.convert(await one.ask("status"), Status).strategy == "half"
        assert set(await one.ask("takes")) == {"takes", "more"}
        assert set(await one.ask("recordings")) == {"recordings", "more"}
