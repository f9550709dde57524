"""The verb doctor: what works on this machine, what is missing, and the command that fixes it.

Everything is tried, nothing is changed; each check stands alone, so that one that fails hides no
other. Daemon side.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from asrd import paths
from asrd.audio import devices, levels, sources
from asrd.audio.devices import choose, survey
from asrd.cli import status_page
from asrd.config.settings import Settings
from asrd.daemon import client
from asrd.desktop.keyboard import Check
from asrd.desktop.survey import survey as survey_desktop
from asrd.engine import planner
from asrd.errors import AsrdError, AudioError, SocketError
from asrd.journal import JOURNAL_SOCKET
from asrd.models import checkpoint, choice, names
from asrd.precision import cuda_errors, gpu_power, gpus, nvml
from asrd.precision.plan import Gpu, obstacle
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.protocol import Download
from asrd.recordings import store
from asrd.terminal.output import one_line, tell, tell_document
from asrd.text.sizes import GIB

MARGIN = 64 << 20
"""Bytes of scratch beside what a model needs: what libraries put there themselves."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that works, or does not."""

    name: str
    works: bool
    needed: bool
    """Dictation does not work without it, under these settings."""
    detail: str
    fix: str = ""
    """A command, or what to set; "" where nothing is to be done."""
    warning: bool = False
    """Something runs, but not what a person expects of dictation."""


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `asrd doctor` takes."""
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line for each finding"
    )
    parser.add_argument(
        "--wake", action="store_true", help="ask an NVIDIA card also where that wakes it"
    )


def doctor(args: argparse.Namespace, settings: Settings) -> int:
    """Print what works and what does not; 0 when dictation works with these settings, else 3."""
    found = list(examine(settings, args.wake))
    if args.json:
        for one in found:
            tell_document(one)
    else:
        for one in found:
            tell(f"{_mark(one):<7} {one.name:<14} {one_line(one.detail)}")
            if one.fix and not one.works:
                tell(f"{'':8}{'':<14} try: {one.fix}")
    return 3 if any(one.needed and not one.works for one in found) else 0


def _mark(one: Finding) -> str:
    if one.warning:
        return "WARNING"
    if one.works:
        return "ok"
    return "MISSING" if one.needed else "-"


def examine(settings: Settings, wake: bool = False) -> Iterator[Finding]:
    """Yield findings in the order in which a word travels.

    Args:
        wake: ask cards also where one sleeps.
    """
    power = gpu_power.survey()  # before NVML is opened: that wakes all cards
    sleeping = gpu_power.asleep()
    asks = wake or not sleeping
    cards = gpus.gpus() if asks else []
    daemon = _daemon(settings)
    known = settings if asks else msgspec.structs.replace(settings, device="cpu")
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "card_power": lambda: _card_power(power, sleeping, wake),
        "card": lambda: _card(settings, cards) if asks else iter(()),
        "model": lambda: _model(known, cards),
        "sound": lambda: _sound(settings),
        "level": lambda: _level(settings, daemon),
        "desk": lambda: _desk(settings),
        "service": lambda: _service(daemon),
        "places": lambda: _places(settings),
    }
    for name, check in checks.items():
        try:
            yield from check()
        except AsrdError as error:
            yield Finding(name, False, True, error.message, error.hint)


def _card_power(power: list[gpu_power.CardPower], sleeping: bool, wake: bool) -> Iterator[Finding]:
    """Whether each NVIDIA card can sleep, by what the kernel tells; and whether this look wakes
    one."""
    holding = gpu_power.holders() if any(one.state == "active" for one in power) else []
    for one in power:
        held = f"; open in {', '.join(holding)}" if holding and one.state == "active" else ""
        lets_sleep = one.can_sleep and not one.fix
        yield Finding(
            "gpu sleep", lets_sleep, False, f"{one.address} is {one.detail}{held}", one.fix
        )
    if sleeping:
        asked = (
            "a card slept and was woken to be asked" if wake else "a card sleeps and is not asked"
        )
        yield Finding("gpu asked", wake, False, asked, "" if wake else "asrd doctor --wake")


@nvml.opened
def _card(settings: Settings, cards: list[Gpu]) -> Iterator[Finding]:
    """GPU, driver, NVML, the torch that is to use them, bf16."""
    if not cards:
        why, fix = gpus.gpu_problem()
        said = why or "no NVIDIA driver: models run on the CPU"
        yield Finding("gpu", False, settings.device not in ("auto", "cpu"), said, fix)
        return
    for sentence in gpus.lost_cards():
        yield Finding("gpu", False, False, sentence, "nvidia-smi; sudo dmesg | grep -i nvrm")
    for card in cards:
        major, minor = card.capability
        free = f"{card.free / GIB:.1f} of {card.total / GIB:.1f} GiB free"
        mode = f", compute mode {card.mode}" if card.mode else ""
        about = f"cuda:{card.index} {card.name}, compute capability {major}.{minor}, {free}{mode}"
        yield Finding("gpu", card.mode != "prohibited", False, about, "sudo nvidia-smi -c 0")
        yield from _torch(card)
        why = obstacle(STRATEGY_TABLE["bfloat16"], card)
        yield Finding("bf16", not why, False, why or "native")


def _torch(card: Gpu) -> Iterator[Finding]:
    """Whether the installed torch can use a card; only the worker's own try is proof."""
    torch = cuda_errors.torch_build()
    if torch is None:
        yield Finding("torch", False, True, "torch is not installed", "pip install torch")
        return
    why, fix = cuda_errors.mismatch(torch, card, gpus.driver_cuda())
    yield Finding(
        "torch", not why, False, why or f"{torch.version}, built for CUDA {torch.cuda}", fix
    )


