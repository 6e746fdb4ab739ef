"""How much of each layer goes: less of those whose scores have many outliers."""

from collections.abc import Sequence

import torch

from hf_prune.allocation import allocate, min_max


def outlier_share(scores: Sequence[torch.Tensor], multiple: float) -> float:
    """D of one layer: the share of its scores above `multiple` times their mean, in percent (OWL, arXiv:2310.05175).

    Args:
        scores: of each linear map of the layer, at least 0.
        multiple: M.

    Returns:
        In [0, 100]; 0 where all scores are.
    """
    count = sum(each.numel() for each in scores)
    mean = sum(float(each.double().sum()) for each in scores) / count
    return 100 * sum(int((each > multiple * mean).sum()) for each in scores) / count


def kept_by_outliers(
    outliers: Sequence[float], sparsity: float, spread: float, weights: Sequence[int]
) -> tuple[float, ...]:
    """The share of each layer that stays: 2 lambda minmax(D)_l - mean + (1 - S) (OWL; released code).

    That is the allocator of dynamic slicing on a base below the mean: the mean of the shares, each layer counted by
    its weights, is 1 - S exactly, and shares that would leave [0, 1] are clipped without changing it.

    Args:
        outliers: D of each layer.
        sparsity: S, in [0, 1].
        spread: lambda; two layers differ by at most twice as much.
        weights: of each layer, how many there are.
    """
    scaled = min_max(outliers)
    mean = sum(share * count for share, count in zip(scaled, weights, strict=True)) / sum(weights)
    return allocate(scaled, 1 - sparsity, 1 - sparsity - 2 * spread * mean, weights=weights)
