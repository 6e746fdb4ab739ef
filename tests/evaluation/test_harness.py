"""Stock tasks of lm-evaluation-harness on made-up rows in the real schemas, against our own count of the answers."""

import dataclasses
import logging
import math
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_prune import extras
from hf_prune.config import EvaluationConfig
from hf_prune.errors import ConfigError, DataError, MeasureError
from hf_prune.evaluation.harness import run_tasks
from hf_prune.evaluation.stability import stability
from hf_prune.evaluation.task_loading import check_tasks
from tests.evaluation.questions import (
    ANSWERED,
    COUNT,
    counted,
    greedy,
    log_likelihood,
    options_of,
    rows_of,
    write_task,
)
from tests.evaluation.text import VOCAB, byte_tokenizer
from tests.tiny import tiny_model

pytestmark = pytest.mark.skipif(not extras.available("lm_eval"), reason="needs the extra 'eval'")

CHOICES = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "mmlu_anatomy")


def model_of(seed: int = 0, limit: int = 1024):
    return tiny_model("llama", 4, seed, vocab_size=VOCAB, max_position_embeddings=limit)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tasks")
    for task in CHOICES:
        write_task(folder, task)
    return str(folder)


def asked(tasks: str, *names: str, **settings) -> EvaluationConfig:
    return EvaluationConfig(tasks=tuple(f"{n}_local" for n in names), task_path=tasks, batch_size=3, **settings)


@pytest.fixture(scope="module")
def ran(tasks: str):
    return run_tasks(model_of(), byte_tokenizer(), asked(tasks, *CHOICES))


@pytest.mark.parametrize("task", CHOICES)
def test_accuracy_is_what_we_count(ran, task: str) -> None:
    results, answers = ran
    expected = counted(model_of(), byte_tokenizer(), task)
    found = {r.metric: r for r in results if r.task == f"{task}_local"}
    for metric, result in found.items():
        share = sum(expected[metric]) / COUNT
        assert result.value == pytest.approx(share)
        assert result.standard_error == pytest.approx(math.sqrt(share * (1 - share) / (COUNT - 1)))
        assert (result.samples, result.num_fewshot, result.limit, result.filter) == (COUNT, 0, None, "none")
        assert (result.dataset, result.group, result.parent, result.truncated) == ("json", False, None, 0)
    main = "acc_norm" if task in ("piqa", "hellaswag", "arc_easy") else "acc"
    assert [metric for metric, result in found.items() if result.main] == [main]
    items = answers.tasks[f"{task}_local"]
    assert [item.right for item in items] == expected[main]
    assert [item.spread for item in items] == pytest.approx(expected["spread"], rel=1e-4, abs=1e-5)


def test_the_questions_are_not_all_answered_alike(ran) -> None:
    """Else the counts above would hold of a harness that never looks."""
    assert all(0 < sum(i.right for i in items) < COUNT for items in ran[1].tasks.values())


def test_splits_and_versions_are_the_tasks_own(ran) -> None:
    found = {r.task: r for r in ran[0]}
    assert found["arc_easy_local"].split == "test" and found["boolq_local"].split == "validation"
    assert found["boolq_local"].version == "2.0" and found["piqa_local"].version == "1.0"
    assert list(found) == [f"{task}_local" for task in CHOICES]


def test_examples_come_from_mmlus_dev_split(tasks: str) -> None:
    model = model_of()
    results, answers = run_tasks(model, byte_tokenizer(), asked(tasks, "mmlu_anatomy", num_fewshot=5))
    expected = counted(model, byte_tokenizer(), "mmlu_anatomy", shots=5)
    assert [item.right for item in answers.tasks["mmlu_anatomy_local"]] == expected["acc"]
    assert [i.spread for i in answers.tasks["mmlu_anatomy_local"]] == pytest.approx(
        expected["spread"], rel=1e-4, abs=1e-5
    )
    assert results[0].num_fewshot == 5


def test_a_limit_takes_the_first_questions(tasks: str, ran) -> None:
    results, answers = run_tasks(model_of(), byte_tokenizer(), asked(tasks, "boolq", limit=2))
    assert answers.tasks["boolq_local"] == ran[1].tasks["boolq_local"][:2]
    assert (results[0].samples, results[0].limit) == (2, 2)


