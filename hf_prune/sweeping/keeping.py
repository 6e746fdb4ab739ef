"""How a point is remembered: what it depends on, and what of it is kept."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_prune.config import CalibrationConfig, HealingConfig, PrunerConfig
from hf_prune.evaluation.task_loading import task_files
from hf_prune.run_folder import RunFolder, remove
from hf_prune.sweeping.branch import Branch


def point_inputs(branch: Branch, config: PrunerConfig, settings: HealingConfig | None) -> dict[str, Any]:
    """All that a point depends on; how a text was got does not matter, only which it is.

    Args:
        branch: its stages.
        config: its recipe.
        settings: resolved healing settings; None where it is not healed.
    """
    texts = branch.texts
    neutral = dataclasses.replace(config, calibration=CalibrationConfig(), healing=HealingConfig())
    healed = {} if settings is None else {"held-out": texts.held_out(settings), "healing": texts.healing(settings)}
    return {
        "model": branch.source.ref,
        "config": neutral,
        "recipe": config.recipe(),
        "seed": config.calibration.seed,  # planners draw by it, also those that look at no text
        "calibration": texts.calibration().use if config.calibrates else None,
        "evaluation": texts.evaluation().use,
        "further": {name: text.use for name, text in branch.further.items()},
        "task files": task_files(config.evaluation.task_path),
        "healing": settings,
        "healing texts": {name: text.use for name, text in healed.items()},
        "dtype": str(branch.models.kwargs["dtype"]),
    }


def without_paths(message: str, folders: Sequence[Path | None]) -> str:
    """Records travel, and the places of folders on this machine are nobody's business.

    Args:
        message: of an error.
        folders: that it may name; what is left of each is its own name.
    """
    for folder in folders:
        if folder is not None:
            for place in (folder.absolute(), folder.resolve()):
                message = message.replace(str(place), place.name)
    return message


def tidy(run: RunFolder) -> None:
    """Remove weights: they are large, and figures are what was wanted."""
    run.begin("pruned")  # no mark without the files
    for name in ("pruned", "healing"):
        remove(run.path / name)


@contextmanager
def without_warning_of_amounts() -> Iterator[None]:
    """Many cuts are made on purpose where published results collapse: no need to say so at each."""
    talker = logging.getLogger("hf_prune.plan")
    before = talker.level
    talker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        talker.setLevel(before)
