"""What the original makes of every row, written to disk once: it need not stay while the pruned model trains."""

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_prune import serial
from hf_prune.healing.divergence import likeliest
from hf_prune.healing.prefix import Inputs
from hf_prune.healing.row_store import RowStore, planned_bytes
from hf_prune.healing.rows import Rows, collate
from hf_prune.healing.teacher import Resident
from hf_prune.healing.view import TeacherView
from hf_prune.progress import tqdm

TOP_K = 64
"""Tokens of each prediction that are kept, where nothing else was asked for."""

_COST = "flops.json"
_FOLDER = 16  # letters of the key that a folder is called by


@dataclass(frozen=True)
class Kept:
    """What is kept of each token.

    Log-probabilities are float32: nothing is lost but what `divergence` says of buckets. With their ids and the tail
    that is 8 k + 4 bytes a token. Hidden states are kept in the dtype of the original's weights; where that is
    bfloat16, and a stream in float32 runs through them, each number is off by up to 0.4 %.

    Attributes:
        top_k: tokens of each prediction, clipped to the vocabulary; 0 keeps no predictions.
        temperature: at which predictions will be compared.
        positions: in the pruned model, whose states are kept.
        width: of the states.
        dtype: of the states.
    """

    top_k: int
    temperature: float
    positions: tuple[int, ...]
    width: int
    dtype: torch.dtype

    @property
    def fields(self) -> dict[str, tuple[int, torch.dtype]]:
        """As `RowStore` takes them."""
        found: dict[str, tuple[int, torch.dtype]] = {}
        if self.top_k:
            found |= {
                "log_probs": (self.top_k, torch.float32), "ids": (self.top_k, torch.int32), "tail": (1, torch.float32),
            }  # fmt: skip
        return found | {_state(at): (self.width, self.dtype) for at in self.positions}

    def bytes(self, rows: Rows) -> int:
        """Bytes on disk of all rows."""
        return planned_bytes(_lengths(rows), self.fields)

    def key(self, origin: str, rows: Rows, kept: Sequence[int]) -> str:
        """Stands for all that the numbers depend on.

        Args:
            origin: stands for the original's weights, and how it computes.
            rows: the text.
            kept: index in the original of every block of the pruned model.
        """
        total = hashlib.sha256(repr((origin, self, tuple(kept))).encode())
        for row in rows.rows:
            total.update(row.input_ids.to(torch.int32).numpy().tobytes())
            if row.position_ids is not None:
                total.update(row.position_ids.to(torch.int32).numpy().tobytes())
        return total.hexdigest()

    def of(self, view: TeacherView, row: int, length: int) -> dict[str, torch.Tensor]:
        """What is kept of one row of a micro-batch.

        Args:
            view: the original's.
            row: in the batch.
            length: of the row, pads not counted.
        """
        found = {_state(at): view.states[at][row, :length].to(self.dtype) for at in self.positions}
        if self.top_k:
            assert view.logits is not None
            values, ids, tail = likeliest(view.logits[row, :length], self.top_k, self.temperature)
            found |= {"log_probs": values, "ids": ids.to(torch.int32), "tail": tail[:, None]}
        return found


class Stored:
    """The original as it lies on disk; see `step.Teacher`.

    Args:
        kept: what was kept.
        store: where; all rows are there.
        device: where to tell it.
    """

    def __init__(self, kept: Kept, store: RowStore, device: torch.device) -> None:
        self._kept, self._store, self._device = kept, store, device

    def view(self, inputs: Inputs) -> TeacherView:
        """What the original made of a micro-batch; zeros at pads.

        Args:
            inputs: from `rows.collate`.
        """
        rows, length = [self._store.get(int(row)) for row in inputs["rows"]], inputs["input_ids"].shape[1]

        def padded(name: str) -> torch.Tensor:
            tensors = [row[name] for row in rows]
            made = tensors[0].new_zeros((len(tensors), length, tensors[0].shape[-1]))
            for to, tensor in zip(made, tensors, strict=True):
                to[: len(tensor)] = tensor
            return made.to(self._device)

        states = {at: padded(_state(at)) for at in self._kept.positions}
        if not self._kept.top_k:
            return TeacherView(states=states)
        top = padded("log_probs"), padded("ids").long()
        return TeacherView(top=top, tail=padded("tail")[..., 0], states=states)


def open_store(folder: Path, key: str, kept: Kept, rows: Rows) -> RowStore:
    """The store of a key, as far as it is filled.

    Args:
        folder: of all stores of original models.
        key: from `Kept.key`.
        kept: what is kept.
        rows: the text.

    Raises:
        OutputError: the disk has no room.
    """
    return RowStore(folder / key[:_FOLDER], key, _lengths(rows), kept.fields, what="what the original makes of a text")


def folder_name(key: str) -> str:
    """Name of the folder that the store of a key lies in."""
    return key[:_FOLDER]


def spent_on(store: RowStore) -> float:
    """Operations that it took the original to fill a store, which is full."""
    return float(serial.read_json(store.folder / _COST))


def fill(store: RowStore, kept: Kept, teacher: Resident, rows: Rows, *, batch_size: int, progress: bool) -> None:
    """Write what the original makes of the rows that are not there yet.

    Args:
        store: where to.
        kept: what to keep.
        teacher: the original, in memory.
        rows: the text.
        batch_size: rows at once.
        progress: whether to show a bar.

    Raises:
        OutputError: the disk has no room.
    """
    path = store.folder / _COST
    if not path.is_file():
        lengths = store.lengths
        cost = teacher.cost(max(lengths))
        serial.write_text(path, serial.dumps(sum(cost.of(1, length) for length in lengths)))
    # Rows of one length together, so that little is spent on pads.
    missing = sorted((row for row in range(len(rows)) if not store.has(row)), key=lambda row: -store.lengths[row])
    done = len(rows) - len(missing)
    bar: Any = tqdm(desc="running the original", total=len(rows), initial=done, unit="row", disable=not progress)
    with closing(bar):
        for start in range(0, len(missing), batch_size):
            some = missing[start : start + batch_size]
            view = teacher.view(collate([rows[row] for row in some]))
            for at, row in enumerate(some):
                store.put(row, **kept.of(view, at, store.lengths[row]))
                bar.update()


def _lengths(rows: Rows) -> list[int]:
    return [len(row.input_ids) for row in rows.rows]


def _state(position: int) -> str:
    return f"state_{position}"
