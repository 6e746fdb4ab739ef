"""What a frozen model makes of each training row, on disk: written once, read in every later pass."""

import hashlib
import json
import os
import weakref
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from itertools import accumulate
from pathlib import Path

import torch

from hf_prune import serial
from hf_prune.errors import CheckpointError, OutputError

Fields = Mapping[str, tuple[int, torch.dtype]]
"""Numbers that each token of a row has of each kind, and their dtype."""

_LAYOUT, _MARKS = "store.json", "marks.bin"
_MARK = 8  # bytes of a row's mark: four that stand for the key, four of a checksum


def planned_bytes(lengths: Sequence[int], fields: Fields) -> int:
    """Bytes on disk that a store takes, all rows filled."""
    return sum(lengths) * sum(width * dtype.itemsize for width, dtype in fields.values()) + _MARK * len(lengths)


class RowStore:
    """Tensors of rows, each row in its own place of one file a field; they outlive the process.

    All of the room is taken when the store is opened. A row's mark, with a checksum of its data, is written behind the
    data: a row that was cut off, by a kill or a power cut, counts as not there. Several processes may hold one store
    open and put rows at once: each row has its own bytes, and two that put the same row put the same data.

    Files are read and written, not mapped: what was read of a map counts as memory held, and where a disk is full,
    writing to a map ends the process.

    Args:
        folder: of this store alone; made where it is not there.
        key: stands for all that the data depends on; rows of another key are never read.
        lengths: tokens of each row.
        fields: what is kept of each token.
        what: of what the data is, for messages.

    Raises:
        CheckpointError: the folder holds a store of another key or layout.
        OutputError: the disk has no room, or the folder cannot be written.
    """

    def __init__(self, folder: Path, key: str, lengths: Sequence[int], fields: Fields, *, what: str = "rows") -> None:
        self.folder, self.fields, self.lengths = Path(folder), dict(fields), tuple(lengths)
        self._starts = (0, *accumulate(self.lengths))
        layout = {
            "what": what,
            "key": key,
            "lengths": hashlib.sha256(",".join(map(str, self.lengths)).encode()).hexdigest(),
            "rows": len(self.lengths),
            "fields": {name: [width, str(dtype)] for name, (width, dtype) in self.fields.items()},
        }
        self._tag = hashlib.sha256(json.dumps({**layout, "what": ""}, sort_keys=True).encode()).digest()[:4]
        self._check(layout)
        self._whole: set[int] = set()  # rows whose checksum was seen to be right
        self._files = self._open()
        weakref.finalize(self, _close, tuple(self._files.values()))
        if not (self.folder / _LAYOUT).is_file():
            serial.write_text(self.folder / _LAYOUT, serial.dumps(layout))

    @property
    def bytes(self) -> int:
        """Bytes on disk, all rows filled."""
        return planned_bytes(self.lengths, self.fields)

    @property
    def left(self) -> int:
        """Rows that are not there yet."""
        return sum(not self.has(row) for row in range(len(self.lengths)))

    def has(self, row: int) -> bool:
        """Whether a row is there, whole. What another process has put is seen too."""
        if row in self._whole:
            return True
        mark = bytearray(_MARK)
        _read(self._files[_MARKS], row * _MARK, memoryview(mark))
        if mark[:4] != self._tag or mark[4:] != _checksum(self._tensors(row)):
            return False
        self._whole.add(row)
        return True

    def get(self, row: int) -> dict[str, torch.Tensor]:
        """A row that is there, by field: (length, width) each, on the CPU."""
        assert self.has(row), f"row {row} of {self.folder} was never put"
        return self._tensors(row)

    def put(self, row: int, **tensors: torch.Tensor) -> None:
        """Keep a row.

        Args:
            row: its number.
            tensors: (length, width) of each field, in the field's dtype, on any device.

        Raises:
            OutputError: the disk has no room.
        """
        length = self.lengths[row]
        kept = {name: tensors.pop(name).detach().cpu().contiguous() for name in self.fields}
        assert not tensors, f"no fields of this store: {sorted(tensors)}"
        try:
            for name, (width, dtype) in self.fields.items():
                assert (kept[name].shape, kept[name].dtype) == ((length, width), dtype), f"{name} of row {row}"
                _write(self._files[name], self._start(row, name), _as_bytes(kept[name]))
            _write(self._files[_MARKS], row * _MARK, memoryview(self._tag + _checksum(kept)))
        except OSError as error:
            raise self._unwritable(error) from error
        self._whole.add(row)

    def _tensors(self, row: int) -> dict[str, torch.Tensor]:
        found = {}
        for name, (width, dtype) in self.fields.items():
            found[name] = torch.empty((self.lengths[row], width), dtype=dtype)
            _read(self._files[name], self._start(row, name), _as_bytes(found[name]))
        return found

    def _start(self, row: int, name: str) -> int:
        width, dtype = self.fields[name]
        return self._starts[row] * width * dtype.itemsize

    def _check(self, layout: dict[str, object]) -> None:
        """Refuse a folder that holds something else."""
        path = self.folder / _LAYOUT
        if not path.is_file():
            return
        there = serial.read_json(path)
        differs = [name for name in layout if name != "what" and there.get(name) != layout[name]]
        if differs:
            raise CheckpointError(
                f"{self.folder} holds {there.get('what')}, of another {', '.join(differs)} than {layout['what']} that "
                f"are wanted (key {str(there.get('key'))[:12]}, expected {str(layout['key'])[:12]}). Delete that "
                "folder, or take another one"
            )

    def _open(self) -> dict[str, FileIO]:
        """All files, with all of their room taken; what was written in them stays."""
        fresh = not (self.folder / _LAYOUT).is_file()
        sizes = {name: sum(self.lengths) * w * dtype.itemsize for name, (w, dtype) in self.fields.items()}
        sizes[_MARKS] = _MARK * len(self.lengths)
        opened: dict[str, FileIO] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, size in sizes.items():
                path = self._path(name)
                path.touch()
                opened[name] = FileIO(path, "r+")
                if size and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(opened[name].fileno(), 0, size)
                elif path.stat().st_size < size:
                    opened[name].truncate(size)
        except OSError as error:
            _close(tuple(opened.values()))
            if fresh:
                self._forget(sizes)
            raise self._unwritable(error) from error
        return opened

    def _forget(self, names: Iterable[str]) -> None:
        """Give back the room that was taken; what else lies in the folder stays."""
        for name in names:
            self._path(name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _path(self, name: str) -> Path:
        return self.folder / (name if name == _MARKS else f"{name}.bin")

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.bytes / 1e6:.0f} MB cannot be written to {self.folder}: {error.strerror}. Name a folder on a "
            "larger disk, or take less text"
        )


def _as_bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data.cast("B")


def _checksum(tensors: Mapping[str, torch.Tensor]) -> bytes:
    checksum = 0
    for tensor in tensors.values():
        checksum = zlib.crc32(_as_bytes(tensor), checksum)
    return checksum.to_bytes(4, "little")


def _read(file: FileIO, start: int, into: memoryview) -> None:
    # A system call may read, or write, less than it was asked for.
    file.seek(start)
    while into and (count := file.readinto(into)):
        into = into[count:]


def _write(file: FileIO, start: int, data: memoryview) -> None:
    file.seek(start)
    while data:
        data = data[file.write(data) :]


def _close(files: Sequence[FileIO]) -> None:
    for file in files:
        file.close()
