"""An amount and scores in, the widths of a sliced model out. Nothing here sees a model, only what widths cost."""

import logging
from collections.abc import Callable

from hf_prune.config import PrunerConfig
from hf_prune.planners.widths import Score, WidthChoice, constant_width
from hf_prune.records import ModelRef, Operation, Plan, Scores, Slicing, TextUse
from hf_prune.registry import planner
from hf_prune.slicing.budget import Budget, break_even, make_budget
from hf_prune.slicing.costs import Costs
from hf_prune.slicing.options import SliceOptions, WidthOptions
from hf_prune.slicing.points import Widths

logger = logging.getLogger(__name__)


def make_slicing_plan(
    config: PrunerConfig,
    model: ModelRef,
    costs: Costs,
    scores: Scores | None,
    *,
    judge: Callable[[Widths, SliceOptions], tuple[float, float]] | None = None,
    selection: TextUse | None = None,
    calibration: TextUse | None = None,
    scores_digest: str | None = None,
) -> Plan:
    """Choose the widths.

    Args:
        config: the recipe with its amount.
        model: the base model.
        costs: what widths cost in it.
        scores: what was measured; None for recipes that measure nothing.
        judge: loss and standard error of the model sliced by a schedule, for a search.
        selection: the text that it judges on.
        calibration: the text that will be sliced on, where it is known.
        scores_digest: of the scores.

    Raises:
        ConfigError: the amount does not fit the model.
    """
    recipe, budget = config.recipe(), _budget(config, model, costs)
    options = budget.options
    score: Score | None = None if judge is None else lambda widths: judge(widths, options)
    choice: WidthChoice = planner.get(recipe.planner).function(budget, scores, score, **config.planner_kwargs)
    points, counted = budget.points(choice.widths), budget.count(choice.widths)
    slicing = Slicing(
        hidden_size=costs.hidden_size,
        embed=points.embed,
        attn_out=points.attn_out,
        mlp_out=points.mlp_out,
        basis=options.basis,
        tied=bool(options.tied),
        plain=budget.plain,
        requested=budget.sparsity,
        requested_of=budget.of,
        original_parameters=costs.original,
        parameters=counted.total,
        shortcut_parameters=counted.shortcuts,
        base=choice.base,
        redundancy=choice.redundancy,
        search=choice.search,
        selection=selection if choice.search else None,
        calibration=calibration,
    )
    _warn_of_growth(budget, slicing, config.planner_kwargs.get("multiple", 8))
    return Plan(
        model=model,
        method=config.method,
        planner=recipe.planner,
        operations=(Operation(recipe.surgery, tuple(range(model.num_layers)), dict(vars(options))),),
        reason=choice.reason,
        scores=scores_digest if choice.redundancy is not None else None,
        slicing=slicing,
    )


def check_reachable(config: PrunerConfig, model: ModelRef, costs: Costs) -> None:
    """Refuse, before any work, an amount that no equal widths meet: schedules keep to the same mean.

    Raises:
        ConfigError: no width is left, or the share cannot be reached.
    """
    constant_width(_budget(config, model, costs), None, None, multiple=WidthOptions(**config.planner_kwargs).multiple)


def _budget(config: PrunerConfig, model: ModelRef, costs: Costs) -> Budget:
    assert config.sparsity is not None
    return make_budget(
        costs,
        name=model.id,
        model_type=model.model_type,
        sparsity=config.sparsity,
        of="width" if config.amount_of == "width" else "parameters",
        options=SliceOptions(**config.surgery_kwargs),
    )


def _warn_of_growth(budget: Budget, slicing: Slicing, multiple: int) -> None:
    if slicing.saved >= 0:
        return
    even = break_even(budget, budget.multiple(multiple))
    advice = f"from {even:.1%} of the width on it gets smaller" if even is not None else "no width makes it smaller"
    reasons = []
    if budget.costs.can_tie and not slicing.tied:
        reasons.append("the table that head and embeddings shared becomes two")
    if budget.shortcuts:
        reasons.append(f"the shortcuts take {slicing.shortcut_parameters:,}")
    logger.warning(
        "slicing makes '%s' LARGER: %s parameters instead of %s (%.1f %% more), as %s; %s",
        budget.name, f"{slicing.parameters:,}", f"{slicing.original_parameters:,}", -100 * slicing.saved,
        ", ".join(reasons), advice,
    )  # fmt: skip
