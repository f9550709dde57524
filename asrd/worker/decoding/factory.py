"""The decoder of a model, by the model's class."""

from __future__ import annotations

from typing import Any

from asrd.errors import ModelError
from asrd.worker.decoding.aed import Aed
from asrd.worker.decoding.ctc import Ctc
from asrd.worker.decoding.decoder import Decoder
from asrd.worker.decoding.transducer import Transducer


def decoder_for(
    model: Any, *, source_lang: str = "en", target_lang: str = "en", pnc: bool | None = None
) -> Decoder:
    """Return the decoder for a restored model, by its exact class: subclasses ask for more than an
    encoder output.

    Args:
        model: a NeMo model in eval mode; a transducer's decoding strategy is set here, once.
        source_lang: the language spoken, for Canary; of several tokenizers in one,
            `boost_phrases` uses that of this language.
        target_lang: the language to write, for Canary; another than source_lang is a translation.
        pnc: whether Canary writes punctuation and capitals; None leaves that to the checkpoint.

    The other families write what they were trained to write.

    Raises:
        ModelError: a model of a kind, or a prompt format, that is not supported.
        ConfigError: a language that the model's tokenizer has not.
    """
    match type(model).__name__:
        case "EncDecCTCModelBPE" | "EncDecCTCModel":
            return Ctc(model, source_lang)
        case "EncDecRNNTBPEModel" | "EncDecRNNTModel":
            return Transducer(model, source_lang)
        case "EncDecHybridRNNTCTCBPEModel" | "EncDecHybridRNNTCTCModel":
            return Transducer(model, source_lang, "hybrid")
        case "EncDecMultiTaskModel":
            return Aed(model, source_lang, target_lang, pnc)
        case other:
            raise ModelError(
                f"a model of class {other} is not supported",
                "supported: CTC, RNNT, TDT, hybrid, Canary",
            )
