import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.evaluation.tally import Tally


def filled(groups):
    tally = Tally(len(groups))
    for index, group in enumerate(groups):
        tally.add(torch.full((len(group),), index), torch.tensor(group))
    return tally


def test_equal_windows_give_the_textbook_standard_error():
    groups = [[1.0, 2.0], [3.0, 5.0], [2.0, 8.0]]
    tally = filled(groups)
    means = [statistics.mean(g) for g in groups]
    assert tally.mean == statistics.mean(means)
    assert tally.standard_error == pytest.approx(statistics.stdev(means) / math.sqrt(3), rel=1e-12)


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=6), min_size=2, max_size=8))
def test_unequal_windows_weigh_by_their_tokens(groups):
    tally = filled(groups)
    values = [v for g in groups for v in g]
    mean = math.fsum(values) / len(values)
    spread = math.fsum((math.fsum(g) - mean * len(g)) ** 2 for g in groups)
    assert tally.count == len(values)
    assert tally.mean == pytest.approx(mean, rel=1e-9, abs=1e-9)
    expected = math.sqrt(spread * len(groups) / (len(groups) - 1)) / len(values)
    assert tally.standard_error == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_windows_without_a_value_do_not_count():
    some = filled([[1.0, 2.0], [], [4.0]])
    assert some.standard_error == pytest.approx(filled([[1.0, 2.0], [4.0]]).standard_error, rel=1e-12)


def test_a_single_window_falls_back_on_its_tokens():
    values = [1.0, 2.0, 4.0, 9.0]
    assert filled([values]).standard_error == pytest.approx(statistics.stdev(values) / 2, rel=1e-12)
    assert filled([[3.0]]).standard_error == 0.0
    assert filled([[7.3, 7.3, 7.3]]).standard_error == pytest.approx(0.0, abs=1e-6)


def test_means_of_groups_of_windows():
    tally = Tally(4)
    tally.add(torch.tensor([0, 0, 1, 3]), torch.tensor([1.0, 2.0, 6.0, 5.0]))
    assert tally.means(torch.tensor([0, 0, 1, 2]), 4) == (3.0, None, 5.0, None)
