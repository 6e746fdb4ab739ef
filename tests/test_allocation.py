"""Shares and rounding: exact means, bounds, order, and the closed form where nothing is clipped."""

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_prune.allocation import allocate, min_max, round_to_total
from hf_prune.errors import ConfigError

from . import making  # noqa: F401  (hypothesis without deadlines)

# Coarse numbers make ties and clipping common, fine ones make rounding matter.
SCORES = st.lists(st.integers(0, 8).map(lambda k: k / 8) | st.floats(0, 1e6), min_size=1, max_size=12)


@st.composite
def budgets(draw: st.DrawFn) -> tuple[list[float], float, float, float, float]:
    low = draw(st.floats(0, 0.5))
    high = draw(st.floats(low, 1))
    mean = draw(st.floats(low, high))
    return draw(SCORES), mean, draw(st.floats(-1, mean)), low, high


def script(scores: list[float], mean: float, base: float) -> list[float]:
    """Slices in the steps of the authors' script: scale the scores to average to the amount, add the base."""
    amount = mean - base
    average = sum(scores) / len(scores)
    slices = []
    for score in scores:
        slices.append(score * (amount / average) + base)
    return slices


@given(budgets())
def test_mean_bounds_and_order(budget: tuple[list[float], float, float, float, float]) -> None:
    scores, mean, base, low, high = budget
    shares = allocate(scores, mean, base, low=low, high=high)
    assert len(shares) == len(scores)
    assert math.fsum(shares) / len(shares) == pytest.approx(mean, rel=0, abs=1e-13)
    assert all(low <= share <= high for share in shares)
    for i, j in itertools.permutations(range(len(scores)), 2):
        assert shares[i] <= shares[j] or scores[i] > scores[j], "a higher score, a lower share"
        assert shares[i] == shares[j] or scores[i] != scores[j], "equal scores, unequal shares"


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=12), st.floats(0, 1), st.floats(0, 1))
def test_closed_form_where_nothing_is_clipped(scores: list[float], mean: float, part: float) -> None:
    expected = script(scores, mean, part * mean)
    assume(all(0 <= share <= 1 for share in expected))
    assert allocate(scores, mean, part * mean) == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0, 0.5, 1], [0.1, 0.3, 0.5]),  # base, base + amount, base + amount / mean
        ([0, 5, 10], [0.1, 0.3, 0.5]),
        ([0, 0.5e-323, 1e-323], [0.1, 0.3, 0.5]),
        ([0, 0.5e308, 1e308], [0.1, 0.3, 0.5]),
        ([0.25, 0.25, 0.25], [0.3, 0.3, 0.3]),
        ([0, 0, 0], [0.3, 0.3, 0.3]),
        ([7], [0.3]),
    ],
)
def test_known_shares(scores: list[float], expected: list[float]) -> None:
    assert allocate(scores, 0.3, 0.1) == pytest.approx(expected, abs=1e-15)


@given(SCORES, st.floats(0, 1))
def test_base_at_the_mean_is_constant(scores: list[float], mean: float) -> None:
    assert allocate(scores, mean, mean) == (mean,) * len(scores)


def test_skewed_scores_are_clipped_and_the_rest_is_shared_out() -> None:
    scores = [1.0, *[0.0] * 31]
    assert max(script(scores, 0.3, 0.0)) == pytest.approx(9.6), "the closed form cuts more than there is"
    shares = allocate(scores, 0.3, 0.0, high=0.9)
    assert shares[0] == 0.9
    assert shares[1:] == pytest.approx([(0.3 * 32 - 0.9) / 31] * 31, abs=1e-15)


