"""What is measured of original, pruned and healed model."""

from hf_prune.evaluation.fidelity import Reference
from hf_prune.evaluation.generation import completions
from hf_prune.evaluation.perplexity import TextMeasures, measure_text
from hf_prune.evaluation.report import evaluate, evaluate_original
from hf_prune.evaluation.speed import peak_memory
from hf_prune.evaluation.tables import table
from hf_prune.evaluation.weights import WeightCount, count_weights

__all__ = [
    "Reference",
    "TextMeasures",
    "WeightCount",
    "completions",
    "count_weights",
    "evaluate",
    "evaluate_original",
    "measure_text",
    "peak_memory",
    "table",
]
