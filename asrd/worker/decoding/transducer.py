"""RNN-T and TDT: greedy search over joint and prediction network -> timed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from asrd.errors import ConfigError
from asrd.worker.decoding.canary import weight_dtype
from asrd.worker.decoding.decoder import LINGER, DecoderState, recurrent
from asrd.worker.decoding.phrase_boosting import Boost, token_ids
from asrd.worker.decoding.word_times import Decoded, timed
from asrd.worker.encoder.cuda_graphs import ROWS, GraphCapture, arithmetic


class Transducer:
    """RNNT and TDT: NeMo's label-looping greedy_batch, with times, durations and confidence
    switched on."""

    def __init__(self, model: Any, language: str, family: str = "") -> None:
        from omegaconf import OmegaConf

        config = OmegaConf.create(OmegaConf.to_container(model.cfg.decoding, resolve=True))
        self._durations = list(config.get("durations") or [])
        self.family = family or ("tdt" if self._durations else "rnnt")
        confidence = {"method_cfg": {"name": "max_prob", "alpha": 1.0}, "exclude_blank": True}
        confidence["preserve_frame_confidence"] = not config.get("big_blank_durations")
        ours = {
            "strategy": "greedy_batch",
            "preserve_alignments": False,
            "compute_timestamps": False,
        }
        ours |= {"greedy": {"use_cuda_graph_decoder": False, "preserve_alignments": False}}
        ours |= {"confidence_cfg": confidence, "tdt_include_token_duration": bool(self._durations)}
        model.change_decoding_strategy(OmegaConf.merge(config, ours), verbose=False)
        self._model, self._language = model, language
        self._recorder: GraphCapture | None = None
        self._boost: Boost | None = None

    def __call__(self, encoded: Tensor, length: Tensor) -> Decoded:
        """Return what was said."""
        return self.read(self.resume(DecoderState(), encoded[:, :, : int(length[0])]))

    @torch.inference_mode()
    def resume(self, path: DecoderState, encoded: Tensor) -> DecoderState:
        """Return the path over `encoded` too."""
        count = encoded.shape[2]
        if not count:
            return path
        encoded = encoded.to(weight_dtype(self._model.joint))
        length = torch.full((1,), count, device=encoded.device)
        before = [_Said(dec_state=path.state)] if path.state is not None else None
        return self._further(path, self._found(encoded, length, before)[0], count)

    def _found(
        self, encoded: Tensor, lengths: Tensor, before: list[Any] | None = None
    ) -> list[Any]:
        """Return NeMo's hypotheses, by its graphs where they are on and outside autocast."""
        loop: Any = getattr(self._model.decoding.decoding, "decoding_computer", None)
        mode = loop.cuda_graphs_mode if self._recorder is not None else None
        if mode is None:
            return self._searched(encoded, lengths, before)
        if encoded.shape[2] <= loop.INITIAL_MAX_TIME and arithmetic(encoded.device) is None:
            try:
                found = self._replayed(encoded, lengths, before)
            except (
                Exception
            ) as error:  # torch raises every kind here, and without graphs it can still be done
                self._refuse(loop, str(error) or type(error).__name__)
                return self._searched(encoded, lengths, before)
            self._tell(loop)  # NeMo may have gone over to another mode
            return found
        loop.cuda_graphs_mode = (
            None  # what is longer would be captured anew, and after it what is more
        )
        try:
            return self._searched(encoded, lengths, before)
        finally:
            loop.cuda_graphs_mode = mode

    def _replayed(self, encoded: Tensor, lengths: Tensor, before: list[Any] | None) -> list[Any]:
        """Return the same by graphs, several buffers as so many that none has them captured anew
        for more rows."""
        if encoded.shape[0] == 1:
            return self._searched(encoded, lengths, before)
        found: list[Any] = []
        for part, counts in zip(encoded.split(ROWS[-1]), lengths.split(ROWS[-1]), strict=True):
            lack = ROWS[-1] - len(part)
            found += self._searched(
                F.pad(part, (0, 0, 0, 0, 0, lack)), F.pad(counts, (0, lack)), None
            )[: len(part)]
        return found

    def _searched(self, encoded: Tensor, lengths: Tensor, before: list[Any] | None) -> list[Any]:
        with recurrent(encoded):
            return list(
                self._model.decoding.rnnt_decoder_predictions_tensor(encoded, lengths, True, before)
            )

    def _tell(self, loop: Any) -> None:
        if self._recorder is not None:
            self._recorder.tell("decoder", f"NeMo's {loop.cuda_graphs_mode}".lower())

    def _refuse(self, loop: Any, reason: str) -> None:
        loop.disable_cuda_graphs()
        if self._recorder is not None:
            self._recorder.told.pop("decoder", None)
            self._recorder.refuse("decoder", reason)

    @torch.inference_mode()
    def after(self, text: str, frames: int) -> DecoderState | None:
        """Return the path behind a text, as far as the prediction network goes, which reads its
        tokens at once."""
        from nemo.collections.asr.parts.submodules.transducer_decoding.label_looping_base import (
            LabelLoopingStateItem,
        )

        decoder, joint, tokenizer = (
            self._model.decoder,
            self._model.joint,
            getattr(self._model, "tokenizer", None),
        )
        loop = getattr(self._model.decoding.decoding, "decoding_computer", None)
        if (
            tokenizer is None or loop is None or type(decoder).__name__ != "RNNTDecoder"
        ):  # NeMo drops other states
            return None
        try:
            ids = token_ids(tokenizer, text, self._language)
        except ConfigError:  # another model wrote it
            return None
        device = next(decoder.parameters()).device
        read = torch.tensor([[decoder.blank_idx, *ids]], device=device)  # as NeMo's loop begins
        with recurrent(read):
            outputs, states = decoder.predict(read, None, add_sos=False)
            output = joint.project_prednet(outputs[:, -1:])[0]
        zero = torch.tensor(0, device=device)
        phrases = [] if self._boost is None else [zero + self._boost.after(ids)]
        state = decoder.batch_split_states(states)[0]
        return DecoderState(
            frames,
            state=LabelLoopingStateItem(state, output, read[0, -1], zero + frames, phrases, zero),
        )

    @torch.inference_mode()
    def several(
        self, encoded: Tensor, lengths: Tensor, paths: Sequence[DecoderState | None] = ()
    ) -> list[Decoded]:
        """Return what was said in each buffer, all at once where each begins in it."""
        counts = [int(count) for count in lengths]
        if len(counts) == 1 or not any(counts) or any(paths):
            return self._one_by_one(encoded, counts, paths)
        encoded = encoded.to(weight_dtype(self._model.joint))
        found = self._found(encoded, lengths.to(encoded.device))
        if self._durations:
            with recurrent(encoded):
                self._durations_again(encoded, found)
        several = zip(found, counts, strict=True)
        return [
            self.read(self._further(DecoderState(), each, count) if count else DecoderState())
            for each, count in several
        ]

    def _one_by_one(
        self, encoded: Tensor, counts: Sequence[int], paths: Sequence[DecoderState | None]
    ) -> list[Decoded]:
        found = []
        for row, (count, path) in enumerate(
            zip(counts, paths or [None] * len(counts), strict=True)
        ):
            begin = 0 if path is None else path.frames
            further = self.resume(path or DecoderState(), encoded[row : row + 1, :, begin:count])
            found.append(self.read(further)._replace(resumed=path is not None))
        return found

    def _durations_again(self, encoded: Tensor, found: list[Any]) -> None:
        """Set the tokens' durations of several hypotheses, all in one pass over what was said.

        NeMo's loop on several buffers overwrites those of a buffer whose token is found while
        another searches on.
        """
        decoder, joint = self._model.decoder, self._model.joint
        ids = [
            torch.as_tensor(each.y_sequence, dtype=torch.long, device=encoded.device)
            for each in found
        ]
        rows = [row for row, said in enumerate(ids) for _ in said]
        columns = [column for said in ids for column in range(len(said))]
        frames = [frame for each in found for frame in _list(each.timestamp)]
        if not rows:
            return
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        before = joint.project_prednet(decoder.predict(padded, None, add_sos=True)[0])[
            rows, columns
        ]
        heard = joint.project_encoder(encoded.transpose(1, 2))[rows, frames]
        jumps = joint.joint_after_projection(heard[:, None], before[:, None])[
            :, 0, 0, -len(self._durations) :
        ]
        durations = [self._durations[jump] for jump in jumps.argmax(-1).tolist()]
        for each, said in zip(found, ids, strict=True):
            each.token_duration, durations = durations[: len(said)], durations[len(said) :]

    def _further(self, path: DecoderState, found: Any, count: int) -> DecoderState:
        """Return a path with what NeMo found in `count` frames more."""
        ids = _list(found.y_sequence)
        sure = found.non_blank_step_confidence_precomputed
        sure = [None] * len(ids) if sure is None else [min(1.0, max(0.0, float(c))) for c in sure]
        return DecoderState(
            path.frames + count,
            (*path.ids, *ids),
            (*path.starts, *_list(found.timestamp)),
            (*path.durations, *(_list(found.token_duration) if self._durations else ())),
            (*path.sure, *sure),
            found.dec_state,
        )

    def read(self, path: DecoderState) -> Decoded:
        """Return what was said."""
        durations = path.durations or [1 + LINGER] * len(path.ids)
        stops = [
            start + max(1, duration) for start, duration in zip(path.starts, durations, strict=True)
        ]
        said = self._model.decoding.decode_hypothesis([_Said(y_sequence=list(path.ids))])[0].text
        return Decoded(said, timed(path.ids, path.starts, stops, path.sure, path.frames), False)

    def settle(self) -> None:
        """Keep nothing."""

    def replay(self, recorder: GraphCapture) -> None:
        """Switch NeMo's graphs on, where they put out the same: its loop leaves autocast, and
        counts its symbols.

        Part by part, with the loop itself in Python. In NeMo's graph of the whole loop, what the
        loop's body allocates while it is captured is not the graph's own: on an H200 it read memory
        that had been given back, and died.
        """
        loop: Any = getattr(self._model.decoding.decoding, "decoding_computer", None)
        if not hasattr(loop, "maybe_enable_cuda_graphs"):
            recorder.tell(
                "decoder", "not replayed: NeMo's loop for this kind of transducer has no graphs"
            )
        elif arithmetic(recorder.device) is not None:
            recorder.tell("decoder", "not replayed: NeMo's graphs switch autocast off")
        elif loop.max_symbols is None:
            recorder.tell(
                "decoder", "not replayed: NeMo's graphs would bound the tokens of a frame"
            )
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
            raise ConfigError(
                "NeMo's search for this kind of transducer prefers no vocabulary",
                "set vocabulary = []",
            )
        boost = Boost(self._model, phrases, weight, self.family, self._language)
        self._boost, loop.fusion_models, loop.fusion_models_alpha = boost, [boost.tree], [weight]
        if (
            self._recorder is not None and loop.cuda_graphs_mode is not None
        ):  # what was captured knows no phrases
            loop.reset_cuda_graphs_state()
            if not boost.tree.compatible_with_cuda_graphs():
                self._refuse(loop, "NeMo's vocabulary needs Triton to be captured")


class _Said(SimpleNamespace):
    """What NeMo's transducer decoding needs to see of a hypothesis of ours."""

    def merge_(self, other: Any) -> None:
        """Become what was said since `dec_state`; NeMo's own merging drops the durations."""
        vars(self).update(vars(other))


def _list(value: Any) -> list[int]:
    return list(value.tolist() if isinstance(value, Tensor) else value)
