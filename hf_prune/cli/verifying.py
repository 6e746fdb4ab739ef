"""`verify`: a model that hf-prune made, against its claims."""

from typing import Annotated

import typer

from hf_prune.cli.console import Console
from hf_prune.cli.options import ConsoleOptions, grouped


@grouped
def verify_command(
    model: Annotated[str, typer.Argument(help="Repo or folder of a model that hf-prune made.", metavar="MODEL")],
    *,
    original: Annotated[
        str | None, typer.Option(help="The model that was pruned. Default: the commit that the records name.")
    ] = None,
    replan: Annotated[bool, typer.Option("--replan", help="Choose the layers anew by the recipe.")] = False,
    sample: Annotated[
        int | None, typer.Option(help="Evaluate on this many documents only, within standard errors.", min=1)
    ] = None,
    evaluate: Annotated[bool, typer.Option(help="Run the evaluations again.")] = True,
    dataset: Annotated[
        str | None, typer.Option(help="Where a text lies that the records name without its folder.", metavar="FILE")
    ] = None,
    task_path: Annotated[str | None, typer.Option(help="Likewise of task files.", metavar="DIR")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a repo.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, auto. Default: a GPU if there is one.")] = None,
    token: Annotated[str | None, typer.Option(help="Hub token. Better: `hf auth login`.")] = None,
    talk: ConsoleOptions,
) -> None:
    """Hold a model against its records: files, config, weights, plan, figures. Runs no code of the repo.

    Exit code 0 where every check passes, 1 where one fails. Speed is shown, and never judged.
    """
    from hf_prune.errors import ConfigError
    from hf_prune.verify import Evaluations, verify

    if sample is not None and not evaluate:
        raise ConfigError("--sample says how much to evaluate, and --no-evaluate not to; leave one of them out")
    evaluations: Evaluations = "none" if not evaluate else "all" if sample is None else "sample"
    console = Console(talk.quiet, talk.json)
    found = verify(
        model,
        original=original,
        revision=revision,
        replan=replan,
        evaluations=evaluations,
        samples=sample or 1,
        dataset=dataset,
        task_path=task_path,
        token=token,
        device_map=device,
        progress=console.progress,
    )
    console.show(found.table())
    if console.as_json:
        console.done("", found.to_dict() | {"passed": found.passed})
    else:
        console.show("")
        mark = "✓" if found.passed else "✗"
        console.show(f"{mark} {found.model}: {found.summary()} ({found.seconds:.0f} s)")
    if not found.passed:
        raise typer.Exit(1)
