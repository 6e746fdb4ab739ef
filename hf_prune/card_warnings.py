"""The warnings at the top of a card."""

from hf_prune import card_choice, card_slicing
from hf_prune import card_tables as tables
from hf_prune.card_metadata import Base
from hf_prune.markdown import one_line
from hf_prune.records import Evaluation, Healing, ModelEvaluation, Plan, Scores
from hf_prune.units import Part, layers_of
from hf_prune.writing import REPEATED, collapse

MANY = 0.3
"""Share of removed layers above which a card warns."""

FEW_SAMPLES = 100
"""Calibration samples below which a card warns."""

FEW_TOKENS = 20_000
"""Predicted tokens of an evaluation below which a card warns."""


_REMOVED: tuple[tuple[Part, str], ...] = (("block", "layers"), ("attention", "attentions"), ("mlp", "MLPs"))


def warnings(
    plan: Plan,
    base: Base,
    scores: Scores | None,
    healing: Healing | None,
    evaluation: Evaluation | None,
    shipped: ModelEvaluation | None,
) -> list[str]:
    """What a reader should know before anything else.

    Args:
        plan: what was cut.
        base: the model that was pruned.
        scores: what was measured.
        healing: how it was healed.
        evaluation: original, pruned and healed.
        shipped: figures of the weights that the card accompanies.
    """
    found = list(healing.warnings) if healing else []
    found += card_slicing.warnings(plan.slicing, MANY) if plan.slicing is not None else too_many(plan)
    found += [sentence] if (sentence := card_choice.no_gain(plan)) else []
    if not healing:
        found.append("The model was not trained after the cut.")
    if shipped is None:
        found.append("The weights in this repository were not evaluated.")
    if not base.on_hub:
        found.append(f"The base was a local model named {one_line(base.name)}, so no base model is linked.")
    found += close_choice(plan)
    text = plan.data if scores is None else scores.data
    if text is not None and text.samples < FEW_SAMPLES:
        decided = "how wide each layer is" if plan.slicing is not None else "which layers go"
        if plan.planner == "named":
            decided = "what was fitted"
        found.append(f"Only {text.samples} samples decided {decided}.")
    for figures in shipped.perplexity if shipped else ():
        if figures.tokens < FEW_TOKENS:
            found.append(f"The figures on {one_line(figures.name)} rest on {figures.tokens:,} tokens only.")
        if figures.data.dataset is None:
            found.append(
                f"{one_line(figures.name)} is text that the original model wrote itself: a low perplexity there means "
                "closeness to the original, not quality."
            )
    original = next((m for m in evaluation.models if m.label == "original"), None) if evaluation else None
    if original is not None and shipped is not None and (fall := collapse(original, shipped)) is not None:
        before, after = map(tables.percent, fall)
        found.append(
            f"Free generation has collapsed: {after} of the {REPEATED}-grams in the completions below are repeats, "
            f"{before} in the original's."
        )
    if shipped is not None and any(task.limit is not None for task in shipped.tasks):
        found.append("The benchmarks were run on a part of their questions only.")
    if evaluation is not None and (evaluation.recovered or 0) < 0:
        found.append("Healing made the loss worse on the evaluation text.")
    return found


def too_many(plan: Plan) -> list[str]:
    """What to know where more layers go than published results bear."""
    depth, told = plan.model.num_layers, []
    for part, noun in _REMOVED:
        became = "gone" if part == "block" else card_choice.became(plan)
        count = len(layers_of(plan.removed, part))
        if count / depth > MANY:
            told.append(f"{count} of {depth} {noun} ({count / depth:.0%}) are {became}")
    if not told:
        return []
    return [
        f"{', '.join(told)}. Free generation and reasoning in several steps suffer first and most, before perplexity "
        "shows it."
    ]


def close_choice(plan: Plan) -> list[str]:
    """What to know where the scores hardly tell the chosen layers from others."""
    if plan.gap is None or plan.gap_standard_error is None or plan.gap >= 2 * plan.gap_standard_error:
        return []
    return ["The runner-up lies within two standard errors: other layers could have been chosen as well."]