def _model(settings: Settings, cards: list[Gpu]) -> Iterator[Finding]:
    """The checkpoint: chosen, there, readable, and small enough."""
    if settings.source != "mic":
        settings = choice.or_demo(settings)
    if not settings.model:
        yield Finding("model", False, True, choice.CONSEQUENCE, choice.hint(), warning=True)
        return
    try:
        outlook = planner.plan_report(settings, cards)
        path = names.resolve(settings.model)
    except AsrdError as error:
        part = names.partial(settings.model)
        kept = f"; {Download(settings.model, part, None).kept}" if part else ""
        yield Finding("model", False, True, f"{error.message}{kept}", error.hint)
        return
    about = (
        f"{settings.model}: {outlook.family}, {outlook.parameters / 1e6:.0f} M parameters, {path}"
    )
    yield Finding("model", True, True, about)
    if note := choice.note(settings):
        yield Finding("demo", True, False, note, warning=settings.source == "mic")
    room = next(
        (line.headroom for line in outlook.strategies if line.strategy == outlook.chosen), None
    )
    for one in outlook.plan.rejected:
        if one.kind == "budget":
            yield Finding(
                "budget",
                False,
                False,
                f"{one.candidate} {one.detail}",
                "asrd plan; raise vram_budget",
            )
    if outlook.card is not None and room is not None:
        fits = (
            f"{outlook.chosen} "
            + (f"leaves {room / GIB:.1f}" if room >= 0 else f"is {-room / GIB:.1f}")
            + " GiB"
        )
        fits += "" if room >= 0 else " too large"
        yield Finding(
            "fits", room >= 0, False, fits, f"asrd plan; asrd run --strategy {outlook.expected}"
        )


def _sound(settings: Settings) -> Iterator[Finding]:
    """PortAudio and a device that matches."""
    if settings.source != "mic":
        yield Finding("sound", True, False, f"source is {settings.source}")
        return
    try:
        found = survey()
    except AsrdError as error:
        yield Finding("microphone", False, True, error.message, error.hint)
        return
    try:
        yield Finding("microphone", True, True, choose(found, settings.microphone).name)
    except AudioError as error:
        yield Finding("microphone", False, True, error.message, error.hint)


def _daemon(settings: Settings) -> dict[str, Any] | AsrdError:
    """Return what the daemon says of itself, or why none does."""
    try:
        return next(iter(client.ask(settings, verb="status")))
    except AsrdError as error:
        return error


