"""Scores and an amount in, a plan out. Nothing here sees a model."""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_prune import serial
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.methods import Method
from hf_prune.planners.choice import Choice, blocks, in_words
from hf_prune.planners.problem import Judge, Problem
from hf_prune.records import ModelRef, Operation, Plan, Scores, ranges
from hf_prune.registry import fitted, planner
from hf_prune.slicing.options import SEARCH
from hf_prune.units import Part, Unit, layers_of, parts_of

logger = logging.getLogger(__name__)

GENERATION_WARNING_SHARE = 0.3
"""Share of layers above which we warn: published results collapse around there, generation first."""

# Shares are floats: 0.29 of 100 layers is 28.999999999999996, and means 29.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Sizes:
    """What blocks weigh.

    Attributes:
        parameters: of each block.
        bytes: of each block.
        total_parameters: of the whole model, tied ones once.
        total_bytes: likewise.
        flops: of each block, for one token of a text of the length that `total_flops` is of; empty where not counted.
        total_flops: of the whole model, likewise.
        parts: for each kind of part of a block ("attention", "mlp"), what that of each layer weighs, by "parameters",
            "bytes" and "flops"; 0 where a layer has no such part, or it cannot go.
    """

    parameters: tuple[int, ...]
    bytes: tuple[int, ...]
    total_parameters: int
    total_bytes: int
    flops: tuple[int, ...] = ()
    total_flops: int = 0
    parts: Mapping[Part, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)

    def weight(self, unit: Unit, of: str) -> int:
        """What a unit weighs.

        Args:
            unit: which one.
            of: "parameters", "bytes" or "flops".
        """
        each: tuple[int, ...] = getattr(self, of) if unit.part == "block" else self.parts[unit.part][of]
        return each[unit.layer]

    def total(self, of: str) -> int:
        """What the whole model weighs, by "parameters", "bytes" or "flops"."""
        return int(getattr(self, f"total_{of}"))


NOT_WEIGHED = Sizes((), (), 0, 0)
"""For amounts that count layers."""


def check_amount(config: PrunerConfig, depth: int, name: str, *, needed: bool = True) -> None:
    """Refuse an amount that a model of this depth cannot lose, before any work.

    Args:
        config: the recipe with its amount.
        depth: number of blocks.
        name: what the model is called in errors.
        needed: whether an amount has to be there; measuring alone needs none.

    Raises:
        ConfigError: no amount, too large an amount, or layers out of range or protected.
    """
    recipe = config.recipe()
    if recipe.cuts == "width":
        if needed and config.sparsity is None:
            raise ConfigError(
                f"how much of '{name}' shall go? Give sparsity, the share of the {config.amount_of}, such as 0.25"
            )
        return
    allowed = allowed_blocks(recipe, depth, name, config.protect)
    whole, kinds = recipe.unit == "block", parts_of(recipe.unit)
    total, what = depth * len(kinds), _WORDS[recipe.unit]
    most = min(len(allowed) * len(kinds), total - 1 if whole else total)
    if config.layers is not None:
        _check_layers(config.layers, depth, allowed, recipe, config.protect, name)
    elif config.drop_layers is not None:
        if config.drop_layers > most:
            raise ConfigError(
                f"drop_layers={config.drop_layers} leaves {max(total - config.drop_layers, 0)} of {total} {what} in "
                f"'{name}'; {_protection(recipe, config.protect)}, so at most {most} can go"
            )
    elif config.sparsity is None:
        if not needed:
            return
        raise ConfigError(f"how much of '{name}' shall go? Give one of drop_layers (1 to {most}), layers or sparsity")
    elif config.amount_of == "layers":
        count = _whole_layers(config.sparsity, total)
        asked = f"sparsity={config.sparsity} of {total} {what} in '{name}'"
        if count < 1:
            raise ConfigError(f"{asked} is less than one layer; expected at least {_round_up(1 / total)}")
        if count > most:
            raise ConfigError(
                f"{asked} is {count} {what}, more than can go; expected at most {_round_down(most / total)}, as "
                f"{_protection(recipe, config.protect)}"
            )


_WORDS = {"block": "layers", "attention": "attentions", "mlp": "MLPs", "joint": "attentions and MLPs"}


def carried_out_by(config: PrunerConfig, plan: Plan) -> PrunerConfig:
    """The recipe that tells what a plan does which was made before.

    Args:
        config: the recipe at hand; options of another method's parts mean nothing to the plan's, and go.
        plan: what is done.
    """
    other = plan.method != config.method
    changes: dict[str, Any] = {"layers": plan.dropped or None, "drop_layers": None, "sparsity": None}
    if other:
        changes |= dict.fromkeys(("sparsity_of", "measure", "planner", "surgery", "protect_first", "protect_last"))
        changes |= {"measure_kwargs": {}, "planner_kwargs": {}, "surgery_kwargs": {}}
    cut = plan.slicing
    if cut is not None:
        changes |= {"sparsity": cut.requested, "sparsity_of": cut.requested_of}
        changes["surgery_kwargs"] = dict(plan.operations[0].options)
        if cut.redundancy is not None:
            kept = {} if other else config.planner_kwargs
            changes["planner_kwargs"] = {**kept, "slice_base": SEARCH if cut.search else cut.base}
    return dataclasses.replace(config, method=plan.method, **changes)


