"""Benchmarks, losses and what machines read of them."""

import dataclasses
import math
import re

import pytest
import yaml

from hf_prune import card_worse
from hf_prune.card_tasks import quoted
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.eval_results import benchmark_entries, benchmark_yaml
from hf_prune.output import Finished, update_evaluation
from hf_prune.records import Completion, Fidelity, Rate, Speed, TaskResult
from tests.test_cards import (
    DETAILS,
    body,
    check_card,
    config,
    evaluation,
    full,
    healing,
    model,
    perplexity,
    plan,
    tables_of,
)


def task(name="boolq", value=0.7, **changes):
    made = TaskResult(name, "acc", "none", value, 0.01, True, True, 0, 3270, None, "2", dataset="aps/super_glue")
    return dataclasses.replace(made, **changes)


def three(*results):
    """Original, pruned and healed with these tasks, the value falling from one to the next."""
    found = []
    for number, (label, nll) in enumerate((("original", 3.5), ("pruned", 4.1), ("healed", 3.7))):
        shift = (0, -0.2, -0.1)[number]
        tasks = tuple(dataclasses.replace(r, value=r.value + shift) for r in results)
        found.append(model(label, nll, tasks=tasks))
    return evaluation(*found)


def asked(*names):
    settings = dataclasses.replace(config().evaluation, tasks=names)
    return dataclasses.replace(config(), evaluation=settings)


# --- rows


def test_tasks_have_a_table_of_their_own():
    card = full(evaluation=three(task(), task("piqa", 0.8, metric="acc_norm", num_fewshot=5)))
    assert tables_of(body(card))[1] == [
        ["", "original", "pruned", "healed"],
        ["boolq (acc, 0-shot) ↑", "0.700 ± 0.010", "0.500 ± 0.010", "0.600 ± 0.010"],
        [r"piqa (acc\_norm, 5-shot) ↑", "0.800 ± 0.010", "0.600 ± 0.010", "0.700 ± 0.010"],
    ]
    check_card(card)


def test_other_metrics_than_the_main_ones_are_left_out():
    card = full(evaluation=three(task(), task(metric="f1", main=False)))
    assert "f1" not in body(card)


def test_parts_of_a_group_are_folded_away():
    group = task("mmlu", 0.5, group=True, dataset=None)
    card = full(evaluation=three(group, task("mmlu_law", 0.4, parent="mmlu"), task("boolq", 0.7)))
    check_card(card)
    assert "<summary>Parts of the groups (1)</summary>" in body(card)
    top, parts = tables_of(body(card))[1:3]
    assert [row[0] for row in top[1:]] == ["mmlu (acc, 0-shot) ↑", "boolq (acc, 0-shot) ↑"]
    assert [row[0] for row in parts[1:]] == [r"mmlu\_law (acc, 0-shot) ↑"]
    assert re.findall(DETAILS, body(card))


def test_what_was_asked_for_is_no_part_of_a_group():
    asked = [task("mmlu", group=True), task("mmlu_pro", group=True)]
    parts = [task("mmlu_pro_law", parent="mmlu_pro"), task("mmlu_law", parent="mmlu")]
    top, parts = quoted(three(*asked, *parts))
    assert [k[0] for k in top] == ["mmlu", "mmlu_pro"] and [k[0] for k in parts] == ["mmlu_pro_law", "mmlu_law"]


def test_stability_filter_and_limit_are_told():
    limited = task("gsm8k", metric="exact_match", filter="strict-match", num_fewshot=5, limit=20, samples=20)
    found = three(limited)
    models = [dataclasses.replace(m, tasks=(dataclasses.replace(m.tasks[0], stability=s),)) for m, s in
              zip(found.models, (None, 0.25, 0.75), strict=True)]  # fmt: skip
    text = body(full(evaluation=evaluation(*models)))
    name = r"gsm8k (exact\_match, strict-match, 5-shot, only the first 20 questions) ↑"
    assert tables_of(text)[1][1][0] == name
    assert tables_of(text)[1][2] == ["Stability, gsm8k ↑", "–", "0.2500", "0.7500"]
    assert "Not all questions were asked: at most 20 of each task." in text
    assert "The benchmarks were run on a part of their questions only." in text
    assert "part of their questions" not in body(full(evaluation=three(task())))


def test_lower_is_better_has_its_arrow():
    assert "wikitext (word_perplexity, 0-shot) ↓" in body(
        full(evaluation=three(task("wikitext", 30.0, metric="word_perplexity", higher_is_better=False)))
    ).replace("\\", "")


