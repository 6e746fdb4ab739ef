"""`card` and `push`: what a finished folder needs to go out."""

from pathlib import Path
from typing import Annotated

import typer

from hf_prune.cli.console import Console
from hf_prune.cli.options import ConsoleOptions, PushOptions, grouped

Folder = Annotated[Path, typer.Argument(help="Folder that hf-prune wrote.", metavar="DIR")]


@grouped
def card_command(
    folder: Folder,
    *,
    repo_id: Annotated[str | None, typer.Option(help="Repo that the card will stand in.", metavar="REPO")] = None,
    talk: ConsoleOptions,
) -> None:
    """Write the model card of a finished folder anew, from its records."""
    from hf_prune.output import Finished, write_card

    console = Console(talk.quiet, talk.json)
    path = write_card(folder, Finished.load(folder), repo_id)
    console.done("Card written", {"card": str(path)})


@grouped
def push_command(
    folder: Folder,
    repo_id: Annotated[str, typer.Argument(help="namespace/name, or a name of your own.", metavar="REPO")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be pushed.")] = False,
    token: Annotated[str | None, typer.Option(help="Hub token. Better: `hf auth login`.")] = None,
    pushing: PushOptions,
    talk: ConsoleOptions,
) -> None:
    """Push a finished folder by one commit, and compare what the Hub holds with it."""
    from hf_prune.output import push_output

    console = Console(talk.quiet, talk.json)
    result = push_output(folder, repo_id, token=token, dry_run=dry_run, **pushing.push_kwargs())
    verb = "Would push" if dry_run else "Pushed"
    console.done(
        f"{verb} {folder} to {result.repo_id}",
        {
            "url": result.url,
            "commit": result.commit,
            "added": list(result.additions),
            "deleted": list(result.deletions),
            "unchanged": list(result.unchanged),
            "left behind": list(result.skipped),
            "bytes": result.bytes,
            "new repo": result.created,
            "private": result.private,
        },
    )
