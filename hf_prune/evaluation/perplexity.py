"""Perplexity and bits per byte of a text; with the same forward passes, fidelity to the original."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_prune.errors import DataError, MeasureError
from hf_prune.evaluation.fidelity import TOP_K, Capture, Comparison, Reference
from hf_prune.evaluation.scoring import Rows, cut, score
from hf_prune.evaluation.tally import Tally
from hf_prune.precision import fast_arithmetic
from hf_prune.records import Fidelity, Perplexity
from hf_prune.runner import evaluating
from hf_prune.samples import Samples, digest


@dataclass(frozen=True)
class TextMeasures:
    """What one pass over one text gives.

    Attributes:
        perplexity: always.
        reference: the model's own logits, where they were asked for.
        fidelity: against a reference, where one was given.
    """

    perplexity: Perplexity
    reference: Reference | None
    fidelity: Fidelity | None


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Samples,
    *,
    name: str,
    window: int,
    stride: int | None = None,
    batch_size: int = 4,
) -> Perplexity:
    """Perplexity of a text: exp of total negative log-likelihood / predicted tokens.

    Args:
        model: the causal LM.
        tokenizer: its tokenizer, which tells how many bytes the tokens stand for.
        samples: the text.
        name: of the text, for tables and errors.
        window: tokens seen at once; clipped to the model's limit.
        stride: tokens the window moves by; None takes half of the window.
        batch_size: windows at once.

    Returns:
        The figures, with window and stride as used.

    Raises:
        DataError: too little text, or a stride above the window.
        MeasureError: a logit is NaN or infinite, or the perplexity is beyond float64.
    """
    return measure_text(
        model, tokenizer, samples, name=name, window=window, stride=stride, batch_size=batch_size
    ).perplexity


@torch.inference_mode()
def measure_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Samples,
    *,
    name: str,
    window: int,
    stride: int | None = None,
    batch_size: int = 4,
    capture_bytes: int | None = None,
    compare: Reference | None = None,
    seed: int = 0,
    top_k: int = TOP_K,
    progress: bool = False,
) -> TextMeasures:
    """Everything that one pass over a text can tell.

    Logits are upcast to float32 before the log-softmax, and summed in float64. The first token of a sequence is never
    predicted; every other one is, once.

    Args:
        model: the causal LM; put in eval mode, and back.
        tokenizer: its tokenizer.
        samples: the text.
        name: of the text, for tables and errors.
        window: tokens seen at once; clipped to the model's limit.
        stride: tokens the window moves by; None takes half of the window.
        batch_size: windows at once.
        capture_bytes: bytes of this model's predictions to keep, for later models to be compared with; None keeps
            none.
        compare: what was kept of the original's predictions on this text.
        seed: of the positions kept.
        top_k: tokens to keep of each prediction, besides.
        progress: whether to show a bar.

    Raises:
        DataError: too little text, or a stride above the window.
        MeasureError: a logit is NaN or infinite, the perplexity is beyond float64, or `compare` does not fit.
    """
    spans, window, stride = cut(model, samples.sequences, window, stride, name)
    size = predicted_bytes(tokenizer, samples.sequences, name)
    text = digest(samples.sequences)
    nll, sequences = Tally(len(spans)), len(samples.sequences)
    total = sum(s.end - s.first for s in spans)
    capture = None if capture_bytes is None else Capture(total, capture_bytes, seed, top_k)
    comparison = None if compare is None else Comparison(compare, spans, sequences, text, window, stride)
    with evaluating(model), fast_arithmetic(model):
        for rows in score(model, samples.sequences, spans, batch_size, name, progress):
            log_probs = rows.logits.float().log_softmax(-1)
            nll.add(rows.window, losses(rows, log_probs))
            if capture is not None:
                capture.add(rows, log_probs)
            if comparison is not None:
                comparison.add(rows, log_probs)
    return TextMeasures(
        figures(nll, tokenizer, samples, name, size, window, stride),
        reference=None if capture is None else capture.reference(text, window, stride),
        fidelity=None if comparison is None else comparison.fidelity(),
    )


def losses(rows: Rows, log_probs: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each row's token; (rows,) float32, nats."""
    return -log_probs.gather(-1, rows.targets[:, None])[:, 0]


def figures(
    nll: Tally, tokenizer: PreTrainedTokenizerBase, samples: Samples, name: str, size: int, window: int, stride: int
) -> Perplexity:
    """The record of a text.

    Args:
        nll: negative log-likelihood of every predicted token.
        tokenizer: tells which sequences begin with BOS.
        samples: the text.
        name: of the text.
        size: UTF-8 bytes of the predicted text.
        window: as used.
        stride: as used.

    Raises:
        MeasureError: the perplexity is beyond float64.
    """
    bos = tokenizer.bos_token_id
    return Perplexity(
        name=name,
        nll=nll.mean,
        standard_error=nll.standard_error,
        perplexity=_exp(nll.mean, name),
        bits_per_byte=nll.total / math.log(2) / size,
        tokens=nll.count,
        bytes=size,
        window=window,
        stride=stride,
        data=samples.use,
        bos_sequences=sum(bos is not None and int(ids[0]) == bos for ids in samples.sequences),
    )


def predicted_bytes(tokenizer: PreTrainedTokenizerBase, sequences: Sequence[torch.Tensor], name: str) -> int:
    """UTF-8 bytes of the text that is predicted: of each whole sequence, less those of its first token.

    Special tokens have no bytes; predicting them still costs nats, as it does whoever writes the text with the model.
    The difference of two decodings keeps the space that some tokenizers strip from the start of what they decode.

    Raises:
        DataError: the predicted tokens stand for no text.
    """

    def size(ids: torch.Tensor) -> int:
        text = tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return len(str(text).encode("utf-8", errors="replace"))

    total = sum(size(ids) - size(ids[:1]) for ids in sequences)
    if total < 1:
        raise DataError(f"text '{name}': the predicted tokens decode to no text; bits per byte needs some")
    return total


def _exp(nll: float, name: str) -> float:
    try:
        return math.exp(nll)
    except OverflowError as error:
        raise MeasureError(
            f"text '{name}': {nll:.1f} nats per token is no language model; the perplexity is beyond float64. "
            "The weights are broken, or do not fit the tokenizer"
        ) from error
