"""`sweep`: quality against what is removed, for several methods and amounts."""

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
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.methods import METHODS, get_method

if TYPE_CHECKING:
    from hf_prune.figures import ModelEvaluation
    from hf_prune.sweeping.record import Knee, Sweep, SweepPoint
    from hf_prune.sweeping.target import Target


@grouped
def sweep_command(
    model: Annotated[str, typer.Argument(help="Hub id or folder.", metavar="MODEL")],
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="New folder, or that of an earlier sweep. Default: NAME-sweep."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Recipes with commas between; see `hf-prune methods`. Default: uidl and simple, and those that "
            "slice where the family can be sliced."
        ),
    ] = None,
    max_drop: Annotated[
        int | None,
        typer.Option(help="Most layers dropped; methods that slice take the same shares of the width. Default: half."),
    ] = None,
    min_drop: Annotated[int | None, typer.Option(help="Fewest layers dropped. Default: the step.")] = None,
    step: Annotated[int, typer.Option(help="Layers between two points.")] = 1,
    heal: Annotated[bool, typer.Option("--heal", help="Heal each point by LoRA / QLoRA, and measure again.")] = False,
    target_ppl_ratio: Annotated[
        float | None,
        typer.Option(help="Pick the most removed with a perplexity at most this times the original's: 1.1."),
    ] = None,
    target_accuracy_drop: Annotated[
        float | None,
        typer.Option(help="Pick the most removed with a mean accuracy at most this below the original's: 0.02."),
    ] = None,
    target_size: Annotated[
        str | None, typer.Option(help="Pick the lowest perplexity with weights of at most this: 4GB, 1.5GiB, 500MB.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="Recipe file, folder or repo; the other options override it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the points.")] = False,
    slicing: SliceOptions,
    data: DataOptions,
    tasks: TaskOptions,
    healing: HealOptions,
    loading: ModelOptions,
    talk: ConsoleOptions,
) -> None:
    """Draw quality against what is removed, for several methods: a table, CSV, JSON and PNG, the knee of each curve,
    and the plan that meets a target.

    A killed sweep goes on where it was when the same command is given again; finished points are kept when methods or
    amounts are added. Exits with 1 where a point failed or none meets the target.
    """
    console = Console(talk.quiet, talk.json)
    names = method_names(methods)
    recipe = RecipeOptions(method=owner(names, slicing), config=config)
    made = make_config(recipe, data, healing, loading.base_model, loading.token, slicing, tasks)
    target = _target(target_ppl_ratio, target_accuracy_drop, target_size)
    folder = output or default_output(model, "sweep")
    choice: dict[str, Any] = {"methods": names, "min_drop": min_drop, "max_drop": max_drop, "step": step}
    choice |= {"heal": heal, "target": target}
    if dry_run:
        _dry_run(console, model, made, folder, choice, loading)
        return
    _sweep(console, model, made, folder, choice, loading)


def method_names(methods: str | None) -> list[str] | None:
    """The recipes that `--methods` names.

    Raises:
        ConfigError: it names none, or there is none of that name.
    """
    if methods is None:
        return None
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"--methods {methods!r} names none; expected some of: {', '.join(METHODS)}")
    for name in names:
        get_method(name)
    return names


def owner(names: list[str] | None, slicing: SliceOptions) -> str | None:
    """The method whose options are given: those of slicing belong to one that slices.

    Raises:
        ConfigError: none of the methods can have them.
    """
    if vars(slicing) == vars(SliceOptions()):
        return None
    slicers = [name for name in (names or METHODS) if get_method(name).cuts == "width"]
    if not slicers:
        raise ConfigError(f"options of slicing are given, but none of the methods slices ({', '.join(names or ())})")
    dynamic = [name for name in slicers if get_method(name).planner == "dynamic_width"]
    if slicing.slice_base is not None and not dynamic:
        raise ConfigError(
            f"--slice-base {slicing.slice_base} is for methods of different widths, such as 'dynamic-slicing'; the "
            f"methods are {', '.join(names or ())}"
        )
    return (dynamic if slicing.slice_base is not None else slicers)[0]


def _target(ratio: float | None, drop: float | None, size: str | None) -> "Target | None":
    given = [
        name for name, value in (("ppl-ratio", ratio), ("accuracy-drop", drop), ("size", size)) if value is not None
    ]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(f'--target-{name}' for name in given)} at once; give one target")
    if not given:
        return None
    from hf_prune.sweeping.target import Target, parse_size

    if ratio is not None:
        return Target("ppl-ratio", ratio)
    if drop is not None:
        return Target("accuracy-drop", drop)
    assert size is not None
    return Target("size", parse_size(size))


