"""Hidden states of a calibration set between two blocks: in memory up to a budget, memory-mapped on disk past it."""

import tempfile
import weakref
from pathlib import Path

import psutil
import torch

_SHARE_OF_MEMORY = 0.25


class ActivationStore:
    """One tensor a batch, overwritten as the batches move from block to block.

    Args:
        budget: bytes held in memory at most; a quarter of what is free now when None.
        folder: where the rest goes, on a disk with room; the system's place for temporary files when None.
    """

    def __init__(self, budget: int | None = None, folder: Path | None = None) -> None:
        self.budget = int(_SHARE_OF_MEMORY * psutil.virtual_memory().available) if budget is None else budget
        self._kept: dict[int, torch.Tensor] = {}
        self._folder = folder
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._mapped: set[int] = set()
        self.in_memory = self.on_disk = 0

    def __getitem__(self, batch: int) -> torch.Tensor:
        """What was put there, on the device that it came from (on the CPU if it lies on disk)."""
        return self._kept[batch]

    def __setitem__(self, batch: int, hidden: torch.Tensor) -> None:
        """Keep the hidden states of a batch in place of those that were there; the tensor is taken, not copied."""
        before = self._kept.get(batch)
        if before is not None and (before.shape, before.dtype) != (hidden.shape, hidden.dtype):
            raise AssertionError(f"batch {batch} was {tuple(before.shape)}, is {tuple(hidden.shape)}")
        if before is not None and batch in self._mapped:
            before.copy_(hidden)
            return
        size = hidden.numel() * hidden.element_size()
        if before is None and self.in_memory + size > self.budget:
            self._kept[batch] = self._map(batch, hidden)
            self._mapped.add(batch)
            self.on_disk += size
            return
        self._kept[batch] = hidden
        if before is None:
            self.in_memory += size

    def _map(self, batch: int, hidden: torch.Tensor) -> torch.Tensor:
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="hf-prune-states-", dir=self._folder)
            weakref.finalize(self, self._scratch.cleanup)
        path = Path(self._scratch.name) / str(batch)
        mapped = torch.from_file(str(path), shared=True, size=hidden.numel(), dtype=hidden.dtype)
        return mapped.reshape(hidden.shape).copy_(hidden)
