"""How many parameters a sliced model has, from its widths alone: exact, and quick enough to solve for."""

from dataclasses import dataclass

from hf_prune.slicing.points import Widths


@dataclass(frozen=True)
class StepCost:
    """What one addition to the residual stream costs.

    Attributes:
        width: name of the widths behind it.
        reads: parameters for each channel of the stream before it (rows of all readers).
        writes: parameters for each channel behind it (columns of all writers, and one for each of their biases).
    """

    width: str
    reads: int
    writes: int


@dataclass(frozen=True)
class Costs:
    """What a sliced model of one base costs, for any widths.

    Attributes:
        hidden_size: D.
        original: parameters of the base, tied ones once.
        tables: parameters for each channel of the embeddings.
        head: parameters for each channel of the last point (the vocabulary), in a head of its own.
        head_bias: parameters that a head of its own adds, whatever its width.
        fixed: parameters that do not depend on widths.
        layers: the steps of each layer.
        norms: norms along the stream, whose weights a plain model has again.
        can_tie: whether head and embeddings can stay one table.
        heads: attention heads, which a plain model's width must be a multiple of.
    """

    hidden_size: int
    original: int
    tables: int
    head: int
    head_bias: int
    fixed: int
    layers: tuple[tuple[StepCost, ...], ...]
    norms: int
    can_tie: bool
    heads: int

    @property
    def parallel(self) -> bool:
        """Whether each layer adds to the stream once."""
        return len(self.layers[0]) == 1


@dataclass(frozen=True)
class Count:
    """Parameters of a sliced model.

    Attributes:
        total: all, tied ones once.
        shortcuts: of these, in the shortcuts.
    """

    total: int
    shortcuts: int


def count(costs: Costs, widths: Widths, *, shortcuts: bool, tied: bool, plain: bool = False) -> Count:
    """Parameters of the sliced model (research: SliceGPT's arithmetic with the shortcuts counted).

    Args:
        costs: of the base.
        widths: of the stream.
        shortcuts: whether the basis changes between the points.
        tied: whether head and embeddings are one table, with a map before it.
    """
    width = widths.embed
    total, between = costs.tables * width + costs.fixed, 0
    for layer, steps in enumerate(costs.layers):
        for step in steps:
            behind = getattr(widths, step.width)[layer]
            total += step.reads * width + step.writes * behind
            between += width * behind if shortcuts else 0
            width = behind
    total += width * widths.embed if tied else costs.head * width + costs.head_bias
    total += costs.norms * width if plain else 0
    return Count(total + between, between)
