"""Benchmark tasks on a card: which results are quoted, their table, and what they rest on."""

from collections.abc import Callable, Sequence

from hf_prune.errors import ConfigError
from hf_prune.markdown import Markdown, bullets, one_line, table
from hf_prune.records import Evaluation, ModelEvaluation, TaskResult

Key = tuple[str, str, str]
"""Task, metric and filter."""


def key(result: TaskResult) -> Key:
    """What two models' results must share to stand in one row."""
    return result.task, result.metric, result.filter


def quoted(evaluation: Evaluation) -> tuple[list[Key], list[Key]]:
    """The main figures of the tasks.

    Args:
        evaluation: with the tasks of each model.

    Returns:
        What was asked for, and the parts of groups.
    """
    results = [r for m in evaluation.models for r in m.tasks if r.main]
    asked, parts = ([key(r) for r in results if (r.parent is not None) == part] for part in (False, True))
    return list(dict.fromkeys(asked)), list(dict.fromkeys(parts))


def find(model: ModelEvaluation, wanted: Key) -> TaskResult | None:
    """One model's result of a row; None where it has none."""
    return next((r for r in model.tasks if key(r) == wanted), None)


def label(result: TaskResult) -> str:
    """What a row or a bar is called: the task, its metric, and how it was asked."""
    return f"{one_line(result.task, 100)} ({setting(result)})"


def setting(result: TaskResult) -> str:
    """Metric, filter, examples, and the limit where not all questions were asked."""
    parts = [one_line(result.metric, 60)]
    if result.filter != "none":
        parts.append(one_line(result.filter, 60))
    if result.num_fewshot is not None:
        parts.append(f"{result.num_fewshot}-shot")
    if result.limit is not None:
        parts.append(f"only the first {result.limit} questions")
    return ", ".join(parts)


Show = Callable[[float, float | None], str]
"""Value and standard error as text."""


def tasks_table(evaluation: Evaluation, keys: Sequence[Key], show: Show) -> Markdown:
    """One row a task, one column a model, with the stability of the answers below where it was measured.

    Args:
        evaluation: with the tasks of each model.
        keys: rows.
        show: value and standard error as text.
    """
    return table(["", *[m.label for m in evaluation.models]], tasks_rows(evaluation, keys, show))


def tasks_rows(evaluation: Evaluation, keys: Sequence[Key], show: Show) -> list[list[str]]:
    """The rows of `tasks_table` as plain text: the task's name, and one cell a model."""
    rows = []
    for wanted in keys:
        found = [find(m, wanted) for m in evaluation.models]
        first = next(r for r in found if r is not None)
        arrow = "↑" if first.higher_is_better else "↓"
        cells = ["not measured" if r is None else show(r.value, r.standard_error) for r in found]
        rows.append([f"{label(first)} {arrow}", *cells])
        stable = [r.stability if r is not None else None for r in found]
        if any(s is not None for s in stable):
            rows.append(
                [f"Stability, {one_line(first.task, 100)} ↑", *["–" if s is None else show(s, None) for s in stable]]
            )
    return rows


def notes(evaluation: Evaluation, chat_template: bool) -> Markdown:
    """How the tasks were run."""
    results = [r for m in evaluation.models for r in m.tasks]
    found = [
        "Benchmarks: EleutherAI's lm-evaluation-harness"
        + (", questions in the tokenizer's chat template" if chat_template else "")
        + ". ± is the harness's standard error."
    ]
    limits = sorted({r.limit for r in results if r.limit is not None})
    if limits:
        found.append(
            f"Not all questions were asked: at most {', '.join(map(str, limits))} of each task. Such figures show "
            "whether something broke; they can't be compared with published ones."
        )
    if any(r.stability is not None for r in results):
        found.append(
            "Stability: share of the questions that the model and the original both answer rightly or both wrongly, "
            "weighted by how far apart the original put the options (LLM-Streamline, arXiv 2403.19135)."
        )
    return bullets(found)


def check_same_questions(evaluation: Evaluation) -> None:
    """Refuse to put results side by side that come from different questions.

    Raises:
        ConfigError: names the task and the models.
    """
    seen: dict[Key, tuple[str, tuple[object, ...]]] = {}
    for model in evaluation.models:
        for result in model.tasks:
            asked = asked_alike(result)
            other, before = seen.setdefault(key(result), (model.label, asked))
            if before != asked:
                raise ConfigError(
                    f"the task {one_line(result.task)!r} was asked differently of the models {other} and "
                    f"{one_line(model.label)} (examples, limit, samples, version or dataset); figures side by side "
                    "need the same questions. Evaluate all of them again"
                )


def asked_alike(result: TaskResult) -> tuple[object, ...]:
    """What must agree for two results of one row to be comparable."""
    return (
        result.num_fewshot,
        result.limit,
        result.samples,
        result.version,
        result.dataset,
        result.dataset_config,
        result.split,
    )
