"""States of the same tokens at all points of the residual stream, for measures that compare all pairs of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_prune.activation_store import ActivationStore
from hf_prune.measures.means import check_tokens, spans
from hf_prune.observing import Place

CHUNK_BYTES = 2**28
"""Of float64 copies at once."""

_LEAST_CHUNK = 2**22
"""Where memory is bounded: single tokens would take forever."""


class StatePairs(ABC):
    """Keeps the states of a batch until its last block has run, then looks at one sample after the other.

    Held are (layers + 1) x tokens x width numbers in the model's dtype, without pads, of each batch that is on its
    way. While the model is in memory that is one batch (for 8 samples of 2048 tokens and a model of 32 layers and
    width 4096, in bfloat16, 4.4 GB); while its weights are read block by block it is all of them (for 128 such samples
    71 GB): no pair of layers is left out, and states that lie far apart have to wait for each other. A quarter of the
    memory that is free is used for them, and from there on the folder that the walker is given for hidden states, or
    the system's place for temporary files. Of the last token alone it is (layers + 1) x samples x width.

    Args:
        tokens: "all", or only the "last" real one of each sample.
        skip_first: leave out the first real token of each sample.

    Raises:
        ConfigError: `tokens` is neither.
    """

    def __init__(self, tokens: str = "all", skip_first: bool = False) -> None:
        self._which, self._skip = check_tokens(tokens), bool(skip_first)
        self._lengths: dict[int, list[int]] = {}
        self._store = ActivationStore()
        self._chunk: int | None = None

    def keep_in(self, folder: Path | None, budget: int | None) -> None:
        """Say where states go that memory has no room for; call it before the first batch.

        Args:
            folder: on a disk with room; the system's for temporary files when None.
            budget: bytes of memory for them and for what is computed of them; None leaves that as it is.
        """
        if budget is not None:
            self._chunk = min(CHUNK_BYTES, max(_LEAST_CHUNK, budget // 8))  # of which there are a few copies at once
        self._store = ActivationStore(self._store.budget if budget is None else budget // 2, folder)

    def see(self, at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> None:
        """Keep this batch's states; look at them after the last block.

        Raises:
            MeasureError: a sample has no token to measure.
            OutputError: the disk has no room for hidden states.
        """
        chosen = spans(mask, self._which, self._skip)
        if at.layer == 0:
            self._lengths[at.batch] = [span.stop - span.start for span in chosen]
            self._keep(at.batch, 0, inputs, chosen)
        self._keep(at.batch, at.layer + 1, outputs, chosen)
        if at.is_last:
            self._compare(at, outputs.device)

    def _keep(self, batch: int, point: int, hidden: torch.Tensor, chosen: Sequence[slice]) -> None:
        packed = torch.cat([row[span] for row, span in zip(hidden, chosen, strict=True)])
        # One batch may stay where it is computed; many would fill a GPU.
        self._store[batch, point] = packed if len(self._lengths) == 1 else packed.cpu()

    def _compare(self, at: Place, device: torch.device) -> None:
        # Where the last block lies; Metal has no float64.
        device = torch.device("cpu") if device.type == "mps" else device
        points = range(at.depth + 1)
        kept = [self._store[at.batch, point].split(self._lengths[at.batch]) for point in points]
        for sample in zip(*kept, strict=True):
            self.add([state.to(device) for state in sample])
        del kept
        for point in points:
            del self._store[at.batch, point]
        del self._lengths[at.batch]

    @abstractmethod
    def add(self, states: Sequence[torch.Tensor]) -> None:
        """Add one sample.

        Args:
            states: h_0 … h_L, each (tokens, width) in the model's dtype, on one device that has float64.
        """

    @abstractmethod
    def sums(self) -> list[torch.Tensor]:
        """See `Observer.sums`."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """See `Observer.result`."""


def chunks(tokens: int, bytes_a_token: int, most: int | None = None) -> Iterator[slice]:
    """Tokens in parts whose float64 copies stay within some bytes, as far as there are parts of more than one token.

    Args:
        tokens: how many there are.
        bytes_a_token: of the copies.
        most: bytes of one part; `CHUNK_BYTES` when None.
    """
    size = max(1, (CHUNK_BYTES if most is None else most) // bytes_a_token)
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))


def nested(table: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    """A square table as nested tuples, symmetric to the bit, with a diagonal of zeros."""
    upper = table.triu(1)
    return tuple(map(tuple, (upper + upper.T).tolist()))
