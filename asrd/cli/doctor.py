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
from asrd.errors import AsrdError, SocketError
from asrd.journal import JOURNAL_SOCKET
from asrd.models import checkpoint, choice, names
from asrd.precision import cuda_errors, gpu_power, gpus, nvml
from asrd.precision.plan import Gpu, obstacle
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.protocol import Download
from asrd.recordings import store
from asrd.terminal.output import one_line, tell, tell_document
from asrd.text.sizes import GIB

SCRATCH_MARGIN_BYTES = 64 << 20
"""Bytes of scratch beside what a model needs: what libraries put there themselves."""

COMMAND_TIMEOUT_SECONDS = 10

SINK_PROGRAMS = {"type": "type", "paste": "type", "clipboard": "clipboard"}
"""Sink -> the check of the desktop that it depends on."""

RUNNING_MANAGER = ("running", "degraded", "starting")
"""States in which a user manager starts services."""


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
    """Declare the flags of `asrd doctor`."""
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line for each finding"
    )
    parser.add_argument(
        "--wake", action="store_true", help="query an NVIDIA card even if that wakes it"
    )


def doctor(args: argparse.Namespace, settings: Settings) -> int:
    """Print what works and what does not; 0 when dictation works with these settings, else 3."""
    code = 0
    for finding in list(examine(settings, args.wake)):
        if finding.needed and not finding.works:
            code = 3
        if args.json:
            tell_document(finding)
        else:
            _print(finding)
    return code


def _print(finding: Finding) -> None:
    tell(f"{_mark(finding):<7} {finding.name:<14} {one_line(finding.detail)}")
    if finding.fix and not finding.works:
        tell(f"{'':8}{'':<14} try: {finding.fix}")


def _mark(finding: Finding) -> str:
    if finding.warning:
        return "WARNING"
    if finding.works:
        return "ok"
    if finding.needed:
        return "MISSING"
    return "-"


def examine(settings: Settings, wake: bool = False) -> Iterator[Finding]:
    """Yield findings in the order in which a word travels.

    Args:
        wake: query cards even if one is asleep.
    """
    power = gpu_power.survey()  # before NVML is opened: that wakes all cards
    sleeping = gpu_power.asleep()
    queried = wake or not sleeping
    cards = gpus.gpus() if queried else []
    on_cards = settings
    if not queried:
        on_cards = msgspec.structs.replace(settings, device="cpu")
    daemon = _daemon(settings)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "card_power": lambda: _card_power(power, sleeping, wake),
        "card": lambda: _card(settings, cards),
        "model": lambda: _model(on_cards, cards),
        "sound": lambda: _microphone(settings),
        "level": lambda: _level(settings, daemon),
        "desk": lambda: _desktop(settings),
        "service": lambda: _service(daemon),
        "recordings": lambda: _recordings(settings),
        "scratch": lambda: _scratch(settings),
    }
    if not queried:
        del checks["card"]
    for name, check in checks.items():
        try:
            yield from check()
        except AsrdError as error:
            yield Finding(name, False, True, error.message, error.hint)


# -- cards and model
# ------------------------------------------------------------------------------------------------------------


def _card_power(power: list[gpu_power.CardPower], sleeping: bool, wake: bool) -> Iterator[Finding]:
    """Whether each NVIDIA card can sleep, by what the kernel reports; and whether this check wakes
    one."""
    holding = ""
    if any(one.state == "active" for one in power):
        holding = ", ".join(gpu_power.holders())
    for one in power:
        detail = f"{one.address} is {one.detail}"
        if holding and one.state == "active":
            detail += f"; open in {holding}"
        yield Finding("gpu sleep", one.can_sleep and not one.fix, False, detail, one.fix)
    if sleeping and wake:
        yield Finding("gpu asked", True, False, "a card was asleep; this check woke it")
    elif sleeping:
        detail = "a card is asleep, so this check does not query it"
        yield Finding("gpu asked", False, False, detail, "asrd doctor --wake")


@nvml.opened
def _card(settings: Settings, cards: list[Gpu]) -> Iterator[Finding]:
    """GPU, driver, NVML, the torch that is to use them, bf16."""
    if not cards:
        why, fix = gpus.gpu_problem()
        detail = why or "no NVIDIA driver: models run on the CPU"
        yield Finding("gpu", False, settings.device not in ("auto", "cpu"), detail, fix)
        return
    for sentence in gpus.lost_cards():
        yield Finding("gpu", False, False, sentence, "nvidia-smi; sudo dmesg | grep -i nvrm")
    for card in cards:
        major, minor = card.capability
        about = (
            f"cuda:{card.index} {card.name}, compute capability {major}.{minor}, "
            f"{card.free / GIB:.1f} of {card.total / GIB:.1f} GiB free"
        )
        if card.mode:
            about += f", compute mode {card.mode}"
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
        report = planner.plan_report(settings, cards)
        path = names.resolve(settings.model)
    except AsrdError as error:
        yield Finding("model", False, True, _with_partial(settings.model, error), error.hint)
        return
    about = f"{settings.model}: {report.family}, {report.parameters / 1e6:.0f} M parameters, {path}"
    yield Finding("model", True, True, about)
    if note := choice.note(settings):
        yield Finding("demo", True, False, note, warning=settings.source == "mic")
    for one in report.plan.rejected:
        if one.kind == "budget":
            detail = f"{one.candidate} {one.detail}"
            yield Finding("budget", False, False, detail, "asrd plan; raise vram_budget")
    yield from _fit(report)


def _with_partial(model: str, error: AsrdError) -> str:
    """Return why there is no model, and how much of an interrupted download is kept."""
    partial = names.partial(model)
    if not partial:
        return error.message
    return f"{error.message}; {Download(model, partial, None).kept}"


