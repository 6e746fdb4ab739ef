"""What benchmark tasks tell of cut models."""

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from hf_prune import Pruner, extras, prune_layers
from hf_prune.architecture import decoder_of
from hf_prune.errors import ConfigError
from hf_prune.measures.task import TaskDamage
from hf_prune.registry import measure
from hf_prune.task_judge import TaskJudge, cut_model
from hf_prune.units import Cut, Unit
from tests.cli.support import recipe
from tests.evaluation.questions import counted, write_task
from tests.evaluation.text import VOCAB, byte_tokenizer
from tests.making import base_folder, logits
from tests.tiny import tiny_model, tokens

pytestmark = pytest.mark.skipif(not extras.available("lm_eval"), reason="needs the extra 'eval'")

DEPTH = 4
NONE: Cut = frozenset()
CUTS: list[Cut] = [NONE, *(frozenset({Unit(layer)}) for layer in range(DEPTH)), frozenset({Unit(0), Unit(3)})]


def model_of(model_type: str = "llama") -> Any:
    return tiny_model(model_type, DEPTH, vocab_size=VOCAB, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tasks")
    for task in ("hellaswag", "winogrande"):
        write_task(folder, task)
    return str(folder)


def judge(tasks: str, task: str = "hellaswag_local", model: Any = None, limit: int | None = None) -> TaskJudge:
    decoder = decoder_of(model_of() if model is None else model)
    return TaskJudge(decoder, byte_tokenizer(), "task_accuracy", {"task": task, "task_path": tasks}, limit=limit)


@pytest.mark.parametrize(("task", "metric"), [("hellaswag", "acc_norm"), ("winogrande", "acc")])
def test_it_is_what_cut_models_answer_wrong_by_our_own_count(tasks: str, task: str, metric: str) -> None:
    found = judge(tasks, f"{task}_local").scores(CUTS)
    expected = []
    for cut in CUTS:
        model = model_of()
        if cut:
            prune_layers(model, [unit.layer for unit in cut])
        expected.append(1 - fmean(map(float, counted(model, byte_tokenizer(), task)[metric])))
    assert found == pytest.approx(expected)
    assert len(set(found)) > 1


def test_importances_are_those_of_each_left_out(tasks: str) -> None:
    one, units = judge(tasks), [Unit(0), Unit(2), Unit(3)]
    found = one.importances(frozenset({Unit(1)}), units)
    assert list(found.values()) == one.scores([frozenset({Unit(1), unit}) for unit in units])


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
def test_a_cut_model_is_the_model_without_the_units_and_leaves_it_whole(model_type: str) -> None:
    model, other = tiny_model(model_type), tiny_model(model_type)
    before = logits(model, tokens())
    with cut_model(decoder_of(model), frozenset({Unit(2), Unit(2, "mlp"), Unit(5)})) as cut:
        assert torch.equal(logits(cut, tokens()), logits(prune_layers(other, [2, 5]), tokens()))
        assert torch.equal(logits(model, tokens()), before)
        pointers = {weight.data_ptr() for weight in model.parameters()}
        assert {weight.data_ptr() for weight in cut.parameters()} < pointers
    assert torch.equal(logits(model, tokens()), before) and decoder_of(model).num_layers == 8


def test_a_model_without_some_parts_is_that_with_zeroed_writers() -> None:
    model, zeroed = tiny_model("llama"), tiny_model("llama")
    zeroed.model.layers[2].mlp.down_proj.weight.data.zero_()
    zeroed.model.layers[4].self_attn.o_proj.weight.data.zero_()
    with cut_model(decoder_of(model), frozenset({Unit(2, "mlp"), Unit(4, "attention")})) as cut:
        assert torch.equal(logits(cut, tokens()), logits(zeroed, tokens()))


def test_forwards_are_counted_and_too_many_refused_before_any(tasks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = judge(tasks, limit=3)
    one.scores([NONE, CUTS[1], CUTS[-1]])
    assert one.forwards == 1 + 3 / 4 + 2 / 4
    assert one.cost_of_rounds([Unit(0), Unit(1), Unit(2)], 2) == 3 * 3 / 4 + 2 * 2 / 4
    monkeypatch.setattr(TaskDamage, "__call__", lambda *_: pytest.fail("asked"))
    with pytest.raises(ConfigError, match="up to 4 times; max_forwards allows 3"):
        one.scores([NONE])
    with pytest.raises(ConfigError, match="asks all its questions"):
        one.scores([], share=0.5)


@pytest.mark.parametrize(
    ("options", "told"),
    [({}, "task=''"), ({"task": "no_such_task"}, "no_such_task"), ({"task": "x", "limit": 0}, "limit")],
)
def test_tasks_that_cannot_be_are_refused_before_any_forward(
    options: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()
    monkeypatch.setattr(type(model), "forward", lambda *_args, **_kwargs: pytest.fail("ran"))
    with pytest.raises(ConfigError, match=told):
        TaskJudge(decoder_of(model), byte_tokenizer(), "task_accuracy", options)


def test_another_damage_where_less_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    class Row:
        task, main, value, higher_is_better = "it", True, 7.0, False

    monkeypatch.setattr("hf_prune.measures.task.run_tasks", lambda *_: ((Row(),), None))
    assert measure.get("task_accuracy").function(task="it")(None, None) == 7
    Row.higher_is_better, Row.value = True, 0.75
    assert measure.get("task_accuracy").function(task="it")(None, None) == 0.25


@pytest.mark.parametrize("planner", ["top_k", "greedy"])
def test_from_a_saved_model_to_its_plan(tasks: str, tmp_path: Path, planner: str) -> None:
    asked = {"task": "hellaswag_local", "task_path": tasks}
    config = recipe(
        measure="task_accuracy",
        measure_kwargs=asked,
        planner=planner,
        drop_layers=1,
        calibration={"dataset": str(tmp_path / "missing.jsonl")},
    )
    _, base = base_folder(tmp_path / "base", depth=DEPTH, max_position_embeddings=1024)
    one = Pruner.from_pretrained(base, config, progress=False)
    (layer,) = one.plan().dropped
    scores = one.measure()
    each = scores.importances["block"]
    assert layer == each.index(min(each)) and scores.data is None
    assert scores.forwards == pytest.approx(DEPTH * (DEPTH - 1) / DEPTH + 1)
    # What travels names no folder of this machine.
    told = [scores.options, one.config.without_paths().measure_kwargs]
    assert told == [{"task": "hellaswag_local", "task_path": Path(tasks).name}] * 2
    assert one.config.measure_kwargs == asked
