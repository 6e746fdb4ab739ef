"""One point of a sweep: found finished, or made, measured and remembered."""

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_prune import serial
from hf_prune.config import HealingConfig
from hf_prune.errors import PruneError
from hf_prune.evaluation.task_loading import task_files
from hf_prune.records import ModelEvaluation
from hf_prune.run_folder import RunFolder, remove
from hf_prune.stage_configs import CalibrationConfig
from hf_prune.sweeping.amounts import Wanted
from hf_prune.sweeping.branch import Branch
from hf_prune.sweeping.record import SweepPoint
from hf_prune.sweeping.shared import Shared

logger = logging.getLogger(__name__)


def make_point(
    shared: Shared, wanted: Wanted, original: ModelEvaluation, heal: bool, refused: dict[str, str]
) -> SweepPoint:
    """Find a point finished, or make it now; what goes wrong with it alone is recorded.

    Args:
        shared: what all points share.
        wanted: which point.
        original: figures of the base model.
        heal: whether it is healed.
        refused: by method, what no point of it can be made for; added to here.
    """
    method = wanted.config.method
    empty = SweepPoint(wanted.name, method, wanted.amount, wanted.amount_of, "skipped", wanted.impossible)
    if wanted.impossible is not None:
        logger.warning("%s is skipped: %s", wanted.name, wanted.impossible)
        return empty
    recipe = wanted.config.recipe()
    run = RunFolder(shared.folder / "points" / wanted.name)
    # Without healing no checkpoint of the pruned model is needed.
    models = shared.models(run if heal else RunFolder())
    branch = shared.branch(wanted.config, run, models, heal=heal).grow_from(shared.trunk(method))
    settings = shared.healing_settings(recipe.healing) if heal else None
    inputs = _inputs(branch, wanted, settings)
    path = run.path / "point.json"
    if run.has("point", inputs):
        _tidy(run)
        return serial.from_dict(SweepPoint, serial.read_json(path))
    logger.info("%s:", wanted.name)
    run.begin("point")
    started = time.perf_counter()
    try:
        if method in refused:
            raise PruneError(refused[method])
        if recipe.measure is not None:
            _measure(branch, method, refused)
        with _without_warning_of_amounts():
            done = _work(branch, empty, original, heal)
    except PruneError as error:
        logger.warning("%s failed: %s", wanted.name, error)
        folders = (shared.folder, branch.source.folder)
        return dataclasses.replace(empty, status="failed", message=_without_paths(str(error), folders))
    finally:
        models.release()
    done = dataclasses.replace(done, seconds=time.perf_counter() - started)
    serial.write_text(path, serial.dumps(done))
    run.finish("point", inputs)
    _tidy(run)
    return done


def _without_paths(message: str, folders: Sequence[Path | None]) -> str:
    """Records travel, and the places of folders on this machine are nobody's business."""
    for folder in folders:
        if folder is not None:
            for place in (folder.absolute(), folder.resolve()):
                message = message.replace(str(place), place.name)
    return message


def _tidy(run: RunFolder) -> None:
    """Remove weights: they are large, and figures are what was wanted."""
    run.begin("pruned")  # no mark without the files
    for name in ("pruned", "healing"):
        remove(run.path / name)


def _measure(branch: Branch, method: str, refused: dict[str, str]) -> None:
    """Measure once for all points of a method; what it fails of, all of them fail of."""
    try:
        branch.measure()
    except PruneError as error:
        refused[method] = str(error)
        raise


def _inputs(branch: Branch, wanted: Wanted, settings: HealingConfig | None) -> dict[str, Any]:
    """All that a point depends on; how a text was got does not matter, only which it is."""
    texts = branch.texts
    config = dataclasses.replace(wanted.config, calibration=CalibrationConfig(), healing=HealingConfig())
    healed = {} if settings is None else {"held-out": texts.held_out(settings), "healing": texts.healing(settings)}
    return {
        "model": branch.source.ref,
        "config": config,
        "calibration": texts.calibration().use if wanted.config.calibrates else None,
        "evaluation": texts.evaluation().use,
        "task files": task_files(wanted.config.evaluation.task_path),
        "healing": settings,
        "healing texts": {name: text.use for name, text in healed.items()},
        "dtype": str(branch.models.kwargs["dtype"]),
    }


def _work(branch: Branch, empty: SweepPoint, original: ModelEvaluation, heal: bool) -> SweepPoint:
    plan = branch.plan()
    branch.prune()
    pruned = branch.evaluate_as("pruned")
    healed, record = None, None
    if heal:
        record = branch.heal()
        healed = branch.evaluate_as("healed")
    return dataclasses.replace(
        empty,
        status="done",
        dropped=plan.dropped,
        widths=() if plan.slicing is None else plan.slicing.widths,
        parameters=pruned.parameters,
        bytes=pruned.bytes,
        share_removed=1 - pruned.parameters / original.parameters,
        pruned=pruned,
        healed=healed,
        healing_tokens=None if record is None else record.tokens,
    )


@contextmanager
def _without_warning_of_amounts() -> Iterator[None]:
    """A sweep goes on purpose where published results collapse: no need to say so at each point."""
    talker = logging.getLogger("hf_prune.plan")
    before = talker.level
    talker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        talker.setLevel(before)
