"""How far a model's predictions are from those of the model it was made from.

Surgery is in place, so the two models never stand side by side: the original's logits are kept at a bounded number of
positions, in the dtype it computes in (so nothing is lost), and everything later is compared with them.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_prune.errors import DataError, MeasureError
from hf_prune.evaluation.scoring import Rows
from hf_prune.evaluation.tally import Tally
from hf_prune.records import Fidelity

BUDGET_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Reference:
    """The original's logits at some positions of a text.

    Attributes:
        logits: (positions, vocabulary) on the CPU, in the dtype of the original's logits.
        positions: (positions,) int64, ascending indices into the predicted tokens of the text.
        text: sha256 of the text's token ids.
        window: tokens a window saw.
        stride: tokens the window moved by.
    """

    logits: torch.Tensor
    positions: torch.Tensor
    text: str
    window: int
    stride: int

    def save(self, path: Path) -> None:
        """Write one safetensors file; it appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(descriptor)
        notes = {"text": self.text, "window": str(self.window), "stride": str(self.stride)}
        try:
            save_file({"logits": self.logits, "positions": self.positions}, temporary, metadata=notes)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, damaged, or something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                notes = file.metadata() or {}
                return cls(
                    logits=file.get_tensor("logits"),
                    positions=file.get_tensor("positions"),
                    text=notes["text"],
                    window=int(notes["window"]),
                    stride=int(notes["stride"]),
                )
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(
                f"{path} does not hold the original's logits ({error}); evaluate the original again"
            ) from error


def choose(total: int, count: int, seed: int) -> torch.Tensor:
    """Positions spread evenly over a text: one at random in each of `count` equal stretches, all where they fit.

    Args:
        total: positions there are.
        count: positions wanted.
        seed: of the choice.

    Returns:
        (min(count, total),) int64, ascending, distinct.
    """
    if count >= total:
        return torch.arange(total)
    edges = torch.arange(count + 1) * total // count
    draw = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return edges[:-1] + (draw * (edges[1:] - edges[:-1])).long()


class Capture:
    """Collects a `Reference` while a text goes by."""

    def __init__(self, total: int, budget_bytes: int, seed: int) -> None:
        """Prepare for a text with `total` predicted tokens, to keep at most `budget_bytes` of logits."""
        self._total, self._budget, self._seed = total, budget_bytes, seed
        self._positions = torch.empty(0, dtype=torch.int64)
        self._logits = torch.empty(0)

    def add(self, rows: Rows) -> None:
        """Keep what is chosen of these rows."""
        if rows.offset == 0:
            row_bytes = rows.logits.shape[1] * rows.logits.element_size()
            self._positions = choose(self._total, max(1, self._budget // row_bytes), self._seed)
            self._logits = torch.empty(len(self._positions), rows.logits.shape[1], dtype=rows.logits.dtype)
        picked = _within(self._positions, rows)
        if len(picked):
            here = (self._positions[picked] - rows.offset).to(rows.logits.device)
            self._logits[picked] = rows.logits[here].cpu()

    def reference(self, text: str, window: int, stride: int) -> Reference:
        """The reference, once the whole text went by."""
        return Reference(self._logits, self._positions, text, window, stride)


class Comparison:
    """Compares a model with a `Reference` while the same text goes by."""

    def __init__(self, reference: Reference, windows: int, text: str, window: int, stride: int) -> None:
        """Prepare for a text of so many windows.

        Raises:
            MeasureError: the reference is of another text or of other windows.
        """
        expected, found = (reference.text, reference.window, reference.stride), (text, window, stride)
        if expected != found:
            raise MeasureError(
                f"the original was measured on text {expected[0][:12]} with window={expected[1]} and "
                f"stride={expected[2]}, this model on text {found[0][:12]} with window={found[1]} and "
                f"stride={found[2]}. Only the same tokens in the same windows compare: evaluate both alike"
            )
        self._reference = reference
        self._kl, self._agree, self._five = Tally(windows), Tally(windows), Tally(windows)

    def add(self, rows: Rows, log_probs: torch.Tensor) -> None:
        """Compare these rows.

        Args:
            rows: the model's rows.
            log_probs: (rows, vocabulary) float32, its log-probabilities at these rows.

        Raises:
            MeasureError: the two models have different vocabularies.
        """
        known = self._reference.logits.shape[1]
        if rows.logits.shape[1] != known:
            raise MeasureError(
                f"the original has a vocabulary of {known}, this model one of {rows.logits.shape[1]}; KL needs the "
                "same. Evaluate without the original, or keep its vocabulary"
            )
        picked = _within(self._reference.positions, rows)
        if not len(picked):
            return
        here = self._reference.positions[picked] - rows.offset
        device = log_probs.device
        original = self._reference.logits[picked].to(device).float()
        mine = log_probs[here.to(device)]
        expected = original.log_softmax(-1)
        kl = (expected.exp() * (expected - mine)).sum(-1, dtype=torch.float64)
        self._kl.add(rows.window[here], kl)
        logits = rows.logits[here.to(device)]
        self._agree.add(rows.window[here], original.argmax(-1) == logits.argmax(-1))
        self._five.add(rows.window[here], _shared(original, logits.float(), 5))

    def fidelity(self) -> Fidelity:
        """KL(original || model) and agreement, once the whole text went by."""
        return Fidelity(
            kl=self._kl.mean,
            kl_standard_error=self._kl.standard_error,
            top1_agreement=self._agree.mean,
            tokens=self._kl.count,
            top5_agreement=self._five.mean,
        )


def _shared(original: torch.Tensor, logits: torch.Tensor, count: int) -> torch.Tensor:
    """Share of each row's `count` likeliest tokens that two models have in common; (rows,) float64."""
    count = min(count, original.shape[-1])
    ours, theirs = original.topk(count, -1).indices, logits.topk(count, -1).indices
    return (ours[:, :, None] == theirs[:, None, :]).any(-1).double().mean(-1)


def _within(positions: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Indices of the positions that lie in these rows."""
    edges = torch.tensor([rows.offset, rows.offset + len(rows.logits)])
    first, last = torch.searchsorted(positions, edges).tolist()
    return torch.arange(first, last)
