"""Centred kernel alignment between all pairs of points of the residual stream."""

from collections.abc import Sequence
from typing import Any

import torch

from hf_prune.errors import MeasureError
from hf_prune.measures.states import StatePairs, chunks, nested
from hf_prune.registry import measure

_FEWEST = 4
"""Tokens of a sample that the unbiased estimate needs."""


@measure(
    "cka",
    title="Distance between block inputs by linear centred kernel alignment, all pairs",
    url="https://arxiv.org/abs/1905.00414",
    needs="pass",
    scores=("pairs",),
)
def cka(*, skip_first: bool = False) -> "PairwiseAlignment":
    """1 - CKA(h_i, h_j) of all pairs, linear kernel, in [0, 2] (Kornblith et al. section 3; the map of SLM).

    CKA = HSIC(h_i, h_j) / sqrt(HSIC(h_i, h_i) HSIC(h_j, h_j)). HSIC is estimated without bias within each sample
    (HSIC_1 of Song et al. 2012) and added up over samples before the quotient is taken (minibatch CKA of Nguyen et al.
    2021, whose minibatch is here one sample, so that the batch size does not matter). The biased estimate, |X^T Y|^2
    of centred states, calls all layers alike where the width is larger than the number of tokens, as it is in
    language models.

    Args:
        skip_first: leave out the first token of each sample, whose huge activation in many models outweighs all other
            tokens.
    """
    return PairwiseAlignment(skip_first)


class PairwiseAlignment(StatePairs):
    """Running sums of HSIC between all (L+1) x (L+1) pairs; those of a sample weigh as much as it has tokens.

    Samples of fewer than four tokens tell nothing and do not count. Standard errors are those of the quotient of sums,
    to first order in the samples' HSIC.

    Args:
        skip_first: leave out the first real token of each sample.
    """

    def __init__(self, skip_first: bool = False) -> None:
        super().__init__(skip_first=skip_first)
        self._samples = torch.zeros((), dtype=torch.float64)
        # Of the samples' a_ij (HSIC): sums of a_ij, a_ij^2, a_ij a_ii, and a_ii a_jj.
        self._sums = torch.zeros(4, 0, 0, dtype=torch.float64)

    def add(self, states: Sequence[torch.Tensor]) -> None:
        """Add one sample's HSIC; see `StatePairs.add`."""
        if not self._sums.numel():
            self._sums = torch.zeros(4, len(states), len(states), dtype=torch.float64)
        if len(states[0]) < _FEWEST:
            return
        found = alignments(states, self._chunk).cpu()
        own = found.diagonal()
        self._sums += torch.stack([found, found**2, found * own[:, None], own[:, None] * own])
        self._samples += 1

    def sums(self) -> list[torch.Tensor]:
        """(4, L+1, L+1): sums of HSIC, of its squares, of it times that of the row alone, and of both of these alone;
        and the number of samples."""
        return [self._sums, self._samples]

    def result(self) -> dict[str, Any]:
        """`distances` and `standard_errors`, both (L+1) x (L+1) nested tuples, and the number of `samples`.

        Raises:
            MeasureError: no sample is long enough.
        """
        n = int(self._samples)
        if not n:
            raise MeasureError(f"measure 'cka' found no sample of {_FEWEST} tokens or more; take longer ones")
        total, squares, with_row, alone = self._sums
        own = total.diagonal()
        norms = (own[:, None] * own).sqrt()
        both_flat = (own[:, None] + own == 0).double()
        quotient = torch.where(norms > 0, (total / norms).clamp(-1, 1), both_flat)
        # The quotient changes with one sample's HSIC by a_ij / norm - quotient (a_ii / own_i + a_jj / own_j) / 2;
        # over all samples these changes add up to zero.
        row = 1 / own[:, None].clamp(min=torch.finfo(torch.float64).tiny)
        halves = (alone.diagonal()[:, None] * row**2 + alone.diagonal() * row.T**2 + 2 * alone * row * row.T) / 4
        crossed = (with_row * row + with_row.T * row.T) / norms
        spread = squares / norms**2 - quotient * crossed + quotient**2 * halves
        variance = torch.where(norms > 0, spread, 0).clamp(min=0) * n / max(n - 1, 1)
        return {
            "distances": nested(1 - quotient),
            "standard_errors": nested(variance.sqrt() if n > 1 else torch.zeros_like(variance)),
            "samples": n,
        }


def alignments(states: Sequence[torch.Tensor], most: int | None = None) -> torch.Tensor:
    """HSIC between all pairs of points, each without bias, times the number of tokens.

    With K the products of all pairs of tokens at a point, and K' what is left of K without its diagonal when rows and
    columns are centred the unbiased way, HSIC(i, j) = sum(K'_i * K'_j) / (n (n - 3)): of the same points it is never
    negative.

    Args:
        states: (tokens, width) of each point, any float dtype, on one device that has float64; at least 4 tokens.
        most: bytes of tables that are there at once, see `chunks`.

    Returns:
        (points, points) float64, on that device.
    """
    points, tokens = len(states), len(states[0])
    found = torch.zeros(points, points, dtype=torch.float64, device=states[0].device)
    for part in chunks(tokens, points * tokens * 8, most):
        # A few rows of the tables of all points: all of them are larger than the states.
        rows = torch.stack([_centred_rows(state, part) for state in states]).flatten(1)
        found += rows @ rows.T
    return found / (tokens - 3)


def _centred_rows(state: torch.Tensor, part: slice) -> torch.Tensor:
    """Some rows of K', (rows, tokens)."""
    x = state.double()
    x = x - x.mean(0)  # changes nothing of K', and leaves numbers without a large part in common
    n, squares = len(x), (x * x).sum(-1)
    # The sum of a row of K without its diagonal is then -|x_i|^2.
    rows = x[part] @ x.T + (squares[part, None] + squares) / (n - 2) - squares.sum() / ((n - 1) * (n - 2))
    here = torch.arange(part.start, part.stop, device=x.device)
    rows[here - part.start, here] = 0
    return rows
