"""How a model calls its blocks: caught from the model itself, kept, and made again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hf_prune.activation_store import ActivationStore


@dataclass(frozen=True)
class Call:
    """How the model calls one block: everything but the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keyword: bool  # whether the hidden states come as the keyword `hidden_states`


def run_block(block: nn.Module, call: Call, hidden: torch.Tensor) -> Any:
    """Call a block as its model would."""
    if call.keyword:
        return block(hidden_states=hidden, **call.kwargs)
    return block(hidden, *call.args, **call.kwargs)


def first(output: Any) -> torch.Tensor:
    """The hidden states in what a block returns."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def replaced_forwards(blocks: nn.ModuleList, stub: Callable[[Call, Any], Any]) -> Iterator[None]:
    """Let a stub answer in place of each block, told how it was called and with which hidden states."""

    # The forward of each block is replaced, not the block: the model reads attributes of its blocks in between.
    def forward(*args: Any, **kwargs: Any) -> Any:
        keyword = not args
        hidden = kwargs.pop("hidden_states") if keyword else args[0]
        return stub(Call(args[1:], kwargs, keyword), hidden)

    saved = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.__dict__["forward"] = forward
        yield
    finally:
        for block, own in zip(blocks, saved, strict=True):
            block.__dict__.pop("forward")
            if own is not None:
                block.__dict__["forward"] = own


@dataclass(frozen=True)
class _Kept:
    """The key of a tensor in the store."""

    number: int


class KeptCalls:
    """How every block is called with every batch: the tensors in a store, once for all that share them.

    Args:
        store: where masks and positions go.
    """

    def __init__(self, store: ActivationStore) -> None:
        self._store = store
        self._calls: dict[int, list[tuple[TreeSpec, list[Any], bool]]] = {}
        self._last: list[tuple[torch.Tensor, _Kept]] = []
        self._number = 0

    def keep(self, batch: int, calls: Sequence[Call]) -> None:
        """Keep the calls of one batch."""
        before, self._last = self._last, []
        kept: list[tuple[TreeSpec, list[Any], bool]] = []
        for call in calls:
            leaves, spec = tree_flatten((call.args, call.kwargs))
            stored = [self._stored(leaf, before) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
            kept.append((spec, stored, call.keyword))
        self._calls[batch] = kept

    def get(self, batch: int, layer: int, device: torch.device) -> Call:
        """The call of one block with one batch, its tensors on a device."""
        spec, stored, keyword = self._calls[batch][layer]
        leaves = [self._store[leaf].to(device) if isinstance(leaf, _Kept) else leaf for leaf in stored]
        args, kwargs = tree_unflatten(leaves, spec)
        return Call(args, kwargs, keyword)

    def _stored(self, tensor: torch.Tensor, before: Sequence[tuple[torch.Tensor, _Kept]]) -> _Kept:
        # Blocks of a batch share the very tensors; batches of one length mostly have equal ones.
        key = next((key for known, key in self._last if known is tensor), None)
        if key is None:
            key = next((key for known, key in before if _same(known, tensor)), None)
            if key is None:
                key = _Kept(self._number)
                self._number += 1
                self._store[key] = tensor
            self._last.append((tensor, key))
        return key


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    layout = (one.dtype, one.shape, one.stride()) == (two.dtype, two.shape, two.stride())
    return layout and one.device == two.device and torch.equal(one, two)
