"""Scores and an amount in, a plan out. Nothing here sees a model."""

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection
from itertools import accumulate
from typing import Any

from hf_prune import serial
from hf_prune.amounts import (
    ROUNDING,
    Sizes,
    all_units,
    check_amount,
    most_units,
    protection,
    round_down,
    round_up,
    units_named,
    units_that_may_go,
    units_to_remove,
)
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.methods import Method
from hf_prune.planners.choice import Choice, in_words
from hf_prune.planners.problem import Budget, Judge, Problem
from hf_prune.records import ModelRef, Operation, Plan, Scores, ranges
from hf_prune.registry import fitted, planner
from hf_prune.slicing.options import SEARCH
from hf_prune.units import WORDS, Unit, layers_of, parts_of

logger = logging.getLogger(__name__)

GENERATION_WARNING_SHARE = 0.3
"""Share of layers above which we warn: published results collapse around there, generation first."""


def carried_out_by(config: PrunerConfig, plan: Plan) -> PrunerConfig:
    """The recipe that tells what a plan does which was made before.

    Args:
        config: the recipe at hand; options of another method's parts mean nothing to the plan's, and go.
        plan: what is done.
    """
    other = plan.method != config.method
    # Parts of blocks cannot be named by layers: how many go is told.
    count = len(plan.removed) if plan.removed and not plan.dropped else None
    changes: dict[str, Any] = {"layers": plan.dropped or None, "drop_layers": count, "sparsity": None}
    if other:
        names = ("sparsity_of", "measure", "planner", "surgery", "protect_first", "protect_last", "unit")
        changes |= dict.fromkeys(names)
        changes |= {"measure_kwargs": {}, "planner_kwargs": {}, "surgery_kwargs": {}, "protect": ()}
    if plan.surgery is not None:
        changes |= {"surgery": plan.surgery, "surgery_kwargs": plan.surgery_options}
    if plan.sparsity is not None:
        changes["sparsity"] = plan.sparsity
    if plan.hard and not plan.dropped:
        parts = {unit.part for unit in plan.removed}
        changes["unit"] = next(kind for kind in WORDS if parts == set(parts_of(kind)))
        if plan.surgery is None:
            changes["surgery_kwargs"] = {"export": "hard"}
    elif config.takes_parts_out:
        changes["surgery_kwargs"] = {}
    cut = plan.slicing
    if cut is not None:
        changes |= {"sparsity": cut.requested, "sparsity_of": cut.requested_of}
        changes["surgery_kwargs"] = dict(plan.operations[0].options)
        if cut.redundancy is not None:
            kept = {} if other else config.planner_kwargs
            changes["planner_kwargs"] = {**kept, "slice_base": SEARCH if cut.search else cut.base}
    return dataclasses.replace(config, method=plan.method, **changes)


def check_healable(config: PrunerConfig, plan: Plan | None = None) -> None:
    """Refuse to heal what healing would undo.

    Args:
        config: the recipe.
        plan: what was done already, by this recipe or another; None while nothing is planned.

    Raises:
        ConfigError: the recipe, or the plan, zeroes single weights.
    """
    zeroes = config.recipe().cuts == "weights" if plan is None else plan.sparsity is not None
    if zeroes:
        method = config.method if plan is None else plan.method
        raise ConfigError(
            f"method '{method}' zeroes single weights, and healing merges changes into all of them: hardly one "
            "would stay zero. Leave healing out, or take a method that drops layers"
        )


def check_single_round(config: PrunerConfig) -> None:
    """Refuse to choose all at once what is chosen in rounds.

    Args:
        config: the recipe.

    Raises:
        ConfigError: it prunes and heals in several rounds.
    """
    if config.rounds > 1:
        raise ConfigError(
            f"rounds={config.rounds} chooses anew behind each healing, which only a whole run does (hf-prune run "
            "--heal); leave rounds out to choose all at once"
        )


def make_plan(
    config: PrunerConfig, model: ModelRef, sizes: Sizes, scores: Scores | None, judge: Judge | None = None
) -> Plan:
    """Choose what goes, log what a share comes to, and a warning where it is much; see `choose_plan`."""
    plan = choose_plan(config, model, sizes, scores, judge)
    if config.sparsity is not None and config.recipe().cuts == "layers":
        _tell_share(config, model, sizes, plan.removed)
    if len(plan.dropped) > GENERATION_WARNING_SHARE * model.num_layers:
        logger.warning(
            "%d of %d layers go, above %d %%: published results collapse around there, and generation suffers first",
            len(plan.dropped), model.num_layers, round(100 * GENERATION_WARNING_SHARE),
        )  # fmt: skip
    return plan


