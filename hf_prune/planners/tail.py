"""What any choice has to be better than: the deepest units, and a draw."""

import random as generators

from hf_prune.planners.choice import Choice, in_words
from hf_prune.planners.problem import Problem
from hf_prune.registry import planner


@planner("last", title="The deepest ones, without measuring", url="https://arxiv.org/abs/2411.15558", needs="nothing")
def last(problem: Problem) -> Choice:
    """Blocks L-n … L-1, the last one among them (reverse order, Reassessing Layer Pruning section 3).

    Args:
        problem: what is asked; what is protected stays, and the next deepest goes for it.
    """
    chosen = problem.units[-problem.size :]
    return Choice(chosen, f"The {problem.size} deepest that may go ({in_words(chosen)}); nothing was measured.")


@planner("random", title="Drawn at random, to compare with", url="https://arxiv.org/abs/2411.15558", needs="nothing")
def random(problem: Problem, *, seed: int | None = None) -> Choice:
    """Each set of that size as likely as any other; what a method that measures has to be better than.

    Args:
        problem: what is asked.
        seed: of the draw; None takes that of the calibration text.
    """
    seed = problem.seed if seed is None else seed
    chosen = tuple(sorted(generators.Random(seed).sample(problem.units, problem.size)))
    return Choice(chosen, f"Drawn at random with seed {seed}: {in_words(chosen)}; nothing was measured.")
