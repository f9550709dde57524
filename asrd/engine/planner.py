"""What each strategy would need on a card, which one would run there, and why: values, before
anything is started.

Reads a header or, where no file is here, the known architecture; opens no weights. Figures that are
exact, measured and estimated keep apart by name. Asks neither NVML nor the network; imports neither
torch nor numpy.
"""

from __future__ import annotations

import logging
import re

import msgspec

from asrd import protocol
from asrd.config.settings import Settings, budget
from asrd.engine import baseline, tuned
from asrd.engine.tuned import TuningResult, evidence_for
from asrd.errors import AsrdError, ConfigError, ModelError, UsageError
from asrd.models import architectures, checkpoint, names
from asrd.models.checkpoint import Header
from asrd.models.memory_estimate import CONTEXT, Estimate, needs
from asrd.precision import gpus
from asrd.precision.needs import fitted
from asrd.precision.plan import (
    Gpu,
    Need,
    Plan,
    device_for,
    obstacle,
    plan,
)
from asrd.precision.strategies import BASELINE, TABLE, Precision

log = logging.getLogger("asrd")

GIB = 1 << 30

LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(-[A-Z]{2})?")


class StrategyEstimate(msgspec.Struct, frozen=True):
    """What one strategy would need. Bytes; `weights` is exact where a file was read, `measured` was
    measured here."""

    strategy: str
    weights: int
    ratio: float
    """Of FP32's weights."""
    load_peak: int
    activations: int
    process: int
    """Estimated: weights, activations, and `context` of the outlook."""
    measured: int | None
    """What `asrd compare` saw the process hold on this card; None where it did not."""
    source: str
    """The instrument of `measured`: nvml, or meminfo, which other processes disturb; empty without
    one."""
    obstacle: str
    """Why this card cannot run it; empty when it can, or where there is no card."""
    headroom: int | None
    """Bytes left under the limit, measured where that is known; below zero where it does not fit;
    None on the CPU."""

    @property
    def need(self) -> int:
        """Bytes that a plan reckons with: measured where that is known, else estimated."""
        return self.process if self.measured is None else self.measured


class PlanReport(msgspec.Struct, frozen=True):
    """The answer of `asrd plan`."""

    model: str
    path: str
    """Empty where the figures come from the known architecture."""
    exact: bool
    family: str
    parameters: int
    components: dict[str, int]
    languages: str
    hidden_bytes: int
    """Of a second, FP32 model in the file, loaded only where `timestamps_model` asks for it."""
    hypothetical: bool
    """True for a card that is not here."""
    gpus: list[Gpu]
    card: Gpu | None
    """The card the plan is for; None for the CPU."""
    limit: int | None
    """Bytes that the worker may use: what is free, or `vram_budget` where that is less."""
    budget: int | None
    plan: Plan
    chosen: str
    """The first candidate of the plan."""
    expected: str
    """The first candidate that fits into the limit."""
    context: int
    """Bytes reckoned for CUDA and its libraries: as measured on this card, else assumed."""
    recalled: str
    """Sizes of the known architecture that no public copy of the config confirmed."""
    strategies: list[StrategyEstimate]
    evidence: TuningResult | None = None
    """What was measured of `auto`, here and for this model."""
    stale: str = ""
    """Why it does not hold any more; empty while it does."""


def header_of(name: str) -> tuple[Header, str]:
    """Return a model's header and the path it was read from; "" where it was computed from the
    architecture.

    Raises:
        ModelError: a file that cannot be used, or a name on the hub that is neither here nor known.
        UsageError: no name at all.
    """
    try:
        path = names.resolve(name)
    except names.NotCachedError as missing:
        if missing.name in architectures.ARCHITECTURES:
            return architectures.describe(missing.name), ""
        raise ModelError(
            f"{missing.name} is not in the cache, and its sizes are not known without its file",
            "asrd transcribe with --model downloads it; asrd models lists the known names",
        ) from missing
    return checkpoint.header(path), str(path)


def languages(name: str, header: Header) -> str:
    """Return the languages of a model, as its name is known for or its file tells; empty where
    neither does."""
    full = f"nvidia/{name}" if f"nvidia/{name}" in architectures.ARCHITECTURES else name
    known = architectures.ARCHITECTURES.get(full)
    return (
        "en" if name in names.SHIPPED else known.languages if known else " ".join(header.languages)
    )


