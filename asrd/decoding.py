"""What the encoder put out -> timed tokens, for each family of models.

Greedy decoding, and its text is NeMo's own: CTC by collapsing the best path, transducers by NeMo's greedy_batch
whatever strategy their checkpoint names, Canary as `canary` says. NeMo's own CUDA graphs are switched on by `replay`
only, which is for a process that loads nothing more: capturing one can break torch.load in the whole process.

Knows models, tokens and frames. Knows no sound: NeMo's transcribe() pads what is shorter than a second with silence on
both sides, and who wants its text for such a buffer pads it so before encoding. Runs in the worker, on any device and
in any dtype that casting leaves, in and out of autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from . import canary
from .abilities import has_lstm
from .boosting import Boost, token_ids
from .canary import weight_dtype
from .errors import ConfigError, ModelError
from .graphs import ROWS, Recorder, arithmetic
from .timestamps import Decoded, say, timed

LINGER = 2
"""Frames that a token goes on after its last one where no other follows: a spike is shorter than what it stands for."""


class Decoder(Protocol):
    """Turns the encoder's output for one buffer into text and timed tokens."""

    family: str
    """ctc, rnnt, tdt, hybrid or aed."""

    def __call__(self, encoded: Tensor, length: Tensor) -> Decoded:
        """Return what was said, for an encoder output [1, D, T] of which `length` [1] frames hold sound."""
        ...

    def several(self, encoded: Tensor, lengths: Tensor, paths: Sequence[Path | None] = ()) -> list[Decoded]:
        """Return what was said in each of several buffers [B, D, T] of which `lengths` [B] frames hold sound.

        Of a buffer that has one of `paths`, what follows that.
        """
        ...

    def after(self, text: str, frames: int) -> Path | None:
        """Return a path by which `text` was said in a buffer's first `frames`; None where nothing can go on from it."""
        ...

    def settle(self) -> None:
        """Take the weights to be final: what is made of them may be kept from here on."""
        ...

    def replay(self, recorder: Recorder) -> None:
        """From here on replay whole steps as CUDA graphs, as `recorder` allows and tells; it changes no text."""
        ...

    def prefer(self, phrases: Sequence[str], weight: float) -> None:
        """From here on prefer these phrases, at least one, where the sound leaves a choice, by a weight in nats.

        Raises ConfigError: a phrase that the model cannot write, a model or a search that has no room for preferences.
        """
        ...


class Path(NamedTuple):
    """How far greedy decoding has come over a buffer's first `frames`; what follows can be decoded from here."""

    frames: int = 0
    ids: tuple[int, ...] = ()
    """CTC: the best token of each frame, blanks too. Transducers: the tokens said."""
    starts: tuple[int, ...] = ()
    """Transducers: the frame of each token."""
    durations: tuple[int, ...] = ()
    """TDT: what the model says of each token's length, in frames."""
    sure: tuple[Any, ...] = ()
    """The probability of each id; None where the decoder gives none."""
    state: Any = None
    """Transducers: NeMo's decoder state, which decoding on from it leaves as it is. CTC: that of preferred phrases."""


class Resumable(Decoder, Protocol):
    """A decoder that reads from left to right, and so can go on where it stopped."""

    def resume(self, path: Path, encoded: Tensor) -> Path:
        """Return the path with the frames of an encoder output [1, D, T] behind it; `path` itself stays valid."""
        ...

    def read(self, path: Path) -> Decoded:
        """Return what was said up to a path's end."""
        ...


