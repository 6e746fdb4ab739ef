"""How far logits move from the whole model's."""

import math
from collections.abc import Callable

import torch

from hf_prune.objective import Left, OutputMeasure
from hf_prune.registry import measure

_FINERCUT = "https://arxiv.org/abs/2405.18218"

_POSITIONS = 256
"""Rows of logits that are worked on at once: in float64 they take twice the room."""

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Two times (positions, vocabulary) float64 logits -> (positions,) distances."""


@measure(
    "logit_angle", title="Angle to the whole model's logits where each is left out", url=_FINERCUT, needs="outputs"
)
def logit_angle() -> OutputMeasure:
    """Mean angle between the logits of the cut and of the whole model, in [0, 1], units of pi (FinerCut).

    The angle of each predicted token's logits, not of all of them as one vector: the paper leaves that open, and has
    no released code.
    """
    return OutputMeasure(lambda: MeanDistance(angles), compares=True)


@measure(
    "logit_l2", title="Distance to the whole model's logits where each is left out", url=_FINERCUT, needs="outputs"
)
def logit_l2() -> OutputMeasure:
    """Mean Euclidean distance between the logits of the cut and of the whole model (FinerCut).

    Of each predicted token's logits. A constant that is added to all logits of a token changes nothing that the model
    says, and counts here all the same.
    """
    return OutputMeasure(lambda: MeanDistance(lengths), compares=True)


@measure(
    "logit_js",
    title="Jensen-Shannon divergence from the whole model where each is left out",
    url=_FINERCUT,
    needs="outputs",
)
def logit_js() -> OutputMeasure:
    """Mean Jensen-Shannon divergence of the next-token distributions, nats, in [0, ln 2] (FinerCut)."""
    return OutputMeasure(lambda: MeanDistance(jensen_shannon), compares=True)


class MeanDistance:
    """A mean over predicted tokens of a distance between the logits of the cut and of the whole model.

    Args:
        distance: between two rows of logits.
    """

    def __init__(self, distance: Distance) -> None:
        self._distance = distance
        self._sum, self._count = 0.0, 0

    def add(self, left: Left) -> None:
        """Add the distances of one sequence's tokens."""
        assert left.whole is not None, "nothing to compare with"
        ours, theirs = left.logits[:-1], left.whole.logits[:-1]
        for one, other in zip(ours.split(_POSITIONS), theirs.split(_POSITIONS), strict=True):
            self._sum += float(self._distance(_double(one), _double(other)).sum())
        self._count += len(ours)

    def value(self) -> float:
        """The mean."""
        assert self._count, "no sequence was seen"
        return self._sum / self._count


def angles(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Angles between rows, in [0, 1], units of pi; exactly 0 for equal rows.

    Taken as 2 atan2(|u - v|, |u + v|) of the unit vectors: arccos would lose half of the digits of small angles.
    """
    u, v = (row / row.norm(dim=-1, keepdim=True) for row in (ours, theirs))
    return 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)) / torch.pi


def lengths(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Euclidean distances between rows."""
    return (ours - theirs).norm(dim=-1)


def jensen_shannon(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergences of the distributions that rows of logits stand for, nats."""
    p, q = torch.log_softmax(ours, -1), torch.log_softmax(theirs, -1)
    mean = torch.logaddexp(p, q) - math.log(2)
    # Tokens that a model rules out add nothing; NaN goes on.
    halves = [torch.where(log.exp() == 0, 0.0, log.exp() * (log - mean)).sum(-1) for log in (p, q)]
    return ((halves[0] + halves[1]) / 2).clamp(0, math.log(2))


def _double(logits: torch.Tensor) -> torch.Tensor:
    # Metal has no float64.
    return (logits.cpu() if logits.device.type == "mps" else logits).double()
