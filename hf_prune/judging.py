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
from hf_prune.progress import tqdm
from hf_prune.registry import measure
from hf_prune.runner import Walker
from hf_prune.samples import batches, by_length
from hf_prune.tries import branchings
from hf_prune.units import PARTS, Cut, Unit

logger = logging.getLogger(__name__)

_WHOLE: Cut = frozenset()

_LOGITS = 2**30
"""Bytes of logits of the whole model that are kept while cuts are held against it."""


class CutJudge:
    """Runs cuts of a model that is in memory; see `planners.problem.Judge`.

    Hidden states before the first block in which two cuts differ are computed once for both. What one pass costs is
    counted in forwards: runs of blocks, divided by the blocks of the whole model.

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
        rows = _rows_at_once(decoder, sequences) if self._entry.needs == "outputs" else batch_size
        self._batches = list(batches(by_length(sequences), min(batch_size, rows)))
        self.forwards = 0.0

    def scores(self, cuts: Sequence[Cut]) -> list[float]:
        """The damage of whole cuts; lower is better.

        Raises:
            ConfigError: the measure does not judge cuts, or that takes more forwards than are allowed.
            MeasureError: a score is not finite.
        """
        if self._entry.needs != "outputs":
            raise ConfigError(
                f"measure '{self.objective}' tells of single units, not of what a whole cut does; expected one of: "
                f"{', '.join(entry.name for entry in measure if entry.needs == 'outputs')}"
            )
        made: OutputMeasure = self._entry.function(**self._options)
        return self._scores(made, cuts)

    def importances(self, removed: Cut, units: Sequence[Unit]) -> dict[Unit, float]:
        """How much each unit matters where `removed` is gone already; the lowest goes first.

        Raises:
            ConfigError: it takes more forwards than are allowed, or the measure has no scores of these units.
            MeasureError: a score is not finite.
        """
        if self._entry.needs == "outputs":
            made: OutputMeasure = self._entry.function(**self._options)
            return made.attribute(lambda cuts: self._scores(made, cuts), units, removed)
        if self._entry.needs != "pass":
            raise ConfigError(
                f"measure '{self.objective}' looks at the whole model alone; a planner that measures again behind "
                "each removal needs one of the hidden states or of the outputs"
            )
        self._spend(1 - len({unit.layer for unit in removed if unit.part == "block"}) / self._decoder.num_layers)
        observer = self._entry.function(**self._options)
        self._walker.walk(self._batches, [observer], seen=removed)
        found = observer.result().get("importances", {})
        return {unit: _of(found, unit, self.objective) for unit in units}

    def allow(self, candidates: int, what: str) -> None:
        """Refuse a search before it begins.

        Args:
            candidates: cuts that it will ask for, at most.
            what: the search, for the error.

        Raises:
            ConfigError: it takes more forwards than are allowed; names how many.
        """
        if self._limit is not None and candidates > self._limit:
            raise ConfigError(
                f"{what} of '{self._decoder.name}' tries {candidates} cuts, up to as many forwards of the calibration "
                f"text; max_forwards allows {self._limit}. Take another planner, or raise it (--max-forwards "
                f"{candidates})"
            )

    def whole(self) -> float:
        """What the measure finds of the whole model.

        Raises:
            MeasureError: it is not finite.
        """
        return self.scores([_WHOLE])[0]

    def _scores(self, made: OutputMeasure, cuts: Sequence[Cut]) -> list[float]:
        asked = [_WHOLE, *cuts] if made.compares else list(cuts)
        depth = self._decoder.num_layers
        self._spend(branchings(asked, depth).block_runs() / depth)
        sums = [made.start() for _ in cuts]
        looking = _Looking(self._head, sums, made.compares)
        # The whole model comes first in every division of the tree, and so is there to compare with.
        for batch in tqdm(self._batches, "trying cuts", unit="batch", disable=not self._progress):
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

    def _spend(self, forwards: float) -> None:
        self.forwards += forwards
        if self._limit is not None and self.forwards > self._limit:
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
        rows = [
            Left(self.ids[row, :length], hidden[row, :length], self._head)
            for row, length in enumerate(mask.sum(1).tolist())
        ]
        if self._compares and index == 0:
            self._whole = rows
            return
        for row, left in enumerate(rows):
            left.whole = self._whole[row] if self._compares else None
            self._sums[index - self._compares].add(left)


def _rows_at_once(decoder: Decoder, sequences: Sequence[torch.Tensor]) -> int:
    """Sequences whose logits may lie in memory: those of the whole model stay while the cuts of a batch pass."""
    one = max(len(ids) for ids in sequences) * decoder.config.vocab_size * torch.float32.itemsize
    return max(1, _LOGITS // one)


def _of(found: dict[str, tuple[float | None, ...]], unit: Unit, name: str) -> float:
    value = found.get(unit.part, ())[unit.layer] if unit.part in found else None
    if value is None:
        told = ", ".join(part for part in PARTS if part in found) or "none"
        raise ConfigError(f"measure '{name}' has no score of {unit}; it tells those of: {told}")
    if not math.isfinite(value):
        raise MeasureError(f"measure '{name}' of {unit} is {value}; expected a finite number")
    return value
