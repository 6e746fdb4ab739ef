"""The tree of cuts against prefixes that are counted one by one."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.architecture import decoder_of
from hf_prune.runner import Walker
from hf_prune.samples import batches
from hf_prune.tries import Branching, Removed, branchings, subset_runs
from hf_prune.units import PARTS, Cut, Unit, UnitKind, as_cut, parts_of

from . import making  # noqa: F401 (the profile of hypothesis)
from .tiny import DEPTH, tiny_model, tokens

UNITS = st.builds(Unit, st.integers(0, 5), st.sampled_from(PARTS))
CUTS = st.lists(st.frozensets(UNITS, max_size=5), min_size=1, max_size=8)


def prefixes(cuts: list[Cut], depth: int) -> set[tuple[Removed, ...]]:
    """What is gone of the first blocks, for each block that runs: all that a hidden state depends on."""
    rows = [tuple(Removed.at(layer, cut) for layer in range(depth)) for cut in cuts]
    return {row[: layer + 1] for row in rows for layer in range(depth) if not row[layer].whole}


def ends(tree: Branching) -> list[int]:
    """Indices of the cuts in the order in which they are done."""
    return list(tree.members) if tree.ends else [i for _, rest in tree.branches for i in ends(rest)]


@given(CUTS)
def test_each_prefix_runs_once(cuts: list[Cut]) -> None:
    assert branchings(cuts, 6).block_runs() == len(prefixes(cuts, 6))


@given(CUTS)
def test_every_cut_ends_once_and_the_first_one_first(cuts: list[Cut]) -> None:
    found = ends(branchings(cuts, 6))
    assert sorted(found) == list(range(len(cuts)))
    assert found[0] == 0


@given(st.sampled_from(["block", "attention", "joint"]), st.data())
def test_runs_of_all_subsets_are_those_of_their_tree(kind: UnitKind, data: st.DataObject) -> None:
    every = [Unit(layer, part) for layer in range(6) for part in parts_of(kind)]
    units = data.draw(st.frozensets(st.sampled_from(every), min_size=1, max_size=7))
    size = data.draw(st.integers(1, len(units)))
    cuts = [frozenset(chosen) for chosen in itertools.combinations(sorted(units), size)]
    assert subset_runs(sorted(units), size, 6) == branchings(cuts, 6).block_runs()


def test_runs_of_very_many_subsets_are_counted_without_listing_them() -> None:
    units = [Unit(i) for i in range(80)]
    assert subset_runs(units, 1, 80) == 80 * 79 // 2 + 79
    assert subset_runs(units, 40, 80) > 10**22


def test_a_part_of_a_removed_block_is_gone_with_it() -> None:
    tree = branchings([as_cut([2]), frozenset([Unit(2), Unit(2, "mlp")])], 4)
    assert tree.ends and tree.members == (0, 1) and tree.block_runs() == 3


@pytest.mark.parametrize("cuts", [[[], [0], [0, 3], [5]], [[4], [], [2, 4], [2], [7], [4]]])
def test_walk_ends_in_the_order_of_the_tree(cuts: list[list[int]]) -> None:
    walker = Walker(decoder_of(tiny_model("llama")))
    seen: list[tuple[int, int]] = []
    work = batches([tokens(1, 5, i)[0] for i in range(3)], 2)
    walker.walk(work, cuts=cuts, leave=lambda index, number, _h, _m: seen.append((number, index)))
    order = ends(branchings([as_cut(cut) for cut in cuts], DEPTH))
    assert order[0] == 0
    assert seen == [(number, index) for number in range(2) for index in order]


def test_states_of_equal_cuts_are_one_tensor() -> None:
    walker = Walker(decoder_of(tiny_model("llama")))
    left: dict[int, torch.Tensor] = {}
    work = batches([tokens(1, 5, 0)[0]], 1)
    walker.walk(work, cuts=[[1], [3], [1]], leave=lambda index, _n, hidden, _m: left.update({index: hidden}))
    assert left[0] is left[2] and not torch.equal(left[0], left[1])
