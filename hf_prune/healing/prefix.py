"""The frozen prefix: blocks below all that is trained, whose hidden states need not be computed again."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from hf_prune.architecture import Decoder
from hf_prune.block_calls import Call, replaced_forwards
from hf_prune.errors import ConfigError
from hf_prune.healing.held_out import evaluation_mode
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

    def keep(self, inputs: Inputs, hidden: torch.Tensor) -> None:
        """Told what entered block `depth` where the model has computed it: (batch, length, width)."""
        ...


class Shared:
    """The original computes the prefix for both models; it is the same in both.

    Args:
        depth: blocks of the prefix; the original's view has what leaves them.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def hidden(self, inputs: Inputs, teacher: TeacherView | None) -> torch.Tensor | None:
        """See `Prefix`."""
        assert teacher is not None and teacher.prefix is not None
        return teacher.prefix

    def keep(self, inputs: Inputs, hidden: torch.Tensor) -> None:
        """See `Prefix`; the original always computes them."""
        raise AssertionError("the original did not compute what enters the pruned model")


@dataclass(frozen=True)
class Choice:
    """What is done about the frozen prefix.

    Attributes:
        way: as `HealingConfig.prefix`.
        reason: why, one sentence for people.
        note: sentence for the record where it is not worth what was asked for.
    """

    way: Literal["recompute", "share", "store"]
    reason: str
    note: str | None = None


def frozen_depth(lowest: int, positions: Collection[int]) -> int:
    """Blocks below all that is trained, and below all places at which hidden states are compared.

    Args:
        lowest: block that holds the lowest trained tensor.
        positions: see `step.compared_positions`.
    """
    return min([lowest, *positions])


def choose_prefix(
    asked: str | None,
    *,
    frozen: int,
    shared: int,
    passes: float,
    size: int,
    room: int,
    unfit: str | None = None,
) -> Choice:
    """Decide what is done about the frozen prefix, or refuse what was asked for.

    Over E passes, what is stored spares (E - 1) / E of the prefix; what is shared spares the shared part of it always.

    Args:
        asked: `HealingConfig.prefix`.
        frozen: see `frozen_depth`.
        shared: those of these blocks that a resident original computes too, to the bit alike; 0 without an original.
        passes: of training over its rows.
        size: bytes that the hidden states of all rows take.
        room: bytes that they may take.
        unfit: why this model cannot begin behind its prefix, where it cannot.

    Raises:
        ConfigError: "store" or "share" was asked for, and there is nothing to store or share, or no room.
    """
    if asked in ("store", "share"):
        _refuse_useless(asked, frozen, shared, size, room, unfit)
        once = "the text is read only once: nothing that is stored is read again, and writing it costs time"
        note = f"healing.prefix='store' does not pay here: {once}." if asked == "store" and passes <= 1 else None
        return Choice("store" if asked == "store" else "share", "as asked", note)
    if asked == "recompute":
        return Choice("recompute", "as asked")
    if frozen == 0:
        return Choice("recompute", "there is no frozen prefix: the first block is trained, or compared")
    if unfit:
        return Choice("recompute", unfit)
    fits = passes >= 2 and size <= room
    if fits and frozen * (passes - 1) / passes > shared:
        return Choice("store", f"{passes:.1f} passes over the text; stored states pay from the second one on")
    if shared:
        return Choice("share", "the original computes it anyway")
    if passes >= 2:
        return Choice("recompute", f"hidden states take {in_bytes(size)}, and {in_bytes(room)} are allowed")
    return Choice("recompute", f"{passes:.1f} passes over the text; stored states would pay from the second one on")


def check_frozen(asked: str | None, frozen: int) -> None:
    """Refuse to share or store a prefix that there is none of.

    Args:
        asked: `HealingConfig.prefix`.
        frozen: see `frozen_depth`.

    Raises:
        ConfigError: no block is frozen.
    """
    if asked in ("store", "share") and frozen == 0:
        raise ConfigError(
            f"healing.prefix={asked!r}, but there is no frozen prefix: block 0 is trained, or hidden states are "
            "compared at it. Train blocks further up (healing.target 'last' or 'seam'), or leave prefix out"
        )


def _refuse_useless(asked: str, frozen: int, shared: int, size: int, room: int, unfit: str | None) -> None:
    check_frozen(asked, frozen)
    if unfit:
        raise ConfigError(f"healing.prefix={asked!r}: {unfit}. Take 'recompute'")
    if asked == "share" and shared == 0:
        raise no_sharing()
    if asked == "store" and size > room:
        raise ConfigError(
            f"healing.prefix='store' takes {in_bytes(size)} on disk; expected at most {in_bytes(room)} "
            "(healing.store_budget, a tenth of the free disk where it is None). Raise the budget, or train on fewer "
            "or shorter texts, or take 'recompute'"
        )


def no_sharing() -> ConfigError:
    """There is nobody to share the prefix with."""
    return ConfigError(
        "healing.prefix='share', but no original model is in memory that computes the same prefix; expected a loss "
        "that compares with it (such as 'kl'), teacher='resident', and first blocks that the cut left alone. Take "
        "'store' or 'recompute'"
    )


def in_bytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 10**7 else f"{count:,} bytes"


def freeze_below(decoder: Decoder, depth: int) -> None:
    """Switch dropout off in the embeddings and the blocks below `depth`, whose output is then one and the same.

    Everything there is to stay as it is anyway. A model's `train()` undoes it.

    Args:
        decoder: the model.
        depth: blocks below all that is trained; 0 changes nothing.
    """
    if depth == 0:
        return
    for block in decoder.blocks[:depth]:
        evaluation_mode(block)
    path = ""
    for name in decoder.blocks_path.split(".")[:-1]:
        path = f"{path}.{name}".lstrip(".")
        around = decoder.model.get_submodule(path)
        around.training = False
        for child in around.children():
            holds_blocks = any(module is decoder.blocks for module in child.modules())
            if not holds_blocks and not any(p.requires_grad for p in child.parameters()):
                evaluation_mode(child)


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