def _dry_run(
    console: Console,
    model: str,
    config: PrunerConfig,
    folder: Path,
    choice: dict[str, Any],
    loading: ModelOptions,
) -> None:
    from hf_prune.sweeping.early import prepare

    begun = prepare(model, config, folder, **choice, weights=False, **loading.load_kwargs())
    ref, wanted = begun.source.ref, begun.wanted
    lines = [
        (w.name, _amount(w.amount, w.amount_of), "skipped: " + w.impossible if w.impossible else "measured")
        for w in wanted
    ]
    console.show(rows(lines, ("point", "removed", "what would be done")))
    possible = sum(w.impossible is None for w in wanted)
    facts: dict[str, Any] = {"model": ref.id, "layers": ref.num_layers, "points": possible}
    facts |= {"skipped": len(wanted) - possible or None, "evaluations": 1 + possible * (2 if choice["heal"] else 1)}
    if choice["heal"]:
        tokens = config.healing.tokens
        budget = (
            f"{tokens:,} tokens each" if tokens else "a token budget that suits the machine, on a CPU half an hour"
        )
        facts["healings"] = f"{possible}, {budget}"
    facts["output"] = str(folder)
    listed = {w.name: w.impossible for w in wanted} if console.as_json else None
    console.done("Nothing was done", facts | ({"listed": listed} if listed else {}))


def _sweep(
    console: Console,
    model: str,
    config: PrunerConfig,
    folder: Path,
    choice: dict[str, Any],
    loading: ModelOptions,
) -> None:
    from hf_prune.sweeping.record import Sweep
    from hf_prune.sweeping.sweep import sweep
    from hf_prune.sweeping.table import CSV_FILE

    def tell(point: "SweepPoint") -> None:
        if point.pruned is not None:
            healed = "" if point.healed is None else f", healed {point.healed.perplexity[0].perplexity:.2f}"
            console.say(
                f"{point.name}: perplexity {point.pruned.perplexity[0].perplexity:.2f}{healed}, {point.seconds:.0f} s"
            )

    found = sweep(model, config, folder, on_point=tell, progress=console.progress, **choice, **loading.load_kwargs())
    console.show(table(found))
    missed = found.choice is not None and found.choice.point is None
    status = {name: sum(p.status == name for p in found.points) or None for name in ("done", "skipped", "failed")}
    facts: dict[str, Any] = {
        "record": str(folder / Sweep.FILE),
        "table": str(folder / CSV_FILE),
        "drawings": [str(folder / picture.file) for picture in found.pictures] or None,
        **status,
        "knees": [_knee(knee) for knee in found.knees],
        "target": found.choice.reason if found.choice is not None else None,
        "plan": str(folder / found.choice.plan) if found.choice is not None and found.choice.plan else None,
    }
    console.done(f"Swept {found.model.id}", found.to_dict() if console.as_json else facts)
    if found.failed:
        console.say(f"{found.failed} of {len(found.points)} points failed; the same command tries them again")
    if missed or found.failed:
        raise typer.Exit(1)


def table(sweep: "Sweep") -> str:
    """One line a point: what went, and what that cost on the first text."""
    from hf_prune.sweeping.record import accuracy

    header = ["point", "removed", "parameters", "perplexity", "ratio", "KL"]
    header += ["healed", "ratio", "KL"] if sweep.heal else []
    with_tasks = accuracy(sweep.original) is not None
    header += ["accuracy"] if with_tasks else []
    lines = [_line(sweep, None, with_tasks), *(_line(sweep, point, with_tasks) for point in sweep.points)]
    return rows([tuple(line) for line in lines], tuple(header))


def _line(sweep: "Sweep", point: "SweepPoint | None", with_tasks: bool) -> list[str]:
    from hf_prune.sweeping.record import accuracy

    if point is None:
        shown: list[ModelEvaluation | None] = [sweep.original] + ([None] if sweep.heal else [])
        cells = ["original", "", f"{sweep.original.parameters:,}"]
    else:
        shown = [point.pruned] + ([point.healed] if sweep.heal else [])
        cells = [point.name, _removed(point)]
        cells.append(f"{-point.share_removed:+.1%}" if point.status == "done" else point.status)
    for figures in shown:
        cells += _figures(sweep, figures)
    if with_tasks:
        found = next((mean for f in reversed(shown) if f is not None and (mean := accuracy(f)) is not None), None)
        cells.append("" if found is None else f"{found[0]:.4f}")
    return cells


def _figures(sweep: "Sweep", found: "ModelEvaluation | None") -> list[str]:
    from hf_prune.sweeping.record import perplexity_ratio

    if found is None:
        return ["", "", ""]
    kl = "" if found.fidelity is None else f"{found.fidelity.kl:.4f}"
    return [f"{found.perplexity[0].perplexity:.2f}", f"{perplexity_ratio(found, sweep.original):.3f}", kl]


def _removed(point: "SweepPoint") -> str:
    from hf_prune.records import ranges

    if point.dropped:
        return f"layers {ranges(point.dropped)}"
    if point.widths:
        narrow, wide = min(point.widths), max(point.widths)
        return f"width {narrow}" if narrow == wide else f"width {narrow}–{wide}"
    return _amount(point.amount, point.amount_of)


def _amount(amount: float, of: str) -> str:
    if of == "layers":
        return f"{int(amount)} layer{'s' if amount > 1 else ''}"
    return f"{amount:.1%} of the {of}"


def _knee(knee: "Knee") -> str:
    where = f"{knee.point}, {knee.share_removed:.1%} removed" if knee.point is not None else "none"
    return f"{knee.method} ({knee.stage}): {where}"
