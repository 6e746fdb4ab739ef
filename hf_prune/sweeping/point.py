"""One point of a sweep: found finished, or made, measured and remembered."""

import dataclasses
import logging
import time

from hf_prune import serial
from hf_prune.errors import PruneError
from hf_prune.records import ModelEvaluation
from hf_prune.run_folder import RunFolder
from hf_prune.sweeping.amounts import Wanted
from hf_prune.sweeping.branch import Branch
from hf_prune.sweeping.keeping import point_inputs, tidy, without_paths, without_warning_of_amounts
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
    settings = shared.healing_settings(shared.healing_of(wanted.config)) if heal else None
    inputs = point_inputs(branch, wanted.config, settings)
    path = run.path / "point.json"
    if run.has("point", inputs):
        tidy(run)
        return serial.from_dict(SweepPoint, serial.read_json(path))
    logger.info("%s:", wanted.name)
    run.begin("point")
    started = time.perf_counter()
    try:
        if method in refused:
            raise PruneError(refused[method])
        if recipe.measure is not None:
            _measure(branch, method, refused)
        with without_warning_of_amounts():
            done = _work(branch, empty, original, heal)
            shared.check_untouched()
    except PruneError as error:
        logger.warning("%s failed: %s", wanted.name, error)
        folders = (shared.folder, branch.source.folder)
        return dataclasses.replace(empty, status="failed", message=without_paths(str(error), folders))
    finally:
        models.release()
    done = dataclasses.replace(done, seconds=time.perf_counter() - started)
    serial.write_text(path, serial.dumps(done))
    run.finish("point", inputs)
    tidy(run)
    return done


def _measure(branch: Branch, method: str, refused: dict[str, str]) -> None:
    """Measure once for all points of a method; what it fails of, all of them fail of."""
    try:
        branch.measure()
    except PruneError as error:
        refused[method] = str(error)
        raise


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
