"""Which strategy would run on this machine, what each would need, and why: before anything is
started.

First `gather` looks everything up once: the card, the model's header, what tune and compare found.
Then `decide` makes a plan of these facts and looks nothing up. Imports neither torch nor numpy.
"""

from __future__ import annotations

import logging
import re

import msgspec

from asrd import protocol
from asrd.config.amounts import budget
from asrd.config.settings import Settings
from asrd.engine import estimates, model_facts, tuned
from asrd.engine.baseline import BaselineFigures
from asrd.engine.estimates import StrategyEstimate
from asrd.engine.tuned import TuningResult
from asrd.errors import AsrdError, UsageError
from asrd.models import architectures, names
from asrd.models.checkpoint import Header
from asrd.precision import gpus
from asrd.precision.gpus import GpuSelection
from asrd.precision.needs import fitted
from asrd.precision.plan import Gpu, Need, Plan, device_for, plan
from asrd.precision.strategies import FP32_BASELINE, STRATEGY_TABLE
from asrd.text.sizes import GIB

log = logging.getLogger("asrd")


class PlanFacts(msgspec.Struct, frozen=True):
    """What a plan is decided from."""

    gpus: list[Gpu]
    """The cards to choose among."""
    gpu: Gpu | None
    """The card that the settings mean; None for the CPU."""
    gpu_problem: str
    """Why none of this machine's cards can be used and what helps; empty where nothing is amiss."""
    free: int | None
    """Bytes that are free on the card; None for the CPU."""
    header: Header | None
    """The model's; None where it was not read or could not be."""
    path: str
    """Where the header was read; empty where it was computed from the table of architectures."""
    model_problem: AsrdError | None
    """Why there is no header."""
    tuned: TuningResult | None
    """What `asrd tune` found of `auto` for this model; None without it, or for another strategy."""
    stale: str
    """Why `tuned` does not hold any more; empty while it does."""
    baseline: dict[str, BaselineFigures]
    """What `asrd compare` measured of this model on this card, by strategy."""


class PlanDecision(msgspec.Struct, frozen=True):
    """A plan, and the figures it was decided by."""

    plan: Plan
    budget: int | None = None
    """Bytes that `vram_budget` allows; None without a budget or a card."""
    limit: int | None = None
    """Bytes that the worker may use: what is free, or the budget where that is less."""
    strategies: list[StrategyEstimate] = []
    """What each strategy needs; empty where the model's sizes are not known."""


class PlanReport(msgspec.Struct, frozen=True):
    """The answer of `asrd plan`."""

    model: str
    path: str
    """Empty where the figures come from the table of architectures."""
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
    """Sizes in the table of architectures that no public copy of the config confirmed."""
    strategies: list[StrategyEstimate]
    evidence: TuningResult | None = None
    """What was measured of `auto`, here and for this model."""
    stale: str = ""
    """Why it does not hold any more; empty while it does."""

    def estimate(self, strategy: str) -> StrategyEstimate | None:
        """Return what a strategy needs; None where there is no such line."""
        for line in self.strategies:
            if line.strategy == strategy:
                return line
        return None


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


def gather(
    settings: Settings,
    seen: GpuSelection,
    *,
    hypothetical: bool = False,
    always_header: bool = True,
) -> PlanFacts:
    """Look up once what a plan is decided from.

    Args:
        seen: the cards to plan for.
        hypothetical: these cards are not in this machine, so nothing was measured on them.
        always_header: read the model's header for the CPU as well.

    Raises PrecisionError: a device that is not there.
    """
    header, path, problem = None, "", None
    card, free = seen.card, None
    if card is not None:
        free = card.free
    if card is not None or always_header:
        try:
            header, path = model_facts.header_of(settings.model)
        except AsrdError as error:
            problem = error
    record, stale = None, ""
    measured: dict[str, BaselineFigures] = {}
    if not hypothetical:
        measured = estimates.measured(settings, card)
        if settings.strategy == "auto":
            record, stale = tuned.find(settings, card)
    return PlanFacts(
        gpus=seen.cards,
        gpu=card,
        gpu_problem=seen.lack,
        free=free,
        header=header,
        path=path,
        model_problem=problem,
        tuned=record,
        stale=stale,
        baseline=measured,
    )


def decide(settings: Settings, facts: PlanFacts) -> PlanDecision:
    """Return the candidates to try, what each needs, and none that is above the memory budget: a
    pure function of these facts.

    A model whose sizes are not known keeps all its candidates; the worker's own allocator then
    keeps the limit.

    Raises ConfigError, PrecisionError: no such strategy or component.
    """
    asked = settings.requested
    evidence = None
    if facts.tuned:
        evidence = facts.tuned.value(facts.stale)
    made = plan(
        asked, facts.gpu, settings.preset, evidence, facts.gpu_problem, _why_cpu(settings, facts)
    )
    if facts.header is None:
        return PlanDecision(made)
    allowed, limit = _limits(settings, facts)
    table = STRATEGY_TABLE
    if not isinstance(asked, str):
        table = STRATEGY_TABLE | {asked.name: asked}
    lines = estimates.estimates(
        facts.header, table.values(), settings, facts.gpu, limit, facts.baseline
    )
    needed = {line.strategy: Need(line.need, line.measured is not None) for line in lines}
    made = msgspec.structs.replace(made, needs=needed)
    if allowed is not None:
        made = fitted(made, allowed)
    return PlanDecision(made, allowed, limit, lines)


