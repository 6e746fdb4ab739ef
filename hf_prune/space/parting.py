"""Where two answers part: both models read both answers, and are asked for their likeliest token at each place."""

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune.architecture.decoder import structural_copy
from hf_prune.evaluation.pair import same_tokenizer
from hf_prune.evaluation.scoring import Window, score
from hf_prune.space.frames import Parting, Token
from hf_prune.space.pair import Loaded
from hf_prune.space.prompts import Asked
from hf_prune.space.writing import Speech, plain_text

_ROWS = 16
"""Rows that are compared at once."""


@torch.inference_mode()
def part(loaded: Loaded, asked: Asked, original: tuple[int, ...], pruned: tuple[int, ...]) -> Parting:
    """Hold two answers against each other, token by token.

    KL(original ‖ pruned) = Σ p log(p / q) over the whole vocabulary, p and q being what the two models expect after
    the same text at temperature 1, before top-p. Only the answers' logits are computed, a few at a time.

    Args:
        loaded: the models.
        asked: what they were given.
        original: token ids of the original's answer.
        pruned: token ids of the pruned model's answer.

    Raises:
        MeasureError: a logit is NaN or infinite.
    """
    same = loaded.pruned_tokenizer is loaded.tokenizer or (
        same_tokenizer(loaded.tokenizer, loaded.pruned_tokenizer) is None
    )
    if not same or _vocabulary(loaded.original) != _vocabulary(loaded.pruned):
        return _by_text(loaded, original, pruned, same)
    models = structural_copy(_plain(loaded.original)), structural_copy(_plain(loaded.pruned))
    seen = tuple(
        _tokens(models, loaded.tokenizer, prompt, answer, own)
        for own, (prompt, answer) in enumerate(((asked.original, original), (asked.pruned, pruned)))
    )
    return Parting(seen[0], seen[1], _first_difference(original, pruned))


def _tokens(
    models: tuple[PreTrainedModel, PreTrainedModel],
    tokenizer: Tokenizer,
    prompt: tuple[int, ...],
    answer: tuple[int, ...],
    own: int,
) -> tuple[Token, ...]:
    """One answer as both models see it; `own` is the index of the one that wrote it."""
    if not answer:
        return ()
    ids = torch.tensor((*prompt, *answer))
    span = Window(0, 0, len(prompt) - 1, len(ids) - 1)
    kls: list[float] = []
    likeliest: tuple[list[int], list[int]] = ([], [])
    # `score` makes a model's body answer for itself for a while: hence copies, whose modules are nobody else's.
    passes = (score(model, [ids], [span], 1, "the answer", whole=True) for model in models)
    for rows in zip(*passes, strict=True):
        for found, part_ in zip(likeliest, rows, strict=True):
            found += part_.logits.argmax(-1).tolist()
        kls += divergence(rows[0].logits, rows[1].logits).tolist()
    other = likeliest[1 - own]
    texts = spoken(tokenizer, answer)
    return tuple(
        Token(text, kl, mine == theirs, _alone(tokenizer, answer[i - 1] if i else prompt[-1], other[i]))
        for i, (text, kl, mine, theirs) in enumerate(zip(texts, kls, *likeliest, strict=True))
    )


def divergence(original: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL of each row in nats, from logits of shape (rows, vocabulary), in float64 where the device has it."""
    rows, wide = [], torch.float32 if original.device.type == "mps" else torch.float64
    # In pieces: float64 copies of all rows would take several times the memory of the logits.
    for one, two in zip(original.split(_ROWS), other.split(_ROWS), strict=True):
        p = one.to(wide).log_softmax(-1)
        q = two.to(original.device, wide).log_softmax(-1)
        rows.append((p.exp() * (p - q)).sum(-1).clamp_min(0))
    return torch.cat(rows)


def spoken(tokenizer: Tokenizer, ids: tuple[int, ...]) -> list[str]:
    """What each token adds to the text of all; a character of several tokens comes with its last one."""
    speech, texts, before = Speech(tokenizer), [], ""
    for token in ids:
        whole = speech.add([token])
        texts.append(whole[len(before) :])
        before = whole
    return texts


def _alone(tokenizer: Tokenizer, before: int, token: int) -> str:
    """A token as it would be read after another one; special tokens by their names."""
    front = plain_text(tokenizer, [before], special=True)
    both = plain_text(tokenizer, [before, token], special=True)
    return both[len(front) :] if both.startswith(front) else plain_text(tokenizer, [token], special=True)


def _by_text(loaded: Loaded, original: tuple[int, ...], pruned: tuple[int, ...], same: bool) -> Parting:
    """Of vocabularies that differ: what both wrote, and where the original's text leaves the other's."""
    texts = spoken(loaded.tokenizer, original), spoken(loaded.pruned_tokenizer, pruned)
    seen = tuple(tuple(Token(text, None, False, "") for text in answer) for answer in texts)
    at = _first_difference(original, pruned) if same else _text_difference(*texts)
    return Parting(seen[0], seen[1], at)


def _text_difference(original: list[str], pruned: list[str]) -> int | None:
    """Index of the original's token that no longer goes along with the other text; None where both texts are one."""
    other, so_far = "".join(pruned), ""
    for index, text in enumerate(original):
        so_far += text
        if not other.startswith(so_far):
            return index
    return None if so_far == other else len(original)


def _first_difference(one: tuple[int, ...], other: tuple[int, ...]) -> int | None:
    """Index of the first token that differs; behind the end of the one that is the beginning of the other."""
    if one == other:
        return None
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model below an adapter that lies on it."""
    return model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)
