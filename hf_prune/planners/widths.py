"""Widths of the residual stream: the same in all layers, or less where layers are redundant."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from hf_prune.errors import ConfigError
from hf_prune.records import Schedule, Scores
from hf_prune.registry import planner
from hf_prune.slicing.budget import Budget
from hf_prune.slicing.options import SEARCH
from hf_prune.slicing.points import Widths
from hf_prune.slicing.widths import constant_widths, dynamic_widths, layer_redundancy

logger = logging.getLogger(__name__)

AMOUNTS = (0.0, 0.02, 0.05, 0.10, 0.20, 0.30, 0.40, 0.60, 0.80)
"""Shares that a search moves between layers (SP - SB), in the order in which they are tried; 0 is the constant one."""

MOST = 5
"""Schedules that a search tries."""

Score = Callable[[Widths], tuple[float, float]]
"""Widths -> loss of the model sliced so, on text held out from calibration, and its standard error."""


@dataclass(frozen=True)
class WidthChoice:
    """The widths, and why.

    Attributes:
        widths: one a layer.
        reason: one sentence.
        base: slice base of a dynamic schedule.
        redundancy: of each layer, where the schedule follows it.
        search: all schedules that were tried.
    """

    widths: tuple[int, ...]
    reason: str
    base: float | None = None
    redundancy: tuple[float, ...] | None = None
    search: tuple[Schedule, ...] = ()


@planner("constant_width", title="The same width in all layers", url="https://arxiv.org/abs/2401.15024", cuts="width")
def constant_width(budget: Budget, scores: Scores | None, score: Score | None, *, multiple: int = 8) -> WidthChoice:
    """d = (1 - s) D in all layers, rounded down to a multiple (SliceGPT section 3.4).

    Args:
        budget: how much goes.
        scores: ignored.
        score: ignored.
        multiple: of which widths are multiples.

    Raises:
        ConfigError: no width is left.
    """
    multiple = budget.multiple(multiple)
    share, widths = budget.solve(_constant(budget, multiple), multiple)
    return WidthChoice(widths, f"Every layer keeps {widths[0]} of {budget.costs.hidden_size} directions.")


@planner(
    "dynamic_width",
    title="Narrower where layers are redundant, at the same mean width",
    url="https://arxiv.org/abs/2411.03513",
    cuts="width",
    scores=("layers",),
)
def dynamic_width(
    budget: Budget,
    scores: Scores | None,
    score: Score | None,
    *,
    slice_base: float | str = SEARCH,
    multiple: int = 8,
) -> WidthChoice:
    """Share cut of layer i: SB + (SP - SB) LR_i / mean(LR) (Dynamic Slicing).

    Args:
        budget: how much goes (SP).
        scores: cosines of the measure "redundancy".
        score: judges a schedule; used by a search.
        slice_base: SB, or "search" for the best of several, the constant schedule among them.
        multiple: of which widths are multiples.

    Raises:
        ConfigError: there are no scores of layers, a base above the share, or no width is left.
    """
    if scores is None or not scores.layers:
        found = "none" if scores is None else f"those of '{scores.measure}'"
        raise ConfigError(
            f"planner 'dynamic_width' follows one score a layer; expected those of measure 'redundancy', got {found}"
        )
    if not budget.shortcuts:
        raise ConfigError(
            "basis='global' keeps one width in all layers; planner 'dynamic_width' gives them different ones. Take "
            "basis='per_block', or method 'slicegpt'"
        )
    redundancy, multiple = layer_redundancy(scores.layers), budget.multiple(multiple)
    if slice_base != SEARCH:
        base = float(slice_base)
        share, widths = budget.solve(
            lambda s: dynamic_widths(redundancy, budget.costs.hidden_size, s, min(base, s), multiple=multiple),
            multiple,
        )
        if base > share + 1e-9:
            raise ConfigError(f"slice_base={base} is above the share of the width that goes, {share:.4f}; lower it")
        reason = (
            f"Every layer loses at least {base:.1%} of its width, redundant ones up to {_most(budget, widths):.1%}."
        )
        return WidthChoice(widths, reason, base, redundancy)
    if score is None:
        raise ConfigError("slice_base='search' tries schedules on the model; plan from the model, or give slice_base")
    return _search(budget, redundancy, score, multiple)


def _search(budget: Budget, redundancy: tuple[float, ...], score: Score, multiple: int) -> WidthChoice:
    tried: list[Schedule] = []
    candidates = _candidates(budget, redundancy, multiple)
    for base, widths in candidates:
        loss, error = score(budget.points(widths))
        tried.append(Schedule(base, widths, loss, error))
        logger.info("slice base %.4f: %.4f ± %.4f nats per token", base, loss, error)
    best = min(tried, key=lambda t: t.loss)
    gain = tried[0].loss - best.loss
    reason = (
        f"Of {len(tried)} schedules the one with slice base {best.base:.4f} loses least on text held out from "
        f"calibration: {best.loss:.4f} ± {best.standard_error:.4f} nats per token, {gain:.4f} less than equal widths."
        if best is not tried[0]
        else f"Of {len(tried)} schedules the one of equal widths loses least on text held out from calibration: "
        f"{best.loss:.4f} ± {best.standard_error:.4f} nats per token."
    )
    return WidthChoice(best.widths, reason, best.base, redundancy, tuple(tried))


def _candidates(budget: Budget, redundancy: tuple[float, ...], multiple: int) -> list[tuple[float, tuple[int, ...]]]:
    """At most `MOST` (base, widths) that differ after rounding, each within the budget; the constant one first."""
    found: list[tuple[float, tuple[int, ...]]] = []
    for amount in AMOUNTS:

        def schedule(share: float, amount: float = amount) -> tuple[int, ...]:
            base = max(0.0, share - amount)
            return dynamic_widths(redundancy, budget.costs.hidden_size, share, base, multiple=multiple)

        share, widths = budget.solve(schedule, multiple)
        if widths not in [known for _, known in found]:
            found.append((max(0.0, share - amount), widths))
        if len(found) == MOST or amount >= share:
            break
    return found


def _constant(budget: Budget, multiple: int) -> Callable[[float], tuple[int, ...]]:
    hidden, layers = budget.costs.hidden_size, len(budget.costs.layers)
    return lambda share: constant_widths(hidden, layers, share, multiple=multiple)


def _most(budget: Budget, widths: tuple[int, ...]) -> float:
    return 1 - min(widths) / budget.costs.hidden_size
