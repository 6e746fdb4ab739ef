"""What can be told of benchmark tasks without running any: suites, options, settings, rows of the table."""

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_prune.cli.configs import make_config, task_changes
from hf_prune.cli.options import CalibrationOptions, RecipeOptions, TaskOptions
from hf_prune.config import EvaluationConfig, PrunerConfig
from hf_prune.dry_run import preview
from hf_prune.errors import ConfigError, MissingExtraError
from hf_prune.evaluation import table
from hf_prune.evaluation.harness import add_tasks
from hf_prune.evaluation.stability import Answers, AnswerSheet
from hf_prune.evaluation.suites import SUITES, expand, normalised_loss
from hf_prune.evaluation.task_loading import check_tasks, new_tokens, task_files
from hf_prune.records import Evaluation, ModelEvaluation, Perplexity, TaskResult
from tests.making import ENVIRONMENT, TEXT, base_folder
from tests.tiny import tiny_model


def test_suites_stand_for_their_tasks() -> None:
    assert expand(["uidl"]) == {"mmlu": 5, "boolq": 0, "hellaswag": None, "gsm8k": None}
    assert list(expand(["slicegpt"])) == ["piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge"]
    assert set(expand(["slicegpt", "quick"]).values()) == {0}


def test_a_number_of_examples_that_was_given_overrides_the_suites() -> None:
    assert set(expand(["uidl"], 3).values()) == {3}
    assert set(expand(["uidl", "copa"], 0).values()) == {0}


def test_what_is_named_twice_is_asked_once_as_it_was_named_first() -> None:
    assert expand(["boolq", "uidl", "copa", "copa"]) == {
        "boolq": None, "mmlu": 5, "hellaswag": None, "gsm8k": None, "copa": None,
    }  # fmt: skip


def test_every_suite_tells_what_it_is() -> None:
    assert all(suite.title for suite in SUITES.values())
    assert sum("https://arxiv.org/abs/" in suite.title for suite in SUITES.values()) == len(SUITES) - 1


def test_loss_over_log_v() -> None:
    nll = 1.5 * math.log(10)
    text = Perplexity("c4", nll, 0.1 * math.log(10), math.exp(nll), 2.0, 100, 400, 16, 8, TEXT)
    found = normalised_loss(text, 1000)
    assert found.value == pytest.approx(0.5) and found.standard_error == pytest.approx(0.1 / 3)
    assert (found.task, found.metric, found.higher_is_better, found.main) == ("c4", "loss / log V", False, True)
    assert (found.dataset, found.dataset_config, found.split) == ("org/books", "en", "train")


