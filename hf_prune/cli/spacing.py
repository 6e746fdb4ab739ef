"""`space`: the page in a browser, on this machine; `space deploy`: the same as a Space on the Hub."""

import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from hf_prune.cli.console import Console
from hf_prune.cli.options import ConsoleOptions, grouped
from hf_prune.errors import ConfigError
from hf_prune.extras import require

Pairs = Annotated[
    list[str] | None,
    typer.Option("--pair", help="Pruned model on the Hub to show first; may be given again.", metavar="REPO"),
]


def space_command(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option(help="Address to serve on; 0.0.0.0 for all of them. Default: this machine alone.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860 on.")
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Give it a public link, through Gradio's server.")] = False,
    mcp: Annotated[bool, typer.Option("--mcp", help="Serve MCP clients too; takes longer to start.")] = False,
    pair: Pairs = None,
    memory: Annotated[
        float | None, typer.Option(help="Gigabytes for all models together. Default: by this machine.", metavar="GB")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Show it in a browser here.")] = False,
) -> None:
    """Open the page: a pruned model beside its original, other cuts of it, and new ones made. `space deploy` puts it
    on the Hub.

    Off the loopback address, or with --share, the page does not use this machine's login.
    """
    if context.invoked_subcommand is not None:
        given = [option.opts[0] for option in context.command.params if _is_given(context, str(option.name))]
        if given:
            raise typer.BadParameter(
                f"{', '.join(given)} before '{context.invoked_subcommand}': give options after it"
            )
        return
    require("gradio", "space", "the page")
    console = Console()
    if pair:
        os.environ["HF_PRUNE_SPACE_FEATURED"] = ",".join(pair)
    if memory is not None:
        os.environ["HF_PRUNE_SPACE_MEMORY_GB"] = str(memory)
    console.say("Starting; Ctrl-C stops it.")
    from hf_prune.space_page.app import launch

    try:
        if host is not None:
            _require_own(host)
        launch(host, port, share=share or None, mcp=mcp or None, open_browser=open_browser)
    except OSError as error:
        raise ConfigError(
            f"the page can't be served on {host or '127.0.0.1'}, port {port or '7860 and up'} ({error}): give another "
            "--host or --port, or stop what uses it"
        ) from error


@grouped
def deploy_command(
    repo_id: Annotated[str, typer.Argument(help="namespace/name, or a name of your own.", metavar="SPACE")],
    *,
    hardware: Annotated[
        str | None, typer.Option(help="cpu-basic, zero-a10g, ... Default: as it is; the Hub's default for a new one.")
    ] = None,
    pair: Pairs = None,
    wheel: Annotated[
        Path | None, typer.Option(help="Wheel of hf-prune. Default: made of what runs here.", metavar="FILE")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a Space that hf-prune did not deploy.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    token: Annotated[str | None, typer.Option(help="Hub token. Better: `hf auth login`.")] = None,
    talk: ConsoleOptions,
) -> None:
    """Put the page and the wheel that runs it into a public Space, by one commit, and compare what the Hub holds."""
    from hf_prune.space_deploy import deploy

    console = Console(talk.quiet, talk.json)
    done = deploy(
        repo_id,
        hardware=hardware,
        pairs=pair or (),
        wheel=wheel,
        overwrite=overwrite,
        token=token,
        dry_run=dry_run,
    )
    console.done(
        f"{'Would deploy' if dry_run else 'Deployed'} {done.repo_id}",
        {
            "url": done.url,
            "commit": done.commit,
            "added": list(done.additions),
            "deleted": list(done.deletions),
            "unchanged": list(done.unchanged),
            "bytes": done.bytes,
            "new Space": done.created,
            "hardware": done.hardware,
            "models": list(done.models),
        },
    )


def _require_own(host: str) -> None:
    """Refuse an address that is not this machine's at once; Gradio would try it on a hundred ports, for minutes.

    Raises:
        OSError: there is no such address here.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.bind(address)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
