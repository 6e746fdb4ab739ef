"""Hidden states of a calibration set between two blocks: in memory up to a budget, memory-mapped on disk past it."""

import mmap
import os
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from hf_prune.errors import OutputError
from hf_prune.memory import free_memory

_SHARE_OF_MEMORY = 0.25


@dataclass(frozen=True)
class _Mapped:
    """A tensor on disk. It is mapped anew each time it is asked for: a lasting map would count as memory held."""

    file: BinaryIO
    start: int
    room: int
    shape: torch.Size
    dtype: torch.dtype

    def tensor(self) -> torch.Tensor:
        memory = mmap.mmap(self.file.fileno(), self.room, offset=self.start)
        return torch.frombuffer(memory, dtype=self.dtype, count=self.shape.numel()).reshape(self.shape)


class ActivationStore:
    """One tensor a batch (or a batch of a branch), overwritten as the batches move from block to block.

    What is on disk lies in one file without a name: it is gone with the process, however that ends.

    Args:
        budget: bytes held in memory at most; a quarter of what is free now when None.
        folder: where the rest goes, on a disk with room; the system's place for temporary files when None.
    """

    def __init__(self, budget: int | None = None, folder: Path | None = None) -> None:
        self.budget = int(_SHARE_OF_MEMORY * free_memory()) if budget is None else budget
        self._kept: dict[Hashable, torch.Tensor | _Mapped] = {}
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._file: BinaryIO | None = None
        self._end = 0
        self._free: defaultdict[int, list[int]] = defaultdict(list)  # where there is room of a size in the file
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
            if self.in_memory + size > self.budget:
                self._kept[key] = self._map(hidden)
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
            self._free[kept.room].append(kept.start)
            self.on_disk -= kept.shape.numel() * kept.dtype.itemsize
        else:
            self.in_memory -= _bytes(kept)

    def _map(self, hidden: torch.Tensor) -> _Mapped:
        room = -(-_bytes(hidden) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        start = self._free[room].pop() if self._free[room] else self._more(room)
        assert self._file is not None
        mapped = _Mapped(self._file, start, room, hidden.shape, hidden.dtype)
        mapped.tensor().copy_(hidden)
        return mapped

    def _more(self, size: int) -> int:
        """Take room on disk now: writing to a map of a file for which there is none would end the process."""
        start = self._end
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)
                weakref.finalize(self, self._file.close)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), start, size)
            else:
                self._file.truncate(start + size)
        except OSError as error:
            raise OutputError(
                f"no room for {size / 1e6:.0f} MB of hidden states in {self._folder}: {error.strerror}. Name a folder "
                "on a larger disk, raise the memory budget, or take fewer or shorter samples"
            ) from error
        self._end += size
        return start


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
