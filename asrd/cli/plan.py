"""The verb plan: what each strategy would need here, which one would run, and why.

Reads headers and NVML. Opens no weights, starts no worker and downloads nothing. A figure that is
exact and one that is estimated never share a column.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from asrd.cli.cells import shown
from asrd.cli.tuning_table import show_evidence
from asrd.config.settings import Settings
from asrd.engine.estimates import StrategyEstimate
from asrd.engine.planner import PlanReport, parse_gpu, plan_report
from asrd.models import choice
from asrd.precision import gpus, ledger
from asrd.precision.fallback import candidates_after
from asrd.precision.plan import Candidate, Gpu
from asrd.terminal import listing
from asrd.terminal.output import tell, tell_document
from asrd.text.sizes import readable_size


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `asrd plan`."""
    parser.add_argument("--json", action="store_true", help="exact bytes as JSON")
    parser.add_argument(
        "--gpu",
        metavar="NAME:CAPABILITY:GIB",
        help='ask about a card that is not here, as in "RTX A1000:8.6:4"',
    )


def plan(args: argparse.Namespace, settings: Settings) -> int:
    """Print what each strategy would need on this machine, which one would run and why; return 0.

    Raises:
        UsageError, ModelError, PrecisionError: no such model, file, strategy or card.
    """
    named, settings = settings, choice.or_demo(settings)
    selection = _selection(args.gpu, settings)
    report = plan_report(settings, selection.cards, bool(args.gpu), selection.lack)
    # Only now: a note about the demo stands before no error.
    choice.for_files(named)
    if args.json:
        tell_document(report, indent=2)
    else:
        _show(report, settings)
    return 0


def _selection(gpu: str | None, settings: Settings) -> gpus.GpuSelection:
    """Return the card that the user described, or those of this machine."""
    if gpu:
        return gpus.GpuSelection([parse_gpu(gpu)])
    return gpus.select_gpu(settings.device)


def _show(report: PlanReport, settings: Settings) -> None:
    """Print the plan for a person."""
    listing.say(_model_line(report))
    listing.say(*_card_lines(report), "")
    headings, rows = _table(report)
    listing.show(headings, rows, "strategy")
    listing.say("", *_decision(report))
    if report.evidence is not None and not report.stale:
        tell("")
        show_evidence(report.evidence)
    listing.say("", *_remarks(report, settings))


def _model_line(report: PlanReport) -> str:
    """Return the model, its size, its languages, and where these figures come from."""
    facts = [report.family, f"{report.parameters / 1e6:.2f} M parameters"]
    if report.languages:
        facts.append(report.languages)
    origin = "from the known parameter count, not from a file"
    if report.exact:
        origin = f"read from {report.path}"
    return f"{report.model}: {', '.join(facts)}; {origin}"


def _card_lines(report: PlanReport) -> list[str]:
    if not report.gpus:
        return ["no GPU can be used, so the plan is for the CPU"]
    return [_card_line(gpu, report.hypothetical) for gpu in report.gpus]


def _card_line(gpu: Gpu, hypothetical: bool) -> str:
    capability = ".".join(map(str, gpu.capability))
    if hypothetical:
        named = f"{gpu.name}, capability {capability}, {readable_size(gpu.total)}"
        return f"{named}: hypothetical, not in this machine, all of it free"
    sizes = f"{readable_size(gpu.total)}, {readable_size(gpu.free)} free"
    return f"cuda:{gpu.index} {gpu.name}, capability {capability}, {sizes}"


# -- the table
# ------------------------------------------------------------------------------------------------------------


def _table(report: PlanReport) -> tuple[list[str], list[list[str]]]:
    """Return the headings and rows of the strategies; columns without a figure are left out."""
    measured = any(line.measured is not None for line in report.strategies)
    headings = ["", "strategy", ">weights", ">of FP32", ">on a GPU about"]
    if measured:
        headings.append(">measured")
    if report.card:
        headings.append(">headroom")
    first = report.plan.candidates[0].precision.name
    rows = []
    for line in report.strategies:
        row = [_mark(line, first), line.strategy, readable_size(line.weights)]
        row += [f"{100 * line.ratio:.1f} %", readable_size(line.process)]
        if measured:
            row.append(shown(line.measured, readable_size))
        if report.card:
            row.append(_headroom(line))
        rows.append([*row, _remark(line)])
    return [*headings, ""], rows


def _mark(line: StrategyEstimate, first: str) -> str:
    return ">" if line.strategy == first else ""


def _headroom(line: StrategyEstimate) -> str:
    """Return the bytes left under the limit, with a minus where they are missing."""
    left = line.headroom or 0
    if left < 0:
        return f"-{readable_size(-left)}"
    return readable_size(left)


def _remark(line: StrategyEstimate) -> str:
    if line.obstacle:
        return "not on this card"
    if _is_too_large(line):
        return "does not fit"
    return ""


def _is_too_large(line: StrategyEstimate) -> bool:
    return (line.headroom or 0) < 0


# -- the decision
# ------------------------------------------------------------------------------------------------------------


