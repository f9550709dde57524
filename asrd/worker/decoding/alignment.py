"""Word times from attention weights by dynamic time warping."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

REACH_FRAMES = 4
"""Frames that a token may reach to either side of its peak of attention: what is beyond is a
pause."""


def spans(attention: NDArray[np.float32], prompt: int, count: int) -> list[tuple[int, int]]:
    """Return first and one past the last encoder frame of each of `count` tokens: in order, perhaps
    empty or shared.

    A token's row is the mean of two: of what was attended to in predicting it, which is early, and
    in reading it, which is late. A monotone path through the rows (dynamic time warping, as
    Whisper's word times) gives each token its frames; a row of the prompt before them and that of
    the end of text after them take the silence at both ends.

    Args:
        attention: [tokens read, frames], prompt first, as `KVCache.attention_rows` returns it.
        prompt: tokens of the prompt, at least two.
        count: tokens of the text; the last one may not have been read.
    """
    return spans_of_batch([attention], prompt, [count])[0]


def spans_of_batch(
    attention: Sequence[NDArray[np.float32]], prompt: int, counts: Sequence[int]
) -> list[list[tuple[int, int]]]:
    """Return the spans of several texts, which takes little longer than those of one."""
    weights: list[NDArray[np.float32]] = []
    costs: list[NDArray[np.float32]] = []
    for each, count in zip(attention, counts, strict=True):
        if count:
            weights.append(_weights(each, prompt, count))
            costs.append(-weights[-1])
    paths = iter(zip(weights, warps(costs), strict=True))
    found: list[list[tuple[int, int]]] = []
    for count in counts:
        if count:
            found.append(_reached(*next(paths), count))
        else:
            found.append([])
    return found


def _weights(attention: NDArray[np.float32], prompt: int, count: int) -> NDArray[np.float32]:
    """Return the rows that a path is led through [R, frames]: the tokens', with one of the prompt
    before them."""
    predicting = attention[prompt - 1 : prompt - 1 + count]
    reading = attention[prompt : prompt + count]
    rows = predicting.copy()
    rows[: len(reading)] = (predicting[: len(reading)] + reading) / 2
    ends = attention[prompt - 1 + count :][:1]
    return np.concatenate([attention[prompt - 2 : prompt - 1], rows, ends])


def _reached(
    weights: NDArray[np.float32], path: list[tuple[int, int]], count: int
) -> list[tuple[int, int]]:
    """Return first and one past the last of the frames that a path gives each token."""
    frames: list[list[int]] = [[] for _ in weights]
    for row, frame in path:
        frames[row].append(frame)
    found = []
    for row, own in enumerate(frames[1 : 1 + count], start=1):
        peak = own[int(weights[row, own].argmax())]
        first = max(own[0], peak - REACH_FRAMES)
        found.append((first, min(own[-1], peak + REACH_FRAMES) + 1))
    return found


def warp(cost: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Return the cheapest path of (row, column) through [R, C] from corner to corner, moving right,
    down or both."""
    return warps([cost])[0]


def warps(costs: Sequence[NDArray[np.float32]]) -> list[list[tuple[int, int]]]:
    """Return the cheapest path through each of several.

    Worked out one anti-diagonal at a time: within one, no cell needs another. Nor does any need one
    further right or down, so that all can have the size of the largest.
    """
    rows = columns = 0
    for cost in costs:
        rows, columns = max(rows, cost.shape[0]), max(columns, cost.shape[1])
    # [row + column, row], both counted from one
    slanted = np.zeros((len(costs), rows + columns + 1, rows + 1))
    for one, cost in zip(slanted, costs, strict=True):
        row, column = np.indices(cost.shape)
        one[row + column + 2, row + 1] = cost
    total = np.full(slanted.shape, np.inf)
    total[:, 0, 0] = 0.0
    for line in range(2, rows + columns + 1):
        first, stop = max(1, line - columns), min(rows, line - 1) + 1
        above, left = total[:, line - 1, first - 1 : stop - 1], total[:, line - 1, first:stop]
        before = np.minimum(np.minimum(above, left), total[:, line - 2, first - 1 : stop - 1])
        total[:, line, first:stop] = slanted[:, line, first:stop] + before
    return [_back(each.tolist(), *cost.shape) for each, cost in zip(total, costs, strict=True)]


def _back(total: list[list[float]], row: int, column: int) -> list[tuple[int, int]]:
    """Return the path that ends in a cell, counted from one, where `total` [row + column][row] is
    what it costs."""
    path = []
    while row and column:
        path.append((row - 1, column - 1))
        before = ((row - 1, column - 1), (row - 1, column), (row, column - 1))
        row, column = min(before, key=lambda cell: total[cell[0] + cell[1]][cell[0]])
    return path[::-1]
