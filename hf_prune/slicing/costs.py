"""How many parameters a sliced model has, from its widths alone: exact, and quick enough to solve for."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.slicing.families import check_sliceable
from hf_prune.slicing.modeling import model_class
from hf_prune.slicing.modeling.sliced import Branch, centres, part, transposed
from hf_prune.slicing.points import Widths


@dataclass(frozen=True)
class StepCost:
    """What one addition to the residual stream costs.

    Attributes:
        width: name of the widths behind it.
        reads: parameters for each channel of the stream before it (rows of all readers).
        writes: parameters for each channel behind it (columns of all writers, and one for each of their biases).
    """

    width: str
    reads: int
    writes: int


@dataclass(frozen=True)
class Costs:
    """What a sliced model of one base costs, for any widths.

    Attributes:
        hidden_size: D.
        original: parameters of the base, tied ones once.
        tables: parameters for each channel of the embeddings.
        head: parameters for each channel of the last point (the vocabulary), in a head of its own.
        head_bias: parameters that a head of its own adds, whatever its width.
        fixed: parameters that do not depend on widths.
        layers: the steps of each layer.
        norms: norms along the stream, whose weights a plain model has again.
        can_tie: whether head and embeddings can stay one table.
        heads: attention heads, which a plain model's width must be a multiple of.
    """

    hidden_size: int
    original: int
    tables: int
    head: int
    head_bias: int
    fixed: int
    layers: tuple[tuple[StepCost, ...], ...]
    norms: int
    can_tie: bool
    heads: int

    @property
    def parallel(self) -> bool:
        """Whether each layer adds to the stream once."""
        return len(self.layers[0]) == 1


@dataclass(frozen=True)
class Count:
    """Parameters of a sliced model.

    Attributes:
        total: all, tied ones once.
        shortcuts: of these, in the shortcuts.
    """

    total: int
    shortcuts: int


def costs_of(decoder: Decoder, *, can_tie: bool) -> Costs:
    """Read the costs off a base model (the meta device will do).

    Args:
        decoder: the base.
        can_tie: see `can_stay_tied`.
    """
    model, config = decoder.model, decoder.config
    family = model_class(config.model_type)
    steps = family.block_class.steps(config)
    layers, fixed = [], 0
    for block in decoder.blocks:
        found = tuple(
            StepCost(
                step.width,
                sum(_rows(block, name, config.hidden_size) for branch in step.branches for name in branch.readers),
                sum(_rows(block, name, config.hidden_size, bias=True) for b in step.branches for name in b.writers),
            )
            for step in steps
        )
        layers.append(found)
        branches = [branch for step in steps for branch in step.branches]
        fixed += _untouched(block, branches) + sum(_reader_biases(block, branch) for branch in branches)
    head = model.get_output_embeddings()
    vocabulary = head.weight.numel() // config.hidden_size
    shifts = centres(model.get_submodule(family.final_norm))
    return Costs(
        hidden_size=config.hidden_size,
        original=count_parameters(model),
        tables=sum(part(model, name).weight.shape[0] for name in family.tables),
        head=vocabulary,
        head_bias=vocabulary if shifts or head.bias is not None else 0,
        fixed=fixed,
        layers=tuple(layers),
        norms=1 + sum(len({b.norm for step in steps for b in step.branches}) for _ in decoder.blocks),
        can_tie=can_tie,
        heads=config.num_attention_heads,
    )


def costs_of_config(config: Any, name: str) -> Costs:
    """The costs of a model that is not loaded.

    Args:
        config: its text config.
        name: what it is called in errors.

    Raises:
        ArchitectureError: its family cannot be sliced.
        CheckpointError: its weights are quantized.
    """
    check_sliceable(config, name)
    with torch.device("meta"):
        decoder = decoder_of(AutoModelForCausalLM.from_config(config), name)
    return costs_of(decoder, can_tie=can_stay_tied(decoder))


def can_stay_tied(decoder: Decoder) -> bool:
    """Whether head and embeddings are one table, and can stay so.

    Where the norms subtract the mean, so do the sliced embeddings, of which the head must know nothing.
    """
    head, table = decoder.model.get_output_embeddings(), decoder.model.get_input_embeddings()
    one = getattr(head, "weight", None) is getattr(table, "weight", None)
    return one and not any(isinstance(module, nn.LayerNorm) for module in decoder.model.modules())


def count(costs: Costs, widths: Widths, *, shortcuts: bool, tied: bool, plain: bool = False) -> Count:
    """Parameters of the sliced model (research: SliceGPT's arithmetic with the shortcuts counted).

    Args:
        costs: of the base.
        widths: of the stream.
        shortcuts: whether the basis changes between the points.
        tied: whether head and embeddings are one table, with a map before it.
    """
    width = widths.embed
    total, between = costs.tables * width + costs.fixed, 0
    for layer, steps in enumerate(costs.layers):
        for step in steps:
            behind = getattr(widths, step.width)[layer]
            total += step.reads * width + step.writes * behind
            between += width * behind if shortcuts else 0
            width = behind
    total += width * widths.embed if tied else costs.head * width + costs.head_bias
    total += costs.norms * width if plain else 0
    return Count(total + between, between)


def count_parameters(model: PreTrainedModel) -> int:
    """Parameters of a model, tied ones once."""
    return sum(p.numel() for p in model.parameters())


def _rows(block: nn.Module, name: str, width: int, *, bias: bool = False) -> int:
    found = part(block, name)
    if found is None:
        return 0
    if isinstance(found, nn.Parameter):
        return found.numel() // width
    extra = 1 if bias and getattr(found, "bias", None) is not None else 0
    return found.weight.numel() // width + extra


def _reader_biases(block: nn.Module, branch: Branch) -> int:
    shifts = centres(block.get_submodule(branch.norm))
    total = 0
    for name in branch.readers:
        found = part(block, name)
        if found is None or isinstance(found, nn.Parameter):
            continue
        bias = getattr(found, "bias", None)
        if bias is not None or shifts:
            total += found.weight.shape[1 if transposed(found) else 0]
    return total


def _untouched(block: nn.Module, branches: list[Branch]) -> int:
    taken = {name for branch in branches for name in (branch.norm, *branch.readers, *branch.writers)}
    return sum(
        parameter.numel()
        for name, parameter in block.named_parameters()
        if name not in taken and name.rpartition(".")[0] not in taken
    )
