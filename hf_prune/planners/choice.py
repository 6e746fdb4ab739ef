"""What a planner answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """The layers that go, and why.

    Attributes:
        layers: 0-based, ascending.
        reason: one sentence.
        distance: of the chosen window, where there is one.
        runner_up: the next best layers, where there are some.
        gap: runner-up's distance minus the chosen one's.
        gap_standard_error: of the gap.
    """

    layers: tuple[int, ...]
    reason: str
    distance: float | None = None
    runner_up: tuple[int, ...] | None = None
    gap: float | None = None
    gap_standard_error: float | None = None
