"""Policy gradient: its estimator against exact gradients, its projection, and losses whose answer is known."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.architecture import decoder_of
from hf_prune.errors import ConfigError
from hf_prune.judging import CutJudge
from hf_prune.planners.policy import gradient, policy_gradient, projected
from hf_prune.planners.problem import Problem
from hf_prune.units import Unit
from tests import making  # noqa: F401 (the profile of hypothesis)
from tests.tiny import DEPTH, tiny_model, tokens

from .judges import Formula, blocks, linear


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=9), st.data())
def test_projection_is_the_nearest_point(values: list[float], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, len(values)))
    found = projected(values, total)
    assert sum(found) == pytest.approx(total, abs=1e-9)
    assert all(0 <= s <= 1 for s in found)
    # Nearest: one shift for all that lie inside, beyond it for those that are clipped (the conditions of optimality).
    shifts = [v - s for v, s in zip(values, found, strict=True) if 1e-9 < s < 1 - 1e-9]
    if shifts:
        assert max(shifts) - min(shifts) < 1e-9
        for v, s in zip(values, found, strict=True):
            assert s > 1e-9 or v <= shifts[0] + 1e-9
            assert s < 1 - 1e-9 or v - 1 >= shifts[0] - 1e-9


def test_projection_leaves_what_is_allowed() -> None:
    assert projected([0.25, 0.75, 1.0, 0.0], 2) == pytest.approx([0.25, 0.75, 1.0, 0.0])
    assert projected([5.0, -5.0, 0.2], 1) == pytest.approx([1.0, 0.0, 0.0], abs=1e-9)


def test_gradient_by_hand() -> None:
    kept, masks, advantage = [0.2, 0.5], [[1, 0], [0, 0], [0, 1]], [1.0, -2.0, 0.5]
    first = (1.0 * 0.8 - 2.0 * -0.2 + 0.5 * -0.2) / math.sqrt(0.16) / 2
    second = (1.0 * -0.5 - 2.0 * -0.5 + 0.5 * 0.5) / math.sqrt(0.25) / 2
    assert gradient(kept, masks, advantage) == pytest.approx([first, second], rel=1e-5)


def test_gradient_is_that_of_the_expected_damage_times_the_spread() -> None:
    """Over all masks, weighted by their probability: ∂E[L]/∂s_u · √(s (1 - s)), with no baseline."""
    kept, costs = [0.3, 0.6, 0.8], [1.0, -2.0, 0.7]

    def damage(mask: tuple[int, ...]) -> float:
        return sum(c * m for c, m in zip(costs, mask, strict=True)) + 3 * mask[0] * mask[1]

    masks = list(itertools.product((0, 1), repeat=3))
    weights = [math.prod(s if m else 1 - s for s, m in zip(kept, mask, strict=True)) for mask in masks]
    found = gradient(kept, masks, [damage(m) * w * (len(masks) - 1) for m, w in zip(masks, weights, strict=True)])
    slopes = [costs[0] + 3 * kept[1], costs[1] + 3 * kept[0], costs[2]]
    assert found == pytest.approx([g * math.sqrt(s * (1 - s)) for g, s in zip(slopes, kept, strict=True)], rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_linear_damage_converges_to_the_best_set(seed: int) -> None:
    costs = [(i * 5 % 12) / 6 for i in range(12)]
    found = policy_gradient(blocks(12, 4, Formula(linear(costs)), seed), steps=400, samples=8)
    assert set(found.layers) == set(sorted(range(12), key=lambda i: costs[i])[:4])


def test_what_it_asks_for() -> None:
    judge = Formula(linear(range(10)))
    found = policy_gradient(blocks(10, 3, judge), steps=7, samples=3, share=0.5)
    assert [share for _, share in judge.asked] == [0.5] * 21 + [1.0]
    assert judge.taken == judge.promised == 11.5
    assert judge.asked[-1][0] == frozenset(found.units)
    (trial,) = found.trials
    assert (trial.removed, trial.tried) == (found.units, 21)
    assert trial.score == linear(range(10))(frozenset(found.units), 1)


def test_some_of_the_masks_take_more_and_some_less_but_never_all() -> None:
    judge = Formula(linear([0.0] * 3))
    policy_gradient(blocks(3, 2, judge), steps=60)
    assert {len(cut) for cut, _ in judge.asked} == {0, 1, 2}
    parts = tuple(Unit(i, "mlp") for i in range(3))
    judge = Formula(linear([0.0] * 3))
    policy_gradient(Problem("org/model", 3, parts, 2, None, judge), steps=60)
    assert {len(cut) for cut, _ in judge.asked} == {0, 1, 2, 3}


def test_the_seed_decides_and_protected_blocks_stay() -> None:
    def found(drawn: int, **options: int) -> tuple[int, ...]:
        draw = random.Random(1)
        judge = Formula(linear([draw.random() for _ in range(30)]))
        problem = Problem("org/model", 30, tuple(map(Unit, range(4, 28))), 8, None, judge, drawn)
        chosen = policy_gradient(problem, steps=10, **options).layers
        assert {unit.layer for cut, _ in judge.asked for unit in cut} <= set(range(4, 28))
        return chosen

    assert found(3) == found(3) == found(4, seed=3) != found(4)


def test_damage_that_all_masks_share_moves_nothing() -> None:
    judge = Formula(lambda _cut, _share: 7.0)
    assert policy_gradient(blocks(6, 2, judge), steps=20).layers == (0, 1)  # all as likely; ties go to the lower


def test_on_a_model_zero_blocks_go() -> None:
    model = tiny_model("llama")
    for i in (2, 5):
        model.model.layers[i].self_attn.o_proj.weight.data.zero_()
        model.model.layers[i].mlp.down_proj.weight.data.zero_()
    judge = CutJudge(decoder_of(model), [tokens(1, 12, 0)[0]], "kl")
    assert policy_gradient(blocks(DEPTH, 2, judge), steps=80).layers == (2, 5)


def test_too_many_forwards_are_refused_before_any() -> None:
    judge = CutJudge(decoder_of(tiny_model("llama")), [tokens(1, 12, 0)[0]], "kl", limit=100)
    with pytest.raises(ConfigError, match=r"with 200 steps of 4 masks of '.*' takes .*\(--max-forwards 1002\)"):
        policy_gradient(blocks(DEPTH, 2, judge))
    assert judge.forwards == 0


@pytest.mark.parametrize("options", [{"steps": 0}, {"samples": 1}, {"window": 0}, {"rate": 0.0}])
def test_options_that_mean_nothing(options: dict) -> None:
    judge = Formula(linear(range(8)))
    with pytest.raises(ConfigError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        policy_gradient(blocks(8, 2, judge), **options)
    assert not judge.asked
