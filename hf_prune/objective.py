"""What a cut model is judged by: its outputs, alone or beside the whole model's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from hf_prune.units import Cut, Unit


class Left:
    """What a model, whole or cut, makes of one sequence.

    Attributes:
        ids: (length,) int64 token ids, without pads.
        hidden: (length, width) what enters the last norm, in the model's dtype.
        whole: the same of the whole model; None for that itself, and where nothing is compared.

    Args:
        ids: see above.
        hidden: see above.
        head: (length, width) hidden states -> (length, vocabulary) logits.
        whole: see above.
    """

    def __init__(
        self,
        ids: torch.Tensor,
        hidden: torch.Tensor,
        head: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        whole: "Left | None" = None,
    ) -> None:
        self.ids, self.hidden, self.whole, self._head = ids, hidden, whole, head

    @cached_property
    def logits(self) -> torch.Tensor:
        """(length, vocabulary) in float32 at least, made when first asked for."""
        made = self._head(self.hidden, self.ids)
        return made.to(torch.promote_types(made.dtype, torch.float32))


class Running(Protocol):
    """Adds up one model's damage, sequence by sequence."""

    def add(self, left: Left) -> None:
        """Look at what the model makes of one sequence."""
        ...

    def value(self) -> float:
        """The damage over all sequences; lower is better."""
        ...


Score = Callable[[Sequence[Cut]], list[float]]
"""Cuts -> the damage of each; the empty cut is the whole model."""

Attribute = Callable[[Score, Sequence[Unit], Cut], dict[Unit, float]]
"""(damage of cuts, units, what is gone already) -> how much each unit matters; the lowest goes first."""


def leave_one_out(score: Score, units: Sequence[Unit], removed: Cut) -> dict[Unit, float]:
    """The damage where each unit goes too, all else staying as it is (Shortened LLaMA, SLEB).

    Args:
        score: of cuts.
        units: that may go.
        removed: what is gone already.
    """
    return dict(zip(units, score([removed | {unit} for unit in units]), strict=True))


@dataclass(frozen=True)
class OutputMeasure:
    """A measure that runs cut models.

    Attributes:
        start: a fresh sum for one model.
        compares: whether it looks at the whole model's outputs too (`Left.whole`).
        attribute: how the damage of cuts says how much each unit matters.
    """

    start: Callable[[], Running]
    compares: bool = False
    attribute: Attribute = leave_one_out


def next_token_losses(left: Left) -> torch.Tensor:
    """(length - 1,) float64 losses of predicting each next token, nats."""
    logits = left.logits[:-1]
    return torch.nn.functional.cross_entropy(logits, left.ids[1:].to(logits.device), reduction="none").double()
