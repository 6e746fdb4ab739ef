"""Evolutionary search over what goes: swaps of units, judged on more and more text."""

import random
from collections.abc import Callable, Sequence

from hf_prune.errors import ConfigError
from hf_prune.planners.choice import Choice, in_words
from hf_prune.planners.problem import Judge, Problem
from hf_prune.records import Trial
from hf_prune.registry import planner
from hf_prune.units import Cut

_GROWTH = 4
"""How much more text each stage of a selection looks at than the one before."""

_SWAPS = 3
"""Most swaps between a parent and its child."""

_PATIENCE = 20
"""Draws for each child that is wanted, before the neighbourhood counts as exhausted."""


@planner(
    "evolution",
    title="Swaps of units, the best of each generation kept",
    url="https://arxiv.org/abs/2410.14649",
    needs="judge",
    scores=("cuts",),
)
def evolution(
    problem: Problem,
    *,
    generations: int = 50,
    offspring: int = 32,
    survivors: Sequence[int] = (8, 2),
    seed: int | None = None,
) -> Choice:
    """(1 + λ) evolution with level-switch mutation and multi-step selection (EvoPress algorithm 1, drop search).

    One parent, the best of as many random sets as there are children. A child swaps one to three of its parent's units
    (mostly one: the smaller of two draws) for others of the same kind. Children are judged on a little text, those
    that survive on four times as much, and so on; the last ones on all of it, beside their parent, which only a better
    one replaces. Where a search of the released code draws fresh text for each selection, the shares here are the
    first sequences of the text, and no set is tried twice on all of it.

    Args:
        problem: what is asked; its judge scores cuts.
        generations: how often the parent may be replaced.
        offspring: children in each.
        survivors: how many stay behind each stage but the last; descending.
        seed: of what is drawn; None takes that of the calibration text.

    Raises:
        ConfigError: there is no judge, its measure does not judge cuts, options that mean nothing, or more forwards
            would be needed than are allowed.
        MeasureError: a score is not finite.
    """
    judge = problem.ask("evolution")
    stages = _stages(offspring, survivors)
    if generations < 1:
        raise ConfigError(f"planner 'evolution': generations={generations}; expected 1 at least")
    each = 1 - sum(unit.part == "block" for unit in problem.units[: problem.size]) / problem.depth
    needed = (generations + 1) * sum(judge.cost(count * each, share) for count, share in stages)
    judge.allow(needed, f"planner 'evolution' with {generations} generations of {offspring} sets")
    draw = random.Random(problem.seed if seed is None else seed)
    search = _Search(problem, judge, stages, draw)
    first = search.start(offspring)
    best, score = search.select(first)
    trials = [Trial(tuple(sorted(best)), score, len(first))]
    for _ in range(generations):
        children = search.children(best, offspring)
        if not children:
            break
        found, value = search.select(children)
        if value < score:
            best, score = found, value
            trials.append(Trial(tuple(sorted(best)), score, search.tried))
    chosen = tuple(sorted(best))
    reason = (
        f"The best of {search.tried} sets that evolution tried by measure '{judge.objective}': {in_words(chosen)} "
        f"({score:.4g}; the best of the random ones at its start {trials[0].score:.4g})."
    )
    return Choice(chosen, reason, trials=tuple(trials))


def _stages(offspring: int, survivors: Sequence[int]) -> list[tuple[int, float]]:
    """For each stage of a selection, how many sets come to it, and the share of the text that they are judged on."""
    counts = [offspring, *survivors]
    if any(not isinstance(n, int) or n < 1 for n in counts) or counts != sorted(counts, reverse=True):
        raise ConfigError(
            f"planner 'evolution': offspring={offspring}, survivors={list(survivors)}; expected whole numbers from 1, "
            "each at most the one before"
        )
    return [
        (count, float(_GROWTH) ** -behind) for count, behind in zip(counts, reversed(range(len(counts))), strict=True)
    ]


class _Search:
    """Draws cuts and selects among them.

    Attributes:
        tried: different cuts that were judged.
    """

    def __init__(
        self, problem: Problem, judge: Judge, stages: Sequence[tuple[int, float]], draw: random.Random
    ) -> None:
        self._problem, self._judge, self._stages, self._draw = problem, judge, stages, draw
        self._settled: set[Cut] = set()
        self._seen: set[Cut] = set()

    @property
    def tried(self) -> int:
        return len(self._seen)

    def start(self, count: int) -> list[Cut]:
        """Different random cuts; units of each kind go in proportion to how many there are of it."""
        size, units = self._problem.size, self._problem.units
        attentions = [unit for unit in units if unit.part == "attention"]
        others = [unit for unit in units if unit.part != "attention"]
        of_these = round(size * len(attentions) / len(units))

        def drawn() -> Cut:
            return frozenset([*self._draw.sample(attentions, of_these), *self._draw.sample(others, size - of_these)])

        return self._different(drawn, count)

    def children(self, parent: Cut, count: int) -> list[Cut]:
        """Different cuts near a parent that were not settled yet."""
        return self._different(lambda: self._mutated(parent), count)

    def select(self, cuts: list[Cut]) -> tuple[Cut, float]:
        """The best of some cuts, in stages, and its damage on all of the text."""
        self._seen.update(cuts)
        for (_, share), (keep, _) in zip(self._stages, self._stages[1:], strict=False):
            if len(cuts) > keep:
                cuts = [cut for _, cut in self._ranked(cuts, share)[:keep]]
        self._settled.update(cuts)
        score, best = self._ranked(cuts, 1.0)[0]
        return best, score

    def _ranked(self, cuts: list[Cut], share: float) -> list[tuple[float, Cut]]:
        found = self._judge.scores(cuts, share)
        return sorted(zip(found, cuts, strict=True), key=lambda one: (one[0], sorted(one[1])))

    def _mutated(self, parent: Cut) -> Cut:
        child = set(parent)
        for _ in range(min(self._draw.randint(1, _SWAPS), self._draw.randint(1, _SWAPS))):
            back = self._draw.choice(sorted(child))
            free = [unit for unit in self._problem.units if unit.part == back.part and unit not in child]
            if free:
                child.remove(back)
                child.add(self._draw.choice(free))
        return frozenset(child)

    def _different(self, drawn: Callable[[], Cut], count: int) -> list[Cut]:
        found: dict[Cut, None] = {}
        for _ in range(_PATIENCE * count):
            if len(found) == count:
                break
            cut = drawn()
            if cut not in self._settled:
                found[cut] = None
        return list(found)
