"""Whether the records of a card belong together."""

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_prune import card_slicing
from hf_prune import card_tables as tables
from hf_prune.card_tasks import check_same_questions
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.markdown import one_line
from hf_prune.records import Evaluation, Healing, ModelEvaluation, Plan, Scores
from hf_prune.soundness import check_blocks, check_importances, check_plan
from hf_prune.soundness_healing import check_healing_record

RELOAD_LEVELS = ("full", "streamed", "none")
FETCHED = ("whole", "verified", "ranges")


def check(
    plan: Plan,
    repo_id: str | None,
    scores: Scores | None,
    healing: Healing | None,
    evaluation: Evaluation | None,
    output: str,
    reload_level: str,
    fetched: str,
) -> None:
    """Refuse records that do not belong together, before anything is written.

    Args:
        plan: what was cut.
        repo_id: where the model goes.
        scores: what was measured.
        healing: how it was healed.
        evaluation: original, pruned and healed.
        output: "merged" or "adapter".
        reload_level: "full", "streamed" or "none".
        fetched: "whole", "verified" or "ranges".

    Raises:
        ConfigError: names what contradicts what.
        MeasureError: a figure that cannot be.
    """
    if repo_id is not None:
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ConfigError(f"repo_id={one_line(repo_id)!r} is no Hub id; expected owner/name") from error
    if output not in ("merged", "adapter"):
        raise ConfigError(f"output={output!r}; expected 'merged' or 'adapter'")
    if reload_level not in RELOAD_LEVELS:
        raise ConfigError(f"reload_level={reload_level!r}; expected one of: {', '.join(RELOAD_LEVELS)}")
    if fetched not in FETCHED:
        raise ConfigError(f"fetched={one_line(fetched)!r}; expected one of: {', '.join(FETCHED)}")
    if fetched != "whole" and plan.model.revision is None:
        raise ConfigError(
            f"fetched={fetched!r}, but the plan names no commit of '{one_line(plan.model.id)}' on the Hub"
        )
    check_plan(plan)
    check_blocks(plan)
    if plan.slicing is not None:
        card_slicing.check(plan, plan.slicing)
    elif not plan.removed and plan.sparsity is None:
        raise ConfigError(
            f"the plan of method '{plan.method}' removes no layer and slices none; there is nothing to write a card "
            "about"
        )
    if (output == "adapter") != (healing is not None and healing.output == "adapter"):
        raise ConfigError(
            f"output={output!r}, but the healing record says {healing.output if healing else 'nothing was healed'!r}"
        )
    if healing is not None:
        check_healing_record(healing)
    if scores is not None and scores.model.num_layers != plan.model.num_layers:
        raise ConfigError(
            f"the scores are of a model with {scores.model.num_layers} layers, the plan of one with "
            f"{plan.model.num_layers}; expected records of one model"
        )
    if scores is not None:
        check_importances(scores)
    for model in evaluation.models if evaluation else ():
        if model.label not in ("original", "pruned", "healed"):
            raise ConfigError(
                f"the evaluation has a model {one_line(model.label)!r}; expected original, pruned or healed"
            )
        _check_possible(model)
        expected = plan.model.num_layers if model.label == "original" else len(plan.kept)
        if model.layers != expected:
            raise ConfigError(
                f"the evaluation's {model.label} model has {model.layers} layers; the plan says {expected}"
            )
        if plan.slicing is not None and model.label != "healed":  # an adapter beside the weights would count as well
            card_slicing.check_parameters(plan.slicing, model)
    if evaluation is not None:
        labels = [model.label for model in evaluation.models]
        if len(set(labels)) < len(labels):
            raise ConfigError(f"the evaluation has a model twice: {', '.join(labels)}")
        tables.check_same_texts(evaluation)
        check_same_questions(evaluation)


def _check_possible(model: ModelEvaluation) -> None:
    """Refuse figures that no measurement gives: a card would take logarithms, roots and ratios of them."""
    positive = [
        (text.name, getattr(text, name)) for text in model.perplexity for name in ("perplexity", "tokens", "bytes")
    ]
    if model.speed is not None:
        positive += [("speed", model.speed.prefill.median), ("speed", model.speed.decode.median)]
    errors = [(text.name, text.standard_error) for text in model.perplexity]
    errors += [(task.task, task.standard_error or 0.0) for task in model.tasks]
    errors += [] if model.fidelity is None else [("KL", model.fidelity.kl_standard_error)]
    wrong = [pair for pair in positive if pair[1] <= 0] + [pair for pair in errors if pair[1] < 0]
    if wrong:
        name, value = wrong[0]
        raise MeasureError(
            f"the evaluation's {model.label} model has the figure {value} at {one_line(name, 100)!r}; expected a "
            "count, a perplexity or a rate above zero, and no negative standard error. Evaluate again"
        )
