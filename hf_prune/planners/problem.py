"""What a planner is asked, and whom it may ask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hf_prune.errors import ConfigError, MeasureError
from hf_prune.records import Scores
from hf_prune.units import Cut, Unit


class Judge(Protocol):
    """Tells planners that search what cuts do to the model.

    Attributes:
        objective: the measure that it judges by, in words for reasons ("kl", "loss").
    """

    objective: str

    def scores(self, cuts: Sequence[Cut]) -> list[float]:
        """The damage of whole cuts; lower is better.

        Raises:
            ConfigError: the measure does not judge cuts, or that takes more forwards than are allowed.
            MeasureError: a score is not finite.
        """
        ...

    def importances(self, removed: Cut, units: Sequence[Unit]) -> dict[Unit, float]:
        """How much each unit matters where `removed` is gone already; the lowest goes first.

        Raises:
            ConfigError: it takes more forwards than are allowed.
            MeasureError: a score is not finite.
        """
        ...

    def allow(self, candidates: int, what: str) -> None:
        """Refuse a search before it begins.

        Args:
            candidates: cuts that it will ask for, at most.
            what: the search, for the error.

        Raises:
            ConfigError: it takes more forwards than are allowed; names how many.
        """
        ...


@dataclass(frozen=True)
class Problem:
    """Which of a model's units shall go.

    Attributes:
        model: what it is called in errors.
        depth: blocks that there are.
        units: those that may go (unprotected), ascending; blocks, attentions, MLPs, or the latter two.
        size: how many go; at least 1 and at most all units.
        scores: what was measured before; None where nothing was.
        judge: answers a planner that searches; None for others.
        seed: of whatever is drawn.
    """

    model: str
    depth: int
    units: tuple[Unit, ...]
    size: int
    scores: Scores | None = None
    judge: Judge | None = None
    seed: int = 0

    def importances(self) -> Mapping[Unit, float]:
        """Of each unit that may go, how much it matters; the lowest goes first.

        Raises:
            ConfigError: nothing was measured, or the measure says nothing of these units.
            MeasureError: a score is not finite.
        """
        if self.scores is None:
            raise ConfigError(
                "the planner chooses by the importance of each unit; it needs a measure such as 'block_influence', "
                "got none"
            )
        found = self.scores.importances
        missing = sorted({unit.part for unit in self.units} - found.keys())
        if missing:
            told = ", ".join(found) or "none"
            raise ConfigError(
                f"the planner chooses by the importance of each {' and '.join(missing)}; measure "
                f"'{self.scores.measure}' tells that of: {told}. Take another measure, or another unit"
            )
        chosen = {unit: found[unit.part][unit.layer] for unit in self.units}
        for unit, value in chosen.items():
            if value is None:
                raise MeasureError(f"measure '{self.scores.measure}' has no score of {unit}; expected a number")
        return {unit: float(value) for unit, value in chosen.items() if value is not None}

    def ask(self, planner: str) -> Judge:
        """The judge.

        Args:
            planner: who asks.

        Raises:
            ConfigError: there is none.
        """
        if self.judge is None:
            raise ConfigError(f"planner '{planner}' tries cuts on the model; plan from the model, with a measure")
        return self.judge