def decoder_for(model: Any, *, source_lang: str = "en", target_lang: str = "en", pnc: bool | None = None) -> Decoder:
    """Return the decoder for a restored model, by its exact class: subclasses ask for more than an encoder output.

    Args:
        model: a NeMo model in eval mode; a transducer's decoding strategy is set here, once.
        source_lang, target_lang, pnc: for Canary: language spoken, language written (another one: translation),
            punctuation and capitals, None leaving those to the checkpoint. The other families write what they were
            trained to; of several tokenizers, `prefer` takes that of source_lang.

    Raises:
        ModelError: a model of a kind, or a prompt format, that is not known here.
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
            raise ModelError(f"a model of class {other} is not supported", "supported: CTC, RNNT, TDT, hybrid, Canary")


class Ctc:
    """Greedy CTC: the best token of each frame, runs and blanks collapsed."""

    family = "ctc"

    def __init__(self, model: Any, language: str) -> None:
        self._model, self._blank = model, int(model.decoding.blank_id)
        self._language = language
        self._boost: Boost | None = None
        layers = getattr(model.decoder, "decoder_layers", None)
        if layers is not None:  # the log-softmax above then runs in float32, whatever the layers are stored in
            layers.register_forward_hook(lambda _, args, logits: logits.float())

    def __call__(self, encoded: Tensor, length: Tensor) -> Decoded:
        """Return what was said."""
        return self.read(self.resume(Path(), encoded[:, :, : int(length[0])]))

    @torch.inference_mode()
    def resume(self, path: Path, encoded: Tensor) -> Path:
        """Return the path over `encoded` too."""
        count = encoded.shape[2]
        if not count:
            return path
        scores, state = self._scores(encoded)[0], path.state
        best, ids = scores.max(-1)
        if self._boost is not None:
            chosen, state = self._preferred(scores.cpu(), ids.tolist(), self._boost, path)
            ids = chosen.to(ids.device)
            best = scores.gather(1, ids[:, None])[:, 0]
        sure = path.sure + tuple(best.exp().tolist())
        return Path(path.frames + count, path.ids + tuple(ids.tolist()), sure=sure, state=state)

    def _scores(self, encoded: Tensor) -> Tensor:
        """Return the log probability of every token [B, T, V]."""
        encoded = encoded.to(weight_dtype(self._model.decoder))
        with _recurrent(encoded):
            return torch.log_softmax(self._model.decoder(encoder_output=encoded).float(), -1)

    def read(self, path: Path) -> Decoded:
        """Return what was said: runs and blanks collapsed."""
        ids, count = path.ids, path.frames
        changes = [t for t in range(1, count) if ids[t] != ids[t - 1]]
        runs = [(s, e) for s, e in pairwise((0, *changes, count)) if ids[s] != self._blank] if count else []
        starts = [s for s, _ in runs]
        sure = [max(path.sure[s:e]) for s, e in runs]
        tokens = timed([ids[s] for s in starts], starts, [e + LINGER for _, e in runs], sure, count)
        return Decoded(say(self._model, [token.id for token in tokens]), tokens, False)

    def after(self, text: str, frames: int) -> Path | None:
        """Return None: what a frame is depends on no other."""
        return None

    @torch.inference_mode()
    def several(self, encoded: Tensor, lengths: Tensor, paths: Sequence[Path | None] = ()) -> list[Decoded]:
        """Return what was said in each buffer, all in one pass where nothing is preferred."""
        if len(lengths) == 1 or self._boost is not None or not encoded.shape[2]:
            return _one_by_one(self, encoded, lengths)
        best, ids = self._scores(encoded).max(-1)
        rows = zip(ids.tolist(), best.exp().tolist(), lengths.tolist(), strict=True)
        return [self.read(Path(count, tuple(row[:count]), sure=tuple(sure[:count]))) for row, sure, count in rows]

    def settle(self) -> None:
        """Keep nothing."""

    def replay(self, recorder: Recorder) -> None:
        """Replay nothing: it is one layer, and all frames at once."""
        recorder.tell("decoder", "not replayed: one layer needs no graph")

    def prefer(self, phrases: Sequence[str], weight: float) -> None:
        """Prefer these phrases from here on."""
        self._boost = Boost(self._model, phrases, weight, self.family, self._language)

    def _preferred(self, scores: Tensor, path: list[int], boost: Boost, before: Path) -> tuple[Tensor, int]:
        """Return the best path [T] over log scores [T, V], each token chosen anew where it begins, as NeMo does it.

        And the state of the phrases at its end, for what follows.
        """
        last, state = (before.ids or (self._blank,))[-1], before.state or 0
        for frame, token in enumerate(path):
            if token not in (self._blank, last):
                barred = {last} - {self._blank}
                path[frame], state = boost.choose(scores[frame, : self._blank], state, barred)
            last = path[frame]
        return torch.tensor(path), state


class Transducer:
    """RNNT and TDT: NeMo's label-looping greedy_batch, with times, durations and confidence switched on."""

    def __init__(self, model: Any, language: str, family: str = "") -> None:
        from omegaconf import OmegaConf

        config = OmegaConf.create(OmegaConf.to_container(model.cfg.decoding, resolve=True))
        self._durations = list(config.get("durations") or [])
        self.family = family or ("tdt" if self._durations else "rnnt")
        confidence = {"method_cfg": {"name": "max_prob", "alpha": 1.0}, "exclude_blank": True}
        confidence["preserve_frame_confidence"] = not config.get("big_blank_durations")
        ours = {"strategy": "greedy_batch", "preserve_alignments": False, "compute_timestamps": False}
        ours |= {"greedy": {"use_cuda_graph_decoder": False, "preserve_alignments": False}}
        ours |= {"confidence_cfg": confidence, "tdt_include_token_duration": bool(self._durations)}
        model.change_decoding_strategy(OmegaConf.merge(config, ours), verbose=False)
        self._model, self._language = model, language
        self._recorder: Recorder | None = None
        self._boost: Boost | None = None

    def __call__(self, encoded: Tensor, length: Tensor) -> Decoded:
        """Return what was said."""
        return self.read(self.resume(Path(), encoded[:, :, : int(length[0])]))

    @torch.inference_mode()
    def resume(self, path: Path, encoded: Tensor) -> Path:
        """Return the path over `encoded` too."""
        count = encoded.shape[2]
        if not count:
            return path
        encoded = encoded.to(weight_dtype(self._model.joint))
        length = torch.full((1,), count, device=encoded.device)
        before = [_Said(dec_state=path.state)] if path.state is not None else None
        return self._further(path, self._found(encoded, length, before)[0], count)

    def _found(self, encoded: Tensor, lengths: Tensor, before: list[Any] | None = None) -> list[Any]:
        """Return NeMo's hypotheses, by its graphs where they are on and outside autocast."""
        loop: Any = getattr(self._model.decoding.decoding, "decoding_computer", None)
        mode = loop.cuda_graphs_mode if self._recorder is not None else None
        if mode is None:
            return self._searched(encoded, lengths, before)
        if encoded.shape[2] <= loop.INITIAL_MAX_TIME and arithmetic(encoded.device) is None:
            try:
                found = self._replayed(encoded, lengths, before)
            except Exception as error:  # torch raises every kind here, and without graphs it can still be done
                self._refuse(loop, str(error) or type(error).__name__)
                return self._searched(encoded, lengths, before)
            self._tell(loop)  # NeMo may have gone over to another mode
            return found
        loop.cuda_graphs_mode = None  # what is longer would be captured anew, and after it what is more
        try:
            return self._searched(encoded, lengths, before)
        finally:
            loop.cuda_graphs_mode = mode

    def _replayed(self, encoded: Tensor, lengths: Tensor, before: list[Any] | None) -> list[Any]:
        """Return the same by graphs, several buffers as so many that none has them captured anew for more rows."""
        if encoded.shape[0] == 1:
            return self._searched(encoded, lengths, before)
        found: list[Any] = []
        for part, counts in zip(encoded.split(ROWS[-1]), lengths.split(ROWS[-1]), strict=True):
            lack = ROWS[-1] - len(part)
            found += self._searched(F.pad(part, (0, 0, 0, 0, 0, lack)), F.pad(counts, (0, lack)), None)[: len(part)]
        return found

    def _searched(self, encoded: Tensor, lengths: Tensor, before: list[Any] | None) -> list[Any]:
        with _recurrent(encoded):
            return list(self._model.decoding.rnnt_decoder_predictions_tensor(encoded, lengths, True, before))

    def _tell(self, loop: Any) -> None:
        if self._recorder is not None:
            self._recorder.tell("decoder", f"NeMo's {loop.cuda_graphs_mode}".lower())

    def _refuse(self, loop: Any, reason: str) -> None:
        loop.disable_cuda_graphs()
        if self._recorder is not None:
            self._recorder.told.pop("decoder", None)
            self._recorder.refuse("decoder", reason)

    @torch.inference_mode()
    def after(self, text: str, frames: int) -> Path | None:
        """Return the path behind a text, as far as the prediction network goes, which reads its tokens at once."""
        from nemo.collections.asr.parts.submodules.transducer_decoding.label_looping_base import LabelLoopingStateItem

        decoder, joint, tokenizer = self._model.decoder, self._model.joint, getattr(self._model, "tokenizer", None)
        loop = getattr(self._model.decoding.decoding, "decoding_computer", None)
        if tokenizer is None or loop is None or type(decoder).__name__ != "RNNTDecoder":  # NeMo drops other states
            return None
        try:
            ids = token_ids(tokenizer, text, self._language)
        except ConfigError:  # another model wrote it
            return None
        device = next(decoder.parameters()).device
        read = torch.tensor([[decoder.blank_idx, *ids]], device=device)  # as NeMo's loop begins
        with _recurrent(read):
            outputs, states = decoder.predict(read, None, add_sos=False)
            output = joint.project_prednet(outputs[:, -1:])[0]
        zero = torch.tensor(0, device=device)
        phrases = [] if self._boost is None else [zero + self._boost.after(ids)]
        state = decoder.batch_split_states(states)[0]
        return Path(frames, state=LabelLoopingStateItem(state, output, read[0, -1], zero + frames, phrases, zero))

    @torch.inference_mode()
    def several(self, encoded: Tensor, lengths: Tensor, paths: Sequence[Path | None] = ()) -> list[Decoded]:
        """Return what was said in each buffer, all at once where each begins in it."""
        counts = [int(count) for count in lengths]
        if len(counts) == 1 or not any(counts) or any(paths):
            return self._one_by_one(encoded, counts, paths)
        encoded = encoded.to(weight_dtype(self._model.joint))
        found = self._found(encoded, lengths.to(encoded.device))
        if self._durations:
            with _recurrent(encoded):
                self._durations_again(encoded, found)
        several = zip(found, counts, strict=True)
        return [self.read(self._further(Path(), each, count) if count else Path()) for each, count in several]

    def _one_by_one(self, encoded: Tensor, counts: Sequence[int], paths: Sequence[Path | None]) -> list[Decoded]:
        found = []
        for row, (count, path) in enumerate(zip(counts, paths or [None] * len(counts), strict=True)):
            begin = 0 if path is None else path.frames
            further = self.resume(path or Path(), encoded[row : row + 1, :, begin:count])
            found.append(self.read(further)._replace(resumed=path is not None))
        return found

    def _durations_again(self, encoded: Tensor, found: list[Any]) -> None:
        """Set the tokens' durations of several hypotheses, all in one pass over what was said.

        NeMo's loop on several buffers overwrites those of a buffer whose token is found while another searches on.
        """
        decoder, joint = self._model.decoder, self._model.joint
        ids = [torch.as_tensor(each.y_sequence, dtype=torch.long, device=encoded.device) for each in found]
        rows = [row for row, said in enumerate(ids) for _ in said]
        columns = [column for said in ids for column in range(len(said))]
        frames = [frame for each in found for frame in _list(each.timestamp)]
        if not rows:
            return
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        before = joint.project_prednet(decoder.predict(padded, None, add_sos=True)[0])[rows, columns]
        heard = joint.project_encoder(encoded.transpose(1, 2))[rows, frames]
        jumps = joint.joint_after_projection(heard[:, None], before[:, None])[:, 0, 0, -len(self._durations) :]
        durations = [self._durations[jump] for jump in jumps.argmax(-1).tolist()]
        for each, said in zip(found, ids, strict=True):
            each.token_duration, durations = durations[: len(said)], durations[len(said) :]

    def _further(self, path: Path, found: Any, count: int) -> Path:
        """Return a path with what NeMo found in `count` frames more."""
        ids = _list(found.y_sequence)
        sure = found.non_blank_step_confidence_precomputed
        sure = [None] * len(ids) if sure is None else [min(1.0, max(0.0, float(c))) for c in sure]
        return Path(
            path.frames + count,
            (*path.ids, *ids),
            (*path.starts, *_list(found.timestamp)),
            (*path.durations, *(_list(found.token_duration) if self._durations else ())),
            (*path.sure, *sure),
            found.dec_state,
        )

    def read(self, path: Path) -> Decoded:
        """Return what was said."""
        durations = path.durations or [1 + LINGER] * len(path.ids)
        stops = [start + max(1, duration) for start, duration in zip(path.starts, durations, strict=True)]
        said = self._model.decoding.decode_hypothesis([_Said(y_sequence=list(path.ids))])[0].text
        return Decoded(said, timed(path.ids, path.starts, stops, path.sure, path.frames), False)

    def settle(self) -> None:
        """Keep nothing."""

    def replay(self, recorder: Recorder) -> None:
        """Switch NeMo's graphs on, where they put out the same: its loop leaves autocast, and counts its symbols.

        Part by part, with the loop itself in Python. In NeMo's graph of the whole loop, what the loop's body allocates
        while it is captured is not the graph's own: on an H200 it read memory that had been given back, and died.
        """
        loop: Any = getattr(self._model.decoding.decoding, "decoding_computer", None)
        if not hasattr(loop, "maybe_enable_cuda_graphs"):
            recorder.tell("decoder", "not replayed: NeMo's loop for this kind of transducer has no graphs")
        elif arithmetic(recorder.device) is not None:
            recorder.tell("decoder", "not replayed: NeMo's graphs switch autocast off")
        elif loop.max_symbols is None:
            recorder.tell("decoder", "not replayed: NeMo's graphs would bound the tokens of a frame")
        else:
            loop.allow_cuda_graphs = True
            if recorder.device.type == "cuda":
                loop.force_cuda_graphs_mode("no_while_loops")
            else:
                loop.maybe_enable_cuda_graphs()
            self._recorder = recorder
            self._tell(loop)

    def prefer(self, phrases: Sequence[str], weight: float) -> None:
        """Prefer these phrases from here on."""
        loop: Any = getattr(self._model.decoding.decoding, "decoding_computer", None)
        if not hasattr(loop, "fusion_models"):
            raise ConfigError("NeMo's search for this kind of transducer prefers no vocabulary", "set vocabulary = []")
        boost = Boost(self._model, phrases, weight, self.family, self._language)
        self._boost, loop.fusion_models, loop.fusion_models_alpha = boost, [boost.tree], [weight]
        if self._recorder is not None and loop.cuda_graphs_mode is not None:  # what was captured knows no phrases
            loop.reset_cuda_graphs_state()
            if not boost.tree.compatible_with_cuda_graphs():
                self._refuse(loop, "NeMo's vocabulary needs Triton to be captured")


