"""Stock tasks, unmodified, on questions from the loopback Hub: datasets of the real names in the real schemas."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from hf_prune import extras
from hf_prune.config import EvaluationConfig
from hf_prune.errors import DataError
from hf_prune.evaluation.harness import run_tasks
from hf_prune.evaluation.task_loading import check_tasks
from tests.evaluation.questions import COUNT, counted, rows_of, stock_tasks
from tests.evaluation.text import VOCAB, byte_tokenizer
from tests.tiny import tiny_model

pytestmark = pytest.mark.skipif(not extras.available("lm_eval"), reason="needs the extra 'eval'")


def add_dataset(hub, repo: str, task: str, folder: Path, *configs: str) -> None:
    """A dataset repo with the rows of a task as parquet, one file a split, the same in every config."""
    splits = rows_of(task)
    files = [{"split": split, "path": f"{split}.parquet"} for split in splits]
    front = yaml.safe_dump({"configs": [{"config_name": config, "data_files": files} for config in configs]})
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\n{front}---\n", encoding="utf-8")
    for split, rows in splits.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    hub.add_repo(repo, folder, repo_type="dataset")


def model_of():
    return tiny_model("llama", 4, vocab_size=VOCAB, max_position_embeddings=1024)


def test_stock_tasks_run_with_questions_from_the_hub(hub, tmp_path: Path) -> None:
    add_dataset(hub, "aps/super_glue", "boolq", tmp_path / "boolq", "boolq")
    add_dataset(hub, "cais/mmlu", "mmlu_anatomy", tmp_path / "mmlu", "anatomy")
    model, tokenizer = model_of(), byte_tokenizer()
    config = EvaluationConfig(tasks=("mmlu_anatomy", "boolq"), num_fewshot=2)
    results, answers = run_tasks(model, tokenizer, config)
    mmlu, boolq = results
    assert sum(counted(model, tokenizer, "mmlu_anatomy", shots=2)["acc"]) / COUNT == pytest.approx(mmlu.value)
    assert (mmlu.task, mmlu.dataset, mmlu.dataset_config, mmlu.split) == (
        "mmlu_anatomy", "cais/mmlu", "anatomy", "test",
    )  # fmt: skip
    assert (boolq.task, boolq.dataset, boolq.dataset_config, boolq.split) == (
        "boolq", "aps/super_glue", "boolq", "validation",
    )  # fmt: skip
    assert {r.num_fewshot for r in results} == {2} and {len(items) for items in answers.tasks.values()} == {COUNT}


def test_a_dataset_that_is_not_there_is_named(hub) -> None:
    with pytest.raises(DataError, match=r"questions of task 'piqa' cannot be had.*baber/piqa.*--task-path"):
        check_tasks(EvaluationConfig(tasks=("piqa",)))


@pytest.mark.slow
def test_the_suite_of_the_paper_with_all_subjects_of_mmlu(hub, tmp_path: Path) -> None:
    default = stock_tasks() / "mmlu" / "default"
    subjects = [yaml.safe_load(path.read_text())["dataset_name"] for path in default.glob("mmlu_*.yaml")]
    assert len(subjects) == 57
    add_dataset(hub, "cais/mmlu", "mmlu_anatomy", tmp_path / "mmlu", *subjects)
    add_dataset(hub, "aps/super_glue", "boolq", tmp_path / "boolq", "boolq")
    add_dataset(hub, "Rowan/hellaswag", "hellaswag", tmp_path / "hellaswag", "default")
    add_dataset(hub, "openai/gsm8k", "gsm8k", tmp_path / "gsm8k", "main")
    model, tokenizer = model_of(), byte_tokenizer()
    results, answers = run_tasks(model, tokenizer, EvaluationConfig(tasks=("uidl",), limit=1))
    asked_for = {r.task: r for r in results if r.main and r.parent is None}
    assert list(asked_for) == ["mmlu", "boolq", "hellaswag", "gsm8k"]
    assert [r.num_fewshot for r in asked_for.values()] == [5, 0, 0, 5]
    assert [r.metric for r in asked_for.values()] == ["acc", "acc", "acc_norm", "exact_match"]
    mmlu = asked_for["mmlu"]
    rights = [item.right for task, items in answers.tasks.items() if task.startswith("mmlu_") for item in items]
    assert mmlu.group and mmlu.samples == len(rights) == 57 and mmlu.value == pytest.approx(sum(rights) / 57)
    groups = {r.task for r in results if r.group}
    assert groups == {"mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"}
    assert {r.parent for r in results if r.task.startswith("mmlu_")} == groups
