"""A linear map of what one MLP writes, solved so that it stands in for the blocks that go."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass
class Moments:
    """Running sums over tokens, with M what the MLP writes and D what the blocks that go add: all that least squares
    needs.

    Attributes:
        gram: (width, width) float64, MᵀM.
        cross: (width, width) float64, MᵀD.
        square: ‖D‖².
        rows: tokens.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    square: float = 0.0
    rows: int = 0

    @classmethod
    def zeros(cls, width: int, device: torch.device) -> "Moments":
        """Of no tokens."""
        gram, cross = torch.zeros(2, width, width, dtype=torch.float64, device=device).unbind()
        return cls(gram, cross)

    def add(self, written: torch.Tensor, missing: torch.Tensor) -> None:
        """Add tokens.

        Args:
            written: (tokens, width) float64, M.
            missing: (tokens, width) float64, D.
        """
        self.gram += written.T @ written
        self.cross += written.T @ missing
        self.square += float(missing.square().sum())
        self.rows += len(written)

    def error(self, change: torch.Tensor | None) -> float:
        """Mean over tokens of ‖M Δ - D‖²: how far the seam is off.

        Args:
            change: (width, width) float64, Δ = T - I; None for zero, which is plain dropping.
        """
        if change is None:
            return self.square / self.rows
        off = (change * (self.gram @ change)).sum() - 2 * (change * self.cross).sum() + self.square
        return max(float(off), 0.0) / self.rows  # rounding may take it a hair below zero


class Ridge:
    """Least squares whose solution is drawn to no change at all: argmin ‖M Δ - D‖² + λ ‖Δ‖².

    With T = I + Δ that is ‖M T + Y - h_(s+n)‖² + λ ‖T - I‖² (ReplaceMe section 3.2, with the ridge towards I). One
    eigendecomposition serves all λ, and a Gram matrix without full rank does no harm.

    Args:
        moments: of the tokens that are fitted to.
    """

    def __init__(self, moments: Moments) -> None:
        values, self._vectors = torch.linalg.eigh(moments.gram)
        self._values = values.clamp(min=0)  # rounding may take the smallest a hair below zero
        self._turned = self._vectors.T @ moments.cross

    def solve(self, strength: float) -> torch.Tensor:
        """Δ, (width, width) float64.

        Args:
            strength: λ in units of the mean eigenvalue of MᵀM; above zero.
        """
        penalty = strength * self._values.mean()
        scale = self._values + penalty
        # Nothing is written at all where the sum is zero: then there is nothing to change either.
        inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
        return self._vectors @ (inverse[:, None] * self._turned)


@dataclass(frozen=True)
class Solution:
    """What held-out tokens say of a fit.

    Attributes:
        change: (width, width) float64, Δ = T - I; None where dropping alone is no worse.
        strength: λ of the best fit, see `Ridge.solve`.
        error: mean squared error of the best fit at the seam, on held-out tokens.
        dropped: the same where nothing stands in.
    """

    change: torch.Tensor | None
    strength: float
    error: float
    dropped: float


def solve(fitted_to: Moments, held_out: Moments, strengths: Sequence[float]) -> Solution:
    """The map that is best on held-out tokens, among those of several ridges.

    Args:
        fitted_to: tokens that the map is solved for.
        held_out: tokens that choose the ridge, and whether the map is used.
        strengths: see `Ridge.solve`; at least one.
    """
    ridge, dropped = Ridge(fitted_to), held_out.error(None)
    error, strength = min((held_out.error(ridge.solve(strength)), strength) for strength in strengths)
    return Solution(ridge.solve(strength) if error < dropped else None, strength, error, dropped)


def fold(weight: torch.Tensor, change: torch.Tensor, *, transposed: bool) -> torch.Tensor:
    """A linear map followed by T = I + Δ, as one.

    Args:
        weight: (width, inputs); (inputs, width) where `transposed`; or a bias, (width,).
        change: (width, width) float64, Δ; states are rows, so that T stands on their right.
        transposed: whether the weight is that of a Conv1D (GPT-2).

    Returns:
        The same shape, float32.
    """
    wide = weight.detach().to(change.device).double()
    moved = wide @ change if transposed or weight.ndim == 1 else change.T @ wide
    return (wide + moved).float().cpu()
