"""What a cut does to the outputs: loss on text, and divergence from the whole model."""

import torch

from hf_prune.objective import Left, OutputMeasure, next_token_losses
from hf_prune.registry import measure


@measure(
    "loss",
    title="Loss where each is left out",
    url="https://arxiv.org/abs/2402.02834",
    needs="outputs",
)
def loss() -> OutputMeasure:
    """Mean next-token loss without the unit, nats per token (Shortened LLaMA's PPL criterion, in the log; SLEB)."""
    return OutputMeasure(MeanLoss)


@measure(
    "kl",
    title="Divergence from the whole model where each is left out",
    url="https://arxiv.org/abs/2410.14649",
    needs="outputs",
)
def kl() -> OutputMeasure:
    """Mean KL(whole ‖ cut) of the next-token distributions, nats per token (EvoPress's fitness); 0 if nothing goes."""
    return OutputMeasure(MeanDivergence, compares=True)


class _Mean:
    """A mean over predicted tokens."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def _add(self, values: torch.Tensor) -> None:
        self._sum, self._count = self._sum + float(values.sum()), self._count + len(values)

    def value(self) -> float:
        """The mean, nats per token."""
        assert self._count, "no sequence was seen"
        return self._sum / self._count


class MeanLoss(_Mean):
    """Next-token loss."""

    def add(self, left: Left) -> None:
        """Add one sequence's losses."""
        self._add(next_token_losses(left))


class MeanDivergence(_Mean):
    """KL(whole ‖ cut) over the vocabulary at each predicting position."""

    def add(self, left: Left) -> None:
        """Add one sequence's divergences."""
        assert left.whole is not None, "nothing to compare with"
        ours = torch.log_softmax(left.logits[:-1], -1)
        theirs = torch.log_softmax(left.whole.logits[:-1], -1)
        # Its target comes second: the sum of theirs.exp() * (theirs - ours).
        each = torch.nn.functional.kl_div(ours, theirs, reduction="none", log_target=True)
        self._add(each.sum(-1).double())
