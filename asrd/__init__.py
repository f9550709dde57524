"""asrd: a dictation daemon on NVIDIA NeMo speech models that tells the truth about precision.

The daemon holds no weights. The worker holds no audio. A worker has one precision for life.

Reading order, which is dependency order: a file imports only from files above it.

    errors       every error a user can see: message, hint, exit code
    wording      words that many messages share: a count with its noun, a name said once (pure)
    characters   which characters a text may hold: in a model's words, and on a terminal (pure)
    spacing      where words end and what stands between them, in scripts with and without spaces (pure)
    filenames    file names are bytes: how one is shown, sent as JSON, and read from a text
    terminal     what a person reads: text, JSON and complaints, with nothing in them that a terminal obeys
    listing      rows under headings, in which no name is broken, however narrow the terminal
    arguments    a parser whose complaints are one sentence and a hint
    places       where a user's files are, and how one is written whole; imports little
    durations    how people write a span of time or a date (pure)
    spellings    other spellings of strategies, dtypes and devices (pure)
    hints        which command starts, ends or explains the daemon here, for the units that are installed
    text_files   text files that a user wrote: UTF-8, with or without marks, any line ends
    precision    strategies as values, presets, plan() -> rungs + reason (pure)
    wire         frames between processes, and each message as a type
    ledger       what each figure of memory is, in words; how much a worker gained while it worked (pure)
    ladder       which rung follows one that did not hold, what a worker must be, when a better one may return (pure)
    faults       trouble that a user can rehearse: what is asked for, and how a worker then fails
    spoken       what a speaker says to the text: words and a table -> marks, breaks, corrections (pure)
    deliveries   what each sink accepted of a recording's text, on disk before each attempt and after it
    legacy       older spellings of the precision, folded into strategy (pure)
    misnomers    what a wrong setting, table or line of TOML was meant to be (pure)
    conversion   a setting as it was written -> its value, or a complaint that helps
    proposals    a line or variable that a hint proposes, tried before it is written (pure)
    config       frozen settings <- defaults < TOML < ASRD_* < flags
    systemd      readiness, watchdog, inherited sockets; events into the journal
    untrusted_yaml  YAML of a stranger read within bounds, its references resolved (pure)
    model_config  what a model's config may say: classes, files, sizes; the rest is left out (pure)
    archive      the members of a .nemo file: plain names, each once, within bounds
    checkpoint   what a .nemo file says of itself: kind, tensors, sizes, where they lie; reads no weights
    weights      what a model will weigh under a precision: exact, and estimates beside it
    known        models on the hub by their architecture, before their files are here
    components   which parts of a model can go down by themselves (pure)
    models       names, and where the file of each lies
    modelchoice  whether a model is chosen; what runs on files and what is said where none is
    hub          which file of the hub a name means, and bytes of it; what the hub says in our errors
    partfile     a file of which a part is here: over HTTP ranges, or the beginning of a download
    inspection   a model on the hub, judged by its header before its file is here, or while it arrives
    download     a process of its own: a model's file into the hub's cache; goes on where it was broken off
    channels     several channels -> one: their mean, or the loudest where they cancel (pure)
    library_noise  what a library in C prints by itself: out of standard error, into the debug log
    layout       bytes of a file that a decoder is given, whatever lies around them; tags, padding (pure)
    mpeg_files   MP3 frame by frame: how many, joined files, the last one (pure)
    audio_ends   where the audio of a file ends: by its header, and by what follows it (pure)
    chunked_files  the headers of WAV, RF64, Wave64, AIFF, CAF, 8SVX and AU (pure)
    fixed_headers  the headers of SPH, VOC, AVR, HTK, MAT and what else is one header and samples (pure)
    packet_files  media files of packets (mpg, rm, thd, dts, avi, wma): whether the last one is whole (pure)
    streams      Ogg and FLAC: streams that follow each other in one file (pure)
    containers   what a sound file holds by its own bytes: its streams, and whether its end is missing
    decoder_messages  what libsndfile and libav complain of, in words of ours (pure)
    sndfile      one stream through libsndfile, to its end
    media        what libsndfile cannot decode (m4a, mp4, webm ...), by a process of its own
    media_decoder  a process of its own that decodes one open file by PyAV or ffmpeg
    audio        AudioBlock; sound files of any kind -> float32 mono 16 kHz
    levels       how loud sound is: its speech, what is between, what was cut off (pure)
    tape         sound at any rate, in pieces of any size -> blocks of 20 ms on the clock
    soundaccess  why nothing can be recorded here: each link from a sound server to PortAudio, and what mends it
    alsa_config  whether PortAudio can start with ALSA's configuration, which else ends the process
    soundserver  what PipeWire or PulseAudio says: its sources, and that they changed
    devices      what there is to record from, and which of it is meant
    microphone   a device through PortAudio: opened, watched, given up, opened again
    silero       Silero's network in numpy: chunks of 32 ms -> probabilities of speech
    vad          blocks -> speech and pauses
    capture      live sound: microphone, file in real time, pipe; a microphone tried for a moment
    window       the ten seconds, on one integer sample clock
    takes        what was said and is not yet text: each take on disk, retention
    recording_index  how many recordings wait: kept in memory, counted anew when their folder changes
    baseline     what compare measured here, kept for the daemon's own figures
    failures     what torch and CUDA say when they fail: the kind of failure, and what helps (pure)
    card_power   whether an NVIDIA card sleeps or could, by what the kernel tells; wakes none
    vram         the ledger: five named figures, NVML and torch side by side
    evidence     what tune found here, kept: the strategy that auto takes, by what figures, and whether it still holds
    forecast     what each strategy would need on a card, and which would run: values
    downloader   a download from outside: its process, its reports, how it ended
    worker       the worker from outside: its process, its frames, its scratch folder, how it was lost
    reception    what a worker sends, made harmless: its strings, and the times of its words (pure)
    engine       holds the one worker: start on a rung, ask, deadline, next rung
    card         worker: CUDA started on a card, or why it cannot be; memory held within a limit
    lhotse_import  worker: lhotse kept from making a folder in the home
    startup      worker: NeMo imported without torch's compiler; a model's weights read from its file, once
    encoder      worker: NeMo's FastConformer with what one whole buffer does not need left out
    int8         worker: layers that hold a matrix as int8
    modules      worker: a NeMo model as components: who holds which tensors, and what they weigh
    boundaries   worker: casts where modules of different dtypes meet
    abilities    worker: what a device can do with a model's layers, tried on them
    casting      worker: apply a precision to a model and read back what became of it
    attention    worker: Canary's decoder with its keys and values kept
    graphs       worker: work of fixed shapes captured once and replayed; the encoder over few shapes
    straight     worker: the encoder on a CPU as one straight program over its tensors
    steps        worker: Canary's decoder in tensors of one size, a step always the same work
    boosting     worker: a vocabulary's phrases as a tree that gives their tokens a bonus
    canary       worker: Canary's prompt, greedy search, guard, and times from its attention
    timestamps   worker: timed tokens -> words on the sample clock
    decoding     worker: encoder output -> timed tokens, per model family
    cacheaware   worker: drafts of a cache-aware model at the price of what is new
    recognizer   worker: load, cast, self-test, recognise, measure; the only program that imports torch
    transcript   hypotheses -> committed text, joined by word times
    dictation    one recording on its way to text: detector, window, worker, transcript
    progress     how far long work has come: bars on a terminal, few lines in a pipe
    client       asking a daemon that may be busy: again, after pauses that grow
    control      the control socket from outside: the verbs that only ask the daemon
    transcribe   verb: files -> text
    findings     what a comparison found: its values, and in words what each means
    manifest     NeMo manifests: lines -> clips with their text
    normalising  texts -> words to be counted, without what is only typography (pure)
    verdict      word edits, intervals, the noise floor, criteria, verdicts (pure)
    choice       what was measured -> the cheapest strategy that qualifies, and why others do not (pure)
    grids        tables of figures for a terminal, in which no name and no number is broken (pure)
    plots        the report's plots as SVG (pure)
    report       one comparison -> table, JSON, HTML (pure)
    compare      verb: every strategy in a fresh worker, measured and judged
    catalogue    verbs: models, plan, config
    tune         verb: the candidates of auto measured here, and the verdict that auto goes by
    desktop      the graphical session: its variables, its small programs, notifications, cues
    x11          the X server asked directly: who fetches the clipboard, what the keyboard is; a program of its own
    seat         whether a Wayland session has a keyboard, asked of the compositor
    selections   how a display's selections are read and set, and what has a lent text and sees it fetched
    clipboard    a text in the clipboard for good, or lent for one paste and given back
    keyboard     keys into the focused window: typing, the paste chord, what works here
    sinks        where text goes: stdout, the window, the clipboard, a command
    logind       suspend and resume, with a delay inhibitor
    server       the control socket from inside: lines, limits, clients
    recording    one recording between the key and its text: sound on disk, words, what became of it
    figures      what a take cost, as the journal tells it
    triggers     what of a rung's figures is reason enough to leave it (pure)
    demotion     a rung was left: who is told, what is remembered, when it may return
    headroom     whether a second worker has room beside the one in service, and where
    shadow       one take in N once more in FP32: how many words differ
    turns        who may use the one engine when: many at once, or one alone who exchanges it
    cleanup      what is done with a recording once its text is out: read for the shadow, deleted or kept
    scribe       recordings -> text by the one engine, and which engine that is
    rest         what waits until nobody speaks: a better rung again, the shadow
    recorder     the recording that is going on, and the microphone under it
    keypress     a key that is held or bounces, told from one that is pressed again
    replies      what the daemon says to the verbs: sentences made of its state (pure)
    retry        kept recordings once more: claimed, recognised from where their text ends, sent to whom it is missing
    daemon       verb run: states, the key, reload, status, the end
    service      verb: the user service, installed, removed, printed
    history      verb report: the figures of a day from the journal alone
    doctor       verb: what works on this machine, what is missing, what fixes it
    cli          verb -> module:function; nothing heavy imported
"""

__version__ = "0.1.0"
