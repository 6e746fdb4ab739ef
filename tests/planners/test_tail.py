"""The deepest units, and a draw."""

from collections import Counter

from hf_prune.planners.problem import Problem
from hf_prune.planners.tail import last, random
from hf_prune.units import Unit

from .judges import blocks


def test_last_are_really_the_last_ones() -> None:
    assert last(blocks(32, 8)).layers == tuple(range(24, 32))
    found = last(blocks(32, 1))
    assert found.layers == (31,)
    assert found.reason == "The 1 deepest that may go (31); nothing was measured."


def test_last_leaves_protected_ones() -> None:
    assert last(Problem("org/model", 8, tuple(map(Unit, (0, 2, 4, 5))), 3)).layers == (2, 4, 5)
    parts = tuple(Unit(i, part) for i in range(3) for part in ("attention", "mlp"))  # type: ignore[arg-type]
    assert last(Problem("org/model", 3, parts, 3)).units == (Unit(1, "mlp"), Unit(2, "attention"), Unit(2, "mlp"))


def test_random_is_drawn_by_the_seed() -> None:
    assert random(blocks(32, 8, seed=3)) == random(blocks(32, 8, seed=3)) == random(blocks(32, 8, seed=9), seed=3)
    assert len({random(blocks(32, 8, seed=seed)).layers for seed in range(20)}) == 20
    found = random(blocks(32, 8, seed=3))
    assert len(found.layers) == 8 and list(found.units) == sorted(found.units)
    assert "Drawn at random with seed 3: " in found.reason


def test_random_is_drawn_from_all_that_may_go() -> None:
    allowed = tuple(map(Unit, (1, 3, 4, 6)))
    drawn = Counter(random(Problem("org/model", 8, allowed, 2, seed=seed)).layers for seed in range(600))
    assert len(drawn) == 6 and {i for pair in drawn for i in pair} == {1, 3, 4, 6}
    assert min(drawn.values()) > 60  # 100 expected of each of the six pairs
