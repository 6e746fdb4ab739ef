"""`run` and `demo`: the whole job."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_prune.cli.configs import default_output, make_config
from hf_prune.cli.console import Console, rows
from hf_prune.cli.options import (
    ConsoleOptions,
    DataOptions,
    FileOptions,
    HealOptions,
    ModelOptions,
    PushOptions,
    RecipeOptions,
    SliceOptions,
    TaskOptions,
    grouped,
)
from hf_prune.config import PrunerConfig
from hf_prune.records import Evaluation, Healing, Plan

Model = Annotated[str, typer.Argument(help="Hub id or folder.", metavar="MODEL")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="New or empty folder. Default: NAME-pruned.")]


@grouped
def run_command(
    model: Model,
    *,
    output: Output = None,
    heal: Annotated[bool, typer.Option("--heal", help="Heal after pruning: LoRA / QLoRA, or --heal-method.")] = False,
    push: Annotated[str | None, typer.Option(help="Repo to push the result to.", metavar="REPO")] = None,
    evaluate: Annotated[bool, typer.Option(help="Measure original, pruned and healed model.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    recipe: RecipeOptions,
    slicing: SliceOptions,
    data: DataOptions,
    tasks: TaskOptions,
    healing: HealOptions,
    loading: ModelOptions,
    files: FileOptions,
    pushing: PushOptions,
    talk: ConsoleOptions,
) -> None:
    """Prune a model from end to end: measure, plan, prune, heal, evaluate, card, push.

    A killed run goes on where it was when the same command is given again.
    """
    console = Console(talk.quiet, talk.json)
    config = make_config(recipe, data, healing, loading.base_model, loading.token, slicing, tasks)
    folder = output or default_output(model)
    if dry_run:
        _dry_run(console, model, config, folder, heal, evaluate, push, pushing, loading, files)
        return
    load_kwargs = {**loading.load_kwargs(), **files.memory_kwargs()}
    _run(
        console, model, config, folder, heal, evaluate, push, pushing.push_kwargs(), load_kwargs, files.max_shard_size
    )


@grouped
def demo_command(
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="New or empty folder.")] = Path("demo-output"),
    push: Annotated[str | None, typer.Option(help="Repo to push the result to.", metavar="REPO")] = None,
    talk: ConsoleOptions,
) -> None:
    """Prune and heal the small real model that comes with this package: 4 of its 12 layers go. Needs no network."""
    from hf_prune import demo

    console = Console(talk.quiet, talk.json)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    kwargs: dict[str, Any] = {"device_map": None}
    _run(console, str(demo.model_folder()), demo.config(), output, True, True, push, {}, kwargs)


def _run(
    console: Console,
    model: str,
    config: PrunerConfig,
    folder: Path,
    heal: bool,
    evaluate: bool,
    push: str | None,
    push_kwargs: dict[str, Any],
    load_kwargs: dict[str, Any],
    max_shard_size: str = "5GB",
) -> None:
    from hf_prune.evaluation import table
    from hf_prune.run import run

    def tell(plan: Plan) -> None:
        console.say(f"Plan: {plan.describe()}")
        console.say(f"  {plan.reason}")

    result = run(
        model,
        config,
        folder,
        heal=heal,
        evaluate=evaluate,
        push=push,
        push_kwargs=push_kwargs,
        on_plan=tell,
        progress=console.progress,
        max_shard_size=max_shard_size,
        **load_kwargs,
    )
    if result.evaluation is not None:
        console.show(table(result.evaluation))
    plan, healing = result.finished.plan, result.finished.healing
    recovered = result.evaluation.recovered if result.evaluation is not None else None
    console.done(
        f"Pruned {plan.model.id}: {plan.describe()}",
        {
            "folder": str(result.folder),
            "card": str(result.folder / "README.md"),
            "records": str(result.folder / "pruning"),
            "dropped": list(plan.dropped) or None,
            **_widths(plan),
            **({} if healing is None else _healed(healing, result.evaluation)),
            "recovered": f"{recovered:.1%} of the lost nats per token" if recovered is not None else None,
            "reload check": result.finished.reload_level,
            "pushed": result.push.url if result.push is not None else None,
            "commit": result.push.commit if result.push is not None else None,
        },
    )


def _healed(healing: Healing, evaluation: Evaluation | None) -> dict[str, Any]:
    from hf_prune.card_healing import outcome

    facts = {"healing tokens": healing.tokens, "healing seconds": round(healing.seconds)}
    return facts | outcome(healing, evaluation) | {"healing stopped": healing.stopped}


def _widths(plan: Plan) -> dict[str, Any]:
    if plan.slicing is None:
        return {}
    cut = plan.slicing
    return {
        "widths": list(cut.widths),
        "parameters": f"{cut.parameters:,} of {cut.original_parameters:,} ({-cut.saved:+.1%})",
    }


def _dry_run(
    console: Console,
    model: str,
    config: PrunerConfig,
    folder: Path,
    heal: bool,
    evaluate: bool,
    push: str | None,
    pushing: PushOptions,
    loading: ModelOptions,
    files: FileOptions,
) -> None:
    from hf_prune.dry_run import preview

    facts, steps = preview(
        model,
        config,
        folder,
        heal=heal,
        evaluate=evaluate,
        push=push,
        push_kwargs=pushing.push_kwargs(),
        **files.memory_kwargs(),
        max_shard_size=files.max_shard_size,
        **loading.load_kwargs(),
    )
    console.show(rows(steps, ("stage", "what would be done")))
    console.done("Nothing was done", facts | ({"steps": dict(steps)} if console.as_json else {}))
