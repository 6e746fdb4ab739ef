"""The folder of an export: records and card around its weights, and its way to the Hub."""

from pathlib import Path
from typing import Any

from hf_prune import serial
from hf_prune.errors import ConfigError, ReloadError
from hf_prune.exporting.card import export_card
from hf_prune.exporting.record import Export, is_export
from hf_prune.hub import PushResult
from hf_prune.output import Finished, push_named
from hf_prune.records import Healing, Plan, Record
from hf_prune.saving import RECORDS, licence_files


def write_export(folder: Path, finished: Finished, export: Export) -> None:
    """Put recipe, records and card into a folder that holds the weights.

    The evaluation goes along with an adapter, which is the very model that was evaluated; 4-bit weights are another.

    Args:
        folder: of the export.
        finished: records of what it was made of.
        export: its own record.
    """
    finished.config.save_pretrained(folder)
    evaluation = finished.evaluation if export.form == "base-adapter" else None
    kept: tuple[Record | None, ...] = (finished.plan, finished.scores, finished.healing, evaluation, export)
    for record in kept:
        if record is not None:
            record.save(folder / RECORDS)
    write_export_card(folder)


def write_export_card(folder: Path, repo_id: str | None = None) -> Path:
    """Write README.md of an export from its records.

    Args:
        folder: of the export.
        repo_id: where it goes.

    Raises:
        ConfigError: the folder is no export, or its records cannot be read.
    """
    export, plan, healing = _records(folder)
    text = export_card(export, plan, healing, licence_files(folder), repo_id)
    serial.write_text(folder / "README.md", text)
    return folder / "README.md"


def push_export(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    dry_run: bool = False,
    **push_kwargs: Any,
) -> PushResult:
    """Push an export; its card is written anew with the repo's name first.

    Args:
        folder: what an export wrote.
        repo_id: repo to push to.
        private: None makes a new repo private where the base is gated or private.
        token: of the Hub.
        dry_run: only tell what would happen; nothing is written, the card neither.
        push_kwargs: see `hf_prune.hub.push_folder`.

    Raises:
        ConfigError: the folder is no export.
        HubError: the Hub refused.
    """
    export = _records(folder)[0]
    told = {"private": private, "token": token, "dry_run": dry_run, **push_kwargs}
    return push_named(
        folder, repo_id, export.model, export.base_card, lambda checked: write_export_card(folder, checked), **told
    )


def compared(export: Export, folder: Path) -> Export:
    """The record itself, where what was written answers as it should.

    Args:
        export: with the difference that was found.
        folder: where it was to be.

    Raises:
        ReloadError: the logits differ by more than is allowed.
    """
    if not export.difference <= export.tolerance:
        raise ReloadError(
            f"'{folder}' loads back as another model: logits for fixed inputs differ by up to "
            f"{export.difference:.3g}, at most {export.tolerance:.3g} was expected. The output was not kept"
        )
    return export


def _records(folder: Path) -> tuple[Export, Plan, Healing | None]:
    records = folder / RECORDS
    if not is_export(folder):
        raise ConfigError(f"'{folder}' is no export of hf-prune (it has no {RECORDS}/{Export.FILE})")
    healing = Healing.load(records) if (records / Healing.FILE).is_file() else None
    return Export.load(records), Plan.load(records), healing


def weight_bytes(*files: Path) -> int:
    """Bytes of all these files together."""
    return sum(path.stat().st_size for path in files)
