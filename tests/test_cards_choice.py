"""Cards of plans that do more than drop a window: how it was chosen, what was fitted, and what was silenced."""

import dataclasses
import math
import shlex

import pytest
import typer

from hf_prune.card_check import check_card
from hf_prune.card_choice import MOST_TRIALS, lead, runner_up, stayed
from hf_prune.card_commands import command
from hf_prune.cards import generate
from hf_prune.cli.app import app
from hf_prune.config import HealingConfig, PrunerConfig
from hf_prune.errors import ConfigError, MeasureError, PruneError
from hf_prune.eval_results import _made
from hf_prune.healing import resolve
from hf_prune.output import Finished, write_card
from hf_prune.records import Operation, Plan, Trial
from hf_prune.units import Unit
from tests.cli.support import parses
from tests.test_cards import (
    COMMIT,
    HOSTILE,
    body,
    config,
    evaluation,
    healing,
    model,
    plan,
    scores,
    tables_of,
    text_use,
    tokens,
)

WRITES = ["self_attn.o_proj.weight", "mlp.down_proj.weight"]
SCALE = Operation("scale", (5, 6), {"weights": WRITES, "factor": 0.8})
REPLACE = Operation("replace", (2,), {"file": Plan.FITTED})
DROP = Operation("drop", (3, 4, 9))


def silence(part, *layers):
    return Operation("silence", layers, {"part": part})


def blocks(*layers):
    return tuple(Unit(layer) for layer in layers)


