"""Merging LoRA adapters into plain weights: in float32, cast once."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_prune.errors import CheckpointError

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def adapter_pairs(state: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Group an adapter's tensors by the module they belong to.

    Args:
        state: adapter tensors as PEFT saves them.

    Returns:
        Module name in the plain model -> (A of shape (rank, inputs), B of shape (outputs, rank)).

    Raises:
        CheckpointError: something else than pairs of LoRA matrices is in there.
    """
    names = {key.removesuffix(_A).removesuffix(_B) for key in state}
    pairs = {}
    for name in sorted(names):
        if not name.startswith(_PREFIX) or name + _A not in state or name + _B not in state:
            raise CheckpointError(f"the adapter holds '{name}'; expected pairs '{_PREFIX}…{_A}' and '…{_B}'")
        pairs[name.removeprefix(_PREFIX)] = (state[name + _A], state[name + _B])
    return pairs


@torch.no_grad()
def merge_adapter(model: nn.Module, state: dict[str, torch.Tensor], scaling: float) -> int:
    """Add the adapter to the weights in place: W ← cast(float32(W) + scaling · B A); all other tensors stay.

    Args:
        model: plain model (no adapters, not quantized).
        state: adapter tensors as PEFT saves them.
        scaling: alpha / rank.

    Returns:
        The number of weights changed.

    Raises:
        CheckpointError: shapes or names do not fit the model.
    """
    pairs = adapter_pairs(state)
    for name, (a, b) in pairs.items():
        module = model.get_submodule(name)
        weight = module.weight
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            raise CheckpointError(f"the weight of '{name}' is no plain floating point tensor; nothing can be merged")
        delta = scaling * (b.to(weight.device, torch.float32) @ a.to(weight.device, torch.float32))
        if isinstance(module, Conv1D):
            delta = delta.T  # Conv1D keeps (inputs, outputs)
        if delta.shape != weight.shape:
            raise CheckpointError(
                f"the adapter of '{name}' has shape {tuple(delta.shape)}; the weight has {tuple(weight.shape)}"
            )
        weight.copy_((weight.float() + delta).to(weight.dtype))
    return len(pairs)
