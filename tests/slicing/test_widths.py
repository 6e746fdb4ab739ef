"""Schedules of widths: comparable with the constant one, in multiples, and refused where nothing is left."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.errors import ConfigError
from hf_prune.slicing.widths import constant_widths, dynamic_widths, point_widths

from .. import making  # noqa: F401  (hypothesis without deadlines)

REDUNDANCY = st.lists(st.sampled_from([0.0, 0.25, 1.0]) | st.floats(0, 1), min_size=1, max_size=10)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[float], int, float, int]:
    multiple = draw(st.sampled_from([1, 3, 8, 16]))
    hidden_size = draw(st.integers(2 * multiple, 40 * multiple))
    sparsity = draw(st.floats(0.001, 1 - multiple / hidden_size))
    return draw(REDUNDANCY), hidden_size, sparsity, multiple


@pytest.mark.parametrize(
    ("hidden_size", "sparsity", "multiple", "width"),
    [
        (4096, 0.25, 8, 3072),
        (4096, 0.3, 8, 2864),  # 2867.2
        (4096, 0.3, 128, 2816),
        (4096, 0.3, 1, 2867),
        (2560, 0.2, 8, 2048),
        (80, 0.9, 8, 8),  # (1 - 0.9) * 80 is 7.999… in floats
        (50, 0.001, 8, 48),
    ],
)
def test_constant_widths(hidden_size: int, sparsity: float, multiple: int, width: int) -> None:
    assert constant_widths(hidden_size, 3, sparsity, multiple=multiple) == (width,) * 3


@given(schedules(), st.integers(0, 20))
def test_dynamic_widths(schedule: tuple[list[float], int, float, int], twentieths: int) -> None:
    redundancy, hidden_size, sparsity, multiple = schedule
    base = twentieths / 20 * sparsity
    constant = constant_widths(hidden_size, len(redundancy), sparsity, multiple=multiple)
    widths = dynamic_widths(redundancy, hidden_size, sparsity, base, multiple=multiple)
    assert sum(widths) == sum(constant)
    assert all(multiple <= width <= hidden_size and width % multiple == 0 for width in widths)
    for i, j in itertools.permutations(range(len(widths)), 2):
        if redundancy[i] > redundancy[j] + 1e-9:
            # Only layers that are clipped to the same share may differ by the one step that rounding hands out.
            spare = multiple if widths[j] == multiple else 0
            assert widths[i] <= widths[j] + spare, "more redundant, but wider"
    if len(set(redundancy)) == 1:
        assert widths == constant


@given(schedules())
def test_base_at_the_sparsity_is_constant(schedule: tuple[list[float], int, float, int]) -> None:
    redundancy, hidden_size, sparsity, multiple = schedule
    expected = constant_widths(hidden_size, len(redundancy), sparsity, multiple=multiple)
    assert dynamic_widths(redundancy, hidden_size, sparsity, sparsity, multiple=multiple) == expected


@pytest.mark.parametrize("multiple", [1, 8, 128])
def test_widths_are_the_closed_form_up_to_rounding(multiple: int) -> None:
    redundancy = [0.0, 0.43, 0.61, 0.7, 0.75, 0.92, 1.0, 0.97]
    found = dynamic_widths(redundancy, 4096, 0.3, 0.1, multiple=multiple)
    average = sum(redundancy) / len(redundancy)
    expected = [4096 * (1 - (0.1 + score * (0.3 - 0.1) / average)) for score in redundancy]
    assert all(abs(a - b) < 1.5 * multiple for a, b in zip(found, expected, strict=True)), (found, expected)
    assert found[0] > found[1] > found[-2] >= found[6]


def test_skewed_redundancy_leaves_a_width() -> None:
    widths = dynamic_widths([1.0, *[0.0] * 31], 64, 0.5, 0.0)
    assert widths[0] == 8, "the closed form cuts 16 times the width"
    assert sum(widths) == 32 * 32 and set(widths[1:]) == {32, 40}


def test_odd_hidden_size_gives_multiples_all_the_same() -> None:
    assert constant_widths(50, 3, 0.3) == (32, 32, 32)
    assert constant_widths(50, 3, 0.2) == (40, 40, 40)
    assert dynamic_widths([0.0, 0.0, 1.0], 50, 0.2, 0.0) == (48, 48, 24)


def test_the_greatest_sparsity_leaves_one_multiple() -> None:
    assert 1 - 8 / 25 < 0.68, "as floats have it, 0.68 is more than there is"
    assert dynamic_widths([0.0, 1.0], 25, 0.68, 0.1) == constant_widths(25, 2, 0.68) == (8, 8)


def test_point_widths() -> None:
    widths = (48, 40, 56)
    assert point_widths(widths, 64, parallel=False) == (48, widths, (40, 56, 64))
    assert point_widths(widths, 64, parallel=True) == (48, (), (40, 56, 64))
    assert point_widths(widths, 64, parallel=False, slice_head=True) == (48, widths, (40, 56, 56))
    assert point_widths([48], 64, parallel=True, slice_head=True) == (48, (), (48,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 0.0}, r"sparsity 0\.0 is out of range; expected a share of the width above 0 and below 1"),
        ({"sparsity": 1.0}, r"sparsity 1\.0 is out of range"),
        ({"sparsity": float("nan")}, "sparsity nan is out of range"),
        ({"layers": 0}, "cannot choose widths for 0 layers; expected at least 1"),
        ({"multiple": 0}, "widths cannot be multiples of 0; expected at least 1 and at most the hidden size 64"),
        ({"multiple": 65}, "widths cannot be multiples of 65; .*hidden size 64"),
        (
            {"sparsity": 0.95},
            r"sparsity 0\.95 leaves no width: less than one multiple of 8 of the hidden size 64\. "
            r"Take a sparsity of at most 0\.875 or a smaller multiple",
        ),
        ({"multiple": 64}, r"sparsity 0\.25 leaves no width: .* multiple of 64 .* size 64\. Take a smaller multiple$"),
    ],
)
def test_refused_constant_widths(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        constant_widths(**{"hidden_size": 64, "layers": 3, "sparsity": 0.25, **settings})


@given(st.integers(1, 64), st.integers(2, 20000))
def test_the_sparsity_that_is_advised_works(multiple: int, hidden_size: int) -> None:
    if multiple >= hidden_size:
        return
    with pytest.raises(ConfigError, match="leaves no width") as refused:
        constant_widths(hidden_size, 1, 1 - 0.999 * multiple / hidden_size, multiple=multiple)
    advised = re.search(r"at most (\S+) or", str(refused.value))
    assert advised
    assert constant_widths(hidden_size, 1, float(advised[1]), multiple=multiple) == (multiple,)


@pytest.mark.parametrize(
    ("redundancy", "base", "message"),
    [
        ([], 0.1, "no redundancy to follow; expected a number a layer"),
        ([0.5, 1.1], 0.1, r"redundancy of layer 1 is 1\.1; expected 0 to 1\. Scale .*layer_redundancy"),
        ([float("nan")], 0.1, "redundancy of layer 0 is nan"),
        ([0.0, 1.0], 0.3, r"slice base 0\.3 is out of range; expected at least 0 and at most the sparsity 0\.25"),
        ([0.0, 1.0], -0.1, r"slice base -0\.1 is out of range"),
        ([0.0, 1.0], float("nan"), "slice base nan is out of range"),
    ],
)
def test_refused_dynamic_widths(redundancy: list[float], base: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dynamic_widths(redundancy, 64, 0.25, base)


def test_other_refusals() -> None:
    with pytest.raises(ConfigError, match="leaves no width"):
        dynamic_widths([0.0, 1.0], 64, 0.95, 0.1)
    with pytest.raises(ConfigError, match="no widths; expected one a layer"):
        point_widths([], 64, parallel=False)
    for width in (0, 72):
        with pytest.raises(ConfigError, match=f"layer 1 has width {width}; expected 1 to the hidden size 64"):
            point_widths([64, width], 64, parallel=False)
