"""What a planner is asked, and whom it may ask."""

from collections.abc import Iterable, Mapping, Sequence
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

    def scores(self, cuts: Sequence[Cut], share: float = 1.0) -> list[float]:
        """The damage of whole cuts; lower is better.

        Args:
            cuts: what each removes.
            share: of the text that is looked at; equal shares are the same text, and lie within larger ones.

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

    def cost(self, forwards: float, share: float = 1.0) -> float:
        """What one call of `scores` takes at most, in forwards of the text through the whole model.

        Args:
            forwards: those of the cut models; what they are compared with comes on top.
            share: of the text, in tokens; the judge takes whole sequences.
        """
        ...

    def cost_of_rounds(self, units: Sequence[Unit], rounds: int) -> float:
        """What scoring units takes at most, in forwards, and those that are left once more behind each that goes.

        Args:
            units: that may go, ascending.
            rounds: how often; one unit goes between two of them.

        Raises:
            ConfigError: the measure cannot be asked again.
        """
        ...

    def allow(self, forwards: float, what: str) -> None:
        """Refuse a search before it begins.

        Args:
            forwards: that it will take, at most.
            what: the search, for the error.

        Raises:
            ConfigError: it takes more forwards than are allowed; names how many.
        """
        ...


@dataclass(frozen=True)
class Budget:
    """How much may go, where that is a share of parameters, bytes or FLOPs.

    Attributes:
        weights: of each unit that may go.
        limit: what those that go may weigh together.
        count: how many may go at most, which fit where they are the lightest.
    """

    weights: Mapping[Unit, int]
    limit: float
    count: int

    def allows(self, units: Iterable[Unit]) -> bool:
        """Whether these may go together."""
        return sum(self.weights[unit] for unit in units) <= self.limit


@dataclass(frozen=True)
class Problem:
    """Which of a model's units shall go.

    Attributes:
        model: what it is called in errors.
        depth: blocks that there are.
        units: those that may go (unprotected), ascending; blocks, attentions, MLPs, or the latter two.
        size: how many go; at least 1 and at most all units. Of a search with a `budget`: how many fit whichever they
            are.
        scores: what was measured before; None where nothing was.
        judge: answers a planner that searches; None for others.
        seed: of whatever is drawn.
        budget: of a search where units may differ in weight; a planner that adds units one by one may go on until none
            fits any more, others take `size`.
    """

    model: str
    depth: int
    units: tuple[Unit, ...]
    size: int
    scores: Scores | None = None
    judge: Judge | None = None
    seed: int = 0
    budget: Budget | None = None

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