@pytest.mark.parametrize(
    "changes", [{"limit": 5}, {"num_fewshot": 5}, {"samples": 10}, {"version": "3"}, {"dataset": "other/set"}]
)
def test_different_questions_are_not_put_side_by_side(changes):
    models = (model("original", tasks=(task(),)), model("pruned", tasks=(task(**changes),)), model("healed"))
    with pytest.raises(ConfigError, match="the task 'boolq' was asked differently of the models original and pruned"):
        full(evaluation=evaluation(*models))


def test_a_model_without_a_task_says_so():
    models = (model("original", tasks=(task(),)), model("pruned"), model("healed", tasks=(task(value=0.6),)))
    assert tables_of(body(full(evaluation=evaluation(*models))))[1][1][2] == "not measured"


def test_rows_of_newer_records():
    fidelity = Fidelity(0.25, 0.01, 0.81, 50_000, 0.7, 0.2, 64, 80_000)
    speed = Speed(Rate(1000, 900, 1100), Rate(50.5, 49, 52), 1, 128, 64, 10, rounds=2)
    more = {"load": Rate(1.5, 1.25, 2.0), "disk_bytes": 9_000_000, "flops_per_token": 1.5e7, "speed": speed}
    models = [model("original", **more), model("pruned", 4.1, fidelity=fidelity, **more), model("healed", 3.7)]
    text = body(full(evaluation=evaluation(*models)))
    rows = {row[0]: row[1:] for row in tables_of(text)[0]}
    assert rows["KL over the original's 64 likeliest tokens ↓"] == ["–", "0.2000", "not measured"]
    assert rows["Weight files on disk"] == ["9.00 MB", "9.00 MB", "not measured"]
    assert rows["Arithmetic (FLOPs per prompt token) ↓"] == ["15 M", "15 M", "not measured"]
    assert rows["Time to load (seconds) ↓"] == ["1.5 (1.25–2)"] * 2 + ["not measured"]
    assert "at 80,000 positions; it is never above the full KL" in text
    assert "64 new tokens; the models took turns 2 times." in text
    old = body(full())
    assert not any(name in old for name in ("likeliest tokens ↓", "on disk", "FLOPs", "Time to load"))
    alone = Speed(Rate(1000, 900, 1100), Rate(50.5, 49, 52), 1, 128, 64, 5)
    timed_alone = evaluation(*(dataclasses.replace(m, speed=alone) for m in models))
    assert "the models took turns" not in body(full(evaluation=timed_alone))


# --- what got worse


def worse(original, shipped, *names):
    keys = [(name, "acc", "none") for name in names]
    return card_worse.losses(original, shipped, keys)


def test_losses_are_ranked_by_relative_change():
    before = model("original", 3.5, tasks=(task(value=0.8), task("piqa", 0.5)))
    after = model("pruned", 3.6, tasks=(task(value=0.6), task("piqa", 0.1)))
    found = worse(before, after, "boolq", "piqa")
    assert [loss.name for loss in found] == [
        "piqa (acc, 0-shot)",
        "boolq (acc, 0-shot)",
        "Perplexity, The Time Machine",
    ]
    assert [loss.relative for loss in found] == pytest.approx([0.8, 0.25, math.exp(0.1) - 1])
    assert (found[0].before, found[0].after) == ("0.500 ± 0.010", "0.100 ± 0.010")


def test_only_what_lies_beyond_two_standard_errors_counts():
    # The difference of two figures of 0.01 each has a standard error of 0.01414.
    for fall, counts in ((0.0282, False), (0.0284, True)):
        before, after = model("original", 3.5, tasks=(task(value=0.8),)), model("healed", 3.5)
        after = dataclasses.replace(after, tasks=(task(value=0.8 - fall),))
        assert bool(worse(before, after, "boolq")) == counts
    assert [bool(worse(model("original", 3.5), model("healed", 3.5 + d))) for d in (0.0282, 0.0284)] == [False, True]


def test_lower_is_better_is_turned_round():
    ppl = task("wikitext", 20.0, higher_is_better=False)
    up, down = (model("pruned", 3.5, tasks=(dataclasses.replace(ppl, value=v),)) for v in (25.0, 15.0))
    before = model("original", 3.5, tasks=(ppl,))
    assert [loss.relative for loss in worse(before, up, "wikitext")] == pytest.approx([0.25])
    assert worse(before, down, "wikitext") == []


