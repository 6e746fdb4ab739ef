"""Distances between what enters the blocks, all pairs in one pass."""

from typing import Any

import torch

from hf_prune.observing import Place
from hf_prune.registry import measure


@measure(
    "angular",
    title="Angular distance between block inputs, last token",
    url="https://arxiv.org/abs/2403.17887",
    needs="pass",
    scores=("pairs",),
)
def angular() -> "PairwiseAngles":
    """Mean angle between h_i and h_j at the last token of each sample (UIDL equation 7)."""
    return PairwiseAngles()


class PairwiseAngles:
    """Running sums of all (L+1) x (L+1) angles: O(L^2) numbers, whatever the number of samples.

    d(h_i, h_j) = arccos(cos(h_i, h_j)) / pi, in [0, 1], at the last real token of the sample (the mask tells which);
    the mean is over angles, not the angle of a mean. The angle is taken as 2 atan2(|u - v|, |u + v|) of the unit
    vectors in float64, which stays exact where arccos loses half of its digits.
    """

    def __init__(self) -> None:
        self._states: dict[int, list[torch.Tensor]] = {}
        self._sum = torch.zeros(0, 0, dtype=torch.float64)
        self._squares = torch.zeros(0, 0, dtype=torch.float64)
        self._samples = torch.zeros((), dtype=torch.float64)

    def see(self, at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> None:
        """Keep the last token's states of this batch; fold them into the sums after the last block."""
        if at.layer == 0:
            self._states[at.batch] = [_last_token(inputs, mask)]
        self._states[at.batch].append(_last_token(outputs, mask))
        if at.is_last:
            self._fold(self._states.pop(at.batch))

    def sums(self) -> list[torch.Tensor]:
        """Sums of angles and of their squares, both (L+1) x (L+1), and the number of samples."""
        return [self._sum, self._squares, self._samples]

    def result(self) -> dict[str, Any]:
        """`distances` and `standard_errors`, both (L+1) x (L+1) nested tuples, and the number of `samples`."""
        assert self._samples > 0, "no batch was seen"
        n = int(self._samples)
        mean = self._sum / n
        # Sample variance from the two sums; rounding may take it a hair below zero.
        variance = ((self._squares - n * mean**2) / max(n - 1, 1)).clamp(min=0)
        return {
            "distances": tuple(map(tuple, mean.tolist())),
            "standard_errors": tuple(map(tuple, (variance / n).sqrt().tolist())),
            "samples": n,
        }

    def _fold(self, kept: list[torch.Tensor]) -> None:
        # Where the last block lies; Metal has no float64.
        device = torch.device("cpu") if kept[-1].device.type == "mps" else kept[-1].device
        angles = pairwise_angles(torch.stack([s.to(device).double() for s in kept]))  # (batch, L+1, L+1)
        if not self._samples:
            self._sum, self._squares = torch.zeros(2, *angles.shape[1:], dtype=torch.float64).unbind()
        self._sum += angles.sum(0).cpu()
        self._squares += (angles**2).sum(0).cpu()
        self._samples += len(angles)


def _last_token(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(batch, length, width) -> (batch, width) at the last position that is no pad."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * positions).argmax(dim=1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


def pairwise_angles(states: torch.Tensor) -> torch.Tensor:
    """Angles between all pairs of states of the same sample.

    Args:
        states: (points, batch, width) float64.

    Returns:
        (batch, points, points) float64 in [0, 1], units of pi, on the same device; exactly 0 for equal states.
    """
    unit = states / states.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    unit = unit.transpose(0, 1).contiguous()
    points = unit.shape[1]
    angles = torch.zeros(unit.shape[0], points, points, dtype=torch.float64, device=states.device)
    for i in range(points - 1):  # one row at a time: (batch, points, width), not (batch, points, points, width)
        later, this = unit[:, i + 1 :], unit[:, i : i + 1]
        difference, total = (later - this).norm(dim=-1), (later + this).norm(dim=-1)
        angles[:, i, i + 1 :] = 2 * torch.atan2(difference, total) / torch.pi
    return angles + angles.transpose(1, 2)
