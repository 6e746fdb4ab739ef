"""Norms folded into what reads them, rotations into weights: float64 throughout, cast once (SliceGPT section 3)."""

from dataclasses import dataclass

import torch
from torch import nn

from hf_prune.slicing.modeling.sliced import centres, part, transposed

_CHUNK = 1 << 24
"""Numbers turned into float64 at once: 128 MB, where a table of a large vocabulary would take gigabytes."""


@dataclass(frozen=True)
class NormScale:
    """What a norm does besides dividing: x_hat * scale + shift.

    Attributes:
        scale: (D,) float64; Gemma's weights are 1 + w.
        shift: (D,) float64, or None for RMSNorm.
        centred: whether it subtracts the mean first (LayerNorm).
    """

    scale: torch.Tensor
    shift: torch.Tensor | None
    centred: bool


def norm_scale(norm: nn.Module, width: int, offset: float = 0.0) -> NormScale:
    """Read a norm of a base model.

    Args:
        norm: an RMSNorm or LayerNorm, with or without weights.
        width: D.
        offset: what it adds to its weight.
    """
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    scale = torch.ones(width, dtype=torch.float64) if weight is None else weight.detach().double() + offset
    shift = None if bias is None else bias.detach().double()
    if centres(norm) and shift is None:
        shift = torch.zeros_like(scale)
    return NormScale(scale, shift, centres(norm))


def reading(basis: torch.Tensor, norm: NormScale) -> torch.Tensor:
    """What a reader's weight is multiplied by from the right: diag(scale) Q, (D, d) float64."""
    return norm.scale.to(basis.device)[:, None] * basis


def writing(basis: torch.Tensor, centred: bool) -> torch.Tensor:
    """What a writer's output is multiplied by: Q, or (I - 11^T/D) Q where the norms subtract the mean.

    With every writer emitting vectors of mean zero the stream has mean zero, and LayerNorm is RMSNorm. A model with
    RMSNorm keeps its mean, which its norms see.

    Args:
        basis: (D, d) float64.
        centred: whether the model's norms are LayerNorms.
    """
    return basis - basis.mean(0, keepdim=True) if centred else basis


def times(weight: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """weight @ right in float64, cast back to the weight's dtype; in pieces, so that float64 never holds it whole.

    Args:
        weight: (..., rows, D) in any dtype.
        right: (D, d) float64.

    Returns:
        (..., rows, d), contiguous.
    """
    rows = weight.reshape(-1, weight.shape[-1])
    result = weight.new_empty(len(rows), right.shape[1])
    right = right.to(weight.device)
    size = max(1, _CHUNK // weight.shape[-1])
    for start in range(0, len(rows), size):
        result[start : start + size] = rows[start : start + size].double() @ right
    return result.reshape(*weight.shape[:-1], right.shape[1])


def read_by(owner: nn.Module, name: str, right: torch.Tensor, norm: NormScale) -> dict[str, torch.Tensor]:
    """A reader's weights with the norm folded in and the stream's basis turned.

    Args:
        owner: block (or model) of the base.
        name: of the reader in it.
        right: from `reading`.
        norm: what is folded in.

    Returns:
        Parameter name to tensor; empty where the block has no such part.
    """
    found = part(owner, name)
    if found is None:
        return {}
    if isinstance(found, nn.Parameter):
        return {name: times(found.detach(), right)}
    weight = found.weight.detach()
    as_read = weight.T if transposed(found) else weight  # (outputs, D)
    answer = times(as_read, right)
    made = {f"{name}.weight": answer.T.contiguous() if transposed(found) else answer}
    bias = getattr(found, "bias", None)
    if norm.shift is not None:
        moved = times(as_read.double(), norm.shift[:, None]).squeeze(-1)
        made[f"{name}.bias"] = (moved if bias is None else moved + bias.detach().double()).to(weight.dtype)
    elif bias is not None:
        made[f"{name}.bias"] = bias.detach().clone()
    return made


def write_by(owner: nn.Module, name: str, right: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A writer's weights with its output turned into the stream's basis; a table of embeddings is a writer too.

    Args:
        owner: block (or model) of the base.
        name: of the writer in it.
        right: from `writing`; None leaves the output as it is.

    Returns:
        Parameter name to tensor; empty where the block has no such part.
    """
    found = part(owner, name)
    if found is None:
        return {}
    if isinstance(found, nn.Parameter):
        return {name: _turned(found.detach(), right, False)}
    made = {f"{name}.weight": _turned(found.weight.detach(), right, transposed(found))}
    bias = getattr(found, "bias", None)
    if bias is not None:
        bias = bias.detach()
        made[f"{name}.bias"] = bias.clone() if right is None else times(bias[None], right).squeeze(0)
    return made


def _turned(weight: torch.Tensor, right: torch.Tensor | None, outputs_last: bool) -> torch.Tensor:
    if right is None:
        return weight.clone()
    if outputs_last:
        return times(weight, right)
    return times(weight.transpose(-1, -2), right).transpose(-1, -2).contiguous()
