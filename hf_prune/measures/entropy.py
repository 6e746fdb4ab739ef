"""How much entropy each block, or each of its parts, adds to the residual stream."""

import torch

from hf_prune.errors import ConfigError
from hf_prune.measures.means import LayerMeans, Value, double
from hf_prune.measures.parts import PartMeans
from hf_prune.registry import measure

_URL = "https://arxiv.org/abs/2504.03794"


@measure(
    "entropy",
    title="Entropy that each block adds to the residual stream",
    url=_URL,
    needs="pass",
    scores=("block",),
)
def entropy(*, bins: int = 20) -> LayerMeans:
    """H(h_(k+1)) - H(h_k) of each block, nats (EntroDrop's entropy increase); see `channel_entropy`.

    H is taken over the real tokens of one sample, as in the released code, whose batches are single samples of 256
    tokens. Each sample's difference counts as often as it has tokens, so that longer samples weigh more. Only the
    upper part of a model, where entropy rises, is meant to be pruned: protect the first two blocks and the last.

    Args:
        bins: of each channel's histogram.

    Raises:
        ConfigError: fewer than two bins.
    """
    return LayerMeans(_gain(bins))


@measure(
    "sublayer_entropy",
    title="Entropy that attention and MLP of each block add",
    url=_URL,
    needs="pass",
    scores=("attention", "mlp"),
)
def sublayer_entropy(*, bins: int = 20) -> PartMeans:
    """H(x + f(norm x)) - H(x) of attention and of MLP, nats; see `entropy`, and `PartMeans` for x.

    The released code takes that of attention with a nearest-neighbour estimate; the paper's own is the histogram.

    Args:
        bins: of each channel's histogram.

    Raises:
        ConfigError: fewer than two bins.
    """
    return PartMeans(_gain(bins))


def _gain(bins: int) -> Value:
    if bins < 2:
        raise ConfigError(f"bins={bins}; expected at least 2, as one bin holds everything")

    def gain(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        difference = channel_entropy(after, bins) - channel_entropy(before, bins).to(after.device)
        return difference.expand(len(before))

    return gain


def channel_entropy(states: torch.Tensor, bins: int) -> torch.Tensor:
    """Sum over channels of the entropy of a histogram between the channel's own least and largest value.

    Stretching or shifting a channel leaves it as it is; a channel of one value has none.

    Args:
        states: (tokens, width), any float dtype.
        bins: of equal width; values on an edge go to the upper one, the largest to the last.

    Returns:
        float64 scalar in [0, width x log(bins)], nats.
    """
    x = double(states).T
    low, high = x.aminmax(dim=1, keepdim=True)
    share = torch.where(high > low, (x - low) / (high - low), 0)
    index = (share * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(len(x), bins, dtype=torch.float64, device=x.device)
    counts.scatter_add_(1, index, torch.ones_like(x))
    return torch.special.entr(counts / x.shape[1]).sum()