def test_stability_of_another_model(tasks: str, ran) -> None:
    results, answers = run_tasks(model_of(1), byte_tokenizer(), asked(tasks, *CHOICES), original=ran[1])
    for result in results:
        if result.main:
            items, original = answers.tasks[result.task], ran[1].tasks[result.task]
            weights = [math.exp(item.spread) for item in original]
            same = sum(w for w, a, b in zip(weights, items, original, strict=True) if a.right == b.right)
            assert result.stability == pytest.approx(same / sum(weights))
        else:
            assert result.stability is None
    assert 0 < min(r.stability for r in results if r.main) < 1
    assert stability("t", ran[1].tasks["boolq_local"], ran[1].tasks["boolq_local"]) == pytest.approx(1.0)
    with pytest.raises(MeasureError, match="the original was asked 6 questions, the model 2"):
        run_tasks(model_of(1), byte_tokenizer(), asked(tasks, "boolq", limit=2), original=ran[1])


def digits_first(seed: int = 0):
    """A model that is fond of digits, so that some of what it writes is a number."""
    model, tokenizer = model_of(seed), byte_tokenizer()
    with torch.no_grad():
        model.lm_head.weight[[tokenizer.convert_tokens_to_ids(d) for d in "0123456789"]] *= 3
    return model, tokenizer


