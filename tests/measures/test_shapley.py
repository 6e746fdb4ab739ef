"""Coalitions of units: Shapley values, those near the whole model, and halves."""

import itertools
import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.architecture import decoder_of
from hf_prune.errors import ConfigError
from hf_prune.judging import CutJudge
from hf_prune.measures import shapley as measures
from hf_prune.registry import measure
from hf_prune.units import Cut, Unit

from ..making import logits
from ..tiny import tiny_model, tokens

DEPTH = 4
UNITS = tuple(map(Unit, range(DEPTH)))
NONE: Cut = frozenset()
SEQUENCES = [tokens(1, 12)[0], tokens(1, 9, seed=1)[0], tokens(1, 5, seed=2)[0]]
SUBSETS = [frozenset(chosen) for size in range(DEPTH + 1) for chosen in itertools.combinations(UNITS, size)]


def double_model(*zeroed: int) -> Any:
    model = tiny_model("llama", DEPTH).double()
    for layer in zeroed:
        model.model.layers[layer].self_attn.o_proj.weight.data.zero_()
        model.model.layers[layer].mlp.down_proj.weight.data.zero_()
    return model


def judge(name: str, *zeroed: int, limit: int | None = None, **options: Any) -> CutJudge:
    return CutJudge(decoder_of(double_model(*zeroed)), SEQUENCES, name, options, limit=limit)


@pytest.fixture(scope="module")
def damage() -> dict[Cut, float]:
    """Of each of the 16 cuts of four blocks."""
    return dict(zip(SUBSETS, judge("loss").scores(SUBSETS), strict=True))


def exact(damage: dict[Cut, float], unit: Unit) -> float:
    """Its Shapley value, as sums over subsets."""
    weight = {s: math.factorial(s) * math.factorial(DEPTH - s - 1) / math.factorial(DEPTH) for s in range(DEPTH)}
    return sum(weight[len(s)] * (damage[s | {unit}] - damage[s]) for s in SUBSETS if unit not in s)


def found(name: str, damage: Any, units: Sequence[Unit] = UNITS, removed: Cut = NONE, **options: Any) -> Any:
    """What a measure makes of a table of damage, or of a function."""
    of = damage if callable(damage) else damage.__getitem__
    made = measure.get(name).function(**options)
    return made.attribute(lambda cuts: [of(cut) for cut in cuts], units, removed)


@pytest.fixture
def all_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """All orders, each once, in place of random ones."""

    def orders(units: Sequence[Unit], _count: int, _seed: int) -> Iterator[tuple[Unit, ...]]:
        yield from itertools.permutations(units)

    monkeypatch.setattr(measures, "_orders", orders)


def test_all_orders_are_the_exact_value(all_orders: None, damage: dict[Cut, float]) -> None:
    values = found("shapley", damage)
    assert values == {unit: pytest.approx(exact(damage, unit), abs=1e-12) for unit in UNITS}
    assert sum(values.values()) == pytest.approx(damage[frozenset(UNITS)] - damage[NONE], abs=1e-12)


@given(st.integers(1, 5), st.integers(0, 1000))
def test_any_orders_add_up_to_the_whole(count: int, seed: int) -> None:
    worth = {
        subset: float(torch.randn((), generator=torch.Generator().manual_seed(i))) for i, subset in enumerate(SUBSETS)
    }
    values = found("shapley", worth, permutations=count, seed=seed)
    assert sum(values.values()) == pytest.approx(worth[frozenset(UNITS)] - worth[NONE], abs=1e-12)


def test_random_orders_come_to_the_exact_value(damage: dict[Cut, float]) -> None:
    values = found("shapley", damage, permutations=4000)
    for unit in UNITS:
        assert values[unit] == pytest.approx(exact(damage, unit), abs=0.03)
    few = found("shapley", damage, permutations=2)
    assert any(abs(few[unit] - exact(damage, unit)) > 0.03 for unit in UNITS)


@pytest.mark.parametrize("name", ["shapley", "shapley_near"])
def test_of_damages_that_add_up_each_is_its_own(name: str) -> None:
    costs = {unit: float(unit.layer**2 + 1) for unit in UNITS}
    values = found(name, lambda cut: 5 + sum(costs[unit] for unit in cut), permutations=1)
    assert values == {unit: pytest.approx(cost) for unit, cost in costs.items()}


@pytest.mark.parametrize("name", ["shapley", "shapley_near"])
@pytest.mark.parametrize("objective", ["loss", "kl"])
def test_blocks_that_write_nothing_matter_nothing(name: str, objective: str) -> None:
    values = judge(name, 1, 2, objective=objective, permutations=3).importances(NONE, UNITS)
    assert values[UNITS[1]] == values[UNITS[2]] == 0  # what they have in common is run once: equal to the bit
    assert all(abs(values[unit]) > 1e-3 for unit in (UNITS[0], UNITS[3]))


def test_near_the_whole_model_is_its_formula(all_orders: None, damage: dict[Cut, float]) -> None:
    for most in range(1, DEPTH + 1):
        values = found("shapley_near", damage, most_removed=most)
        for unit in UNITS:
            sizes = [
                fmean(damage[s | {unit}] - damage[s] for s in SUBSETS if len(s) == size and unit not in s)
                for size in range(most)
            ]
            assert values[unit] == pytest.approx(fmean(sizes), abs=1e-12)
    assert values == {unit: pytest.approx(exact(damage, unit), abs=1e-12) for unit in UNITS}


