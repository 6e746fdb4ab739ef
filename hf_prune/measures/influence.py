"""How much each block changes the residual stream."""

from functools import partial

import torch

from hf_prune.errors import ConfigError
from hf_prune.measures.means import LayerMeans, double
from hf_prune.measures.redundancy import cosines
from hf_prune.registry import measure

_ORDERS = {"l1": 1.0, "l2": 2.0}


@measure(
    "block_influence",
    title="How far each block turns the residual stream",
    url="https://arxiv.org/abs/2403.03853",
    needs="pass",
    scores=("block",),
)
def block_influence(*, tokens: str = "all", skip_first: bool = False) -> LayerMeans:
    """Block Influence BI_k = 1 - E cos(h_k, h_(k+1)), in [0, 2] (ShortGPT equation 1).

    It is 0 for a block that adds nothing. The mean is over real tokens, and the state behind the last block is taken
    before the final norm. The released code sums over tokens, counts pads, gives NaN the score 0.5, and takes the last
    block's output behind the final norm.

    Args:
        tokens: "all", or the "last" one of each sample.
        skip_first: leave out the first token of each sample, where many models keep a huge activation that hides what
            a block adds.
    """
    return LayerMeans(turned, tokens, skip_first)


@measure(
    "relative_magnitude",
    title="Magnitude of what each block adds, relative to what enters it",
    url="https://arxiv.org/abs/2407.16286",
    needs="pass",
    scores=("block",),
)
def relative_magnitude(*, norm: str = "l2", tokens: str = "all", skip_first: bool = False) -> LayerMeans:
    """E |h_(k+1) - h_k| / |h_k|: what a block adds relative to its input ("A deeper look at depth pruning").

    Args:
        norm: "l1" or "l2", over the width.
        tokens: "all", or the "last" one of each sample.
        skip_first: leave out the first token of each sample.

    Raises:
        ConfigError: there is no such norm.
    """
    if norm not in _ORDERS:
        raise ConfigError(f"norm={norm!r} of measure 'relative_magnitude'; expected one of: {', '.join(_ORDERS)}")
    return LayerMeans(partial(relative_change, order=_ORDERS[norm]), tokens, skip_first)


def turned(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """1 - cosine of each pair of states; see `cosines`.

    Args:
        before: (tokens, width), any float dtype.
        after: the same shape.

    Returns:
        (tokens,) float64 in [0, 2].
    """
    return 1 - cosines(before, after)


def relative_change(before: torch.Tensor, after: torch.Tensor, order: float) -> torch.Tensor:
    """Norm of the difference of each pair of states over that of the first.

    Where the first state is zero, all of the second is change (1), or nothing is (0).

    Args:
        before: (tokens, width), any float dtype.
        after: the same shape.
        order: of the norm.

    Returns:
        (tokens,) float64, at least 0.
    """
    u, v = double(before), double(after)
    size, change = u.norm(order, dim=-1), (v.to(u.device) - u).norm(order, dim=-1)
    return torch.where(size > 0, change / size, (change > 0).double())
