"""KL(original || healed) of predictions: over the whole vocabulary, or the likeliest tokens and a bucket of the rest.

Merging outcomes never raises a divergence (data-processing inequality), so that over k tokens and a bucket it is at
most the full one, and equal to it where k is the size of the vocabulary. With the bucket it is a divergence all the
same: never below zero, and zero only where both models give each token of the k the same probability.

Arithmetic is in float32, some positions at a time, and once more in the backward pass: beside both models' logits, as
they are, memory holds one gradient of the healed model's logits, of their dtype, and at its peak about four float32
tables of `_NUMBERS` numbers each (70 MB), whatever the batch.
"""

from typing import Any

import torch

from hf_prune.healing.view import TeacherView

_NUMBERS = 2**22

Buckets = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Log-probabilities (positions, k) float32 of some tokens at temperature 1, their ids (positions, k) int64, and the
log of the sum of p^(1/T) over all other tokens, (positions,) float32; -inf where there are none."""


def likeliest(logits: torch.Tensor, count: int, temperature: float = 1.0) -> Buckets:
    """The `count` likeliest tokens of predictions, and what all others have together.

    Args:
        logits: (positions, vocabulary).
        count: clipped to the vocabulary.
        temperature: T, at which they will be compared.
    """
    log_probs = logits.float().log_softmax(-1)
    values, ids = log_probs.topk(min(count, log_probs.shape[-1]), -1)
    return values, ids, _others(log_probs, ids, temperature)


def divergence(
    logits: torch.Tensor,
    original: TeacherView,
    counted: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> torch.Tensor:
    """The sum over positions of KL(p || q), nats, with p = softmax(original / T) and q = softmax(healed / T).

    Args:
        logits: (batch, length, vocabulary), the healed model's; the one argument that gets a gradient.
        original: with logits, or with the likeliest tokens and their tail at this temperature.
        counted: (batch, length) bool, the positions that are summed over.
        temperature: T.
        top_k: tokens that are told apart, the rest shares a bucket; None tells all apart that `original` does.

    Returns:
        A scalar in float32.
    """
    if original.logits is not None:
        given: tuple[torch.Tensor, ...] = (original.logits.flatten(0, 1),)
    else:
        assert original.top is not None and original.tail is not None
        given = (*(tensor.flatten(0, 1) for tensor in original.top), original.tail.flatten())
    where = counted.flatten().nonzero()[:, 0]
    found: torch.Tensor = _Divergence.apply(logits.flatten(0, 1), where, temperature, top_k, *given)
    return found


class _Divergence(torch.autograd.Function):
    """The sum of divergences; the gradient of each by its logits is (q - p) / T, over buckets likewise."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        where: torch.Tensor,
        temperature: float,
        top_k: int | None,
        *original: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(logits, where, *original)
        ctx.temperature, ctx.top_k = temperature, top_k
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for some in where.split(_positions(logits)):
            if len(original) == 1 and top_k is None:
                p, q = _log_softmax(original[0][some], temperature), _log_softmax(logits[some], temperature)
                total += _weighted(p, q).sum(dtype=torch.float64)
            else:
                theirs = _buckets(original, some, temperature, top_k)
                top, rest, mine, others, _ = _compared(logits[some], theirs, temperature)
                total += _weighted(top, mine).sum(dtype=torch.float64)
                total += _weighted(rest, others).sum(dtype=torch.float64)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, where, *original = ctx.saved_tensors
        temperature, top_k = ctx.temperature, ctx.top_k
        factor = outer[0] / temperature
        gradient = torch.zeros_like(logits)
        for some in where.split(_positions(logits)):
            if len(original) == 1 and top_k is None:
                change = _log_softmax(logits[some], temperature).exp_()
                change -= _log_softmax(original[0][some], temperature).exp_()
            else:
                theirs = _buckets(original, some, temperature, top_k)
                top, rest, mine, others, log_q = _compared(logits[some], theirs, temperature)
                # In the bucket each q_j is to change as the whole bucket does: q_j (1 - p_rest / q_rest).
                share = torch.where(rest == float("-inf"), 1.0, -torch.expm1(rest - others))
                change = log_q.exp_().mul_(share[:, None])
                change.scatter_(-1, theirs[1], mine.exp() - top.exp())
            gradient[some] = change.mul_(factor).to(gradient.dtype)
        return (gradient, None, None, None, *(None for _ in original))


def _positions(logits: torch.Tensor) -> int:
    return max(1, _NUMBERS // logits.shape[-1])


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    table = logits.float()
    return (table if temperature == 1.0 else table / temperature).log_softmax(-1)


def _weighted(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """p log(p / q) from logarithms, in the place of the first; 0 where p is."""
    mass = p.exp()
    return p.sub_(q).mul_(mass).masked_fill_(mass == 0, 0.0)  # NaN stays NaN


def _buckets(
    original: tuple[torch.Tensor, ...] | list[torch.Tensor], some: torch.Tensor, temperature: float, count: int | None
) -> Buckets:
    if len(original) == 1:
        assert count is not None
        return likeliest(original[0][some], count, temperature)
    values, ids, tail = (tensor[some] for tensor in original)
    return values, ids, tail


def _compared(logits: torch.Tensor, theirs: Buckets, temperature: float) -> tuple[torch.Tensor, ...]:
    """Normalised log-probabilities at T: over the same buckets (the original's of its tokens and of the rest, the
    healed model's of both), and the healed model's of all tokens."""
    values, ids, tail = theirs
    log_q = logits.float().log_softmax(-1)
    picked = log_q.gather(-1, ids)
    rest = _others(log_q, ids, temperature)
    # Both models by the same steps: equal predictions then differ by exactly nothing.
    top, tail = _normalised(values, tail, temperature)
    whole = _log_sum(picked, rest, temperature)
    mine, rest = _normalised(picked, rest, temperature)
    return top, tail, mine, rest, log_q.div_(temperature).sub_(whole[:, None])


def _normalised(values: torch.Tensor, tail: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    whole = _log_sum(values, tail, temperature)
    return values / temperature - whole[:, None], tail - whole


def _log_sum(values: torch.Tensor, tail: torch.Tensor, temperature: float) -> torch.Tensor:
    return torch.logaddexp((values / temperature).logsumexp(-1), tail)


def _others(log_probs: torch.Tensor, ids: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log of the sum of p^(1/T) over all tokens but these.

    One minus the sum of the likeliest would lose every digit where they have nearly all. So the others are summed, in
    the tensor itself, which is the same afterwards.
    """
    values = log_probs.gather(-1, ids)
    log_probs.scatter_(-1, ids, float("-inf"))
    tail = (log_probs if temperature == 1.0 else log_probs / temperature).logsumexp(-1)
    log_probs.scatter_(-1, ids, values)
    return tail
