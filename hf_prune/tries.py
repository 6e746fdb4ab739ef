"""Cuts of one model as a tree: what they have in common is run once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations

from hf_prune.units import Cut, Part, Unit


@dataclass(frozen=True)
class Removed:
    """What of one block is gone.

    Attributes:
        whole: whether the block is passed by.
        parts: of it that write nothing, where it is not.
    """

    whole: bool
    parts: frozenset[Part]

    @classmethod
    def at(cls, layer: int, cut: Cut) -> "Removed":
        """What a cut removes of a block."""
        parts = {unit.part for unit in cut if unit.layer == layer}
        return cls(True, frozenset()) if "block" in parts else cls(False, frozenset(parts))


@dataclass(frozen=True)
class Branching:
    """Blocks that cuts have in common, and what comes behind them.

    Attributes:
        shared: what is gone of each block that all these cuts run alike.
        members: indices of the cuts that come here.
        ends: whether the last block is among the shared ones.
        branches: else what is gone of the next block, and what comes behind it.
    """

    shared: tuple[Removed, ...]
    members: tuple[int, ...]
    ends: bool
    branches: tuple[tuple[Removed, "Branching"], ...]

    def block_runs(self) -> int:
        """Blocks that run for one batch."""
        here = sum(1 for gone in self.shared if not gone.whole)
        return here + sum((not gone.whole) + rest.block_runs() for gone, rest in self.branches)


def branchings(cuts: Sequence[Cut], depth: int) -> Branching:
    """Arrange cuts as a tree. In each division the branch of the first cut comes first, and so that cut in all of it.

    Args:
        cuts: what each removes.
        depth: blocks that there are.
    """
    rows = [[Removed.at(layer, cut) for layer in range(depth)] for cut in cuts]
    return _arrange(rows, tuple(range(len(cuts))), 0, depth)


def subset_runs(units: Sequence[Unit], size: int, depth: int) -> int:
    """Blocks that run for one batch where all subsets of some units are tried as one tree; nothing is listed.

    Args:
        units: that may go; blocks, or parts of blocks.
        size: of each subset.
        depth: blocks that there are.
    """
    runs, left = 0, len(units)
    # Ways to choose among the units of the blocks so far, by how many are chosen: each is a branch of its own.
    ways = {0: 1}
    for layer in range(depth):
        here = [unit for unit in units if unit.layer == layer]
        left -= len(here)
        after: Counter[int] = Counter()
        for chosen in chain.from_iterable(combinations(here, count) for count in range(len(here) + 1)):
            for before, count in ways.items():
                if before + len(chosen) <= size <= before + len(chosen) + left:
                    after[before + len(chosen)] += count
                    runs += 0 if Removed.at(layer, frozenset(chosen)).whole else count
        ways = dict(after)
    return runs


def _arrange(rows: Sequence[Sequence[Removed]], among: tuple[int, ...], start: int, depth: int) -> Branching:
    layer, shared = start, []
    while layer < depth:
        kinds = list(dict.fromkeys(rows[i][layer] for i in among))
        if len(kinds) > 1:
            break
        shared.append(kinds[0])
        layer += 1
    if layer == depth:
        return Branching(tuple(shared), among, True, ())
    branches = tuple(
        (kind, _arrange(rows, tuple(i for i in among if rows[i][layer] == kind), layer + 1, depth)) for kind in kinds
    )
    return Branching(tuple(shared), among, False, branches)
