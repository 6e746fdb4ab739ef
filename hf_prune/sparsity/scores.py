"""What a weight is worth: scores of all weights of a linear map, the lowest go first."""

import torch


def magnitude(matrix: torch.Tensor) -> torch.Tensor:
    """|W_ij|, as old as pruning (Han et al., arXiv:1506.02626).

    Args:
        matrix: (outputs, inputs), any float dtype.

    Returns:
        The same shape, float64.
    """
    return _wide(matrix).abs()


def wanda(matrix: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """|W_ij| ||X_j||_2 (Wanda, arXiv:2306.11695, equation 1).

    Args:
        matrix: (outputs, inputs), any float dtype.
        norms: (inputs,) of the inputs over all tokens.

    Returns:
        (outputs, inputs) float64.
    """
    scores = _wide(matrix).abs()
    return scores.mul_(norms.to(scores))


def lamp(matrix: torch.Tensor) -> torch.Tensor:
    """w_u^2 / sum of w_v^2 over v >= u, weights ascending by magnitude (LAMP, arXiv:2010.07611, equation 4).

    Of equal magnitudes the first one in the matrix comes first. The largest weight scores 1 exactly, so that one
    threshold for all maps leaves something of each.

    Args:
        matrix: (outputs, inputs), any float dtype.

    Returns:
        The same shape, float64 in [0, 1]; all 0 where the matrix is.
    """
    squares = _wide(matrix).square().flatten()
    ascending, order = squares.sort(stable=True)
    # Summed from the smallest end these would lose their digits: each sum begins with the largest.
    sums = ascending.flip(0).cumsum(0).flip(0)
    found = torch.where(sums > 0, ascending / sums, torch.zeros_like(sums))
    return torch.empty_like(squares).scatter_(0, order, found).reshape(matrix.shape)


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    # Metal has no float64.
    return (matrix.cpu() if matrix.device.type == "mps" else matrix).double()
