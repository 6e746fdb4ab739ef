"""The linear maps of a model's blocks, each seen as a matrix of outputs by inputs."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_prune.architecture import Decoder
from hf_prune.errors import ArchitectureError


@dataclass(frozen=True)
class LinearMap:
    """One linear map of a block.

    Attributes:
        layer: 0-based index of the block.
        name: of its weight in the block, such as "mlp.down_proj.weight".
        module: that holds the weight.
    """

    layer: int
    name: str
    module: nn.Module

    @property
    def weight(self) -> nn.Parameter:
        """As the model holds it."""
        weight: nn.Parameter = self.module.weight  # type: ignore[assignment]
        return weight

    @property
    def matrix(self) -> torch.Tensor:
        """(outputs, inputs) the weight; of GPT-2's Conv1D, which holds it the other way round, a transposed view."""
        return self.as_matrix(self.weight.detach())

    def as_matrix(self, like_weight: torch.Tensor) -> torch.Tensor:
        """A tensor that lies as the weight does, as (outputs, inputs); that again turned back is the tensor.

        Args:
            like_weight: of the weight's shape, or of its matrix's.
        """
        return like_weight.T if isinstance(self.module, Conv1D) else like_weight

    def __str__(self) -> str:
        """For errors: "mlp.down_proj.weight of block 3"."""
        return f"{self.name} of block {self.layer}"


def linear_maps(decoder: Decoder) -> tuple[LinearMap, ...]:
    """All linear maps of all blocks, in order.

    Embeddings and head are not in blocks, and stay out; so do norms, biases, and the convolutions of mixers.

    Args:
        decoder: the model.

    Raises:
        ArchitectureError: experts lie in one fused tensor, where no input of a single one can be seen; weights are
            quantized; or there is no linear map.
    """
    found = []
    for layer, block in enumerate(decoder.blocks):
        for path, module in block.named_modules():
            _check_experts(path, module, layer, decoder.name)
            if isinstance(module, nn.Linear | Conv1D):
                found.append(LinearMap(layer, f"{path}.weight", module))
    if not found:
        raise ArchitectureError(f"the blocks of '{decoder.name}' hold no linear map; there is nothing to zero")
    for each in found:
        if not each.weight.is_floating_point():
            raise ArchitectureError(
                f"{each} in '{decoder.name}' is quantized ({each.weight.dtype}); single weights can be zeroed in "
                "unquantized models. Take the model that it was made from"
            )
    return tuple(found)


def _check_experts(path: str, module: nn.Module, layer: int, name: str) -> None:
    if isinstance(module, nn.Conv1d):
        return
    for parameter, value in module.named_parameters(recurse=False):
        if value.ndim > 2:
            raise ArchitectureError(
                f"block {layer} of '{name}' holds its experts in one tensor ({path}.{parameter}, shape "
                f"{list(value.shape)}); weights are zeroed by the inputs of each linear map, which cannot be seen "
                "there. Expected a model without a mixture of experts; take a method that drops layers"
            )
