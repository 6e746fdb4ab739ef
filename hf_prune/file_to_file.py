"""A cut that loads nothing: the bytes that are kept go from file to file, or from the Hub to a file."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import hub_pull
from hf_prune.checkpoint import check_checkpoint
from hf_prune.errors import CheckpointError, RangeError, ReloadError, StreamError
from hf_prune.hub_headers import hub_weights
from hf_prune.loading import Fetched, read_config
from hf_prune.local_files import local_weights
from hf_prune.models import Models
from hf_prune.moving import SourceWeights
from hf_prune.records import Plan
from hf_prune.reload import check_streamed
from hf_prune.run_folder import remove
from hf_prune.saving import save_companions
from hf_prune.streaming import check_room, cuts_files, is_small
from hf_prune.surgery.checkpoint import cut_tensors, write_weights
from hf_prune.writers import Writer, Written

logger = logging.getLogger(__name__)

JOURNAL = "moved.json"
"""Beside a work folder: what has been moved there already."""


@dataclass(frozen=True)
class Found:
    """The weights of a base.

    Attributes:
        weights: what they are.
        fetched: how they come here.
        local: whether they are files here.
    """

    weights: SourceWeights
    fetched: Fetched
    local: bool


def file_to_file(
    models: Models,
    tokenizer: Tokenizer,
    plan: Plan,
    *,
    work: Path | None,
    token: str | bool | None = None,
    max_shard_size: str = "5GB",
    progress: bool = False,
) -> Writer | None:
    """Cuts a checkpoint without loading it.

    Args:
        models: whose original it is.
        tokenizer: used where the base has none.
        plan: what goes.
        work: where files grow, so that a killed run goes on; in the output's own staging folder when None, or where
            it lies on another disk.
        token: of the Hub.
        max_shard_size: as in `save_pretrained`.
        progress: whether to show a bar.

    Returns:
        The writer; None where this plan, or this checkpoint, has to be cut in memory.

    Raises:
        ConfigError: it has to be, and must not be in memory.
        HubError: the Hub refused.
        CheckpointError: the weights are broken, or do not fit their config.
    """
    origin, trusted, dtype = models.source.folder, models.kwargs["trust_remote_code"], models.kwargs["dtype"]
    if origin is None or not cuts_files(models, plan):
        return None
    found = _find(models, token)
    try:
        cut_tensors(found.weights, origin, plan, dtype=dtype, trust_remote_code=trusted)
    except StreamError as error:
        check_room(models, f"this cut ({error})", "take another method")
        logger.info("%s", error)
        return None

    def write(folder: Path) -> Written:
        growing = folder if work is None or not _on_one_disk(work.parent, folder) else work
        growing.mkdir(exist_ok=True)
        cut = write_weights(
            found.weights,
            origin,
            plan,
            growing,
            journal=None if growing is folder else growing.parent / JOURNAL,
            dtype=dtype,
            max_shard_size=max_shard_size,
            trust_remote_code=trusted,
            progress=progress,
        )
        if growing is not folder:
            for path in sorted(growing.iterdir()):
                _put(path, folder / path.name)
        save_companions(folder, model=cut, source=origin, keep=plan.kept, tokenizer=tokenizer)
        try:
            level = check_streamed(
                folder,
                source=origin if found.local else None,
                plan=plan,
                origin=origin,
                level="full" if found.local and is_small(models) else "streamed",
                dtype=dtype,
                trust_remote_code=trusted,
            )
        except ReloadError:
            if growing is not folder:  # the next run would take up, and refuse, the same files
                remove(growing)
            raise
        return Written(level, found.fetched)

    return write


def _find(models: Models, token: str | bool | None) -> Found:
    """Whole files where they are here already or asked for, else the headers alone; broken ones are refused."""
    source = models.source
    assert source.folder is not None
    commit = source.ref.revision
    away = commit is not None and models.fetched is None and hub_pull.cached_weights(source.ref.id, commit) is None
    if away and not models.whole_files:
        assert commit is not None
        try:
            weights = hub_weights(source.ref.id, commit, token)
        except RangeError as error:
            logger.warning("%s: this is done now", error)
        else:
            trusted = models.kwargs["trust_remote_code"]
            config = read_config(source.folder, source.ref.id, trust_remote_code=trusted)
            check_checkpoint(source.folder, config.get_text_config(decoder=True), source.ref.id, weights.entries)
            return Found(weights, "ranges", False)
    models.fetch()
    weights = local_weights(source.folder)
    if commit is None and weights.identity != source.ref.digest:
        raise CheckpointError(
            f"'{source.folder}' is no longer the checkpoint that was looked at first (its config or a weight file is "
            "another one); leave it alone meanwhile, and run the same command again"
        )
    return Found(weights, models.fetched or "whole", True)


def _put(path: Path, target: Path) -> None:
    """A second name for a file, so that a run that is killed in the check behind this need not write it again."""
    try:
        os.link(path, target)
    except OSError:  # a file system without links
        os.replace(path, target)


def _on_one_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev
