"""What a surgery that is fitted is given, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hf_prune.architecture import Decoder
from hf_prune.records import Operation


@dataclass(frozen=True)
class Window:
    """Blocks in a row that go.

    Attributes:
        start: the first of them.
        size: how many.
    """

    start: int
    size: int

    @property
    def stop(self) -> int:
        """The first block behind them."""
        return self.start + self.size

    @property
    def layers(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(self.start, self.stop))


@dataclass(frozen=True)
class Task:
    """What goes of which model.

    Attributes:
        decoder: the whole model, in memory; it stays as it is.
        layers: the blocks that go, 0-based, ascending; none where single weights become zero.
        sequences: 1-D int64 calibration sequences; empty where the surgery looks at weights alone.
        batch_size: of them at once.
        seed: of whatever is drawn.
        scratch: folder for hidden states that memory has no room for.
        progress: whether to show a bar.
        sparsity: share of the weights of the blocks' linear maps that becomes zero, where single weights do.
    """

    decoder: Decoder
    layers: tuple[int, ...]
    sequences: Sequence[torch.Tensor] = ()
    batch_size: int = 8
    seed: int = 0
    scratch: Path | None = None
    progress: bool = False
    sparsity: float | None = None

    def windows(self) -> tuple[Window, ...]:
        """The blocks that go, as runs of neighbours, ascending."""
        runs: list[Window] = []
        for layer in self.layers:
            if runs and runs[-1].stop == layer:
                runs[-1] = Window(runs[-1].start, runs[-1].size + 1)
            else:
                runs.append(Window(layer, 1))
        return tuple(runs)


@dataclass(frozen=True)
class Fitted:
    """What is done.

    Attributes:
        operations: in order; layers are those of the original model. "drop" is among them where blocks go; at most one
            is a "replace" or a "mask", whose `file` is filled in later.
        tensors: of that operation, by number of the layer among its layers and name of the weight in the block, like
            "0.mlp.down_proj.weight".
        notes: one sentence each on what was found, for report and card: held-out errors, factors, what was not used.
    """

    operations: tuple[Operation, ...]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def drop(layers: Sequence[int]) -> Operation:
    """The blocks go."""
    return Operation("drop", tuple(layers))
