"""asrd: a dictation daemon on NVIDIA NeMo speech models that tells the truth about precision.

The daemon holds no weights. The worker holds no audio. A worker has one precision for life.

Reading order, which is dependency order: a file imports only from files above it.

    errors       every error a user can see: message, hint, exit code
    precision    strategies as values, presets, plan() -> rungs + reason (pure)
    wire         frames between processes, and each message as a type
    config       frozen settings <- defaults < TOML < ASRD_* < flags
    checkpoint   what a .nemo file says of itself: kind, tensors, sizes; opens no weights
    weights      what a model will weigh under a precision: exact, and estimates beside it
    known        models on the hub by their architecture, before their files are here
    models       names, cache, download
    audio        AudioBlock; sound files of any kind -> float32 mono 16 kHz
    vad          blocks -> speech and pauses
    window       the ten seconds, on one integer sample clock
    vram         the ledger: five named figures, NVML and torch side by side
    engine       holds the one worker: start on a rung, ask, deadline, next rung
    casting      worker: apply a precision to a model and read back what became of it
    attention    worker: Canary's decoder with its keys and values kept
    canary       worker: Canary's prompt, greedy search, guard, and times from its attention
    decoding     worker: encoder output -> timed tokens -> words, per model family
    recognizer   worker: load, cast, self-test, recognise, measure; the only program that imports torch
    transcript   hypotheses -> committed text, joined by word times
    dictation    one recording on its way to text: detector, window, worker, transcript
    transcribe   verb: files -> text
    findings     what a comparison found: its values, and in words what each means
    manifest     NeMo manifests: lines -> clips with their text
    verdict      word edits, intervals, the noise floor, criteria, verdicts (pure)
    progress     how far long work has come: bars on a terminal, few lines in a pipe
    plots        the report's plots as SVG (pure)
    report       one comparison -> table, JSON, HTML (pure)
    compare      verb: every strategy in a fresh worker, measured and judged
    forecast     what each strategy would need on a card, and which would run: values
    catalogue    verbs: models, plan, config
    cli          verb -> module:function; nothing heavy imported
"""

__version__ = "0.1.0"