@given(budgets())
def test_clipped_shares_are_the_closed_form_moved_by_one_amount(
    budget: tuple[list[float], float, float, float, float],
) -> None:
    scores, mean, base, low, high = budget
    assume(max(scores) > min(scores) and sum(scores) > 1e-3 and base < mean)
    raw = script(scores, mean, base)
    shares = allocate(scores, mean, base, low=low, high=high)
    moved = [(share, share - value) for share, value in zip(shares, raw, strict=True)]
    # A share above the lower bound moved by that amount or less, one below the upper bound by that amount or more.
    least = max((move for share, move in moved if share > low), default=-math.inf)
    most = min((move for share, move in moved if share < high), default=math.inf)
    assert least <= most + 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 0.3, 0.1), "no scores to share by; expected one a layer"),
        (([0.1, -0.5], 0.3, 0.1), r"score of layer 1 is -0\.5; expected a finite number of at least 0.*min_max"),
        (([math.nan, 0.5], 0.3, 0.3), "score of layer 0 is nan"),
        (([0.1, 0.2, math.inf], 0.3, 0.1), "score of layer 2 is inf"),
        (([0.1], 1.5, 0.1), r"no shares in \[0\.0, 1\.0\] on a base of 0\.1 have a mean of 1\.5; expected"),
        (([0.1], -0.1, -0.2), r"no shares in \[0\.0, 1\.0\] .* mean of -0\.1"),
        (([0.1], math.nan, 0.1), "mean of nan"),
        (([0.1], 0.3, -math.inf), "on a base of -inf"),
        (([0.1], 0.3, 0.4), r"slice base SB 0\.4 is above the mean share SP 0\.3; expected at most 0\.3"),
    ],
)
def test_refused_budgets(arguments: tuple[list[float], float, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        allocate(*arguments)


@pytest.mark.parametrize(("low", "high"), [(0.4, 0.6), (0.0, 0.2), (0.6, 0.1), (0.0, math.inf)])
def test_refused_bounds(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match=rf"no shares in \[{low}, {high}\] .*mean of 0\.3.*low <= mean <= high"):
        allocate([0.1, 0.2], 0.3, 0.1, low=low, high=high)


@st.composite
def roundings(draw: st.DrawFn) -> tuple[list[float], int, int, int, int]:
    multiple = draw(st.integers(1, 12))
    low = draw(st.integers(0, 40))
    high = draw(st.integers(low, low + 80))
    values = draw(st.lists(st.integers(low, high) | st.floats(low - 5, high + 5), min_size=1, max_size=5))
    least = len(values) * min(-(-low // multiple) * multiple, high)
    total = draw(st.integers(least, len(values) * high))
    return values, total, multiple, low, high


@given(roundings())
def test_rounding(rounding: tuple[list[float], int, int, int, int]) -> None:
    values, total, multiple, low, high = rounding
    found = round_to_total(values, total, multiple, low=low, high=high)
    assert all(low <= n <= high and (n % multiple == 0 or n == high) for n in found)
    assert 2 * abs(sum(found) - total) <= multiple
    if high % multiple == 0 and total % multiple == 0:
        assert sum(found) == total
    for i, j in itertools.permutations(range(len(values)), 2):
        assert found[i] <= found[j] or values[i] >= values[j], "a higher value, a lower number"
    assert found == round_to_total(values, total, multiple, low=low, high=high)


@given(st.integers(1, 9), st.lists(st.floats(0, 64), min_size=1, max_size=5), st.data())
def test_no_vector_of_multiples_with_that_sum_is_nearer(steps: int, values: list[float], data: st.DataObject) -> None:
    multiple = 8
    total = multiple * data.draw(st.integers(0, len(values) * steps))
    high = multiple * steps
    found = round_to_total(values, total, multiple, low=0, high=high)

    def apart(numbers: tuple[int, ...]) -> float:
        return sum((value - number) ** 2 for value, number in zip(values, numbers, strict=True))

    # The sum of squares is separable and convex: what no exchange of one multiple betters, nothing betters.
    for i, j in itertools.permutations(range(len(values)), 2):
        other = list(found)
        other[i] += multiple
        other[j] -= multiple
        if other[i] <= high and other[j] >= 0:
            assert apart(found) <= apart(tuple(other)) + 1e-9


@pytest.mark.parametrize(
    ("values", "total", "multiple", "low", "high", "expected"),
    [
        ([8, 16, 24], 48, 8, 0, 64, (8, 16, 24)),
        ([12.0, 12.0, 12.0, 12.0], 48, 8, 0, 64, (16, 16, 8, 8)),  # ties: the lower index is moved first
        ([10.0, 11.9, 11.0], 32, 8, 0, 64, (8, 16, 8)),  # the one that rounding moved furthest
        ([30.0, 50.0], 82, 8, 8, 50, (32, 50)),  # kept whole though no multiple
        ([49.5, 3.0], 58, 8, 8, 50, (50, 8)),
        ([20.0], 20, 8, 0, 64, (16,)),  # two ways to be half a multiple off
        ([50.0, 50.0], 100, 8, 0, 50, (50, 50)),
        ([5.0, 6.4], 11, 1, 0, 64, (5, 6)),
    ],
)
def test_known_roundings(
    values: list[float], total: int, multiple: int, low: int, high: int, expected: tuple[int, ...]
) -> None:
    assert round_to_total(values, total, multiple, low=low, high=high) == expected


@pytest.mark.parametrize(
    ("arguments", "bounds", "message"),
    [
        (([], 0, 8), (0, 64), r"cannot round \[\]; expected finite numbers, at least one"),
        (([1.0, math.nan], 0, 8), (0, 64), r"cannot round \[1\.0, nan\]"),
        (([1.0], 8, 0), (0, 64), "cannot round to multiples of 0 from 0 to 64; expected a multiple of at least 1"),
        (([1.0], 8, 8), (64, 8), "from 64 to 8; expected .* low <= high"),
        (
            ([8.0, 8.0], 200, 8),
            (5, 64),
            "cannot share 200 among 2 layers in multiples of 8 from 5 to 64: they sum to at least 16 and at most 128",
        ),
        (([8.0, 8.0], 11, 8), (5, 64), "cannot share 11 among 2 layers .* at least 16 and at most 128"),
    ],
)
def test_refused_roundings(arguments: tuple[list[float], int, int], bounds: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        round_to_total(*arguments, low=bounds[0], high=bounds[1])


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12))
def test_min_max(values: list[float]) -> None:
    scaled = min_max(values)
    assert all(0 <= value <= 1 for value in scaled)
    assert max(scaled) == 1.0
    if min(values) < max(values):
        assert min(scaled) == 0.0
        assert sorted(scaled) == [scaled[i] for i in sorted(range(len(values)), key=values.__getitem__)], "same order"
    else:
        assert scaled == (1.0,) * len(values), "no layer stands out"
        assert allocate(scaled, 0.3, 0.1) == (0.3,) * len(values)


def test_known_scaling() -> None:
    assert min_max([0.5, 0.75, 1.0]) == (0.0, 0.5, 1.0)
    assert min_max([-1, 3]) == (0.0, 1.0)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf, 0.5], [-1e308, 1e308]])
def test_refused_scaling(values: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"cannot scale \[.*\] to \[0, 1\]; expected finite numbers, at least one"):
        min_max(values)
