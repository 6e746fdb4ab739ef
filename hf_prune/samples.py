"""Token sequences, and the padded batches that models take."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hf_prune.errors import DataError
from hf_prune.records import TextUse


@dataclass(frozen=True)
class Samples:
    """Tokenised text.

    Attributes:
        sequences: 1-D int64 tensors on the CPU, each at least two tokens, without pads.
        use: which text this is.
        learned: a mask a sequence, (length,) bool on the CPU, True for tokens whose prediction counts; None where all
            but the first of each sequence do.
    """

    sequences: tuple[torch.Tensor, ...]
    use: TextUse
    learned: tuple[torch.Tensor, ...] | None = None

    @property
    def tokens(self) -> int:
        """Tokens in all sequences."""
        return sum(len(s) for s in self.sequences)

    def part(self, start: int, stop: int) -> "Samples":
        """The sequences from `start` up to `stop`, as a text of their own."""
        sequences = self.sequences[start:stop]
        learned = None if self.learned is None else self.learned[start:stop]
        use = dataclasses.replace(
            self.use, samples=len(sequences), tokens=sum(map(len, sequences)), sha256=digest(sequences, learned)
        )
        return Samples(sequences, use, learned)

    def hashes(self) -> frozenset[str]:
        """One hash a sequence, to prove that two sets of samples are disjoint."""
        return frozenset(hash_ids(s) for s in self.sequences)

    def prompts(self) -> frozenset[str]:
        """One hash for what stands before the first learned token of each sequence; none where all is learned."""
        if self.learned is None:
            return frozenset()
        pairs = zip(self.sequences, self.learned, strict=True)
        return frozenset(hash_ids(ids[: int(mask.int().argmax())]) for ids, mask in pairs)

    def save(self, path: Path) -> None:
        """Write the token ids as one safetensors file.

        It holds `ids` (int32, all sequences in a row), `lengths` (int32), and where there are masks `learned` (bool,
        in a row as well).
        """
        lengths = torch.tensor([len(s) for s in self.sequences], dtype=torch.int32)
        tensors = {"ids": torch.cat(self.sequences).to(torch.int32), "lengths": lengths}
        if self.learned is not None:
            tensors["learned"] = torch.cat(self.learned)
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path, use: TextUse) -> "Samples":
        """Read what `save` wrote.

        Raises:
            DataError: it is something else.
        """
        try:
            data = load_file(path)
            lengths = data["lengths"].tolist()
            learned = tuple(data["learned"].bool().split(lengths)) if "learned" in data else None
            return cls(tuple(data["ids"].long().split(lengths)), use, learned)
        except (SafetensorError, OSError, KeyError, RuntimeError, TypeError) as error:
            raise DataError(f"{path} holds no token ids as hf_prune writes them: {error}") from error


@dataclass(frozen=True)
class Batch:
    """Sequences padded on the right.

    Attributes:
        input_ids: (batch, length) int64.
        attention_mask: (batch, length) int64, 1 for tokens and 0 for pads.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device))


def hash_ids(ids: torch.Tensor) -> str:
    """The sha256 of a sequence of token ids."""
    return hashlib.sha256(ids.to(torch.int32).numpy().tobytes()).hexdigest()


def digest(sequences: Sequence[torch.Tensor], learned: Sequence[torch.Tensor] | None = None) -> str:
    """The sha256 of an ordered list of sequences, and of what of them is learned where that is not all."""
    total = hashlib.sha256()
    for ids in sequences:
        total.update(bytes.fromhex(hash_ids(ids)))
    for mask in learned or ():
        total.update(mask.to(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def by_length(sequences: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Sequences sorted so that those of one batch hardly differ in length, and little is spent on pads.

    The longest come first: what does not fit in memory fails at once. Equal lengths keep their order.

    Args:
        sequences: 1-D tensors.
    """
    return sorted(sequences, key=len, reverse=True)


def batches(sequences: Sequence[torch.Tensor], batch_size: int, pad_id: int = 0) -> Iterator[Batch]:
    """Pad sequences on the right, in the order given.

    Pads are told by the mask alone, so any valid id serves as `pad_id` (models without a pad token included).

    Args:
        sequences: 1-D int64 tensors.
        batch_size: sequences a batch; the last one may be smaller.
        pad_id: id written into the padding.
    """
    for start in range(0, len(sequences), batch_size):
        group = sequences[start : start + batch_size]
        length = max(len(ids) for ids in group)
        input_ids = torch.full((len(group), length), pad_id, dtype=torch.int64)
        mask = torch.zeros((len(group), length), dtype=torch.int64)
        for row, ids in enumerate(group):
            input_ids[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        yield Batch(input_ids, mask)
