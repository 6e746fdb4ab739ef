"""Judges cuts of one model by asking whole cut models, where hidden states and logits are not enough."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune.architecture import Decoder
from hf_prune.architecture.decoder import decoder_of, structural_copy
from hf_prune.architecture.sublayers import silenced
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.measures.task import TaskDamage
from hf_prune.objective import leave_one_out
from hf_prune.progress import tqdm
from hf_prune.registry import measure
from hf_prune.surgery.drop import drop
from hf_prune.units import Cut, Unit, layers_of

_WHOLE: Cut = frozenset()

_ROUNDING = 1e-6
"""What sums of shares of blocks may be off by."""


class TaskJudge:
    """Asks cut models, one after the other; see `planners.problem.Judge`.

    Cut models share the tensors of the whole one, which stays as it is. A forward is one time that all questions are
    asked of the whole model; a cut one takes as much of it as it has blocks. What is alike in two cuts is not shared.

    Args:
        decoder: the model.
        tokenizer: its tokenizer.
        objective: registry name of the measure.
        options: of the measure.
        progress: whether to show a bar.
        limit: forwards that may be taken; None for as many as are asked for.

    Raises:
        PruneError: the task cannot be run; see `measures.task.TaskDamage.check`.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        objective: str,
        options: dict[str, Any] | None = None,
        *,
        progress: bool = False,
        limit: int | None = None,
    ) -> None:
        self.objective, self.forwards = objective, 0.0
        self._decoder, self._tokenizer, self._progress, self._limit = decoder, tokenizer, progress, limit
        self._ask: TaskDamage = measure.get(objective).function(**(options or {}))
        self._ask.check(decoder.model, tokenizer)

    def scores(self, cuts: Sequence[Cut], share: float = 1.0) -> list[float]:
        """The damage of whole cuts; lower is better.

        Args:
            cuts: what each removes.
            share: of the questions; they are all asked, or none.

        Raises:
            ConfigError: that takes more forwards than are allowed, or a share is asked for.
            MeasureError: a score is not finite.
        """
        self.allow(self.cost(sum(map(self._runs, cuts)), share), f"measure '{self.objective}'")
        found = []
        for cut in tqdm(cuts, "asking cut models", unit="cut", disable=not self._progress):
            with cut_model(self._decoder, cut) as model:
                found.append(self._ask(model, self._tokenizer))
            self.forwards += self._runs(cut)
            if not math.isfinite(found[-1]):
                told = ", ".join(str(unit) for unit in sorted(cut)) or "nothing"
                raise MeasureError(
                    f"measure '{self.objective}' of '{self._decoder.name}' without {told} is {found[-1]}; expected a "
                    "finite number. Try another --dtype (float32), or protect those layers"
                )
        return found

    def importances(self, removed: Cut, units: Sequence[Unit]) -> dict[Unit, float]:
        """How much each unit matters where `removed` is gone already; the lowest goes first.

        Raises:
            ConfigError: it takes more forwards than are allowed.
            MeasureError: a score is not finite.
        """
        return leave_one_out(self.scores, units, removed)

    def cost(self, forwards: float, share: float = 1.0) -> float:
        """What one call of `scores` takes, in forwards.

        Args:
            forwards: those of the cut models.
            share: of the questions; they are all asked.

        Raises:
            ConfigError: a share is asked for.
        """
        if share != 1:
            raise ConfigError(
                f"measure '{self.objective}' asks all its questions; a search that begins with a share of them "
                f"({share}) needs a measure of text, such as 'kl'"
            )
        return forwards

    def cost_of_rounds(self, units: Sequence[Unit], rounds: int) -> float:
        """What scoring units takes at most, in forwards, and those that are left once more behind each that goes.

        Args:
            units: that may go, ascending.
            rounds: how often; one unit goes between two of them.
        """
        gone = [frozenset(units[len(units) - count :]) for count in range(rounds)]
        return sum(self._runs(cut | {unit}) for cut in gone for unit in units if unit not in cut)

    def allow(self, forwards: float, what: str) -> None:
        """Refuse a search before it begins.

        Args:
            forwards: that it will take, at most.
            what: the search, for the error.

        Raises:
            ConfigError: it takes more forwards than are allowed; names how many.
        """
        needed = math.ceil(self.forwards + forwards - _ROUNDING)
        if self._limit is not None and needed > self._limit:
            raise ConfigError(
                f"{what} of '{self._decoder.name}' asks all questions up to {needed} times; max_forwards allows "
                f"{self._limit}. Take another measure or fewer layers, or raise it (--max-forwards {needed})"
            )

    def whole(self) -> float:
        """What the measure finds of the whole model."""
        return self.scores([_WHOLE])[0]

    def _runs(self, cut: Cut) -> float:
        return 1 - len(layers_of(cut)) / self._decoder.num_layers


@contextmanager
def cut_model(decoder: Decoder, cut: Cut) -> Iterator[PreTrainedModel]:
    """A model that lost some units, made of the tensors of the whole one, which stays as it is.

    Args:
        decoder: the whole model.
        cut: what goes; some block has to stay.
    """
    copy = decoder_of(structural_copy(decoder.model), decoder.name)
    with ExitStack() as stack:
        for unit in cut:
            if unit.part != "block" and Unit(unit.layer) not in cut:
                stack.enter_context(silenced(copy.blocks[unit.layer], [unit.part]))
        yield drop(copy, layers_of(cut)).model if layers_of(cut) else copy.model
