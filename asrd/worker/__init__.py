"""The process that runs the model; THE ONLY FOLDER THAT IMPORTS TORCH; started, never imported.

A file imports only from files above it, and from packages below this one.

    device                    CUDA started on a card, or the reason why not; memory held within a limit
    loading.lhotse_import     lhotse kept from making a folder in the home
    loading.construction      layers without numbers, and a limit to their parameters, while a model is built
    loading.unpacking         a checkpoint's config and small files, unpacked and checked
    loading.restore           a checkpoint as a NeMo model, whose numbers are read from its file once
    encoder.conformer         NeMo's FastConformer without the masks that one whole buffer does not need
    casting.quantize          layers that hold a matrix as int8
    casting.components        a NeMo model as components: which module holds which tensors, their dtypes and bytes
    casting.boundaries        casts where modules of different dtypes meet
    casting.capabilities      what a device can do with a model's layers, tried on them
    casting.targets           the dtype of each module, and the cast itself
    casting.cast              a precision applied to a model, and the dtypes read back
    decoding.kv_cache         Canary's decoder with its keys and values kept
    encoder.cuda_graphs       work of fixed shapes captured once and replayed; the encoder over few shapes
    encoder.functional        the encoder on a CPU as one function over its tensors
    decoding.static_decoder   Canary's decoder in tensors of one size, a step always the same work
    decoding.phrase_boosting  a vocabulary's phrases as a tree that gives their tokens a bonus
    decoding.alignment        word times from attention weights by dynamic time warping
    decoding.canary_prompt    the tokens that begin a Canary decoding
    decoding.canary           Canary's greedy search, its guard, and times from its attention
    decoding.word_times       timed tokens -> words on the sample clock
    decoding.decoder          encoder output -> timed tokens: what the decoder of every family does
    encoder.cache_aware       partial results of a cache-aware model, each at the price of its new audio
    loading.nemo_import       NeMo imported without torch's compiler
    loading.libraries         torch and NeMo imported once, quietly
    decoding.ctc              CTC: frame-wise probabilities -> timed tokens
    decoding.transducer       RNN-T and TDT: greedy search over joint and prediction network -> timed tokens
    decoding.aed              Canary: attention encoder-decoder -> timed tokens
    decoding.factory          the decoder of a model, by the model's class
    memory_meter              readings of this worker's memory: at each stage of loading, at the peak, and now
    loading.model_loader      a model loaded under one precision: restored, cast and moved to its device
    recognizer                a loaded model that answers buffers of samples
    self_test                 the warm-up, and a clip whose text is shipped
    startup                   the order in which a worker gets ready, and the message that says what it then is
    fault_injection           how a worker fails when a fault was asked for
    __main__                  the process loop of the worker: requests from standard input, replies to standard output
"""
