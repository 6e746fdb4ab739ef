"""What a target's name stands for in one model, and whether it can be trained with the settings at hand."""

import dataclasses
import logging

from hf_prune.architecture import Decoder
from hf_prune.config import HealingConfig
from hf_prune.errors import ConfigError
from hf_prune.healing.adapter import Adapters
from hf_prune.healing.origin import Origin
from hf_prune.healing.prefix import check_frozen, frozen_depth
from hf_prune.healing.ranks import Ranks, check_of_adapters
from hf_prune.healing.registries import kind_of, trainable
from hf_prune.healing.step import compared_positions, parse_losses
from hf_prune.healing.targets import find_targets, sides
from hf_prune.healing.teaching import check_losses
from hf_prune.healing.trainables.last import last_blocks
from hf_prune.healing.trained import Trainable

log = logging.getLogger(__name__)


def choose(decoder: Decoder, config: HealingConfig, origin: Origin) -> Trainable:
    """What is trained: a registered target's choice, or adapters on the maps that `config.target` names.

    Args:
        decoder: the pruned model, plain, 4-bit or without weights.
        config: resolved.
        origin: where it comes from.

    Raises:
        ConfigError: the target is unknown, cannot be had with these settings, leaves nothing to train, or the rank is
            above the width of a map.
        ArchitectureError: the blocks hold no linear map that could carry an adapter.
    """
    assert config.target
    check_of_adapters(config)
    if config.target not in trainable:
        chosen: Trainable = Adapters.of(decoder, config.target, origin.silent)
    else:
        chosen = trainable.get(config.target).function(decoder, config, origin)
    if isinstance(chosen, Adapters):
        _check_ranks(decoder, config, chosen)
    return chosen


def fitted(
    decoder: Decoder, config: HealingConfig, asked: HealingConfig, origin: Origin, *, left: int | None = None
) -> HealingConfig:
    """What recipes say and the model is too small for, made smaller; what the user set stays.

    A rank is at most the narrower side of every map that carries an adapter, and no more blocks are trained than
    there are.

    Args:
        decoder: the pruned model, or one of the same blocks.
        config: resolved, as far as target, rank, alpha and last_blocks go.
        asked: what the user set.
        origin: of that model.
        left: blocks that stay; all of them when None.

    Raises:
        ConfigError: names of the target stand for no map.
        ArchitectureError: see `choose`.
    """
    if config.last_blocks is not None and asked.last_blocks is None:
        blocks = decoder.num_layers if left is None else left
        config = dataclasses.replace(config, last_blocks=min(config.last_blocks, blocks))
    if asked.rank is not None or kind_of(str(config.target)) != "adapters":
        return config
    assert config.rank
    targets = find_targets(decoder, str(config.target), origin.silent)
    most = min(min(sides(decoder.model.get_submodule(name))) for name in targets.positions)
    if config.rank <= most:
        return config
    log.info("rank %d of recipe '%s' is above the narrowest map's: using %d", config.rank, config.method, most)
    follows = asked.alpha is None and config.alpha == config.rank
    return dataclasses.replace(config, rank=most, alpha=most if follows else config.alpha)


def check_trained(decoder: Decoder, config: HealingConfig, origin: Origin) -> None:
    """Refuse, once the cut is known and before any text, what cannot be trained, compared or kept.

    Args:
        decoder: the pruned model, also without weights.
        config: resolved, as far as target, loss, rank and alpha go.
        origin: of that model.

    Raises:
        ConfigError: see `choose` and `teaching.check_losses`; or a frozen prefix is to be kept, and there is none.
        ArchitectureError: see `choose`.
    """
    chosen, terms = choose(decoder, config, origin), parse_losses(config)
    positions = compared_positions(terms, origin)
    check_losses(terms, positions, chosen.lowest, origin)
    check_frozen(config.prefix, frozen_depth(chosen.lowest, positions))


def check_target(
    decoder: Decoder, config: HealingConfig, origin: Origin, *, grows: bool = False, left: int | None = None
) -> None:
    """Refuse before any work what `choose` will refuse.

    Which weights a target trains depends on the cut, so that those are chosen once it is made; what adapters sit on
    does not.

    Args:
        decoder: a model of the same blocks, also uncut and without weights.
        config: resolved, as far as target, rank and alpha go.
        origin: of that model.
        grows: whether its blocks will get maps that they have not yet, as slicing gives them; names may be of those.
        left: blocks that stay; all of them when None.

    Raises:
        ConfigError: see `choose`.
        ArchitectureError: see `choose`.
    """
    assert config.target
    check_of_adapters(config)
    if config.target == "last":
        last_blocks(config, decoder.num_layers if left is None else left, decoder.name)
    named_later = grows and config.target not in trainable
    if kind_of(config.target) == "adapters" and not named_later:
        choose(decoder, config, origin)


def _check_ranks(decoder: Decoder, config: HealingConfig, chosen: Adapters) -> None:
    """Refuse ranks at which an adapter is no smaller than the map that it sits on."""
    targets = find_targets(decoder, chosen.where, chosen.silent)
    ranks = Ranks.of(config).by_block(set(targets.positions.values()))
    for name, position in targets.positions.items():
        outputs, inputs = sides(decoder.model.get_submodule(name))
        if ranks[position] > min(outputs, inputs):
            at = "" if config.last_rank is None else f" (last_rank={config.last_rank})"
            raise ConfigError(
                f"healing.rank={config.rank}{at} gives '{name}' an adapter of rank {ranks[position]}; the map has "
                f"{outputs} outputs and {inputs} inputs, so that at most {min(outputs, inputs)} means anything. "
                "Lower the rank (--heal-rank), or leave this map out of the target"
            )
