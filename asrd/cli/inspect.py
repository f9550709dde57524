"""Verbs that tell and change nothing: which models there are, what a strategy would need here,
which settings hold.

Reads names, headers and NVML; opens no weights, starts no worker, downloads nothing. A figure that
is exact and one that is estimated never share a column, and what was not read from a file says so.
"""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from asrd.config.settings import Settings
from asrd.engine.estimates import StrategyEstimate
from asrd.engine.model_facts import header_of, languages
from asrd.engine.planner import PlanReport, parse_gpu, plan_report
from asrd.engine.tuned import KEPT_RECORDINGS, TunedStrategy, TuningResult
from asrd.errors import ModelError
from asrd.evaluation.normalising import units
from asrd.models import architectures, choice, names
from asrd.models.memory_estimate import weights_bytes
from asrd.precision import gpus, ledger
from asrd.precision.fallback import candidates_after
from asrd.precision.plan import Gpu
from asrd.precision.strategies import STRATEGY_TABLE
from asrd.protocol import Download
from asrd.terminal import listing
from asrd.terminal.output import tell, tell_document
from asrd.text import filenames
from asrd.text.sizes import mib_figure, readable_size

MAIN = ("fp32", "bfloat16", "int8")
"""Strategies whose weights the list of models shows: the baseline, the half and the least."""


# -- models
# -----------------------------------------------------------------------------------------------------------


class ModelEntry(msgspec.Struct, frozen=True):
    """One model of the list."""

    name: str
    family: str
    parameters: int
    exact: bool
    """True when read from a file, False when computed from the known architecture."""
    languages: str
    path: str
    """Empty where no file is here."""
    bytes: int
    """Of the file; 0 where none is here."""
    weights: dict[str, int]
    """Strategy -> bytes of the weights."""
    note: str = ""
    unconfirmed: str = ""
    """What no public copy of the config confirms; empty where a file is here."""


def models_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `asrd models` takes."""
    parser.add_argument("--json", action="store_true", help="exact bytes as JSON, every strategy")


def models(args: argparse.Namespace, settings: Settings) -> int:
    """List the shipped models, those in the cache and those known by name; return 0."""
    entries = [
        _entry(name)
        for name in dict.fromkeys([*names.SHIPPED, *architectures.ARCHITECTURES, *names.cached()])
    ]
    if args.json:
        tell_document(entries, indent=2)
        return 0
    headings = [
        "model",
        "family",
        ">parameters",
        "languages",
        ">file",
        *(f">{name}" for name in MAIN),
    ]
    listing.show(headings, [_cells(entry) for entry in entries])
    listing.say(
        "",
        f"MiB throughout. file: the checkpoint, where it is here; - is downloaded to {names.cache_folder()} when it is "
        f"first used. {', '.join(MAIN)}: the weights under that strategy (asrd plan --model M shows all of them).",
        "~: computed from the published architecture, not read from a file. Names without an owner are nvidia's.",
        "Of some, no public copy of the config confirms every part; asrd plan --model M names what is unconfirmed.",
        "The demo models recognise synthetic voices and a closed vocabulary, not your microphone.",
        *(f"{entry.name}: {entry.note}" for entry in entries if entry.note),
        *(Download(name, size, None).kept for name, size in names.partials().items()),
    )
    return 0


def _cells(entry: ModelEntry) -> list[str]:
    return [
        _short(entry.name),
        entry.family or "?",
        f"{'' if entry.exact else '~'}{entry.parameters / 1e6:.1f} M" if entry.parameters else "?",
        entry.languages or "?",
        mib_figure(entry.bytes) if entry.bytes else "-",
        *(mib_figure(entry.weights[name]) if entry.weights else "?" for name in MAIN),
    ]


def _short(name: str) -> str:
    return name.partition("/")[2] if name in architectures.ARCHITECTURES else name


def _entry(name: str) -> ModelEntry:
    """Return a model's line: from its file where one is here, from its architecture where it is
    only known."""
    try:
        header, path = header_of(name)
    except ModelError as error:
        return ModelEntry(name, "", 0, False, "", "", 0, {}, error.message)
    weights = {
        strategy: weights_bytes(header, precision) for strategy, precision in STRATEGY_TABLE.items()
    }
    spoken = languages(name, header)
    recalled = (
        architectures.ARCHITECTURES[name].recalled
        if name in architectures.ARCHITECTURES and not path
        else ""
    )
    return ModelEntry(
        name,
        header.family,
        header.parameters,
        bool(path),
        spoken,
        path,
        header.size,
        weights,
        "",
        recalled,
    )


# -- plan
# -------------------------------------------------------------------------------------------------------------


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `asrd plan` takes."""
    parser.add_argument("--json", action="store_true", help="exact bytes as JSON")
    parser.add_argument(
        "--gpu",
        metavar="NAME:CAPABILITY:GIB",
        help='ask about a card that is not here, as in "RTX A1000:8.6:4"',
    )


