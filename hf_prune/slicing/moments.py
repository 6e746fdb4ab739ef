"""Second moments of the residual stream, and the rotation that they name."""

from typing import Literal

import torch

Weighting = Literal["raw", "token"]
Orientation = Literal["pca", "random"]


class SecondMoment:
    """The uncentred second moment C = sum over tokens of x^T x (SliceGPT section 3.3).

    A batch is multiplied in float32 and added in float64: its products are exact enough, the sum over a million tokens
    in float32 would not be.

    Args:
        width: D.
        weighting: "raw" sums the tokens as they are, so that a few of huge norm weigh most; "token" scales each to
            norm one first, as the norm behind it will (the paper's text, where its code is "raw").
    """

    def __init__(self, width: int, weighting: Weighting = "raw") -> None:
        self.width, self.weighting = width, weighting
        self.total: torch.Tensor | None = None
        self.tokens = 0

    def add(self, hidden: torch.Tensor, mask: torch.Tensor) -> None:
        """Count the tokens of a batch.

        Args:
            hidden: (batch, length, D).
            mask: (batch, length), 0 for pads, which are left out.
        """
        rows = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        rows = rows.reshape(-1, self.width) if bool(mask.all()) else rows[mask.to(hidden.device).bool()]
        if self.weighting == "token":
            rows = torch.nn.functional.normalize(rows, dim=-1)
        if self.total is None:
            self.total = torch.zeros(self.width, self.width, dtype=torch.float64, device=rows.device)
        self.total += rows.T @ rows
        self.tokens += len(rows)

    def normalised(self) -> torch.Tensor:
        """C divided by its trace: (D, D) float64."""
        assert self.total is not None, "no batch was seen"
        return self.total / self.total.trace()


def principal_basis(
    moment: torch.Tensor, width: int, orientation: Orientation = "pca", generator: torch.Generator | None = None
) -> torch.Tensor:
    """The `width` directions in which the stream is largest, as orthonormal columns.

    Args:
        moment: (D, D) float64 second moment.
        width: columns.
        orientation: "pca" leaves them sorted by what they carry; "random" turns them among themselves, which spans the
            same space, spreads its energy evenly, and suits quantization.
        generator: for "random".

    Returns:
        (D, width) float64.
    """
    _, vectors = torch.linalg.eigh(moment)
    basis = vectors.flip(-1)[:, :width].contiguous()
    if orientation == "random":
        drawn = torch.randn(width, width, dtype=torch.float64, generator=generator)
        turn, triangle = torch.linalg.qr(drawn)
        # With the signs of the diagonal the turn is uniform among all rotations, and the same on every machine.
        basis = basis @ (turn * triangle.diagonal().sign()).to(basis.device)
    return basis
