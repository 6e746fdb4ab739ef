"""Hidden states of a calibration set between two blocks: in memory up to a budget, memory-mapped on disk past it."""

import os
import tempfile
import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psutil
import torch

from hf_prune.errors import OutputError

_SHARE_OF_MEMORY = 0.25


@dataclass(frozen=True)
class _Mapped:
    """A tensor on disk. It is mapped anew each time it is asked for: a lasting map would count as memory held."""

    path: Path
    shape: torch.Size
    dtype: torch.dtype

    def tensor(self) -> torch.Tensor:
        flat = torch.from_file(str(self.path), shared=True, size=self.shape.numel(), dtype=self.dtype)
        return flat.reshape(self.shape)


class ActivationStore:
    """One tensor a batch (or a batch of a branch), overwritten as the batches move from block to block.

    Args:
        budget: bytes held in memory at most; a quarter of what is free now when None.
        folder: where the rest goes, on a disk with room; the system's place for temporary files when None.
    """

    def __init__(self, budget: int | None = None, folder: Path | None = None) -> None:
        self.budget = int(_SHARE_OF_MEMORY * psutil.virtual_memory().available) if budget is None else budget
        self._kept: dict[Hashable, torch.Tensor | _Mapped] = {}
        self._folder = folder
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._numbers = count()
        self.in_memory = self.on_disk = 0

    def __getitem__(self, key: Hashable) -> torch.Tensor:
        """What was put there, on the device that it came from (on the CPU if it lies on disk)."""
        kept = self._kept[key]
        return kept.tensor() if isinstance(kept, _Mapped) else kept

    def __setitem__(self, key: Hashable, hidden: torch.Tensor) -> None:
        """Keep hidden states in place of those that were there; the tensor is taken, not copied.

        Raises:
            OutputError: the disk has no room for them.
        """
        before = self._kept.get(key)
        if before is not None and (before.shape, before.dtype) != (hidden.shape, hidden.dtype):
            raise AssertionError(f"batch {key} was {tuple(before.shape)}, is {tuple(hidden.shape)}")
        if isinstance(before, _Mapped):
            before.tensor().copy_(hidden)
            return
        size = _bytes(hidden)
        if before is None:
            number = next(self._numbers)
            if self.in_memory + size > self.budget:
                self._kept[key] = self._map(number, hidden)
                self.on_disk += size
                return
            self.in_memory += size
        self._kept[key] = hidden

    def branch(self, key: Hashable, new: Hashable) -> None:
        """Keep what lies under a key under another one too, from where the two go different ways."""
        kept = self._kept[key]
        self[new] = kept.tensor().clone() if isinstance(kept, _Mapped) else kept

    def __delitem__(self, key: Hashable) -> None:
        """Forget a tensor, and make its room free."""
        kept = self._kept.pop(key)
        if isinstance(kept, _Mapped):
            kept.path.unlink()
            self.on_disk -= kept.shape.numel() * kept.dtype.itemsize
        else:
            self.in_memory -= _bytes(kept)

    def _map(self, number: int, hidden: torch.Tensor) -> _Mapped:
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="hf-prune-states-", dir=self._folder)
            weakref.finalize(self, self._scratch.cleanup)
        mapped = _Mapped(Path(self._scratch.name) / str(number), hidden.shape, hidden.dtype)
        _reserve(mapped.path, _bytes(hidden))
        mapped.tensor().copy_(hidden)
        return mapped


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _reserve(path: Path, size: int) -> None:
    """Take the room on disk now: writing to a map of a file for which there is none would end the process."""
    try:
        with path.open("xb") as file:
            if hasattr(os, "posix_fallocate") and size:
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except OSError as error:
        raise OutputError(
            f"no room for {size / 1e6:.0f} MB of hidden states in {path.parent.parent}: {error.strerror}. Name a "
            "folder on a larger disk, raise the memory budget, or take fewer or shorter samples"
        ) from error
