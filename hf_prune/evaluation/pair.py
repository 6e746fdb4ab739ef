"""Two models on one text, batch by batch: nothing is kept, and every token is compared over the whole vocabulary."""

import math

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_prune.architecture.decoder import first_device
from hf_prune.evaluation.fidelity import TOP_K, Divergence
from hf_prune.evaluation.perplexity import TextMeasures, figures, losses, predicted_bytes
from hf_prune.evaluation.scoring import cut, max_positions, score
from hf_prune.evaluation.tally import Tally
from hf_prune.evaluation.topk import check_vocabularies, likeliest
from hf_prune.precision import fast_arithmetic
from hf_prune.runner import evaluating
from hf_prune.samples import Samples

_PROBE = "The naïve café—№ 42: «déjà vu», 東京 🙂\n\tdef f(x):  return x**2  # 3.14"
"""Accents, other scripts, an emoji, digits and runs of spaces: where tokenizers part."""


@torch.inference_mode()
def measure_pair(
    original: PreTrainedModel,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Samples,
    *,
    name: str,
    window: int,
    stride: int | None = None,
    batch_size: int = 4,
    top_k: int = TOP_K,
    progress: bool = False,
) -> tuple[TextMeasures, TextMeasures]:
    """What `measure_text` tells of two models that are in memory together, in one pass over the text.

    Both see the same windows. The figures are those of `measure_text` with a budget that covers the whole text.

    Args:
        original: the causal LM that is compared with; put in eval mode, and back.
        model: the one that is compared, on any device; put in eval mode, and back.
        tokenizer: of both.
        samples: the text.
        name: of the text, for tables and errors.
        window: tokens seen at once; clipped to what both models can see.
        stride: tokens the window moves by; None takes half of the window.
        batch_size: windows at once.
        top_k: tokens of each prediction for the KL of the likeliest; clipped to the vocabulary.
        progress: whether to show a bar.

    Returns:
        Perplexity of the original; perplexity of the model, and its fidelity at every predicted token.

    Raises:
        DataError: too little text, or a stride above the window.
        MeasureError: the vocabularies differ in size, a logit is NaN or infinite, or a perplexity is beyond float64.
    """
    narrow = min((original, model), key=lambda m: max_positions(m) or math.inf)
    spans, window, stride = cut(narrow, samples.sequences, window, stride, name)
    size = predicted_bytes(tokenizer, samples.sequences, name)
    first, second = Tally(len(spans)), Tally(len(spans))
    gap, vocabulary = Divergence(spans, len(samples.sequences), top_k), 0
    with evaluating(original), evaluating(model), fast_arithmetic(original), fast_arithmetic(model):
        whole = first_device(original).type != first_device(model).type
        passes = (
            score(original, samples.sequences, spans, batch_size, name, progress, whole=whole),
            score(model, samples.sequences, spans, batch_size, name, whole=whole),
        )
        # Not strict: vocabularies of two sizes come in parts of two lengths, and are refused at the first.
        for theirs, rows in zip(*passes, strict=False):
            vocabulary = theirs.logits.shape[1]
            check_vocabularies(vocabulary, rows.logits.shape[1])
            assert (theirs.offset, len(theirs.logits)) == (rows.offset, len(rows.logits))
            log_probs = rows.logits.float().log_softmax(-1)
            expected = theirs.logits.float().log_softmax(-1)
            first.add(theirs.window, losses(theirs, expected))
            second.add(rows.window, losses(rows, log_probs))
            expected = expected.to(log_probs.device)
            gap.full(rows.window, expected, log_probs)
            gap.top(rows.window, likeliest(expected, top_k), log_probs)
    one, two = (figures(nll, tokenizer, samples, name, size, window, stride) for nll in (first, second))
    return TextMeasures(one, None, None), TextMeasures(two, None, gap.fidelity(min(top_k, vocabulary)))


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """Why token ids of two tokenizers do not mean the same; None where they do.

    The vocabularies are compared in full, and the ids of a short text that tokenizers part on.

    Returns:
        One clause for an error, such as "token 'the' is 262 in one and 11 in the other".
    """
    ours, theirs = one.get_vocab(), other.get_vocab()
    for token in sorted(ours.keys() | theirs.keys(), key=lambda t: ours.get(t, math.inf)):
        if ours.get(token) != theirs.get(token):
            found = ["missing" if v.get(token) is None else str(v[token]) for v in (ours, theirs)]
            return f"token {token!r} is {found[0]} in one and {found[1]} in the other"
    ids = [list(t(_PROBE)["input_ids"]) for t in (one, other)]
    if ids[0] != ids[1]:
        return f"they cut one text in two ways ({len(ids[0])} and {len(ids[1])} tokens)"
    return None
