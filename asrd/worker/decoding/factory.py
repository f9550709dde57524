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
        source_lang, target_lang, pnc: for Canary: language spoken, language written (another one:
        translation),
            punctuation and capitals, None leaving those to the checkpoint. The other families write
            what they were trained to; of several tokenizers, `boost_phrases` takes that of source_lang.

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
