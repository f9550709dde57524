"""One key press to text: recorder, queue, the engine in service, fallback while it runs.

A file imports only from files above it, and from packages below this one.

    recording          one recording between the key and its text: sound on disk, words, what became of it
    metrics            what a take cost, as the journal tells it
    fallback_triggers  what of a candidate's figures is reason enough to leave it (pure)
    fallback_monitor   a candidate was left: who is told, what is remembered, when it may return
    shadow             one take in N once more in FP32: how many words differ
    activity           who needs the engine, who may use it now, since when nobody does
    engine_loader      engines for the slot: made, started, tested, and how far a start has come
    engine_slot        the engine in service: loaded, replaced, unloaded, suspended, restored
    cleanup            what is done with a recording once its text is out: read for the shadow, deleted or kept
    transcriber        the queue of recordings: each becomes text by the engine in the slot
    idle_tasks         what waits until nobody speaks: restoring a better candidate, the shadow
    recorder           the recording that is going on, and the microphone under it
"""
