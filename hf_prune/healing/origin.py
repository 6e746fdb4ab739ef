"""What healing knows of the cut: which blocks of the original are left, and how to get at the original."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from hf_prune.loading import Source
from hf_prune.units import Unit


@dataclass(frozen=True)
class Origin:
    """Where a pruned model comes from.

    Attributes:
        kept: index in the original of every block of the pruned model, ascending.
        depth: blocks of the original.
        changed: positions in the pruned model of blocks that surgery has written into.
        silent: parts of the pruned model that write nothing, and are to stay so.
        patched: positions in the pruned model of blocks that a map of the stream stands behind.
        load: gives the original model, which is somebody else's and must stay as it is; None where it is not at hand.
        source: gives the original's files; None, or giving None, where it lies in none.
        key: stands for the original's weights; what was computed with other weights has another one.
        replaced: positions in the pruned model of blocks that stand in for what went, with fitted tensors.
        rescaled: whether the stream behind a gap has another size than the original's, which norms undo.
    """

    kept: tuple[int, ...]
    depth: int
    changed: tuple[int, ...] = ()
    silent: tuple[Unit, ...] = ()
    patched: tuple[int, ...] = ()
    load: Callable[[], PreTrainedModel] | None = None
    source: Callable[[], Source | None] | None = None
    key: str = ""
    replaced: tuple[int, ...] = ()
    rescaled: bool = False

    @property
    def seams(self) -> tuple[int, ...]:
        """Positions in the pruned model of the first block behind each gap; its depth stands for the last norm."""
        ends = (-1, *self.kept, self.depth)
        return tuple(at for at in range(len(self.kept) + 1) if ends[at + 1] - ends[at] > 1)

    @property
    def same_below(self) -> int:
        """Blocks at the start that are the original's own, untouched by surgery."""
        # A map of the stream is part of the block that it stands behind.
        touched = {unit.layer for unit in self.silent} | {*self.changed, *self.patched, *self.replaced}
        return min([*touched, *self.seams, len(self.kept)])
