"""Bytes on their way from a checkpoint to a new one: what has to be moved, and who moves it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hf_prune.tensors import TensorEntry

LARGEST_SPAN = 64 * 2**20
"""Bytes that are moved, and remembered as moved, at once."""


@dataclass(frozen=True)
class Span:
    """Bytes of a source file that are wanted in a target file.

    Attributes:
        file: name of the source file.
        start: of the first byte, counted from the start of the source file.
        size: bytes, at most `LARGEST_SPAN`.
        target: name of the file that they go to, which is there already and as long as it will be.
        at: where they go in it.
    """

    file: str
    start: int
    size: int
    target: str
    at: int


class Mover(Protocol):
    """Moves bytes of one checkpoint: from a folder, or from the Hub by ranges."""

    def move(self, spans: Sequence[Span], folder: Path, done: Callable[[Span], None]) -> None:
        """Write all spans into the files of a folder.

        Args:
            spans: what is wanted, in any order of moving.
            folder: holds the target files.
            done: told each span once its bytes were written; called from one thread at a time.

        Raises:
            CheckpointError: a source file changed meanwhile, or is shorter than it was.
            HubError: the Hub did not send what was asked for.
            OSError: the disk is full.
        """
        ...

    def read(self, file: str, start: int, size: int) -> bytes:
        """A few bytes of a source file, exactly as many as asked for.

        Raises:
            CheckpointError: a source file changed meanwhile, or is shorter than it was.
            HubError: the Hub did not send what was asked for.
        """
        ...


@dataclass(frozen=True)
class SourceWeights:
    """The weights of a checkpoint, wherever they lie.

    Attributes:
        entries: name of each tensor, and where it lies.
        mover: moves its bytes.
        identity: stands for the bytes (a commit, or a folder's digest): what was moved before counts only for it.
    """

    entries: Mapping[str, TensorEntry]
    mover: Mover
    identity: str