def test_the_papers_suite_adds_the_loss_of_the_evaluated_text(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = (result("boolq", 0.5),)
    monkeypatch.setattr("hf_prune.evaluation.harness.run_tasks", lambda *given, **options: (ran, Answers({})))
    text = Perplexity("c4", math.log(4), 0.1, 4.0, 2.0, 100, 400, 16, 8, TEXT)
    figures = ModelEvaluation("pruned", 4, 10, 40, 50, "float32", (text,), None, (), None)
    model, sheet = tiny_model("llama", 1, vocab_size=16), AnswerSheet()
    found = add_tasks(figures, model, None, EvaluationConfig(tasks=("uidl",)), sheet).tasks
    assert found[:1] == ran and (found[1].metric, found[1].value) == ("loss / log V", pytest.approx(0.5))
    assert sheet.answers == Answers({})
    assert add_tasks(figures, model, None, EvaluationConfig(tasks=("boolq",)), sheet).tasks == ran
    assert add_tasks(figures, model, None, EvaluationConfig(), sheet) is figures


def test_the_options_become_settings() -> None:
    options = TaskOptions("mmlu, boolq,uidl", num_fewshot=0, limit=5, task_path="my/tasks", chat_template=True)
    settings = make_config(RecipeOptions(), CalibrationOptions(), tasks=options).evaluation
    assert settings == EvaluationConfig(
        tasks=("mmlu", "boolq", "uidl"), num_fewshot=0, limit=5, task_path="my/tasks", chat_template=True
    )
    assert task_changes(TaskOptions()) == task_changes(None) == {}


def test_options_that_were_not_given_leave_the_recipe_alone(tmp_path: Path) -> None:
    own = EvaluationConfig(tasks=("piqa",), limit=7, chat_template=True)
    PrunerConfig(evaluation=own).save_pretrained(tmp_path)
    found = make_config(RecipeOptions(config=str(tmp_path)), CalibrationOptions(), tasks=TaskOptions(num_fewshot=2))
    assert found.evaluation == dataclasses.replace(own, num_fewshot=2)


def test_no_task_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--tasks ' ,' names no task; expected such as"):
        task_changes(TaskOptions(" ,"))
    with pytest.raises(ConfigError, match=r"^--limit, --chat-template without tasks: no question is asked"):
        task_changes(TaskOptions(limit=4, chat_template=True))
    assert task_changes(TaskOptions(limit=4), EvaluationConfig(tasks=("boolq",))) == {"limit": 4}


def test_a_dry_run_tells_the_tasks(tmp_path: Path) -> None:
    base_folder(tmp_path / "base")
    config = PrunerConfig(drop_layers=2, evaluation=EvaluationConfig(tasks=("mmlu", "quick")))
    _, steps = preview(str(tmp_path / "base"), config, tmp_path / "out", heal=False, push=None)
    told = dict(steps)["evaluate"]
    assert told == "original and pruned on 64 documents, and benchmark tasks: mmlu, quick"


def test_the_help_names_every_suite() -> None:
    help_text = TaskOptions.__annotations__["tasks"].__metadata__[0].help
    assert f"Suites: {', '.join(SUITES)}." in help_text


def test_paths_of_task_files_do_not_travel(tmp_path: Path) -> None:
    config = PrunerConfig(evaluation=EvaluationConfig(tasks=("x",), task_path=str(tmp_path / "my-tasks")))
    assert config.without_paths().evaluation.task_path == "my-tasks"
    assert PrunerConfig().without_paths().evaluation.task_path is None


def test_changed_task_files_are_noticed(tmp_path: Path) -> None:
    assert task_files(None) == []
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.yaml").write_text("task: a")
    before = task_files(str(tmp_path))
    assert [(name, size) for name, size, _ in before] == [("deep/a.yaml", 7)]
    os.utime(tmp_path / "deep" / "a.yaml", ns=(1, 1))
    assert task_files(str(tmp_path)) != before


def test_the_room_for_answers_is_read_as_the_harness_does() -> None:
    assert new_tokens({}) == 256
    assert new_tokens({"max_tokens": 7, "max_new_tokens": 9}) == 9
    assert new_tokens({"max_gen_toks": None, "max_completion_tokens": "3"}) == 3


def test_nothing_is_checked_without_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    check_tasks(EvaluationConfig(chat_template=True))


def test_a_missing_harness_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"'lm_eval', which is not installed.*pip install 'hf-prune\[eval\]'"):
        check_tasks(EvaluationConfig(tasks=("boolq",)))


@pytest.mark.slow
def test_the_harness_is_imported_only_where_tasks_are_run() -> None:
    code = (
        "import sys, hf_prune.pruner, hf_prune.run, hf_prune.evaluation.harness; assert 'lm_eval' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def result(task: str, value: float, **fields: object) -> TaskResult:
    settings: dict[str, object] = {
        "metric": "acc", "filter": "none", "standard_error": 0.01, "higher_is_better": True, "main": True,
        "num_fewshot": 0, "samples": 9, "limit": None, "version": "1", **fields,
    }  # fmt: skip
    return TaskResult(task=task, value=value, **settings)  # type: ignore[arg-type]


def test_the_table_shows_the_main_figures_of_what_was_asked_for() -> None:
    def model(label: str, *tasks: TaskResult) -> ModelEvaluation:
        return ModelEvaluation(label, 4, 10, 40, 50, "float32", (), None, (), None, tasks=tasks)

    original = model(
        "original",
        result("mmlu", 0.5, group=True),
        result("mmlu_stem", 0.4, group=True, parent="mmlu"),
        result("mmlu_anatomy", 0.4, parent="mmlu_stem"),
        result("piqa", 0.8, main=False),
        result("piqa", 0.75, metric="acc_norm", standard_error=None),
        result("gsm8k", 0.2, metric="exact_match", filter="strict-match"),
    )
    pruned = model("pruned", result("mmlu", 0.25, group=True, stability=0.625), original.tasks[4])
    lines = (line.partition("   ") for line in table(Evaluation((original, pruned), ENVIRONMENT)).splitlines())
    rows = {title: figures.split() for title, _, figures in lines}
    assert rows["mmlu, acc"] == ["0.5000", "±", "0.0100", "0.2500", "±", "0.0100", "(−50.0", "%)"]
    assert rows["mmlu, stability"] == ["0.6250"]
    assert rows["piqa, acc_norm"] == ["0.7500", "0.7500", "(+0.0", "%)"]
    assert rows["gsm8k, exact_match (strict-match)"] == ["0.2000", "±", "0.0100"]
    assert not {"mmlu_stem, acc", "mmlu_anatomy, acc", "piqa, acc", "piqa, stability"} & rows.keys()
