"""What choosing would take, told without the model: planners are asked as ever, by a judge that only counts."""

from collections.abc import Sequence

from hf_prune.amounts import Sizes
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError, PruneError
from hf_prune.objective import OutputMeasure, leave_one_out
from hf_prune.observing import most_runs
from hf_prune.plan import choose_plan
from hf_prune.records import ModelRef
from hf_prune.registry import measure, planner
from hf_prune.tries import branchings
from hf_prune.units import PARTS, Cut, Part, Unit, parts_of

_WHOLE: Cut = frozenset()


class CountingJudge:
    """Answers planners that search, with scores that mean nothing, and counts what true ones would take.

    A search whose length depends on the scores may take more or less.

    Args:
        objective: registry name of the measure.
        config: the recipe.
        depth: blocks that there are.

    Attributes:
        forwards: of the calibration text through the whole model.
    """

    def __init__(self, objective: str, config: PrunerConfig, depth: int) -> None:
        self.objective, self.forwards, self._limit = objective, 0.0, config.max_forwards
        self._entry, self._options, self._depth = measure.get(objective), config.options("measure"), depth

    def scores(self, cuts: Sequence[Cut], share: float = 1.0) -> list[float]:
        """See `hf_prune.planners.problem.Judge`."""
        if self._entry.needs == "tasks":
            self.forwards += sum(map(self.runs, cuts))
            return self._made_up(cuts)
        return self._scores(self._entry.function(**self._options), cuts, share)

    def importances(self, removed: Cut, units: Sequence[Unit]) -> dict[Unit, float]:
        """See `hf_prune.planners.problem.Judge`."""
        if self._entry.needs == "outputs":
            made: OutputMeasure = self._entry.function(**self._options)
            return made.attribute(lambda cuts: self._scores(made, cuts), units, removed)
        if self._entry.needs == "tasks":
            return leave_one_out(self.scores, units, removed)
        self.forwards += self.runs(removed) * most_runs(self._entry.function(**self._options))
        return {unit: float(unit.layer) for unit in units}

    def cost(self, forwards: float, share: float = 1.0) -> float:
        """See `hf_prune.planners.problem.Judge`."""
        return forwards * share

    def cost_of_rounds(self, units: Sequence[Unit], rounds: int) -> float:
        """Nothing: no search is refused here."""
        return 0.0

    def allow(self, forwards: float, what: str) -> None:
        """Refuse what a run would refuse: counting that could take as long as doing it."""
        if forwards > self._limit:
            raise ConfigError(f"{what} takes up to {forwards:.0f} forwards; max_forwards allows {self._limit}")

    def runs(self, cut: Cut) -> float:
        """One pass of the text through a cut model, in forwards of the whole one."""
        return 1 - len({unit.layer for unit in cut if unit.part == "block"}) / self._depth

    def _scores(self, made: OutputMeasure, cuts: Sequence[Cut], share: float = 1.0) -> list[float]:
        asked = [_WHOLE, *cuts] if made.compares else list(cuts)
        self.forwards += share * branchings(asked, self._depth).block_runs() / self._depth
        return self._made_up(cuts)

    @staticmethod
    def _made_up(cuts: Sequence[Cut]) -> list[float]:
        return [1.0 + sum(1 / (1 + unit.layer) for unit in cut) for cut in cuts]


def estimated_forwards(config: PrunerConfig, ref: ModelRef) -> float | None:
    """Passes of the calibration text through the whole model that measuring and searching would take.

    A backward pass counts as the forwards that take as long. What fitting and slicing read besides is not in them.

    Args:
        config: the recipe with its amount.
        ref: the base model.

    Returns:
        None where that cannot be told without the model.
    """
    recipe = config.recipe()
    if recipe.measure is None:
        return 0.0
    needs, depth = measure.get(recipe.measure).needs, ref.num_layers
    judge = CountingJudge(recipe.measure, config, depth)
    if recipe.cuts == "layers" and planner.get(recipe.planner).needs == "judge":
        try:
            choose_plan(config, ref, alike(depth), None, judge)
        except PruneError:  # the amount has to be weighed, or the search cannot be: the run itself will say so
            return None
        return judge.forwards
    if needs in ("outputs", "tasks"):
        judge.importances(_WHOLE, [Unit(i, part) for part in parts_of(recipe.unit) for i in range(depth)])
        return judge.forwards
    if needs == "pass":
        return float(most_runs(measure.get(recipe.measure).function(**config.options("measure"))))
    if needs == "gradients":
        return float(measure.get(recipe.measure).function(**config.options("measure")).forwards(depth))
    return 0.0


def alike(depth: int) -> Sizes:
    """Sizes of a model of equal blocks, each of two equal parts; only their shares matter."""
    whole, half = (2,) * depth, (1,) * depth
    parts: dict[Part, dict[str, tuple[int, ...]]] = {
        part: {"parameters": half, "bytes": half, "flops": half} for part in PARTS if part != "block"
    }
    return Sizes(whole, whole, 2 * depth, 2 * depth, whole, 2 * depth, parts)
