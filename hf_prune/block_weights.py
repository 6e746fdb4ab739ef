"""Where the weights of the blocks are while batches pass: all in memory, or on disk and read one block at a time."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from hf_prune import precision
from hf_prune.architecture import Decoder
from hf_prune.architecture.decoder import first_device
from hf_prune.block_reader import BlockReader, CheckpointFiles, buffer_size, read_rows, read_whole
from hf_prune.skeleton import Filling, Piece

_HALF = (torch.bfloat16, torch.float16)


class BlockWeights(Protocol):
    """Brings blocks into memory, in turn, and knows in which dtype they compute.

    Attributes:
        all_at_once: whether all blocks are there together, so that each batch may pass them alone.
        states_budget: bytes of hidden states that may lie in memory; None leaves it to the store.
    """

    all_at_once: bool
    states_budget: int | None

    @property
    def device(self) -> torch.device:
        """Where the blocks compute."""
        ...

    def computing(self) -> Any:
        """A context for all that follows: weights compute in the dtype that is fast here."""
        ...

    def surroundings(self) -> Any:
        """A context in which what lies around the blocks is there: embeddings, last norm."""
        ...

    def blocks(self, layers: Sequence[int]) -> Generator[tuple[int, nn.Module], None, None]:
        """Blocks with their number, in ascending order, each there until the next one is asked for; to be closed."""
        ...


class ResidentWeights:
    """The weights of a model that is in memory (or that accelerate brings there).

    Args:
        decoder: the model.
    """

    all_at_once = True
    states_budget: int | None = None

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return first_device(self._decoder.model)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """See `BlockWeights`."""
        with precision.fast_arithmetic(self._decoder.model):
            yield

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """See `BlockWeights`."""
        yield

    def blocks(self, layers: Sequence[int]) -> Generator[tuple[int, nn.Module], None, None]:
        """See `BlockWeights`."""
        for layer in layers:
            yield layer, self._decoder.blocks[layer]


class StreamedWeights:
    """The weights of a checkpoint on disk, read one block at a time while the block before computes.

    In memory are the bytes of two blocks; or, where the weights are changed on their way (into float32 where the
    processor is slow in half precision, or experts made one tensor), the bytes of one and what they become. Of the
    embeddings only the rows that a batch asks for are read.

    Args:
        decoder: a skeleton of the checkpoint.
        folder: of the checkpoint.
        device: where the blocks compute; that of the skeleton's buffers.
        states_budget: bytes of hidden states that may lie in memory; None leaves it to the store.

    Raises:
        CheckpointError: the checkpoint is broken.
    """

    all_at_once = False

    def __init__(
        self, decoder: Decoder, folder: Path, device: torch.device | str = "cpu", states_budget: int | None = None
    ) -> None:
        self.device = torch.device(device)
        self.states_budget = states_budget
        self._decoder = decoder
        self.files = CheckpointFiles(folder)
        self.filling = Filling(decoder, self.files.entries)
        self._filled: list[str] = []
        everything = (*self.filling.around, *(p for block in self.filling.blocks for p in block), *self.filling.head)
        self._half = next((piece.dtype for piece in everything if piece.dtype in _HALF), None)

    @property
    def copies(self) -> bool:
        """Whether the weights of blocks are changed on their way from the file."""
        return any(
            piece.converter is not None or self._entry(piece).torch_dtype != self._compute_dtype(piece.dtype)
            for block in self.filling.blocks
            for piece in block
        )

    def bytes_held(self) -> tuple[int, int, int]:
        """Bytes of buffers, of what is made from one block's buffer, and of what lies around the blocks, at most."""
        filling, entries = self.filling, self.files.entries
        one = max((buffer_size(entries[name] for name in _names(block)) for block in filling.blocks), default=0)
        around = sum(
            filling.size(piece, self._compute_dtype(piece.dtype)) + self._entry(piece).size for piece in self._around()
        )
        if not self.copies:
            return 2 * one, 0, around
        made = max((self._made_bytes(block) for block in filling.blocks), default=0)
        return one, made, around

    @contextmanager
    def computing(self) -> Iterator[None]:
        """See `BlockWeights`."""
        compute = self._compute_dtype
        model = self._decoder.model
        unique: dict[int, torch.Tensor] = {id(t): t for t in (*model.parameters(), *model.buffers())}
        kept = [(t, t.data) for t in unique.values() if compute(t.dtype) != t.dtype]
        try:
            with torch.inference_mode(False), torch.no_grad():
                for tensor, data in kept:
                    tensor.data = data.to(compute(data.dtype))
            yield
        finally:
            self._release()
            for tensor, data in kept:
                tensor.data = data
            self.files.close()

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """See `BlockWeights`."""
        around = self._around()
        filled = self.filling.put(around, self._whole(around), self._compute_dtype)
        table = self._decoder.model.get_input_embeddings()
        try:
            with self._looked_up(table):
                yield
        finally:
            self.filling.take_out(filled)

    def blocks(self, layers: Sequence[int]) -> Generator[tuple[int, nn.Module], None, None]:
        """See `BlockWeights`."""
        pieces = [self.filling.blocks[layer] for layer in layers]
        copies = self.copies
        reader = BlockReader(self.files, [_names(block) for block in pieces], 1 if copies else 2, self.device)
        try:
            reader.begin()
            for number, layer in enumerate(layers):
                tensors = reader.take(number)
                self._filled = self.filling.put(pieces[number], tensors, self._compute_dtype, copies=copies)
                del tensors
                reader.go_on(number)
                yield layer, self._decoder.blocks[layer]
                self._release()
        finally:
            self._release()
            reader.close()

    def _release(self) -> None:
        self.filling.take_out(self._filled)
        self._filled = []

    @contextmanager
    def _looked_up(self, table: Any) -> Iterator[None]:
        """Answer lookups in the table of embeddings with the rows that are asked for, read from the file."""
        piece = self._table()
        if piece is None:
            yield
            return
        name, rows = piece.sources[0][0], self._entry(piece).shape[0]

        def read(module: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            wanted, places = given[0].unique(return_inverse=True)
            if wanted[0] < 0 or wanted[-1] >= rows:
                raise IndexError(f"token ids reach from {int(wanted[0])} to {int(wanted[-1])}; the table has {rows}")
            found = read_rows(self.files, name, wanted.tolist())
            self._filled = self.filling.put([piece], {name: self._there(found)}, self._compute_dtype)
            return (places, *given[1:])

        padding = table.padding_idx
        table.padding_idx = None  # it matters to gradients alone, and may lie past the rows that are there
        handle = table.register_forward_pre_hook(read)
        try:
            yield
        finally:
            handle.remove()
            table.padding_idx = padding
            self._release()

    def _table(self) -> Piece | None:
        """The piece of the token embeddings, where they are looked up in a plain table."""
        table = self._decoder.model.get_input_embeddings()
        if not isinstance(table, nn.Embedding):
            return None
        pieces = (*self.filling.around, *self.filling.head)
        return next((p for p in pieces if p.converter is None and self.filling.is_at(p, table, "weight")), None)

    def _around(self) -> list[Piece]:
        table = self._table()
        return [piece for piece in self.filling.around if piece is not table]

    def _whole(self, pieces: Sequence[Piece]) -> dict[str, torch.Tensor]:
        return {name: self._there(tensor) for name, tensor in read_whole(self.files, _names(pieces)).items()}

    @torch.inference_mode(False)
    def _there(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device)

    def _entry(self, piece: Piece) -> Any:
        return self.files.entries[piece.sources[0][0]]

    def _made_bytes(self, block: Sequence[Piece]) -> int:
        sizes = [self.filling.size(piece, self._compute_dtype(piece.dtype)) for piece in block]
        # A conversion stacks before it joins: for a moment the largest one is there twice.
        twice = [size for size, piece in zip(sizes, block, strict=True) if piece.converter is not None]
        return sum(sizes) + max(twice, default=0)

    def _compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """As `precision.fast_arithmetic` would have it for the whole model: the first half dtype decides for all."""
        if self._half is None or dtype not in _HALF:
            return dtype
        return dtype if precision.faster_dtype(self.device, self._half) == self._half else torch.float32


def _names(pieces: Sequence[Piece]) -> list[str]:
    return [name for piece in pieces for name, _ in piece.sources]
