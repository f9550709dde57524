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
from asrd.worker.decoding.decoder import LINGER_FRAMES, DecoderState, recurrent
from asrd.worker.decoding.phrase_boosting import Boost, token_ids
from asrd.worker.decoding.word_times import Decoded, timed_tokens
from asrd.worker.encoder.cuda_graphs import ROWS, GraphCapture, arithmetic


class Transducer:
    """RNNT and TDT: NeMo's label-looping greedy_batch, with times, durations and confidences
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
        self._graphs: GraphCapture | None = None
        self._boost: Boost | None = None

    def __call__(self, encoded: Tensor, length: Tensor) -> Decoded:
        """Return the text and its tokens."""
        return self.read(self.resume(DecoderState(), encoded[:, :, : int(length[0])]))

    @torch.inference_mode()
    def resume(self, path: DecoderState, encoded: Tensor) -> DecoderState:
        """Return the path over `encoded` too."""
        count = encoded.shape[2]
        if not count:
            return path
        encoded = encoded.to(weight_dtype(self._model.joint))
        length = torch.full((1,), count, device=encoded.device)
        before = None
        if path.state is not None:
            before = [_PartialHypothesis(dec_state=path.state)]
        return self._extended(path, self._search(encoded, length, before)[0], count)

    def _search(
        self, encoded: Tensor, lengths: Tensor, before: list[Any] | None = None
    ) -> list[Any]:
        """Return NeMo's hypotheses, by its graphs where they are on and outside autocast."""
        loop: Any = self._loop
        if self._graphs is None or loop.cuda_graphs_mode is None:
            return self._search_plainly(encoded, lengths, before)
        if encoded.shape[2] <= loop.INITIAL_MAX_TIME and arithmetic(encoded.device) is None:
            try:
                found = self._search_by_graphs(encoded, lengths, before)
            except Exception as error:  # torch raises every kind here
                # Without graphs the same work can still be done.
                self._refuse(loop, str(error) or type(error).__name__)
                return self._search_plainly(encoded, lengths, before)
            self._note(loop)  # NeMo may have gone over to another mode
            return found
        # A longer buffer would have the graphs captured anew, and a larger batch after it again.
        mode, loop.cuda_graphs_mode = loop.cuda_graphs_mode, None
        try:
            return self._search_plainly(encoded, lengths, before)
        finally:
            loop.cuda_graphs_mode = mode

    @property
    def _loop(self) -> Any:
        """NeMo's search; None for a kind of transducer that has another one."""
        return getattr(self._model.decoding.decoding, "decoding_computer", None)

    def _search_by_graphs(
        self, encoded: Tensor, lengths: Tensor, before: list[Any] | None
    ) -> list[Any]:
        """Return the same by graphs. Several buffers are padded to one number of rows, for which
        the graphs are captured once."""
        if encoded.shape[0] == 1:
            return self._search_plainly(encoded, lengths, before)
        found: list[Any] = []
        for part, counts in zip(encoded.split(ROWS[-1]), lengths.split(ROWS[-1]), strict=True):
            lack = ROWS[-1] - len(part)
            padded = F.pad(part, (0, 0, 0, 0, 0, lack))
            found += self._search_plainly(padded, F.pad(counts, (0, lack)), None)[: len(part)]
        return found

    def _search_plainly(
        self, encoded: Tensor, lengths: Tensor, before: list[Any] | None
    ) -> list[Any]:
        with recurrent(encoded):
            return list(
                self._model.decoding.rnnt_decoder_predictions_tensor(encoded, lengths, True, before)
            )

    def _note(self, loop: Any) -> None:
        if self._graphs is not None:
            self._graphs.note("decoder", f"NeMo's {loop.cuda_graphs_mode}".lower())

    def _refuse(self, loop: Any, reason: str) -> None:
        loop.disable_cuda_graphs()
        if self._graphs is not None:
            self._graphs.results.pop("decoder", None)
            self._graphs.refuse("decoder", reason)

    @torch.inference_mode()
    def state_after(self, text: str, frames: int) -> DecoderState | None:
        """Return the state after a text, as far as the prediction network goes, which reads its
        tokens at once."""
        from nemo.collections.asr.parts.submodules.transducer_decoding.label_looping_base import (
            LabelLoopingStateItem,
        )

        decoder, joint = self._model.decoder, self._model.joint
        tokenizer = getattr(self._model, "tokenizer", None)
        if tokenizer is None or self._loop is None:
            return None
        if type(decoder).__name__ != "RNNTDecoder":  # NeMo drops other states
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
        phrases = []
        if self._boost is not None:
            phrases.append(zero + self._boost.state_after(ids))
        state = decoder.batch_split_states(states)[0]
        return DecoderState(
            frames,
            state=LabelLoopingStateItem(state, output, read[0, -1], zero + frames, phrases, zero),
        )

    @torch.inference_mode()
    def decode_batch(
        self, encoded: Tensor, lengths: Tensor, paths: Sequence[DecoderState | None] = ()
    ) -> list[Decoded]:
        """Return the text of each buffer, all at once where none goes on from a path."""
        counts = list(map(int, lengths))
        if len(counts) == 1 or not any(counts) or any(paths):
            return self._one_by_one(encoded, counts, paths)
        encoded = encoded.to(weight_dtype(self._model.joint))
        found = self._search(encoded, lengths.to(encoded.device))
        if self._durations:
            with recurrent(encoded):
                self._repair_durations(encoded, found)
        decoded = []
        for each, count in zip(found, counts, strict=True):
            path = DecoderState()
            if count:
                path = self._extended(path, each, count)
            decoded.append(self.read(path))
        return decoded

    def _one_by_one(
        self, encoded: Tensor, counts: Sequence[int], paths: Sequence[DecoderState | None]
    ) -> list[Decoded]:
        found = []
        for row, count in enumerate(counts):
            given = paths[row] if paths else None
            path = given or DecoderState()
            further = self.resume(path, encoded[row : row + 1, :, path.frames : count])
            found.append(self.read(further)._replace(resumed=given is not None))
        return found

    def _repair_durations(self, encoded: Tensor, found: list[Any]) -> None:
        """Set the tokens' durations of several hypotheses, all in one pass over their tokens.

        NeMo's loop on several buffers overwrites those of a buffer whose token is found while
        another searches on.
        """
        decoder, joint = self._model.decoder, self._model.joint
        ids: list[Tensor] = []
        rows: list[int] = []
        columns: list[int] = []
        frames: list[int] = []
        for row, each in enumerate(found):
            tokens = torch.as_tensor(each.y_sequence, dtype=torch.long, device=encoded.device)
            ids.append(tokens)
            rows += [row] * len(tokens)
            columns += range(len(tokens))
            frames += _list(each.timestamp)
        if not rows:
            return
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        predicted = joint.project_prednet(decoder.predict(padded, None, add_sos=True)[0])
        before = predicted[rows, columns]
        audio = joint.project_encoder(encoded.transpose(1, 2))[rows, frames]
        scores = joint.joint_after_projection(audio[:, None], before[:, None])
        jumps = scores[:, 0, 0, -len(self._durations) :].argmax(-1).tolist()
        durations = list(map(self._durations.__getitem__, jumps))
        for each, tokens in zip(found, ids, strict=True):
            count = len(tokens)
            each.token_duration, durations = durations[:count], durations[count:]

    def _extended(self, path: DecoderState, found: Any, count: int) -> DecoderState:
        """Return a path with what NeMo found in `count` frames more."""
        ids = _list(found.y_sequence)
        durations = path.durations
        if self._durations:
            durations = (*durations, *_list(found.token_duration))
        confidences = found.non_blank_step_confidence_precomputed
        if confidences is None:
            confidences = [None] * len(ids)
        else:
            confidences = map(_probability, confidences)
        return DecoderState(
            path.frames + count,
            (*path.ids, *ids),
            (*path.starts, *_list(found.timestamp)),
            durations,
            (*path.confidences, *confidences),
            found.dec_state,
        )

    def read(self, path: DecoderState) -> Decoded:
        """Return the text up to a path's end."""
        durations = path.durations or [1 + LINGER_FRAMES] * len(path.ids)
        stops = []
        for start, duration in zip(path.starts, durations, strict=True):
            stops.append(start + max(1, duration))
        hypothesis = _PartialHypothesis(y_sequence=list(path.ids))
        text = self._model.decoding.decode_hypothesis([hypothesis])[0].text
        tokens = timed_tokens(path.ids, path.starts, stops, path.confidences, path.frames)
        return Decoded(text, tokens, False)

    def freeze_weights(self) -> None:
        """Keep nothing."""

    def replay(self, graphs: GraphCapture) -> None:
        """Switch NeMo's graphs on, where they put out the same: its loop leaves autocast, and
        counts its symbols.

        Part by part, with the loop itself in Python. In NeMo's graph of the whole loop, memory that
        the loop's body allocates while it is captured is not the graph's own. On an H200 that graph
        read memory that had been given back, and died.
        """
        loop: Any = self._loop
        if not hasattr(loop, "maybe_enable_cuda_graphs"):
            graphs.note(
                "decoder", "not replayed: NeMo's loop for this kind of transducer has no graphs"
            )
        elif arithmetic(graphs.device) is not None:
            graphs.note("decoder", "not replayed: NeMo's graphs switch autocast off")
        elif loop.max_symbols is None:
            graphs.note("decoder", "not replayed: NeMo's graphs would bound the tokens of a frame")
        else:
            loop.allow_cuda_graphs = True
            if graphs.device.type == "cuda":
                loop.force_cuda_graphs_mode("no_while_loops")
            else:
                loop.maybe_enable_cuda_graphs()
            self._graphs = graphs
            self._note(loop)

    def boost_phrases(self, phrases: Sequence[str], weight: float) -> None:
        """Boost these phrases from here on."""
        loop: Any = self._loop
        if not hasattr(loop, "fusion_models"):
            raise ConfigError(
                "NeMo's search for this kind of transducer prefers no vocabulary",
                "set vocabulary = []",
            )
        boost = Boost(self._model, phrases, weight, self.family, self._language)
        self._boost, loop.fusion_models, loop.fusion_models_alpha = boost, [boost.tree], [weight]
        if self._graphs is not None and loop.cuda_graphs_mode is not None:
            # The graphs that were captured know no phrases.
            loop.reset_cuda_graphs_state()
            if not boost.tree.compatible_with_cuda_graphs():
                self._refuse(loop, "NeMo's vocabulary needs Triton to be captured")


class _PartialHypothesis(SimpleNamespace):
    """What NeMo's transducer decoding needs to see of a hypothesis of ours."""

    def merge_(self, other: Any) -> None:
        """Become the hypothesis since `dec_state`; NeMo's own merging drops the durations."""
        vars(self).update(vars(other))


def _probability(value: Any) -> float:
    return min(1.0, max(0.0, float(value)))


def _list(value: Any) -> list[int]:
    if isinstance(value, Tensor):
        return list(value.tolist())
    return list(value)