def _fit(report: planner.PlanReport) -> Iterator[Finding]:
    """Whether the chosen strategy fits on the card."""
    if report.card is None:
        return
    for line in report.strategies:
        if line.strategy != report.chosen or line.headroom is None:
            continue
        fits = line.headroom >= 0
        detail = f"{report.chosen} leaves {line.headroom / GIB:.1f} GiB"
        if not fits:
            detail = f"{report.chosen} is {-line.headroom / GIB:.1f} GiB too large"
        fix = f"asrd plan; asrd run --strategy {report.expected}"
        yield Finding("fits", fits, False, detail, fix)
        return


# -- the microphone
# ------------------------------------------------------------------------------------------------------------


def _microphone(settings: Settings) -> Iterator[Finding]:
    """PortAudio and a device that matches."""
    if settings.source != "mic":
        yield Finding("sound", True, False, f"source is {settings.source}")
        return
    try:
        device = choose(survey(), settings.microphone)
    except AsrdError as error:
        yield Finding("microphone", False, True, error.message, error.hint)
        return
    yield Finding("microphone", True, True, device.name)


def _level(settings: Settings, daemon: dict[str, Any] | AsrdError) -> Iterator[Finding]:
    """How loud the microphone is: in the last recording of a daemon, else right now."""
    if settings.source != "mic":
        return
    last = None
    if not isinstance(daemon, AsrdError):
        last = daemon.get("level")
    if last is not None:
        about = f"the last recording: {status_page.level(last)}"
        yield _level_finding(last["device"], last["problem"], last["advised_db"], about)
        return
    try:
        choose(survey(), settings.microphone)
        name, problem, loudness = sources.listen(settings.microphone, sources.LISTEN_SECONDS)
    except AsrdError:  # reported with the microphone already
        return
    judged, about = levels.judge(loudness), sources.level_sentence(name, problem, loudness)
    if problem:  # no volume mends what cannot be opened
        yield Finding("level", False, False, about, "asrd devices")
        return
    yield _level_finding(name, judged.problem, judged.advised_db, about)


def _level_finding(name: str, problem: str, decibels: int, about: str) -> Finding:
    fix = devices.volume_fix(name, decibels) if problem else ""
    return Finding("level", not problem, False, about, fix)


# -- the session
# ------------------------------------------------------------------------------------------------------------


def _desktop(settings: Settings) -> Iterator[Finding]:
    """What types, copies and notifies in this session."""
    needed = set(map(SINK_PROGRAMS.get, settings.sinks))
    check: Check
    for check in survey_desktop():
        yield Finding(check.name, check.works, check.name in needed, check.note, check.fix)


def _daemon(settings: Settings) -> dict[str, Any] | AsrdError:
    """Return the status of the daemon, or why none answers."""
    try:
        return next(iter(client.ask(settings, verb="status")))
    except AsrdError as error:
        return error


def _service(daemon: dict[str, Any] | AsrdError) -> Iterator[Finding]:
    """Journal, user manager, the control socket and what answers on it."""
    journal = os.path.exists(JOURNAL_SOCKET)
    about = "not here: the log goes to standard error"
    if journal:
        about = "accepts entries with fields"
    yield Finding("journal", journal, False, about)
    if isinstance(daemon, AsrdError):
        yield Finding("daemon", False, isinstance(daemon, SocketError), daemon.message, daemon.hint)
    else:
        about = f"{status_page.line(daemon).strip()}, process {daemon['pid']}"
        yield Finding("daemon", True, False, about)
    state = _output("systemctl", "--user", "is-system-running").splitlines()[0]
    running, fix = state in RUNNING_MANAGER, ""
    if not running:
        fix = "log in through a session manager, or run asrd from your session's autostart"
    yield Finding("user manager", running, False, state, fix)
    portal = "PID=" in _output("busctl", "--user", "status", "org.freedesktop.portal.Desktop")
    about = "not on the session bus; asrd does not need it, the desktop binds the keys"
    if portal:
        about = "on the session bus"
    yield Finding("portal", portal, False, about)


def _output(*words: str) -> str:
    """Return what a program prints; why it prints nothing, where it cannot."""
    if shutil.which(words[0]) is None:
        return f"{words[0]} is not installed"
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{words[0]} does not answer"
    return done.stdout.strip() or done.stderr.strip() or "no answer"


# -- folders
# ------------------------------------------------------------------------------------------------------------


def _recordings(settings: Settings) -> Iterator[Finding]:
    """Where recordings are kept, and whether there is room for them."""
    folder = store.folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    detail, fix = f"{folder}, {free / GIB:.1f} GiB free", ""
    if not os.access(existing, os.W_OK | os.X_OK):
        detail = f"{folder} cannot be written"
        fix = f"ls -ld {existing}; or set XDG_STATE_HOME to another folder"
    elif free <= settings.takes_mb * 1e6:
        fix = f"make room, or lower takes_mb ({settings.takes_mb})"
    yield Finding("recordings", not fix, False, detail, fix)


def _scratch(settings: Settings) -> Iterator[Finding]:
    """Where a model is unpacked, and whether there is room for it."""
    folder = Path(paths.scratch())
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    need = 0
    with contextlib.suppress(AsrdError):  # reported with the model already
        need = checkpoint.unpacked_bytes(names.resolve(settings.model), settings.timestamps_model)
    detail = f"{folder}, {free / GIB:.1f} GiB free"
    if settings.model:
        detail += f"; a start of {settings.model} unpacks {need >> 20} MiB there"
    works = free > need + SCRATCH_MARGIN_BYTES and os.access(folder, os.W_OK)
    yield Finding("scratch", works, False, detail, "set TMPDIR to a folder on a larger disk")
