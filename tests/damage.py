"""What can happen to the tensors of a saved folder."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hf_prune.checkpoint import SINGLE


def tensors_of(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Does something to the tensors of a folder."""

    def act(folder: Path) -> None:
        tensors = load_file(folder / SINGLE)
        change(tensors)
        save_file(tensors, folder / SINGLE, {"format": "pt"})

    return act


def flip(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.3.mlp.down_proj.weight"].view(torch.int32)[5, 7] ^= 1 << 12


def swap(tensors: dict[str, torch.Tensor]) -> None:
    a, b = (f"model.layers.{i}.self_attn.q_proj.weight" for i in (1, 2))
    tensors[a], tensors[b] = tensors[b], tensors[a]
