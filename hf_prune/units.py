"""What can go: whole blocks, or one of the two parts of a block."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Part = Literal["block", "attention", "mlp"]
PARTS: tuple[Part, ...] = get_args(Part)

UnitKind = Literal["block", "attention", "mlp", "joint"]
"""What a method chooses among; "joint" are attention and MLP in one list."""

WORDS: dict[UnitKind, str] = {
    "block": "layers",
    "attention": "attentions",
    "mlp": "MLPs",
    "joint": "attentions and MLPs",
}
"""What people call several of them."""


@dataclass(frozen=True, order=True)
class Unit:
    """One thing that can go.

    Attributes:
        layer: 0-based index of the block in the original model.
        part: all of the block, its attention (or what mixes tokens in its place), or its MLP.
    """

    layer: int
    part: Part = "block"

    def __str__(self) -> str:
        """For people: "block 3", "attention of block 3"."""
        return f"block {self.layer}" if self.part == "block" else f"{_NAMES[self.part]} of block {self.layer}"


Cut = frozenset[Unit]
"""What a cut model lacks."""

_NAMES = {"attention": "attention", "mlp": "MLP"}
_KINDS: dict[UnitKind, tuple[Part, ...]] = {
    "block": ("block",),
    "attention": ("attention",),
    "mlp": ("mlp",),
    "joint": ("attention", "mlp"),
}


def parts_of(kind: UnitKind) -> tuple[Part, ...]:
    """The parts of blocks that a kind of unit stands for."""
    return _KINDS[kind]


def as_cut(removed: Collection[int | Unit]) -> Cut:
    """Indices of blocks, or units, as a cut."""
    return frozenset(unit if isinstance(unit, Unit) else Unit(unit) for unit in removed)


def layers_of(units: Iterable[Unit], part: Part = "block") -> tuple[int, ...]:
    """The blocks whose `part` is among the units, ascending."""
    return tuple(sorted(unit.layer for unit in units if unit.part == part))
