"""Scores of weights, shares of layers, and masks: against brute force and the papers' own formulas."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.allocation import allocate, min_max
from hf_prune.errors import ConfigError
from hf_prune.sparsity.masks import (
    count_of,
    counts_below,
    keep_by_group,
    keep_by_map,
    keep_by_row,
    packed,
    packed_length,
    unpacked,
)
from hf_prune.sparsity.scores import lamp, magnitude, wanda
from hf_prune.sparsity.shares import kept_by_outliers, outlier_share

from .. import making  # noqa: F401  (hypothesis without deadlines)


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


# ---- scores


def test_wanda_is_magnitude_times_the_norm_of_its_input() -> None:
    weights, inputs = matrix(3, 5), matrix(40, 5, seed=1).double()
    found = wanda(weights, inputs.norm(dim=0))
    for i, j in itertools.product(range(3), range(5)):
        expected = abs(float(weights[i, j])) * math.sqrt(sum(float(x) ** 2 for x in inputs[:, j]))
        assert float(found[i, j]) == pytest.approx(expected, rel=1e-14)
    assert found.dtype == torch.float64
    assert torch.equal(magnitude(weights.bfloat16()), weights.bfloat16().double().abs())


SMALL = st.lists(st.integers(-6, 6), min_size=1, max_size=12)


@given(SMALL)
def test_lamp_is_the_papers_formula(values: list[int]) -> None:
    found = lamp(torch.tensor([values], dtype=torch.float32))[0].tolist()
    order = sorted(range(len(values)), key=lambda i: abs(values[i]))
    for place, u in enumerate(order):
        larger = sum(values[v] ** 2 for v in order[place:])
        assert found[u] == pytest.approx(float(Fraction(values[u] ** 2, larger)) if larger else 0.0, rel=1e-14)
    if any(values):
        assert found[order[-1]] == 1.0, "the largest weight of a map always scores 1"


@given(SMALL.filter(any), st.sampled_from([1e-6, 1.0, 1e6]))
def test_lamp_ranks_within_a_map_as_magnitude_does_and_knows_no_scale(values: list[int], scale: float) -> None:
    weights = torch.tensor([values], dtype=torch.float64)
    scores = lamp(weights)[0]
    for one, other in itertools.permutations(range(len(values)), 2):
        assert abs(values[one]) >= abs(values[other]) or scores[one] <= scores[other]
    assert torch.allclose(lamp(weights * scale)[0], scores, rtol=1e-12, atol=0)


def test_lamp_keeps_its_digits_in_large_maps() -> None:
    weights = torch.cat([torch.full((1, 100_000), 1e-6), torch.tensor([[1.0]])], dim=1)
    assert float(lamp(weights)[0, 0]) == pytest.approx(1e-12 / (1 + 1e-7), rel=1e-6)
    assert float(lamp(weights)[0, -1]) == 1.0


# ---- what stays


def test_uniform_rows_are_those_of_the_released_code() -> None:
    scores = matrix(7, 10).abs()
    gone = torch.zeros_like(scores, dtype=torch.bool)
    gone.scatter_(1, torch.sort(scores, dim=-1, stable=True)[1][:, : int(10 * 0.6)], True)
    assert torch.equal(keep_by_row(scores, 42), ~gone)


@st.composite
def scored(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    numbers = draw(st.lists(st.integers(0, 5), min_size=rows * columns, max_size=rows * columns))  # many ties
    return torch.tensor(numbers, dtype=torch.float32).reshape(rows, columns), draw(st.integers(0, rows * columns))


@given(scored())
def test_as_many_of_each_row_and_the_lowest(given: tuple[torch.Tensor, int]) -> None:
    scores, count = given
    keep = keep_by_row(scores, count)
    gone = (~keep).sum(1)
    assert int(gone.sum()) == count and int(gone.max() - gone.min()) <= 1
    for row, kept in zip(scores, keep, strict=True):
        assert not kept.any() or kept.all() or row[~kept].max() <= row[kept].min()
    more, fewer = gone == gone.max(), gone == gone.min()
    if gone.max() > gone.min():  # one more where it costs least
        each = int(gone.min())
        following = scores.sort(dim=1).values[:, each]
        assert following[more].max() <= following[fewer].min()


@given(scored())
def test_lowest_of_a_map(given: tuple[torch.Tensor, int]) -> None:
    scores, count = given
    keep = keep_by_map(scores, count)
    order = sorted(range(scores.numel()), key=lambda i: (float(scores.flatten()[i]), i))
    assert sorted(torch.nonzero(~keep.flatten()).flatten().tolist()) == sorted(order[:count])


@pytest.mark.parametrize(("kept", "size"), [(2, 4), (4, 8), (1, 4)])
def test_groups_lie_along_the_input(kept: int, size: int) -> None:
    scores = matrix(6, 16).abs()
    keep = keep_by_group(scores, kept, size)
    for row, stays in zip(scores, keep, strict=True):
        for start in range(0, 16, size):
            best = set(row[start : start + size].topk(kept).indices.tolist())
            assert set(torch.nonzero(stays[start : start + size]).flatten().tolist()) == best


@given(st.lists(scored().map(lambda pair: pair[0]), min_size=1, max_size=4), st.floats(0, 1))
def test_one_threshold_for_all_maps(maps: list[torch.Tensor], share: float) -> None:
    every = [(float(score), number) for number, each in enumerate(maps) for score in each.flatten()]
    count = count_of(share, len(every))
    expected = [number for _, number in sorted(every)[:count]]  # of equal scores those of the first maps
    assert counts_below(maps, count) == tuple(expected.count(number) for number in range(len(maps)))


def test_thresholds_tell_the_finest_floats_apart() -> None:
    score = torch.tensor(0.1)
    above = torch.nextafter(score, torch.tensor(1.0))
    assert counts_below([above.reshape(1, 1), score.reshape(1, 1)], 1) == (0, 1)
    assert counts_below([torch.zeros(2, 2), torch.full((1, 1), 3e38)], 5) == (4, 1)


@pytest.mark.parametrize(
    ("share", "weights", "count"),
    [(0.29, 100, 29), (0.5, 7, 3), (1.0, 9, 9), (0.0, 9, 0), (0.1, 10**9, 10**8), (2 / 3, 3, 2)],
)
def test_counts_of_shares(share: float, weights: int, count: int) -> None:
    assert count_of(share, weights) == count


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_packed_masks(bits: list[bool], data: st.DataObject) -> None:
    whole = packed(torch.tensor(bits))
    assert whole.dtype == torch.uint8 and len(whole) == packed_length(len(bits)) == math.ceil(len(bits) / 8)
    start = data.draw(st.integers(0, len(bits) - 1))
    count = data.draw(st.integers(0, len(bits) - start))
    assert unpacked(whole, start, count).tolist() == bits[start : start + count]
    assert [bool(whole[i // 8] >> i % 8 & 1) for i in range(len(bits))] == bits


# ---- shares of layers


def test_outliers_are_counted_over_the_whole_layer() -> None:
    one, other = torch.full((4, 20), 1.0), torch.full((1, 20), 1.0)
    other[0, :2] = 100.0
    mean = (80 + 18 + 200) / 100
    assert outlier_share([one, other], 5.0) == 100 * 2 / 100 and 5 * mean < 100
    assert outlier_share([one, other], 100 / mean) == 0.0, "above, not equal"
    assert outlier_share([torch.zeros(3, 3)], 5.0) == 0.0


def released(outliers: list[float], sparsity: float, spread: float) -> list[float]:
    """OWL's released code: scale to [0, 2 lambda], centre, add what is to be kept."""
    low, high = min(outliers), max(outliers)
    ratios = [(d - low) * (1 / (high - low) * spread * 2) for d in outliers]
    return [r - sum(ratios) / len(ratios) + (1 - sparsity) for r in ratios]


