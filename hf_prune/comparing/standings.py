"""Methods ranked, and their figures over seeds: everything that tables and drawings show is read here."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hf_prune.comparing.record import Attempt, Comparison, Contender
from hf_prune.figures import ModelEvaluation
from hf_prune.sweeping.record import Stage, accuracy

Figure = Callable[[ModelEvaluation], float | None]
"""One figure of a model; None where it was not measured."""


@dataclass(frozen=True)
class Mean:
    """A figure over seeds.

    Attributes:
        value: mean.
        spread: sample standard deviation; None of a single seed.
        count: seeds.
    """

    value: float
    spread: float | None
    count: int


@dataclass(frozen=True)
class Standing:
    """One method.

    Attributes:
        contender: which.
        attempts: of it, in the order of the seeds.
    """

    contender: Contender
    attempts: tuple[Attempt, ...]

    @property
    def done(self) -> tuple[Attempt, ...]:
        """Those that are finished."""
        return tuple(attempt for attempt in self.attempts if attempt.status == "done")

    def over_seeds(self, value: Callable[[Attempt], float | None]) -> Mean | None:
        """The mean of something over the finished attempts; None unless each of them has it.

        Args:
            value: of an attempt.
        """
        found = [value(attempt) for attempt in self.done]
        known = [one for one in found if one is not None]
        if not known or len(known) < len(found):
            return None
        return Mean(math.fsum(known) / len(known), statistics.stdev(known) if len(known) > 1 else None, len(known))

    def figure(self, stage: Stage, figure: Figure) -> Mean | None:
        """The mean of a figure before or after healing; see `over_seeds`."""

        def value(attempt: Attempt) -> float | None:
            found = attempt.figures(stage)
            return None if found is None else figure(found)

        return self.over_seeds(value)


def standings(found: Comparison) -> list[Standing]:
    """The methods, the lowest perplexity of the last stage first; behind them those that are not done, as asked for.

    A comparison ranks by the first text. A method of which one seed failed is ranked by the others.
    """
    return ranked(found.contenders, found.attempts, found.last_stage)


def ranked(contenders: Sequence[Contender], attempts: Sequence[Attempt], stage: Stage) -> list[Standing]:
    """See `standings`.

    Args:
        contenders: the methods.
        attempts: of all of them.
        stage: whose perplexity counts.
    """
    all_of = [Standing(c, tuple(a for a in attempts if a.method == c.name)) for c in contenders]
    all_of.sort(key=lambda s: math.inf if (mean := s.figure(stage, perplexity(0))) is None else mean.value)
    return all_of


def perplexity(text: int) -> Figure:
    """Perplexity on the text of that number.

    Args:
        text: 0 is the first one.
    """
    return lambda found: found.perplexity[text].perplexity


def kl(found: ModelEvaluation) -> float | None:
    """Mean KL(original || model) per token on the first text, nats."""
    return None if found.fidelity is None else found.fidelity.kl


def agreement(found: ModelEvaluation) -> float | None:
    """Share of tokens where model and original rank the same token first."""
    return None if found.fidelity is None else found.fidelity.top1_agreement


def mean_accuracy(found: ModelEvaluation) -> float | None:
    """Mean of the main results of all benchmark tasks."""
    mean = accuracy(found)
    return None if mean is None else mean[0]


EFFORTS: dict[str, Callable[[Attempt], float | None]] = {
    "choosing, s": lambda attempt: attempt.choosing.seconds if attempt.choosing else None,
    "forwards": lambda attempt: attempt.choosing.forwards if attempt.choosing else None,
    "memory, MB": lambda attempt: attempt.choosing.memory / 1e6 if attempt.choosing else None,
    "surgery, s": lambda attempt: attempt.cutting.seconds if attempt.cutting else None,
    "healing, s": lambda attempt: attempt.healing_seconds,
}
"""What an attempt took, by the name of the column that tells it."""


def text_names(found: Comparison) -> list[str]:
    """What the texts that models were judged on are called."""
    return [text.name for text in found.original.perplexity]
