"""`measure`, `plan`, `prune`, `heal`: each stage alone."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_prune.cli.configs import continued, default_output, make_config
from hf_prune.cli.console import Console, rows
from hf_prune.cli.options import (
    CalibrationOptions,
    ConsoleOptions,
    FileOptions,
    HealOptions,
    LoadOptions,
    MemoryOptions,
    ModelOptions,
    RecipeOptions,
    SliceOptions,
    TextOptions,
    grouped,
)
from hf_prune.records import Plan, Scores

Model = Annotated[str, typer.Argument(help="Hub id or folder.", metavar="MODEL")]
Folder = Annotated[Path, typer.Argument(help="Folder that hf-prune wrote.", metavar="DIR")]


@grouped
def measure_command(
    model: Model,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for scores.json. Default: NAME-scores.")
    ] = None,
    recipe: RecipeOptions,
    data: CalibrationOptions,
    loading: ModelOptions,
    memory: MemoryOptions,
    talk: ConsoleOptions,
) -> None:
    """Measure a model: the distance across every run of layers, from one pass over the text.

    Several processes share the text when torchrun starts them: torchrun --nproc-per-node 2 -m hf_prune.cli measure ...
    A memory budget is that of each process.
    """
    from hf_prune.distributed import processes
    from hf_prune.pruner import Pruner
    from hf_prune.run_folder import room_for

    with processes() as group:
        console = Console(talk.quiet or not group.leads, talk.json)
        config = make_config(recipe, data, base_model=loading.base_model, token=loading.token)
        folder = output or default_output(model, "scores")
        pruner = Pruner.from_pretrained(
            model,
            config,
            run_folder=folder if group.leads else None,
            progress=console.progress,
            **loading.load_kwargs() | {"device_map": loading.device or group.device()},
            **memory.memory_kwargs(),
        )
        with room_for(folder):
            scores = pruner.measure(group)
    if not group.leads:
        return
    console.show(_found(scores))
    console.done(
        f"Measured {scores.model.id}",
        {
            "scores": str(folder / Scores.FILE),
            **({} if scores.data is None else {"samples": scores.data.samples, "tokens": scores.data.tokens}),
            "seconds": round(scores.seconds, 2),
        },
    )


def _found(scores: Scores) -> str:
    """What was measured, in the form that the measure gives it."""
    if scores.distances:
        return _best_windows(scores)
    return _importances(scores) if scores.importances else _layers(scores)


def _importances(scores: Scores) -> str:
    """How much each part of each layer matters."""
    parts = list(scores.importances)
    lines = []
    for layer in range(scores.model.num_layers):
        values = [scores.importances[part][layer] for part in parts]
        lines.append((str(layer), *("–" if value is None else f"{value:.4g}" for value in values)))
    names = [scores.measure if part == "block" else f"{scores.measure}, {part}" for part in parts]
    return rows(lines, ("layer", *names))


def _layers(scores: Scores) -> str:
    """One score a layer."""
    pairs = zip(scores.layers, scores.layer_standard_errors, strict=True)
    lines = [(str(layer), f"{score:.4f}", f"{error:.4f}") for layer, (score, error) in enumerate(pairs)]
    return rows(lines, ("layer", scores.measure, "± se"))


def _best_windows(scores: Scores) -> str:
    """The best window of each size, and the runner-up."""
    lines = []
    for size in range(1, scores.model.num_layers):
        first, *others = sorted(scores.windows(size), key=lambda w: (w[1], w[0]))
        second = f"{others[0][0]}–{others[0][0] + size - 1}  {others[0][1]:.4f}" if others else ""
        lines.append((str(size), f"{first[0]}–{first[0] + size - 1}", f"{first[1]:.4f}", f"{first[2]:.4f}", second))
    return rows(lines, ("layers", "best window", "distance", "± se", "runner-up"))


@grouped
def plan_command(
    source: Annotated[str, typer.Argument(help="Folder with scores.json, or a model.", metavar="SCORES|MODEL")],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for plan.json. Default: the scores' own.")
    ] = None,
    recipe: RecipeOptions,
    slicing: SliceOptions,
    data: CalibrationOptions,
    loading: ModelOptions,
    memory: MemoryOptions,
    talk: ConsoleOptions,
) -> None:
    """Choose the layers that go, or the widths: at once where that is possible, else after measuring the model."""
    console = Console(talk.quiet, talk.json)
    config = make_config(recipe, data, base_model=loading.base_model, token=loading.token, slicing=slicing)
    scores = Path(source) / Scores.FILE
    if scores.is_file():
        plan, folder = _plan_from_scores(config, Scores.load(scores)), output or Path(source)
        plan.save(folder)
    else:
        from hf_prune.pruner import Pruner

        folder = output or default_output(source, "scores")
        plan = Pruner.from_pretrained(
            source,
            config,
            run_folder=folder,
            progress=console.progress,
            **loading.load_kwargs(),
            **memory.memory_kwargs(),
        ).plan()
    console.done(plan.describe(), _plan_facts(plan, folder))


def _plan_from_scores(config: Any, scores: Scores) -> Plan:
    from hf_prune.amounts import sizes_told_by
    from hf_prune.auto import AUTO
    from hf_prune.errors import ConfigError
    from hf_prune.plan import check_single_round, make_plan
    from hf_prune.registry import fitted
    from hf_prune.units import parts_of

    check_single_round(config)
    if config.method == AUTO:
        raise ConfigError(
            f"method '{AUTO}' becomes another one by the model, which scores do not hold; name a method, or plan from "
            f"the model: hf-prune plan {scores.model.id} ..."
        )
    unit = config.recipe().unit
    if unit != "block" and not set(parts_of(unit)) & scores.importances.keys():
        raise ConfigError(
            f"unit='{unit}': these scores of measure '{scores.measure}' tell of whole blocks; measure again with "
            f"--unit {unit}, or plan from the model: hf-prune plan {scores.model.id} ..."
        )
    surgery = config.recipe().surgery
    if surgery != "drop" and surgery in fitted:  # looking that up imports torch
        raise ConfigError(
            f"surgery '{surgery}' is fitted to the model, which scores do not hold; plan from the "
            f"model instead: hf-prune plan {scores.model.id} ..."
        )
    if config.sparsity is not None and config.amount_of != "layers":
        raise ConfigError(
            f"sparsity_of='{config.amount_of}' needs the sizes of the model's parts, which scores do not hold; plan "
            f"from the model instead: hf-prune plan {scores.model.id} ..."
        )
    return make_plan(config, scores.model, sizes_told_by(scores), scores)


def _plan_facts(plan: Plan, folder: Path) -> dict[str, Any]:
    return {
        "plan": str(folder / Plan.FILE),
        "model": plan.model.id,
        "method": plan.method,
        "dropped": list(plan.dropped) or None,
        "widths": None if plan.slicing is None else list(plan.slicing.widths),
        "reason": plan.reason,
        "runner-up": list(plan.runner_up) if plan.runner_up else None,
        "gap to it": f"{plan.gap:.4f} ± {plan.gap_standard_error:.4f}" if plan.gap is not None else None,
    }


@grouped
def prune_command(
    model: Model,
    *,
    plan: Annotated[Path | None, typer.Option("--plan", help="A plan made before.", metavar="FILE")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="New or empty folder.")] = None,
    recipe: RecipeOptions,
    slicing: SliceOptions,
    data: CalibrationOptions,
    loading: ModelOptions,
    files: FileOptions,
    talk: ConsoleOptions,
) -> None:
    """Cut a model by a plan, or by a recipe and an amount, and save it; nothing is healed or evaluated.

    Where nothing has to be measured, no weight is loaded: the bytes that are kept are copied, or fetched from the Hub
    alone. A killed command goes on where it was when it is given again.
    """
    from hf_prune.output import Finished
    from hf_prune.pruner import Pruner
    from hf_prune.run_folder import beside, remove, room_for
    from hf_prune.saving import check_output

    console = Console(talk.quiet, talk.json)
    folder = output or default_output(model)
    check_output(folder)
    made = None if plan is None else Plan.load(plan)
    if made is not None:
        recipe = _recipe_of(made, recipe, slicing)
    config = make_config(recipe, data, base_model=loading.base_model, token=loading.token, slicing=slicing)
    run_folder = beside(folder)
    pruner = Pruner.from_pretrained(
        model,
        config,
        run_folder=run_folder,
        progress=console.progress,
        **loading.load_kwargs(),
        **files.memory_kwargs(),
    )
    if made is not None:
        pruner.use_plan(made)
    with room_for(run_folder):
        pruner.save_pretrained(folder, max_shard_size=files.max_shard_size)
    remove(run_folder)
    finished = Finished.load(folder)
    console.done(
        pruner.plan().describe(),
        {
            "folder": str(folder),
            "card": str(folder / "README.md"),
            "weights": _FETCHED[finished.fetched],
            "reload check": finished.reload_level,
        },
    )


_FETCHED = {
    "whole": None,
    "verified": "whole files, each with the hash that the Hub has of it",
    "ranges": "only the bytes that are kept were fetched; their hashes cannot be checked (--verify-hash)",
}


def _recipe_of(plan: Plan, given: RecipeOptions, slicing: SliceOptions) -> RecipeOptions:
    from dataclasses import replace

    from hf_prune.errors import ConfigError

    decided = {name: value for name, value in vars(given).items() if name != "config"} | vars(slicing)
    named = [f"--{name.replace('_', '-')}" for name, value in decided.items() if value not in (None, False, [])]
    if named:
        raise ConfigError(f"--plan says already what goes; leave out {', '.join(named)}, or plan again")
    return replace(given, method=plan.method)


@grouped
def heal_command(
    folder: Folder,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New or empty folder. Default: DIR-healed.")
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(
            help="The model that was pruned, for losses that compare with it and for sampling text. Default: from the "
            "records, where they name a commit on the Hub."
        ),
    ] = None,
    data: TextOptions,
    healing: HealOptions,
    loading: LoadOptions,
    talk: ConsoleOptions,
) -> None:
    """Heal a pruned folder, by LoRA or QLoRA or another recipe (`hf-prune methods --healing`).

    Interrupted, it goes on when the same command is given again. Several processes share each batch when torchrun
    starts them: torchrun --nproc-per-node 2 -m hf_prune.cli heal ...
    """
    from hf_prune.card_healing import outcome
    from hf_prune.distributed import processes
    from hf_prune.healable import check_healing
    from hf_prune.output import Finished
    from hf_prune.pruner import Pruner
    from hf_prune.run_folder import beside, remove, room_for
    from hf_prune.saving import check_output

    with processes() as group:
        console = Console(talk.quiet or not group.leads, talk.json)
        target = output or Path(f"{folder}-healed")
        check_output(target)
        run_folder = beside(target)
        config = continued(folder, "healing", data, healing)
        check_healing(config, Finished.load(folder).plan)  # before the original is fetched
        pruner = Pruner.from_pruned(
            folder,
            config,
            original=original,
            run_folder=run_folder if group.leads else None,
            progress=console.progress,
            **loading.load_kwargs() | {"device_map": loading.device or group.device()},
        )
        with room_for(run_folder):
            record = pruner.heal(group)
            if group.leads:
                pruner.save_pretrained(target)
    if not group.leads:
        return
    remove(run_folder)
    console.done(
        f"Healed {folder}",
        {
            "folder": str(target),
            "tokens": record.tokens,
            "seconds": round(record.seconds),
            **outcome(record),
            "stopped": record.stopped,
            "warnings": list(record.warnings) or None,
        },
    )
