"""Strategies as values, the plan for a card, the fallback order, NVML and memory readings.

A file imports only from files above it, and from packages below this one.

    spellings    other spellings of strategies, dtypes and devices (pure)
    strategies   precision strategies as values: dtypes, storage, phases, presets and their names (pure)
    failures     what each kind of failure means for its candidate: one table, kind -> action (pure)
    plan         the request and the facts of a card -> candidates and the reason (pure)
    needs        which candidates need less memory, and which fit into a limit (pure)
    ledger       what each figure of memory is, in words; how much a worker gained while it worked (pure)
    fallback     which candidate follows one that failed, and when a better one may return (pure)
    cuda_errors  what torch and CUDA say when they fail: the kind of failure, and what helps (pure)
    gpu_power    whether an NVIDIA card sleeps or could, by what the kernel says; wakes none
    kernel_facts  what the kernel says of a process, the processor and the driver; wakes no card
    nvml         NVML while it is asked, and one question to it
    gpus         the cards that CUDA sees: which there are, which is meant, what is in use
    memory       one reading of the memory of a process and its card
    readings     memory of a process and its card, read from NVML and the kernel
"""
