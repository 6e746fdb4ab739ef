"""All figures of one model but its speed, in one call a model: the original before surgery, then what became of it.

Speed is only worth telling where the models take turns: see `hf_prune.evaluation.timing`.
"""

from collections.abc import Mapping

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_prune.architecture import layer_count
from hf_prune.config import EvaluationConfig
from hf_prune.errors import DataError
from hf_prune.evaluation.fidelity import BUDGET_BYTES, Reference
from hf_prune.evaluation.generation import completions, sampled_completions
from hf_prune.evaluation.harness import add_tasks
from hf_prune.evaluation.perplexity import TextMeasures, measure_text
from hf_prune.evaluation.speed import peak_memory
from hf_prune.evaluation.stability import AnswerSheet
from hf_prune.evaluation.task_loading import check_tasks
from hf_prune.evaluation.weights import count_weights
from hf_prune.records import ModelEvaluation
from hf_prune.samples import Samples
from hf_prune.selftext import model_limit


def evaluate_original(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[str, Samples],
    config: EvaluationConfig,
    *,
    budget_bytes: int = BUDGET_BYTES,
    sheet: AnswerSheet | None = None,
    progress: bool = False,
) -> tuple[ModelEvaluation, Reference]:
    """Measure the original, before surgery changes it, and keep what later models are compared with.

    Args:
        model: the uncut causal LM.
        tokenizer: its tokenizer.
        texts: name to text; the first is the one that models are compared on.
        config: what to measure.
        budget_bytes: most bytes of its predictions to keep.
        sheet: an empty one takes its answers to benchmark tasks.
        progress: whether to show bars.

    Returns:
        Its figures, and what is kept of its predictions on the first text. Save both to go on after an interruption.

    Raises:
        DataError: no text, too little of it, or prompts that don't fit.
        MeasureError: NaN or infinity in the logits, or weights that can't be counted.
    """
    figures, first = _evaluate(model, tokenizer, texts, config, "original", None, budget_bytes, progress, sheet=sheet)
    assert first.reference is not None  # it was asked for
    return figures, first.reference


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[str, Samples],
    config: EvaluationConfig,
    *,
    label: str,
    reference: Reference | None = None,
    measured: TextMeasures | None = None,
    sheet: AnswerSheet | None = None,
    progress: bool = False,
) -> ModelEvaluation:
    """Measure one model.

    Args:
        model: the causal LM, as it is shipped.
        tokenizer: its tokenizer.
        texts: name to text, the same as for the original.
        config: what to measure, the same as for the original.
        label: which model this is.
        reference: what was kept of the original on the first text; None leaves the fidelity out.
        measured: what a pass over the first text told already (`hf_prune.evaluation.pair`), so that it is not read
            again.
        sheet: the original's answers to benchmark tasks; None leaves the stability out.
        progress: whether to show bars.

    Raises:
        DataError: no text, too little of it, or prompts that don't fit.
        MeasureError: NaN or infinity in the logits, weights that can't be counted, or a reference of another text.
    """
    return _evaluate(model, tokenizer, texts, config, label, reference, None, progress, measured, sheet)[0]


def _evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[str, Samples],
    config: EvaluationConfig,
    label: str,
    reference: Reference | None,
    capture_bytes: int | None,
    progress: bool,
    measured: TextMeasures | None = None,
    sheet: AnswerSheet | None = None,
) -> tuple[ModelEvaluation, TextMeasures]:
    if not texts:
        raise DataError(f"there is no text to evaluate the {label} model on; give at least one")
    check_tasks(config, tokenizer, model_limit(model.config))
    weights = count_weights(model)
    written = completions(model, tokenizer, config.prompts, config.new_tokens, progress=progress)
    measures = [
        measured
        if measured is not None and not number
        else measure_text(
            model,
            tokenizer,
            samples,
            name=name,
            window=config.max_length,
            stride=config.stride,
            batch_size=config.batch_size,
            capture_bytes=None if number else capture_bytes,
            compare=None if number else reference,
            seed=config.seed,
            top_k=config.top_k,
            progress=progress,
        )
        for number, (name, samples) in enumerate(texts.items())
    ]
    drawn = sampled_completions(  # after the pass that refuses NaN: drawing from it fails within torch
        model,
        tokenizer,
        config.prompts,
        config.new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
        progress=progress,
    )
    lengths = {"prompt_tokens": config.max_length, "new_tokens": config.new_tokens, "seed": config.seed}
    figures = ModelEvaluation(
        label=label,
        layers=layer_count(model.config.get_text_config(decoder=True)),
        parameters=weights.parameters,
        bytes=weights.bytes,
        peak_memory=peak_memory(model, weight_bytes=weights.bytes, **lengths),
        dtype=weights.dtype,
        perplexity=tuple(m.perplexity for m in measures),
        fidelity=measures[0].fidelity,
        completions=written + drawn,
        speed=None,
    )
    return add_tasks(figures, model, tokenizer, config, sheet or AnswerSheet(), progress=progress), measures[0]
