"""Stability by hand-counted numbers."""

import json
import math

import pytest

from hf_prune import serial
from hf_prune.errors import MeasureError
from hf_prune.evaluation.stability import Answers, Item, spread, stabilities, stability


def answers(rights: str, spreads: tuple[float, ...]) -> tuple[Item, ...]:
    return tuple(Item(f"q{i}", right == "1", s) for i, (right, s) in enumerate(zip(rights, spreads, strict=True)))


LOGS = tuple(map(math.log, (1.0, 2.0, 3.0, 4.0)))
"""Spreads whose softmax is 0.1, 0.2, 0.3, 0.4."""


def test_spread_is_the_population_deviation_of_the_loss_per_token() -> None:
    # Losses per token 1, 2 and 6: mean 3, squared deviations 4, 1 and 9.
    assert spread([-2.0, -2.0, -18.0], [2, 1, 3]) == pytest.approx(math.sqrt(14 / 3))
    assert spread([-3.0, -1.0], [3, 1]) == 0.0


@pytest.mark.parametrize(
    ("model", "original", "expected"),
    [
        ("1010", "1010", 1.0),
        ("0101", "1010", 0.0),
        ("1000", "1010", 0.1 + 0.2 + 0.4),  # as often right as wrong would not do: the third question differs
        ("1001", "1010", 0.1 + 0.2),  # the same accuracy
        ("0000", "0001", 0.6),
        ("1111", "0001", 0.4),
    ],
)
def test_matching_questions_count_by_the_softmax_of_their_spread(model: str, original: str, expected: float) -> None:
    found = stability("t", answers(model, (9.0, 9.0, 9.0, 9.0)), answers(original, LOGS))
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_weights_are_of_the_matching_questions_and_not_of_the_first_ones() -> None:
    # The released script adds the first weights, as many as there are matches: 0.2 here.
    spreads = tuple(map(math.log, (2.0, 8.0)))
    assert stability("t", answers("01", spreads), answers("11", spreads)) == pytest.approx(0.8)


def test_large_spreads_do_not_overflow() -> None:
    assert stability("t", answers("10", (0.0, 0.0)), answers("11", (2000.0, 0.0))) == 1.0


def test_other_questions_are_refused() -> None:
    other = (Item("else", True, 0.0),)
    with pytest.raises(MeasureError, match=r"task 't': the original was asked 4 questions, the model 1"):
        stability("t", other, answers("1010", LOGS))


def test_only_tasks_that_both_answered_have_one() -> None:
    both = answers("11", (1.0, 1.0))
    assert stabilities(Answers({"a": both, "b": both}), Answers({"b": both, "c": both})) == {"b": 1.0}


def test_answers_survive_a_file() -> None:
    kept = Answers({"a": answers("10", (0.5, 1 / 3))})
    assert serial.from_dict(Answers, json.loads(serial.dumps(kept))) == kept
