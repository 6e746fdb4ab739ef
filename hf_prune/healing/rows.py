"""Training rows: token ids with what is to be learned of them, and the padded batches that the trainer takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_prune.healing.view import IGNORED
from hf_prune.samples import Samples, batches


@dataclass(frozen=True)
class Row:
    """One row of a training batch.

    Attributes:
        input_ids: (length,) int64.
        labels: (length,) int64, the token that follows each; `IGNORED` where that is not learned.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor


class Rows(torch.utils.data.Dataset):
    """The rows of a text, as a Trainer wants them. Row numbers tell them apart, also where they are shuffled."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)

    @classmethod
    def of(cls, samples: Samples) -> "Rows":
        """One row a sequence; each token but the first is learned."""
        return cls([Row(ids, torch.cat((ids[1:], ids.new_full((1,), IGNORED)))) for ids in samples.sequences])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {"input_ids": row.input_ids, "labels": row.labels, "row": index}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad rows on the right; pads are told by the mask and never by the id of a token.

    Returns:
        input_ids, attention_mask and labels, (batch, length) int64 each, and rows, (batch,) int64.
    """
    (batch,) = batches([row["input_ids"] for row in rows], len(rows))
    labels = torch.full_like(batch.input_ids, IGNORED)
    for to, row in zip(labels, rows, strict=True):
        to[: len(row["labels"])] = row["labels"]
    numbers = torch.tensor([row["row"] for row in rows])
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "labels": labels,
        "rows": numbers,
    }


MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")
"""Those of a batch's entries that a model takes."""
