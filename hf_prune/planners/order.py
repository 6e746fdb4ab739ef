"""Units taken in order of a score of each."""

from hf_prune.planners.choice import Choice, in_words
from hf_prune.planners.problem import Problem
from hf_prune.records import Trial
from hf_prune.registry import planner
from hf_prune.units import Unit


@planner(
    "top_k",
    title="Those that matter least, each scored once",
    url="https://arxiv.org/abs/2403.03853",
    needs="scores",
    scores=("units",),
)
def top_k(problem: Problem) -> Choice:
    """The units of the lowest importance, wherever they lie (ShortGPT section 3.2); ties go to the lower one.

    Args:
        problem: what is asked.

    Raises:
        ConfigError: nothing was measured, or the measure says nothing of these units.
        MeasureError: a score is missing.
    """
    importances = problem.importances()
    ranked = sorted(importances, key=lambda unit: (importances[unit], unit))
    chosen = tuple(sorted(ranked[: problem.size]))
    assert problem.scores is not None
    reason = (
        f"Of {len(ranked)} that may go, {in_words(chosen)} matter least by '{problem.scores.measure}': at most "
        f"{importances[ranked[problem.size - 1]]:.4g} each"
    )
    if problem.size < len(ranked):
        reason += f", the next one {importances[ranked[problem.size]]:.4g}"
    return Choice(chosen, reason + ".")


@planner(
    "greedy",
    title="One at a time, the rest scored again behind each",
    url="https://arxiv.org/abs/2402.09025",
    needs="judge",
    scores=("units",),
)
def greedy(problem: Problem) -> Choice:
    """Remove what matters least, score what is left again, and so on (SLEB algorithm 1; BlockPruner, FinerCut).

    With a budget, units that no longer fit are passed over, until none fits.

    Args:
        problem: what is asked; its judge scores.

    Raises:
        ConfigError: there is no judge, or more forwards would be needed than are allowed.
        MeasureError: a score is not finite.
    """
    judge = problem.ask("greedy")
    budget = problem.budget
    rounds = problem.size if budget is None else budget.count
    judge.allow(judge.cost_of_rounds(problem.units, rounds), "planner 'greedy'")
    removed: frozenset[Unit] = frozenset()
    trials = []
    for _ in range(rounds):
        left = [unit for unit in problem.units if unit not in removed]
        if budget is not None:
            left = [unit for unit in left if budget.allows(removed | {unit})]
        if not left:
            break
        found = judge.importances(removed, left)
        best = min(left, key=lambda unit: (found[unit], unit))
        removed |= {best}
        trials.append(Trial(tuple(sorted(removed)), found[best], len(left)))
    chosen = tuple(sorted(removed))
    reason = (
        f"Removed one after the other, each the one that mattered least by measure '{judge.objective}' where those "
        f"before it were gone: {in_words(chosen)}; the last one scored {trials[-1].score:.4g}."
    )
    return Choice(chosen, reason, trials=tuple(trials))
