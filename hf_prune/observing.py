"""Who looks on while hidden states pass through the blocks, and what they are told."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from hf_prune.errors import MeasureError


@dataclass(frozen=True)
class Place:
    """Where the walk is.

    Attributes:
        layer: index of the block.
        depth: blocks that there are.
        batch: index of the batch.
    """

    layer: int
    depth: int
    batch: int

    @property
    def is_last(self) -> bool:
        """Whether no block comes behind this one."""
        return self.layer == self.depth - 1


class Observer(Protocol):
    """Looks on while hidden states pass through the blocks, and adds to running sums.

    One that needs no more than the first blocks says so in an attribute `last_block`, the index of the last of them.
    One that looks into blocks has a method `around(layer, block)`, a context in which the block runs: forward hooks
    that it registers there hand it what `see` does not. One that lets blocks run again there says in an attribute
    `most_runs` how often they run at most, and in its result, as `forwards`, how often they did. One that keeps hidden
    states has a method `keep_in(folder, budget)`, told before the walk where those go that memory has no room for, and
    how many bytes it may take; None leaves either to itself.
    """

    def see(self, at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> None:
        """Called once for each batch and each block.

        Blocks ascend for each batch and batches ascend for each block. Which of the two changes faster depends on
        where the weights lie, and must not matter for the result.

        Args:
            at: which block of how many, and which batch.
            inputs: (batch, length, width) residual stream h_l entering the block, in the model's dtype.
            outputs: same shape, h_(l+1) leaving it; before the final norm for the last block.
            mask: (batch, length) int64, 1 for tokens and 0 for pads (on the right).
        """
        ...

    def sums(self) -> list[torch.Tensor]:
        """The running sums themselves (float64, on the CPU), counts among them, once all batches have passed.

        What other processes found in their share of the batches is added to them in place.
        """
        ...

    def result(self) -> dict[str, Any]:
        """What was found, once all batches have passed."""
        ...


Leave = Callable[[int, int, torch.Tensor, torch.Tensor], None]
"""Told what enters the last norm of a cut model: index of the cut, index of the batch, (batch, length, width) hidden
states, (batch, length) mask."""


def most_runs(observer: Observer) -> int:
    """How often blocks run at most where an observer looks on."""
    return int(getattr(observer, "most_runs", 1))


def last_needed(observers: Sequence[Observer], depth: int) -> int:
    """Index of the last block that any of them needs; the last of all where none says so."""
    return min(
        depth - 1, max((getattr(observer, "last_block", depth - 1) for observer in observers), default=depth - 1)
    )


@contextmanager
def looking_in(observers: Sequence[Observer], layer: int, block: nn.Module) -> Iterator[None]:
    """The contexts of all observers that look into blocks."""
    with ExitStack() as stack:
        for observer in observers:
            around = getattr(observer, "around", None)
            if around is not None:
                stack.enter_context(around(layer, block))
        yield


def check_finite(
    inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor, layer: int, batch: int, name: str
) -> None:
    """Refuse hidden states of real tokens that are NaN or infinite.

    Args:
        inputs: (batch, length, width) entering a block.
        outputs: leaving it.
        mask: (batch, length), 0 for pads.
        layer: index of the block.
        batch: index of the batch.
        name: what the model is called in errors.

    Raises:
        MeasureError: names block and batch.
    """
    # The sum of all entries is finite only if each is: one reduction, no mask of the tensor's size. Half precision
    # would overflow in the sum itself, hence float32; pads may hold anything.
    if torch.isfinite(outputs.sum(dtype=torch.float32)):
        return
    if layer == 0 and (bad := _bad_tokens(inputs, mask)):
        raise MeasureError(
            f"the embeddings of '{name}' hold NaN or infinite numbers for {bad} of {int(mask.sum())} tokens in batch "
            f"{batch}; expected finite numbers. Check the weights of the embedding"
        )
    if bad := _bad_tokens(outputs, mask):
        raise MeasureError(
            f"block {layer} of '{name}' gives NaN or infinite hidden states in batch {batch} "
            f"({bad} of {int(mask.sum())} tokens); expected finite numbers. Try another --dtype (bfloat16 "
            "or float32 instead of float16), or check the weights of that block"
        )


def _bad_tokens(hidden: torch.Tensor, mask: torch.Tensor) -> int:
    return int((~torch.isfinite(hidden).all(-1) & mask.to(hidden.device).bool()).sum())
