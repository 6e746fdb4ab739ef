"""Benchmark tasks, run by lm-evaluation-harness on a model in memory."""

import dataclasses
import logging
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune.config import EvaluationConfig
from hf_prune.evaluation.containment import contained
from hf_prune.evaluation.stability import Answers, AnswerSheet, Item, spread, stabilities
from hf_prune.evaluation.suites import UIDL, normalised_loss
from hf_prune.evaluation.task_loading import Loaded, check_tasks, load_tasks
from hf_prune.figures import ModelEvaluation, TaskResult
from hf_prune.runner import evaluating
from hf_prune.selftext import model_limit

logger = logging.getLogger(__name__)

_QUOTED = ("acc_norm", "acc")
"""What tasks are quoted by, the first before the second: HellaSwag, PIQA and ARC by which answer is the likeliest per
character, MMLU, BoolQ and WinoGrande by which is the likeliest."""
_RESAMPLES = 1000
"""For standard errors that have no formula."""


def run_tasks(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    config: EvaluationConfig,
    *,
    original: Answers | None = None,
    progress: bool = False,
) -> tuple[tuple[TaskResult, ...], Answers]:
    """Run the tasks of a config, as the harness's own command does: its prompts, seeds and metrics.

    A question that is longer than the model, with its examples, loses its beginning, as in the harness; how many did
    is told and recorded. Random states are as before afterwards, and so is the model.

    The main metric of a task is `acc_norm` where it has one, else `acc`, else the first that it lists.

    Args:
        model: the causal LM.
        tokenizer: its tokenizer.
        config: names at least one task.
        original: what the original answered; None leaves the stability out.
        progress: whether to show bars.

    Returns:
        Every metric of every task, groups before their tasks, in the order asked for; and the answers to questions of
        multiple choice, for the stability of later models.

    Raises:
        MissingExtraError: lm-evaluation-harness is not installed.
        ConfigError: an unknown task, a task file that cannot be read, or a chat template that is not there.
        DataError: the questions of a task cannot be had, or answers don't fit the model.
        MeasureError: the original was asked other questions.
    """
    limit = model_limit(model.config)
    check_tasks(config, tokenizer, limit)
    loaded = load_tasks(config)
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.evaluator import evaluate

    from hf_prune.evaluation.scorer import Scorer

    # The harness puts the model in eval mode for good.
    with evaluating(model), contained(loading=False, progress=progress):
        scorer = Scorer(model, tokenizer, config.batch_size, limit)
        for task in loaded.tasks.values():
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        found = evaluate(
            lm=scorer,
            task_dict={"tasks": loaded.tasks, "groups": loaded.groups},
            limit=config.limit,
            bootstrap_iters=_RESAMPLES,
            log_samples=True,
            apply_chat_template=config.chat_template,
            fewshot_as_multiturn=True,
        )
    _tell_truncated(scorer.truncated, found["n-samples"], limit)
    answers = Answers({name: _items(name, task, found, scorer.answer_tokens) for name, task in _choices(loaded)})
    for task in loaded.tasks.values():
        task._instances = None  # prompts with all their examples: they would stay in memory with the tasks
    same = {} if original is None else stabilities(answers, original)
    return tuple(_results(loaded, found, same, scorer.truncated, config.limit)), answers


def add_tasks(
    figures: ModelEvaluation,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    config: EvaluationConfig,
    sheet: AnswerSheet,
    *,
    progress: bool = False,
) -> ModelEvaluation:
    """Add the tasks of a config to a model's other figures; with the suite `uidl` also its loss divided by log V.

    Args:
        figures: of the model.
        model: the causal LM.
        tokenizer: its tokenizer.
        config: what to measure; without tasks nothing is done.
        sheet: what the original answered; filled with this model's answers where it is empty.
        progress: whether to show bars.

    Raises:
        PruneError: see `run_tasks`.
    """
    if not config.tasks:
        return figures
    results, answers = run_tasks(model, tokenizer, config, original=sheet.answers, progress=progress)
    if sheet.answers is None:
        sheet.answers = answers
    if UIDL in config.tasks:
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        results += tuple(normalised_loss(text, vocabulary) for text in figures.perplexity[:1])
    return dataclasses.replace(figures, tasks=results)


