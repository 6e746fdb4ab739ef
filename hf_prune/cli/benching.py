"""`bench-methods`: any set of methods on one model, compared on equal terms."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_prune.cli.configs import default_output, make_config
from hf_prune.cli.console import Console, rows
from hf_prune.cli.options import (
    ConsoleOptions,
    DataOptions,
    HealOptions,
    ModelOptions,
    RecipeOptions,
    SliceOptions,
    TaskOptions,
    grouped,
)
from hf_prune.cli.sweeping import method_names, owner
from hf_prune.config import EvaluationConfig, PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.methods import get_method

if TYPE_CHECKING:
    from hf_prune.comparing.entries import Amount
    from hf_prune.comparing.record import Attempt, Comparison


@grouped
def bench_methods_command(
    model: Annotated[str, typer.Argument(help="Hub id or folder.", metavar="MODEL")],
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="New folder, or that of an earlier comparison. Default: NAME-methods."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Recipes with commas between; see `hf-prune methods`. Default: all.")
    ] = None,
    drop_layers: Annotated[
        int | None, typer.Option(help="How many layers go; of parts and of the width as large a share.")
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Share that goes, in each method's own unit; above 0 and below 1.")
    ] = None,
    sparsity_of: Annotated[
        str | None, typer.Option(help="parameters: the share is of these for all methods, as far as units allow.")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Seeds with commas between: which calibration and healing text is drawn, what is drawn to choose and "
            "to fit, and how healing starts. Default: that of the recipe."
        ),
    ] = None,
    best: Annotated[
        int | None,
        typer.Option(help="Try all methods with the first seed, and only this many, the best, with the others."),
    ] = None,
    heal: Annotated[
        bool, typer.Option("--heal", help="Heal each model by the same LoRA / QLoRA, and measure again.")
    ] = False,
    also_on: Annotated[
        list[str] | None,
        typer.Option(
            help="A further text to judge models on: a file, a folder, or DATASET[,CONFIG[,SPLIT]]. May be repeated.",
            metavar="TEXT",
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="Recipe file, folder or repo; the other options override it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the methods, and the forwards that choosing would take.")
    ] = False,
    slicing: SliceOptions,
    data: DataOptions,
    tasks: TaskOptions,
    healing: HealOptions,
    loading: ModelOptions,
    talk: ConsoleOptions,
) -> None:
    """Compare methods on one model, the same text, amount and healing: a table, JSON, CSV and a drawing.

    Told of each: perplexity, distance from the original and benchmarks, before and after healing, and the time,
    forwards and memory that choosing took. A method that this model cannot have is skipped; one that fails is told,
    and the rest goes on. Killed, it goes on where it was when the same command is given again. Exits with 1 where one
    failed.
    """
    console = Console(talk.quiet, talk.json)
    names = method_names(methods)
    if seeds is not None and data.seed is not None:
        raise ConfigError(f"--seed {data.seed} and --seeds {seeds} at once; give one")
    recipe = RecipeOptions(method=owner(names, slicing), config=config)
    made = make_config(recipe, data, healing, loading.base_model, loading.token, slicing, tasks)
    folder = output or default_output(model, "methods")
    choice: dict[str, Any] = {"methods": names, "seeds": _seeds(seeds), "best": best, "heal": heal}
    choice |= {"amount": _amount(drop_layers, sparsity, sparsity_of)}
    if dry_run:
        _dry_run(console, model, made, folder, choice, loading)
        return
    also = [_text(text, made) for text in also_on or ()]
    _bench(console, model, made, folder, choice | {"also": also}, loading)


def _amount(drop_layers: int | None, sparsity: float | None, sparsity_of: str | None) -> "Amount":
    from hf_prune.comparing.entries import Amount

    return Amount(drop_layers, sparsity, sparsity_of)


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds {text!r}; expected whole numbers with commas between, such as 0,1,2") from error


def _text(named: str, config: PrunerConfig) -> EvaluationConfig:
    """Evaluation settings for a further text; all but where it comes from is as for the first."""
    parts = [part.strip() for part in named.split(",")]
    if Path(named).exists():
        parts = [named]
    if len(parts) > 3 or not all(parts):
        raise ConfigError(f"--also-on {named!r}; expected a file, a folder, or DATASET[,CONFIG[,SPLIT]]")
    dataset, configured, split = (*parts, None, None)[:3]
    return dataclasses.replace(config.evaluation, dataset=dataset, dataset_config=configured, split=split)


def _dry_run(
    console: Console, model: str, config: PrunerConfig, folder: Path, choice: dict[str, Any], loading: ModelOptions
) -> None:
    from hf_prune.comparing.bench import begin
    from hf_prune.comparing.estimate import estimated_forwards
    from hf_prune.comparing.words import amount_in_words
    from hf_prune.method_table import forwards as told_forwards

    begun = begin(model, config, folder, **choice, weights=False, **loading.load_kwargs())
    ref, best, seeds = begun.source.ref, choice["best"], begun.seeds
    forwards = {e.method: estimated_forwards(e.config, ref) for e in begun.entries if e.impossible is None}
    lines = []
    for entry in begun.entries:
        number = forwards.get(entry.method)
        told = "" if number is None else f"{number:.4g}"
        what = "measured" if entry.impossible is None else f"skipped: {entry.impossible}"
        cost = told_forwards(get_method(entry.method))
        lines.append((entry.method, amount_in_words(entry.amount, entry.amount_of), told, cost, what))
    console.show(rows(lines, ("method", "removed", "forwards", "as its recipe says", "what would be done")))
    possible = len(forwards)
    attempts = possible + (len(seeds) - 1) * (possible if best is None else min(best, possible))
    facts: dict[str, Any] = {"model": ref.id, "layers": ref.num_layers, "methods": possible}
    facts |= {"skipped": len(begun.entries) - possible or None, "seeds": list(seeds), "attempts": attempts}
    facts |= {"evaluations": 1 + attempts * (2 if choice["heal"] else 1)}
    if choice["heal"]:
        tokens = config.healing.tokens
        budget = f"{tokens:,} tokens" if tokens else "as many tokens as suit the machine"
        facts["healings"] = f"{attempts}, {budget} each"
    facts["output"] = str(folder)
    listed = {e.method: {"forwards": forwards.get(e.method), "impossible": e.impossible} for e in begun.entries}
    console.done("Nothing was done", facts | ({"listed": listed} if console.as_json else {}))


def _bench(
    console: Console, model: str, config: PrunerConfig, folder: Path, choice: dict[str, Any], loading: ModelOptions
) -> None:
    from hf_prune.comparing.bench import bench_methods
    from hf_prune.comparing.record import Comparison
    from hf_prune.comparing.table import CSV_FILE, TABLE_FILE

    def tell(attempt: "Attempt") -> None:
        if attempt.pruned is not None:
            healed = "" if attempt.healed is None else f", healed {attempt.healed.perplexity[0].perplexity:.2f}"
            before = attempt.pruned.perplexity[0].perplexity
            console.say(f"{attempt.name}: perplexity {before:.2f}{healed}, {attempt.seconds:.0f} s")

    found = bench_methods(
        model, config, folder, on_attempt=tell, progress=console.progress, **choice, **loading.load_kwargs()
    )
    console.show(table(found))
    status = {n: sum(a.status == n for a in found.attempts) or None for n in ("done", "skipped", "failed")}
    facts: dict[str, Any] = {
        "record": str(folder / Comparison.FILE),
        "table": str(folder / TABLE_FILE),
        "csv": str(folder / CSV_FILE),
        "drawings": [str(folder / picture.file) for picture in found.pictures] or None,
        **status,
    }
    console.done(f"Compared methods on {found.model.id}", found.to_dict() if console.as_json else facts)
    if found.failed:
        console.say(f"{found.failed} of {len(found.attempts)} attempts failed; the same command tries them again")
        raise typer.Exit(1)


def table(found: "Comparison") -> str:
    """One line a method, the best one first."""
    from hf_prune.comparing.standings import EFFORTS, agreement, kl, mean_accuracy, perplexity, standings
    from hf_prune.comparing.table import shown
    from hf_prune.comparing.words import contents, share_in_words
    from hf_prune.sweeping.record import STAGES

    stages = STAGES if found.heal else STAGES[:1]
    columns = [("perplexity", perplexity(0), ".2f"), ("KL", kl, ".4f"), ("top-1", agreement, ".4f")]
    if mean_accuracy(found.original) is not None:
        columns.append(("accuracy", mean_accuracy, ".4f"))
    header = ["method", "removed", "parameters"]
    for stage in stages:
        header += [name if stage == "pruned" else f"{name} healed" for name, _, _ in columns]
    header += ["choosing, s", "forwards"]
    before = [f"{found.original.perplexity[0].perplexity:.2f}", "0", "1"]
    before += [f"{mean:.4f}"] if (mean := mean_accuracy(found.original)) is not None else []
    blank = [""] * (len(header) - 3 - len(before))
    lines = [["original", "", f"{found.original.parameters:,}", *before, *blank]]
    for standing in standings(found):
        if not standing.done:
            status = standing.attempts[0].status if standing.attempts else ""
            lines.append([standing.contender.name, status, *[""] * (len(header) - 2)])
            continue
        first = standing.done[0]
        cells = [standing.contender.name, contents(first, found.model.num_layers), share_in_words(first)]
        cells += [shown(standing.figure(stage, figure), digits) for stage in stages for _, figure, digits in columns]
        cells += [shown(standing.over_seeds(EFFORTS[name]), ".2f") for name in ("choosing, s", "forwards")]
        lines.append(cells)
    return rows([tuple(line) for line in lines], tuple(header))
