"""`evaluate` and `compare`: figures of one model, and of any two."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_prune.cli.configs import continued, evaluation_config
from hf_prune.cli.console import Console
from hf_prune.cli.options import ConsoleOptions, EvaluationOptions, LoadOptions, TaskOptions, grouped

Model = Annotated[str, typer.Argument(help="Folder that hf-prune wrote, or any model.", metavar="MODEL")]
Record = Annotated[
    Path | None, typer.Option("--output", "-o", help="File for the record.", metavar="FILE.json", dir_okay=False)
]


@grouped
def evaluate_command(
    model: Model,
    *,
    original: Annotated[str | None, typer.Option(help="The model that was pruned; default: from the records.")] = None,
    output: Record = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model of the Hub.")] = None,
    data: EvaluationOptions,
    tasks: TaskOptions,
    loading: LoadOptions,
    talk: ConsoleOptions,
) -> None:
    """Measure a finished folder against its original, and write record and card anew; or any other model alone."""
    from hf_prune.errors import ConfigError
    from hf_prune.output import OUTPUT_FILE
    from hf_prune.saving import RECORDS

    console = Console(talk.quiet, talk.json)
    _check(output)
    if (Path(model) / RECORDS / OUTPUT_FILE).is_file():
        if revision is not None:
            raise ConfigError(
                f"--revision {revision!r} of the folder '{model}': only models on the Hub have revisions"
            )
        _evaluate_finished(console, Path(model), original, output, data, tasks, loading)
        return
    if original is not None:
        raise ConfigError(
            f"--original is for folders that hf-prune has finished, and '{model}' is none; to hold two models against "
            f"each other: hf-prune compare {original} {model}"
        )
    _evaluate_alone(console, model, output, revision, data, tasks, loading)


def _evaluate_finished(
    console: Console,
    folder: Path,
    original: str | None,
    output: Path | None,
    data: EvaluationOptions,
    tasks: TaskOptions,
    loading: LoadOptions,
) -> None:
    from hf_prune.evaluation import table
    from hf_prune.output import update_evaluation
    from hf_prune.pruner import Pruner

    config = continued(folder, "evaluation", data, tasks=tasks)
    pruner = Pruner.from_pruned(folder, config, original=original, progress=console.progress, **loading.load_kwargs())
    evaluation = update_evaluation(
        folder, pruner.config, pruner.evaluate(), tokens=tuple(pruner.texts.sampled_files())
    )
    _write(output, evaluation)
    console.show(table(evaluation))
    facts: dict[str, Any] = {"record": str(output or folder / "pruning" / "evaluation.json")}
    console.done(f"Evaluated {folder}", facts | ({"evaluation": evaluation.to_dict()} if console.as_json else {}))


def _evaluate_alone(
    console: Console,
    model: str,
    output: Path | None,
    revision: str | None,
    data: EvaluationOptions,
    tasks: TaskOptions,
    loading: LoadOptions,
) -> None:
    from hf_prune.config import PrunerConfig
    from hf_prune.evaluation import table
    from hf_prune.subject import LABEL, find, measure_alone

    config = evaluation_config(data, tasks)
    subject = find(model, revision=revision, **loading.load_kwargs())
    if (subject.folder / PrunerConfig.CONFIG_NAME).is_file():
        console.say(
            f"'{model}' was made by hf-prune; here its weights are measured as any model's are. To hold it against "
            f"what its card claims: hf-prune verify {model}"
        )
    found = measure_alone(subject, config, token=loading.token, progress=console.progress)
    _write(output, found)
    console.show(table(found.evaluation, base=LABEL))
    facts: dict[str, Any] = {
        "revision": found.model.revision,
        "record": None if output is None else str(output),
    }
    console.done(f"Evaluated {found.model.id}", found.to_dict() if console.as_json else facts)


@grouped
def compare_command(
    a: Annotated[str, typer.Argument(help="Hub id or folder; changes are relative to it.", metavar="A")],
    b: Annotated[str, typer.Argument(help="Hub id or folder.", metavar="B")],
    *,
    output: Record = None,
    revision_a: Annotated[str | None, typer.Option(help="Branch, tag or commit of A.")] = None,
    revision_b: Annotated[str | None, typer.Option(help="Branch, tag or commit of B.")] = None,
    data: EvaluationOptions,
    tasks: TaskOptions,
    loading: LoadOptions,
    talk: ConsoleOptions,
) -> None:
    """Measure any two models on the same text, side by side."""
    from hf_prune.compare import compare

    console = Console(talk.quiet, talk.json)
    _check(output)
    found = compare(
        a,
        b,
        evaluation_config(data, tasks),
        revisions=(revision_a, revision_b),
        progress=console.progress,
        **loading.load_kwargs(),
    )
    _write(output, found)
    console.show(found.table())
    facts = {"record": None if output is None else str(output)}
    one, other = found.models
    console.done(f"Compared {one.id} with {other.id}", found.to_dict() if console.as_json else facts)


def _check(output: Path | None) -> None:
    """Refuse a file that cannot be written, before any work."""
    from hf_prune.errors import OutputError

    if output is None:
        return
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    reason = "is a file" if not parent.is_dir() else None if os.access(parent, os.W_OK) else "is not writable"
    if reason is not None:
        raise OutputError(f"the record '{output}' cannot be written: '{parent}' {reason}. Name another (--output)")


def _write(output: Path | None, record: Any) -> None:
    from hf_prune import serial

    if output is not None:
        serial.write_text(output, serial.dumps(record.to_dict()))
