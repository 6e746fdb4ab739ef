"""The likeliest tokens of a prediction, and one bin for all others: small enough to keep for every token of a text.

KL over these k + 1 bins is at most KL over the vocabulary, since merging outcomes never raises it (data-processing
inequality), and it is the same where k is the size of the vocabulary.
"""

from dataclasses import dataclass

import torch

from hf_prune.errors import MeasureError


@dataclass(frozen=True)
class Top:
    """Predictions at some positions.

    Attributes:
        log_probs: (positions, k) float32, falling.
        ids: (positions, k) int32, the tokens they belong to.
        tail: (positions,) float32, log of what all other tokens have together; -inf where there are none.
        vocabulary: tokens there are.
    """

    log_probs: torch.Tensor
    ids: torch.Tensor
    tail: torch.Tensor
    vocabulary: int

    def __getitem__(self, positions: slice) -> "Top":
        """Some of the positions."""
        return Top(self.log_probs[positions], self.ids[positions], self.tail[positions], self.vocabulary)

    def to(self, device: torch.device | str) -> "Top":
        """The same on another device."""
        return Top(self.log_probs.to(device), self.ids.to(device), self.tail.to(device), self.vocabulary)

    def put(self, positions: slice, values: "Top") -> None:
        """Overwrite some of the positions."""
        for mine, theirs in (
            (self.log_probs, values.log_probs), (self.ids, values.ids), (self.tail, values.tail),
        ):  # fmt: skip
            mine[positions] = theirs.to(mine.device)

    @classmethod
    def empty(cls, positions: int, count: int, vocabulary: int) -> "Top":
        """Room for so many positions, on the CPU."""
        shape = (positions, min(count, vocabulary))
        return cls(torch.empty(shape), torch.empty(shape, dtype=torch.int32), torch.empty(positions), vocabulary)

    @staticmethod
    def bytes_each(count: int, vocabulary: int) -> int:
        """Bytes that one position takes."""
        return 8 * min(count, vocabulary) + 4


def likeliest(log_probs: torch.Tensor, count: int) -> Top:
    """The `count` likeliest tokens of each row.

    Args:
        log_probs: (rows, vocabulary) float32; the same afterwards.
        count: clipped to the vocabulary.
    """
    vocabulary = log_probs.shape[-1]
    values, ids = log_probs.topk(min(count, vocabulary), -1)
    return Top(values, ids.to(torch.int32), _others(log_probs, ids, values), vocabulary)


def top_kl(top: Top, log_probs: torch.Tensor) -> torch.Tensor:
    """KL(original || model) over the original's likeliest tokens and one bin for all others; (rows,) float64, nats.

    Args:
        top: the original's predictions at these rows, on the device of the model's.
        log_probs: (rows, vocabulary) float32, the model's; the same afterwards.

    Raises:
        MeasureError: the two models have different vocabularies.
    """
    check_vocabularies(top.vocabulary, log_probs.shape[-1])
    ids = top.ids.long()
    mine = log_probs.gather(-1, ids)
    kl = (top.log_probs.exp() * (top.log_probs - mine)).sum(-1, dtype=torch.float64)
    if ids.shape[-1] == top.vocabulary:
        return kl
    return kl + (top.tail.exp() * (top.tail - _others(log_probs, ids, mine))).double()


def shared(ours: torch.Tensor, theirs: torch.Tensor, count: int) -> torch.Tensor:
    """Share of the first `count` of two rankings that both have; (rows,) float64.

    Args:
        ours: (rows, k) token ids, the likeliest first.
        theirs: the same of another model.
        count: clipped to k.
    """
    return (ours[:, :count, None] == theirs[:, None, :count]).any(-1).double().mean(-1)


def check_vocabularies(original: int, model: int) -> None:
    """Refuse models whose vocabularies differ in size.

    Raises:
        MeasureError: they do.
    """
    if original != model:
        raise MeasureError(
            f"the original has a vocabulary of {original}, this model one of {model}; KL needs the same. Evaluate "
            "without the original (bits per byte can be compared across vocabularies), or keep its vocabulary"
        )


def _others(log_probs: torch.Tensor, ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Log of the mass of all tokens but these.

    1 - the sum of the likeliest would lose every digit where they have nearly all of it. So the others are summed, in
    the tensor itself, which a copy of would cost more than the sum.
    """
    log_probs.scatter_(-1, ids, float("-inf"))
    tail = log_probs.logsumexp(-1)
    log_probs.scatter_(-1, ids, values)
    return tail
