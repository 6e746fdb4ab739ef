"""How far a model's predictions are from those of the model it was made from.

Surgery is in place, so the two models never stand side by side in a run. What is kept of the original lies in two
parts, within one budget: its k likeliest tokens with the rest as one bin, at every token of the text where that fits,
and all its logits at fewer positions, in the dtype it computes in. The first gives a lower bound of the KL and the
agreement over the whole text, the second the KL itself, without bias. `hf_prune.evaluation.pair` has both models in
memory instead, and keeps nothing.
"""

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_prune.errors import DataError, MeasureError
from hf_prune.evaluation.scoring import Rows, Window
from hf_prune.evaluation.tally import Tally
from hf_prune.evaluation.topk import Top, check_vocabularies, likeliest, shared, top_kl
from hf_prune.records import Fidelity

logger = logging.getLogger(__name__)

BUDGET_BYTES = 256 * 2**20
TOP_SHARE = 4
"""The likeliest tokens take at most one part in so many of the budget; the logits get what is left."""

TOP_K = 64
_FIVE = 5


@dataclass(frozen=True)
class Reference:
    """What is kept of the original's predictions on a text.

    Attributes:
        logits: (positions, vocabulary) on the CPU, in the dtype of the original's logits.
        positions: (positions,) int64, ascending indices into the predicted tokens of the text.
        top: its likeliest tokens at `top_positions`.
        top_positions: (positions,) int64, ascending; all of the text where they fit.
        text: sha256 of the text's token ids.
        window: tokens a window saw.
        stride: tokens the window moved by.
    """

    logits: torch.Tensor
    positions: torch.Tensor
    top: Top
    top_positions: torch.Tensor
    text: str
    window: int
    stride: int

    def save(self, path: Path) -> None:
        """Write one safetensors file; it appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(descriptor)
        notes = {"text": self.text, "window": str(self.window), "stride": str(self.stride)}
        tensors = {
            "logits": self.logits,
            "positions": self.positions,
            "top_log_probs": self.top.log_probs,
            "top_ids": self.top.ids,
            "top_tail": self.top.tail,
            "top_positions": self.top_positions,
        }
        try:
            save_file(tensors, temporary, metadata=notes)
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
                notes, get = file.metadata() or {}, file.get_tensor
                logits = get("logits")
                top = Top(get("top_log_probs"), get("top_ids"), get("top_tail"), logits.shape[1])
                return cls(
                    logits=logits,
                    positions=get("positions"),
                    top=top,
                    top_positions=get("top_positions"),
                    text=notes["text"],
                    window=int(notes["window"]),
                    stride=int(notes["stride"]),
                )
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(
                f"{path} does not hold the original's predictions ({error}); evaluate the original again"
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

    def __init__(self, total: int, budget_bytes: int, seed: int, top_k: int = TOP_K) -> None:
        """Prepare for a text with `total` predicted tokens, to keep at most `budget_bytes` (and one position)."""
        self._total, self._budget, self._seed, self._count = total, budget_bytes, seed, top_k
        self._positions = self._top_positions = torch.empty(0, dtype=torch.int64)
        self._logits = torch.empty(0)
        self._top = Top.empty(0, 0, 0)

    def add(self, rows: Rows, log_probs: torch.Tensor) -> None:
        """Keep what is chosen of these rows.

        Args:
            rows: the model's rows.
            log_probs: (rows, vocabulary) float32, its log-probabilities there.
        """
        if rows.offset == 0:
            self._prepare(rows.logits)
        picked = _within(self._positions, rows)
        here = (self._positions[picked] - rows.offset).to(rows.logits.device)
        if len(here):
            self._logits[picked] = _part(rows.logits, here).cpu()
        picked = _within(self._top_positions, rows)
        here = (self._top_positions[picked] - rows.offset).to(log_probs.device)
        if len(here):
            self._top.put(picked, likeliest(_part(log_probs, here), self._count))

    def _prepare(self, logits: torch.Tensor) -> None:
        vocabulary, each = logits.shape[1], Top.bytes_each(self._count, logits.shape[1])
        self._top_positions = choose(self._total, max(1, self._budget // TOP_SHARE // each), self._seed)
        self._top = Top.empty(len(self._top_positions), self._count, vocabulary)
        row_bytes, left = vocabulary * logits.element_size(), self._budget - each * len(self._top_positions)
        self._positions = choose(self._total, max(1, left // row_bytes), self._seed)
        self._logits = torch.empty(len(self._positions), vocabulary, dtype=logits.dtype)
        logger.info(
            "of the original's predictions are kept: the %d likeliest tokens at %d of %d positions (%.1f MB), all "
            "logits at %d (%.1f MB)",
            min(self._count, vocabulary), len(self._top_positions), self._total, each * len(self._top_positions) / 1e6,
            len(self._positions), row_bytes * len(self._positions) / 1e6,
        )  # fmt: skip

    def reference(self, text: str, window: int, stride: int) -> Reference:
        """The reference, once the whole text went by."""
        return Reference(self._logits, self._positions, self._top, self._top_positions, text, window, stride)


class Divergence:
    """Sums up how far predictions are from the original's.

    Agreement of first choices is counted with the likeliest tokens, which are there at more positions; where fewer
    than five of them are kept, with the full predictions.

    Args:
        spans: windows of the text.
        sequences: how many the text has.
        top_k: likeliest tokens that are kept of each prediction.
    """

    def __init__(self, spans: Sequence[Window], sequences: int, top_k: int) -> None:
        self._owner = torch.tensor([span.sequence for span in spans])
        self._sequences, self._count = sequences, top_k
        self._kl, self._top, self._first, self._five = (Tally(len(spans)) for _ in range(4))

    def full(self, window: torch.Tensor, expected: torch.Tensor, log_probs: torch.Tensor) -> None:
        """Add rows of which all is known.

        Args:
            window: (rows,) int64 on the CPU, index of each row's window.
            expected: (rows, vocabulary) float32, the original's log-probabilities.
            log_probs: the model's.

        Raises:
            MeasureError: the two models have different vocabularies.
        """
        check_vocabularies(expected.shape[1], log_probs.shape[1])
        self._kl.add(window, (expected - log_probs).mul_(expected.exp()).sum(-1, dtype=torch.float64))
        if self._count < _FIVE:
            five = min(_FIVE, expected.shape[1])
            self._agree(window, expected.topk(five, -1).indices, log_probs.topk(five, -1).indices)

    def top(self, window: torch.Tensor, top: Top, log_probs: torch.Tensor) -> None:
        """Add rows of which the likeliest tokens are known.

        Args:
            window: (rows,) int64 on the CPU, index of each row's window.
            top: the original's predictions, on the device of the model's.
            log_probs: (rows, vocabulary) float32, the model's log-probabilities.

        Raises:
            MeasureError: the two models have different vocabularies.
        """
        self._top.add(window, top_kl(top, log_probs))
        if self._count >= _FIVE:
            # As many as of the original are asked for, so that the same ties are broken the same way.
            self._agree(window, top.ids, log_probs.topk(top.ids.shape[1], -1).indices)

    def _agree(self, window: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        self._first.add(window, ours[:, 0] == theirs[:, 0])
        self._five.add(window, shared(ours, theirs, _FIVE))

    def fidelity(self, top_k: int) -> Fidelity:
        """The figures, once the whole text went by; `top_k` as clipped to the vocabulary."""
        return Fidelity(
            kl=self._kl.mean,
            kl_standard_error=self._kl.standard_error,
            top1_agreement=self._first.mean,
            tokens=self._kl.count,
            top5_agreement=self._five.mean,
            kl_top_k=self._top.mean,
            top_k=top_k,
            top_k_tokens=self._top.count,
            sequence_kl=self._top.means(self._owner, self._sequences),
        )


class Comparison:
    """Compares a model with a `Reference` while the same text goes by."""

    def __init__(
        self, reference: Reference, spans: Sequence[Window], sequences: int, text: str, window: int, stride: int
    ) -> None:
        """Prepare for a text of these windows and so many sequences.

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
        self._gap = Divergence(spans, sequences, reference.top.ids.shape[1])

    def add(self, rows: Rows, log_probs: torch.Tensor) -> None:
        """Compare these rows.

        Args:
            rows: the model's rows.
            log_probs: (rows, vocabulary) float32, its log-probabilities there.

        Raises:
            MeasureError: the two models have different vocabularies.
        """
        known, device = self._reference, log_probs.device
        check_vocabularies(known.logits.shape[1], log_probs.shape[1])
        picked = _within(known.positions, rows)
        here = known.positions[picked] - rows.offset
        if len(here):
            expected = known.logits[picked].to(device).float().log_softmax(-1)
            self._gap.full(rows.window[here], expected, _part(log_probs, here.to(device)))
        picked = _within(known.top_positions, rows)
        here = known.top_positions[picked] - rows.offset
        if len(here):
            self._gap.top(rows.window[here], known.top[picked].to(device), _part(log_probs, here.to(device)))

    def fidelity(self) -> Fidelity:
        """KL(original || model) and agreement, once the whole text went by."""
        return self._gap.fidelity(self._reference.top.ids.shape[1])


def _part(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Some rows, ascending; the tensor itself where they are all."""
    return values if len(rows) == len(values) else values[rows]


def _within(positions: torch.Tensor, rows: Rows) -> slice:
    """Where in ascending positions those of these rows stand."""
    edges = torch.tensor([rows.offset, rows.offset + len(rows.logits)])
    return slice(*torch.searchsorted(positions, edges).tolist())
