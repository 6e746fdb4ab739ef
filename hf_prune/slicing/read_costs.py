"""What widths cost in a model, read off its modules (on the meta device, where it is not loaded)."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.slicing.costs import Costs, StepCost
from hf_prune.slicing.families import check_sliceable
from hf_prune.slicing.modeling import model_class
from hf_prune.slicing.modeling.sliced import Branch, centres, part, transposed


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
