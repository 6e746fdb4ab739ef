"""The knee of a curve: the point up to which removing costs little, and behind which it costs more and more."""

from collections.abc import Sequence
from dataclasses import dataclass

LEAST = 0.1
"""Distance below the chord that makes a knee; a curve that stays nearer is a straight line for our purposes."""

RULE = (
    "The knee is the point farthest below the straight line from the original (nothing removed) to the last point, of "
    "log-perplexity above the original's against share of parameters removed, both scaled to run from 0 to 1. There "
    f"is none with fewer than 2 points, where the last point loses nothing, or where no point is {LEAST} below the "
    "line: such curves are straight, or bend the other way."
)


@dataclass(frozen=True)
class Found:
    """What `find_knee` found.

    Attributes:
        index: of the knee among the points given; None where there is none.
        distance: below the chord there.
        reason: one sentence.
    """

    index: int | None
    distance: float | None
    reason: str


def find_knee(shares: Sequence[float], increases: Sequence[float]) -> Found:
    """Find the knee of a loss curve, after Kneedle (Satopää et al. 2011) for convex, rising curves, without smoothing.

    The original is the point (0, 0). With the last point (X, Y), each point (x, y) lies d = x / X - y / Y below the
    chord, in scaled units; the knee is where d is largest, and at least `LEAST`. The part of the curve before such a
    point is flatter than the part behind it.

    Args:
        shares: share of the parameters removed, ascending, above 0.
        increases: log-perplexity above the original's, nats per token.
    """
    if len(shares) < 2:
        return Found(None, None, f"{len(shares)} points and the original are too few; expected at least 2 points.")
    last_share, last_increase = shares[-1], increases[-1]
    if last_increase <= 0:
        return Found(None, None, "The last point loses nothing: the curve does not rise. Remove more.")
    below = [x / last_share - y / last_increase for x, y in zip(shares, increases, strict=True)]
    index = max(range(len(below)), key=lambda i: below[i])
    if below[index] < LEAST:
        shape = "is nearly straight" if min(below) > -LEAST else "rises fastest at its start"
        return Found(None, None, f"The curve {shape}: no point lies {LEAST} below its chord ({below[index]:.3f}).")
    return Found(index, below[index], f"It lies {below[index]:.3f} below the chord, farther than any other point.")