def test_tasks_without_a_standard_error_say_nothing():
    before = model("original", 3.5, tasks=(task(value=0.8, standard_error=None),))
    assert worse(before, model("pruned", 3.5, tasks=(task(value=0.1),)), "boolq") == []


def test_speed_counts_only_where_the_runs_do_not_overlap():
    before = model("original", 3.5)  # prefill 900–1100, decode 49–52
    slow = Speed(Rate(500, 400, 899), Rate(48.0, 47, 49.5), 1, 128, 64, 5, rounds=2)
    found = worse(before, model("pruned", 3.5, speed=slow))
    assert [(loss.name, loss.relative) for loss in found] == [("Prefill (tokens per second)", 0.5)]
    alone = dataclasses.replace(slow, rounds=1)  # timed at another time than the original
    assert worse(before, model("pruned", 3.5, speed=alone)) == []


def test_weights_that_grew_are_a_loss():
    found = worse(model("original", 3.5), model("pruned", 3.5, bytes=22_020_096))
    assert [(loss.name, loss.relative) for loss in found] == [("Weights", 1.0)]


def test_repetition_is_a_loss_beyond_chance():
    fresh = tuple(Completion("p", "x", tuple(range(i, i + 11))) for i in range(3))
    stuck = tuple(Completion("p", "x", (i,) * 11) for i in range(3))  # one 4-gram of eight is no repeat
    found = worse(model("original", 3.5, completions=fresh), model("pruned", 3.5, completions=stuck))
    assert [(loss.name, loss.before, loss.after) for loss in found] == [
        ("4-grams in greedy completions that are no repeats", "100.0%", "12.5%")
    ]
    assert found[0].relative == pytest.approx(0.875)
    sampled = tuple(dataclasses.replace(c, kind="sampled", seed=0) for c in stuck)
    assert worse(model("original", 3.5, completions=fresh), model("pruned", 3.5, completions=sampled)) == []
    mixed = (stuck[0], fresh[1])  # 1/8 and 1: a mean of 0.5625 with a standard error of 0.4375
    assert worse(model("original", 3.5, completions=fresh), model("pruned", 3.5, completions=mixed)) == []


def test_the_card_names_three_losses_at_most():
    names = ("a", "b", "c", "d")
    found = three(*(task(name, 0.7 + 0.05 * i) for i, name in enumerate(names)))
    section = body(full(evaluation=found)).partition("### What got worse\n")[2].partition("\n#")[0]
    items = re.findall(r"^- \*\*(.*?)\*\*: (.*)$", section, re.MULTILINE)
    assert items == [
        ("Perplexity, The Time Machine", "33.12 ± 0.33 → 40.45 ± 0.40 (22.1% worse)"),
        ("a (acc, 0-shot)", "0.700 ± 0.010 → 0.600 ± 0.010 (14.3% worse)"),
        ("b (acc, 0-shot)", "0.750 ± 0.010 → 0.650 ± 0.010 (13.3% worse)"),
    ]


def test_no_loss_is_said_as_well():
    same = evaluation(model("original", 3.5), model("pruned", 4.0), model("healed", 3.5))
    assert "No figure that was measured of both models got worse beyond two standard errors." in body(
        full(evaluation=same)
    )
    assert "What got worse" not in body(full(evaluation=evaluation(model("healed"))))


# --- what machines read


def index(card):
    return {
        (r["dataset"]["name"], m["name"]): (r["dataset"], m)
        for r in card.data.to_dict()["model-index"][0]["results"]
        for m in r["metrics"]
    }


def test_tasks_are_in_the_model_index_of_the_shipped_weights():
    group = task("mmlu", 0.5, group=True, dataset=None, num_fewshot=5, limit=10)
    found = index(full(evaluation=three(task(dataset_config="boolq", split="validation"), group)))
    dataset, metric = found["boolq", "boolq (acc, 0-shot)"]
    assert dataset == {"name": "boolq", "type": "aps/super_glue", "config": "boolq", "split": "validation"}
    assert (metric["type"], metric["value"]) == ("acc", 0.6)
    dataset, metric = found["mmlu", "mmlu (acc, 5-shot, only the first 10 questions)"]
    assert dataset == {"name": "mmlu", "type": "unknown", "config": "mmlu"} and metric["value"] == 0.4


