"""Tensors as they lie in files: what their headers say, and whether two are the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from hf_prune.checkpoint import read_header, weight_files
from hf_prune.surgery.edits import Edit
from hf_prune.verify_edits import applied, masks

_CHUNK = 16 * 2**20


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its dtype and shape by the header, and where its bytes lie."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint, by name."""
    found = {}
    for path in weight_files(folder):
        for name, entry in read_header(path).items():
            found[name] = StoredTensor(path, name, entry.dtype, entry.shape, entry.start, entry.start + entry.size)
    return found


def same(one: StoredTensor, other: StoredTensor, edits: Sequence[Edit] = ()) -> bool:
    """Whether two tensors are equal to the bit, the base's after its cast to the dtype of the other, and its edits."""
    if one.shape != other.shape:
        return False
    if edits or one.dtype != other.dtype:
        mine = load(one)
        pair = mine, applied(edits, load(other).to(mine.dtype))
        return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in pair))
    with one.path.open("rb") as mine_file, other.path.open("rb") as other_file:
        mine_file.seek(one.start)
        other_file.seek(other.start)
        left = one.end - one.start
        while left > 0:
            size = min(left, _CHUNK)
            if mine_file.read(size) != other_file.read(size):
                return False
            left -= size
    return True


def masked(one: StoredTensor, other: StoredTensor, edits: Sequence[Edit]) -> bool:
    """Whether a tensor is the base's, after cast and edits, but for numbers that became zero."""
    mine = load(one)
    return one.shape == other.shape and masks(mine, applied(edits, load(other).to(mine.dtype)))


def load(tensor: StoredTensor) -> torch.Tensor:
    """Its numbers."""
    with safe_open(tensor.path, "pt") as file:
        return file.get_tensor(tensor.name)
