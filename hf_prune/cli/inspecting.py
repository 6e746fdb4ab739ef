"""`info` and `methods`: look, don't touch."""

from typing import Annotated

import typer

from hf_prune.cli.console import Console, rows
from hf_prune.cli.options import ConsoleOptions, grouped


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
    *,
    families: Annotated[bool, typer.Option("--families", help="List the model families instead.")] = False,
    talk: ConsoleOptions,
) -> None:
    """List the recipes, and what each of them measures, plans and cuts."""
    from hf_prune.methods import METHODS

    console = Console(talk.quiet, talk.json)
    if families:
        from hf_prune.architecture import FAMILIES

        console.show(
            rows([(f.title, ", ".join(f.model_types), f.note) for f in FAMILIES], ("family", "model_type", "note"))
        )
        if talk.json:
            console.done("families", {f.title: list(f.model_types) for f in FAMILIES})
        return
    console.show(
        rows(
            [(m.name, m.title, m.measure or "nothing", m.planner, m.surgery, m.paper) for m in METHODS.values()],
            ("method", "what goes", "measure", "planner", "surgery", "paper"),
        )
    )
    if talk.json:
        console.done("methods", {m.name: vars(m) for m in METHODS.values()})
