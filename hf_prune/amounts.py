"""How much goes: amounts against what a model has, before any work."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.methods import Method
from hf_prune.records import ModelRef, Scores, ranges
from hf_prune.units import WORDS, Part, Unit, parts_of

ROUNDING = 1e-9
"""Shares are floats: 0.29 of 100 layers is 28.999999999999996, and means 29."""


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
        why: of kinds of parts that no layer has, or that cannot go, why.
    """

    parameters: tuple[int, ...]
    bytes: tuple[int, ...]
    total_parameters: int
    total_bytes: int
    flops: tuple[int, ...] = ()
    total_flops: int = 0
    parts: Mapping[Part, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    why: Mapping[Part, str] = field(default_factory=dict)

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


def sizes_told_by(scores: Scores) -> Sizes:
    """Which parts the blocks have that were scored; not what they weigh.

    Args:
        scores: tell the importance of each part that there is.
    """
    parts: dict[Part, Mapping[str, tuple[int, ...]]] = {
        part: {"parameters": tuple(int(value is not None) for value in row)}  # type: ignore[misc]
        for part, row in scores.importances.items()
        if part != "block"
    }
    return Sizes((), (), 0, 0, parts=parts)


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
    if recipe.cuts != "layers":
        if needed and config.sparsity is None:
            raise ConfigError(
                f"how much of '{name}' shall go? Give sparsity, the share of the {config.amount_of}, such as 0.25"
            )
        return
    allowed = allowed_blocks(recipe, depth, name, config.protect)
    whole, kinds = recipe.unit == "block", parts_of(recipe.unit)
    total, what = depth * len(kinds), WORDS[recipe.unit]
    most = min(len(allowed) * len(kinds), total - 1 if whole else total)
    if config.layers is not None:
        _check_layers(config.layers, depth, allowed, recipe, config.protect, name)
    elif config.drop_layers is not None:
        if config.drop_layers > most:
            raise ConfigError(
                f"drop_layers={config.drop_layers} leaves {max(total - config.drop_layers, 0)} of {total} {what} in "
                f"'{name}'; {protection(recipe, config.protect)}, so at most {most} can go"
            )
    elif config.sparsity is None:
        if not needed:
            return
        raise ConfigError(f"how much of '{name}' shall go? Give one of drop_layers (1 to {most}), layers or sparsity")
    elif config.amount_of == "layers":
        count = _whole_layers(config.sparsity, total)
        asked = f"sparsity={config.sparsity} of {total} {what} in '{name}'"
        if count < 1:
            raise ConfigError(f"{asked} is less than one layer; expected at least {round_up(1 / total)}")
        if count > most:
            raise ConfigError(
                f"{asked} is {count} {what}, more than can go; expected at most {round_down(most / total)}, as "
                f"{protection(recipe, config.protect)}"
            )


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
        raise ConfigError(f"{protection(recipe, protect)}, but '{name}' has {depth} blocks: none is left to drop")
    return allowed


def units_named(layers: tuple[int, ...], recipe: Method, model: ModelRef, sizes: Sizes) -> tuple[Unit, ...]:
    """What goes of layers that the user names.

    Args:
        layers: ascending.
        recipe: says which parts of them.
        model: the base model.
        sizes: which parts there are.

    Raises:
        ConfigError: a layer has no such part.
    """
    units = tuple(sorted(Unit(i, part) for part in parts_of(recipe.unit) for i in layers))
    for unit in units:
        if not has(unit, sizes):
            raise ConfigError(f"layers={list(layers)}: '{model.id}' has no {unit} that could go")
    return units


def has(unit: Unit, sizes: Sizes) -> bool:
    """Whether a model has a unit that can go."""
    each = sizes.parts.get(unit.part, {}).get("parameters", ())
    return unit.part == "block" or (unit.layer < len(each) and each[unit.layer] > 0)


def units_that_may_go(config: PrunerConfig, recipe: Method, model: ModelRef, sizes: Sizes) -> tuple[Unit, ...]:
    """Units that are there and not protected, ascending.

    Raises:
        ConfigError: there are none.
    """
    allowed = allowed_blocks(recipe, model.num_layers, model.id, config.protect)
    found = tuple(unit for i in allowed for part in parts_of(recipe.unit) if has(unit := Unit(i, part), sizes))
    if not found:
        why = "; ".join(dict.fromkeys(sizes.why[part] for part in parts_of(recipe.unit) if part in sizes.why))
        raise ConfigError(
            f"'{model.id}' has no {WORDS[recipe.unit]} that could go alone{why and f' ({why})'}; take unit='block'"
        )
    return found


def check_units(config: PrunerConfig, model: ModelRef, sizes: Sizes) -> None:
    """Refuse an amount that does not suit what a model is made of, before anything is measured.

    Args:
        config: the recipe.
        model: the base model.
        sizes: what its blocks and their parts weigh.

    Raises:
        ConfigError: it has no such parts, or too few of them; or the share is less than the lightest of them.
    """
    recipe = config.recipe()
    if config.layers is not None:
        units_named(config.layers, recipe, model, sizes)
        return
    units = units_that_may_go(config, recipe, model, sizes)
    if config.sparsity is None or config.amount_of == "layers":
        units_to_remove(config, recipe, model, units)
        return
    lightest, total = min(sizes.weight(unit, config.amount_of) for unit in units), sizes.total(config.amount_of)
    if lightest > config.sparsity * total * (1 + ROUNDING):
        raise ConfigError(
            f"sparsity={config.sparsity} of the {config.amount_of} of '{model.id}' is less than the lightest of what "
            f"may go; expected at least {round_up(lightest / total)}"
        )


def most_units(recipe: Method, depth: int, units: tuple[Unit, ...]) -> int:
    """How many of these units may go at most: one block has to stay."""
    return min(len(units), depth - 1) if recipe.unit == "block" else len(units)


def units_to_remove(config: PrunerConfig, recipe: Method, model: ModelRef, units: tuple[Unit, ...]) -> int:
    """How many units go where the amount says that."""
    if config.drop_layers is not None:
        asked, count = f"drop_layers={config.drop_layers}", config.drop_layers
    else:
        assert config.sparsity is not None
        total = model.num_layers * len(parts_of(recipe.unit))
        count = _whole_layers(config.sparsity, total)
        asked = f"sparsity={config.sparsity} of {total} {WORDS[recipe.unit]} is {count}"
    most = most_units(recipe, model.num_layers, units)
    if count > most:
        raise ConfigError(
            f"{asked}: '{model.id}' has {most} {WORDS[recipe.unit]} that can go, as "
            f"{protection(recipe, config.protect)}"
        )
    return count


def all_units(recipe: Method, model: ModelRef, sizes: Sizes) -> list[Unit]:
    """All units, protected ones too."""
    every = (Unit(i, part) for i in range(model.num_layers) for part in parts_of(recipe.unit))
    return [unit for unit in every if has(unit, sizes)]


def layers_to_drop(config: PrunerConfig, depth: int) -> int:
    """How many layers an amount that counts layers comes to.

    Args:
        config: the recipe; its amount was checked.
        depth: blocks that there are.

    Raises:
        ConfigError: the amount counts something else.
    """
    if config.drop_layers is not None:
        return config.drop_layers
    if config.sparsity is None or config.amount_of != "layers":
        raise ConfigError(
            f"rounds={config.rounds} share out a number of layers; got sparsity={config.sparsity} of "
            f"{config.amount_of}. Give drop_layers"
        )
    return _whole_layers(config.sparsity, depth)


def blocks_left(config: PrunerConfig, depth: int) -> int:
    """Most blocks that a cut leaves, as far as its amount tells.

    Args:
        config: the recipe; its amount was checked.
        depth: blocks that there are.
    """
    recipe = config.recipe()
    if recipe.cuts != "layers" or recipe.unit != "block" or recipe.surgery != "drop":
        return depth
    if config.layers is not None:
        return depth - len(config.layers)
    if config.drop_layers is None and (config.sparsity is None or config.amount_of != "layers"):
        return depth
    return depth - layers_to_drop(config, depth)


def _whole_layers(share: float, depth: int) -> int:
    return math.floor(share * depth + ROUNDING)


def round_up(share: float) -> float:
    """To four digits, never below."""
    return math.ceil(share * 1e4 - ROUNDING) / 1e4


def round_down(share: float) -> float:
    """To four digits, never above."""
    return math.floor(share * 1e4 + ROUNDING) / 1e4


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
            f"layers={list(layers)}: {protected} protected; {protection(recipe, protect)} of '{name}' ({depth} "
            "blocks). Leave them out, or set protect_first / protect_last"
        )


def protection(recipe: Method, protect: Collection[int] = ()) -> str:
    """What must not go, in words."""
    named = f", and layers {ranges(tuple(protect))} are protected by name" if protect else ""
    if not recipe.protect_first and not recipe.protect_last:
        return f"method '{recipe.name}' protects none{named}"
    return f"method '{recipe.name}' protects {recipe.protect_first} first and {recipe.protect_last} last{named}"
