"""Verb devices: the microphones, and how loud the chosen one is."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import msgspec

from asrd.audio.devices import choose, survey
from asrd.audio.levels import Loudness, judge
from asrd.audio.sources import LISTEN_SECONDS, level_sentence, listen
from asrd.errors import AudioError
from asrd.terminal.output import complain, one_line, tell, tell_document

if TYPE_CHECKING:
    from asrd.audio.devices import Device
    from asrd.config.settings import Settings

HEADINGS = ("", "name", "through", ">rate", ">channels", ">volume", "remarks")


def devices_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `asrd devices`."""
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument(
        "--no-level",
        action="store_true",
        help="do not measure the level of the chosen microphone",
    )


def devices(args: argparse.Namespace, settings: Settings) -> int:
    """List what can be recorded from; return the exit code. Raises AudioError."""
    found = survey()
    chosen = level = None
    code = 0
    try:
        chosen = choose(found, settings.microphone)
    except AudioError as error:
        complain(error)
        code = error.exit_code
    if chosen is not None and not args.no_level:
        level = listen(settings.microphone, LISTEN_SECONDS)
        if level[1]:  # it cannot be recorded from
            code = AudioError.exit_code
    if args.json:
        rows = [msgspec.structs.asdict(one) | _chosen_level(one is chosen, level) for one in found]
        tell_document(rows, indent=2)
    else:
        _show(found, chosen, level)
    return code


def _chosen_level(chosen: bool, level: tuple[str, str, Loudness] | None) -> dict[str, Any]:
    """Return what the list in JSON has of a device's level: null where it was not measured."""
    if not chosen or level is None:
        return {"chosen": chosen, "level": None}
    _, problem, loudness = level
    judged = msgspec.structs.asdict(judge(loudness))
    if problem:
        judged["problem"] = problem
    return {"chosen": True, "level": judged}


def _show(
    found: list[Device], chosen: Device | None, level: tuple[str, str, Loudness] | None
) -> None:
    """Print the list for a person, and how loud the chosen device is."""
    from asrd.terminal import listing

    if found:
        listing.show(HEADINGS, [_row(device, device is chosen) for device in found], "name")
    if level is not None:
        tell(one_line(level_sentence(*level)))
    if found:
        listing.say(
            '* is what "mic" records from; microphone = "part of a name" in the configuration chooses another'
        )


def _row(device: Device, chosen: bool) -> list[str]:
    """Return a device's line of the list."""
    mark = volume = ""
    if chosen:
        mark = "*"
    if device.volume_percent is not None:
        volume = f"{device.volume_percent} %"
    return [
        mark,
        device.name,
        device.through,
        str(device.rate),
        str(device.channels),
        volume,
        _remarks(device),
    ]


def _remarks(device: Device) -> str:
    remarks: list[str] = []
    if device.default:
        remarks.append("default")
    if device.muted:
        remarks.append("muted")
    if device.monitor:
        remarks.append("what a loudspeaker plays")
    return ", ".join(remarks)
