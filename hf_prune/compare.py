"""Two models side by side on the same text, whatever they are."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import environment
from hf_prune.config import EvaluationConfig
from hf_prune.errors import DataError
from hf_prune.evaluation import evaluate, evaluate_original, table
from hf_prune.evaluation.pair import measure_pair, same_tokenizer
from hf_prune.evaluation.stability import AnswerSheet
from hf_prune.evaluation.stage import text_name
from hf_prune.evaluation.task_loading import check_tasks
from hf_prune.memory import give_back
from hf_prune.record_base import Record
from hf_prune.records import Evaluation, ModelEvaluation, ModelRef
from hf_prune.samples import Samples, digest
from hf_prune.subject import find, fit_together, text_for, timed

A, B = "a", "b"
_LOST = "\ufffd"


@dataclass(frozen=True)
class Comparison(Record):
    """What a comparison found.

    Attributes:
        models: model a and model b.
        evaluation: their figures, labelled "a" and "b"; fidelity is that of b to a.
        tokenizers: how the tokenizers differ, so that only bits per byte compare; None where they are the same.
        refused: why b was not held against a token by token; None where it was.
        together: whether both were in memory at once.
    """

    FILE: ClassVar[str] = "comparison.json"

    models: tuple[ModelRef, ModelRef]
    evaluation: Evaluation
    tokenizers: str | None
    refused: str | None
    together: bool

    def table(self) -> str:
        """Both models side by side, and below it which is which."""
        lines = [table(self.evaluation, base=A, same_tokens=self.tokenizers is None), ""]
        for label, ref in zip((A, B), self.models, strict=True):
            lines.append(f"{label}: {ref.id} ({ref.revision[:12] if ref.revision else 'a folder'}), {ref.model_type}")
        if self.refused is not None:
            lines.append(f"fidelity of b to a: refused, {self.refused}")
        if self.tokenizers is not None:
            lines.append("perplexities are of different tokens and do not compare; bits per byte does")
        return "\n".join(lines)


def compare(
    a: str | Path,
    b: str | Path,
    config: EvaluationConfig | None = None,
    *,
    revisions: tuple[str | None, str | None] = (None, None),
    token: str | bool | None = None,
    progress: bool = False,
    **load_kwargs: Any,
) -> Comparison:
    """Measure two models on the same text.

    The text is a dataset's, or sampled from a. Models whose tokenizers differ read the same characters, each in tokens
    of its own. Where both fit in memory, they go over the text together, so that b is held against a at every token;
    else a's predictions are kept at as many tokens as the budget of `hf_prune.evaluation.fidelity` allows.

    Args:
        a: Hub id or folder; changes are given relative to it.
        b: Hub id or folder.
        config: which text, and what to measure.
        revisions: of a and of b, on the Hub.
        token: of the Hub.
        progress: whether to show bars.
        load_kwargs: dtype, device_map and trust_remote_code, see `hf_prune.subject.find`.

    Raises:
        PruneError: a model cannot be had, is no causal language model, or the text is missing or too short.
    """
    config = config or EvaluationConfig()
    check_tasks(config)  # before the first download
    one, other = (
        find(model, revision=revision, token=token, **load_kwargs)
        for model, revision in zip((a, b), revisions, strict=True)
    )
    tokenizers = same_tokenizer(one.tokenizer, other.tokenizer)
    refused = tokenizers and f"their tokenizers differ: {tokenizers}"
    if refused is None and one.vocabulary != other.vocabulary:
        refused = f"their logits speak of {one.vocabulary} and {other.vocabulary} tokens"
    limit = min(one.limit, other.limit)
    config = dataclasses.replace(config, max_length=min(config.max_length, limit))
    for subject in (one, other):
        check_tasks(config, subject.tokenizer, subject.limit)
    together = fit_together(one, other)
    first = one.load()
    samples = text_for(one, first, config, limit=limit, token=token, progress=progress)
    name = text_name(samples.use) if samples.use.dataset is not None else f"sampled from {A}"
    place = environment.describe(first)
    if tokenizers is not None:
        mine, theirs = _same_characters(samples, one.tokenizer, other.tokenizer)
    else:
        mine = theirs = samples
    texts = ({name: mine}, {name: theirs})
    sheet = AnswerSheet()
    figures: tuple[ModelEvaluation, ...]
    if refused is None and together:
        figures = _together(first, other.load(), one.tokenizer, texts[0], config, sheet, progress)
        del first
    elif refused is None:
        before, reference = evaluate_original(first, one.tokenizer, texts[0], config, sheet=sheet, progress=progress)
        del first
        give_back()
        after = evaluate(
            other.load(),
            other.tokenizer,
            texts[1],
            config,
            label=B,
            reference=reference,
            sheet=sheet,
            progress=progress,
        )
        figures = (dataclasses.replace(before, label=A), after)
    else:
        before = evaluate(first, one.tokenizer, texts[0], config, label=A, sheet=sheet, progress=progress)
        del first
        give_back()
        after = evaluate(other.load(), other.tokenizer, texts[1], config, label=B, sheet=sheet, progress=progress)
        figures = (before, after)
    give_back()
    figures = timed(figures, (one, other), config, progress)
    return Comparison((one.ref, other.ref), Evaluation(figures, place), tokenizers, refused, together)


def _together(
    a: PreTrainedModel,
    b: PreTrainedModel,
    tokenizer: Tokenizer,
    texts: dict[str, Samples],
    config: EvaluationConfig,
    sheet: AnswerSheet,
    progress: bool,
) -> tuple[ModelEvaluation, ModelEvaluation]:
    """Both models in memory: one pass over the text for both, and every token compared."""
    [(name, samples)] = texts.items()
    one, two = measure_pair(
        a,
        b,
        tokenizer,
        samples,
        name=name,
        window=config.max_length,
        stride=config.stride,
        batch_size=config.batch_size,
        top_k=config.top_k,
        progress=progress,
    )
    return (
        evaluate(a, tokenizer, texts, config, label=A, measured=one, sheet=sheet, progress=progress),
        evaluate(b, tokenizer, texts, config, label=B, measured=two, sheet=sheet, progress=progress),
    )


def _same_characters(samples: Samples, ours: Tokenizer, theirs: Tokenizer) -> tuple[Samples, Samples]:
    """One text in the tokens of two tokenizers, with the special tokens that each adds.

    A sequence may begin or end within a character of several bytes; what is left of such a character is cut off.

    Raises:
        DataError: nothing is left that both can read.
    """
    texts = [ours.decode(ids.tolist(), skip_special_tokens=True) for ids in samples.sequences]
    cut = [(_encode(ours, text), _encode(theirs, text)) for text in (str(text).strip(_LOST) for text in texts)]
    both = [pair for pair in cut if min(map(len, pair)) > 1]
    if not both:
        raise DataError(
            f"the text '{samples.use.dataset or 'sampled from a'}' holds nothing that both tokenizers cut into two "
            "tokens or more; give more text (--dataset)"
        )
    mine, yours = ((tuple(pair[side] for pair in both)) for side in (0, 1))
    return _samples(mine, samples), _samples(yours, samples)


def _encode(tokenizer: Tokenizer, text: str) -> torch.Tensor:
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)


def _samples(sequences: tuple[torch.Tensor, ...], like: Samples) -> Samples:
    use = dataclasses.replace(
        like.use,
        samples=len(sequences),
        tokens=sum(map(len, sequences)),
        max_length=max(map(len, sequences)),
        sha256=digest(sequences),
    )
    return Samples(sequences, use)
