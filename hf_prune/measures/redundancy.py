"""How little each layer turns the residual stream: cosines between its input and its output."""

from typing import Any

import torch

from hf_prune.errors import MeasureError
from hf_prune.registry import measure
from hf_prune.runner import Place


@measure(
    "redundancy",
    title="Cosine between input and output of each layer, all tokens",
    url="https://arxiv.org/abs/2411.03513",
    needs="pass",
)
def redundancy(*, skip_first: bool = False) -> "LayerCosines":
    """Mean cosine of h_l and h_(l+1) of each layer (what Dynamic Slicing scales to its Layer Redundancy score).

    Args:
        skip_first: leave out the first token of each sample, where many models keep a huge activation that hides
            what a layer adds.
    """
    return LayerCosines(skip_first)


class LayerCosines:
    """Running sums of cos(h_l, h_(l+1)): a few numbers a layer, whatever the number of samples.

    Both states are the residual stream, before any norm; the mean is over all real tokens (the mask tells which), so
    that longer samples weigh more. Standard errors are those of the samples' means.

    Args:
        skip_first: leave out the first real token of each sample.
    """

    def __init__(self, skip_first: bool = False) -> None:
        self._skip = int(skip_first)
        # Of each layer: tokens, sum of their cosines, samples, sum of the samples' means, and of those means' squares.
        self._sums = torch.zeros(0, 5, dtype=torch.float64)

    def see(self, at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> None:
        """Add one batch's cosines to the layer's sums.

        Raises:
            MeasureError: a sample has no token to measure.
        """
        if not len(self._sums):
            self._sums = torch.zeros(at.depth, 5, dtype=torch.float64)
        # One sample at a time: float64 copies of a whole batch could be larger than the model. Which cosines are of
        # pads is told behind the loop: on a GPU, asking within it would wait for each sample.
        found = torch.stack([cosines(before, after) for before, after in zip(inputs, outputs, strict=True)]).cpu()
        for row, real in zip(found, mask.cpu().bool(), strict=True):
            of_tokens = row[real][self._skip :]
            if not len(of_tokens):
                raise MeasureError(
                    f"a sample of {int(real.sum())} tokens has none to measure with skip_first={bool(self._skip)}; "
                    "expected at least 1. Leave short samples out"
                )
            tokens, total = len(of_tokens), float(of_tokens.sum())
            mean = total / tokens
            self._sums[at.layer] += torch.tensor([tokens, total, 1, mean, mean * mean], dtype=torch.float64)

    def sums(self) -> list[torch.Tensor]:
        """(layers, 5): tokens, sum of their cosines, samples, sum of the samples' means, of those means' squares."""
        return [self._sums]

    def result(self) -> dict[str, Any]:
        """`layers` and `layer_standard_errors`, one number a layer, and the number of `samples`."""
        assert len(self._sums), "no batch was seen"
        tokens, cosines, samples, means, squares = self._sums.unbind(1)
        # Sample variance from the two sums; rounding may take it a hair below zero.
        variance = ((squares - means**2 / samples) / (samples - 1).clamp(min=1)).clamp(min=0)
        return {
            "layers": tuple((cosines / tokens).tolist()),
            "layer_standard_errors": tuple((variance / samples).sqrt().tolist()),
            "samples": int(samples[0]),
        }


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
    u, v = _double(first), _double(second)
    v = v.to(u.device)
    # One square root of the product: the quotient of equal states is then 1 exactly, not 1 less a rounding.
    squares = (u * u).sum(-1), (v * v).sum(-1)
    norms = (squares[0] * squares[1]).sqrt()
    both_zero = (squares[0] + squares[1] == 0).double()
    return torch.where(norms > 0, ((u * v).sum(-1) / norms).clamp(-1, 1), both_zero)


def _double(hidden: torch.Tensor) -> torch.Tensor:
    # Squares of half precision overflow, and float32 loses the digits by which good layers differ. Metal has no
    # float64.
    return (hidden.cpu() if hidden.device.type == "mps" else hidden).double()
