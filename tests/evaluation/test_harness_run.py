"""Benchmark tasks in a whole run: early refusals, stability beside the original, one measurement of each model."""

from pathlib import Path

import pytest

from hf_prune import extras, serial
from hf_prune.errors import ConfigError, DataError
from hf_prune.evaluation.stability import Answers
from hf_prune.pruner import Pruner
from hf_prune.run import run
from tests.cli.support import call, done, fast, planted, recipe, recipe_file
from tests.evaluation.questions import COUNT, write_task

pytestmark = pytest.mark.skipif(not extras.available("lm_eval"), reason="needs the extra 'eval'")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-base"
    planted(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder, "winogrande")
    return str(folder)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fast(monkeypatch)
    monkeypatch.chdir(tmp_path)


def test_a_run_compares_the_answers_with_the_originals(base: Path, tasks: str) -> None:
    settings = {"tasks": ("winogrande_local",), "task_path": tasks, "limit": 5}
    result = run(base, recipe(evaluation=settings, layers=(1, 2, 5)), "out", progress=False)
    assert result.evaluation is not None
    original, pruned = (model.tasks for model in result.evaluation.models)
    assert [r.samples for r in original] == [5] and [r.stability for r in original] == [None]
    assert pruned[0].stability is not None and 0 <= pruned[0].stability <= 1
    assert result.finished.config.evaluation.task_path == Path(tasks).name
    assert tasks not in "".join(path.read_text() for path in Path("out/pruning").glob("*.json"))


def test_answers_are_kept_and_each_model_is_asked_once(base: Path, tasks: str, monkeypatch) -> None:
    config = recipe(evaluation={"tasks": ("winogrande_local",), "task_path": tasks})
    first = Pruner.from_pretrained(base, config, run_folder="work", progress=False)
    first.evaluate()
    kept = serial.from_dict(Answers, serial.read_json(Path("work/reference-answers.json")))
    assert len(kept.tasks["winogrande_local"]) == COUNT

    again = Pruner.from_pretrained(base, config, run_folder="work", progress=False)
    again.prune()
    monkeypatch.setattr("hf_prune.evaluation.stage.evaluate_original", None)  # measuring it again would fail
    original, pruned = again.evaluate().models
    assert pruned.tasks[0].value == original.tasks[0].value  # the layers that went do nothing
    assert pruned.tasks[0].stability == pytest.approx(1.0)


def test_changed_task_files_are_measured_again(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    write_task(folder, "winogrande")
    config = recipe(evaluation={"tasks": ("winogrande_local",), "task_path": str(folder)})
    Pruner.from_pretrained(base, config, run_folder="work", progress=False).evaluate()
    write_task(folder, "winogrande", metadata={"version": 7.5})
    again = Pruner.from_pretrained(base, config, run_folder="work", progress=False)
    assert again.evaluate().models[0].tasks[0].version == "7.5"


def test_bad_tasks_are_refused_before_any_work(base: Path, tasks: str, tmp_path: Path) -> None:
    unknown = recipe(evaluation={"tasks": ("winogrand_local",), "task_path": tasks})
    with pytest.raises(ConfigError, match="The nearest: winogrande_local"):
        run(base, unknown, "out", progress=False)
    write_task(tmp_path / "long", "gsm8k")
    long = recipe(evaluation={"tasks": ("gsm8k_local",), "task_path": str(tmp_path / "long"), "num_fewshot": 0})
    with pytest.raises(DataError, match="lets the model write 256 tokens, and the model takes 64"):
        run(base, long, "out", progress=False)
    with pytest.raises(DataError, match="the model takes 64"):
        Pruner.from_pretrained(base, long, progress=False).evaluate()
    assert not Path("out").exists() and not Path("out.run/evaluation-original.json").exists()


def test_the_command_line_runs_tasks(base: Path, tasks: str) -> None:
    words = ["run", base, "--config", recipe_file(Path("r")), "--output", "out", "--tasks", "winogrande_local"]
    shown = done(*words, "--limit", "4", "--num-fewshot", "1", "--task-path", tasks).out
    row = next(line for line in shown.splitlines() if line.startswith("winogrande_local, acc"))
    assert row.count("±") == 2
    assert any(line.startswith("winogrande_local, stability") for line in shown.splitlines())
    failed = call(*words[:-2], "--tasks", "x", "--task-path", "nowhere", "--output", "new").failed()
    assert "task_path='nowhere' is no folder" in failed