def test_written_answers_are_read_by_both_filters(tmp_path: Path) -> None:
    model, tokenizer = digits_first()
    rows, written = [], []
    for i, row in enumerate(ANSWERED["gsm8k"]):
        text = greedy(model, tokenizer, f"Question: {row['question']}\nAnswer:", 12, lambda t: "Question:" in t)
        numbers = [a or b for a, b in re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)]
        written.append(numbers[-1] if numbers else None)
        rows.append({**row, "answer": f"Some steps. #### {written[-1] if i % 2 else 'none'}"})
    right = sum(1 for i, number in enumerate(written) if i % 2 and number is not None)
    assert right > 0
    options = {"until": ["Question:"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 12}
    write_task(tmp_path, "gsm8k", {"train": rows, "test": rows}, generation_kwargs=options)
    results, answers = run_tasks(model, tokenizer, asked(str(tmp_path), "gsm8k", num_fewshot=0))
    found = {r.filter: r for r in results}
    assert found["flexible-extract"].value == pytest.approx(right / COUNT)
    assert found["strict-match"].value == 0.0
    assert found["strict-match"].main and not found["flexible-extract"].main
    assert {r.metric for r in results} == {"exact_match"} and answers.tasks == {}


def test_a_group_is_the_mean_of_its_tasks(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    write_task(folder, "boolq")
    write_task(folder, "winogrande", {s: rows[:4] for s, rows in rows_of("winogrande").items()})
    (folder / "both.yaml").write_text(
        "group: both\ntask: [boolq_local, winogrande_local]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\nmetadata: {version: 3}\n"
    )
    config = EvaluationConfig(tasks=("both",), task_path=str(folder))
    results, answers = run_tasks(model_of(), byte_tokenizer(), config)
    group, *parts = results
    rights = [item.right for items in answers.tasks.values() for item in items]
    assert group.group and group.task == "both" and group.value == pytest.approx(sum(rights) / 10)
    assert (group.samples, group.version, group.parent, group.dataset) == (10, "3", None, None)
    assert {part.parent for part in parts} == {"both"} and [part.samples for part in parts] == [6, 4]
    again, _ = run_tasks(model_of(1), byte_tokenizer(), config, original=answers)
    assert again[0].stability == pytest.approx((again[1].stability + again[2].stability) / 2)


def test_surroundings_are_as_before(tasks: str, caplog: pytest.LogCaptureFixture, capfd) -> None:
    model, tokenizer = model_of().train(), byte_tokenizer(pad=False)
    config = model.generation_config.to_dict()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    run_tasks(model, tokenizer, asked(tasks, "boolq", limit=1))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert tokenizer.pad_token is None and model.generation_config.to_dict() == config and model.training
    assert not {"HF_XET_HIGH_PERFORMANCE", "DISABLE_MULTIPROC"} & os.environ.keys()
    assert capfd.readouterr() == ("", "")
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_questions_longer_than_the_model_are_counted(tasks: str, caplog: pytest.LogCaptureFixture) -> None:
    lengths = []
    for row in ANSWERED["boolq"]:
        texts, _, _ = options_of("boolq", row)
        lengths.append(max(len(byte_tokenizer()(a + b)["input_ids"]) for a, b in texts))
    limit = sorted(lengths)[3] - 1  # one more token than the limit fits: the last is not read
    long = sum(length > limit + 1 for length in lengths)
    assert 0 < long < COUNT
    with caplog.at_level(logging.WARNING, logger="hf_prune"):
        results, _ = run_tasks(model_of(limit=limit), byte_tokenizer(), asked(tasks, "boolq"))
    assert results[0].truncated == long
    assert f"task 'boolq_local': {long} of 6 questions are longer than the model's {limit} tokens" in caplog.text


def test_an_answer_longer_than_the_model_is_refused(tasks: str) -> None:
    with pytest.raises(DataError, match=r"task 'piqa_local', question \d: an answer of \d+ tokens.*1 to 16"):
        run_tasks(model_of(limit=16), byte_tokenizer(), asked(tasks, "piqa"))


def test_tasks_that_write_more_than_the_model_takes_are_refused_early(tmp_path: Path) -> None:
    write_task(tmp_path, "gsm8k")
    with pytest.raises(DataError, match=r"'gsm8k_local' lets the model write 256 tokens, and the model takes 256"):
        check_tasks(asked(str(tmp_path), "gsm8k", num_fewshot=0), limit=256)


def test_unknown_tasks_are_told_with_the_nearest(tasks: str) -> None:
    with pytest.raises(ConfigError, match=r"suite 'boolq_locl'\. The nearest: boolq_local, .*Suites: uidl, slicegpt"):
        check_tasks(EvaluationConfig(tasks=("boolq_locl",), task_path=tasks))
    with pytest.raises(ConfigError, match=r"suite 'slicegtp'\. The nearest: slicegpt"):
        check_tasks(EvaluationConfig(tasks=("slicegtp",), task_path=tasks))


def test_task_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    config = EvaluationConfig(tasks=("x",), task_path=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"task_path='.*nowhere' is no folder"):
        check_tasks(config)
    (tmp_path / "broken.yaml").write_text("task: [x\n")
    with pytest.raises(ConfigError, match=r"task file '.*broken\.yaml' cannot be read: .*line 2"):
        check_tasks(dataclasses.replace(config, task_path=str(tmp_path)))
    (tmp_path / "broken.yaml").write_text("task: x\ninclude: missing.yaml\n")
    with pytest.raises(ConfigError, match=r"task file '.*broken\.yaml' cannot be read: .*missing\.yaml"):
        check_tasks(dataclasses.replace(config, task_path=str(tmp_path)))


def test_questions_that_cannot_be_had_are_told(tmp_path: Path) -> None:
    write_task(tmp_path, "boolq")
    (tmp_path / "boolq-validation.jsonl").unlink()
    with pytest.raises(DataError, match=r"'boolq_local' cannot be had.*boolq-validation\.jsonl.*--task-path"):
        check_tasks(asked(str(tmp_path), "boolq"))
    write_task(tmp_path, "boolq", {"train": ANSWERED["boolq"]})
    with pytest.raises(DataError, match=r"'boolq_local' cannot be made .*boolq-train\.jsonl.*KeyError: 'validation'"):
        check_tasks(asked(str(tmp_path), "boolq"))
    write_task(tmp_path, "boolq", {"train": ANSWERED["piqa"], "validation": ANSWERED["piqa"]})
    with pytest.raises(DataError, match=r"'boolq_local' cannot be made .*passage"):
        check_tasks(asked(str(tmp_path), "boolq"))


def test_more_examples_than_there_are_is_refused(tasks: str) -> None:
    with pytest.raises(DataError, match=r"'mmlu_anatomy_local' has 5 examples and num_fewshot=6 asks for more"):
        check_tasks(asked(tasks, "mmlu_anatomy", num_fewshot=6))


def test_a_chat_template_that_is_not_there_is_refused(tasks: str) -> None:
    with pytest.raises(ConfigError, match="chat_template=True, but the tokenizer has no chat template"):
        check_tasks(asked(tasks, "boolq", chat_template=True), byte_tokenizer())


def test_questions_go_through_the_chat_template(tasks: str) -> None:
    """The template puts another end after the question, and answers follow without the space."""
    tokenizer, model = byte_tokenizer(), model_of()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}!"
    _, answers = run_tasks(model, tokenizer, asked(tasks, "boolq", chat_template=True))
    for row, item in zip(ANSWERED["boolq"], answers.tasks["boolq_local"], strict=True):
        prompt = options_of("boolq", row)[0][0][0]
        scores = [log_likelihood(model, tokenizer, f"<user>{prompt}!", option)[0] for option in ("no", "yes")]
        assert item.right == ((scores[1] > scores[0]) == bool(row["label"]))


@pytest.mark.slow
def test_figures_are_those_of_the_harness_itself(tasks: str) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names, shots = [f"{task}_local" for task in CHOICES], 2
    own, _ = run_tasks(model_of(), byte_tokenizer(), asked(tasks, *CHOICES, num_fewshot=shots))
    found = simple_evaluate(
        model=HFLM(pretrained=model_of(), tokenizer=byte_tokenizer()),
        tasks=names,
        num_fewshot=shots,
        task_manager=TaskManager(include_path=tasks),
    )["results"]
    for result in own:
        assert result.value == found[result.task][f"{result.metric},{result.filter}"]
        assert result.standard_error == found[result.task][f"{result.metric}_stderr,{result.filter}"]
    assert {r.task for r in own} == set(names)
