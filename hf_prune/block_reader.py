"""Reads the tensors of a checkpoint into buffers of its own, a thread one block ahead of who computes.

Files are read and never mapped: what a process holds is then what it asked for, and nothing of the page cache.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hf_prune.checkpoint import checkpoint_entries, weight_files
from hf_prune.errors import CheckpointError
from hf_prune.tensors import TensorEntry

_ALIGNED = 64  # as torch aligns its own tensors: kernels choose their way by it


class CheckpointFiles:
    """The weight files of a folder, which must stay as they are from now on.

    Args:
        folder: of the checkpoint.

    Attributes:
        entries: its tensors, by name.
        drops_behind: whether the system need not keep blocks that were read in its page cache: where memory is bounded
            it would have to look for room again and again.

    Raises:
        CheckpointError: the checkpoint is broken.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        names = [path.relative_to(folder).as_posix() for path in weight_files(folder)]
        self._known = {name: _identity((folder / name).stat()) for name in names}
        self._open: dict[str, int] = {}
        self.drops_behind = False
        self.entries: Mapping[str, TensorEntry] = checkpoint_entries(folder)

    def read(self, entry: TensorEntry, into: memoryview, start: int = 0) -> None:
        """Read bytes of a tensor.

        Args:
            entry: the tensor.
            into: as many bytes as are wanted.
            start: first byte, counted from the start of the tensor.

        Raises:
            CheckpointError: the file changed since its header was read, is shorter, or its disk fails.
        """
        handle, done = self._handle(entry.file), 0
        while done < len(into):
            try:
                count = os.preadv(handle, [into[done:]], entry.start + start + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self._folder / entry.file} cannot be read at '{entry.name}': {error.strerror}. Check the disk, "
                    "or fetch the file again"
                ) from error
            if count == 0:
                raise CheckpointError(
                    f"{self._folder / entry.file} ended after {done} of {len(into)} bytes of '{entry.name}': it got "
                    "shorter while it was read. Leave the checkpoint alone meanwhile, and start again"
                )
            done += count

    def check(self, names: Iterable[str]) -> None:
        """Insist that files are what they were when their headers were read.

        Raises:
            CheckpointError: one is not.
        """
        for name in names:
            if _identity(os.fstat(self._handle(name))) != self._known[name]:
                raise CheckpointError(
                    f"{self._folder / name} changed while it was read (its size or time is another one). Leave the "
                    "checkpoint alone meanwhile, and start again"
                )

    def done_with(self, entries: Iterable[TensorEntry]) -> None:
        """Tensors that were read and will not be soon; see `drops_behind`."""
        if self.drops_behind and hasattr(os, "posix_fadvise"):
            for entry in entries:
                os.posix_fadvise(self._handle(entry.file), entry.start, entry.size, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the files; they open again when they are read."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _handle(self, name: str) -> int:
        if name not in self._open:
            try:
                self._open[name] = os.open(self._folder / name, os.O_RDONLY)
            except OSError as error:
                raise CheckpointError(
                    f"{self._folder / name} cannot be read: {error.strerror}. It was there when the header was read"
                ) from error
        return self._open[name]


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


@dataclass
class _Slot:
    """A buffer for one block; on GPUs also its pinned twin, from which it is copied while others compute."""

    buffer: torch.Tensor
    pinned: torch.Tensor | None = None
    copied: Any = None  # the last copy from the pinned buffer
    unused: Any = field(default=None)  # the last kernel that needed the buffer


class BlockReader:
    """Reads groups of tensors in a given order, one group ahead.

    Args:
        files: where they lie.
        groups: the names of the tensors of each group.
        slots: buffers. With one, the tensors of a group must be copied before the next one is read; with two, they may
            be used until it is taken.
        device: of the buffers.
    """

    def __init__(
        self, files: CheckpointFiles, groups: Sequence[Sequence[str]], slots: int, device: torch.device
    ) -> None:
        self._files, self._groups, self._device = files, groups, device
        self._layouts = [_layout(files.entries[name] for name in names) for names in groups]
        size = max((total for _, total in self._layouts), default=0)
        self._slots = [self._slot(size) for _ in range(slots)]
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hf-prune-reader")
        self._ahead: Future[_Slot] | None = None

    def begin(self) -> None:
        """Start to read the first group."""
        self._read_ahead(0)

    @torch.inference_mode(False)  # parameters cannot be made of what is born in inference mode
    def take(self, number: int) -> dict[str, torch.Tensor]:
        """The tensors of a group, by name: groups come in their order.

        Raises:
            CheckpointError: a file changed, or is shorter than it was.
        """
        assert self._ahead is not None
        slot = self._ahead.result()
        if slot.copied is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.copied)
        return {
            entry.name: slot.buffer[start : start + entry.size].view(entry.torch_dtype).reshape(entry.shape)
            for entry, start in self._layouts[number][0]
        }

    def go_on(self, number: int) -> None:
        """Start to read the group behind this one, into the buffer that is free (see `slots`)."""
        if number + 1 == len(self._groups):
            self._ahead = None
            return
        slot = self._slots[(number + 1) % len(self._slots)]
        if self._stream is not None:
            slot.unused = torch.cuda.current_stream(self._device).record_event()
        self._read_ahead(number + 1)

    def close(self) -> None:
        """Stop reading."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._ahead = None
        self._slots.clear()

    def _read_ahead(self, number: int) -> None:
        self._ahead = self._thread.submit(self._fetch, number, self._slots[number % len(self._slots)])

    @torch.inference_mode(False)
    def _slot(self, size: int) -> _Slot:
        pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True) if self._device.type == "cuda" else None
        return _Slot(torch.empty(size, dtype=torch.uint8, device=self._device), pinned)

    def _fetch(self, number: int, slot: _Slot) -> _Slot:
        layout, total = self._layouts[number]
        if slot.copied is not None:
            slot.copied.synchronize()  # the pinned buffer is still being read
        memory = (slot.buffer if slot.pinned is None else slot.pinned).numpy().data
        used = {entry.file for entry, _ in layout}
        self._files.check(used)
        for entry, start in layout:
            self._files.read(entry, memory[start : start + entry.size])
        self._files.check(used)
        self._files.done_with(entry for entry, _ in layout)
        if slot.pinned is not None:
            with torch.cuda.stream(self._stream):
                if slot.unused is not None:
                    self._stream.wait_event(slot.unused)
                slot.buffer[:total].copy_(slot.pinned[:total], non_blocking=True)
                slot.copied = self._stream.record_event()
        return slot


def _layout(entries: Iterable[TensorEntry]) -> tuple[list[tuple[TensorEntry, int]], int]:
    """Where each tensor goes in a buffer, in the order in which they lie in the files; and bytes in all."""
    placed, end = [], 0
    for entry in sorted(entries, key=lambda entry: (entry.file, entry.start)):
        placed.append((entry, end))
        end += -(-entry.size // _ALIGNED) * _ALIGNED
    return placed, end


def buffer_size(entries: Iterable[TensorEntry]) -> int:
    """Bytes of the buffer that a group of tensors needs."""
    return _layout(entries)[1]


@torch.inference_mode(False)
def read_whole(files: CheckpointFiles, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Tensors in memory of their own.

    Raises:
        CheckpointError: a file changed, or is shorter than it was.
    """
    found = {}
    for name in names:
        entry = files.entries[name]
        buffer = torch.empty(entry.size, dtype=torch.uint8)
        files.check([entry.file])
        files.read(entry, buffer.numpy().data)
        files.check([entry.file])
        found[name] = buffer.view(entry.torch_dtype).reshape(entry.shape)
    return found


@torch.inference_mode(False)
def read_rows(files: CheckpointFiles, name: str, rows: Sequence[int]) -> torch.Tensor:
    """A few rows of a matrix, in the order given.

    Raises:
        CheckpointError: the file changed, or is shorter than it was.
    """
    entry = files.entries[name]
    width = entry.size // entry.shape[0]
    buffer = torch.empty(len(rows) * width, dtype=torch.uint8)
    memory = buffer.numpy().data
    files.check([entry.file])
    for place, row in enumerate(rows):
        files.read(entry, memory[place * width : (place + 1) * width], row * width)
    files.check([entry.file])
    return buffer.view(entry.torch_dtype).reshape(len(rows), *entry.shape[1:])
