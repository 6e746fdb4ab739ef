"""Contiguous windows of blocks."""

import math

from hf_prune.errors import ConfigError
from hf_prune.planners.choice import Choice
from hf_prune.records import Scores, ranges
from hf_prune.registry import planner

_UIDL = "https://arxiv.org/abs/2403.17887"


@planner("window", title="The contiguous window with the smallest distance across it", url=_UIDL)
def window(scores: Scores | None, size: int, allowed: range) -> Choice:
    """argmin over starts of d(h_start, h_(start+size)) (UIDL section 3.2, steps 1 and 2).

    Args:
        scores: pairwise distances.
        size: blocks that go.
        allowed: blocks that may go (the unprotected ones).

    Raises:
        ConfigError: there are no scores to choose by, or they say nothing of pairs of layers.
    """
    if scores is None:
        raise ConfigError("planner 'window' chooses by distances; it needs a measure such as 'angular', got none")
    if not scores.distances:
        raise ConfigError(
            f"planner 'window' chooses by distances between all pairs of layers, and measure '{scores.measure}' gives "
            "none; expected measure 'angular'. Measure again with it"
        )
    candidates = [w for w in scores.windows(size) if w[0] >= allowed.start and w[0] + size <= allowed.stop]
    candidates.sort(key=lambda w: (w[1], w[0]))
    (start, distance, error), *others = candidates
    layers = tuple(range(start, start + size))
    reason = (
        f"Among the {len(candidates)} windows of {size} blocks, {ranges(layers)} turns the residual stream least: "
        f"its input and output are {distance:.4f} ± {error:.4f} apart (angle / π)."
    )
    if not others:
        return Choice(layers, reason, distance)
    second, second_distance, second_error = others[0]
    return Choice(
        layers,
        reason,
        distance,
        runner_up=tuple(range(second, second + size)),
        gap=second_distance - distance,
        gap_standard_error=math.hypot(error, second_error),
    )


@planner("before_last", title="The deepest blocks but the last, without measuring", url=_UIDL)
def before_last(scores: Scores | None, size: int, allowed: range) -> Choice:
    """Blocks L-1-n … L-2, counted from 0 (UIDL section 4.4; the paper's range counts from 1).

    Args:
        scores: ignored.
        size: blocks that go.
        allowed: blocks that may go; the recipe protects the last one.
    """
    layers = tuple(range(allowed.stop - size, allowed.stop))
    return Choice(
        layers, f"The {size} deepest blocks that are not protected go ({ranges(layers)}); nothing was measured."
    )
