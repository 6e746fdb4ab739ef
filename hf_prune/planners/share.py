"""No block is chosen: of every one, single weights become zero."""

from hf_prune.planners.choice import Choice
from hf_prune.planners.problem import Problem
from hf_prune.registry import planner


@planner(
    "every_block",
    title="No block goes; of each, the weights of the lowest scores",
    url="https://arxiv.org/abs/2306.11695",
    cuts="weights",
    needs="nothing",
)
def every_block(problem: Problem) -> Choice:
    """Which weights become zero is found by the surgery; there is nothing to choose among blocks.

    Args:
        problem: what is asked.
    """
    return Choice((), f"All {problem.depth} blocks stay; in each, the weights of the lowest scores become zero.")
