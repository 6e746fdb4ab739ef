"""Pairs whose plans do more than drop a run of layers: what the page says of them, and hostile ones."""

import dataclasses
import math

import pytest

from hf_prune.errors import PruneError
from hf_prune.pictures import IMPORTANCE_FILE, LAYERS_FILE, PLOT_FILE, pictures
from hf_prune.records import Operation, Plan, Trial
from hf_prune.space import render
from hf_prune.space.anatomy import anatomy, distance_error
from hf_prune.space.anatomy_page import page
from hf_prune.space.cutting import plan_cut
from hf_prune.space.layer_map import NAMES
from hf_prune.units import Unit
from tests.space.records import card_pair, with_records
from tests.space.test_anatomy import Seen

WRITES = ["self_attn.o_proj.weight", "mlp.down_proj.weight"]
SCALE = Operation("scale", (5, 6), {"weights": WRITES, "factor": 0.8})
ATTENTION = Operation("silence", (1, 2), {"part": "attention"})
MLP = Operation("silence", (2,), {"part": "mlp"})
DROP = Operation("drop", (3, 8))


def pair_of(*operations, name="uidl-pruned", scores=None, **changes):
    """The pair of a card with another plan of its twelve layers, and no evaluation."""
    pair = card_pair(name)
    fresh = {"distance": None, "runner_up": None, "gap": None, "gap_standard_error": None}
    plan = dataclasses.replace(pair.records.plan, operations=operations, **{**fresh, **changes})
    token = f"{abs(hash((operations.__repr__(), repr(changes), repr(scores)))):040}"[-40:]
    return with_records(pair, token, plan=plan, scores=scores, evaluation=None)


def measured(**rows):
    scores = card_pair("uidl-pruned").records.scores
    return dataclasses.replace(
        scores, measure="sublayer_cosine", distances=(), standard_errors=(), importances=rows, options={}
    )


def test_states_of_layers_have_cells_of_their_own():
    found = anatomy(pair_of(ATTENTION, MLP, SCALE, DROP))
    assert [cell.state for cell in found.cells] == [
        "kept", "attention", "silenced", "removed", "kept", "changed", "changed", "kept", "removed", *["kept"] * 3,
    ]  # fmt: skip
    assert found.alt.endswith(
        "kept 0, 4, 7, 9–11; weights changed 5–6; attention silenced 1; attention and MLP silenced 2; removed 3, 8."
    )
    seen = Seen(page(found))
    for state in ("attention", "silenced", "changed", "removed"):
        assert NAMES[state] in seen.text
    assert any("neither smaller nor faster" in warning for warning in found.warnings)


def test_scattered_layers_and_importances_are_drawn():
    row = tuple(0.1 * ((5 * i) % 12) for i in range(12))
    scores = measured(attention=row, mlp=(None, *row[1:]))
    found = anatomy(pair_of(ATTENTION, scores=scores))
    assert set(found.drawings) == {IMPORTANCE_FILE} and "<svg" in found.drawings[IMPORTANCE_FILE].svg
    assert found.drawings[IMPORTANCE_FILE].alt.count("Marked as removed: 1–2.") == 1
    details = [cell.detail for cell in found.cells]
    assert details[0] == "sublayer_cosine of the attention 0.000"
    assert details[1] == "sublayer_cosine of the attention 0.5000; sublayer_cosine of the MLP 0.5000"
    assert found.calibration is not None and found.runner_up == ""


def test_what_was_searched_and_fitted_is_said():
    data = card_pair("uidl-pruned").records.scores.data
    trials = (Trial((Unit(3),), 3.5, 12), Trial((Unit(3), Unit(8)), 3.7, 11))
    notes = ("The factor is <b>0.8</b>.",)
    found = anatomy(pair_of(SCALE, DROP, trials=trials, forwards=12.5, data=data, fits=notes))
    assert found.fits == notes and found.calibration.startswith("Chosen on text sampled")
    html = page(found)
    assert "The factor is &lt;b&gt;0.8" in html and "<b>0.8</b>" not in html
    assert anatomy(pair_of(SCALE, DROP, data=data, fits=notes)).calibration.startswith("Fitted on ")


def test_the_line_below_the_picker_tells_of_parts():
    assert render.removed(pair_of(DROP)).startswith("2 of 12 layers removed (layers 3, 8, counted from 0); ")
    assert render.removed(pair_of(ATTENTION, MLP)).startswith(
        "2 of 12 layers without their attention (layers 1–2, counted from 0); 1 of 12 layers without their MLP (layer "
        "2, counted from 0); "
    )


def test_a_plan_that_drops_nothing_has_no_distance():
    pair = pair_of(ATTENTION, distance=0.5, scores=card_pair("uidl-pruned").records.scores)
    assert distance_error(pair.records.plan, pair.records.scores) is None
    assert PLOT_FILE in anatomy(pair).drawings
    assert plan_cut(pair, "simple", 2).dropped == (9, 10)


def test_a_map_in_words_is_the_cards(tmp_path):
    pair = pair_of(ATTENTION, DROP)
    assert pictures(pair.records.plan, None, None, None)[LAYERS_FILE].alt == anatomy(pair).alt


ROW = (0.1,) * 12
HOSTILE = {
    "a part that is none": lambda: pair_of(Operation("silence", (1,), {"part": "<script>"})),
    "a part that is a list": lambda: pair_of(Operation("silence", (1,), {"part": ["mlp"]})),
    "no part": lambda: pair_of(Operation("silence", (1,))),
    "an unknown operation": lambda: pair_of(Operation("explode", (1,)), DROP),
    "a factor of words": lambda: pair_of(Operation("scale", (1,), {"weights": WRITES, "factor": "<b>"}), DROP),
    "a replace without its file": lambda: pair_of(Operation("replace", (1,), {"file": Plan.FITTED}), DROP),
    "trials of other layers": lambda: pair_of(DROP, trials=(Trial((Unit(400),), 1.0, 2),)),
    "importances of another length": lambda: pair_of(DROP, scores=measured(block=ROW[:4])),
    "importances of another part": lambda: pair_of(DROP, scores=measured(**{"<script>": ROW})),
    "importances that are none": lambda: pair_of(DROP, scores=measured(mlp=(math.nan, *ROW[1:]))),
    "endless importances": lambda: pair_of(DROP, scores=measured(mlp=(math.inf, *ROW[1:]))),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_records_are_one_clear_error(what):
    pair = HOSTILE[what]()
    with pytest.raises(PruneError) as caught:
        anatomy(pair)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("what", [what for what in HOSTILE if "importances" in what])
def test_hostile_importances_choose_nothing(what):
    pair = HOSTILE[what]()
    scores = dataclasses.replace(pair.records.scores, measure="block_influence")
    with pytest.raises(PruneError):
        plan_cut(with_records(pair, "f" * 40, scores=scores), "shortgpt", 2)
