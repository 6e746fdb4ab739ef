"""Judges that planners may ask in tests: a formula in place of a model, and what was asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hf_prune.errors import ConfigError
from hf_prune.planners.problem import Problem
from hf_prune.units import Cut, Unit


@dataclass
class Formula:
    """A damage for every cut, each of which takes one forward.

    Attributes:
        damage: of a cut, on a share of the text.
        limit: forwards that are allowed.
        asked: cuts that were judged, with the share of the text.
    """

    damage: Callable[[Cut, float], float]
    limit: float = float("inf")
    objective: str = "formula"
    asked: list[tuple[Cut, float]] = field(default_factory=list)
    promised: float = 0.0

    def scores(self, cuts: Sequence[Cut], share: float = 1.0) -> list[float]:
        self.asked += [(cut, share) for cut in cuts]
        return [self.damage(cut, share) for cut in cuts]

    def importances(self, removed: Cut, units: Sequence[Unit]) -> dict[Unit, float]:
        return dict(zip(units, self.scores([removed | {unit} for unit in units]), strict=True))

    def cost(self, forwards: float, share: float = 1.0) -> float:
        return forwards * share

    def cost_of_rounds(self, units: Sequence[Unit], rounds: int) -> float:
        return sum(len(units) - gone for gone in range(rounds))

    def allow(self, forwards: float, what: str) -> None:
        self.promised = forwards
        if forwards > self.limit:
            raise ConfigError(f"{what} takes up to {forwards} forwards")

    @property
    def taken(self) -> float:
        return sum(share for _, share in self.asked)


def blocks(depth: int, size: int, judge: object = None, seed: int = 0) -> Problem:
    """A problem that asks for `size` of `depth` blocks."""
    return Problem("org/model", depth, tuple(map(Unit, range(depth))), size, None, judge, seed)  # type: ignore[arg-type]


def linear(costs: Sequence[float]) -> Callable[[Cut, float], float]:
    """The sum of what each block costs."""
    return lambda cut, _share: sum(costs[unit.layer] for unit in cut)
