"""How like the whole model's features are those of a cut one."""

import math

import torch

from hf_prune.errors import MeasureError
from hf_prune.objective import Left, OutputMeasure
from hf_prune.registry import measure


@measure(
    "output_cka",
    title="1 - CKA of the last features with the whole model's where each is left out",
    url="https://arxiv.org/abs/2405.17081",
    needs="outputs",
)
def output_cka(*, skip_first: bool = False) -> OutputMeasure:
    """1 - linear CKA of what enters the last norm, cut against whole (Effective Layer Pruning).

    CKA(X, Y) = |X'Y|² / (|X'X| |Y'Y|), Frobenius norms of centred features, one row a token. It is 1 for features that
    are equal up to rotation and scale. In the paper (vision) a row is a picture, and the features are those before
    the classifier.

    Over several sequences the three terms are added up sequence by sequence, each centred on its own (minibatch CKA,
    arXiv 2010.15327, with the plain estimator): that takes three numbers a cut, where all tokens as one matrix would
    take width² for each. Of one sequence it is the formula above. Shorter sequences than the width raise CKA for all
    cuts alike, so values compare on the same text only.

    Args:
        skip_first: leave out the first token of each sequence, where many models keep a huge activation that hides
            all else.
    """
    return OutputMeasure(lambda: FeatureDistance(skip_first), compares=True)


class FeatureDistance:
    """1 - minibatch CKA of features, each sequence a batch.

    Args:
        skip_first: leave out the first token of each sequence.
    """

    def __init__(self, skip_first: bool = False) -> None:
        self._skip = int(skip_first)
        self._cross, self._ours, self._theirs = 0.0, 0.0, 0.0

    def add(self, left: Left) -> None:
        """Add the terms of one sequence; one of a single token has nothing to compare and adds nothing."""
        assert left.whole is not None, "nothing to compare with"
        x, y = (_centred(hidden[self._skip :]) for hidden in (left.hidden, left.whole.hidden))
        self._cross += _inner(x, y)
        self._ours += _inner(x, x)
        self._theirs += _inner(y, y)

    def value(self) -> float:
        """1 - CKA, in [0, 1] up to rounding; 1 where features of the cut don't differ from token to token.

        Raises:
            MeasureError: the whole model's features don't differ from token to token.
        """
        if self._theirs == 0:
            raise MeasureError(
                "measure 'output_cka': the whole model's features are the same for all tokens of each sequence; "
                "expected text of several different tokens"
            )
        if self._ours == 0:
            return 1.0
        return 1 - self._cross / (math.sqrt(self._ours) * math.sqrt(self._theirs))


def _centred(hidden: torch.Tensor) -> torch.Tensor:
    """Features less their mean over tokens, in float64; Metal has none."""
    double = (hidden.cpu() if hidden.device.type == "mps" else hidden).double()
    return double - double.mean(0)


def _inner(x: torch.Tensor, y: torch.Tensor) -> float:
    """|X'Y|² of (tokens, width) features, by the smaller of the matrices that yield it."""
    tokens, width = x.shape
    if width <= tokens:
        return float((x.T @ y).square().sum())
    return float(((x @ x.T) * (y @ y.T)).sum())
