"""Sharing a budget among layers: scores in, one share a layer out, the mean share as asked for."""

import math
from bisect import bisect_left
from collections.abc import Sequence

from hf_prune.errors import ConfigError


def allocate(
    scores: Sequence[float],
    mean: float,
    base: float,
    *,
    low: float = 0.0,
    high: float = 1.0,
    weights: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """Shares in proportion to scores on top of a base, with a given mean (Dynamic Slicing, arXiv:2411.03513).

    FS_i = SB + (SP - SB) · LR_i / mean(LR), where SP is `mean`, SB is `base` and LR are the scores. Where a share
    would leave [low, high] it is clipped, and what clipping took is spread evenly over the layers that are not
    clipped, until none is left to clip: the shares are clip(FS_i + t, low, high), with the one t that keeps the mean.
    OWL (arXiv:2310.05175) shares the weights that stay in the same way, on a base below `low`.

    Args:
        scores: one a layer, finite, at least 0; only their ratios matter. Equal scores, all zeros included, tell
            nothing apart and give the constant schedule.
        mean: mean share SP, in [low, high].
        base: share SB of a layer that scores 0, at most `mean`; equal to it, the schedule is constant. It may lie
            below `low`, which then clips.
        low: least share.
        high: greatest share.
        weights: how much each layer counts in both means, above 0; all the same when None.

    Returns:
        One share a layer. Their mean is `mean` up to float rounding, and a higher score never has a lower share.

    Raises:
        ConfigError: a score is negative, NaN or infinite, or there is none; the mean is out of bounds; the base is
            above the mean; there is not one weight a score, or one is not above 0.
    """
    _check_scores(scores)
    weights = [1.0] * len(scores) if weights is None else weights
    if len(weights) != len(scores) or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ConfigError(f"weights {list(weights)} of {len(scores)} layers; expected one a layer, finite and above 0")
    if not all(map(math.isfinite, (low, high, base))) or not low <= mean <= high:
        raise ConfigError(
            f"no shares in [{low}, {high}] on a base of {base} have a mean of {mean}; expected finite numbers with "
            "low <= mean <= high. Ask for another mean or other bounds"
        )
    if base > mean:
        raise ConfigError(
            f"slice base SB {base} is above the mean share SP {mean}; expected at most {mean}, since every layer "
            "gets at least the base. Lower the base or raise the mean"
        )
    top = max(scores)
    if base == mean or min(scores) == top:
        return (mean,) * len(scores)
    ratios = [score / top for score in scores]  # in [0, 1]: the mean of tiny or huge scores could vanish or overflow
    scale = (mean - base) / (_weighted_sum(ratios, weights) / math.fsum(weights))
    raw = [base + scale * ratio for ratio in ratios]
    if low <= min(raw) and max(raw) <= high:
        return tuple(raw)
    return _fill(raw, mean, low, high, weights)


def _weighted_sum(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(value * weight for value, weight in zip(values, weights, strict=True))


def _check_scores(scores: Sequence[float]) -> None:
    if not scores:
        raise ConfigError("there are no scores to share by; expected one a layer")
    for layer, score in enumerate(scores):
        if not (math.isfinite(score) and score >= 0):
            raise ConfigError(
                f"the score of layer {layer} is {score}; expected a finite number of at least 0. "
                "Scale the scores first, for instance to [0, 1] by min_max"
            )


def _fill(raw: Sequence[float], mean: float, low: float, high: float, weights: Sequence[float]) -> tuple[float, ...]:
    """clip(raw + t, low, high) with the t that gives the mean."""

    def shifted(shift: float) -> tuple[float, ...]:
        return tuple(min(max(value + shift, low), high) for value in raw)

    def filled(shift: float) -> float:
        return _weighted_sum(shifted(shift), weights)

    # The sum grows with t and is linear between the points where one share meets a bound.
    total = mean * math.fsum(weights)
    edges = sorted({bound - value for value in raw for bound in (low, high)})
    after = bisect_left(edges, total, key=filled)
    left, right = edges[max(after - 1, 0)], edges[min(after, len(edges) - 1)]
    less, more = filled(left), filled(right)
    return shifted(left if less == more else left + (right - left) * (total - less) / (more - less))


def round_to_total(values: Sequence[float], total: int, multiple: int, *, low: int, high: int) -> tuple[int, ...]:
    """Round to multiples such that the sum is as asked for.

    Each value goes to the nearest allowed number; then, while the sum is off, the one that rounding moved furthest
    the other way takes one step back (of equal ones, the lower index).

    Args:
        values: finite; those out of bounds are taken to the bound.
        total: sum wanted.
        multiple: what the results are multiples of, at least 1.
        low: least result; the least multiple that is not below it is allowed.
        high: greatest result. It is allowed even where it is no multiple: a layer that is kept whole.

    Returns:
        One number a value. |sum - total| <= multiple / 2, so that the sum is `total` where that and all allowed
        numbers are multiples. A higher value never gets a lower number.

    Raises:
        ConfigError: no such numbers exist, or a value is NaN or infinite.
    """
    if not values or not all(map(math.isfinite, values)):
        raise ConfigError(f"cannot round {list(values)}; expected finite numbers, at least one")
    if multiple < 1 or low > high:
        raise ConfigError(
            f"cannot round to multiples of {multiple} from {low} to {high}; expected a multiple of at least 1 and "
            "low <= high"
        )
    allowed = [*range(-(-low // multiple) * multiple, high, multiple), high]
    least, most = len(values) * allowed[0], len(values) * high
    if not 2 * least - multiple <= 2 * total <= 2 * most + multiple:
        raise ConfigError(
            f"cannot share {total} among {len(values)} layers in multiples of {multiple} from {low} to {high}: they "
            f"sum to at least {least} and at most {most}. Change the total or the bounds"
        )
    rungs = [_nearest(allowed, value) for value in values]
    while (gap := total - sum(allowed[rung] for rung in rungs)) != 0:
        way = 1 if gap > 0 else -1
        # A step helps if it is shorter than twice the gap. One is always there while the gap exceeds half a multiple.
        helpful = [
            index
            for index, rung in enumerate(rungs)
            if 0 <= rung + way < len(allowed) and abs(allowed[rung + way] - allowed[rung]) < 2 * abs(gap)
        ]
        if not helpful:
            break
        # The value decides where the slack of two values on one rung differs by less than a float holds.
        furthest = max(helpful, key=lambda i: (way * (values[i] - allowed[rungs[i]]), way * values[i]))
        rungs[furthest] += way
    return tuple(allowed[rung] for rung in rungs)


def _nearest(allowed: Sequence[int], value: float) -> int:
    """Index of the nearest number; of two equally near ones the lower."""
    above = min(bisect_left(allowed, value), len(allowed) - 1)
    below = max(above - 1, 0)
    return below if abs(value - allowed[below]) <= abs(allowed[above] - value) else above


def min_max(values: Sequence[float]) -> tuple[float, ...]:
    """Scale to [0, 1]: (v - min) / (max - min).

    Equal values have no scale: no layer stands out, all get 1.0, and `allocate` makes the constant schedule of them.

    Args:
        values: finite, at least one.

    Raises:
        ConfigError: there are none, or some are NaN, infinite or too far apart for a float.
    """
    if not values or not all(map(math.isfinite, values)) or math.isinf(max(values) - min(values)):
        raise ConfigError(f"cannot scale {list(values)} to [0, 1]; expected finite numbers, at least one")
    least, spread = min(values), max(values) - min(values)
    return tuple((value - least) / spread if spread else 1.0 for value in values)
