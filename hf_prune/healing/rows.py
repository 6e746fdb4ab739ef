"""Training rows: token ids with what is to be learned of them, and the padded batches that the trainer takes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_prune.healing.packing import first_fit, pad_share
from hf_prune.healing.view import IGNORED
from hf_prune.samples import Samples, batches

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One row of a training batch.

    Attributes:
        input_ids: (length,) int64.
        labels: (length,) int64, the token that follows each; `IGNORED` where that is not learned.
        position_ids: (length,) int64 where several sequences share the row: they count from 0 in each of them.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor | None = None


class Rows(torch.utils.data.Dataset):
    """The rows of a text, as a Trainer wants them. Row numbers tell them apart, also where they are shuffled."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)

    @classmethod
    def of(cls, samples: Samples) -> "Rows":
        """One row a sequence; each token but the first is learned, or those that the text says are."""
        masks = samples.learned or [torch.ones(len(ids), dtype=torch.bool) for ids in samples.sequences]
        return cls([Row(ids, _labels(ids, mask)) for ids, mask in zip(samples.sequences, masks, strict=True)])

    @classmethod
    def packed(cls, samples: Samples, room: int, *, micro_batch_size: int = 1) -> "Rows":
        """Several sequences a row, each as it would be alone: first fit, the longest first.

        Args:
            samples: the text; no sequence is longer than `room`.
            room: longest row, in tokens.
            micro_batch_size: rows a forward, for the log line that says what packing saves.
        """
        alone = cls.of(samples).rows
        found = [
            _joined([alone[index] for index in group]) for group in first_fit([len(r) for r in _ids(alone)], room)
        ]
        before, after = (pad_share([len(ids) for ids in _ids(rows)], micro_batch_size) for rows in (alone, found))
        log.info(
            "packing: %d sequences in %d rows of at most %d tokens; pads are %.1f %% of a batch, and were %.1f %%",
            len(alone), len(found), room, 100 * after, 100 * before,
        )  # fmt: skip
        return cls(found)

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return sum(len(ids) for ids in _ids(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        found = {"input_ids": row.input_ids, "labels": row.labels, "row": index}
        return found if row.position_ids is None else found | {"position_ids": row.position_ids}


def _labels(ids: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    labels = ids.new_full((len(ids),), IGNORED)
    labels[:-1][learned[1:]] = ids[1:][learned[1:]]
    return labels


def _ids(rows: Sequence[Row]) -> list[torch.Tensor]:
    return [row.input_ids for row in rows]


def _joined(rows: Sequence[Row]) -> Row:
    """Rows one after the other. The last label of each is `IGNORED`, so that none predicts the next one's start."""
    return Row(
        torch.cat(_ids(rows)),
        torch.cat([row.labels for row in rows]),
        torch.cat([torch.arange(len(row.input_ids)) for row in rows]),
    )


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad rows on the right; pads are told by mask or positions and never by the id of a token.

    Where sequences share rows there is no mask: models keep sequences apart by their positions alone. Every pad has
    position 0, which makes it a sequence of its own, that nothing sees and that sees nothing.

    Returns:
        input_ids, labels, and attention_mask or position_ids, (batch, length) int64 each; rows (numbers of them) and
        lengths (tokens without pads), (batch,) int64 each.
    """
    (batch,) = batches([row["input_ids"] for row in rows], len(rows))
    made = {"input_ids": batch.input_ids, "labels": torch.full_like(batch.input_ids, IGNORED)}
    if "position_ids" in rows[0]:
        made["position_ids"] = torch.zeros_like(batch.input_ids)
    for name in made.keys() - {"input_ids"}:
        for to, row in zip(made[name], rows, strict=True):
            to[: len(row[name])] = row[name]
    if "position_ids" not in made:
        made["attention_mask"] = batch.attention_mask
    numbers, lengths = torch.tensor([row["row"] for row in rows]), batch.attention_mask.sum(1)
    return made | {"rows": numbers, "lengths": lengths}


MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")
"""Those of a batch's entries that a model takes."""
