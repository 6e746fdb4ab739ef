"""What a plan makes of the numbers of the tensors that are kept: most of it can be done again from the base."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.errors import PruneError
from hf_prune.records import Operation, Plan
from hf_prune.registry import surgery
from hf_prune.surgery.edits import Edit, Edits

EXACT = ("scale", "silence")
"""Operations that say all of what they do; what a "replace" puts in lies in a file that is not shipped."""


@dataclass(frozen=True)
class Edited:
    """What may have become of the tensors of a model.

    Attributes:
        edits: by name of a tensor as it is stored, what was done to its numbers.
        blocks: by position of a block, what was done to tensors of it that are stored under other names than the model
            holds them by: each of the block's may have gone through it, or not.
        fitted: positions of the blocks in which tensors may be new altogether.
        linear: positions of the blocks in which a linear map stands in for attention, or for blocks behind them.
        masked: positions of the blocks in which single numbers may have become zero.
        problems: operations that cannot be done on this model.
    """

    edits: dict[str, tuple[Edit, ...]]
    blocks: dict[int, tuple[Edit, ...]]
    fitted: frozenset[int]
    masked: frozenset[int]
    linear: frozenset[int]
    problems: tuple[str, ...]

    def of(self, name: str, block: int | None) -> list[tuple[Edit, ...]]:
        """What may have been done to a tensor; one of these was.

        Args:
            name: as it is stored.
            block: its position; None where it is in no block.
        """
        own = self.edits.get(name, ())
        others = self.blocks.get(block, ()) if block is not None else ()
        return [own, (*own, *others)] if others else [own]

    @property
    def exact(self) -> bool:
        """Whether anything was done that can be done again."""
        return bool(self.edits or self.blocks)


def edited(plan: Plan, meta: PreTrainedModel, names: Sequence[str]) -> Edited:
    """Look up what a plan does to numbers.

    Args:
        plan: of a model that lost blocks or parts of them.
        meta: the model that came of it, without its weights.
        names: of the tensors that are stored of it.
    """
    decoder, edits, problems = decoder_of(meta), Edits(), []
    place = {layer: position for position, layer in enumerate(plan.kept)}
    fitted: set[int] = set()
    masked: set[int] = set()
    linear: set[int] = set()
    for operation in plan.operations:
        positions = tuple(place[i] for i in operation.layers if i in place)
        if operation.kind == "replace":
            fitted |= set(positions)
        elif operation.kind == "mask":
            masked |= set(positions)
        elif operation.kind in ("linearize", "patch"):
            linear |= set(positions)
        elif operation.kind in EXACT:
            problems += _enter(operation, decoder, positions, edits)
    found: dict[str, tuple[Edit, ...]] = {}
    loose: dict[int, tuple[Edit, ...]] = {}
    stored = set(names)
    for position, block in enumerate(decoder.blocks):
        for name, parameter in block.named_parameters():
            if not (done := edits.of(parameter)):
                continue
            full = f"{decoder.blocks_path}.{position}.{name}"
            bare = full.removeprefix(f"{meta.base_model_prefix}.")
            same = [candidate for candidate in (full, bare) if candidate in stored]
            if same:
                found[same[0]] = done
            else:
                loose[position] = (*loose.get(position, ()), *done)
    return Edited(found, loose, frozenset(fitted), frozenset(masked), frozenset(linear), tuple(problems))


def applied(edits: Sequence[Edit], values: torch.Tensor) -> torch.Tensor:
    """A tensor with everything done to it, in its own dtype.

    Args:
        edits: in order.
        values: the base's, cast to the dtype that the model has.
    """
    flat = values.reshape(-1)
    for edit in edits:
        flat = edit.change(flat, 0)
    return flat.reshape(values.shape)


def masks(values: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether every number is the one before, to the bit, or zero.

    Args:
        values: a tensor.
        before: the same, in its dtype, before single numbers of it became zero.
    """
    if values.shape != before.shape:
        return False
    mine, theirs = (t.contiguous().view(_BITS[t.dtype.itemsize]) for t in (values, before))
    return bool(((mine == theirs) | (mine == 0)).all())


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _enter(operation: Operation, decoder: Decoder, positions: tuple[int, ...], edits: Edits) -> list[str]:
    """Note what an operation does to numbers; what is wrong with it, in words."""
    try:
        entry = surgery.get(operation.kind)
        entry.check_options(operation.options, "surgery")
        if entry.streamed is None:
            return [f"operation '{operation.kind}' cannot be done again without the model in memory"]
        entry.streamed(decoder, positions, edits, **operation.options)
    except PruneError as error:
        return [str(error)]
    return []