def plan(args: argparse.Namespace, settings: Settings) -> int:
    """Say what each strategy would need on this machine, which one would run and why; return 0.

    Raises:
        UsageError, ModelError, PrecisionError: no such model, file, strategy or card.
    """
    named, settings = settings, choice.or_demo(settings)
    sight = (
        gpus.GpuSelection([parse_gpu(args.gpu)]) if args.gpu else gpus.select_gpu(settings.device)
    )
    found = plan_report(settings, sight.cards, bool(args.gpu), sight.lack)
    choice.for_files(
        named
    )  # says that the demo is meant, now that nothing is wrong with what was asked
    if args.json:
        tell_document(found, indent=2)
    else:
        _show(found, settings)
    return 0


def _show(found: PlanReport, settings: Settings) -> None:
    """Print the outlook for a person."""
    origin = (
        f"read from {found.path}"
        if found.exact
        else "from the known parameter count, not from a file"
    )
    tongues = f", {found.languages}" if found.languages else ""
    listing.say(
        f"{found.model}: {found.family}, {found.parameters / 1e6:.2f} M parameters{tongues}; {origin}"
    )
    listing.say(
        *[_card(gpu, found) for gpu in found.gpus]
        or ["no GPU can be used, so the plan is for the CPU"],
        "",
    )
    seen = any(line.measured is not None for line in found.strategies)
    more = [*([">measured"] if seen else []), *([">headroom"] if found.card else [])]
    headings = ["", "strategy", ">weights", ">of FP32", ">on a GPU about", *more, ""]
    first = found.plan.candidates[0].precision.name
    rows = [
        [
            ">" if line.strategy == first else "",
            line.strategy,
            readable_size(line.weights),
            f"{100 * line.ratio:.1f} %",
            readable_size(line.process),
            *([readable_size(line.measured) if line.measured is not None else "-"] if seen else []),
            *([_headroom(line)] if found.card else []),
            "not on this card"
            if line.obstacle
            else "does not fit"
            if (line.headroom or 0) < 0
            else "",
        ]
        for line in found.strategies
    ]
    listing.show(headings, rows, "strategy")
    listing.say("", *_decision(found))
    if found.evidence is not None and not found.stale:
        tell("")
        show_evidence(found.evidence)
    listing.say("", *_remarks(found, settings))


def show_evidence(record: TuningResult) -> None:
    """Print by what figures `auto` chose, and why it did not take what it refused."""
    what = "differs" if record.speech == KEPT_RECORDINGS else record.metric
    narrow = listing.columns() < listing.PIPE_COLUMNS
    joint = "\n" if narrow else " "
    failed = not narrow or any(one.failures for one in record.candidates)
    headings = [
        *(
            "strategy",
            units(record.metric),
            f">{what}{joint}[95 %]",
            f">at{joint}most",
            ">changed",
            ">MiB",
            ">ms",
        ),
        *([">failed"] if failed else []),
        "",
    ]
    rows = [
        [
            one.strategy,
            one.verdict,
            _range(one, joint),
            _signed(one.most),
            "-" if one.changed is None else str(one.changed),
            "-" if one.memory is None else mib_figure(one.memory),
            "-" if one.p50_ms is None else f"{one.p50_ms:.1f}",
            *([str(one.failures)] if failed else []),
            "refused" if one.refused else "chosen" if one.strategy == record.chosen else "fit",
        ]
        for one in record.candidates
    ]
    listing.show(headings, rows)
    counted = units(record.metric)
    kinds = "; ".join(
        dict.fromkeys(ledger.source_words(one.source) for one in record.candidates if one.source)
    )
    listing.say(
        "",
        *(f"{one.strategy}: {one.refused}" for one in record.candidates if one.refused),
        f"Measured {record.measured} on {record.key.device}: {record.utterances} utterances, {record.words} {counted}, "
        f"{record.seconds / 60:.1f} minutes of {_speech(record)}; ms for a buffer of 10 s, memory: {kinds or 'none'}; "
        f"fp32's {counted} are its second run's against its first. The limit is {record.limit:.2f} points.",
        *([record.hint] if record.hint else []),
    )


def _speech(record: TuningResult) -> str:
    return "the recordings that are kept" if record.speech == KEPT_RECORDINGS else record.speech


def _range(one: TunedStrategy, joint: str) -> str:
    if one.interval is None:
        return _signed(one.delta)
    return f"{_signed(one.delta)}{joint}[{_signed(one.interval[0])}, {_signed(one.interval[1])}]"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 2) + 0.0:+.2f}"


def _card(gpu: Gpu, found: PlanReport) -> str:
    capability = ".".join(map(str, gpu.capability))
    if found.hypothetical:
        named = f"{gpu.name}, capability {capability}, {readable_size(gpu.total)}"
        return f"{named}: hypothetical, not in this machine, all of it free"
    sizes = f"{readable_size(gpu.total)}, {readable_size(gpu.free)} free"
    return f"cuda:{gpu.index} {gpu.name}, capability {capability}, {sizes}"


def _headroom(line: StrategyEstimate) -> str:
    return (
        readable_size(line.headroom or 0)
        if (line.headroom or 0) >= 0
        else f"-{readable_size(-(line.headroom or 0))}"
    )


