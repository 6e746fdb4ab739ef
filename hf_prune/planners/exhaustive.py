"""Every cut of the size that is asked for, tried on the model."""

import math
from collections.abc import Iterator
from itertools import combinations, islice

from hf_prune.planners.choice import Choice, in_words
from hf_prune.planners.problem import Problem
from hf_prune.records import Trial
from hf_prune.registry import planner
from hf_prune.tries import subset_runs
from hf_prune.units import Cut

_AT_ONCE = 512
"""Cuts that are arranged as one tree: they share hidden states, and each has sums of its own meanwhile."""

_NOTED = 5
"""Best cuts that the record tells."""


@planner(
    "exhaustive",
    title="The best of all sets of that size",
    url="https://arxiv.org/abs/2410.14649",
    needs="judge",
    scores=("cuts",),
)
def exhaustive(problem: Problem) -> Choice:
    """argmin over all sets of that size of the damage; ties go to the lower units (EvoPress's brute force).

    Args:
        problem: what is asked; its judge scores cuts.

    Raises:
        ConfigError: there is no judge, its measure does not judge cuts, or more forwards are needed than are allowed.
        MeasureError: a score is not finite.
    """
    judge, depth = problem.ask("exhaustive"), problem.depth
    count = math.comb(len(problem.units), problem.size)
    parts = -(-count // _AT_ONCE)
    # Each further tree passes once more the blocks that its first cut shares with the last one of the tree before.
    runs = subset_runs(problem.units, problem.size, depth) + (parts - 1) * depth
    needed = judge.cost(runs / depth) + (parts - 1) * judge.cost(0)
    judge.allow(needed, f"planner 'exhaustive', which tries {count} sets of {problem.size},")
    best: list[tuple[float, int, Cut]] = []
    tried = 0
    for cuts in _groups(problem):
        found = judge.scores(cuts)
        ranked = [(score, tried + i, cut) for i, (score, cut) in enumerate(zip(found, cuts, strict=True))]
        best = sorted([*best, *ranked], key=lambda one: one[:2])[:_NOTED]
        tried += len(cuts)
    trials = tuple(Trial(tuple(sorted(cut)), score, tried) for score, _, cut in best)
    chosen, score = trials[0].removed, trials[0].score
    reason = f"Of all {count} sets of {problem.size}, {in_words(chosen)} does least by measure '{judge.objective}': "
    reason += f"{score:.4g}"
    if len(trials) > 1:
        reason += f", the next best ({in_words(trials[1].removed)}) {trials[1].score:.4g}"
    return Choice(chosen, reason + ".", trials=trials)


def _groups(problem: Problem) -> Iterator[list[Cut]]:
    """All cuts in the order of a walk through their tree, so that neighbours share the most."""
    cuts = (frozenset(chosen) for chosen in combinations(problem.units, problem.size))
    while group := list(islice(cuts, _AT_ONCE)):
        yield group
