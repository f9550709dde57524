"""One key press to text: recorder, queue, the engine in service, fallback while it runs.

A file imports only from files above it, and from packages below this one.

    recording          one recording between the key and its text: audio on disk, words, result
    metrics            the journal's entries about a worker and a recording
    fallback_triggers  the figures of a candidate that are reason enough to leave it (pure)
    fallback_monitor   candidates that were left: who is notified, when each may return
    shadow             one recording in N once more in FP32: how many words differ
    activity           who needs the engine, who may use it now, since when nobody does
    engine_loader      engines for the slot: made, started, tested, and how far a start has come
    engine_slot        the engine in service: loaded, replaced, unloaded, suspended, restored
    cleanup            the end of a recording once its text is out: read for the shadow, deleted or kept
    transcriber        the queue of recordings: each becomes text by the engine in the slot
    idle_tasks         work for the time while nobody speaks: restoring a better candidate, the shadow
    recorder           the recording that goes on, and the microphone under it
"""