def _level(settings: Settings, daemon: dict[str, Any] | AsrdError) -> Iterator[Finding]:
    """How loud the microphone is: in the last recording of a daemon, else right now."""
    if settings.source != "mic":
        return
    said = None if isinstance(daemon, AsrdError) else daemon.get("level")
    if said is not None:
        name, problem = said["device"], said["problem"]
        about = f"the last recording: {status_page.level(said)}"
        yield _level_found(name, problem, said["advised_db"], about)
        return
    try:
        choose(survey(), settings.microphone)
        name, problem, found = sources.listen(settings.microphone, sources.LISTEN_SECONDS)
    except AsrdError:  # told of the microphone already
        return
    judged, about = levels.judge(found), sources.level_sentence(name, problem, found)
    if problem:  # no volume mends what cannot be opened
        yield Finding("level", False, False, about, "asrd devices")
        return
    yield _level_found(name, judged.problem, judged.advised_db, about)


def _level_found(name: str, problem: str, decibels: int, about: str) -> Finding:
    fix = devices.volume_fix(name, decibels) if problem else ""
    return Finding("level", not problem, False, about, fix)


def _desk(settings: Settings) -> Iterator[Finding]:
    """What types, copies and notifies in this session."""
    wanted = {"type": ("type",), "paste": ("type",), "clipboard": ("clipboard",)}
    needed = {name for sink in settings.sinks for name in wanted.get(sink, ())}
    check: Check
    for check in survey_desktop():
        yield Finding(check.name, check.works, check.name in needed, check.note, check.fix)


def _service(daemon: dict[str, Any] | AsrdError) -> Iterator[Finding]:
    """Journal, user manager, the control socket and who answers on it."""
    journal = os.path.exists(JOURNAL_SOCKET)
    about = "accepts entries with fields" if journal else "not here: the log goes to stderr"
    yield Finding("journal", journal, False, about)
    if isinstance(daemon, AsrdError):
        yield Finding("daemon", False, isinstance(daemon, SocketError), daemon.message, daemon.hint)
    else:
        yield Finding(
            "daemon", True, False, status_page.line(daemon).strip() + f", process {daemon['pid']}"
        )
    said = _said("systemctl", "--user", "is-system-running")
    running = said in ("running", "degraded", "starting")
    fix = (
        ""
        if running
        else "log in through a session manager, or run asrd from your session's autostart"
    )
    yield Finding("user manager", running, False, said, fix)
    portal = "PID=" in _said(
        "busctl", "--user", "status", "org.freedesktop.portal.Desktop", every=True
    )
    about = (
        "on the session bus"
        if portal
        else "not on the session bus; asrd needs none, keys are bound by the desktop"
    )
    yield Finding("portal", portal, False, about)


def _said(*words: str, every: bool = False) -> str:
    """Return the first line that a program prints, or all it prints; why not, where it cannot."""
    if shutil.which(words[0]) is None:
        return f"{words[0]} is not installed"
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{words[0]} does not answer"
    lines = (done.stdout.strip() or done.stderr.strip() or "no answer").splitlines()
    return "\n".join(lines) if every else lines[0]


def _places(settings: Settings) -> Iterator[Finding]:
    """Where takes and what is unpacked of a model go."""
    where = store.folder()
    standing = next(path for path in (where, *where.parents) if path.exists())
    free = shutil.disk_usage(standing).free
    fix = (
        ""
        if free > settings.takes_mb * 1e6
        else f"make room, or lower takes_mb ({settings.takes_mb})"
    )
    detail = f"{where}, {free / GIB:.1f} GiB free"
    if not os.access(standing, os.W_OK | os.X_OK):
        detail, fix = (
            f"{where} cannot be written",
            f"ls -ld {standing}; or set XDG_STATE_HOME to another folder",
        )
    yield Finding("takes", not fix, False, detail, fix)
    scratch = Path(paths.scratch())
    room = shutil.disk_usage(scratch).free if scratch.is_dir() else 0
    need = 0
    with contextlib.suppress(AsrdError):  # told of the model already
        need = checkpoint.unpacked_bytes(names.resolve(settings.model), settings.timestamps_model)
    able = room > need + MARGIN and os.access(scratch, os.W_OK)
    detail = f"{scratch}, {room / GIB:.1f} GiB free"
    detail += (
        f"; a start of {settings.model} unpacks {need >> 20} MiB there" if settings.model else ""
    )
    yield Finding("scratch", able, False, detail, "set TMPDIR to a folder on a larger disk")
