"""Rows of the terminal's table for benchmark tasks."""

from collections.abc import Callable, Iterator, Sequence

from hf_prune.records import ModelEvaluation, TaskResult

Row = tuple[str, list[TaskResult | None], Callable[[TaskResult], float], Callable[[TaskResult], str]]
"""Title, each model's result, the value that changes are told of, and how a result is shown."""


def task_rows(models: Sequence[ModelEvaluation]) -> Iterator[Row]:
    """The main figure of every task and group that was asked for, and below it the stability where it was measured.

    Tasks of a group are in its figure and get no row.
    """
    shown = [r for m in models for r in m.tasks if r.main and r.parent is None]
    for task, metric, kind in dict.fromkeys((r.task, r.metric, r.filter) for r in shown):
        found = [
            next((r for r in m.tasks if (r.task, r.metric, r.filter) == (task, metric, kind)), None) for m in models
        ]
        title = f"{task}, {metric}" if kind == "none" else f"{task}, {metric} ({kind})"
        yield title, found, lambda r: r.value, _value
        stable = [r if r is not None and r.stability is not None else None for r in found]
        if any(stable):
            yield f"{task}, stability", stable, lambda r: r.stability or 0.0, lambda r: f"{r.stability:.4f}"


def _value(result: TaskResult) -> str:
    error = result.standard_error
    return f"{result.value:.4f}" if error is None else f"{result.value:.4f} ± {error:.4f}"