def _choices(loaded: Loaded) -> Iterable[tuple[str, Any]]:
    return ((name, task) for name, task in loaded.tasks.items() if task.OUTPUT_TYPE == "multiple_choice")


def _items(name: str, task: Any, found: Mapping[str, Any], tokens: Mapping[tuple[str, str], int]) -> tuple[Item, ...]:
    """The answers to one task of multiple choice, in the order of its questions; none without an accuracy."""
    items = []
    for sample in found["samples"][name]:
        metric = _quoted(sample)
        if metric is None:
            return ()
        options = len(task.doc_to_choice(sample["doc"]))  # mutual information adds requests behind these
        asked = [tuple(texts[:2]) for texts in sample["arguments"][:options]]
        scores = [answered[0][0] for answered in sample["resps"][:options]]
        items.append(
            Item(sample["doc_hash"][:16], bool(sample[metric]), spread(scores, [tokens[texts] for texts in asked]))
        )
    return tuple(items)


def _quoted(metrics: Iterable[str]) -> str | None:
    return next((name for name in _QUOTED if name in set(metrics)), None)


def _results(
    loaded: Loaded,
    found: Mapping[str, Any],
    same: Mapping[str, float],
    truncated: Mapping[str, set[int]],
    limit: int | None,
) -> Iterator[TaskResult]:
    for name, parent in loaded.parents.items():
        values = found["results"].get(name, {})
        keys = [tuple(key.split(",", 1)) for key in values if "," in key and "_stderr," not in key]
        main = _main(keys)
        group = name in loaded.groups
        tasks = [name] if not group else [task.task_name for task in loaded.groups[name].get_all_tasks()]
        shots = {found["n-shot"][task] for task in tasks}
        examples = shots.pop() if len(shots) == 1 else None
        known = [same[task] for task in tasks if task in same]
        for metric, kind in keys:
            error = values.get(f"{metric}_stderr,{kind}")
            better = found["higher_is_better"].get(name, {}).get(metric)
            quoted = (metric, kind) == main
            yield TaskResult(
                task=name,
                metric=metric,
                filter=kind,
                value=float(values[f"{metric},{kind}"]),
                standard_error=None if error in (None, "N/A") else float(error),
                higher_is_better=better is not False,
                main=quoted,
                num_fewshot=examples,
                samples=sum(found["n-samples"][task]["effective"] for task in tasks),
                limit=limit,
                version=str(found["versions"].get(name)),
                group=group,
                stability=statistics.fmean(known) if quoted and len(known) == len(tasks) else None,
                truncated=sum(len(truncated.get(task, ())) for task in tasks),
                parent=parent,
                **({} if group else _data(loaded.tasks[name])),
            )


def _main(keys: list[tuple[str, ...]]) -> tuple[str, ...] | None:
    quoted = _quoted(metric for metric, _ in keys)
    return next((key for key in keys if quoted in (None, key[0])), None)


def _data(task: Any) -> dict[str, str | None]:
    """Where a task's questions are from; a folder shrinks to its name."""
    place, settings = task.config.dataset_path, task.config
    if place is not None and Path(place).exists():
        place = Path(place).name
    split = settings.test_split if settings.test_split is not None else settings.validation_split
    return {"dataset": place, "dataset_config": settings.dataset_name, "split": split}


def _tell_truncated(truncated: Mapping[str, set[int]], asked: Mapping[str, Any], limit: int) -> None:
    for task, questions in truncated.items():
        logger.warning(
            "task '%s': %d of %d questions are longer than the model's %d tokens with their examples; their beginning "
            "was cut off, as the harness does, and figures suffer. Fewer examples (num_fewshot) may fit",
            task,
            len(questions),
            asked[task]["effective"],
            limit,
        )
