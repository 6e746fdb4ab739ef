"""The evolutionary search against exhaustive search, and what it asks for."""

import random

import pytest

from hf_prune.architecture import decoder_of
from hf_prune.errors import ConfigError
from hf_prune.judging import CutJudge
from hf_prune.planners.evolution import evolution
from hf_prune.planners.exhaustive import exhaustive
from hf_prune.planners.problem import Problem
from hf_prune.units import Cut, Unit
from tests.tiny import DEPTH, tiny_model, tokens

from .judges import Formula, blocks, linear

SEQUENCES = [tokens(1, length, length)[0] for length in (9, 6, 12, 5)]


@pytest.mark.parametrize("seed", range(3))
def test_finds_the_best_of_all_sets_of_a_model(seed: int) -> None:
    decoder = decoder_of(tiny_model("llama", seed=seed))
    best = exhaustive(blocks(DEPTH, 2, CutJudge(decoder, SEQUENCES, "kl")))
    judge = CutJudge(decoder, SEQUENCES, "kl")
    found = evolution(blocks(DEPTH, 2, judge, seed), generations=15, offspring=8, survivors=(4,))
    assert found.units == best.units
    assert found.trials[-1].score == pytest.approx(best.trials[0].score)


def rugged(seed: int, depth: int) -> dict[tuple[int, int], float]:
    draw = random.Random(seed)
    return {(i, j): draw.random() for i in range(depth) for j in range(i, depth)}


@pytest.mark.parametrize("seed", range(5))
def test_interactions_are_found(seed: int) -> None:
    """Each pair costs something of its own: the best set is not that of the blocks which cost least alone."""
    pairs = rugged(seed, 12)

    def damage(cut: Cut, _share: float) -> float:
        layers = sorted(unit.layer for unit in cut)
        return sum(pairs[i, j] for k, i in enumerate(layers) for j in layers[k:])

    best = exhaustive(blocks(12, 4, Formula(damage)))
    found = evolution(blocks(12, 4, Formula(damage), seed))
    assert found.trials[-1].score == pytest.approx(best.trials[0].score)


def test_the_parent_never_gets_worse_and_is_told() -> None:
    judge = Formula(linear([random.Random(i).random() for i in range(20)]))
    found = evolution(blocks(20, 6, judge), generations=30, offspring=6, survivors=(3, 1))
    scores = [trial.score for trial in found.trials]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == len(scores) > 2
    assert found.units == found.trials[-1].removed
    assert {len(cut) for cut, _ in judge.asked} == {6}


def test_selection_looks_at_more_and_more_text() -> None:
    judge = Formula(linear(range(20)))
    evolution(blocks(20, 6, judge), generations=1, offspring=16, survivors=(8, 2))
    shares = [share for _, share in judge.asked]
    assert shares == ([1 / 16] * 16 + [1 / 4] * 8 + [1.0] * 2) * 2
    assert judge.promised == pytest.approx(judge.taken * (20 - 6) / 20)


def test_no_set_is_tried_twice_on_all_of_the_text() -> None:
    judge = Formula(linear([random.Random(i).random() for i in range(12)]))
    evolution(blocks(12, 4, judge), generations=40, offspring=8, survivors=(4, 2))
    whole = [cut for cut, share in judge.asked if share == 1]
    assert len(whole) == len(set(whole)) > 40


def test_it_ends_where_nothing_is_left_to_try() -> None:
    judge = Formula(linear([3, 1, 2]))
    found = evolution(blocks(3, 1, judge), generations=1000, offspring=4, survivors=())
    assert found.layers == (1,) and len(judge.asked) == 3
    assert evolution(blocks(3, 3, Formula(linear([1, 1, 1])))).layers == (0, 1, 2)


def test_swaps_keep_the_kinds_of_units() -> None:
    units = tuple(Unit(i, part) for i in range(6) for part in ("attention", "mlp"))  # type: ignore[arg-type]
    judge = Formula(linear(range(6)))
    found = evolution(Problem("org/model", 6, units, 5, None, judge), generations=20, offspring=8, survivors=(2,))
    kinds = {tuple(sorted(unit.part for unit in cut)) for cut, _ in judge.asked}
    assert kinds == {("attention",) * 2 + ("mlp",) * 3}
    assert {unit.layer for unit in found.units} == {0, 1, 2}


def test_protected_blocks_stay_and_the_seed_decides() -> None:
    def problem(seed: int) -> Problem:
        return Problem("org/model", 30, tuple(map(Unit, range(4, 28))), 8, None, Formula(linear(range(30))), seed)

    one, two = (evolution(problem(3), generations=2, offspring=4, survivors=(2,)) for _ in range(2))
    assert one == two != evolution(problem(4), generations=2, offspring=4, survivors=(2,))
    assert one == evolution(problem(4), generations=2, offspring=4, survivors=(2,), seed=3)
    judge = problem(3).judge
    assert isinstance(judge, Formula)
    evolution(Problem("org/model", 30, tuple(map(Unit, range(4, 28))), 8, None, judge), generations=5)
    assert {unit.layer for cut, _ in judge.asked for unit in cut} <= set(range(4, 28))


def test_too_many_forwards_are_refused_before_any() -> None:
    judge = CutJudge(decoder_of(tiny_model("llama")), SEQUENCES, "kl", limit=100)
    with pytest.raises(ConfigError, match=r"'evolution' with 50 generations of 32 sets .* \(--max-forwards \d+\)"):
        evolution(blocks(DEPTH, 2, judge))
    assert judge.forwards == 0
    judge = CutJudge(decoder_of(tiny_model("llama")), SEQUENCES, "kl")
    promised: list[float] = []
    judge.allow = lambda forwards, what: promised.append(forwards)  # type: ignore[method-assign]
    evolution(blocks(DEPTH, 3, judge), generations=4, offspring=8, survivors=(3,))
    assert judge.forwards <= promised[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offspring": 4, "survivors": (8, 2)}, r"offspring=4, survivors=\[8, 2\]; expected whole numbers from 1"),
        ({"survivors": (8, 0)}, r"survivors=\[8, 0\]"),
        ({"survivors": (2.5,)}, r"survivors=\[2.5\]"),
        ({"generations": 0}, "generations=0; expected 1 at least"),
    ],
)
def test_options_that_mean_nothing(options: dict, message: str) -> None:
    judge = Formula(linear(range(8)))
    with pytest.raises(ConfigError, match=message):
        evolution(blocks(8, 2, judge), **options)
    assert not judge.asked