def test_two_groups_stay_apart_in_the_model_index():
    groups = (task("mmlu", 0.5, group=True, dataset=None), task("bbh", 0.4, group=True, dataset=None))
    assert {name for name, _ in index(full(evaluation=three(*groups)))} == {"The Time Machine", "mmlu", "bbh"}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_tasks_that_are_not_finite_are_refused(bad):
    with pytest.raises(MeasureError):
        full(evaluation=three(task(value=bad)))


def gsm8k(**changes):
    given = {"metric": "exact_match", "filter": "strict-match", "num_fewshot": 5, "dataset": "openai/gsm8k"}
    return task("gsm8k", 0.4123, **given | changes)


@pytest.mark.parametrize("changes", [{"standard_error": -1.0}, {"perplexity": 0.0}, {"tokens": 0}, {"bytes": 0}])
def test_figures_that_cannot_be_are_refused(changes):
    text = dataclasses.replace(perplexity(3.5), **changes)
    with pytest.raises(MeasureError, match="expected a count, a perplexity or a rate above zero"):
        full(evaluation=evaluation(dataclasses.replace(model("original", 3.5), perplexity=(text,))))
    with pytest.raises(MeasureError, match="no negative standard error"):
        full(evaluation=three(task(standard_error=-0.01)))


def test_a_model_that_is_there_twice_is_refused():
    with pytest.raises(ConfigError, match="a model twice: original, original"):
        full(evaluation=evaluation(model("original", 3.5), model("original", 3.4)))


def test_registered_benchmarks_have_entries():
    found = benchmark_entries(model("healed", tasks=(task(), gsm8k())), plan(), healing(), chat_template=True)
    assert yaml.safe_load(benchmark_yaml(found)) == [
        {
            "dataset": {"id": "openai/gsm8k", "task_id": "gsm8k"},
            "value": 41.23,
            "notes": "layer-pruned 3/12, healed, lm-evaluation-harness gsm8k (exact_match, strict-match, 5-shot), "
            "chat template",
        }
    ]


@pytest.mark.parametrize("changes", [{"limit": 100}, {"dataset": "json"}, {"main": False}])
def test_other_questions_have_no_entry(changes):
    assert benchmark_entries(model("healed", tasks=(gsm8k(**changes),)), plan(), None) == []


def test_a_group_counts_by_the_datasets_of_its_parts():
    group = task("mmlu_pro", 0.3, group=True, dataset=None)
    parts = [task(f"mmlu_pro_{name}", dataset="TIGER-Lab/MMLU-Pro", parent="mmlu_pro") for name in ("law", "math")]
    found = benchmark_entries(model("pruned", tasks=(group, *parts)), plan(), None)
    assert [(e.dataset_id, e.task_id, e.value) for e in found] == [("TIGER-Lab/MMLU-Pro", "mmlu_pro", 30.0)]
    assert found[0].notes.startswith("layer-pruned 3/12, lm-evaluation-harness mmlu_pro")
    parts[1] = dataclasses.replace(parts[1], dataset="json")
    assert benchmark_entries(model("pruned", tasks=(group, *parts)), plan(), None) == []
    assert benchmark_entries(model("pruned", tasks=(group,)), plan(), None) == []


def test_a_benchmark_has_one_entry():
    twice = (gsm8k(), gsm8k(filter="flexible-extract"))
    assert len(benchmark_entries(model("healed", tasks=twice), plan(), None)) == 1


def test_perplexity_of_a_second_text_is_a_loss_of_its_own():
    texts = [(perplexity(3.5), perplexity(3.0, name="b")), (perplexity(3.5), perplexity(3.5, name="b"))]
    found = worse(*(model(label, perplexity=t) for label, t in zip(("original", "pruned"), texts, strict=True)))
    assert [loss.name for loss in found] == ["Perplexity, b"]


def test_an_earlier_figure_of_the_pruned_model_stays_only_where_the_questions_are_the_same(tmp_path):
    Finished(config(), plan(), None, healing(), three(task(), task("piqa")), None, (), "none").save(tmp_path)
    new = three(task(), task("piqa", limit=10))
    new = dataclasses.replace(new, models=(new.models[0], new.models[2]))
    kept = update_evaluation(tmp_path, config(), new).models[1]
    assert kept.label == "pruned" and [(r.task, r.value) for r in kept.tasks] == [("boolq", pytest.approx(0.5))]
    assert "not measured" in (tmp_path / "README.md").read_text(encoding="utf-8").partition("piqa (acc")[2]
