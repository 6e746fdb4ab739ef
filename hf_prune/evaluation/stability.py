"""Stability: how far a model answers the same questions right, and the same ones wrong, as its original.

Chen et al., "Streamlining Redundant Layers to Compress Large Language Models" (LLM-Streamline,
https://arxiv.org/abs/2403.19135): two models of the same accuracy may be right about different questions.

    stability = Σ_i w_i · 1[right_model(i) = right_original(i)],   w = softmax_i(σ_i)

where σ_i is the standard deviation of the original's perplexities of the options of question i: what it was sure about
counts more. As in the figures behind the paper, made with OpenCompass, an option's "perplexity" is its mean negative
log-likelihood per token, not the exponential of that, by which one question would take all the weight; here the mean
is over the option's own tokens. The script that was released with the paper adds up the weights of the first questions
instead of those that match; the equation is followed. Of a group of tasks it gives the mean, and so do we.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_prune.errors import MeasureError


@dataclass(frozen=True)
class Item:
    """One answered question.

    Attributes:
        question: hash of it, to tell whether two models were asked the same.
        right: whether the answer was.
        spread: σ, population standard deviation of the options' mean negative log-likelihoods, nats per token.
    """

    question: str
    right: bool
    spread: float


@dataclass(frozen=True)
class Answers:
    """What a model answered, to be saved beside its figures.

    Attributes:
        tasks: the questions of each multiple-choice task, in order.
    """

    tasks: dict[str, tuple[Item, ...]]


class AnswerSheet:
    """What the original answered, handed from its measurement to those of later models.

    Attributes:
        answers: filled by the first model that is measured with this sheet; later ones are compared with them.
    """

    def __init__(self, answers: Answers | None = None) -> None:
        self.answers = answers


def spread(log_likelihoods: Sequence[float], tokens: Sequence[int]) -> float:
    """σ of one question.

    Args:
        log_likelihoods: of each option, summed over its tokens, nats.
        tokens: of each option.
    """
    return statistics.pstdev(-value / count for value, count in zip(log_likelihoods, tokens, strict=True))


def stability(task: str, model: Sequence[Item], original: Sequence[Item]) -> float:
    """The stability of one task.

    Args:
        task: its name, for errors.
        model: a model's answers.
        original: the original's answers to the same questions.

    Returns:
        From 0 to 1; 1 when both are right about the same questions.

    Raises:
        MeasureError: they were asked other questions.
    """
    if [item.question for item in model] != [item.question for item in original]:
        raise MeasureError(
            f"task '{task}': the original was asked {len(original)} questions, the model {len(model)}, and they are "
            "not the same; the data have changed in between. Evaluate both again, into a new folder"
        )
    top = max(item.spread for item in original)
    weights = [math.exp(item.spread - top) for item in original]
    same = (w for w, a, b in zip(weights, model, original, strict=True) if a.right == b.right)
    return math.fsum(same) / math.fsum(weights)


def stabilities(model: Answers, original: Answers) -> Mapping[str, float]:
    """The stability of every task that both models answered."""
    return {
        task: stability(task, items, original.tasks[task])
        for task, items in model.tasks.items()
        if task in original.tasks
    }
