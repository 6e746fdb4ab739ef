"""Means and covariances of two states that belong together: all that a linear map from one to the other needs."""

from dataclasses import dataclass

import torch


@dataclass
class JointMoments:
    """Running sums over tokens of z zᵀ, with z = (1, x, y).

    Attributes:
        table: (2 width + 1, 2 width + 1) float64.
    """

    table: torch.Tensor

    @classmethod
    def zeros(cls, width: int, device: torch.device | None = None) -> "JointMoments":
        """Of no tokens."""
        return cls(torch.zeros(2 * width + 1, 2 * width + 1, dtype=torch.float64, device=device))

    def add(self, before: torch.Tensor, behind: torch.Tensor) -> None:
        """Add tokens.

        Args:
            before: (tokens, width) x, any float dtype.
            behind: (tokens, width) y.
        """
        x, y = (states.to(self.table.device).double() for states in (before, behind))
        rows = torch.cat([torch.ones_like(x[:, :1]), x, y], -1)
        self.table += rows.T @ rows

    @property
    def tokens(self) -> int:
        """How many were added."""
        return int(self.table[0, 0])

    @property
    def width(self) -> int:
        """Of both states."""
        return (len(self.table) - 1) // 2

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """E x and E y, (width,)."""
        return tuple(self.table[0, 1:].div(self.table[0, 0]).split(self.width))  # type: ignore[return-value]

    def covariances(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """C_XX, C_YX and C_YY, (width, width), over all tokens."""
        mean = self.table[0, 1:] / self.table[0, 0]
        whole, width = self.table[1:, 1:] / self.table[0, 0] - torch.outer(mean, mean), self.width
        return whole[:width, :width], whole[width:, :width], whole[width:, width:]


def spectrum(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues above what rounding leaves of zero, (rank,), and their eigenvectors, (width, rank)."""
    values, vectors = torch.linalg.eigh(covariance)
    there = values > values.max().clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return values[there], vectors[:, there]


def best_map(moments: JointMoments) -> tuple[torch.Tensor, torch.Tensor]:
    """W = C_YX C_XX⁻¹ and b = μ_Y - W μ_X, which minimise E |y - W x - b|²; directions without variance map to zero.

    Args:
        moments: of the tokens that are fitted to.

    Returns:
        (width, width) and (width,), float64.
    """
    covariance, cross, _ = moments.covariances()
    values, vectors = spectrum(covariance)
    weight = (cross @ vectors / values) @ vectors.T
    before, behind = moments.means()
    return weight, behind - weight @ before


def left_over(moments: JointMoments, weight: torch.Tensor, bias: torch.Tensor) -> float:
    """E |y - W x - b|² / E |y|²: what a map gets wrong of y; 1 for none at all, 0 where y is zero.

    Args:
        moments: of the tokens that judge.
        weight: (width, width) W.
        bias: (width,) b.
    """
    mixed = torch.cat([-bias[:, None], -weight, torch.eye(len(bias), dtype=weight.dtype, device=weight.device)], 1)
    wrong = float(((mixed @ moments.table) * mixed).sum())
    whole = float(moments.table.diagonal()[1 + moments.width :].sum())
    return max(wrong, 0.0) / whole if whole > 0 else 0.0


def correlations(moments: JointMoments) -> torch.Tensor:
    """Canonical correlations of x and y, (rank of C_YY,) in [0, 1], largest first; 0 past the rank of C_XX."""
    own, cross, other = moments.covariances()
    (x_values, x_vectors), (y_values, y_vectors) = spectrum(own), spectrum(other)
    turned = y_vectors.T @ cross @ x_vectors
    found = torch.linalg.svdvals(turned / y_values.sqrt()[:, None] / x_values.sqrt()[None])
    return torch.nn.functional.pad(found, (0, len(y_values) - len(found))).clamp(0, 1)
