"""`export`: a finished folder in another form."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_prune.cli.console import Console
from hf_prune.cli.options import ConsoleOptions, LoadOptions, grouped
from hf_prune.errors import ConfigError

FORMS = ("base-adapter", "nf4")


@grouped
def export_command(
    folder: Annotated[Path, typer.Argument(help="Folder that hf-prune wrote.", metavar="DIR")],
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="base-adapter (a small adapter on the original's repo, which drops the layers as it is loaded) or "
            "nf4 (4-bit weights, by bitsandbytes).",
            metavar="FORM",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New or empty folder. Default: DIR-FORM.")
    ] = None,
    original: Annotated[
        str | None, typer.Option(help="The model that was pruned; for base-adapter. Default: as recorded.")
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(help="Largest weight file that is written, such as 2GB; for nf4.", metavar="SIZE")
    ] = "5GB",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell whether it can be.")] = False,
    loading: LoadOptions,
    talk: ConsoleOptions,
) -> None:
    """Write a finished folder in another form, once it is loaded back and answers as it should.

    `hf-prune push` takes what comes out.
    """
    from hf_prune.registry import did_you_mean

    console = Console(talk.quiet, talk.json)
    if to not in FORMS:
        raise ConfigError(f"--to '{to}'; expected one of: {', '.join(FORMS)}.{did_you_mean(to, list(FORMS))}")
    target = output or Path(f"{folder}-{to}")
    shared: dict[str, Any] = {
        "dtype": loading.dtype,
        "device_map": loading.device,
        "trust_remote_code": loading.trust_remote_code,
        "dry_run": dry_run,
        "progress": console.progress,
    }
    if to == "base-adapter":
        from hf_prune.exporting import export_base_adapter

        export = export_base_adapter(folder, target, original=original, token=loading.token, **shared)
    else:
        from hf_prune.exporting import export_nf4

        if original is not None:
            raise ConfigError(f"--original '{original}' is for base-adapter; nf4 needs the folder alone. Leave it out")
        export = export_nf4(folder, target, max_shard_size=max_shard_size, **shared)
    if export is None:
        console.done("Nothing was done", {"folder": str(target), "form": to, "possible": True})
        return
    from hf_prune.card_tables import size

    before, after = export.loss_before, export.loss_after
    loss = None if before is None or after is None else f"{before:.4f} → {after:.4f} nats per token"
    console.done(
        f"Exported {folder} as {to}",
        {
            "folder": str(target),
            "card": str(target / "README.md"),
            "weights": f"{size(export.bytes)}, in place of {size(export.source_bytes)}",
            "largest difference of logits": export.difference,
            "loss on the evaluation's text": loss or ("not measured" if to == "nf4" else None),
        },
    )
