"""Verb devices: the microphones, and how loud each is."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import msgspec

from asrd.audio.devices import choose, survey
from asrd.audio.levels import Loudness, judge
from asrd.errors import AudioError
from asrd.terminal.output import complain, one_line, tell, tell_document

if TYPE_CHECKING:
    from asrd.config.settings import Settings

from asrd.audio.sources import LISTEN_SECONDS, level_sentence, listen


def _chosen_level(chosen: bool, level: tuple[str, str, Loudness] | None) -> dict[str, Any]:
    """Return what the list in JSON says of the level of a device: null where nobody listened to
    it."""
    if not chosen or level is None:
        return {"chosen": chosen, "level": None}
    _, problem, found = level
    return {
        "chosen": True,
        "level": msgspec.structs.asdict(judge(found)) | ({"problem": problem} if problem else {}),
    }


def devices_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `asrd devices`."""
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument(
        "--no-level", action="store_true", help="do not listen to the chosen one for a second"
    )


def devices(args: argparse.Namespace, settings: Settings) -> int:
    """Verb: list what can be recorded from; return the exit code. Raises AudioError."""
    found = survey()
    chosen, code = None, 0
    try:
        chosen = choose(found, settings.microphone)
    except AudioError as error:
        complain(error)
        code = error.exit_code
    level = None if chosen is None or args.no_level else listen(settings.microphone, LISTEN_SECONDS)
    if level is not None and level[1]:  # it cannot be recorded from
        code = AudioError.exit_code
    if args.json:
        rows = [msgspec.structs.asdict(one) | _chosen_level(one is chosen, level) for one in found]
        tell_document(rows, indent=2)
        return code
    from asrd.terminal import listing

    shown = []
    for device in found:
        remarks = {
            "default": device.default,
            "muted": device.muted,
            "what a loudspeaker plays": device.monitor,
        }
        mark = "*" if device is chosen else ""
        words = ", ".join(remark for remark, holds in remarks.items() if holds)
        volume = "" if device.volume_percent is None else f"{device.volume_percent} %"
        shown.append(
            [
                mark,
                device.name,
                device.through,
                str(device.rate),
                str(device.channels),
                volume,
                words,
            ]
        )
    if found:
        listing.show(
            ("", "name", "through", ">rate", ">channels", ">volume", "remarks"), shown, "name"
        )
    if level is not None:
        tell(one_line(level_sentence(*level)))
    if found:
        listing.say(
            '* is what "mic" records from; microphone = "part of a name" in the configuration chooses another'
        )
    return code