def searched(count=3, **changes):
    """A plan of a greedy search that dropped scattered layers."""
    order = (9, 3, 4, *range(5, 5 + count))[:count]
    trials = tuple(Trial(tuple(sorted(blocks(*order[: i + 1]))), 3.5 + i / 10, 12 - i) for i in range(count))
    made = plan(
        method="sleb", planner="greedy", operations=(Operation("drop", tuple(sorted(order))),), distance=None,
        runner_up=None, gap=None, gap_standard_error=None, scores=None, trials=trials, forwards=16.5, data=text_use(),
        reason="removed one after the other",
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def fitted(**changes):
    notes = ("The residual error on held-out text is 0.123.", "The factor is 0.8.")
    made = plan(operations=(REPLACE, SCALE, DROP), fitted="ab" * 32, fits=notes, data=text_use(), distance=None)
    return dataclasses.replace(made, **changes)


def parts(*operations, **changes):
    """A plan that silences parts of layers."""
    made = plan(operations=operations or (silence("attention", 2, 7),), distance=None, runner_up=None, gap=None)
    return dataclasses.replace(made, **changes)


def card(made, recipe=None, **kwargs):
    return generate(recipe or config(method=made.method), made, repo_id="me/base-pruned", pictures=True, **kwargs)


def flat(made):
    """The card's text on one line, without front matter."""
    return " ".join(body(made).split())


# --- how it was chosen


def test_a_search_is_told_step_by_step():
    made = card(searched())
    text = flat(made)
    assert "Drop layers 3–4, 9 (3 of 12, counted from 0)." in text
    assert "org/base) without 3 of its 12 decoder layers. Made with" in text
    assert "- Measure `loss`: [" in text and "- Planner `greedy`: [" in text and "- Surgery `drop`: [" in text
    assert "- Chosen among whole layers but the first 1, the last 1." in text
    assert "- Passes of the text through the whole model: 16.50." in text
    assert "Searched on [org/texts](https://huggingface.co/datasets/org/texts), config `en`" in text
    assert tables_of(body(made))[0] == [
        ["step", "gone behind it", "loss ↓", "best of"],
        ["1", "9", "3.500", "12"],
        ["2", "3, 9", "3.600", "11"],
        ["3", "3–4, 9", "3.700", "10"],
    ]
    assert made.data.datasets == ["org/texts"]


def test_long_searches_are_counted_and_not_shown():
    long = searched(3, trials=searched(3).trials * 6)
    assert len(long.trials) > MOST_TRIALS
    text = flat(card(long))
    assert "The search made 18 decisions; `pruning/plan.json` holds all of them." in text and "best of" not in text


def test_options_and_protection_are_told():
    recipe = config(
        method="sleb",
        drop_layers=3,
        protect=(0, 5),
        protect_first=2,
        unit="joint",
        planner="greedy",
        max_forwards=2000,
    )
    text = flat(card(searched(operations=(silence("attention", 2), silence("mlp", 7))), recipe))
    assert "Chosen among attentions and MLPs but the first 2, the last 1, layers 0, 5." in text


def test_importances_have_a_drawing_and_no_heat_map():
    importances = {"block": tuple(0.01 * ((7 * i) % 12) for i in range(12))}
    given = scores(measure="block_influence", distances=(), standard_errors=(), importances=importances, forwards=1.0)
    made = plan(planner="top_k", operations=(Operation("drop", (0, 7)),), distance=None, runner_up=None, gap=None)
    text = flat(card(made, scores=given))
    assert "![Bars, one a layer: block\\_influence of the layer, from 0.000 (layer 0)" in text
    assert "Marked as removed: 0, 7.](./importance.png)" in text and "scores.png" not in text
    assert "- Passes of the text through the whole model: 1.000." in text


def test_the_runner_up_of_other_measures_is_not_farther():
    assert runner_up(plan()) == "The next best choice was layers 4–6, 0.0200 ± 0.0040 farther."
    assert runner_up(plan(distance=None, gap=1.5, gap_standard_error=None)) == (
        "The next best choice was layers 4–6, 1.500 worse by the measure."
    )
    assert runner_up(plan(runner_up=None)) == ""


def test_unknown_names_stay_names():
    text = body(card(plan(planner=HOSTILE[2]), scores=scores(measure=HOSTILE[2])))
    assert "<script>" not in text.replace("`<script>", "")


def test_weights_alone_are_no_text():
    given = scores(data=None, importances={"block": (0.1,) * 12}, distances=(), standard_errors=())
    assert (
        "without calibration text." in flat(card(plan(distance=None), scores=given)).partition("Measured in 12.5 s")[2]
    )


# --- what stayed


def test_what_was_fitted_is_told():
    text = flat(card(fitted()))
    assert "What was fitted: - The residual error on held-out text is 0.123. - The factor is 0.8." in text
    assert "Fitted on [org/texts]" in text
    assert "In layers 5–6, `self_attn.o_proj.weight` and `mlp.down_proj.weight` were multiplied by 0.8000." in text
    assert "Tensors of layers 2 were replaced by ones that were fitted to the model." in text
    assert "All other weights are the base's." in text and "keep their order and their weights" not in text
    assert "Not healed: the weights are the base model's but for the changes named above" in text
    assert "█ kept ▓ weights changed · removed" in text
    streamed = flat(card(fitted(), reload_level="streamed"))
    assert "every tensor byte for byte with what the plan makes of the base's" in streamed
    assert "kept tensors byte for byte with the base" in flat(card(plan(), reload_level="streamed"))


def test_many_factors_are_told_by_their_range():
    many = tuple(Operation("scale", (i,), {"weights": WRITES, "factor": 0.5 + i / 10}) for i in range(5, 11))
    text = str(stayed(plan(operations=(DROP, *many[:0], *many[:4], many[5])), healed=False))
    assert "Weights of layers 5–8, 10 were multiplied by factors from 1.000 to 1.500." in text


def test_healing_comes_on_top():
    text = flat(card(fitted(), healing=healing()))
    assert "Healing came after that, and changed the weights that it names below." in text
    assert "the base's." not in text.split("## Results")[0].rsplit("were multiplied", 1)[1]


def test_silenced_parts_save_nothing_and_the_card_says_so():
    both = evaluation(model("original"), model("pruned", layers=12, parameters=5_505_024, bytes=11_010_048))
    made = card(parts(silence("attention", 2, 7), silence("mlp", 7)), evaluation=both)
    text = flat(made)
    assert "org/base) with the attention of 2 and the MLP of 1 of its 12 decoder layers silenced. Made" in text
    assert "Silence the attention of layers 2, 7 (2 of 12" in text and "silence the MLP of layers 7" in text
    assert text.count("They make the model neither smaller nor faster.") == 3  # warning, weights, limits
    assert "All layers stay, in their order" in text and "Fewer layers need less memory" not in text
    assert "without" not in text.partition("Made with")[0].rpartition("[org/base]")[2]
    assert made.data.tags[2:4] == ["attention-pruning", "mlp-pruning"] and "layer-pruning" not in made.data.tags
    assert "a attention silenced ░ attention and MLP silenced" in text


def test_parts_and_layers():
    mixed = parts(silence("mlp", 0), DROP)
    assert lead(mixed) == "without 3 of its 12 decoder layers and with the MLP of 1 of them silenced"
    assert _made(mixed, None) == "layer-pruned 3/12, MLP silenced 1/12"
    assert "Fewer layers need less memory" in flat(card(mixed))


def test_many_silenced_parts_are_warned_of():
    text = flat(card(parts(silence("attention", *range(5)), silence("mlp", 1))))
    assert "5 of 12 attentions (42%) are silenced. Free generation" in text and "MLPs (" not in text


def test_the_evaluation_of_a_silenced_model_has_all_layers():
    with pytest.raises(ConfigError, match="pruned model has 9 layers; the plan says 12"):
        card(parts(), evaluation=evaluation(model("pruned")))


# --- make it again


@pytest.mark.parametrize(
    "changes",
    [
        {"measure": "loss"}, {"planner": "greedy", "measure": "loss"}, {"unit": "attention", "method": "sleb"},
        {"protect": (3,)}, {"protect_first": 2}, {"max_forwards": 50}, {"surgery": "drop"},
    ],
)  # fmt: skip
def test_whatever_is_not_the_methods_own_is_read_from_the_recipe(changes):
    line = command(config(**changes), recipe="me/base-pruned")
    assert "--config me/base-pruned" in line and parses(line) == "run"


def test_a_plan_that_was_given_is_named():
    given = config(drop_layers=None, method="sleb")
    first, second = command(given, heal=True, heal_tokens=100).split("\n")
    assert first == f"hf-prune prune org/base --revision {COMMIT} --plan pruning/plan.json --output pruned"
    assert (parses(first), parses(second)) == ("prune", "heal")
    assert command(given) == first


# --- cards against records


def finished(made, **changes):
    recipe = config(method=made.method)
    return Finished(recipe, made, changes.pop("scores", None), None, None, None, (), "streamed", **changes)


KINDS = {"searched": searched, "fitted": fitted, "silenced": parts}


@pytest.mark.parametrize("kind", KINDS)
def test_true_cards_pass_and_false_ones_do_not(tmp_path, kind):
    records = finished(KINDS[kind]())
    records.save(tmp_path)
    write_card(tmp_path, records)
    assert not [f for f in check_card(tmp_path) if f.level == "error"]
    lies = {
        "searched": ("3–4, 9", "3–5"),
        "fitted": ("multiplied by 0.8000", "multiplied by 0.9000"),
        "silenced": ("Silence the attention of layers 2, 7", "Silence the attention of layers 2, 8"),
    }
    path = tmp_path / "README.md"
    text = path.read_text()
    assert lies[kind][0] in text
    path.write_text(text.replace(*lies[kind], 1))
    assert [f for f in check_card(tmp_path) if f.level == "error"]
    path.write_text(text.replace("neither smaller nor faster", "smaller and faster"))
    assert (kind == "silenced") == bool([f for f in check_card(tmp_path) if f.text.startswith("Line")])


def scaled(**options):
    return fitted(operations=(Operation("scale", (1,), options), DROP), fitted=None)


IMPORTANT = (0.1,) * 12
HOSTILE_RECORDS = {
    "a part that is none": {"plan": parts(silence("<script>", 2))},
    "a part that is a list": {"plan": parts(silence(["attention"], 2))},
    "no options": {"plan": parts(Operation("silence", (2,)))},
    "an unknown operation": {"plan": parts(Operation("explode", (2,)))},
    "layers that are not there": {"plan": parts(silence("mlp", 12))},
    "negative layers": {"plan": parts(silence("mlp", -1))},
    "all layers": {"plan": parts(Operation("drop", tuple(range(12))))},
    "a factor of words": {"plan": scaled(weights=WRITES, factor="x")},
    "weights of another kind": {"plan": scaled(weights=3, factor=1.0)},
    "a factor that is none": {"plan": scaled(weights=WRITES, factor=math.nan)},
    "a fit without its file": {"plan": fitted(fitted=None)},
    "a file without a fit": {"plan": plan(fitted="ab" * 32)},
    "a hash that is none": {"plan": fitted(fitted="../../etc/passwd")},
    "trials of other layers": {"plan": searched(trials=(Trial(blocks(40), 1.0, 3),))},
    "a trial that scored nothing": {"plan": searched(trials=(Trial(blocks(4), math.inf, 3),))},
    "negative forwards": {"plan": searched(forwards=-1.0)},
    "importances of another length": {"plan": plan(), "scores": scores(importances={"block": IMPORTANT[:5]})},
    "importances of another part": {"plan": plan(), "scores": scores(importances={"head": IMPORTANT})},
    "importances that are none": {"plan": plan(), "scores": scores(importances={"mlp": (math.nan, *IMPORTANT[1:])})},
    "errors of nothing": {"plan": plan(), "scores": scores(importance_errors={"mlp": IMPORTANT})},
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE_RECORDS)
def test_hostile_records_are_one_clear_error(what):
    records = dict(HOSTILE_RECORDS[what])
    with pytest.raises((ConfigError, MeasureError)) as caught:
        card(records.pop("plan"), **records)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("what", HOSTILE_RECORDS)
def test_hostile_records_in_a_folder_are_findings(tmp_path, what):
    good = finished(plan())
    good.save(tmp_path)
    write_card(tmp_path, good)
    records = HOSTILE_RECORDS[what]
    bad = finished(records["plan"], scores=records.get("scores"))
    try:
        bad.save(tmp_path)
    except PruneError:  # NaN is not written
        return
    assert [f for f in check_card(tmp_path) if f.level == "error"]


def test_every_hostile_text_of_a_fit_stays_text():
    for text in filter(str.strip, HOSTILE):
        made = body(card(fitted(fits=(text, "The end."))))
        plain = body(card(fitted(fits=("Fine.", "The end."))))
        kinds = [[t.type for t in tokens(source) if t.type not in ("text", "softbreak")] for source in (made, plain)]
        assert kinds[0] == kinds[1], text


def test_recipes_of_other_methods_do_not_speak_for_the_plan():
    text = flat(card(searched(), config(method="uidl")))
    assert "`loss`" in text and "`angular`" not in text and "`greedy`" in text
    assert PrunerConfig().method == "uidl"


def resolved(**changes):
    healing = HealingConfig(**{"tokens": 100_000, **changes})
    name, at = healing.method or "uidl", {"limit": 4096, "parameters": 10**6, "device": "cpu"}
    return resolve(healing, recipe=name, base_model="org/base", original=True, seam=True, **at)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "--heal-tokens 100000"),
        ({"micro_batch_size": 4, "recompute": True}, "--heal-tokens 100000"),
        ({"method": "seam"}, "--heal-method seam --heal-tokens 100000"),
        ({"method": "auto"}, "--heal-method seam --heal-tokens 100000"),
        ({"target": "q_proj", "loss": "kl"},
         "--heal-target q_proj --heal-loss kl --heal-teacher resident --heal-tokens 100000"),
        ({"target": "last", "last_blocks": 2}, "--heal-target last --heal-last-blocks 2 --heal-tokens 100000"),
        (
            {"rank": 4, "packing": True, "report_to": ("wandb", "trackio"), "learning_rate": 0.01, "max_length": 64,
             "eval_steps": 7, "seed": 3, "dataset": "/home/x/text.jsonl"},
            "--dataset text.jsonl --seed 3 --heal-packing --heal-rank 4 --heal-alpha 4 --heal-learning-rate 0.01 "
            "--heal-tokens 100000 --heal-max-length 64 --heal-eval-steps 7 --heal-report-to wandb,trackio",
        ),
    ],
)  # fmt: skip
def test_a_healing_behind_a_given_plan_is_told_by_its_options(changes, words):
    asked, given = HealingConfig(**changes), config(drop_layers=None, method="sleb")
    made = dataclasses.replace(given, healing=resolved(**changes))
    line = command(made, heal=True).split("\n")[1]
    assert line == f"hf-prune heal pruned --output pruned-healed {words}" and parses(line) == "heal"
    # What the line sets, and the recipe fills, is what was used.
    typed = typer.main.get_command(app).commands["heal"].make_context("heal", shlex.split(line)[2:]).params
    options = {name.removeprefix("heal_"): value for name, value in typed.items() if name.startswith("heal_")}
    set_ = {name: value for name, value in options.items() if value is not None and name != "report_to"}
    again = resolved(**set_ | {"micro_batch_size": asked.micro_batch_size, "recompute": asked.recompute})
    same = {"dataset": made.healing.dataset, "seed": made.healing.seed, "report_to": made.healing.report_to}
    assert dataclasses.replace(again, **same) == made.healing
