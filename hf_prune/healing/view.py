"""What a healing loss looks at: one micro-batch as the pruned model sees it, and as the original does."""

from dataclasses import dataclass, field

import torch

IGNORED = -100
"""Label of a position whose next token is not learned: the last of a text, pads, and what somebody else said."""


@dataclass(frozen=True)
class TeacherView:
    """What the original makes of a micro-batch.

    Attributes:
        logits: (batch, length, vocabulary); None where only the likeliest tokens were kept.
        top: (log-probabilities (batch, length, k) in float32, token ids (batch, length, k) int64) at temperature 1, of
            the k likeliest tokens; None where all logits are there.
        tail: (batch, length) float32, beside `top`: log of the sum of p^(1/T) over all other tokens, T being the
            temperature at which predictions are compared.
        states: position in the pruned model -> (batch, length, width), what enters the original's block that stands
            there; the pruned model's depth stands for its last norm.
        prefix: (batch, length, width), what leaves the blocks that both models begin with; None where nobody asked.
    """

    logits: torch.Tensor | None = None
    top: tuple[torch.Tensor, torch.Tensor] | None = None
    tail: torch.Tensor | None = None
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    prefix: torch.Tensor | None = None


@dataclass(frozen=True)
class View:
    """What the pruned model makes of a micro-batch, with gradients.

    Attributes:
        logits: (batch, length, vocabulary).
        labels: (batch, length) int64, the token that follows each position; `IGNORED` where that is not learned.
        states: position -> (batch, length, width), what enters the pruned model's block there.
        teacher: the same of the original, where a loss needs it.
        seams: those of the positions that stand behind a gap.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    teacher: TeacherView | None = None
    seams: tuple[int, ...] = ()

    @property
    def counted(self) -> torch.Tensor:
        """(batch, length) bool, the positions that a loss sums over."""
        return self.labels != IGNORED
