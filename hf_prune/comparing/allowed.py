"""Searches that would take more forwards than are allowed: refused without the model, before anything is read."""

import math
from collections.abc import Sequence

from hf_prune.amounts import allowed_blocks, layers_to_drop
from hf_prune.comparing.estimate import CountingJudge, alike
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.observing import most_runs
from hf_prune.plan import choose_plan
from hf_prune.planners.window import check_window
from hf_prune.records import ModelRef
from hf_prune.registry import measure, planner
from hf_prune.tries import branchings
from hf_prune.units import Cut, Unit, parts_of

_ROUNDING = 1e-6


def check_forwards(config: PrunerConfig, ref: ModelRef) -> None:
    """Refuse a search or a measure that takes more forwards than are allowed, and a window that has no room.

    Args:
        config: the recipe with its amount.
        ref: the base model.

    Raises:
        ConfigError: it is one; or options of the planner mean nothing; or protected blocks leave no window.
    """
    recipe, depth = config.recipe(), ref.num_layers
    if recipe.measure is None or recipe.cuts != "layers" or config.layers is not None:
        return
    counted = config.sparsity is None or config.amount_of == "layers"
    if planner.get(recipe.planner).name == "window" and recipe.unit == "block" and counted:
        allowed = allowed_blocks(recipe, depth, ref.id, config.protect)
        check_window(allowed, layers_to_drop(config, depth) // config.rounds, ref.id)
    judge = _Asked(recipe.measure, config, depth, ref.id)
    if planner.get(recipe.planner).needs == "judge":
        try:
            choose_plan(config, ref, alike(depth), None, judge)
        except _Begun:
            return
        except _TooManyError:
            raise
        except ConfigError:
            if counted:
                raise  # a share of what blocks weigh is another one than that of equal blocks
    elif measure.get(recipe.measure).needs in ("outputs", "tasks"):
        units = [Unit(i, part) for i in range(depth) for part in parts_of(recipe.unit)]
        judge.allow(judge.cost_of_rounds(units, 1) + judge.cost(1.0), f"measure '{recipe.measure}'")
    elif measure.get(recipe.measure).needs in ("pass", "gradients"):
        made = measure.get(recipe.measure).function(**config.options("measure"))
        passes = made.forwards(depth) if measure.get(recipe.measure).needs == "gradients" else most_runs(made)
        judge.allow(passes, f"measure '{recipe.measure}'")


class _Begun(Exception):  # noqa: N818 - nothing is wrong
    """The work would begin now: nothing was refused."""


class _TooManyError(ConfigError):
    """Choosing would take more forwards than are allowed."""


class _Asked(CountingJudge):
    """Tells what a search would take at most, as the true judges do, and stops it where it would begin.

    Of a share of the text that is less than what would be taken, as whole sequences are; then the search refuses.

    Args:
        objective: registry name of the measure.
        config: the recipe.
        depth: blocks that there are.
        name: what the model is called in errors.
    """

    def __init__(self, objective: str, config: PrunerConfig, depth: int, name: str) -> None:
        super().__init__(objective, config, depth)
        self._name = name
        self._compares = self._entry.needs == "outputs" and self._entry.function(**self._options).compares

    def scores(self, cuts: Sequence[Cut], share: float = 1.0) -> list[float]:
        raise _Begun

    def importances(self, removed: Cut, units: Sequence[Unit]) -> dict[Unit, float]:
        raise _Begun

    def cost(self, forwards: float, share: float = 1.0) -> float:
        return (forwards + self._compares) * share

    def cost_of_rounds(self, units: Sequence[Unit], rounds: int) -> float:
        gone = [frozenset(units[len(units) - count :]) for count in range(rounds)]
        return sum(self._cost_of_round(cut, [unit for unit in units if unit not in cut]) for cut in gone)

    def allow(self, forwards: float, what: str) -> None:
        needed = math.ceil(forwards - _ROUNDING)
        if needed > self._limit:
            raise _TooManyError(
                f"{what} of '{self._name}' takes up to {needed} forwards of the calibration text; max_forwards allows "
                f"{self._limit}. Take another planner or fewer layers, or raise it (--max-forwards {needed})"
            )

    def _cost_of_round(self, removed: Cut, units: Sequence[Unit]) -> float:
        if self._entry.needs == "tasks":
            return sum(self.runs(removed | {unit}) for unit in units)
        made = self._entry.function(**self._options)
        if self._entry.needs != "outputs":
            return self.runs(removed) * most_runs(made)
        taken = 0.0

        def priced(cuts: Sequence[Cut]) -> list[float]:
            nonlocal taken
            taken += self.cost(branchings([removed, *cuts], self._depth).block_runs() / self._depth)
            return [0.0] * len(cuts)

        made.attribute(priced, units, removed)
        return taken
