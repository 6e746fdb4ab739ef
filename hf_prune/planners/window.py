"""Contiguous windows of blocks."""

import math
from collections.abc import Collection

from hf_prune.errors import ConfigError
from hf_prune.planners.choice import Choice, blocks
from hf_prune.planners.problem import Problem
from hf_prune.records import ranges
from hf_prune.registry import planner

_UIDL = "https://arxiv.org/abs/2403.17887"

# What a small distance says of a window, and what distances are, by measure; CKA does not tell rotations.
_WORDS = {
    "angular": ("turns", "angle / π"),
    "cosine": ("turns", "1 - cosine"),
    "cka": ("changes", "1 - CKA"),
}


@planner(
    "window",
    title="The contiguous window with the smallest distance across it",
    url=_UIDL,
    needs="scores",
    scores=("pairs",),
)
def window(problem: Problem) -> Choice:
    """argmin over starts of d(h_start, h_(start+size)) (UIDL section 3.2, steps 1 and 2).

    Args:
        problem: what is asked; its scores are pairwise distances.

    Raises:
        ConfigError: there are no scores to choose by, they say nothing of pairs of layers, parts of blocks are asked
            for, or protected blocks leave no window.
    """
    scores, size = problem.scores, problem.size
    check_blocks(problem, "window")
    if scores is None:
        raise ConfigError("planner 'window' chooses by distances; it needs a measure such as 'angular', got none")
    if not scores.distances:
        raise ConfigError(
            f"planner 'window' chooses by distances between all pairs of layers, and measure '{scores.measure}' gives "
            "none; expected measure 'angular'. Measure again with it"
        )
    allowed = {unit.layer for unit in problem.units}
    check_window(allowed, size, problem.model)
    candidates = [w for w in scores.windows(size) if allowed.issuperset(range(w[0], w[0] + size))]
    candidates.sort(key=lambda w: (w[1], w[0]))
    (start, distance, error), *others = candidates
    layers = tuple(range(start, start + size))
    does, unit = _WORDS.get(scores.measure, ("changes", f"by measure '{scores.measure}'"))
    reason = (
        f"Among the {len(candidates)} windows of {size} blocks, {ranges(layers)} {does} the residual stream least: "
        f"its input and output are {distance:.4f} ± {error:.4f} apart ({unit})."
    )
    if not others:
        return Choice(blocks(layers), reason, distance)
    second, second_distance, second_error = others[0]
    return Choice(
        blocks(layers),
        reason,
        distance,
        runner_up=tuple(range(second, second + size)),
        gap=second_distance - distance,
        gap_standard_error=math.hypot(error, second_error),
    )


def check_window(allowed: Collection[int], size: int, model: str) -> None:
    """Refuse a window that has no room between protected blocks.

    Args:
        allowed: blocks that may go.
        size: how many go.
        model: what it is called in errors.

    Raises:
        ConfigError: no so many blocks in a row may go.
    """
    if not any(set(range(start, start + size)) <= set(allowed) for start in allowed):
        raise ConfigError(
            f"no {size} blocks of '{model}' in a row may go; those that may: {ranges(tuple(sorted(allowed)))}"
            ". Protect fewer, or drop fewer"
        )


@planner("before_last", title="The deepest blocks but the last, without measuring", url=_UIDL, needs="nothing")
def before_last(problem: Problem) -> Choice:
    """Blocks L-1-n … L-2, counted from 0 (UIDL section 4.4; the paper's range counts from 1).

    Args:
        problem: what is asked; the recipe protects the last block.

    Raises:
        ConfigError: parts of blocks are asked for.
    """
    check_blocks(problem, "before_last")
    layers = tuple(unit.layer for unit in problem.units[-problem.size :])
    return Choice(
        blocks(layers),
        f"The {problem.size} deepest blocks that are not protected go ({ranges(layers)}); nothing was measured.",
    )


def check_blocks(problem: Problem, planner: str) -> None:
    """Refuse parts of blocks.

    Args:
        problem: what is asked.
        planner: who is asked.

    Raises:
        ConfigError: parts of blocks are asked for.
    """
    if any(unit.part != "block" for unit in problem.units):
        raise ConfigError(f"planner '{planner}' chooses among whole blocks; take unit='block', or another planner")
