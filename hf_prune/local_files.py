"""The weights of a checkpoint on this machine, moved by the kernel: no byte of them passes through Python."""

import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hf_prune.checkpoint import checkpoint_entries, folder_digest, weight_files
from hf_prune.errors import CheckpointError
from hf_prune.moving import SourceWeights, Span

# What the kernel says where it cannot copy between two files itself: other disks, other file systems, old kernels.
_REFUSALS = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.ETXTBSY}
_CHUNK = 2**20
_MOST = 2**30


def local_weights(folder: Path) -> SourceWeights:
    """The weights of a checkpoint folder.

    Raises:
        CheckpointError: a file is missing or broken, or index and shards disagree.
    """
    entries = checkpoint_entries(folder)
    paths = {path.relative_to(folder).as_posix(): path for path in weight_files(folder)}
    return SourceWeights(entries, LocalFiles(paths), folder_digest(folder))


class LocalFiles:
    """The local `Mover`.

    Args:
        paths: name of each source file, and where it lies.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = dict(paths)
        self._stamps = {name: _stamp(os.stat(path)) for name, path in paths.items()}

    def move(self, spans: Sequence[Span], folder: Path, done: Callable[[Span], None]) -> None:
        """Copy all spans into the files of a folder; see `Mover.move`.

        Args:
            spans: what is wanted.
            folder: holds the target files.
            done: told each span once its bytes were written.

        Raises:
            CheckpointError: a source file changed meanwhile, or is shorter than it was.
            OSError: the disk is full.
        """
        for span in sorted(spans, key=lambda span: (span.file, span.start)):
            with self._paths[span.file].open("rb") as source, (folder / span.target).open("r+b") as target:
                left = copy_range(source.fileno(), span.start, span.size, target.fileno(), span.at)
                self._check(span.file, source.fileno(), left)
            done(span)

    def read(self, file: str, start: int, size: int) -> bytes:
        """A few bytes of a source file; see `Mover.read`.

        Args:
            file: name of the source file.
            start: of the first byte.
            size: bytes.

        Raises:
            CheckpointError: a source file changed meanwhile, or is shorter than it was.
        """
        with self._paths[file].open("rb") as source:
            source.seek(start)
            found = source.read(size)
            self._check(file, source.fileno(), size - len(found))
        return found

    def _check(self, file: str, opened: int, left: int) -> None:
        if left or _stamp(os.fstat(opened)) != self._stamps[file]:
            raise CheckpointError(
                f"{self._paths[file]} changed while it was read{f': {left} bytes are gone' if left else ''}; let "
                "whatever writes there finish, and run the same command again"
            )


def copy_range(source: int, start: int, size: int, target: int, at: int) -> int:
    """Copy bytes from file to file, in the kernel where it can.

    Args:
        source: file descriptor to read.
        start: of the first byte in it.
        size: bytes.
        target: file descriptor to write.
        at: where the first byte goes.

    Returns:
        Bytes that the source did not have.

    Raises:
        OSError: the disk is full, or reading failed.
    """
    for way in _WAYS:
        try:
            while size:
                moved = way(source, start, min(size, _MOST), target, at)
                if not moved:
                    break
                start, size, at = start + moved, size - moved, at + moved
        except OSError as error:
            if way is _through_memory or error.errno not in _REFUSALS:
                raise
    return size


def _in_kernel(source: int, start: int, size: int, target: int, at: int) -> int:
    return os.copy_file_range(source, target, size, start, at)


def _sendfile(source: int, start: int, size: int, target: int, at: int) -> int:
    os.lseek(target, at, os.SEEK_SET)
    return os.sendfile(target, source, start, size)


def _through_memory(source: int, start: int, size: int, target: int, at: int) -> int:
    os.lseek(source, start, os.SEEK_SET)
    os.lseek(target, at, os.SEEK_SET)
    found = memoryview(os.read(source, min(size, _CHUNK)))
    moved = len(found)
    while found:
        found = found[os.write(target, found) :]
    return moved


# Only Linux copies between two files; elsewhere sendfile wants a socket.
_WAYS: tuple[Callable[[int, int, int, int, int], int], ...] = (
    (_in_kernel, _sendfile, _through_memory) if sys.platform == "linux" else (_through_memory,)
)


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
