"""Whether the records of a stranger's repo belong together, and are of a size that a page can show."""

from hf_prune import card_consistency
from hf_prune.errors import ConfigError
from hf_prune.output import Finished
from hf_prune.records import Scores
from hf_prune.soundness import check_importances

MOST_LAYERS = 512
"""Layers that the page draws; no model is known to have a third of them."""

MOST_ROWS = 500
"""Texts and tasks that an evaluation may hold of one model."""


def check_records(records: Finished) -> None:
    """Refuse records that contradict each other or are larger than a page can show.

    Raises:
        PruneError: names what is wrong.
    """
    plan, scores, healing, evaluation = records.plan, records.scores, records.healing, records.evaluation
    layers = plan.model.num_layers
    if not 1 <= layers <= MOST_LAYERS:
        raise ConfigError(f"the plan is for a model of {layers} layers; the page shows models of 1 to {MOST_LAYERS}")
    for model in evaluation.models if evaluation is not None else ():
        rows = len(model.perplexity) + len(model.tasks)
        if rows > MOST_ROWS:
            raise ConfigError(f"the evaluation holds {rows} texts and tasks of a model; the page shows {MOST_ROWS}")
    if scores is not None:
        check_scores(scores)
    output = "merged" if healing is None else healing.output
    card_consistency.check(plan, None, scores, healing, evaluation, output, records.reload_level, records.fetched)


def check_scores(scores: Scores) -> None:
    """Refuse scores whose tables are not whole.

    Raises:
        ConfigError: names the table and its size.
        MeasureError: an importance is not finite.
    """
    check_importances(scores)
    points = scores.model.num_layers + 1
    for name, table in (("distances", scores.distances), ("standard_errors", scores.standard_errors)):
        if (table or scores.distances) and [*map(len, table)] != [points] * points:
            raise ConfigError(
                f"the scores' {name} are {len(table)} rows of {max(map(len, table), default=0)} figures; expected "
                f"{points} rows of {points}, as the model has {points - 1} layers. Measure again"
            )
