"""Plans, starts and supervises the one worker; what tune and compare found here.

A file imports only from files above it, and from packages below this one.

    baseline   what compare measured here, kept for the daemon's own figures
    tuned      what tune found here, kept: the strategy that auto starts with, its figures, and whether it still holds
    model_facts  the facts of a model before a worker is started: header, languages
    estimates  what each strategy would need on a card: exact, estimated and measured figures
    planner    which strategy would run, what each needs, and why: gathers facts once, then decides
    scratch    a folder for what a worker unpacks; removes those that killed daemons left
    process    the worker from outside: its process, its frames, how it was lost
    reception  what a worker sends, made harmless: its strings, and the times of its words (pure)
    verify     whether a worker runs in the precision that it was started with (pure)
    batching   buffers of several callers that wait for the one worker; which of them are asked together
    fallback_chain  the candidates of one engine: in service, behind it, left, and why (pure)
    checks     around the start of a worker: file, room on the card, limit
    worker_session  the worker in service and what it is asked: one message at a time, with deadlines
    engine     holds the one worker: start on a candidate, ask, deadline, next candidate
    capacity   whether a second worker has room beside the one in service, and where
"""
