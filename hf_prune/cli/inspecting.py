"""`info` and `methods`: look, don't touch."""

from typing import Annotated

import typer

from hf_prune.cli.console import WIDTH, Console, rows
from hf_prune.cli.options import ConsoleOptions, grouped
from hf_prune.errors import ConfigError


@grouped
def info_command(
    model: Annotated[str, typer.Argument(help="Hub id or folder, pruned or not.", metavar="MODEL")],
    *,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    token: Annotated[str | None, typer.Option(help="Hub token.")] = None,
    talk: ConsoleOptions,
) -> None:
    """Tell what a model is, whether it can be pruned, and, for a pruned one, what was done to it."""
    from hf_prune.info import describe

    console = Console(talk.quiet, talk.json)
    facts = describe(model, revision=revision, token=token)
    console.done(str(facts.pop("model")), facts)


@grouped
def methods_command(
    name: Annotated[str | None, typer.Argument(help="Tell all of this one.", metavar="[NAME]")] = None,
    *,
    families: Annotated[bool, typer.Option("--families", help="List the model families instead.")] = False,
    measures: Annotated[bool, typer.Option("--measures", help="List what --measure takes instead.")] = False,
    planners: Annotated[bool, typer.Option("--planners", help="List what --planner takes instead.")] = False,
    surgeries: Annotated[bool, typer.Option("--surgeries", help="List what --surgery takes instead.")] = False,
    healing: Annotated[
        bool, typer.Option("--healing", help="List what --heal-method, --heal-target and --heal-loss take instead.")
    ] = False,
    talk: ConsoleOptions,
) -> None:
    """List the recipes: what goes, what they measure, plan and cut, what that costs, needs and gives."""
    console = Console(talk.quiet, talk.json)
    wishes = {"families": families, "measures": measures, "planners": planners, "surgeries": surgeries}
    wishes["healing"] = healing
    asked = [f"--{wish}" for wish, given in wishes.items() if given] + ([repr(name)] if name is not None else [])
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} ask for different lists; give one of them")
    if families:
        _families(console)
    elif healing:
        _healing(console)
    elif name is not None:
        _one_method(console, name)
    elif asked:
        _entries(console, asked[0].removeprefix("--"))
    else:
        _methods(console)


def _families(console: Console) -> None:
    from hf_prune.architecture import FAMILIES

    console.show(
        rows([(f.title, ", ".join(f.model_types), f.note) for f in FAMILIES], ("family", "model_type", "note"))
    )
    if console.as_json:
        console.done("families", {f.title: list(f.model_types) for f in FAMILIES})


def _healing(console: Console) -> None:
    from hf_prune.healing_table import (
        LOSS_HEADER,
        RECIPE_HEADER,
        TARGET_HEADER,
        described,
        loss_rows,
        recipe_rows,
        target_rows,
    )

    if console.as_json:
        console.done("healing", described())
        return
    tables = ((recipe_rows(), RECIPE_HEADER), (target_rows(), TARGET_HEADER), (loss_rows(), LOSS_HEADER))
    console.show("\n\n".join(rows(made, header, WIDTH) for made, header in tables))
    console.say(
        "Steps are optimizer steps x sequences x tokens; rates those of models that a paper does not name. A target\n"
        "may be names of modules, which carry adapters; losses may be mixed: next_token=1,kl=0.5."
    )


def _methods(console: Console) -> None:
    from hf_prune.method_table import METHOD_HEADER, described, method_rows
    from hf_prune.methods import METHODS

    if console.as_json:
        console.done("methods", {method.name: described(method) for method in METHODS.values()})
    else:
        console.show(rows(method_rows(), METHOD_HEADER))
        console.say(
            "Forwards are passes of the calibration text to choose n of L layers; a judge runs cut models. Without\n"
            "parts or weights the model stays as large. Papers are numbers on arXiv. All of one: hf-prune methods NAME"
        )


def _one_method(console: Console, name: str) -> None:
    from hf_prune.method_table import combined, described, gives, goes, in_words, needs, parts
    from hf_prune.methods import get_method

    method = get_method(name)
    if console.as_json:
        console.done(name, described(method))
        return
    protected = f"{method.protect_first} first and {method.protect_last} last layers"
    facts = {
        "title": method.title,
        "what goes": goes(method),
        "does": combined(method),
        "cost": method.cost,
        "needs": needs(method),
        "gives": gives(method),
        "protects": protected if method.cuts == "layers" else None,
        "heals by": method.healing,
        "dataset of the paper": method.dataset and method.dataset[0],
        "paper": method.paper,
        "note": method.note or None,
    }
    for kind, (entry, options) in parts(method).items():
        facts[f"{kind} {entry.name}"] = f"{entry.title}; options: {in_words(options)}"
    console.done(name, facts)


def _entries(console: Console, kind: str) -> None:
    from hf_prune.method_table import ENTRY_HEADER, entries, entry_rows

    if console.as_json:
        facts = {
            e.name: {"title": e.title, "needs": e.needs, "options": e.options(), "url": e.url} for e in entries(kind)
        }
        console.done(kind, facts)
    else:
        console.show(rows(entry_rows(kind), ENTRY_HEADER, WIDTH))