def allowed_blocks(recipe: Method, depth: int, name: str, protect: Collection[int] = ()) -> tuple[int, ...]:
    """Blocks that are not protected, ascending.

    Args:
        recipe: protects some at both ends.
        depth: blocks that there are.
        name: what the model is called in errors.
        protect: further ones that must not go.

    Raises:
        ConfigError: protections leave none, or name blocks that are not there.
    """
    outside = [i for i in protect if not 0 <= i < depth]
    if outside:
        raise ConfigError(
            f"protect={list(protect)}: {outside} out of range; '{name}' has {depth} blocks, counted 0 to {depth - 1}"
        )
    allowed = tuple(i for i in range(recipe.protect_first, depth - recipe.protect_last) if i not in protect)
    if not allowed:
        raise ConfigError(f"{_protection(recipe, protect)}, but '{name}' has {depth} blocks: none is left to drop")
    return allowed


def make_plan(
    config: PrunerConfig, model: ModelRef, sizes: Sizes, scores: Scores | None, judge: Judge | None = None
) -> Plan:
    """Choose what goes, and log a warning where it is much; see `choose_plan`."""
    plan = choose_plan(config, model, sizes, scores, judge)
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
    if config.layers is not None:
        choice = _named(config.layers, recipe, model, sizes)
    else:
        choice = _choose(config, recipe, model, sizes, scores, judge)
    return Plan(
        model=model,
        method=config.method,
        planner="named" if config.layers is not None else recipe.planner,
        operations=_operations(config, recipe, choice),
        reason=choice.reason,
        distance=choice.distance,
        runner_up=choice.runner_up,
        gap=choice.gap,
        gap_standard_error=choice.gap_standard_error,
        scores=None if scores is None or config.layers is not None else scores_digest(scores),
        trials=choice.trials,
    )


def _operations(config: PrunerConfig, recipe: Method, choice: Choice) -> tuple[Operation, ...]:
    found = [
        Operation("silence", layers, {"part": part})
        for part in ("attention", "mlp")
        if (layers := layers_of(choice.units, part))  # type: ignore[arg-type]
    ]
    if choice.layers:
        to_fit = recipe.surgery in fitted
        kind, options = ("drop", {}) if to_fit else (recipe.surgery, config.options("surgery"))
        found.append(Operation(kind, choice.layers, options))
    return tuple(found)


def _named(layers: tuple[int, ...], recipe: Method, model: ModelRef, sizes: Sizes) -> Choice:
    named = "Layers {} were" if len(layers) > 1 else "Layer {} was"
    reason = f"{named.format(ranges(layers))} named by the user."
    if recipe.unit == "block":
        return Choice(blocks(layers), reason)
    units = tuple(sorted(Unit(i, part) for part in parts_of(recipe.unit) for i in layers))
    for unit in units:
        if not _has(unit, sizes):
            raise ConfigError(f"layers={list(layers)}: '{model.id}' has no {unit} that could go")
    return Choice(units, reason)


def _has(unit: Unit, sizes: Sizes) -> bool:
    each = sizes.parts.get(unit.part, {}).get("parameters", ())
    return unit.part == "block" or (unit.layer < len(each) and each[unit.layer] > 0)


def _units(config: PrunerConfig, recipe: Method, model: ModelRef, sizes: Sizes) -> tuple[Unit, ...]:
    allowed = allowed_blocks(recipe, model.num_layers, model.id, config.protect)
    found = tuple(unit for i in allowed for part in parts_of(recipe.unit) if _has(unit := Unit(i, part), sizes))
    if not found:
        raise ConfigError(f"'{model.id}' has no {_WORDS[recipe.unit]} that could go alone; take unit='block'")
    return found


def _identity(model: ModelRef) -> tuple[str, int, str]:
    # Models that were handed over in memory have no digest: their name has to do.
    return model.model_type, model.num_layers, model.digest or f"in memory: {model.id}"


def _in_words(model: ModelRef) -> str:
    return f"{model.model_type}, {model.num_layers} blocks, digest {model.digest[:12] or 'unknown'}"


def scores_digest(scores: Scores) -> str:
    """The sha256 of a scores record."""
    return hashlib.sha256(serial.dumps(scores.to_dict()).encode()).hexdigest()


