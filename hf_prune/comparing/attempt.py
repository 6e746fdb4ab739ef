"""One attempt: found finished, or made, measured, timed and remembered."""

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError

from hf_prune import serial
from hf_prune.comparing.entries import Entry
from hf_prune.comparing.record import Attempt, Effort
from hf_prune.config import EvaluationConfig
from hf_prune.errors import ArchitectureError, OutputError, PruneError
from hf_prune.evaluation.speed import growth, now
from hf_prune.records import ModelEvaluation, Plan
from hf_prune.registry import planner
from hf_prune.run_folder import RunFolder, remove
from hf_prune.runner import evaluating
from hf_prune.saving import no_room
from hf_prune.sweeping.branch import Branch
from hf_prune.sweeping.keeping import point_inputs, tidy, without_paths, without_warning_of_amounts
from hf_prune.sweeping.shared import Shared

logger = logging.getLogger(__name__)


def make_attempt(shared: Shared, entry: Entry, seed: int, original: ModelEvaluation, heal: bool) -> Attempt:
    """Find an attempt finished, or make it now; what goes wrong with it alone is recorded, and is tried again.

    Args:
        shared: what all attempts of this seed share.
        entry: the method.
        seed: see `Attempt`.
        original: figures of the base model.
        heal: whether it is healed.
    """
    name, config = entry.name(seed), entry.seeded(seed)
    empty = Attempt(name, entry.method, seed, entry.amount, entry.amount_of, "skipped", entry.impossible)
    if entry.impossible is not None:
        logger.warning("%s is skipped: %s", name, entry.impossible)
        return empty
    run = RunFolder(shared.folder / "points" / name)
    models = shared.models(run if heal else RunFolder())  # without healing no checkpoint is needed
    branch = shared.branch(config, run, models, heal=heal)
    settings = shared.healing_settings(shared.healing_of(config)) if heal else None
    inputs, path = point_inputs(branch, config, settings), run.path / "attempt.json"
    if run.has("attempt", inputs):
        tidy(run)
        return serial.from_dict(Attempt, serial.read_json(path))
    logger.info("%s:", name)
    run.begin("attempt")
    started = time.perf_counter()
    try:
        with without_warning_of_amounts():
            done = _work(branch, empty, original, heal)
            shared.check_untouched()
    except Exception as error:
        if _stops_all(error):
            raise
        folders = (shared.folder, branch.source.folder)
        message = without_paths(_told(error), folders)
        impossible = isinstance(error, ArchitectureError)
        if isinstance(error, PruneError):
            logger.warning("%s %s: %s", name, "is skipped" if impossible else "failed", error)
        else:
            logger.warning("%s failed: %s", name, error, exc_info=error)
        return dataclasses.replace(empty, status="skipped" if impossible else "failed", message=message)
    finally:
        models.release()
    done = dataclasses.replace(done, seconds=time.perf_counter() - started)
    serial.write_text(path, serial.dumps(done))
    run.finish("attempt", inputs)
    tidy(run)
    return done


def _stops_all(error: Exception) -> bool:
    """Whether what went wrong is not the method's: the disk is full."""
    return isinstance(error, OutputError) or (
        isinstance(error, OSError | SafetensorError) and no_room(error) is not None
    )


def _told(error: Exception) -> str:
    """Our own errors are sentences; of others the kind says as much as the message."""
    return str(error) if isinstance(error, PruneError) else f"{type(error).__name__}: {error}"


