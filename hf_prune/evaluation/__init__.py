"""What is measured of original, pruned and healed model."""

from hf_prune.evaluation.fidelity import Reference
from hf_prune.evaluation.generation import completions, sampled_completions
from hf_prune.evaluation.pair import measure_pair, same_tokenizer
from hf_prune.evaluation.perplexity import TextMeasures, measure_text
from hf_prune.evaluation.report import evaluate, evaluate_original
from hf_prune.evaluation.speed import peak_memory
from hf_prune.evaluation.tables import table
from hf_prune.evaluation.timing import Contestant, take_turns
from hf_prune.evaluation.weights import WeightCount, count_weights

__all__ = [
    "Contestant",
    "Reference",
    "TextMeasures",
    "WeightCount",
    "completions",
    "count_weights",
    "evaluate",
    "evaluate_original",
    "measure_pair",
    "measure_text",
    "peak_memory",
    "same_tokenizer",
    "sampled_completions",
    "table",
    "take_turns",
]