def test_with_one_removed_near_is_leaving_one_out(damage: dict[Cut, float]) -> None:
    values = found("shapley_near", damage, most_removed=1, permutations=1)
    assert values == {unit: pytest.approx(damage[frozenset({unit})] - damage[NONE], abs=1e-15) for unit in UNITS}


@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 9))
def test_near_keeps_to_mild_cuts_and_each_comes_as_often_at_each_place(most: int, count: int, many: int) -> None:
    units = tuple(map(Unit, range(many)))
    asked: list[Cut] = []
    rises = found("shapley_near", lambda cut: asked.append(cut) or 0.0, units, most_removed=most, permutations=count)
    assert set(rises) == set(units)
    assert len(set(asked)) == len(asked) <= 1 + many + count * many * (most - 1)
    assert max(map(len, asked)) == min(most, many)
    # Damage that rises by the place alone: each unit has the mean over places.
    values = found("shapley_near", lambda cut: len(cut) ** 2, units, most_removed=most, permutations=count)
    assert values == {unit: pytest.approx(min(most, many)) for unit in units}


def test_halves_are_means_with_and_without(damage: dict[Cut, float]) -> None:
    asked: list[Cut] = []
    values = found("random_halves", lambda cut: asked.append(cut) or damage[cut], pairs=5)
    assert len(asked) == 10 and all(len(half) == DEPTH // 2 for half in asked)
    for unit in UNITS:
        absent, present = ([half for half in asked if (unit in half) is there] for there in (True, False))
        assert len(absent) == len(present) == 5
        assert values[unit] == pytest.approx(fmean(map(damage.get, absent)) - fmean(map(damage.get, present)))


def test_halves_rank_by_what_each_costs() -> None:
    costs = {unit: float(unit.layer) for unit in map(Unit, range(7))}
    values = found("random_halves", lambda cut: sum(costs[unit] for unit in cut), tuple(costs), pairs=400)
    assert sorted(values, key=values.__getitem__) == sorted(costs, key=costs.__getitem__)


@pytest.mark.parametrize("name", ["shapley", "shapley_near", "random_halves"])
def test_what_is_gone_stays_gone_and_seeds_tell(name: str) -> None:
    removed = frozenset({Unit(9)})
    asked: list[Cut] = []

    def worth(cut: Cut) -> float:
        asked.append(cut)
        return float(hash(tuple(sorted(cut))) % 1000)

    first = found(name, worth, UNITS, removed, seed=1)
    assert all(cut >= removed for cut in asked)
    assert found(name, worth, UNITS, removed, seed=1) == first != found(name, worth, UNITS, removed, seed=2)


@pytest.mark.parametrize("name", ["shapley", "shapley_near", "random_halves"])
def test_parts_of_blocks_are_units_too(name: str) -> None:
    units = [Unit(layer, part) for layer in range(DEPTH) for part in ("attention", "mlp")]
    values = judge(name).importances(NONE, units)
    assert set(values) == set(units) and all(map(math.isfinite, values.values()))


def test_too_many_forwards_are_refused_before_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    one = judge("shapley", limit=1)
    monkeypatch.setattr(one._walker, "walk", lambda *_args, **_kwargs: pytest.fail("ran"))
    with pytest.raises(ConfigError, match="max_forwards"):
        one.importances(NONE, UNITS)


def test_what_it_costs() -> None:
    one = judge("random_halves", pairs=10)
    one.importances(NONE, UNITS)
    assert 0 < one.forwards <= 10
    other = judge("shapley", permutations=50)
    other.importances(NONE, UNITS)
    assert other.forwards == (1 + 2 + 4 + 8) / DEPTH  # all 16 cuts: each block runs once behind what differs before it


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("shapley", {"permutations": 0}, "permutations=0"),
        ("shapley_near", {"most_removed": 0}, "most_removed=0"),
        ("random_halves", {"pairs": 1.5}, r"pairs=1\.5"),
        ("shapley", {"objective": "angular"}, "objective='angular'; expected one of: .*loss"),
        ("shapley", {"objective": "shapley_near"}, "objective='shapley_near'"),
    ],
)
def test_options_that_mean_nothing_are_refused(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        measure.get(name).function(**options)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "opt"])
def test_a_model_without_blocks_is_embeddings_norm_and_head(model_type: str) -> None:
    model = tiny_model(model_type)
    decoder = decoder_of(model)
    everything = frozenset(map(Unit, range(decoder.num_layers)))
    value = CutJudge(decoder, SEQUENCES, "loss").scores([everything])[0]
    for block in decoder.blocks:  # hands its input on
        block.forward = lambda hidden_states, *_args, **_kwargs: hidden_states
    losses = [
        torch.nn.functional.cross_entropy(logits(model, ids[None])[0, :-1], ids[1:], reduction="sum")
        for ids in SEQUENCES
    ]
    assert value == pytest.approx(float(sum(losses)) / sum(len(ids) - 1 for ids in SEQUENCES), rel=1e-5)