class _Said(SimpleNamespace):
    """What NeMo's transducer decoding needs to see of a hypothesis of ours."""

    def merge_(self, other: Any) -> None:
        """Become what was said since `dec_state`; NeMo's own merging drops the durations."""
        vars(self).update(vars(other))


class Aed:
    """Canary, with `canary.Canary` to listen; its guard may be set, or taken off, there."""

    family = "aed"

    def __init__(self, model: Any, source_lang: str, target_lang: str, pnc: bool | None) -> None:
        self._model = model
        self.canary = canary.Canary(model, source_lang, target_lang, pnc)

    def __call__(self, encoded: Tensor, length: Tensor) -> Decoded:
        """Return what was said."""
        count = int(length[0])
        return self._read(self.canary(encoded, count), count) if count else Decoded("", [], False)

    def after(self, text: str, frames: int) -> Path | None:
        """Return None: its text of a buffer begins with the buffer."""
        return None

    def several(self, encoded: Tensor, lengths: Tensor, paths: Sequence[Path | None] = ()) -> list[Decoded]:
        """Return what was said in each buffer."""
        counts = [int(count) for count in lengths]
        if not all(counts):
            return _one_by_one(self, encoded, lengths)
        return [self._read(*each) for each in zip(self.canary.several(encoded, counts), counts, strict=True)]

    def _read(self, heard: canary.Heard, count: int) -> Decoded:
        starts, stops = [first for first, _ in heard.spans], [last for _, last in heard.spans]
        tokens = timed(heard.ids, starts, stops, heard.likely, count)
        return Decoded(say(self._model, heard.ids), tokens, heard.truncated)

    def settle(self) -> None:
        """Join Canary's weights."""
        self.canary.settle()

    def replay(self, recorder: Recorder) -> None:
        """Replay Canary's steps."""
        self.canary.replay(recorder)

    def prefer(self, phrases: Sequence[str], weight: float) -> None:
        """Prefer these phrases from here on."""
        self.canary.prefer(phrases, weight)


# -- small things of several families ---------------------------------------------------------------------------------


def _one_by_one(decoder: Decoder, encoded: Tensor, lengths: Tensor) -> list[Decoded]:
    """Return what a decoder of one buffer says of each of several, without the padding behind it."""
    counts = [int(count) for count in lengths]
    return [decoder(encoded[n : n + 1, :, :count], lengths[n : n + 1]) for n, count in enumerate(counts)]


def _list(value: Any) -> list[int]:
    return list(value.tolist() if isinstance(value, Tensor) else value)


def _recurrent(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return the context that an LSTM needs: without oneDNN where that has none for autocast's dtype on this CPU."""
    if tensor.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return nullcontext()
    lacks = not has_lstm(torch.get_autocast_dtype("cpu"))
    return torch.backends.mkldnn.flags(enabled=False) if lacks else nullcontext()
