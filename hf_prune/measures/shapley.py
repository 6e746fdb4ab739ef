"""What each unit contributes to coalitions of units: Shapley values, those near the whole model, and halves."""

import random
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from hf_prune.errors import ConfigError
from hf_prune.objective import OutputMeasure, Score, leave_one_out
from hf_prune.registry import measure
from hf_prune.units import Cut, Unit

_DEEPER_LOOK = "https://arxiv.org/abs/2407.16286"
_LAYER_IMPORTANCE = "https://arxiv.org/abs/2409.14381"


@measure(
    "shapley", title="Shapley value of each, from random orders of removal", url=_LAYER_IMPORTANCE, needs="outputs"
)
def shapley(*, objective: str = "loss", permutations: int = 8, seed: int = 0) -> OutputMeasure:
    """How much the damage rises where a unit goes, averaged over random orders in which all of them go.

    The mean over all orders is the Shapley value of the game in which a coalition's worth is the damage without it.
    For any number of orders, the values add up to the damage without all units, less that of the whole model. Most of
    an order runs models that lost many units, which say nothing any more: `shapley_near` keeps to mild cuts.

    An order of n units takes n cuts, half of whose units are gone on average: `permutations` x n / 2 forwards, less
    what cuts have in common in their first blocks.

    Args:
        objective: measure of outputs that tells damage, such as "loss" or "kl".
        permutations: random orders.
        seed: of the orders.

    Raises:
        ConfigError: an option means nothing.
    """
    _check("shapley", permutations=permutations)

    def attribute(score: Score, units: Sequence[Unit], removed: Cut) -> dict[Unit, float]:
        orders = list(_orders(units, permutations, seed))
        return _mean_rises(score, orders, removed)

    return _judged_by("shapley", objective, attribute)


@measure(
    "shapley_near",
    title="Shapley value of each, near the whole model",
    url=_LAYER_IMPORTANCE,
    needs="outputs",
)
def shapley_near(
    *, objective: str = "loss", permutations: int = 2, most_removed: int = 3, seed: int = 0
) -> OutputMeasure:
    """How much the damage rises where a unit goes, averaged over the orders of removal, of which the first few count.

    That is the mean over coalitions that lack 0 to `most_removed` - 1 units, each of these numbers with equal weight
    (Investigating Layer Importance: sampling in the proximity of the whole model). Each random order is begun at each
    of its units in turn, so that every unit comes as often at each of the first places. With `most_removed` = 1 it is
    leaving out one at a time; with all units, and enough orders, the Shapley value.

    It takes at most n + `permutations` x n x (`most_removed` - 1) cuts of n units, less what they have in common.

    Args:
        objective: measure of outputs that tells damage, such as "loss" or "kl".
        permutations: random orders.
        most_removed: units that are gone at once, at most.
        seed: of the orders.

    Raises:
        ConfigError: an option means nothing.
    """
    _check("shapley_near", permutations=permutations, most_removed=most_removed)

    def attribute(score: Score, units: Sequence[Unit], removed: Cut) -> dict[Unit, float]:
        orders = [
            (order[start:] + order[:start])[:most_removed]
            for order in _orders(units, permutations, seed)
            for start in range(len(order))
        ]
        return _mean_rises(score, orders, removed)

    return _judged_by("shapley_near", objective, attribute)


@measure(
    "random_halves",
    title="Damage of random halves without each, less that of halves with it",
    url=_DEEPER_LOOK,
    needs="outputs",
)
def random_halves(*, objective: str = "loss", pairs: int = 32, seed: int = 0) -> OutputMeasure:
    """Mean damage of random half models that lack a unit, less that of those that have it (A deeper look).

    Halves come in pairs, what one lacks the other has, so that each unit is there as often as not; the released code
    draws each half on its own. Its default draws none, and leaves out one unit at a time: the same order of units as
    that of measure "loss".

    It takes about `pairs` forwards, whatever the number of units.

    Args:
        objective: measure of outputs that tells damage: "loss", or "logit_l2" as in the paper's other version.
        pairs: of halves.
        seed: of the halves.

    Raises:
        ConfigError: an option means nothing.
    """
    _check("random_halves", pairs=pairs)

    def attribute(score: Score, units: Sequence[Unit], removed: Cut) -> dict[Unit, float]:
        halves: list[Cut] = []
        for order in _orders(units, pairs, seed):
            halves += [removed | set(order[: len(order) // 2]), removed | set(order[len(order) // 2 :])]
        damage = score(halves)
        found = {}
        for unit in units:
            absent = [value for half, value in zip(halves, damage, strict=True) if unit in half]
            present = [value for half, value in zip(halves, damage, strict=True) if unit not in half]
            found[unit] = fmean(absent) - fmean(present)
        return found

    return _judged_by("random_halves", objective, attribute)


def _orders(units: Sequence[Unit], count: int, seed: int) -> Iterator[tuple[Unit, ...]]:
    """Random orders of units."""
    generator = random.Random(seed)
    for _ in range(count):
        yield tuple(generator.sample(units, len(units)))


def _mean_rises(score: Score, orders: Sequence[Sequence[Unit]], removed: Cut) -> dict[Unit, float]:
    """Of each unit, how much the damage rises where it goes behind those before it; the mean over orders."""
    steps = [
        (unit, removed | set(order[:place]), removed | set(order[: place + 1]))
        for order in orders
        for place, unit in enumerate(order)
    ]
    # All cuts at once: those that begin alike share their first blocks, and what is too much is refused beforehand.
    cuts = list(dict.fromkeys(cut for _, before, after in steps for cut in (before, after)))
    damage = dict(zip(cuts, score(cuts), strict=True))
    rises: dict[Unit, list[float]] = {}
    for unit, before, after in steps:
        rises.setdefault(unit, []).append(damage[after] - damage[before])
    return {unit: fmean(values) for unit, values in rises.items()}


def _judged_by(
    name: str, objective: str, attribute: Callable[[Score, Sequence[Unit], Cut], dict[Unit, float]]
) -> OutputMeasure:
    """The damage of another measure, attributed in another way."""
    known = [entry.name for entry in measure if entry.needs == "outputs" and entry.function.__module__ != __name__]
    if objective not in known:
        raise ConfigError(f"measure '{name}' has objective={objective!r}; expected one of: {', '.join(known)}")
    judged: OutputMeasure = measure.get(objective).function()
    assert judged.attribute is leave_one_out
    return OutputMeasure(judged.start, judged.compares, attribute)


def _check(name: str, **counts: int) -> None:
    for option, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"measure '{name}' has {option}={value!r}; expected a whole number from 1 on")
