"""Planners that take units in order: against sorting by hand, exhaustive search and planted blocks."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.architecture import decoder_of
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.judging import CutJudge
from hf_prune.planners.exhaustive import exhaustive
from hf_prune.planners.order import greedy, top_k
from hf_prune.planners.problem import Problem
from hf_prune.records import Scores
from hf_prune.units import Unit, as_cut
from tests.making import ENVIRONMENT, TEXT, reference
from tests.tiny import DEPTH, tiny_model, tokens

from .judges import Formula, blocks, linear

SEQUENCES = [tokens(1, length, length)[0] for length in (9, 5)]


def measured(**importances: Sequence[float | None]) -> Scores:
    depth = len(next(iter(importances.values())))
    found = {part: tuple(row) for part, row in importances.items()}
    return Scores(reference(depth), "loss", {}, (), (), TEXT, ENVIRONMENT, 1.0, importances=found)


def of(record: Scores, units: Sequence[Unit], size: int) -> Problem:
    return Problem("org/model", record.model.num_layers, tuple(units), size, record)


@given(st.lists(st.integers(0, 5).map(lambda k: k / 5), min_size=2, max_size=9), st.data())
def test_top_k_takes_the_lowest_and_of_equal_ones_the_lower(values: list[float], data: st.DataObject) -> None:
    allowed = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, unique=True).map(sorted))
    size = data.draw(st.integers(1, len(allowed)))
    found = top_k(of(measured(block=values), [Unit(i) for i in allowed], size))
    expected = sorted((values[i], i) for i in allowed)[:size]
    assert found.layers == tuple(sorted(i for _, i in expected))
    assert set(found.layers) <= set(allowed)


def test_top_k_ranks_parts_in_one_list() -> None:
    record = measured(attention=(0.5, 0.1, 0.9), mlp=(0.2, 0.7, 0.3))
    units = [Unit(i, part) for i in range(3) for part in ("attention", "mlp")]  # type: ignore[arg-type]
    found = top_k(of(record, units, 3))
    assert found.units == (Unit(0, "mlp"), Unit(1, "attention"), Unit(2, "mlp"))
    assert found.layers == ()
    assert found.reason.endswith("at most 0.3 each, the next one 0.5.")
    assert "attention 1, MLP 0, 2" in found.reason


def test_top_k_needs_scores_of_these_units() -> None:
    with pytest.raises(ConfigError, match="needs a measure such as 'block_influence', got none"):
        top_k(blocks(4, 2))
    with pytest.raises(ConfigError, match="importance of each mlp; measure 'loss' tells that of: block"):
        top_k(of(measured(block=(1.0, 2.0)), [Unit(0, "mlp")], 1))
    with pytest.raises(MeasureError, match="has no score of block 1"):
        top_k(of(measured(block=(1.0, None)), [Unit(0), Unit(1)], 1))


def test_greedy_scores_again_behind_each_removal() -> None:
    """Blocks 2 and 3 stand in for each other: alone each costs nothing, both together cost most."""
    costs = [3.0, 2.0, 0.0, 0.0, 1.0]

    def damage(cut: frozenset[Unit], _share: float) -> float:
        return sum(costs[unit.layer] for unit in cut) + 10 * ({Unit(2), Unit(3)} <= cut)

    found = greedy(blocks(5, 3, Formula(damage)))
    assert [trial.removed[-1:] for trial in found.trials][0] == (Unit(2),)
    assert found.layers == (1, 2, 4)
    assert [(trial.score, trial.tried) for trial in found.trials] == [(0.0, 5), (1.0, 4), (3.0, 3)]
    assert [len(trial.removed) for trial in found.trials] == [1, 2, 3]


def test_greedy_breaks_ties_towards_the_lower_unit_and_leaves_protected_ones() -> None:
    judge = Formula(linear([0.0] * 6))
    problem = Problem("org/model", 6, tuple(map(Unit, (2, 3, 5))), 2, None, judge)
    assert greedy(problem).layers == (2, 3)
    assert {unit.layer for cut, _ in judge.asked for unit in cut} == {2, 3, 5}


def test_greedy_promises_before_it_asks() -> None:
    judge = Formula(linear([0.0] * 6), limit=10)
    with pytest.raises(ConfigError, match="planner 'greedy' takes up to 11 forwards"):
        greedy(blocks(6, 2, judge))
    assert not judge.asked
    with pytest.raises(ConfigError, match="planner 'greedy' tries cuts on the model; plan from the model"):
        greedy(blocks(6, 2))


@pytest.mark.parametrize("objective", ["loss", "kl"])
def test_greedy_on_a_model_goes_the_same_way_twice(objective: str) -> None:
    decoder = decoder_of(tiny_model("llama"))
    one, two = (greedy(blocks(DEPTH, 3, CutJudge(decoder, SEQUENCES, objective))) for _ in range(2))
    assert one == two
    best = exhaustive(blocks(DEPTH, 1, CutJudge(decoder, SEQUENCES, objective)))
    assert one.trials[0].removed == best.units
    assert one.trials[0].score == pytest.approx(best.trials[0].score)
    judge = CutJudge(decoder, SEQUENCES, objective)
    removed: set[int] = set()
    for trial in one.trials:  # against scoring each alternative by itself
        alone = {i: judge.scores([as_cut(removed | {i})])[0] for i in range(DEPTH) if i not in removed}
        removed.add(min(alone, key=lambda i: (alone[i], i)))
        assert set(trial.removed) == as_cut(removed)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", [1, 2])
def test_planted_zero_blocks_go_first(seed: int, size: int) -> None:
    model = tiny_model("llama")
    zero = sorted(random.Random(seed).sample(range(DEPTH), 2))
    for i in zero:
        model.model.layers[i].self_attn.o_proj.weight.data.zero_()
        model.model.layers[i].mlp.down_proj.weight.data.zero_()
    found = greedy(blocks(DEPTH, size, CutJudge(decoder_of(model), SEQUENCES, "kl")))
    assert found.layers == tuple(zero[:size])
    assert all(trial.score == 0.0 for trial in found.trials)


def test_forwards_of_greedy_on_a_model_stay_within_what_was_promised() -> None:
    decoder = decoder_of(tiny_model("llama"))
    judge = CutJudge(decoder, SEQUENCES, "kl")
    promised = judge.cost_of_rounds(list(map(Unit, range(DEPTH))), 4)
    greedy(blocks(DEPTH, 4, judge))
    assert judge.forwards <= promised < 1.5 * judge.forwards
    tight = CutJudge(decoder, SEQUENCES, "kl", limit=int(promised) - 1)
    with pytest.raises(ConfigError, match=r"planner 'greedy' .* takes up to (\d+) .*--max-forwards \1\)"):
        greedy(blocks(DEPTH, 4, tight))
    assert tight.forwards == 0
