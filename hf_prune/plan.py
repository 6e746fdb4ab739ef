"""Scores and an amount in, a plan out. Nothing here sees a model."""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_prune import serial
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.methods import Method
from hf_prune.planners.choice import Choice
from hf_prune.records import ModelRef, Operation, Plan, Scores, ranges
from hf_prune.registry import planner
from hf_prune.slicing.options import SEARCH

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
    """

    parameters: tuple[int, ...]
    bytes: tuple[int, ...]
    total_parameters: int
    total_bytes: int


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
    allowed = allowed_blocks(recipe, depth, name)
    if config.layers is not None:
        _check_layers(config.layers, depth, allowed, recipe, name)
    elif config.drop_layers is not None:
        if config.drop_layers >= depth or config.drop_layers > len(allowed):
            raise ConfigError(
                f"drop_layers={config.drop_layers} leaves {max(depth - config.drop_layers, 0)} of {depth} layers in "
                f"'{name}'; {_protection(recipe)}, so at most {min(len(allowed), depth - 1)} can go"
            )
    elif config.sparsity is None:
        if not needed:
            return
        raise ConfigError(
            f"how much of '{name}' shall go? Give one of drop_layers (1 to {min(len(allowed), depth - 1)}), layers or "
            "sparsity"
        )
    elif config.amount_of == "layers":
        count, most = _whole_layers(config.sparsity, depth), min(len(allowed), depth - 1)
        asked = f"sparsity={config.sparsity} of {depth} layers in '{name}'"
        if count < 1:
            raise ConfigError(f"{asked} is less than one layer; expected at least {_round_up(1 / depth)}")
        if count > most:
            raise ConfigError(
                f"{asked} is {count} layers, more than can go; expected at most {_round_down(most / depth)}, as "
                f"{_protection(recipe)}"
            )


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


def allowed_blocks(recipe: Method, depth: int, name: str) -> range:
    """Blocks that are not protected.

    Raises:
        ConfigError: protections leave none.
    """
    allowed = range(recipe.protect_first, depth - recipe.protect_last)
    if not allowed:
        raise ConfigError(f"{_protection(recipe)}, but '{name}' has {depth} blocks: none is left to drop")
    return allowed


def make_plan(config: PrunerConfig, model: ModelRef, sizes: Sizes, scores: Scores | None) -> Plan:
    """Choose the layers that go, and log a warning where they are many; see `choose_plan`."""
    plan = choose_plan(config, model, sizes, scores)
    if len(plan.dropped) > GENERATION_WARNING_SHARE * model.num_layers:
        logger.warning(
            "%d of %d layers go, above %d %%: published results collapse around there, and generation suffers first",
            len(plan.dropped), model.num_layers, round(100 * GENERATION_WARNING_SHARE),
        )  # fmt: skip
    return plan


def choose_plan(config: PrunerConfig, model: ModelRef, sizes: Sizes, scores: Scores | None) -> Plan:
    """Choose the layers that go.

    Args:
        config: the recipe.
        model: the base model.
        sizes: what its blocks weigh; used where the amount is a share of parameters or bytes.
        scores: what was measured; None for recipes that measure nothing and for `layers=[...]`.

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
        named = "Layers {} were" if len(config.layers) > 1 else "Layer {} was"
        choice = Choice(config.layers, f"{named.format(ranges(config.layers))} named by the user.")
    else:
        choice = _choose(config, recipe, model, sizes, scores)
    return Plan(
        model=model,
        method=config.method,
        planner="named" if config.layers is not None else recipe.planner,
        operations=(Operation(recipe.surgery, choice.layers, dict(config.surgery_kwargs)),),
        reason=choice.reason,
        distance=choice.distance,
        runner_up=choice.runner_up,
        gap=choice.gap,
        gap_standard_error=choice.gap_standard_error,
        scores=None if scores is None or config.layers is not None else scores_digest(scores),
    )


def _identity(model: ModelRef) -> tuple[str, int, str]:
    # Models that were handed over in memory have no digest: their name has to do.
    return model.model_type, model.num_layers, model.digest or f"in memory: {model.id}"


