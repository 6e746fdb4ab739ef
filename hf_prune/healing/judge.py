"""The held-out figures of a model on its way: its loss, and how far it is from the original."""

from typing import TYPE_CHECKING

import torch

from hf_prune.healing.divergence import divergence
from hf_prune.healing.held_out import held_out_loss
from hf_prune.healing.rows import Rows, collate
from hf_prune.healing.step import Teacher
from hf_prune.healing.view import IGNORED
from hf_prune.samples import Samples

if TYPE_CHECKING:
    from hf_prune.healing.loop import Judged


class Judge:
    """Measures a model on held-out text, in one pass over it; see `loop.Judge`.

    Args:
        held_out: the text.
        teacher: the original, for the rows of that text; None where it is not at hand.
        batch_size: sequences at once.
    """

    def __init__(self, held_out: Samples, teacher: Teacher | None = None, *, batch_size: int = 4) -> None:
        self._held_out, self._teacher, self._batch_size = held_out, teacher, batch_size

    def __call__(self, model: torch.nn.Module) -> "Judged":
        """Figures of a model, which is left as it was.

        The divergence is the mean KL(original || model) over all predictions that count, nats; where the original's
        predictions were stored, over its likeliest tokens and one bucket.

        Args:
            model: plain or with adapters, possibly in training.
        """
        if self._teacher is None:
            return {"loss": held_out_loss(model, self._held_out, batch_size=self._batch_size), "kl": None}
        rows, beside = Rows.of(self._held_out), _Beside(self._teacher)

        def watch(first: int, logits: torch.Tensor) -> None:
            batch = collate([rows[row] for row in range(first, first + len(logits))])
            beside.add(logits, {name: tensor.to(logits.device) for name, tensor in batch.items()})

        loss = held_out_loss(model, self._held_out, batch_size=self._batch_size, watch=watch)
        return {"loss": loss, "kl": beside.total / beside.count}


class _Beside:
    """Adds up divergences from the original.

    Args:
        teacher: the original.
    """

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self.total, self.count = 0.0, 0

    def add(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
        """Look at one batch.

        Args:
            logits: the model's, (batch, length, vocabulary).
            inputs: from `rows.collate`.
        """
        counted = inputs["labels"] != IGNORED
        self.total += divergence(logits, self._teacher.view(inputs), counted).item()
        self.count += int(counted.sum())
