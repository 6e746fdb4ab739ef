"""How little each layer turns the residual stream: cosines between its input and its output."""

from typing import Any

import torch

from hf_prune.measures.means import LayerMeans, double
from hf_prune.registry import measure


@measure(
    "redundancy",
    title="Cosine between input and output of each layer, all tokens",
    url="https://arxiv.org/abs/2411.03513",
    needs="pass",
    scores=("layers",),
)
def redundancy(*, skip_first: bool = False) -> "LayerCosines":
    """Mean cosine of h_l and h_(l+1) of each layer (what Dynamic Slicing scales to its Layer Redundancy score).

    Args:
        skip_first: leave out the first token of each sample, where many models keep a huge activation that hides
            what a layer adds.
    """
    return LayerCosines(skip_first)


class LayerCosines(LayerMeans):
    """Running sums of cos(h_l, h_(l+1)): a few numbers a layer, whatever the number of samples.

    Both states are the residual stream, before any norm; the mean is over all real tokens (the mask tells which), so
    that longer samples weigh more. Standard errors are those of the samples' means.

    Args:
        skip_first: leave out the first real token of each sample.
    """

    def __init__(self, skip_first: bool = False) -> None:
        super().__init__(cosines, skip_first=skip_first)

    def result(self) -> dict[str, Any]:
        """`layers` and `layer_standard_errors`, one number a layer, and the number of `samples`."""
        means, errors, samples = self.found()
        return {"layers": means, "layer_standard_errors": errors, "samples": samples}


def cosines(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cosine of each pair of states.

    A zero state has no direction: it stands at right angles to all others (0), as in the angular measure, and two
    zero states are equal (1).

    Args:
        first: (tokens, width), any float dtype.
        second: the same shape.

    Returns:
        (tokens,) float64 in [-1, 1]; 1 up to an ulp for equal states.
    """
    u, v = double(first), double(second)
    v = v.to(u.device)
    # One square root of the product: the quotient of equal states is then 1 exactly, not 1 less a rounding.
    squares = (u * u).sum(-1), (v * v).sum(-1)
    norms = (squares[0] * squares[1]).sqrt()
    both_zero = (squares[0] + squares[1] == 0).double()
    return torch.where(norms > 0, ((u * v).sum(-1) / norms).clamp(-1, 1), both_zero)
