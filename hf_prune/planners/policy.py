"""Policy gradient over what goes: probabilities of staying, learned from the damage of cuts that are drawn by them."""

import math
import random
from collections.abc import Sequence

from hf_prune.errors import ConfigError
from hf_prune.planners.choice import Choice, in_words
from hf_prune.planners.problem import Problem
from hf_prune.records import Trial
from hf_prune.registry import planner
from hf_prune.units import Cut

_EDGE = 1e-7
"""Keeps the variance of a settled unit away from zero, as the released code does."""


@planner(
    "policy_gradient",
    title="Probabilities of staying, learned from cuts drawn by them",
    url="https://arxiv.org/abs/2406.10576",
    needs="judge",
    scores=("cuts",),
)
def policy_gradient(
    problem: Problem,
    *,
    steps: int = 200,
    samples: int = 4,
    rate: float = 0.05,
    window: int = 5,
    share: float = 1.0,
    seed: int | None = None,
) -> Choice:
    """Bernoulli masks by REINFORCE, no gradient of the model (Bypass Back-propagation section 3).

    With s_u the probability that unit u stays, K masks m are drawn and their damage L measured. Against δ, the moving
    average of their mean damage over `window` steps, s moves by -rate Σ_k (L_k - δ) (m_k - s) / √(s (1 - s)) / (K - 1)
    and is brought back to 0 ≤ s ≤ 1, Σ s = units that stay, by subtracting one number from all. The square root,
    which the released code has, makes it the gradient in units of each mask's spread; the rate falls along a cosine.
    At the end those of the lowest s go. The paper begins with s from a metric, this with equal ones; its masks are
    drawn for fresh text in each step.

    Args:
        problem: what is asked; its judge scores cuts.
        steps: updates of s.
        samples: masks in each (K), 2 at least.
        rate: of the first step, per nat of damage.
        window: steps over which the damage is averaged, 1 at least.
        share: of the text that masks are judged on; what is chosen is judged on all of it.
        seed: of the masks; None takes that of the calibration text.

    Raises:
        ConfigError: there is no judge, its measure does not judge cuts, options that mean nothing, or more forwards
            would be needed than are allowed.
        MeasureError: a score is not finite.
    """
    judge, units = problem.ask("policy_gradient"), problem.units
    if steps < 1 or samples < 2 or window < 1 or not rate > 0:
        raise ConfigError(
            f"planner 'policy_gradient': steps={steps}, samples={samples}, rate={rate}, window={window}; expected at "
            "least 1 step, 2 samples, a rate above 0 and a window of 1"
        )
    needed = steps * judge.cost(samples, share) + judge.cost(1.0)
    judge.allow(needed, f"planner 'policy_gradient' with {steps} steps of {samples} masks")
    draw = random.Random(problem.seed if seed is None else seed)
    staying = len(units) - problem.size
    kept = [staying / len(units)] * len(units)
    average: float | None = None
    for step in range(steps):
        masks = [_drawn(kept, problem, draw) for _ in range(samples)]
        damage = judge.scores([_cut(mask, problem) for mask in masks], share)
        mean = sum(damage) / samples
        average = mean if average is None else average + (mean - average) / window
        now = rate * (1 + math.cos(math.pi * step / steps)) / 2
        slope = gradient(kept, masks, [value - average for value in damage])
        kept = projected([s - now * g for s, g in zip(kept, slope, strict=True)], staying)
    ranked = sorted(range(len(units)), key=lambda i: (kept[i], i))
    chosen = tuple(sorted(units[i] for i in ranked[: problem.size]))
    (score,) = judge.scores([frozenset(chosen)])
    reason = (
        f"What {steps} steps of policy gradient by measure '{judge.objective}' made least likely to stay: "
        f"{in_words(chosen)}, with probabilities up to {kept[ranked[problem.size - 1]]:.2f}; without it the measure "
        f"is {score:.4g}."
    )
    return Choice(chosen, reason, trials=(Trial(chosen, score, steps * samples),))


def gradient(kept: Sequence[float], masks: Sequence[Sequence[int]], advantage: Sequence[float]) -> list[float]:
    """Σ_k advantage_k (m_k - s) / √(s (1 - s)) / (K - 1), for each unit.

    Args:
        kept: s, probability that each unit stays.
        masks: K of them, 1 where a unit stays.
        advantage: damage of each mask, less the average.
    """
    return [
        sum(a * (mask[u] - s) for a, mask in zip(advantage, masks, strict=True))
        / math.sqrt((s + _EDGE) * (1 - s + _EDGE))
        / (len(masks) - 1)
        for u, s in enumerate(kept)
    ]


def projected(values: Sequence[float], total: float) -> list[float]:
    """The nearest point of {0 ≤ s ≤ 1, Σ s = total}: one number is subtracted from all, and the rest clipped.

    Args:
        values: one a unit.
        total: from 0 to their number.
    """
    low, high = min(values) - 1, max(values)
    for _ in range(100):  # halves the interval until it is a few ulps
        middle = (low + high) / 2
        if sum(_clipped(value - middle) for value in values) > total:
            low = middle
        else:
            high = middle
    return [_clipped(value - high) for value in values]


def _clipped(value: float) -> float:
    return min(1.0, max(0.0, value))


def _drawn(kept: Sequence[float], problem: Problem, draw: random.Random) -> list[int]:
    """A mask that leaves a block: one that leaves none is no model, and is drawn again."""
    while True:
        mask = [int(draw.random() < s) for s in kept]
        if sum(unit.part == "block" for unit in _cut(mask, problem)) < problem.depth:
            return mask


def _cut(mask: Sequence[int], problem: Problem) -> Cut:
    return frozenset(unit for unit, stays in zip(problem.units, mask, strict=True) if not stays)
