"""A sliced model without weights: its config, its modules on the meta device, and where each weight comes from."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_prune.architecture import Decoder
from hf_prune.errors import ArchitectureError
from hf_prune.slicing.modeling import config_class, model_class
from hf_prune.slicing.modeling.sliced import Step, part
from hf_prune.slicing.points import Widths

_NOT_CARRIED = ("model_type", "architectures", "transformers_version", "auto_map", "_name_or_path")


def sliced_config(config: PretrainedConfig, widths: Widths, *, shortcuts: bool, tied: bool) -> Any:
    """The config of the sliced model: the base's, with the widths.

    Args:
        config: of the base.
        widths: of the stream.
        shortcuts: whether the basis changes between the points.
        tied: whether head and embeddings are one table.
    """
    fields = {key: value for key, value in config.to_dict().items() if key not in _NOT_CARRIED}
    fields |= {"slice_dims": widths.to_dict(), "slice_shortcuts": shortcuts, "tie_word_embeddings": tied}
    made = config_class(config.model_type)(**fields)
    made._attn_implementation = config._attn_implementation
    return made


def blank_model(decoder: Decoder, widths: Widths, *, shortcuts: bool, tied: bool) -> Any:
    """The sliced model on the meta device, with the buffers of the base.

    Raises:
        ArchitectureError: the base holds a weight that the family's sliced class does not know of.
    """
    model = decoder.model
    with torch.device("meta"):
        sliced: Any = model_class(decoder.config.model_type)(
            sliced_config(decoder.config, widths, shortcuts=shortcuts, tied=tied)
        )
    sliced.config.dtype = model.dtype
    for name, buffer in model.named_buffers():
        put_buffer(sliced, name, buffer.detach().clone())
    for layer, block in enumerate(decoder.blocks):
        _check_parts(block, sliced.get_submodule(decoder.blocks_path)[layer], layer, decoder.name)
    sliced.generation_config = copy.deepcopy(model.generation_config)
    return sliced.eval()


def rest_of(block: nn.Module, sliced: Any) -> list[str]:
    """Parameters of a block that neither read nor write the stream: they are the same in the sliced block."""
    taken = {name for name in _parameters_of(block, sliced.own_steps)}
    return [name for name, _ in block.named_parameters() if name not in taken]


def put_parameter(owner: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Give a module a real weight in place of one on the meta device, or of one of another width for a while."""
    parent, _, leaf = name.rpartition(".")
    holder = owner.get_submodule(parent)
    holder.register_parameter(leaf, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
    if isinstance(holder, Conv1D) and leaf == "weight":
        holder.nx, holder.nf = tensor.shape  # it shapes its answer by them


def put_buffer(owner: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Set a buffer by its dotted name, where the module has it."""
    parent, _, leaf = name.rpartition(".")
    holder = part(owner, parent) if parent else owner
    if holder is not None and leaf in holder._buffers:
        holder._buffers[leaf] = tensor


def check_filled(sliced: PreTrainedModel) -> None:
    """Every parameter and buffer is real and finite in number; a forgotten one would be garbage.

    Raises:
        AssertionError: one is left on the meta device (a fault of this package).
    """
    left = [name for name, tensor in (*sliced.named_parameters(), *sliced.named_buffers()) if tensor.is_meta]
    assert not left, f"slicing left {left[:5]} without weights"


def _parameters_of(block: nn.Module, steps: tuple[Step, ...]) -> set[str]:
    names = set()
    for branch in (branch for step in steps for branch in step.branches):
        for name in (branch.norm, *branch.readers, *branch.writers):
            found = part(block, name)
            if isinstance(found, nn.Parameter):
                names.add(name)
            elif found is not None:
                names |= {f"{name}.{leaf}" for leaf, _ in found.named_parameters(recurse=False)}
    return names


def _check_parts(block: nn.Module, sliced: Any, layer: int, model: str) -> None:
    shapes = {name: tuple(p.shape) for name, p in sliced.named_parameters()}
    for name in rest_of(block, sliced):
        shape = tuple(block.get_parameter(name).shape)
        if shapes.get(name) != shape:
            raise ArchitectureError(
                f"'{model}' cannot be sliced: block {layer} holds '{name}' of shape {shape}, of which it is not known "
                "how it meets the residual stream. Please report this with the model's config.json"
            )
