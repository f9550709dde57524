"""The loss of a token-and-duration transducer (TDT) on the CPU: NeMo's numba kernel wants CUDA, its
torch one too.

The same sum over all alignments as NeMo's TDTLossPytorch: a step at frame t says a token, or blank,
and goes on by one of the durations; blank by at least one frame, and the last step is a blank that
ends exactly at the last frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch


@numba.njit(
    cache=True, fastmath={"reassoc", "contract", "nsz", "arcp"}
)  # not "ninf": what cannot be reached is -inf
def _add(a: float, b: float) -> float:
    """Give log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


@numba.njit(cache=True)
def _lattice(blank: Any, label: Any, jump: Any, durations: Any) -> tuple[float, Any, Any, Any]:
    """Give -log P of one clip and its gradients, for log-probabilities (T, U+1), (T, U) and (T,
    U+1, D)."""
    frames, states = blank.shape
    to_end = np.full((frames + 1, states), -np.inf)
    to_end[frames, states - 1] = 0.0
    for t in range(frames - 1, -1, -1):
        for u in range(states - 1, -1, -1):
            total = -np.inf
            for n, step in enumerate(durations):
                if t + step > frames:
                    continue
                if step:
                    total = _add(total, blank[t, u] + jump[t, u, n] + to_end[t + step, u])
                if u < states - 1 and t + step < frames:
                    total = _add(total, label[t, u] + jump[t, u, n] + to_end[t + step, u + 1])
            to_end[t, u] = total
    whole = to_end[0, 0]
    share = np.zeros((frames + 1, states))  # of all alignments, those that come by here
    share[0, 0] = 1.0
    of_blank, of_label, of_jump = np.zeros_like(blank), np.zeros_like(label), np.zeros_like(jump)
    if whole == -np.inf:  # more tokens than can be said in so few frames: nothing to learn
        return 0.0, of_blank, of_label, of_jump
    for t in range(frames):
        for u in range(states):
            if share[t, u] < 1e-9:
                continue
            for n, step in enumerate(durations):
                if t + step > frames:
                    continue
                if step:
                    part = share[t, u] * math.exp(
                        blank[t, u] + jump[t, u, n] + to_end[t + step, u] - to_end[t, u]
                    )
                    share[t + step, u] += part
                    of_blank[t, u] -= part
                    of_jump[t, u, n] -= part
                if u < states - 1 and t + step < frames:
                    part = share[t, u] * math.exp(
                        label[t, u] + jump[t, u, n] + to_end[t + step, u + 1] - to_end[t, u]
                    )
                    share[t + step, u + 1] += part
                    of_label[t, u] -= part
                    of_jump[t, u, n] -= part
    return -whole, of_blank, of_label, of_jump


class _Loss(torch.autograd.Function):
    """Both passes in the forward one: the gradients by the logits are what the lattice's shares
    are, less a softmax."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Any,
        targets: Any,
        lengths: Sequence[int],
        counts: Sequence[int],
        durations: Any,
        sigma: float,
    ) -> Any:
        """Give the losses (B,)."""
        words, jumps = (
            logits[..., : -len(durations)].float(),
            logits[..., -len(durations) :].float().log_softmax(-1),
        )
        norm = words.logsumexp(-1, True)
        ids = targets[:, None, :, None].expand(-1, words.shape[1], -1, 1)
        blank = (words[..., -1:] - norm)[..., 0] - sigma
        label = (words[:, :, :-1].gather(-1, ids) - norm[:, :, :-1])[..., 0] - sigma
        losses, shares = [], [torch.zeros_like(scores) for scores in (blank, label, jumps)]
        for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            parts = (
                blank[row, :length, : count + 1],
                label[row, :length, :count],
                jumps[row, :length, : count + 1],
            )
            loss, *found = _lattice(
                *(np.ascontiguousarray(part.numpy()) for part in parts), durations
            )
            losses.append(loss)
            for share, part in zip(shares, found, strict=True):
                share[row, : part.shape[0], : part.shape[1]] = torch.from_numpy(part)
        of_blank, of_label, of_jump = shares
        visits = of_jump.sum(-1, True)
        of_words = (words - norm).exp_().mul_(-visits)
        of_words[..., -1] += of_blank
        of_words[:, :, :-1].scatter_add_(-1, ids, of_label[..., None])
        ctx.save_for_backward(
            torch.cat([of_words, of_jump - jumps.exp() * visits], -1).to(logits.dtype)
        )
        return torch.tensor(losses)

    @staticmethod
    def backward(ctx: Any, outside: Any) -> tuple[Any, ...]:
        """Give the gradient by the logits."""
        return ctx.saved_tensors[0] * outside[:, None, None, None], None, None, None, None, None


def tdt_loss(
    logits: Any, targets: Any, lengths: Any, counts: Any, durations: Sequence[int], sigma: float
) -> Any:
    """Give the loss (B,) in nats a clip.

    Args:
        logits: (B, T, U+1, V+1+D) of the joint, blank behind the V tokens, then one for each
            duration.
        targets: (B, U) token ids, anything behind a clip's last.
        lengths, counts: (B,) frames and tokens.
        sigma: taken off every token's log-probability, so that long durations pay (logit
            under-normalisation).
    """
    return _Loss.apply(
        logits, targets, lengths.tolist(), counts.tolist(), np.array(durations), sigma
    )
