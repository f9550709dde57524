"""Results -> the tables of the terminal and of asrd/docs/gpu.md. Pure; what was not measured is left out, or
said to be so."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

from asrd import scoring
from asrd.evaluation import normalising
from asrd.precision.memory import Memory
from asrd.precision.strategies import STRATEGY_TABLE

from .architectures import NAMES
from .cells import AGAIN, SHIPPED, Found, Result, Times, digest

MIB, GIB = 1 << 20, 1 << 30
NOT_YET = "not yet measured"
SECONDS = 10.0

HEAD = (
    "strategy", "weights", "peak", "process", "steady", "10 s ms", "", "eager", "encoder", "token",
    "RTFx", "8 at", "32 at", "WER", "delta [95 %]", "chg",
)  # fmt: skip
UNITS = (
    "", "MiB", "/w", "MiB", "/fp32", "p50/p95", "/fp32", "ms", "ms", "ms",
    "alone", "once", "once", "%", "points", "/100",
)  # fmt: skip


def text(result: Result) -> str:
    """Return everything for a terminal 120 columns wide."""
    return f"{strategies(result)}\n\n{claims(result)}"


def strategies(result: Result) -> str:
    """Return the tables of the models that were measured, and what they were measured on."""
    machine = ", ".join(
        f"{key} {value}" for key, value in (result.machine | result.versions).items()
    )
    there = {found.cell.model for found in result.cells.values()}
    return "\n\n".join(
        [machine, *(_model(result, model) for model in (*SHIPPED, *NAMES) if model in there)]
    )


def costs(result: Result, model: str, strategy: str) -> tuple[str, str, str]:
    """Return a strategy's process memory and 10-s latency over FP32's, and words changed in 100 of
    the first shipped model."""
    found, base = (_found(result, model, name) for name in (strategy, "fp32"))
    words, truth = (_found(result, SHIPPED[0], name, "words") for name in (strategy, "fp32"))
    figures = (
        _of(_process(found), _process(base)),
        _of(p50(found), p50(base)),
        _words(result, words, truth)[2] if words else "",
    )
    memory, latency, changed = (figure or "not measured" for figure in figures)
    return memory, latency, changed


def line(found: Found) -> str:
    """Return the few figures of a cell that tell how it went."""
    said = [f"{found.weights / MIB:.0f} MiB of weights"]
    if found.times.get("10"):
        said.append(f"10 s in {_spread(found.times['10'])} ms")
    if found.growth:
        said.append(
            f"reserved {(found.growth[-1][1].reserved or 0) / MIB:.0f} MiB after {found.growth[-1][0]} buffers"
        )
    return ", ".join(said)


def _model(result: Result, model: str) -> str:
    """Return one model's strategies, then NeMo by itself and what memory does in the long run."""
    kind = "words" if model in SHIPPED else ""
    base = _found(result, model, "fp32", kind)
    names = [name for name in (*STRATEGY_TABLE, AGAIN) if _found(result, model, name, kind)]
    rows = [_row(result, model, name, base, kind) for name in names]
    size = (
        f"{base.parameters / 1e6:.1f} M parameters" if base and base.parameters else "no FP32 yet"
    )
    heard = {found.checkpoint for found in result.cells.values() if found.cell.model == model}
    size += ", of an earlier file than is shipped now" if heard - {"", digest(model)} else ""
    lines = [f"{model}, {size}", *_columns(_used([HEAD, UNITS, *rows]))] if rows else [model]
    return "\n".join(
        [*lines, *_eager(result, model), *_nemo(result, model), *_growth(result, model)]
    )