def _limits(settings: Settings, facts: PlanFacts) -> tuple[int | None, int | None]:
    """Return the bytes that `vram_budget` allows, and those that the worker may use; None for no
    limit."""
    if facts.gpu is None:
        return None, facts.free
    allowed = budget(settings.vram_budget, facts.gpu.total)
    if allowed is None or facts.free is None:
        return allowed, facts.free
    return allowed, min(allowed, facts.free)


def _why_cpu(settings: Settings, facts: PlanFacts) -> str:
    """Return why a plan is for the CPU, where it is."""
    if settings.device == "cpu":
        return "device = cpu"
    if facts.gpu_problem:
        return "no usable GPU"
    return "no GPU"


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
    seen = GpuSelection(gpus, lack, card=device_for(settings.device, gpus))
    facts = gather(settings, seen, hypothetical=imagined)
    if facts.header is None:
        raise facts.model_problem or UsageError(f"no header of {settings.model}")
    header, found = facts.header, decide(settings, facts)
    fits = found.plan
    if found.limit is not None:
        fits = fitted(found.plan, found.limit)
    recalled = ""
    if not facts.path:
        recalled = architectures.ARCHITECTURES[names.hub_name(settings.model)].recalled
    return PlanReport(
        model=settings.model,
        path=facts.path,
        exact=bool(facts.path),
        family=header.family,
        parameters=header.parameters,
        components=header.components,
        languages=model_facts.languages(settings.model, header),
        hidden_bytes=header.hidden_bytes,
        hypothetical=imagined,
        gpus=gpus,
        card=facts.gpu,
        limit=found.limit,
        budget=found.budget,
        plan=found.plan,
        chosen=found.plan.candidates[0].name,
        expected=fits.candidates[0].name,
        context=estimates.context_bytes(header, settings, facts.baseline),
        recalled=recalled,
        strategies=found.strategies,
        evidence=facts.tuned,
        stale=facts.stale,
    )


def _select(settings: Settings) -> GpuSelection:
    """Return the cards to choose among; for the CPU none is asked, which would wake one that
    sleeps."""
    if settings.device == "cpu":
        return GpuSelection([])
    return gpus.select_gpu(settings.device)


def plan_for(settings: Settings) -> Plan:
    """Return the plan for these settings on this machine, and what each needs.

    Raises: UsageError, PrecisionError; ConfigError for a language that the model has not.
    """
    seen = _select(settings)
    made = plan_with(settings, seen)
    if any(one.detail in made.reason for one in made.rejected):
        # Another strategy than was asked for is never chosen in silence.
        log.warning("%s", made.reason)
    elif seen.why:
        log.warning("%s: the plan is for the CPU (%s)", seen.why, seen.fix)
    return made


def plan_with(settings: Settings, seen: GpuSelection) -> Plan:
    """Return the plan for these settings with these cards. Raises as `plan_for`."""
    facts = gather(settings, seen, always_header=False)
    model_facts.check_languages(settings, facts.header)
    try:
        return decide(settings, facts).plan
    except AsrdError:
        # The worker reports components that the model lacks; the plan does without figures.
        return decide(settings, msgspec.structs.replace(facts, header=None)).plan


def card_for(settings: Settings) -> Gpu | None:
    """Return the card that these settings mean, None for the CPU; why one cannot be used is logged.
    Raises as `plan_for`."""
    seen = _select(settings)
    if seen.why:
        log.warning("%s: the CPU is measured (%s)", seen.why, seen.fix)
    return seen.card


def start_for(settings: Settings) -> protocol.Start:
    """Return what a worker is started with under these settings; the candidate fills in precision
    and device."""
    return protocol.Start(
        model=settings.model,
        precision=FP32_BASELINE,
        source_lang=settings.source_lang,
        target_lang=settings.target_lang,
        pnc=settings.pnc,
        vocabulary=settings.vocabulary,
        boost=settings.boost,
        timestamps_model=settings.timestamps_model,
        threads=settings.threads,
        graphs=settings.graphs,
        vram_limit=_vram_limit(settings),
        faults=settings.faults,
    )


def _vram_limit(settings: Settings) -> int:
    """Return the bytes of the card that a worker may hold; 0 for no limit."""
    if not settings.vram_budget:
        return 0
    card = _select(settings).card
    if card is None:
        return 0
    return max(1, budget(settings.vram_budget, card.total) or 0)
