"""The frozen prefix: blocks below all that is trained, whose hidden states need not be computed again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from hf_prune.architecture import Decoder
from hf_prune.block_calls import Call, replaced_forwards
from hf_prune.healing.view import TeacherView

Inputs = dict[str, torch.Tensor]
"""One micro-batch as `rows.collate` makes it."""


class Prefix(Protocol):
    """Where the hidden states behind the frozen prefix come from.

    Attributes:
        depth: blocks of the prefix.
    """

    depth: int

    def hidden(self, inputs: Inputs, teacher: TeacherView | None) -> torch.Tensor | None:
        """(batch, length, width) entering block `depth`; None where the model is to compute them itself."""
        ...


class Shared:
    """The original computes the prefix for both models; it is the same in both.

    Args:
        depth: blocks of the prefix; the original's view has a state at this position.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def hidden(self, inputs: Inputs, teacher: TeacherView | None) -> torch.Tensor | None:
        """See `Prefix`."""
        assert teacher is not None
        return teacher.states[self.depth]


@contextmanager
def entering(decoder: Decoder, depth: int, hidden: torch.Tensor | None, tuples: bool) -> Iterator[None]:
    """Let the model begin at block `depth` with the hidden states given: the blocks below cost nothing.

    Args:
        decoder: the model.
        depth: blocks to pass by; at least 1 where there are hidden states.
        hidden: (batch, length, width); None changes nothing.
        tuples: whether the model's blocks return tuples.
    """
    if hidden is None:
        yield
        return

    def stub(_call: Call, _hidden: Any) -> Any:
        return (hidden,) if tuples else hidden

    with replaced_forwards(nn.ModuleList(decoder.blocks[:depth]), stub):
        yield


@contextmanager
def capturing(decoder: Decoder, positions: tuple[int, ...]) -> Iterator[dict[int, torch.Tensor]]:
    """The hidden states entering blocks while the model runs: position -> (batch, length, width).

    Args:
        decoder: the model.
        positions: of blocks; the number of blocks stands for what leaves the last one.
    """
    found: dict[int, torch.Tensor] = {}

    def enters(at: int) -> Any:
        def hook(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[at] = args[0] if args else kwargs["hidden_states"]

        return hook

    def leaves(_block: nn.Module, _args: Any, output: Any) -> None:
        found[decoder.num_layers] = output[0] if isinstance(output, tuple) else output

    handles = [
        decoder.blocks[at].register_forward_pre_hook(enters(at), with_kwargs=True)
        for at in positions
        if at < decoder.num_layers
    ]
    if decoder.num_layers in positions:
        handles.append(decoder.blocks[-1].register_forward_hook(leaves))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
