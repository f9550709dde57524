"""Models by name: where their files are, what a file says of itself, download.

A file imports only from files above it, and from packages below this one.

    untrusted_yaml   YAML of a stranger read within bounds, its references resolved (pure)
    config_schema    what a model's config may name: classes by their place, keys, sizes, files (pure)
    config_classes   what a config would have called, against what is admitted at each place (pure)
    config_sizes     the sizes of a config, against the tensors of the same file (pure)
    config_files     the files that a config names, and its entries that are emptied or unknown (pure)
    model_config     a config read, checked and left with what inference needs (pure)
    archive          the members of a .nemo file: plain names, each once, within bounds
    tensors          a tensor of a checkpoint: name, shape, dtype and where its numbers lie (pure)
    unpickler        the pickle that describes a torch file's tensors, read without running code
    torch_file       the tensors that a torch file describes, and where their numbers lie
    checkpoint       what a .nemo file says of itself: kind, tensors, sizes, where they lie; reads no weights
    memory_estimate  what a model will weigh under a precision: exact, and estimates beside it
    architectures    models on the hub by their architecture, before their files are here
    names            names, and where the file of each lies
    choice           whether a model is chosen; what runs on files and what is said where none is
    hub              which file of the hub a name means, and bytes of it; what the hub says in our errors
    part_file        a file of which a part is here: over HTTP ranges, or the beginning of a download
    inspection       a model on the hub, judged by its header before its file is here, or while it arrives
    download         a process of its own: a model's file into the hub's cache; goes on where it was broken off
    downloader       a download from outside: its process, its reports, how it ended
"""
