"""Merging LoRA and DoRA adapters into plain weights: in float32, cast once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_prune.errors import CheckpointError

PREFIX, MAGNITUDE = "base_model.model.", ".lora_magnitude_vector"
"""How PEFT names the modules of a model, and the lengths of DoRA's rows."""

_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Adapter:
    """What one linear map carries.

    Attributes:
        a: (rank, inputs).
        b: (outputs, rank).
        magnitude: (outputs,), the lengths of DoRA's rows; None with LoRA.
    """

    a: torch.Tensor
    b: torch.Tensor
    magnitude: torch.Tensor | None


def adapters_of(state: dict[str, torch.Tensor]) -> dict[str, Adapter]:
    """Group an adapter's tensors by the module they belong to.

    Args:
        state: adapter tensors as PEFT saves them.

    Returns:
        By module name in the plain model.

    Raises:
        CheckpointError: something else is in there than pairs of LoRA matrices, with DoRA's lengths at all or at none.
    """
    names = {key.removesuffix(_A).removesuffix(_B).removesuffix(MAGNITUDE) for key in state}
    found = {}
    for name in sorted(names):
        if not name.startswith(PREFIX) or name + _A not in state or name + _B not in state:
            raise CheckpointError(f"the adapter holds '{name}'; expected pairs '{PREFIX}…{_A}' and '…{_B}'")
        found[name.removeprefix(PREFIX)] = Adapter(state[name + _A], state[name + _B], state.get(name + MAGNITUDE))
    plain = [name for name, adapter in found.items() if adapter.magnitude is None]
    if plain and len(plain) < len(found):
        raise CheckpointError(
            f"the adapter holds no '{plain[0]}{MAGNITUDE}', and the lengths of other maps; expected them of all maps "
            "(DoRA) or of none (LoRA)"
        )
    return found


@torch.no_grad()
def merge_adapter(model: nn.Module, state: dict[str, torch.Tensor], scaling: Callable[[int], float]) -> int:
    """Make the adapter part of the weights in place; all other tensors stay.

    LoRA:  W <- cast(float32(W) + s B A)
    DoRA:  W <- cast(m V / ||V||) with V = float32(W) + s B A, its norm and m by row (one row an output)

    Args:
        model: plain model (no adapters, not quantized).
        state: adapter tensors as PEFT saves them.
        scaling: gives s by the rank of the adapter.

    Returns:
        The number of weights changed.

    Raises:
        CheckpointError: shapes or names do not fit the model, or DoRA meets a row of zeros.
    """
    adapters = adapters_of(state)
    for name, adapter in adapters.items():
        module = model.get_submodule(name)
        weight = module.weight
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            raise CheckpointError(f"the weight of '{name}' is no plain floating point tensor; nothing can be merged")
        # Conv1D keeps (inputs, outputs)
        rows = weight.T if isinstance(module, Conv1D) else weight
        a, b = (each.to(weight.device, torch.float32) for each in (adapter.a, adapter.b))
        merged = scaling(len(a)) * (b @ a)
        if merged.shape != rows.shape:
            raise CheckpointError(
                f"the adapter of '{name}' has shape {tuple(merged.shape)}; the weight has {tuple(rows.shape)}"
            )
        merged += rows.float()
        if adapter.magnitude is not None:
            merged *= _lengths(name, merged, adapter.magnitude)
        rows.copy_(merged)
    return len(adapters)


def _lengths(name: str, rows: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """(outputs, 1), what brings each row to its length in DoRA."""
    norms = rows.norm(dim=1)
    if magnitude.shape != norms.shape:
        raise CheckpointError(
            f"DoRA's lengths of '{name}' have shape {tuple(magnitude.shape)}; expected {tuple(norms.shape)}"
        )
    if not norms.all():
        raise CheckpointError(f"a row of '{name}' is all zeros; DoRA gives it a length, and it has no direction")
    return (magnitude.to(norms) / norms)[:, None]