def _choose(
    config: PrunerConfig,
    recipe: Method,
    model: ModelRef,
    sizes: Sizes,
    scores: Scores | None,
    judge: Judge | None,
) -> Choice:
    entry = planner.get(recipe.planner)
    units, depth = _units(config, recipe, model, sizes), model.num_layers
    most = min(len(units), depth - 1) if recipe.unit == "block" else len(units)

    def choose(count: int) -> Choice:
        problem = Problem(model.id, depth, units, count, scores, judge, config.calibration.seed)
        return entry.function(problem, **config.options("planner"))

    if config.drop_layers is not None:
        if config.drop_layers > most:
            raise ConfigError(
                f"drop_layers={config.drop_layers}: '{model.id}' has {most} {_WORDS[recipe.unit]} that can go"
            )
        return choose(config.drop_layers)
    assert config.sparsity is not None
    if config.amount_of == "layers":
        total = depth * len(parts_of(recipe.unit))
        choice = choose(min(_whole_layers(config.sparsity, total), most))
        reached = len(choice.units) / total
    else:
        total = sizes.total(config.amount_of)
        search = _size_that_fits if entry.needs == "judge" else _choose_by_weight
        choice = search(config, recipe, model, sizes, units, most, choose)
        reached = sum(sizes.weight(unit, config.amount_of) for unit in choice.units) / total
    logger.info(
        "sparsity %s of %s: %s go (%d of %d %s), which is %.4f",
        config.sparsity, config.amount_of, in_words(choice.units), len(choice.units),
        depth * len(parts_of(recipe.unit)), _WORDS[recipe.unit], reached,
    )  # fmt: skip
    return choice


def _size_that_fits(
    config: PrunerConfig,
    recipe: Method,
    model: ModelRef,
    sizes: Sizes,
    units: tuple[Unit, ...],
    most: int,
    choose: Callable[[int], Choice],
) -> Choice:
    """As many units as stay within the share whichever they are: a search is made once, not for each number."""
    assert config.sparsity is not None
    of = config.amount_of
    budget = config.sparsity * sizes.total(of) * (1 + _ROUNDING)
    heaviest = sorted((sizes.weight(unit, of) for unit in units), reverse=True)[:most]
    count = sum(1 for k in range(1, len(heaviest) + 1) if sum(heaviest[:k]) <= budget)
    asked = f"sparsity={config.sparsity} of the {of} of '{model.id}'"
    if count == 0:
        raise ConfigError(
            f"{asked} is less than the heaviest of what may go; expected at least "
            f"{_round_up(heaviest[0] / sizes.total(of))}"
        )
    lightest = sorted(sizes.weight(unit, of) for unit in units)
    if count == most and sum(lightest[: most + 1]) <= budget and len(lightest) > most:
        raise ConfigError(
            f"{asked} is more than can go; expected at most {_round_down(sum(heaviest) / sizes.total(of))}, as "
            f"{_protection(recipe, config.protect)} and one block has to stay"
        )
    return choose(count)


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
    budget = config.sparsity * total * (1 + _ROUNDING)
    asked = f"sparsity={config.sparsity} of the {of} of '{model.id}'"
    weights: list[int] = []
    for count in range(most, 0, -1):
        choice = choose(count)
        weights.append(sum(sizes.weight(unit, of) for unit in choice.units))
        if weights[-1] > budget:
            continue
        kept = [sizes.weight(u, of) for u in _everything(recipe, model, sizes) if u not in choice.units]
        if count == most and kept and weights[-1] + min(kept) <= budget:
            stays = " and one block has to stay" if recipe.unit == "block" else ""
            raise ConfigError(
                f"{asked} is more than can go; expected at most {_round_down(weights[-1] / total)}, as "
                f"{_protection(recipe, config.protect)}{stays}"
            )
        return choice
    raise ConfigError(
        f"{asked} is less than the block that would go first; expected at least {_round_up(weights[-1] / total)}"
    )


def _everything(recipe: Method, model: ModelRef, sizes: Sizes) -> list[Unit]:
    """All units, protected ones too."""
    every = (Unit(i, part) for i in range(model.num_layers) for part in parts_of(recipe.unit))
    return [unit for unit in every if _has(unit, sizes)]


def _whole_layers(share: float, depth: int) -> int:
    return math.floor(share * depth + _ROUNDING)


def _round_up(share: float) -> float:
    return math.ceil(share * 1e4 - _ROUNDING) / 1e4


def _round_down(share: float) -> float:
    return math.floor(share * 1e4 + _ROUNDING) / 1e4


def _check_layers(
    layers: tuple[int, ...], depth: int, allowed: tuple[int, ...], recipe: Method, protect: Collection[int], name: str
) -> None:
    outside = [i for i in layers if not 0 <= i < depth]
    if outside:
        raise ConfigError(
            f"layers={list(layers)}: {outside} out of range; '{name}' has {depth} blocks, counted 0 to {depth - 1}"
        )
    if len(layers) >= depth and recipe.unit == "block":
        raise ConfigError(f"layers={list(layers)} leaves none of the {depth} blocks of '{name}'; keep at least one")
    protected = [i for i in layers if i not in allowed]
    if protected:
        raise ConfigError(
            f"layers={list(layers)}: {protected} protected; {_protection(recipe, protect)} of '{name}' ({depth} "
            "blocks). Leave them out, or set protect_first / protect_last"
        )


def _protection(recipe: Method, protect: Collection[int] = ()) -> str:
    named = f", and layers {ranges(tuple(protect))} are protected by name" if protect else ""
    if not recipe.protect_first and not recipe.protect_last:
        return f"method '{recipe.name}' protects none{named}"
    return f"method '{recipe.name}' protects {recipe.protect_first} first and {recipe.protect_last} last{named}"
