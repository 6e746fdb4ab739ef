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
    check: Annotated[bool, typer.Option("--check", help="Only check the card that is there; write nothing.")] = False,
    talk: ConsoleOptions,
) -> None:
    """Write the model card of a finished folder anew, from its records; or check it.

    The check takes any folder with a README.md, and ends with exit code 1 where it finds errors.
    """
    console = Console(talk.quiet, talk.json)
    if check:
        _check(console, folder)
        return
    from hf_prune.output import Finished, write_card

    path = write_card(folder, Finished.load(folder), repo_id)
    console.done("Card written", {"card": str(path)})


def _check(console: Console, folder: Path) -> None:
    from hf_prune.card_check import check_card

    found = check_card(folder)
    errors = sum(finding.level == "error" for finding in found)
    for finding in found:
        console.show(f"{finding.level}: {finding.text}")
    facts = {"errors": errors, "warnings": len(found) - errors}
    if errors and not console.as_json:
        console.say(f"The card of {folder} has {errors} {'error' if errors == 1 else 'errors'}.")
    else:
        console.done(f"Card of {folder} checked", facts | ({"findings": found} if console.as_json else {}))
    if errors:
        raise typer.Exit(1)


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
    """Push a finished folder, or an export, by one commit, and compare what the Hub holds with it."""
    from hf_prune.exporting import is_export, push_export
    from hf_prune.output import push_output

    console = Console(talk.quiet, talk.json)
    push = push_export if is_export(folder) else push_output
    result = push(folder, repo_id, token=token, dry_run=dry_run, **pushing.push_kwargs())
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