def _used(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the rows without the columns in which nothing was measured."""
    whole = [row for row in rows[2:] if any(row[2:])]
    used = [
        column for column in range(len(HEAD)) if column < 2 or any(row[column] for row in whole)
    ]
    return [tuple(row[column] for column in used) for row in rows]


def _eager(result: Result, model: str) -> Iterable[str]:
    """Say what the strategies take without CUDA graphs, as far as their row could not."""
    alone = [
        name
        for name in STRATEGY_TABLE
        if _found(result, model, name, "eager") and not p50(_found(result, model, name))
    ]
    said = [f"{name} {_ms(p50(_found(result, model, name, 'eager')))} ms" for name in alone]
    if said:
        yield f"  10 s without CUDA graphs: {', '.join(said)}"


def _row(result: Result, model: str, name: str, base: Found | None, kind: str) -> tuple[str, ...]:
    found = _found(result, model, name, kind)
    assert found is not None
    if found.failure:
        return (name, found.failure[:90], *[""] * (len(HEAD) - 2))
    eager = _found(result, model, name, "eager")
    wer, delta, changed = _words(result, found, base)
    return (
        name,
        f"{found.weights / MIB:.0f}",
        _of(found.load_peak.allocated, found.weights),
        _mib(found.ledger.get("steady")),
        _of(_process(found), _process(base)),
        _spread(found.times.get("10")),
        _of(p50(found), p50(base)),
        _ms(p50(eager)),
        _ms(_median(found.times["10"].encoder) if "10" in found.times else None),
        _ms(token(found), 2),
        *(_rtfx(found, size) for size in (1, 8, 32)),
        wer,
        delta,
        changed,
    )


def _words(result: Result, found: Found, base: Found | None) -> tuple[str, str, str]:
    """Return WER, its delta with interval, and words changed per 100 against FP32; empty where
    nothing was heard."""
    if (
        not found.texts
        or base is None
        or len(found.texts) != len(result.clips)
        or len(base.texts) != len(found.texts)
    ):
        return "", "", ""
    clean = normalising.normaliser("en")
    truth, ours, fp32 = (
        [clean(text) for text in texts] for texts in (result.clips, found.texts, base.texts)
    )
    score, floor = scoring.edits(truth, ours), scoring.edits(truth, fp32)
    changed, interval = scoring.edits(fp32, ours), scoring.interval(score, floor)
    delta = (score.rate or 0.0) - (floor.rate or 0.0)
    said = f"{delta:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else f"{delta:+.2f}"
    return f"{score.rate:.2f}", "–" if found is base else said, f"{changed.rate:.1f}"


def _nemo(result: Result, model: str) -> Iterable[str]:
    plain, ours = _found(result, model, "fp32", "nemo"), _found(result, model, "fp32")
    if plain and not plain.failure:
        whole = _median(plain.times["transcribe"].seconds) if "transcribe" in plain.times else None
        said = f"  NeMo by itself, FP32: transcribe() {_ms(whole)} ms"
        said += (
            f", encoder {_ms(_median(plain.times['10'].encoder))} ms" if "10" in plain.times else ""
        )
        if (theirs := token(plain)) is not None:
            said += f", {_ms(theirs, 2)} ms a token"
            if ours and (mine := token(ours)):
                said += f", {theirs / mine:.1f} times asrd's"
        yield said
        if plain.peaks:
            worst = max(plain.peaks, key=lambda name: plain.peaks[name])
            yield f"  largest activation in FP32: {plain.peaks[worst]:.0f} of 65504, in {worst}"
    naive, half = _found(result, model, "fp32", "naive"), _found(result, model, "half")
    if naive and not naive.failure:
        peak = naive.load_peak.reserved
        said = f"  .cuda() then .half(): load peak {_of(peak, naive.weights)} of the weights"
        said += f", process then {_mib(naive.ledger.get('cast'))} MiB"
        if half and not half.failure:
            said += f" (asrd: {_of(half.load_peak.reserved, half.weights)}, {_mib(half.ledger.get('cast'))} MiB)"
        yield said


def _growth(result: Result, model: str) -> Iterable[str]:
    for name in STRATEGY_TABLE:
        found = _found(result, model, name, "growth")
        if found and found.growth:
            marks = ", ".join(
                f"{count}: {(m.reserved or m.process or 0) / MIB:.0f}" for count, m in found.growth
            )
            yield f"  {name}, reserved MiB after so many buffers of random length: {marks}"


# -- claims
# -----------------------------------------------------------------------------------------------------------


def claims(result: Result | None) -> str:
    """Return the Markdown table of what was claimed elsewhere, and what was measured here."""
    rows = [
        f"| {claim} | {measured(result) if result else NOT_YET} |" for claim, measured in CLAIMS
    ]
    return "\n".join(["| claimed | measured |", "|---|---|", *rows])


def _memory_claim(result: Result) -> str:
    model = _canary(result)
    fp32, half = (_found(result, model, name) for name in ("fp32", "half"))
    if not (fp32 and half and _process(fp32) and _process(half)):
        return NOT_YET
    said = f"{model}: weights {fp32.weights / GIB:.2f} -> {half.weights / GIB:.2f} GiB, "
    said += (
        f"process {_gib(fp32)} -> {_gib(half)} GiB, {_of(_process(half), _process(fp32))} of FP32's"
    )
    return said


def _peak_claim(result: Result) -> str:
    model = _canary(result)
    half, naive = _found(result, model, "half"), _found(result, model, "fp32", "naive")
    if not half or half.load_peak.process is None:
        return NOT_YET
    said = f"{model}, half: process {half.load_peak.process / GIB:.2f} GiB at the end of loading, "
    said += f"torch's peak {_of(half.load_peak.allocated, half.weights)} of the weights"
    if naive and naive.load_peak.process:
        said += f"; `.cuda().half()`: {naive.load_peak.process / GIB:.2f} GiB"
    return said


def _canary(result: Result) -> str:
    """Return the model that the claims were made of, or the one of its kind that was measured."""
    return "canary-1b" if _found(result, "canary-1b", "half") else "canary-1b-flash"


def _latency_claim(result: Result) -> str:
    return _latencies(result, "half")


def _bfloat16_claim(result: Result) -> str:
    return _latencies(result, "bfloat16")


def _tf32_claim(result: Result) -> str:
    return _latencies(result, "tf32", faster=True)


def _latencies(result: Result, name: str, faster: bool = False) -> str:
    """Return a strategy's 10-s latency over FP32's for each large model, with CUDA graphs and
    without."""
    said = []
    for model in NAMES:
        shown = [_ratio(result, model, name, kind, faster) for kind in ("", "eager")]
        if any(shown):
            eager = f"eager {shown[1]}" if shown[1] else ""
            said.append(
                f"{model} {shown[0]} ({eager})" if all(shown) else f"{model} {shown[0] or eager}"
            )
    return f"{'faster by' if faster else 'of FP32'}: " + ", ".join(said) if said else NOT_YET


def _ratio(result: Result, model: str, name: str, kind: str, faster: bool) -> str:
    one, base = (p50(_found(result, model, strategy, kind)) for strategy in (name, "fp32"))
    if not one or not base:
        return ""
    return f"{base / one:.2f}x" if faster else f"{one / base:.2f}"


def _wer_claim(result: Result) -> str:
    said = []
    for model in SHIPPED:
        found, base = _found(result, model, "half", "words"), _found(result, model, "fp32", "words")
        if found and base and (words := _words(result, found, base))[1]:
            said.append(f"{model}, half: {words[1]} points, {words[2]} words changed in 100")
    return "; ".join(said) or NOT_YET


def _savings_claim(result: Result) -> str:
    said = []
    for model in NAMES:
        found, base = _found(result, model, "bfloat16"), _found(result, model, "fp32")
        if found and base and (now := _process(found)) and (before := _process(base)):
            said.append(f"{model} {100 * (1 - now / before):.0f} %")
    return "process, bfloat16: " + ", ".join(said) if said else NOT_YET


CLAIMS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("FP16 takes Canary-1B from 3.6 to 1.8 GB", _memory_claim),
    ("peak below 2.5 GB", _peak_claim),
    ("FP16 latency at most FP32's", _latency_claim),
    ("WER within 0.5", _wer_claim),
    ("bfloat16 about 30 % faster", _bfloat16_claim),
    ("TF32 1.3 times as fast", _tf32_claim),
    ("memory down by 40 to 50 %", _savings_claim),
)


# -- figures
# ----------------------------------------------------------------------------------------------------------


def _found(result: Result, model: str, strategy: str, kind: str = "") -> Found | None:
    return result.cells.get(f"{model} {strategy}" + (f" {kind}" if kind else ""))


def p50(found: Found | None) -> float | None:
    """Return the median seconds of a 10-s buffer in the worker; None where it was not measured."""
    return (
        _median(found.times["10"].seconds)
        if found and not found.failure and "10" in found.times
        else None
    )


def token(found: Found) -> float | None:
    """Return the median seconds of one token of an autoregressive decoder; None for CTC, whose
    tokens cost nothing."""
    times = found.times.get("10")
    if times is None or "ctc" in found.cell.model:
        return None
    spent = [
        (whole - encoder) / count
        for whole, encoder, count in zip(times.seconds, times.encoder, times.tokens, strict=True)
        if count
    ]
    return _median(spent)


def _rtfx(found: Found, size: int) -> str:
    took = _median(found.batches.get(str(size), []))
    return f"{size * SECONDS / took:.0f}" if took else ""


def _process(found: Found | None) -> int | None:
    return found.ledger["steady"].process if found and "steady" in found.ledger else None


def _gib(found: Found) -> str:
    return f"{(_process(found) or 0) / GIB:.2f}"


def _mib(memory: Memory | None) -> str:
    return f"{memory.process / MIB:.0f}" if memory and memory.process is not None else ""


def _of(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value is not None and base else ""


def _ms(seconds: float | None, digits: int = 1) -> str:
    return f"{1000 * seconds:.{digits}f}" if seconds is not None else ""


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _spread(times: Times | None) -> str:
    percentiles = scoring.percentiles(times.seconds) if times else None
    return f"{percentiles.p50:.1f}/{percentiles.p95:.1f}" if percentiles else ""


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    # A row that failed has a sentence in the place of its figures.
    whole = [row for row in rows if any(row[2:])] or rows[:2]
    widths = [max(len(row[column]) for row in whole) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = zip(row, widths, strict=True)
        lines.append(
            "  ".join(
                [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
            ).rstrip()
        )
    return lines