OUTLIERS = st.lists(st.floats(0, 100), min_size=2, max_size=12).filter(lambda d: max(d) - min(d) > 1e-6)


@given(OUTLIERS, st.floats(0.2, 0.8), st.floats(0, 0.1))
def test_owl_keeps_as_the_released_code_does(outliers: list[float], sparsity: float, spread: float) -> None:
    found = kept_by_outliers(outliers, sparsity, spread, [7] * len(outliers))
    assert found == pytest.approx(released(outliers, sparsity, spread), abs=1e-12)


@given(OUTLIERS, st.floats(0, 1), st.floats(0, 0.5), st.data())
def test_owl_meets_the_budget_whatever_layers_weigh(
    outliers: list[float], sparsity: float, spread: float, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.integers(1, 10**9), min_size=len(outliers), max_size=len(outliers)))
    kept = kept_by_outliers(outliers, sparsity, spread, weights)
    mean = math.fsum(share * weight for share, weight in zip(kept, weights, strict=True)) / sum(weights)
    assert mean == pytest.approx(1 - sparsity, rel=0, abs=1e-12)
    assert all(0 <= share <= 1 for share in kept)
    for i, j in itertools.permutations(range(len(outliers)), 2):
        assert kept[i] <= kept[j] or outliers[i] > outliers[j], "more outliers, less kept"


def test_layers_without_a_difference_get_the_same() -> None:
    assert kept_by_outliers([3.0, 3.0, 3.0], 0.7, 0.08, [1, 2, 3]) == pytest.approx([0.3] * 3, abs=1e-15)
    assert min_max([3.0, 3.0]) == (1.0, 1.0)


def test_weights_of_layers_count_in_the_mean() -> None:
    assert allocate([0, 1], 0.5, 0.4, weights=[3, 1]) == pytest.approx([0.4, 0.8], abs=1e-15)
    assert allocate([0, 1], 0.5, 0.3, weights=[3, 1]) == pytest.approx([1 / 3, 1.0], abs=1e-15), "clipped"
    assert allocate([0, 1], 0.5, 0.4, weights=[1, 1]) == allocate([0, 1], 0.5, 0.4)
    for weights in ([1], [1, 0], [1, math.nan]):
        with pytest.raises(ConfigError, match=r"weights \[.*\] of 2 layers; expected one a layer, finite and above 0"):
            allocate([0, 1], 0.5, 0.4, weights=weights)
