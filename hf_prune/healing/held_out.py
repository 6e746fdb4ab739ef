"""The held-out loss: next-token loss on text that was not trained on."""

import math
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from hf_prune.errors import MeasureError
from hf_prune.precision import fast_arithmetic, joined_arithmetic
from hf_prune.samples import Samples, batches


@torch.inference_mode()
def held_out_loss(
    model: torch.nn.Module | PreTrainedModel,
    samples: Samples,
    *,
    batch_size: int = 4,
    watch: Callable[[int, torch.Tensor], None] | None = None,
) -> float:
    """Mean next-token loss over all predicted tokens, nats per token; pads count nowhere.

    The total negative log-likelihood is summed in float64 from float32 logits and divided by the number of predicted
    tokens (see `predicted_tokens`). The model is in evaluation mode meanwhile.

    Args:
        model: causal language model.
        samples: held-out text.
        batch_size: sequences at once.
        watch: shown the logits of each batch, (sequences, length, vocabulary), with the number of its first sequence.

    Raises:
        MeasureError: the loss is not finite.
    """
    device = next(model.parameters()).device
    training = model.training
    evaluation_mode(model)
    learned = iter(_learned(samples))
    total = torch.zeros((), dtype=torch.float64)
    seen = 0
    try:
        with fast_arithmetic(model), joined_arithmetic(model):
            for batch in batches(samples.sequences, batch_size):
                batch = batch.to(device)
                logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
                for row, ids, mask in zip(logits, batch.input_ids, batch.attention_mask, strict=True):
                    length = int(mask.sum())  # pads are on the right
                    nll = torch.nn.functional.cross_entropy(row[: length - 1].float(), ids[1:length], reduction="none")
                    total += nll.double().cpu()[next(learned)].sum()
                if watch is not None:
                    watch(seen, logits)
                seen += len(logits)
    finally:
        model.train(training)
    loss = total.item() / predicted_tokens(samples)
    if not math.isfinite(loss):
        raise MeasureError(
            f"the held-out loss is {loss}; expected a finite number. Numbers overflowed in the model: lower "
            "healing.learning_rate, or check the pruned checkpoint"
        )
    return loss


def evaluation_mode(model: torch.nn.Module) -> None:
    """Switch dropout off, and leave 4-bit layers such that they can be trained afterwards."""
    model.eval()
    # On a CPU, 4-bit layers in evaluation mode change their layout for good: to one that passes no gradients on, and
    # that not every shape fits. They hold no dropout, so nothing else depends on their mode.
    for module in model.modules():
        if type(module).__module__.startswith("bitsandbytes."):
            module.training = True


def predicted_tokens(samples: Samples) -> int:
    """Tokens whose prediction counts: all but the first of each sequence, or those of them that are learned."""
    return sum(int(mask.sum()) for mask in _learned(samples))


def _learned(samples: Samples) -> list[torch.Tensor]:
    """Of each sequence (length - 1,) bool, which of its tokens from the second on count."""
    masks = samples.learned or [torch.ones(len(ids), dtype=torch.bool) for ids in samples.sequences]
    return [mask[1:] for mask in masks]