def choose_plan(
    config: PrunerConfig, model: ModelRef, sizes: Sizes, scores: Scores | None, judge: Judge | None = None
) -> Plan:
    """Choose what goes.

    Surgery that has to be fitted to the model is not in the plan yet: what it keeps of the choice is the drop.

    Args:
        config: the recipe.
        model: the base model.
        sizes: what its blocks weigh; used where the amount is a share of parameters, bytes or FLOPs, and where parts
            of blocks go.
        scores: what was measured; None for recipes that measure nothing and for `layers=[...]`.
        judge: answers planners that search.

    Raises:
        ConfigError: the amount does not fit the model, or scores of another model were given.
    """
    check_amount(config, model.num_layers, model.id)
    recipe = config.recipe()
    if scores is not None and _identity(scores.model) != _identity(model):
        raise ConfigError(
            f"the scores were measured on '{scores.model.id}' ({_in_words(scores.model)}); '{model.id}' is another "
            f"model ({_in_words(model)}). Measure again"
        )
    if recipe.cuts == "weights":
        choice = planner.get(recipe.planner).function(Problem(model.id, model.num_layers, (), 0, scores))
    elif config.layers is not None:
        choice = _named(config.layers, recipe, model, sizes)
    else:
        choice = _choose(config, recipe, model, sizes, scores, judge)
    return Plan(
        model=model,
        method=config.method,
        planner="named" if config.layers is not None else recipe.planner,
        operations=_operations(config, recipe, choice),
        reason=_saved(choice, sizes) if config.takes_parts_out else choice.reason,
        distance=choice.distance,
        runner_up=choice.runner_up,
        gap=choice.gap,
        gap_standard_error=choice.gap_standard_error,
        scores=None if scores is None or config.layers is not None else scores_digest(scores),
        sparsity=config.sparsity if recipe.cuts == "weights" else None,
        trials=choice.trials,
    )


def _operations(config: PrunerConfig, recipe: Method, choice: Choice) -> tuple[Operation, ...]:
    own = config.options("surgery")
    found = [
        Operation("remove" if config.ships_code else "silence", layers, {"part": part})
        for part in ("attention", "mlp")
        if (layers := layers_of(choice.units, part))  # type: ignore[arg-type]
    ]
    if choice.layers:
        to_fit = recipe.surgery != "drop" and recipe.surgery in fitted  # looking that up imports torch
        kind, options = ("drop", {}) if to_fit else (recipe.surgery, own)
        found.append(Operation(kind, choice.layers, options))
    return tuple(found)


def _saved(choice: Choice, sizes: Sizes) -> str:
    """Why these parts go, and what taking them out saves."""
    gone, total = sum(sizes.weight(unit, "parameters") for unit in choice.units), sizes.total("parameters")
    return (
        f"{choice.reason.removesuffix('.')}. They hold {gone:,} of {total:,} parameters ({gone / total:.1%}), and are "
        "taken out: no stock architecture of the family has layers without them, so that the result ships modeling "
        "code of its own."
    )


def _named(layers: tuple[int, ...], recipe: Method, model: ModelRef, sizes: Sizes) -> Choice:
    named = "Layers {} were" if len(layers) > 1 else "Layer {} was"
    return Choice(units_named(layers, recipe, model, sizes), f"{named.format(ranges(layers))} named by the user.")


def _identity(model: ModelRef) -> tuple[str, int, str]:
    # Models that were handed over in memory have no digest: their name has to do.
    return model.model_type, model.num_layers, model.digest or f"in memory: {model.id}"


def _in_words(model: ModelRef) -> str:
    return f"{model.model_type}, {model.num_layers} blocks, digest {model.digest[:12] or 'unknown'}"


def scores_digest(scores: Scores) -> str:
    """The sha256 of a scores record; of one that an older version wrote, the same as that version found."""
    told = {name: value for name, value in scores.to_dict().items() if name not in _NEWER or value not in (None, {})}
    told = {name: _before_answers(value) for name, value in told.items()}
    return hashlib.sha256(serial.dumps(told).encode()).hexdigest()


def _before_answers(value: Any) -> Any:
    """A text's record as it was written before answers could be told in it, where it tells none."""
    if not isinstance(value, dict) or value.get("answers", "") is not None:
        return value
    return {name: each for name, each in value.items() if name != "answers"}


_NEWER = ("importances", "importance_errors", "whole", "forwards")


