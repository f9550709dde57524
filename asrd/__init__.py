"""asrd: a dictation daemon on NVIDIA NeMo speech models that tells the truth about precision.

The daemon holds no weights. The worker holds no audio. A worker has one precision for life.

Reading order, which is the order of the packages: each imports only from those above it.

    errors      every error a user can see: message, hint, exit code
    text        what text may hold: characters, words of scripts, file names, spans of time
    paths       where a user's files are, and how one is written whole
    hints       which command starts, ends or explains the daemon here
    scoring     word edits, bootstrap intervals and percentiles (pure)
    journal     events into the systemd journal, and the log beside them
    precision   strategies as values, the plan for a card, the fallback order, NVML and memory readings
    protocol    what crosses between the daemon and its worker: each message as a type
    framing     messages as frames on a pipe
    terminal    what a person reads: safe text, tables, progress; parsers of arguments
    config      settings from defaults, file, environment and flags; voice commands; faults to rehearse
    audio       audio in: files of any kind, microphones, levels, resampling, voice activity detection
    recordings  recordings on disk until their text is out, and what each sink took of it
    models      models by name: where their files are, what a file says of itself, download
    engine      plans, starts and supervises the one worker; what tune and compare found here
    worker      the process that runs the model; THE ONLY FOLDER THAT IMPORTS TORCH; started, never imported
    streaming   one recording on its way to text: segments, committed words, voice commands
    evaluation  compare: runs, metrics, judging, selection, report
    desktop     the graphical session: keys, clipboard, notifications; sinks of text
    dictation   one key press to text: recorder, queue, the engine in service, fallback while it runs
    daemon      the service: life, requests over the control socket, sd_notify, suspend
    cli         one file a verb; prints; exit codes
"""

__version__ = "0.1.0"