def _decision(found: PlanReport) -> list[str]:
    """Return what would run, why, what comes after it, and what was ruled out."""
    candidates = found.plan.candidates
    first = candidates[0]
    lines = [
        f"chosen: {first.name}"
        + ("" if first.device == "cpu" else f" on {first.device}")
        + f" - {found.plan.reason}"
    ]
    if len(candidates) > 1:
        lines.append(f"if it fails: {', '.join(candidate.name for candidate in candidates[1:])}")
    smaller = [
        candidate.name
        for candidate in candidates_after(found.plan, candidates, "out-of-memory")
        if first.device != "cpu"
    ]
    if smaller and smaller != [candidate.name for candidate in candidates[1:]]:
        alone = "which alone needs" if len(smaller) == 1 else "which need"
        lines.append(f"if memory runs out: {', '.join(smaller)}, {alone} less of the card")
    lines += [
        f"ruled out by {rejected.kind}: {rejected.candidate} - {rejected.detail}"
        for rejected in found.plan.rejected
    ]
    if found.card is None or found.limit is None:
        return lines
    tight = {line.strategy: line for line in found.strategies if (line.headroom or 0) < 0}
    source = (
        "free"
        if found.budget is None or found.budget >= found.card.free
        else "allowed by vram_budget"
    )
    short = [
        candidate.precision.name
        for candidate in candidates
        if candidate.device != "cpu" and candidate.precision.name in tight
    ]
    if short:
        wanted = ", ".join(
            f"{name} {readable_size(tight[name].need)}" for name in dict.fromkeys(short)
        )
        lines.append(
            f"these do not fit into the {readable_size(found.limit)} {source}: {wanted}. "
            f"asrd checks again before each start and skips what does not fit; expected to hold: {found.expected}"
        )
    fitting = [
        line.strategy
        for line in found.strategies
        if line.strategy not in tight and not line.obstacle
    ]
    bounded = any(one.kind == "budget" for one in found.plan.rejected)
    if (short or bounded) and fitting and found.expected.endswith("on cpu"):
        lines.append(f"would fit on this card: {', '.join(fitting)} (choose with --strategy)")
    return lines


def _measured(found: PlanReport) -> list[str]:
    """Return where the measured figures come from, if there are any."""
    sources = {line.source for line in found.strategies if line.source}
    if not sources or found.card is None:
        return []
    what = "; ".join(
        ledger.MEMORY_KINDS[source].meaning if source in ledger.MEMORY_KINDS else source
        for source in sorted(sources)
    )
    return [
        f'"Measured" is what asrd compare saw the process hold on {found.card.name} '
        f"({what}); the plan and the headroom go by it where it is there."
    ]


def _remarks(found: PlanReport, settings: Settings) -> list[str]:
    """Return what the figures are and are not."""
    activations = max(line.activations for line in found.strategies)
    lines = [
        ("Weights are exact: every parameter and buffer, as the worker will report them." if found.exact else
         "Weights are computed from the published architecture; the file may differ by a per cent.")
        + " The load peak equals them, because the cast is made before the model moves to the GPU.",
        f"\"On a GPU about\" is an estimate: weights, up to {readable_size(activations)} of activations for a "
        f"{settings.window:g}-s buffer, and {readable_size(found.context)} for CUDA and its libraries"
        + (", as measured here." if _measured(found) else ", which is assumed. asrd compare measures it."),
        *_measured(found),
        "Strategies at 100 % compute in another format but store FP32; they do not shrink the weights.",
    ]  # fmt: skip
    if found.hidden_bytes:
        added = (
            "is counted in, in FP32"
            if settings.timestamps_model
            else "is left out (timestamps_model = false)"
        )
        lines.append(
            f"The file carries a second model for timestamps, {readable_size(found.hidden_bytes)}; it {added}."
        )
    if found.recalled:
        lines.append(f"Not confirmed by a public copy of its config: {found.recalled}.")
    return lines


# -- config
# -----------------------------------------------------------------------------------------------------------


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `asrd config` takes."""
    parser.add_argument("--json", action="store_true", help="setting -> value and origin, as JSON")


def config(args: argparse.Namespace, settings: Settings) -> int:
    """Print each setting, its value and where that came from; return 0."""
    values = {name: getattr(settings, name) for name in args.loaded.origins}
    if args.json:
        table = {
            name: {"value": value, "from": args.loaded.origins[name]}
            for name, value in values.items()
        }
        tell_document(table, indent=2)
        return 0
    listing.show(
        ["setting", "value", "from"],
        [
            [name, _value(name, value, settings), args.loaded.origins[name]]
            for name, value in values.items()
        ],
    )
    if args.loaded.notes:
        listing.say("", *args.loaded.notes)
    return 0


def _value(name: str, value: Any, settings: Settings) -> str:
    if name == "max_wer_delta" and value is None:
        return f"{settings.wer_bound:g} (preset {settings.preset})"
    if name == "vocabulary" and len(value) > 5:
        return f"{len(value)} phrases, {value[0]!r} the first"
    return filenames.to_json(value).decode()


# -- text
# -------------------------------------------------------------------------------------------------------------
