"""Planners against exhaustive search, and the windows that the paper's authors used."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.errors import ConfigError
from hf_prune.planners.window import before_last, window
from hf_prune.records import Scores

from .making import asked, scores

GRID = st.integers(0, 12).map(lambda k: k / 12)  # coarse, so that ties are common


@st.composite
def problems(draw: st.DrawFn) -> tuple[Scores, int, range]:
    depth = draw(st.integers(2, 9))
    table = [[0.0] * (depth + 1) for _ in range(depth + 1)]
    errors = [[0.0] * (depth + 1) for _ in range(depth + 1)]
    for i, j in itertools.combinations(range(depth + 1), 2):
        table[i][j] = table[j][i] = draw(GRID)
        errors[i][j] = errors[j][i] = draw(GRID)
    first = draw(st.integers(0, depth - 1))
    stop = draw(st.integers(first + 1, depth))
    size = draw(st.integers(1, min(stop - first, depth - 1)))
    return scores(table, errors), size, range(first, stop)


@given(problems())
def test_window_equals_exhaustive_search(problem: tuple[Scores, int, range]) -> None:
    record, size, allowed = problem
    choice = window(asked(record, size, allowed))
    found = [
        (record.distances[start][start + size], start)
        for start in range(record.model.num_layers)
        if all(i in allowed for i in range(start, start + size))
    ]
    ranked = sorted(found)
    distance, start = ranked[0]
    assert choice.layers == tuple(range(start, start + size))
    assert choice.distance == distance == min(found)[0]
    assert start == min(s for d, s in found if d == distance), "ties go to the lowest start"
    if len(ranked) == 1:
        assert choice.runner_up is choice.gap is choice.gap_standard_error is None
        return
    second_distance, second = ranked[1]
    assert choice.runner_up == tuple(range(second, second + size))
    assert choice.gap == second_distance - distance >= 0
    first_error = record.standard_errors[start][start + size]
    second_error = record.standard_errors[second][second + size]
    assert choice.gap_standard_error == math.hypot(first_error, second_error)


def valley(depth: int, best: dict[int, int]) -> Scores:
    """Distances that are least at the start wanted for each size."""
    table = [[0.0] * (depth + 1) for _ in range(depth + 1)]
    for i, j in itertools.combinations(range(depth + 1), 2):
        table[i][j] = table[j][i] = (0.1 if best.get(j - i) == i else 0.2) + 0.001 * (j - i)
    return scores(table)


# l*(n) for n = 1, 2, …, counted from 0, as published.
GOLDEN = {
    "llama-2-7b": (32, [23, 24, 23, 23, 23, 22, 22, 21, 20, 19, 18, 18, 17, 16, 15, 8, 8, 7, 4, 4, 4, 2, 2, 2]),
    "llama-2-13b": (
        40,
        [33, 32, 31, 30, 29, 28, 27, 27, 27, 26, 25, 24, 24, 23, 22, 22, 20, 19, 18, 18, 17, 17, 15, *[3] * 9],
    ),
    "mistral-7b": (32, [26, 24, 23, 23, 23, 22, 21, 21, 20, 20, 19, 17, 17, 16, 13, 13, 11, 8, 8, 6, 6, 5, 4, 3]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_published_windows_are_windows_of_ours(name: str) -> None:
    depth, starts = GOLDEN[name]
    record = valley(depth, {size: start for size, start in enumerate(starts, 1)})
    for size, start in enumerate(starts, 1):
        layers = window(asked(record, size, range(depth))).layers
        assert layers == tuple(range(start, start + size))
        assert layers[-1] < depth - 1, "the authors never drop the last block"
    if name == "llama-2-7b":
        assert window(asked(record, 8, range(depth))).layers == tuple(range(21, 29))


def test_window_may_begin_at_the_first_block_and_end_with_the_last() -> None:
    assert window(asked(valley(5, {2: 0}), 2, range(5))).layers == (0, 1)
    assert window(asked(valley(5, {2: 3}), 2, range(5))).layers == (3, 4)


def test_reason_is_one_readable_sentence() -> None:
    choice = window(asked(valley(8, {3: 4}), 3, range(8)))
    assert choice.reason == (
        "Among the 6 windows of 3 blocks, 4–6 turns the residual stream least: its input and output are "
        "0.1030 ± 0.0000 apart (angle / π)."
    )


def test_window_needs_scores() -> None:
    with pytest.raises(
        ConfigError, match="planner 'window' chooses by distances; it needs a measure such as 'angular'"
    ):
        window(asked(None, 2, range(8)))


def test_simple_drops_the_deepest_but_the_last() -> None:
    assert before_last(asked(None, 8, range(31))).layers == tuple(range(23, 31))
    assert before_last(asked(None, 1, range(31))).layers == (30,)
    assert before_last(asked(None, 31, range(31))).layers == tuple(range(31))
    assert before_last(asked(None, 3, range(2, 10))).layers == (7, 8, 9)
    choice = before_last(asked(None, 8, range(31)))
    assert choice.reason == "The 8 deepest blocks that are not protected go (23–30); nothing was measured."
    assert choice.distance is choice.runner_up is choice.gap is None
