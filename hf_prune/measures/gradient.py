"""What the loss loses where weights shrink: first-order Taylor estimates, by gradients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from hf_prune.architecture import Decoder
from hf_prune.architecture.decoder import first_device
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.measures.magnitude import by_part, double_sum, refuse_quantized, wide
from hf_prune.registry import measure
from hf_prune.runner import evaluating
from hf_prune.samples import Batch
from hf_prune.units import PARTS

Over = Literal["text", "sequences"]


@measure(
    "taylor",
    title="First-order loss of the weights, by gradients",
    url="https://arxiv.org/abs/2402.02834",
    needs="gradients",
    scores=PARTS,
)
def taylor(*, over: str = "text", blocks_at_once: int | None = None) -> "Taylor":
    """Sum of |W · dL/dW| over the weights of a block, of its attention, or of its MLP (Shortened LLaMA, Taylor).

    L is the mean next-token loss over all predicted tokens of the text, and the gradient that of this one loss: the
    paper's formula, and up to a factor what the released code does (it adds signed products of batches). So signs of
    sequences cancel before the absolute value is taken, and neither the batch size nor the order matters. All weights
    of a block count, its norms too; a norm in front of attention or MLP counts to the block alone.

    Of float16 weights, small gradients are rounded to zero; bfloat16 and float32 keep them.

    Args:
        over: "text" for the formula above, which keeps a float32 gradient of each weight until the text has passed;
            "sequences" for the mean over sequences (weighed by their tokens) of each one's sum, which keeps none.
        blocks_at_once: blocks whose gradients are found in one pass of the text, which bounds what "text" keeps: 1
            needs the room of one block, and as many passes as there are blocks. None finds all in one.

    Raises:
        ConfigError: an option means nothing.
    """
    if over not in get_args(Over):
        raise ConfigError(f"measure 'taylor' has over={over!r}; expected one of: {', '.join(get_args(Over))}")
    if blocks_at_once is not None and (not isinstance(blocks_at_once, int) or blocks_at_once < 1):
        raise ConfigError(f"measure 'taylor' has blocks_at_once={blocks_at_once!r}; expected a number from 1 on")

    return Taylor(over == "text", blocks_at_once)


@dataclass(frozen=True)
class Taylor:
    """Finds the sums; see `taylor`.

    Attributes:
        of_text: whether the loss is that of the whole text, not of each sequence.
        blocks_at_once: whose gradients are found in one pass; None finds all.
    """

    of_text: bool
    blocks_at_once: int | None

    def __call__(self, decoder: Decoder, batches: Sequence[Batch]) -> dict[str, Any]:
        """`importances` of all parts, and `forwards`.

        Args:
            decoder: the model, in memory.
            batches: of text.

        Raises:
            ConfigError: weights are quantized, or not in memory.
            MeasureError: the loss or a gradient is not finite.
        """
        refuse_quantized(decoder, "taylor")
        sequences = [
            ids[:length]
            for batch in batches
            for ids, length in zip(batch.input_ids, batch.attention_mask.sum(1).tolist(), strict=True)
        ]
        sums: dict[nn.Parameter, torch.Tensor] = {}
        for layers in self._passes(decoder.num_layers):
            sums |= _of_blocks(decoder, layers, sequences, self.of_text)
        return {"importances": by_part(decoder, sums), "forwards": self.forwards(decoder.num_layers)}

    def forwards(self, depth: int) -> float:
        """What it takes, in forwards of the text through the whole model.

        Args:
            depth: blocks that there are.
        """
        # Backward, the gradients of what enters each block cost as much as a forward, those of its weights again.
        return sum(1 + (depth - layers.start + len(layers)) / depth for layers in self._passes(depth))

    def _passes(self, depth: int) -> list[range]:
        size = self.blocks_at_once or depth
        return [range(start, min(start + size, depth)) for start in range(0, depth, size)]


def _of_blocks(
    decoder: Decoder, layers: range, sequences: Sequence[torch.Tensor], of_text: bool
) -> dict[nn.Parameter, torch.Tensor]:
    """Of each weight of some blocks, the sum of |W · dL/dW|."""
    weights = [w for layer in layers for w in decoder.blocks[layer].parameters()]
    tokens = sum(len(ids) - 1 for ids in sequences)
    kept: dict[nn.Parameter, torch.Tensor] = {}
    share = 0.0

    def take(weight: nn.Parameter) -> None:
        """Add one sequence's gradient, and free it."""
        assert weight.grad is not None
        gradient = share * wide(weight.grad)
        weight.grad = None
        found = gradient if of_text else double_sum((wide(weight.detach()) * gradient).abs())
        if weight in kept:
            kept[weight] += found
        else:
            kept[weight] = found

    with evaluating(decoder.model), _learning(decoder.model, weights, take), torch.enable_grad():
        for number, ids in enumerate(sequences):
            share = (len(ids) - 1) / tokens
            loss = _loss(decoder.model, ids)
            if not torch.isfinite(loss):
                raise MeasureError(
                    f"the loss of '{decoder.name}' on calibration sequence {number} is {loss.item()}; expected a "
                    "finite number, to take gradients of. Try another --dtype (bfloat16 or float32)"
                )
            loss.backward()
    with torch.no_grad():
        sums = {w: double_sum((wide(w) * found).abs()) if of_text else found for w, found in kept.items()}
    for layer in layers:
        for name, weight in decoder.blocks[layer].named_parameters():
            if weight in sums and not torch.isfinite(sums[weight]):
                raise MeasureError(
                    f"the gradient of '{name}' in block {layer} of '{decoder.name}' is NaN or infinite; expected "
                    "finite numbers. Try another --dtype (bfloat16 or float32)"
                )
    return sums


def _loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of one sequence, nats per token."""
    ids = ids.to(first_device(model))
    logits = wide(model(input_ids=ids[None], use_cache=False).logits[0, :-1])
    return torch.nn.functional.cross_entropy(logits, ids[1:].to(logits.device))


@contextmanager
def _learning(
    model: nn.Module, weights: Sequence[nn.Parameter], take: Callable[[nn.Parameter], None]
) -> Iterator[None]:
    """Let these weights alone have gradients, each handed over as soon as it is there; all is as before afterwards."""
    before = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]
    wanted = set(weights)
    handles = []
    try:
        for weight, _, _ in before:
            weight.requires_grad_(weight in wanted)
            weight.grad = None
        for weight in wanted:
            handles.append(weight.register_post_accumulate_grad_hook(take))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for weight, required, gradient in before:
            weight.requires_grad_(required)
            weight.grad = gradient