def _choose(
    config: PrunerConfig,
    recipe: Method,
    model: ModelRef,
    sizes: Sizes,
    scores: Scores | None,
    judge: Judge | None,
) -> Choice:
    entry = planner.get(recipe.planner)
    units, depth = units_that_may_go(config, recipe, model, sizes), model.num_layers
    most = most_units(recipe, depth, units)

    def choose(count: int, budget: Budget | None = None) -> Choice:
        problem = Problem(model.id, depth, units, count, scores, judge, config.calibration.seed, budget)
        return entry.function(problem, **config.options("planner"))

    if config.drop_layers is not None:
        return choose(units_to_remove(config, recipe, model, units))
    assert config.sparsity is not None
    if config.amount_of == "layers":
        return choose(units_to_remove(config, recipe, model, units))
    search = _size_that_fits if entry.needs == "judge" else _choose_by_weight
    return search(config, recipe, model, sizes, units, most, choose)


def _tell_share(config: PrunerConfig, model: ModelRef, sizes: Sizes, removed: tuple[Unit, ...]) -> None:
    recipe, of = config.recipe(), config.amount_of
    every = model.num_layers * len(parts_of(recipe.unit))
    weighed = of != "layers"
    reached = sum(sizes.weight(unit, of) for unit in removed) / sizes.total(of) if weighed else len(removed) / every
    logger.info(
        "sparsity %s of %s: %s go (%d of %d %s), which is %.4f",
        config.sparsity, of, in_words(removed), len(removed), every, WORDS[recipe.unit], reached,
    )  # fmt: skip


def _size_that_fits(
    config: PrunerConfig,
    recipe: Method,
    model: ModelRef,
    sizes: Sizes,
    units: tuple[Unit, ...],
    most: int,
    choose: Callable[[int, Budget], Choice],
) -> Choice:
    """As many units as stay within the share whichever they are: a search is made once, not for each number.

    A planner that adds them one by one goes on while one fits.
    """
    assert config.sparsity is not None
    of, total = config.amount_of, sizes.total(config.amount_of)
    limit = config.sparsity * total * (1 + ROUNDING)
    weights = {unit: sizes.weight(unit, of) for unit in units}
    lightest = sorted(weights.values())
    heaviest = lightest[::-1][:most]
    certain, possible = (
        sum(1 for weight in accumulate(each) if weight <= limit) for each in (heaviest, lightest[:most])
    )
    asked = f"sparsity={config.sparsity} of the {of} of '{model.id}'"
    if certain == 0:
        raise ConfigError(
            f"{asked} is less than the heaviest of what may go; expected at least {round_up(heaviest[0] / total)}"
        )
    others = Counter(sizes.weight(unit, of) for unit in all_units(recipe, model, sizes)) - Counter(heaviest)
    if certain == most and others and sum(heaviest) + min(others) <= limit:
        raise _too_much(asked, sum(heaviest) / total, recipe, config.protect)
    return choose(certain, Budget(weights, limit, possible))


def _too_much(asked: str, share: float, recipe: Method, protect: Collection[int]) -> ConfigError:
    stays = " and one block has to stay" if recipe.unit == "block" else ""
    return ConfigError(
        f"{asked} is more than can go; expected at most {round_down(share)}, as {protection(recipe, protect)}{stays}"
    )


def _choose_by_weight(
    config: PrunerConfig,
    recipe: Method,
    model: ModelRef,
    sizes: Sizes,
    units: tuple[Unit, ...],
    most: int,
    choose: Callable[[int], Choice],
) -> Choice:
    """The most units whose weight stays within the share asked for."""
    assert config.sparsity is not None
    of, total = config.amount_of, sizes.total(config.amount_of)
    limit = config.sparsity * total * (1 + ROUNDING)
    asked = f"sparsity={config.sparsity} of the {of} of '{model.id}'"

    def weight(choice: Choice) -> int:
        return sum(sizes.weight(unit, of) for unit in choice.units)

    first = choose(1)  # also says what is wrong with the scores, where something is
    for count in range(most, 0, -1):
        try:
            choice = choose(count)
        except ConfigError:  # there may be no such window
            continue
        if weight(choice) > limit:
            continue
        kept = [sizes.weight(u, of) for u in all_units(recipe, model, sizes) if u not in choice.units]
        if count == most and kept and weight(choice) + min(kept) <= limit:
            raise _too_much(asked, weight(choice) / total, recipe, config.protect)
        return choice
    raise ConfigError(
        f"{asked} is less than the {'block' if recipe.unit == 'block' else 'part'} that would go first; expected at "
        f"least {round_up(weight(first) / total)}"
    )
