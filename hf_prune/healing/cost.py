"""Floating point operations of a training step, counted from what is run.

A row of s tokens costs a·s + b·s²: a is the linear maps' share, b the attention's (scores and weighted values; masked
positions are computed, and count). With F(i) = a(i)·s + b(i)·s² of one forward through block i, as torch counts it, p
blocks of the frozen prefix that are not run, and l the lowest block that holds something trained:

    forward       Σ F(i) for i ≥ p, + F(head), + 2·n·s for adapters of n numbers
    activations   Σ a(i)·s + 2·b(i)·s² for i ≥ l, + a(head)·s, + 2·n·s: each product with a frozen or trained weight is
                  met once more, each product of two activations twice
    weights       a·s of what is trained itself, + 2·n·s for adapters
    recomputing   Σ F(i) for i ≥ l, where activations are not kept
    DoRA          + 4·m·s for adapted maps of m numbers, where there is dropout: they meet what it leaves once more
    original      Σ F of its blocks that run beside, + F(head) where its predictions are asked for

A multiplication and an addition count as two. Block l counts as a whole, although the part of it below the lowest
trained weight passes no gradient on; norms (DoRA's of weights too), activations, softmax, the optimizer and
measurements on held-out text do not count, pads do. What is stored counts where it is made: hidden states in the first
pass over the text, predictions of the original before the first step.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_prune.architecture import Decoder
from hf_prune.errors import ArchitectureError
from hf_prune.evaluation.flops import module_flops
from hf_prune.healing.trained import Trainable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """Floating point operations of rows: linear · s + square · s² for each row of s tokens.

    Attributes:
        linear: per token.
        square: per pair of tokens in a row.
    """

    linear: float = 0.0
    square: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Of both."""
        return Cost(self.linear + other.linear, self.square + other.square)

    def __mul__(self, times: float) -> "Cost":
        """Of so many."""
        return Cost(times * self.linear, times * self.square)

    def of(self, rows: int, length: int) -> float:
        """Operations of a micro-batch.

        Args:
            rows: in it.
            length: of each, pads counted.
        """
        return rows * (self.linear * length + self.square * length**2)


@dataclass(frozen=True)
class TrainingCost:
    """Operations of a run.

    Attributes:
        step: forward and backward, of the original beside too, without the frozen prefix.
        prefix: forward through the frozen prefix.
        spared_from: passes over the text after which the prefix is not run any more; 0 where it never is, infinite
            where it always is.
        before: operations spent before the first step.
    """

    step: Cost
    prefix: Cost = Cost()
    spared_from: float = math.inf
    before: float = 0.0

    def of(self, rows: int, length: int, passes: float = 0.0) -> float:
        """Operations of a micro-batch.

        Args:
            rows: in it.
            length: of each, pads counted.
            passes: over the text, before it.
        """
        return self.step.of(rows, length) + (self.prefix.of(rows, length) if passes < self.spared_from else 0.0)


def forward_cost(model: PreTrainedModel, paths: list[str], length: int) -> dict[str, Cost]:
    """One forward through modules of a model.

    Args:
        model: the causal LM; its config alone is looked at, unless what the model does depends on the numbers: then
            each weight counts as met by each token, and attention not at all.
        paths: of modules; "" is the whole model.
        length: longest row.
    """
    short = max(1, length // 2)
    try:
        few, many = module_flops(model, short), module_flops(model, length)
    except ArchitectureError as error:
        log.info("%s", error)
        return {path: Cost(2.0 * _matrices(model.get_submodule(path)), 0.0) for path in paths}
    found = {}
    for path in paths:
        low, high = few.get(path, 0) / short, many.get(path, 0) / length
        square = max(0.0, (high - low) / (length - short))
        found[path] = Cost(high - square * length, square)
    return found


def training_cost(
    decoder: Decoder,
    trainee: nn.Module,
    chosen: Trainable,
    *,
    length: int,
    recompute: bool = False,
    prefix: int = 0,
    spared_from: float = math.inf,
    beside: Cost | None = None,
    before: float = 0.0,
) -> TrainingCost:
    """Operations of a run, forward and backward; see the module for the formula.

    Args:
        decoder: the pruned model.
        trainee: what `chosen.begin` made of it.
        chosen: what is trained.
        length: longest row in tokens.
        recompute: whether activations are computed again in the backward pass.
        prefix: blocks of the frozen prefix that are spared.
        spared_from: see `TrainingCost`.
        beside: of the original, in each step.
        before: operations spent before the first step.
    """
    blocks, head = block_costs(decoder, length)
    above = sum(blocks[chosen.lowest :], Cost())
    products = Cost(above.linear, 2 * above.square)
    step = sum(blocks[prefix:], Cost()) + head + products + Cost(head.linear) + (beside or Cost())
    if chosen.kind == "adapters":
        step += Cost(6.0 * sum(p.numel() for p in trainee.parameters() if p.requires_grad and p.ndim > 1))
        step += Cost(4.0 * sum(map(_met_again, trainee.modules())))
    else:
        step += Cost(sum(block.linear * _share(decoder.blocks[at]) for at, block in enumerate(blocks)))
        output = decoder.model.get_output_embeddings()
        step += Cost(head.linear * _share(output)) if output is not None else Cost()
    if recompute:
        step += above
    return TrainingCost(step, sum(blocks[:prefix], Cost()), spared_from, before)


def block_costs(decoder: Decoder, length: int) -> tuple[list[Cost], Cost]:
    """One forward: of each block, and of what is behind them (the head, and maps before it).

    Args:
        decoder: of any model.
        length: longest row in tokens.
    """
    paths = [f"{decoder.blocks_path}.{at}" for at in range(decoder.num_layers)]
    found = forward_cost(decoder.model, ["", *paths], length)
    blocks = [found[path] for path in paths]
    return blocks, found[""] + sum(blocks, Cost()) * -1.0


def _matrices(module: nn.Module) -> int:
    tables = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return sum(p.numel() for p in module.parameters() if p.ndim > 1 and id(p) not in tables)


def _met_again(module: Any) -> int:
    """Numbers of a map with DoRA, which tokens meet once more behind dropout; 0 of all other modules."""
    if not getattr(module, "lora_magnitude_vector", None):
        return 0
    drops = any(isinstance(dropout, nn.Dropout) for dropout in module.lora_dropout.values())
    return int(module.in_features * module.out_features) if drops else 0


def _share(module: nn.Module) -> float:
    """The part of a module's matrices that is trained."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    trained = sum(p.numel() for p in matrices if p.requires_grad)
    return trained / sum(p.numel() for p in matrices) if matrices else 0.0
