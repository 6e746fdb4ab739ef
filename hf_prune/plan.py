"""Scores and an amount in, a plan out. Nothing here sees a model."""

import hashlib
import logging
from dataclasses import dataclass

from hf_prune import serial
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.methods import Method
from hf_prune.planners.choice import Choice
from hf_prune.records import ModelRef, Operation, Plan, Scores, ranges
from hf_prune.registry import planner

logger = logging.getLogger(__name__)

GENERATION_WARNING_SHARE = 0.3
"""Share of layers above which we warn: published results collapse around there, generation first."""


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


def check_amount(config: PrunerConfig, depth: int, name: str) -> None:
    """Refuse an amount that a model of this depth cannot lose, before any work.

    Args:
        config: the recipe with its amount.
        depth: number of blocks.
        name: what the model is called in errors.

    Raises:
        ConfigError: no amount, too large an amount, or layers out of range or protected.
    """
    recipe = config.recipe()
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
        raise ConfigError(
            f"how much of '{name}' shall go? Give one of drop_layers (1 to {min(len(allowed), depth - 1)}), layers or "
            "sparsity"
        )
    elif config.sparsity_of == "layers" and int(config.sparsity * depth) < 1:
        raise ConfigError(
            f"sparsity={config.sparsity} of {depth} layers in '{name}' is less than one layer; expected at least "
            f"{1 / depth:.4f}"
        )


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
    if scores is not None and (scores.model.num_layers, scores.model.digest) != (model.num_layers, model.digest):
        raise ConfigError(
            f"the scores were measured on '{scores.model.id}' ({scores.model.num_layers} blocks, digest "
            f"{scores.model.digest[:12]}); '{model.id}' has {model.num_layers} blocks and digest {model.digest[:12]}. "
            "Measure again"
        )
    if config.layers is not None:
        choice = Choice(config.layers, f"Layers {ranges(config.layers)} were named by the user.")
    else:
        choice = _choose(config, recipe, model, sizes, scores)
    plan = Plan(
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
    if len(plan.dropped) > GENERATION_WARNING_SHARE * model.num_layers:
        logger.warning(
            "%d of %d layers go, above %d %%: published results collapse around there, and generation suffers first",
            len(plan.dropped), model.num_layers, round(100 * GENERATION_WARNING_SHARE),
        )  # fmt: skip
    return plan


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
    most = min(len(allowed), model.num_layers - 1)
    if config.sparsity_of == "layers":
        count = min(int(config.sparsity * model.num_layers), most)
        choice = choose(count)
        reached = count / model.num_layers
    else:
        each = sizes.parameters if config.sparsity_of == "parameters" else sizes.bytes
        total = sizes.total_parameters if config.sparsity_of == "parameters" else sizes.total_bytes
        fitting = (
            c for c in map(choose, range(most, 0, -1)) if sum(each[i] for i in c.layers) <= config.sparsity * total
        )
        found = next(fitting, None)
        if found is None:
            raise ConfigError(
                f"sparsity={config.sparsity} of the {config.sparsity_of} of '{model.id}' is less than any one block; "
                f"expected at least {min(each[i] for i in allowed) / total:.4f}"
            )
        choice = found
        reached = sum(each[i] for i in choice.layers) / total
    logger.info(
        "sparsity %s of %s: %d of %d layers go, which is %.4f",
        config.sparsity, config.sparsity_of, len(choice.layers), model.num_layers, reached,
    )  # fmt: skip
    return choice


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
