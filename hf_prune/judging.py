"""Judges cuts of one model on the calibration text, for planners that search and for measures of outputs."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hf_prune.architecture import Decoder
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.head import Head
from hf_prune.objective import Left, OutputMeasure, Running
from hf_prune.observing import most_runs
from hf_prune.precision import fast_arithmetic
from hf_prune.progress import tqdm
from hf_prune.registry import measure
from hf_prune.runner import Walker
from hf_prune.samples import Batch, batches, by_length
from hf_prune.scored import check_tells
from hf_prune.tries import branchings
from hf_prune.units import PARTS, Cut, Unit

logger = logging.getLogger(__name__)

_WHOLE: Cut = frozenset()

_LOGITS = 2**30
"""Bytes of logits of the whole model that are kept while cuts are held against it; those of one sequence at least."""

_ROUNDING = 1e-6
"""What sums of shares of forwards may be off by."""


class CutJudge:
    """Runs cuts of a model that is in memory; see `planners.problem.Judge`.

    Hidden states before the first block in which two cuts differ are computed once for both. What one pass costs is
    counted in forwards: runs of blocks, divided by the blocks of the whole model, times the share of the text.

    Args:
        decoder: the model.
        sequences: 1-D int64 calibration sequences.
        objective: registry name of the measure.
        options: of the measure.
        batch_size: sequences at once.
        scratch: folder for hidden states that memory has no room for.
        progress: whether to show bars.
        limit: forwards that may be taken; None for as many as are asked for.
    """

    def __init__(
        self,
        decoder: Decoder,
        sequences: Sequence[torch.Tensor],
        objective: str,
        options: dict[str, Any] | None = None,
        *,
        batch_size: int = 8,
        scratch: Path | None = None,
        progress: bool = False,
        limit: int | None = None,
    ) -> None:
        self.objective, self._decoder, self._progress, self._limit = objective, decoder, progress, limit
        self._entry, self._options = measure.get(objective), options or {}
        self._walker = Walker(decoder, scratch=scratch)
        self._head = Head(decoder, self._walker.tuples)
        self._compares = self._entry.needs == "outputs" and self._made().compares
        rows = _rows_at_once(decoder, sequences) if self._compares else batch_size
        self._sequences, self._batch_size = list(sequences), min(batch_size, rows)
        self._batches: dict[int, list[Batch]] = {}
        self.forwards = 0.0

    def scores(self, cuts: Sequence[Cut], share: float = 1.0) -> list[float]:
        """The damage of whole cuts; lower is better.

        Args:
            cuts: what each removes.
            share: of the text that is looked at, see `cost`.

        Raises:
            ConfigError: the measure does not judge cuts, or that takes more forwards than are allowed.
            MeasureError: a score is not finite.
        """
        if self._entry.needs != "outputs":
            raise ConfigError(
                f"measure '{self.objective}' tells of single units, not of what a whole cut does; expected one of: "
                f"{', '.join(entry.name for entry in measure if entry.needs == 'outputs')}"
            )
        return self._scores(self._made(), cuts, share)

    def importances(self, removed: Cut, units: Sequence[Unit]) -> dict[Unit, float]:
        """How much each unit matters where `removed` is gone already; the lowest goes first.

        Raises:
            ConfigError: it takes more forwards than are allowed, or the measure has no scores of these units.
            MeasureError: a score is not finite.
        """
        if self._entry.needs == "outputs":
            made = self._made()
            return made.attribute(lambda cuts: self._scores(made, cuts), units, removed)
        self._check_passes(units)
        observer, share = self._entry.function(**self._options), 1 - _blocks_of(removed) / self._decoder.num_layers
        self._spend(share * most_runs(observer))
        self._walker.walk(self._text(1.0), [observer], seen=removed)
        found = observer.result()
        self.forwards -= share * (most_runs(observer) - found.get("forwards", 1.0))
        return {unit: _of(found.get("importances", {}), unit, self.objective) for unit in units}

    def cost(self, forwards: float, share: float = 1.0) -> float:
        """What one call of `scores` takes at most, in forwards.

        Args:
            forwards: those of the cut models; the whole one, where it is compared with, comes on top.
            share: of the tokens of the text. The first sequences are taken, as many whole ones as it needs.

        Raises:
            ConfigError: the share is not above 0 and at most 1.
        """
        taken = self._sequences[: self._count(share)]
        return (forwards + self._compares) * sum(map(len, taken)) / sum(map(len, self._sequences))

    def cost_of_rounds(self, units: Sequence[Unit], rounds: int) -> float:
        """What scoring units takes at most, in forwards, and those that are left once more behind each that goes.

        Args:
            units: that may go, ascending.
            rounds: how often; one unit goes between two of them.

        Raises:
            ConfigError: the measure cannot be asked again.
        """
        if self._entry.needs != "outputs":
            self._check_passes(units)
        # A unit that goes makes the runs behind it shorter: they take longest where the last ones go first.
        return sum(
            self._cost_of_round(frozenset(units[len(units) - gone :]), units[: len(units) - gone])
            for gone in range(rounds)
        )

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
                f"{what} of '{self._decoder.name}' takes up to {needed} forwards of the calibration text; "
                f"max_forwards allows {self._limit}. Take another planner or fewer layers, or raise it "
                f"(--max-forwards {needed})"
            )

    def whole(self) -> float:
        """What the measure finds of the whole model.

        Raises:
            MeasureError: it is not finite.
        """
        return self.scores([_WHOLE])[0]

    def _made(self) -> OutputMeasure:
        made: OutputMeasure = self._entry.function(**self._options)
        return made

    def _scores(self, made: OutputMeasure, cuts: Sequence[Cut], share: float = 1.0) -> list[float]:
        asked = [_WHOLE, *cuts] if made.compares else list(cuts)
        portion = self.cost(1.0, share) / (1 + self._compares)
        self._spend(portion * self._runs(asked) / self._decoder.num_layers)
        sums = [made.start() for _ in cuts]
        looking = _Looking(self._head, sums, made.compares)
        with fast_arithmetic(self._decoder.model):  # once, not anew for each batch
            for batch in tqdm(self._text(share), "trying cuts", unit="batch", disable=not self._progress):
                looking.ids = batch.input_ids
                self._walker.walk([batch], cuts=asked, leave=looking.leave)
        found = [one.value() for one in sums]
        for cut, value in zip(cuts, found, strict=True):
            if not math.isfinite(value):
                told = ", ".join(str(unit) for unit in sorted(cut)) or "nothing"
                raise MeasureError(
                    f"measure '{self.objective}' of '{self._decoder.name}' without {told} is {value}; expected a "
                    "finite number. Try another --dtype (float32), or protect those layers"
                )
        return found

    def _count(self, share: float) -> int:
        """Of the sequences, how many first ones hold that share of the tokens."""
        if not 0 < share <= 1:
            raise ConfigError(f"share={share} of the calibration text; expected a number above 0, at most 1")
        wanted, tokens = share * sum(map(len, self._sequences)) - _ROUNDING, 0
        for count, ids in enumerate(self._sequences, 1):
            tokens += len(ids)
            if tokens >= wanted:
                return count
        return len(self._sequences)

    def _text(self, share: float) -> list[Batch]:
        count = self._count(share)
        if count not in self._batches:
            self._batches[count] = list(batches(by_length(self._sequences[:count]), self._batch_size))
        return self._batches[count]

    def _runs(self, cuts: Sequence[Cut]) -> int:
        return branchings(cuts, self._decoder.num_layers).block_runs()

    def _cost_of_round(self, removed: Cut, units: Sequence[Unit]) -> float:
        depth, taken = self._decoder.num_layers, 0.0
        if self._entry.needs != "outputs":
            return most_runs(self._entry.function(**self._options)) * (1 - _blocks_of(removed) / depth)

        def priced(cuts: Sequence[Cut]) -> list[float]:
            nonlocal taken
            # What the cuts have in common passes all blocks that are left, as it may where others are gone.
            taken += self.cost(self._runs([removed, *cuts]) / depth)
            return [0.0] * len(cuts)

        self._made().attribute(priced, units, removed)
        return taken

    def _check_passes(self, units: Sequence[Unit]) -> None:
        """Refuse before the first pass what the measure does not tell."""
        check_tells(self._entry, (unit.part for unit in units), f"a search on '{self._decoder.name}'", again=True)

    def _spend(self, forwards: float) -> None:
        self.forwards += forwards
        if self._limit is not None and self.forwards > self._limit + _ROUNDING:
            raise ConfigError(
                f"choosing what goes of '{self._decoder.name}' has come to {self.forwards:.0f} forwards of the "
                f"calibration text; max_forwards allows {self._limit}. Take fewer layers or another planner, or raise "
                "it (--max-forwards)"
            )


class _Looking:
    """Hands what leaves the blocks to the sums, one sequence at a time.

    Attributes:
        ids: (batch, length) of the batch that is on its way.
    """

    ids: torch.Tensor

    def __init__(self, head: Head, sums: Sequence[Running], compares: bool) -> None:
        self._head, self._sums, self._compares = head, sums, compares
        self._whole: list[Left] = []

    def leave(self, index: int, _number: int, hidden: torch.Tensor, mask: torch.Tensor) -> None:
        if self._compares and index == 0:  # the whole model: it comes before the cuts
            self._whole = [self._left(row, length, hidden) for row, length in enumerate(mask.sum(1).tolist())]
            return
        for row, length in enumerate(mask.sum(1).tolist()):  # one after the other, so that no logits pile up
            left = self._left(row, length, hidden)
            left.whole = self._whole[row] if self._compares else None
            self._sums[index - self._compares].add(left)

    def _left(self, row: int, length: int, hidden: torch.Tensor) -> Left:
        return Left(self.ids[row, :length], hidden[row, :length], self._head)


def _rows_at_once(decoder: Decoder, sequences: Sequence[torch.Tensor]) -> int:
    """Sequences whose logits may lie in memory: those of the whole model stay while the cuts of a batch pass."""
    one = max(len(ids) for ids in sequences) * decoder.config.vocab_size * torch.float32.itemsize
    return max(1, _LOGITS // one)


def _blocks_of(cut: Cut) -> int:
    return sum(unit.part == "block" for unit in cut)


def _of(found: dict[str, tuple[float | None, ...]], unit: Unit, name: str) -> float:
    value = found.get(unit.part, ())[unit.layer] if unit.part in found else None
    if value is None:
        told = ", ".join(part for part in PARTS if part in found) or "none"
        raise ConfigError(f"measure '{name}' has no score of {unit}; it tells those of: {told}")
    if not math.isfinite(value):
        raise MeasureError(f"measure '{name}' of {unit} is {value}; expected a finite number")
    return value