def _decision(report: PlanReport) -> list[str]:
    """Return what would run, why, what comes after it, and what was ruled out."""
    first, *others = report.plan.candidates
    place = "" if first.device == "cpu" else f" on {first.device}"
    lines = [f"chosen: {first.name}{place} - {report.plan.reason}"]
    fallbacks = _names(others)
    if fallbacks:
        lines.append(f"if it fails: {', '.join(fallbacks)}")
    lines += _smaller(report, fallbacks)
    for rejected in report.plan.rejected:
        lines.append(f"ruled out by {rejected.kind}: {rejected.candidate} - {rejected.detail}")
    return [*lines, *_memory_decision(report)]


def _names(candidates: Iterable[Candidate]) -> list[str]:
    return [candidate.name for candidate in candidates]


def _smaller(report: PlanReport, fallbacks: list[str]) -> list[str]:
    """Return which candidates follow when memory runs out, where they are not all of them."""
    candidates = report.plan.candidates
    if candidates[0].device == "cpu":
        return []
    after = candidates_after(report.plan, candidates, "out-of-memory")
    names = _names(after)
    if not names or names == fallbacks:
        return []
    need = "which alone needs" if len(names) == 1 else "which need"
    return [f"if memory runs out: {', '.join(names)}, {need} less of the card"]


def _memory_decision(report: PlanReport) -> list[str]:
    """Return which candidates the card has no room for, and which strategies would fit."""
    if report.card is None or report.limit is None:
        return []
    lines = []
    wanted = _candidates_without_room(report)
    if wanted:
        lines.append(
            f"these do not fit into the {readable_size(report.limit)} {_limit_source(report)}: "
            f"{', '.join(wanted)}. asrd checks again before each start and skips what does not fit; "
            f"expected to hold: {report.expected}"
        )
    fitting: list[str] = []
    for line in report.strategies:
        if not line.obstacle and not _is_too_large(line):
            fitting.append(line.strategy)
    bounded = any(one.kind == "budget" for one in report.plan.rejected)
    if (wanted or bounded) and fitting and report.expected.endswith("on cpu"):
        lines.append(f"would fit on this card: {', '.join(fitting)} (choose with --strategy)")
    return lines


def _candidates_without_room(report: PlanReport) -> list[str]:
    """Return the candidates that do not fit on the card, each with the bytes that it needs."""
    estimates = {line.strategy: line for line in report.strategies}
    found: dict[str, str] = {}
    for candidate in report.plan.candidates:
        name = candidate.precision.name
        line = estimates.get(name)
        if candidate.device != "cpu" and line is not None and _is_too_large(line):
            found[name] = f"{name} {readable_size(line.need)}"
    return list(found.values())


def _limit_source(report: PlanReport) -> str:
    assert report.card is not None
    if report.budget is None or report.budget >= report.card.free:
        return "free"
    return "allowed by vram_budget"


# -- remarks
# ------------------------------------------------------------------------------------------------------------


def _remarks(report: PlanReport, settings: Settings) -> list[str]:
    """Return what the figures are and are not."""
    measured = _measured(report)
    lines = [
        f"{_weights_origin(report)} The load peak equals them, "
        "because the cast is made before the model moves to the GPU.",
        _estimate_remark(report, settings, bool(measured)),
        *measured,
        "Strategies at 100 % compute in another format but store FP32; they do not shrink the weights.",
    ]
    if report.hidden_bytes:
        lines.append(_second_model(report.hidden_bytes, settings.timestamps_model))
    if report.recalled:
        lines.append(f"Not confirmed by a public copy of its config: {report.recalled}.")
    return lines


def _weights_origin(report: PlanReport) -> str:
    if report.exact:
        return "Weights are exact: every parameter and buffer, as the worker will report them."
    return (
        "Weights are computed from the published architecture; the file may differ by a per cent."
    )


def _estimate_remark(report: PlanReport, settings: Settings, measured: bool) -> str:
    activations = max(line.activations for line in report.strategies)
    origin = "which is assumed. asrd compare measures it."
    if measured:
        origin = "as measured here."
    return (
        f'"On a GPU about" is an estimate: weights, up to {readable_size(activations)} of activations for a '
        f"{settings.window:g}-s buffer, and {readable_size(report.context)} for CUDA and its libraries, {origin}"
    )


def _second_model(size: int, included: bool) -> str:
    added = "is left out (timestamps_model = false)"
    if included:
        added = "is counted in, in FP32"
    return f"The file carries a second model for timestamps, {readable_size(size)}; it {added}."


def _measured(report: PlanReport) -> list[str]:
    """Return where the measured figures come from, if there are any."""
    sources = sorted({line.source for line in report.strategies} - {""})
    if not sources or report.card is None:
        return []
    kinds = "; ".join(map(_source_meaning, sources))
    return [
        f'"Measured" is what asrd compare saw the process hold on {report.card.name} '
        f"({kinds}); the plan and the headroom go by it where it is there."
    ]


def _source_meaning(source: str) -> str:
    if source not in ledger.MEMORY_KINDS:
        return source
    return ledger.MEMORY_KINDS[source].meaning
