"""What a planner answers."""

from collections.abc import Iterable
from dataclasses import dataclass

from hf_prune.records import Trial
from hf_prune.units import Unit, layers_of


@dataclass(frozen=True)
class Choice:
    """The units that go, and why.

    Attributes:
        units: ascending.
        reason: one sentence.
        distance: of the chosen window, where there is one.
        runner_up: the next best layers, where there are some.
        gap: runner-up's distance minus the chosen one's.
        gap_standard_error: of the gap.
        trials: what a search decided, step by step.
    """

    units: tuple[Unit, ...]
    reason: str
    distance: float | None = None
    runner_up: tuple[int, ...] | None = None
    gap: float | None = None
    gap_standard_error: float | None = None
    trials: tuple[Trial, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        """Of the units, the blocks that go whole."""
        return layers_of(self.units)


def blocks(layers: Iterable[int]) -> tuple[Unit, ...]:
    """Whole blocks, as units."""
    return tuple(Unit(layer) for layer in sorted(layers))


def in_words(units: Iterable[Unit]) -> str:
    """Units for people: "3–5", "attention 3–5, MLP 7"."""
    from hf_prune.records import ranges

    units = list(units)
    names = {"block": "", "attention": "attention ", "mlp": "MLP "}
    found = [(part, layers_of(units, part)) for part in ("block", "attention", "mlp")]  # type: ignore[arg-type]
    return ", ".join(names[part] + ranges(layers) for part, layers in found if layers) or "none"