def check_languages(settings: Settings) -> None:
    """Say where a language was chosen that the model is known not to have. Reads a model file only
    where one was.

    Raises ConfigError for a model that is told the language, which it then would refuse or write
    nonsense in.
    """
    asked = [key for key in ("source_lang", "target_lang") if getattr(settings, key) != "en"]
    if not asked or not settings.model:
        return
    try:
        header, _ = header_of(settings.model)
    except AsrdError:  # the worker tells what is wrong with the model
        return
    spoken = languages(settings.model, header).split()
    known = [code for code in spoken if LANGUAGE_CODE.fullmatch(code)]
    for key in asked:
        code = getattr(settings, key)
        if (
            known != spoken
            or not known
            or code.partition("-")[0] in [one.partition("-")[0] for one in known]
        ):
            continue
        have = f"the model {settings.model} knows {' '.join(known)}"
        if header.family == "aed":
            hint = f'write {key} = "{known[0]}", or choose another model'
            raise ConfigError(f"{key} = {code!r} is no language of this model: {have}", hint)
        log.warning("%s = %r does nothing: %s", key, code, have)


def parse_gpu(text: str) -> Gpu:
    """Return the card that "NAME:CAPABILITY:GIB" describes, all of its memory free. Raises
    UsageError."""
    found = re.fullmatch(r"(.+):(\d+)\.(\d+):(\d+(?:\.\d+)?)(?:\s*GiB)?", text.strip())
    if not found or not float(found[4]):
        raise UsageError(
            f"--gpu {text!r} describes no card",
            'NAME:CAPABILITY:GIB, for example "RTX A1000:8.6:4"',
        )
    total = int(float(found[4]) * GIB)
    return Gpu(0, found[1].strip(), (int(found[2]), int(found[3])), total, total)


def plan_report(
    settings: Settings, gpus: list[Gpu], imagined: bool = False, lack: str = ""
) -> PlanReport:
    """Return what each strategy would need on one of these cards, what would run, and why.

    Args:
        gpus: the cards to plan for, `imagined` where they are not in this machine.
        lack: why none of this machine's can be used, for the plan's reason.

    Raises:
        UsageError, ModelError, PrecisionError: no such model, file, component or card.
    """
    header, path = header_of(settings.model)
    asked = settings.requested
    card = device_for(settings.device, gpus)
    told = settings.strategy == "auto" and not imagined
    record, stale = tuned.find(settings, card) if told else (None, "")
    value = record.value(stale) if record else None
    allowed = budget(settings.vram_budget, card.total) if card else None
    limit = min(card.free, card.free if allowed is None else allowed) if card else None
    table = TABLE if isinstance(asked, str) else TABLE | {asked.name: asked}
    before = {} if imagined else measured(settings, card)
    context = _context(header, settings, before)
    lines = [
        _line(header, precision, settings, card, limit, before, context)
        for precision in table.values()
    ]
    candidates = _bounded(
        plan(asked, settings.device, gpus, settings.preset, value, lack), lines, allowed
    )
    fits = candidates if limit is None else fitted(candidates, limit)
    return PlanReport(
        model=settings.model,
        path=path,
        exact=bool(path),
        family=header.family,
        parameters=header.parameters,
        components=header.components,
        languages=languages(settings.model, header),
        hidden_bytes=header.hidden_bytes,
        hypothetical=imagined,
        gpus=gpus,
        card=card,
        limit=limit,
        budget=allowed,
        plan=candidates,
        chosen=candidates.candidates[0].name,
        expected=fits.candidates[0].name,
        context=context,
        recalled=""
        if path
        else architectures.ARCHITECTURES[names.hub_name(settings.model)].recalled,
        strategies=lines,
        evidence=record,
        stale=stale,
    )


def planned(settings: Settings, gpus: list[Gpu], lack: str = "") -> Plan:
    """Return the candidates to try with these cards, what each needs, and none that is above the
    memory budget.

    A model whose sizes nobody knows keeps all its candidates; the worker's own allocator then keeps
    the limit.

    Args:
        lack: why none of this machine's cards can be used, for the reason.

    Raises: UsageError, PrecisionError; ConfigError for a language that the model has not.
    """
    check_languages(settings)
    card = device_for(settings.device, gpus)
    if card is not None:
        try:
            return plan_report(settings, gpus).plan
        except AsrdError:
            pass  # what is wrong with the model, if anything is, the worker tells
    return plan(
        settings.requested,
        settings.device,
        gpus,
        settings.preset,
        evidence_for(settings, gpus),
        lack,
    )


