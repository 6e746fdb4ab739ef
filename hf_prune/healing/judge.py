"""The held-out figures of a model on its way: its loss, and how far it is from the original."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from hf_prune.healing.divergence import divergence
from hf_prune.healing.held_out import evaluation_mode, held_out_loss
from hf_prune.healing.prefix import Inputs
from hf_prune.healing.rows import MODEL_INPUTS, Rows, collate
from hf_prune.healing.step import Teacher
from hf_prune.precision import fast_arithmetic, joined_arithmetic
from hf_prune.samples import Samples

if TYPE_CHECKING:
    from hf_prune.healing.loop import Judged


class Judge:
    """Measures a model on held-out text; see `loop.Judge`.

    Args:
        held_out: the text.
        teacher: the original, for the rows of that text; None where it is not at hand.
        batch_size: sequences at once.
    """

    def __init__(self, held_out: Samples, teacher: Teacher | None = None, *, batch_size: int = 4) -> None:
        self._held_out, self._teacher, self._batch_size = held_out, teacher, batch_size

    def __call__(self, model: torch.nn.Module) -> "Judged":
        """Figures of a model, which is left as it was.

        Args:
            model: plain or with adapters, possibly in training.
        """
        loss = held_out_loss(model, self._held_out, batch_size=self._batch_size)
        kl = None
        if self._teacher is not None:
            kl = held_out_kl(model, self._teacher, self._held_out, batch_size=self._batch_size)
        return {"loss": loss, "kl": kl}


@torch.no_grad()
def held_out_kl(model: torch.nn.Module, teacher: Teacher, samples: Samples, *, batch_size: int = 4) -> float:
    """Mean KL(original || model) over all predictions that count, nats; pads count nowhere.

    Over the original's likeliest tokens and one bucket where its predictions were stored as such.

    Args:
        model: causal language model; in evaluation mode meanwhile.
        teacher: the original, for the rows of this text.
        samples: held-out text.
        batch_size: sequences at once.
    """
    training = model.training
    device = next(model.parameters()).device
    total, count = 0.0, 0
    evaluation_mode(model)
    try:
        with fast_arithmetic(model), joined_arithmetic(model):
            for inputs in _inputs(Rows.of(samples), batch_size, device):
                given = {name: inputs[name] for name in MODEL_INPUTS if name in inputs}
                logits = model(**given, use_cache=False).logits
                counted = inputs["labels"] >= 0
                total += divergence(logits, teacher.view(inputs), counted).item()
                count += int(counted.sum())
    finally:
        model.train(training)
    return total / count


def _inputs(rows: Rows, batch_size: int, device: torch.device) -> Iterator[Inputs]:
    for start in range(0, len(rows), batch_size):
        batch = collate([rows[row] for row in range(start, min(start + batch_size, len(rows)))])
        yield {name: tensor.to(device) for name, tensor in batch.items()}