def _work(branch: Branch, empty: Attempt, original: ModelEvaluation, heal: bool) -> Attempt:
    choosing, plan = _choose(branch)
    cutting = _cut(branch, plan)
    pruned = branch.evaluate_as("pruned")
    healed, record = None, None
    if heal:
        record = branch.heal()
        healed = branch.evaluate_as("healed")
    removed = 1 - pruned.parameters / original.parameters
    return dataclasses.replace(
        empty,
        status="done",
        removed=plan.removed,
        widths=() if plan.slicing is None else plan.slicing.widths,
        reason=plan.reason,
        fits=plan.fits,
        parameters=pruned.parameters,
        bytes=pruned.bytes,
        share_removed=removed,
        share_silent=_silent(branch, plan, removed),
        choosing=choosing,
        cutting=cutting,
        pruned=pruned,
        healed=healed,
        healing_tokens=None if record is None else record.tokens,
        healing_seconds=None if record is None else record.seconds,
    )


def _choose(branch: Branch) -> tuple[Effort, Plan]:
    """Choose, and tell what that took: of an attempt that was killed, what it took then."""
    run, path = branch.run, branch.run.path / "choosing.json"
    config = dataclasses.replace(branch.config, evaluation=EvaluationConfig())
    known = point_inputs(branch, config, None)
    inputs = {name: known[name] for name in ("model", "config", "recipe", "seed", "calibration", "dtype")}
    if run.has("choosing", inputs):
        return serial.from_dict(Effort, serial.read_json(path)), branch.plan()
    remove(run.path)  # scores that are there already would cost nothing
    if branch.config.calibrates:
        branch.texts.calibration()
    if branch.config.searches:
        branch.texts.selection()
    recipe = branch.config.recipe()
    measures = recipe.measure is not None and planner.get(recipe.planner).needs != "judge"
    describing = 0.0

    def choose() -> Plan:
        nonlocal describing
        if measures:
            started = time.perf_counter()
            found = branch.measure().seconds
            describing = time.perf_counter() - started - found  # the machine is described in the record of scores
        return branch.plan()

    effort, plan = _timed(choose, _warm(branch))
    spent = [plan.forwards, branch.measure().forwards if measures else None]
    seconds = effort.seconds - describing
    effort = dataclasses.replace(effort, seconds=seconds, forwards=sum(one or 0.0 for one in spent))
    serial.write_text(path, serial.dumps(effort))
    run.finish("choosing", inputs)
    return effort, plan


def _cut(branch: Branch, plan: Plan) -> Effort:
    run, path, inputs = branch.run, branch.run.path / "cutting.json", {"plan": plan}
    if run.has("cutting", inputs):
        branch.prune()
        return serial.from_dict(Effort, serial.read_json(path))
    run.begin("pruned")  # a checkpoint that a killed call has left would be taken up in no time
    effort, _ = _timed(branch.prune, _warm(branch))
    serial.write_text(path, serial.dumps(effort))
    run.finish("cutting", inputs)
    return effort


def _warm(branch: Branch) -> torch.nn.Module:
    """The original in memory, run once: what libraries set up at their first call is nobody's effort."""
    model = branch.models.current()
    with evaluating(model), torch.inference_mode():
        model(input_ids=branch.texts.evaluation().sequences[0][None].to(model.device), use_cache=False)
    return model


def _timed(work: Callable[[], Any], model: torch.nn.Module) -> tuple[Effort, Any]:
    devices = {parameter.device for parameter in model.parameters()}
    gpus = {device for device in devices if device.type == "cuda"}
    clock = next(iter(gpus), torch.device("cpu"))
    found: list[Any] = []
    seconds: list[float] = []

    def timed() -> None:
        started = now(clock)
        found.append(work())
        seconds.append(now(clock) - started)

    memory = growth(timed, gpus)
    return Effort(seconds[0], max(0, memory)), found[0]


def _silent(branch: Branch, plan: Plan, removed: float) -> float:
    """Share of the original's parameters whose parts are silenced, and which the pruned model still has."""
    units = [unit for unit in plan.removed if unit.part != "block"]
    if not units:
        return 0.0
    sizes = branch.models.sizes()
    gone = sum(sizes.weight(unit, "parameters") for unit in plan.removed) / sizes.total("parameters")
    return max(0.0, gone - removed)
