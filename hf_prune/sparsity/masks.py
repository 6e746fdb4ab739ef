"""Which weights stay: the lowest scores of a row, a group or a map go; and masks of one bit a weight."""

import math
from collections.abc import Sequence

import numpy as np
import torch

_SLACK = 1 + 1e-12
"""Shares are floats: 0.29 of 100 weights is 28.999999999999996, and means 29."""

_INFINITY = 0x7F800000
"""float32 infinity as an integer: floats from 0 on are in the order of their bits."""


def count_of(share: float, weights: int) -> int:
    """How many of some weights a share is, rounded down.

    Args:
        share: from 0 to 1.
        weights: that there are.
    """
    return min(math.floor(share * weights * _SLACK), weights)


def keep_by_row(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Which weights stay where as many of each row go; of equal scores the first in the row go first.

    Wanda compares the weights of one output with each other (arXiv:2306.11695, section 3). Where the count is no
    multiple of the rows, one more goes from those whose next score is lowest; the released code rounds down instead.

    Args:
        scores: (outputs, inputs).
        count: of all weights that go.

    Returns:
        (outputs, inputs) bool.
    """
    each, over = divmod(count, len(scores))
    ascending, order = scores.sort(dim=1, stable=True)
    keep = torch.ones_like(scores, dtype=torch.bool).scatter_(1, order[:, :each], False)
    if over:
        rows = ascending[:, each].sort(stable=True).indices[:over]
        keep[rows, order[rows, each]] = False
    return keep


def keep_by_map(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Which weights stay where all of the matrix are compared; of equal scores the first go first.

    Args:
        scores: (outputs, inputs).
        count: how many go.

    Returns:
        (outputs, inputs) bool.
    """
    return keep_by_row(scores.reshape(1, -1), count).reshape(scores.shape)


def keep_by_group(scores: torch.Tensor, kept: int, size: int) -> torch.Tensor:
    """Which weights stay of each group of neighbours along the input (N:M sparsity).

    Args:
        scores: (outputs, inputs); inputs are a multiple of `size`.
        kept: N, how many of a group stay.
        size: M, weights in a group.

    Returns:
        (outputs, inputs) bool.
    """
    groups = scores.reshape(-1, size)
    return keep_by_row(groups, (size - kept) * len(groups)).reshape(scores.shape)


def counts_below(scores: Sequence[torch.Tensor], count: int) -> tuple[int, ...]:
    """Of the `count` lowest scores of all maps, how many lie in each of them.

    Where several scores equal the highest that goes, those of the first maps go first.

    Args:
        scores: of each map, float32, at least 0; on any device.
        count: at most all.
    """
    bits = [each.flatten().view(torch.int32) for each in scores]
    low, high = -1, _INFINITY  # too few scores are up to `low`, enough up to `high`
    while high - low > 1:
        middle = (low + high) // 2
        if sum(int((each <= middle).sum()) for each in bits) < count:
            low = middle
        else:
            high = middle
    found = [int((each <= low).sum()) for each in bits]
    left = count - sum(found)
    for number, each in enumerate(bits):
        more = min(left, int((each == high).sum()))
        found[number] += more
        left -= more
    return tuple(found)


def packed(keep: torch.Tensor) -> torch.Tensor:
    """A mask as bytes: bit i % 8 of byte i // 8 says whether number i, counted flat, stays; bits left over are 0.

    Args:
        keep: bool, any shape.

    Returns:
        (ceil(numbers / 8),) uint8 on the CPU.
    """
    return torch.from_numpy(np.packbits(keep.flatten().cpu().numpy(), bitorder="little"))


def unpacked(bits: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """Some of a packed mask, as (count,) bool.

    Args:
        bits: (bytes,) uint8 on the CPU, of which the first bit is that of number 0.
        start: first number wanted.
        count: how many.
    """
    found = np.unpackbits(bits.numpy(), count=start + count, bitorder="little")
    return torch.from_numpy(found[start:].astype(np.bool_))


def packed_length(numbers: int) -> int:
    """Bytes of a packed mask."""
    return -(-numbers // 8)