def _bounded(made: Plan, lines: list[StrategyEstimate], allowed: int | None) -> Plan:
    """Return a plan that knows what each strategy needs, within what is allowed."""
    needed = {line.strategy: Need(line.need, line.measured is not None) for line in lines}
    made = msgspec.structs.replace(made, needs=needed)
    return made if allowed is None else fitted(made, allowed)


def measured(settings: Settings, card: Gpu | None) -> dict[str, baseline.BaselineFigures]:
    """Return what `asrd compare` measured of this model on this card, by strategy; empty where it
    did not.

    The second model of newer Canary files was not part of that.
    """
    found = (
        baseline.find(settings.model, "cuda") if card and not settings.timestamps_model else None
    )
    if card is None or found is None or found.card not in ("", card.name):
        return {}
    return {
        name: one
        for name, one in found.strategies.items()
        if one.process is not None and one.source != "rss"
    }


def _context(
    header: Header, settings: Settings, before: dict[str, baseline.BaselineFigures]
) -> int:
    """Return what CUDA and its libraries take on this card: the most that a measured process held
    beside its model."""
    beside = [
        (one.process or 0) - needs(header, TABLE[name], settings.window).process + CONTEXT
        for name, one in before.items()
        if name in TABLE
    ]
    return max(0, *beside) if beside else CONTEXT


def _line(
    header: Header,
    precision: Precision,
    settings: Settings,
    card: Gpu | None,
    limit: int | None,
    before: dict[str, baseline.BaselineFigures],
    context: int,
) -> StrategyEstimate:
    hidden = settings.timestamps_model
    estimate: Estimate = needs(header, precision, settings.window, hidden)
    whole = needs(header, TABLE["fp32"], settings.window, hidden).weights
    own = precision != TABLE.get(
        precision.name
    )  # a map of the user's own was not measured under this name
    seen = None if own else before.get(precision.name)
    estimated = estimate.process - CONTEXT + context
    need = estimated if seen is None or seen.process is None else seen.process
    return StrategyEstimate(
        strategy=precision.name,
        weights=estimate.weights,
        ratio=round(estimate.weights / whole, 4),
        load_peak=estimate.load_peak,
        activations=estimate.activations,
        process=estimated,
        measured=seen.process if seen else None,
        source=seen.source if seen else "",
        obstacle=obstacle(precision, card) if card else "",
        headroom=None if limit is None else limit - need,
    )


def _selection(settings: Settings) -> gpus.GpuSelection:
    """Return the cards to choose among; for the CPU none is asked, which would wake one that
    sleeps."""
    return gpus.GpuSelection([]) if settings.device == "cpu" else gpus.select_gpu(settings.device)


def plan_for(settings: Settings) -> Plan:
    """Return the plan for these settings on this machine, and what each needs. Raises UsageError,
    PrecisionError."""
    sight = _selection(settings)
    made = planned(settings, sight.cards, sight.lack)
    if any(one.detail in made.reason for one in made.rejected):
        log.warning(
            "%s", made.reason
        )  # another strategy than was asked for is never taken in silence
    elif sight.why:
        log.warning("%s: the plan is for the CPU (%s)", sight.why, sight.fix)
    return made


def card_for(settings: Settings) -> Gpu | None:
    """Return the card that these settings mean, None for the CPU; why one cannot be used is told.
    As `plan_for`."""
    sight = _selection(settings)
    if sight.why:
        log.warning("%s: the CPU is measured (%s)", sight.why, sight.fix)
    return device_for(settings.device, sight.cards)


def start_for(settings: Settings) -> protocol.Start:
    """Return what a worker is started with under these settings; the candidate fills in precision
    and device."""
    card = device_for(settings.device, _selection(settings).cards) if settings.vram_budget else None
    return protocol.Start(
        model=settings.model,
        precision=BASELINE,
        source_lang=settings.source_lang,
        target_lang=settings.target_lang,
        pnc=settings.pnc,
        vocabulary=settings.vocabulary,
        boost=settings.boost,
        timestamps_model=settings.timestamps_model,
        threads=settings.threads,
        graphs=settings.graphs,
        vram_limit=max(1, budget(settings.vram_budget, card.total) or 0) if card else 0,
        faults=settings.faults,
    )