def _in_words(model: ModelRef) -> str:
    return f"{model.model_type}, {model.num_layers} blocks, digest {model.digest[:12] or 'unknown'}"


def scores_digest(scores: Scores) -> str:
    """The sha256 of a scores record."""
    return hashlib.sha256(serial.dumps(scores.to_dict()).encode()).hexdigest()


def _choose(config: PrunerConfig, recipe: Method, model: ModelRef, sizes: Sizes, scores: Scores | None) -> Choice:
    entry = planner.get(recipe.planner)
    allowed = allowed_blocks(recipe, model.num_layers, model.id)

    def choose(count: int) -> Choice:
        return entry.function(scores, count, allowed, **config.planner_kwargs)

    if config.drop_layers is not None:
        return choose(config.drop_layers)
    assert config.sparsity is not None
    if config.amount_of == "layers":
        choice = choose(_whole_layers(config.sparsity, model.num_layers))
        reached = len(choice.layers) / model.num_layers
    else:
        each = sizes.parameters if config.amount_of == "parameters" else sizes.bytes
        total = sizes.total_parameters if config.amount_of == "parameters" else sizes.total_bytes
        choice = _choose_by_weight(config, recipe, model, each, total, choose)
        reached = sum(each[i] for i in choice.layers) / total
    logger.info(
        "sparsity %s of %s: %d of %d layers go, which is %.4f",
        config.sparsity, config.amount_of, len(choice.layers), model.num_layers, reached,
    )  # fmt: skip
    return choice


def _choose_by_weight(
    config: PrunerConfig,
    recipe: Method,
    model: ModelRef,
    each: Sequence[int],
    total: int,
    choose: Callable[[int], Choice],
) -> Choice:
    """The most layers whose weight stays within the share asked for."""
    assert config.sparsity is not None
    budget = config.sparsity * total * (1 + _ROUNDING)
    asked = f"sparsity={config.sparsity} of the {config.amount_of} of '{model.id}'"
    most = min(len(allowed_blocks(recipe, model.num_layers, model.id)), model.num_layers - 1)
    weights: list[int] = []
    for count in range(most, 0, -1):
        choice = choose(count)
        weights.append(sum(each[i] for i in choice.layers))
        if weights[-1] > budget:
            continue
        kept = [size for i, size in enumerate(each) if i not in choice.layers]
        if count == most and weights[-1] + min(kept) <= budget:
            raise ConfigError(
                f"{asked} is more than can go; expected at most {_round_down(weights[-1] / total)}, as "
                f"{_protection(recipe)} and one block has to stay"
            )
        return choice
    raise ConfigError(
        f"{asked} is less than the block that would go first; expected at least {_round_up(weights[-1] / total)}"
    )


def _whole_layers(share: float, depth: int) -> int:
    return math.floor(share * depth + _ROUNDING)


def _round_up(share: float) -> float:
    return math.ceil(share * 1e4 - _ROUNDING) / 1e4


def _round_down(share: float) -> float:
    return math.floor(share * 1e4 + _ROUNDING) / 1e4


def _check_layers(layers: tuple[int, ...], depth: int, allowed: range, recipe: Method, name: str) -> None:
    outside = [i for i in layers if not 0 <= i < depth]
    if outside:
        raise ConfigError(
            f"layers={list(layers)}: {outside} out of range; '{name}' has {depth} blocks, counted 0 to {depth - 1}"
        )
    if len(layers) >= depth:
        raise ConfigError(f"layers={list(layers)} leaves none of the {depth} blocks of '{name}'; keep at least one")
    protected = [i for i in layers if i not in allowed]
    if protected:
        raise ConfigError(
            f"layers={list(layers)}: {protected} protected; {_protection(recipe)} of '{name}' ({depth} blocks). Leave "
            "them out, or set protect_first / protect_last"
        )


def _protection(recipe: Method) -> str:
    if not recipe.protect_first and not recipe.protect_last:
        return f"method '{recipe.name}' protects none"
    return f"method '{recipe.name}' protects {recipe.protect_first} first and {recipe.protect_last} last"
