"""Numbers on completions, against cases counted by hand and a slow count."""

from hypothesis import given
from hypothesis import strategies as st

from hf_prune.records import Completion, ModelEvaluation
from hf_prune.writing import collapse, departure, departures, distinct, repetition


def wrote(*tokens: int, prompt: str = "p") -> Completion:
    return Completion(prompt, "text", tokens)


def drew(*tokens: int, prompt: str = "p") -> Completion:
    return Completion(prompt, "text", tokens, "sampled", 0)


def model(label: str, *completions: Completion) -> ModelEvaluation:
    return ModelEvaluation(label, 2, 1, 1, 1, "float32", (), None, completions, None)


def test_repetition_by_hand() -> None:
    assert repetition([wrote(1, 2, 3, 4, 5, 6)]) == 0
    assert repetition([wrote(1, 1, 1, 1, 1, 1, 1)]) == 0.75  # four 4-grams, one distinct
    # Repeating what another completion said is no repetition.
    assert repetition([wrote(1, 2, 3, 4), wrote(1, 2, 3, 4)]) == 0
    assert repetition([wrote(1, 2, 3)]) is None and repetition([]) is None


def test_distinct_by_hand() -> None:
    assert distinct([wrote(1, 2, 1), wrote(2, 1)], 1) == 2 / 5
    assert distinct([wrote(1, 2, 1), wrote(2, 1)], 2) == 2 / 3
    assert distinct([wrote(1)], 2) is None


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=4))
def test_both_lie_between_zero_and_one_and_agree_with_a_slow_count(texts: list[list[int]]) -> None:
    made = [wrote(*t) for t in texts]
    seen_before = total = 0
    for text in texts:
        for i in range(len(text) - 3):
            total += 1
            seen_before += any(text[j : j + 4] == text[i : i + 4] for j in range(i))
    found = repetition(made)
    assert found is None if not total else abs(found - seen_before / total) < 1e-12
    assert all(d is None or 0 < d <= 1 for d in (distinct(made, 1), distinct(made, 2)))


def test_departure() -> None:
    assert departure(wrote(1, 2, 3), wrote(1, 2, 3)) is None
    assert departure(wrote(1, 2, 3), wrote(1, 9, 3)) == 1
    assert departure(wrote(1, 2, 3), wrote(1, 2)) == 2
    original = model("original", wrote(1, 2, prompt="a"), wrote(3, 4, prompt="b"))
    other = model("pruned", wrote(1, 2, prompt="a"), wrote(4, 4, prompt="b"), wrote(1, prompt="new"))
    assert departures(original, other) == (None, 0)


def test_kinds_are_counted_apart() -> None:
    both = [wrote(1, 1, 1, 1, 1, 1, 1), drew(1, 2, 3, 4, 1, 2, 3, 4), drew(5)]
    assert repetition(both) == repetition(both[:1]) == 0.75
    assert repetition(both, kind="sampled") == 1 - 4 / 5
    assert distinct(both, 1) == 1 / 7 and distinct(both, 1, "sampled") == 5 / 9
    assert repetition(both[1:]) is None and distinct(both[:1], 2, "sampled") is None


def test_drawn_text_departs_from_nothing() -> None:
    original = model("original", wrote(1, 2), drew(5, 5))
    assert departures(original, model("pruned", wrote(1, 3), drew(5, 6))) == (1,)
    assert departures(model("original", drew(5, 5)), model("pruned", wrote(5, 5))) == ()


def test_drawn_text_collapses_by_itself() -> None:
    calm, stuck = wrote(*range(10)), drew(*[7] * 10)
    original, other = model("original", calm, drew(*range(10))), model("pruned", calm, stuck)
    assert collapse(original, other) is None
    assert collapse(original, other, "sampled") == (0, 1 - 1 / 7)


def test_collapse_is_relative_to_the_original() -> None:
    calm, stuck = model("original", wrote(*range(10))), model("pruned", wrote(*[7] * 10))
    assert collapse(calm, stuck) == (0, 1 - 1 / 7)
    assert collapse(stuck, stuck) is None  # an original that repeats itself as much says nothing against the cut
    assert collapse(calm, model("pruned", Completion("p", "of an older version"))) is None
