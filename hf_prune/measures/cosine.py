"""Cosines between all pairs of points of the residual stream."""

from collections.abc import Sequence
from typing import Any

import torch

from hf_prune.measures.means import TokenSums
from hf_prune.measures.states import StatePairs, chunks, nested
from hf_prune.registry import measure


@measure(
    "cosine",
    title="Cosine distance between block inputs, all pairs",
    url="https://arxiv.org/abs/2403.19135",
    needs="pass",
    scores=("pairs", "cosines"),
)
def cosine(*, tokens: str = "all", skip_first: bool = False) -> "PairwiseCosines":
    """1 - E cos(h_i, h_j) of all pairs, in [0, 2] (LLM-Streamline; LoRP equations 3 and 4).

    LLM-Streamline's released code maps the cosine to (1 + cos) / 2, which leaves the order of windows as it is.

    Args:
        tokens: "all", as both papers have it, or the "last" one of each sample.
        skip_first: leave out the first token of each sample, where many models keep a huge activation.
    """
    return PairwiseCosines(tokens, skip_first)


class PairwiseCosines(StatePairs):
    """Running sums of all (L+1) x (L+1) cosines, over tokens; standard errors are those of the samples' means.

    Args:
        tokens: "all" or "last".
        skip_first: leave out the first real token of each sample.
    """

    def __init__(self, tokens: str = "all", skip_first: bool = False) -> None:
        super().__init__(tokens, skip_first)
        self._seen = TokenSums(0, 0)

    def add(self, states: Sequence[torch.Tensor]) -> None:
        """Add one sample's cosines; see `StatePairs.add`."""
        points, (tokens, width) = len(states), states[0].shape
        if not len(self._seen.table):
            self._seen = TokenSums(points, points)
        total = torch.zeros(points, points, dtype=torch.float64)
        for part in chunks(tokens, points * (width + points) * 8, self._chunk):
            total += pairwise_cosines(torch.stack([state[part].double() for state in states])).sum(0).cpu()
        self._seen.add((slice(None), slice(None)), total, tokens)

    def sums(self) -> list[torch.Tensor]:
        """(L+1, L+1, 5): tokens, sum of their cosines, samples, sum of samples' means, of those means' squares."""
        return [self._seen.table]

    def result(self) -> dict[str, Any]:
        """`distances` and `standard_errors`, both (L+1) x (L+1) nested tuples, and the number of `samples`."""
        assert len(self._seen.table), "no batch was seen"
        return {
            "distances": nested(1 - self._seen.means()),
            "standard_errors": nested(self._seen.errors()),
            "samples": self._seen.samples,
        }


def pairwise_cosines(states: torch.Tensor) -> torch.Tensor:
    """Cosines between all pairs of states of the same token; zero states as in `redundancy.cosines`.

    Args:
        states: (points, tokens, width) float64.

    Returns:
        (tokens, points, points) float64 in [-1, 1]; 1 up to rounding for equal states.
    """
    of_token = states.transpose(0, 1)
    products = of_token @ of_token.transpose(1, 2)
    squares = products.diagonal(dim1=1, dim2=2)
    norms = (squares[:, :, None] * squares[:, None, :]).sqrt()
    both_zero = (squares[:, :, None] + squares[:, None, :] == 0).double()
    return torch.where(norms > 0, (products / norms).clamp(-1, 1), both_zero)
