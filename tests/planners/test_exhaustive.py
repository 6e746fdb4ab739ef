"""Every set of a size: against a loop over all of them, one at a time."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune import demo
from hf_prune.architecture import decoder_of
from hf_prune.errors import ConfigError
from hf_prune.judging import CutJudge
from hf_prune.planners import exhaustive as module
from hf_prune.planners.exhaustive import exhaustive
from hf_prune.planners.order import greedy
from hf_prune.planners.problem import Problem
from hf_prune.units import Cut, Unit, as_cut
from tests.tiny import tiny_model, tokens

from .judges import Formula, blocks, linear

TWELVE = 12
SEQUENCES = [tokens(1, length, length)[0] for length in (9, 6)]


@given(st.integers(2, 7), st.data())
def test_best_of_all_sets(depth: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, depth - 1))
    damages = {
        cut: data.draw(st.integers(0, 6)) / 6 for cut in map(as_cut, itertools.combinations(range(depth), size))
    }
    judge = Formula(lambda cut, _share: damages[cut])
    found = exhaustive(blocks(depth, size, judge))
    expected = min(damages, key=lambda cut: (damages[cut], sorted(cut)))
    assert frozenset(found.units) == expected
    assert [trial.score for trial in found.trials] == sorted(damages.values())[:5]
    assert all(damages[frozenset(trial.removed)] == trial.score for trial in found.trials)
    assert {trial.tried for trial in found.trials} == {len(damages)}
    assert len(judge.asked) == len(damages) == len(set(judge.asked))


@pytest.mark.parametrize("at_once", [1, 7, 28, 1000])
def test_groups_change_nothing_but_what_is_shared(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_of(tiny_model("llama"))
    whole = CutJudge(decoder, SEQUENCES, "kl")
    expected = exhaustive(blocks(8, 2, whole))
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    judge = CutJudge(decoder, SEQUENCES, "kl")
    promised: list[float] = []
    monkeypatch.setattr(judge, "allow", lambda forwards, what: promised.append(forwards))
    found = exhaustive(blocks(8, 2, judge))
    assert found.units == expected.units
    assert [t.score for t in found.trials] == pytest.approx([t.score for t in expected.trials])
    assert judge.forwards <= promised[0] + 1e-9
    if at_once >= 28:
        assert judge.forwards == whole.forwards > promised[0] - 1
    else:
        assert judge.forwards > whole.forwards


def test_refused_before_any_forward() -> None:
    judge = CutJudge(decoder_of(tiny_model("llama")), SEQUENCES, "kl", limit=5)
    message = r"planner 'exhaustive', which tries 28 sets of 2, of '.*' takes up to (\d+) .*\(--max-forwards \1\)"
    with pytest.raises(ConfigError, match=message) as caught:
        exhaustive(blocks(8, 2, judge))
    assert judge.forwards == 0
    enough = int(str(caught.value).split("--max-forwards ")[1].rstrip(")"))
    judge = CutJudge(decoder_of(tiny_model("llama")), SEQUENCES, "kl", limit=enough)
    assert exhaustive(blocks(8, 2, judge)).trials[0].tried == 28
    judge = CutJudge(decoder_of(tiny_model("llama")), SEQUENCES, "kl", limit=enough - 1)
    with pytest.raises(ConfigError, match="which tries 28 sets"):
        exhaustive(blocks(8, 2, judge))


def test_far_too_many_sets_are_refused_at_once() -> None:
    judge = CutJudge(decoder_of(tiny_model("llama", depth=40)), SEQUENCES, "kl", limit=1000)
    with pytest.raises(ConfigError, match=f"tries {math.comb(40, 20)} sets of 20"):
        exhaustive(blocks(40, 20, judge))


def test_protected_units_stay_and_parts_are_tried() -> None:
    judge = Formula(linear([5, 0, 1, 0, 2]))
    assert exhaustive(Problem("org/model", 5, tuple(map(Unit, (0, 2, 4))), 2, None, judge)).layers == (2, 4)
    units = tuple(Unit(i, part) for i in (1, 4) for part in ("attention", "mlp"))  # type: ignore[arg-type]
    decoder = decoder_of(tiny_model("llama"))
    judge = CutJudge(decoder, SEQUENCES, "kl")
    found = exhaustive(Problem("org/model", 8, units, 2, None, judge))
    scores = {cut: judge.scores([frozenset(cut)])[0] for cut in itertools.combinations(units, 2)}
    assert found.units == min(scores, key=lambda cut: scores[cut])


def test_all_495_sets_of_a_tiny_model() -> None:
    """A planted answer: two blocks write nothing, and the two of a pair undo each other."""
    model = tiny_model("llama", depth=TWELVE)
    for i in (3, 8):
        model.model.layers[i].self_attn.o_proj.weight.data.zero_()
        model.model.layers[i].mlp.down_proj.weight.data.zero_()
    decoder = decoder_of(model)
    judge = CutJudge(decoder, SEQUENCES, "kl")
    found = exhaustive(blocks(TWELVE, 4, judge))
    assert {3, 8} <= set(found.layers)
    assert found.trials[0].tried == 495
    draw = random.Random(0)
    others: list[Cut] = [as_cut(draw.sample(range(TWELVE), 4)) for _ in range(30)]
    assert found.trials[0].score <= min(judge.scores(others)) + 1e-6
    assert found.trials[0].score <= greedy(blocks(TWELVE, 4, judge)).trials[-1].score + 1e-6
    assert judge.forwards < 600


@pytest.mark.slow
def test_demo_model_greedy_is_near_the_best_of_all() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo.model_folder()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")["input_ids"][0]
    sequences = list(ids.split(64))[:-1]
    judge = CutJudge(decoder_of(model), sequences, "kl", batch_size=4)
    best = exhaustive(blocks(TWELVE, 4, judge))
    assert best.trials[0].tried == 495
    drawn = judge.scores([as_cut(random.Random(i).sample(range(TWELVE), 4)) for i in range(20)])
    step = greedy(blocks(TWELVE, 4, judge)).trials[-1].score
    assert best.trials[0].score <= step + 1e-6 < min(drawn)
    assert step < 1.5 * best.trials[0].score


TEXT = """It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of
foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the
season of Darkness, it was the spring of hope, it was the winter of despair, we had everything before us, we had
nothing before us, we were all going direct to Heaven, we were all going direct the other way. There were a king with
a large jaw and a queen with a plain face, on the throne of England; there were a king with a large jaw and a queen
with a fair face, on the throne of France. In both countries it was clearer than crystal to the lords of the State
preserves of loaves and fishes, that things in general were settled for ever."""
