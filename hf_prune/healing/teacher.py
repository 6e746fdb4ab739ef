"""The original model beside the pruned one: what it makes of each micro-batch, and what of it is held twice."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from hf_prune.architecture import Decoder
from hf_prune.architecture.decoder import first_device
from hf_prune.block_calls import Call, replaced_forwards
from hf_prune.healing.cost import Cost, block_costs
from hf_prune.healing.prefix import Inputs, capturing
from hf_prune.healing.rows import MODEL_INPUTS
from hf_prune.healing.view import TeacherView
from hf_prune.runner import evaluating


class Resident:
    """The original in memory; see `step.Teacher`. It always runs without dropout and without gradients.

    Where its predictions are not asked for, neither its head runs nor the blocks behind the last position.

    Args:
        decoder: the original.
        kept: index in it of every block of the pruned model.
        positions: in the pruned model, whose states are told.
        predictions: whether logits are told.
        shared: blocks at the start that the pruned model has too; what leaves them is told. 0 tells nothing.
        device: where to tell them.
        autocast: whether its products run in bfloat16, as those of the pruned model do.
        owned: whether the model is this object's own, in evaluation mode; that of somebody else is put back into the
            mode that it was in.
    """

    def __init__(
        self,
        decoder: Decoder,
        kept: Sequence[int],
        positions: Sequence[int],
        *,
        predictions: bool,
        shared: int = 0,
        device: torch.device,
        autocast: bool = False,
        owned: bool = False,
    ) -> None:
        self.decoder, self._predictions, self._device = decoder, predictions, device
        self.shared, self._autocast, self._owned = shared, autocast, owned
        self._kept, self._positions = tuple(kept), tuple(positions)

    @property
    def _places(self) -> dict[int, int]:
        depth = self.decoder.num_layers
        return {at: self._kept[at] if at < len(self._kept) else depth for at in self._positions}

    @property
    def _stop(self) -> int:
        """The first block that need not run."""
        return self.decoder.num_layers if self._predictions else max([self.shared, *self._places.values()])

    def cost(self, length: int) -> Cost:
        """Operations of its forward.

        Args:
            length: longest row in tokens.
        """
        blocks, head = block_costs(self.decoder, length)
        return sum(blocks[: self._stop], Cost()) + (head if self._predictions else Cost())

    @torch.no_grad()
    def view(self, inputs: Inputs) -> TeacherView:
        """What the original makes of a micro-batch.

        Args:
            inputs: from `rows.collate`, on any device.
        """
        if self._stop == 0:  # nothing is asked
            return TeacherView()
        model, places, shared = self.decoder.model, self._places, self.shared
        device = first_device(model)
        given: dict[str, Any] = {name: inputs[name].to(device) for name in MODEL_INPUTS if name in inputs}
        # Not inference mode: what the original makes may enter a graph of the pruned model.
        with (
            nullcontext() if self._owned else evaluating(model),
            torch.autocast(device.type, torch.bfloat16, enabled=self._autocast),
            capturing(self.decoder, (*places.values(), *((shared,) if shared else ()))) as states,
            _stopping(self.decoder, self._stop),
        ):
            logits = None
            if self._predictions:
                logits = model(**given, use_cache=False).logits.to(self._device)
            else:
                self.decoder.base(**given, use_cache=False)
        found = {place: state.to(self._device) for place, state in states.items()}
        told = {at: found[place] for at, place in places.items()}
        return TeacherView(logits, states=told, prefix=found[shared] if shared else None)


@contextmanager
def _stopping(decoder: Decoder, stop: int) -> Iterator[None]:
    """Let blocks from `stop` on (at least 1) hand on what they get."""
    tuples = False

    def look(_block: nn.Module, _args: Any, output: Any) -> None:
        nonlocal tuples
        tuples = isinstance(output, tuple)

    def hand_on(_call: Call, hidden: torch.Tensor) -> Any:
        return (hidden,) if tuples else hidden

    handle = decoder.blocks[stop - 1].register_forward_hook(look)
    try:
        with replaced_forwards(nn.ModuleList(decoder.blocks[stop:]), hand_on):
            yield
    finally:
        handle.remove()


def in_original(name: str, blocks_path: str, kept: Sequence[int]) -> str:
    """The name in the original of a tensor of the pruned model.

    Args:
        name: full.
        blocks_path: of both models' blocks.
        kept: index in the original of every block of the pruned model.
    """
    prefix = f"{blocks_path}."
    if not name.startswith(prefix):
        return name
    position, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{kept[int(position)]}.{rest}"


def share_tensors(original: Decoder, pruned: Mapping[str, nn.Parameter], kept: Sequence[int]) -> int:
    """Let an original use the pruned model's tensors wherever the two are equal to the bit, and free its own.

    Args:
        original: a copy of nobody else's; its parameters change what they point at.
        pruned: all parameters of the pruned model by the names they had before adapters came. Those that are trained
            stay its own.
        kept: index in the original of every block of the pruned model.

    Returns:
        Bytes that were freed.
    """
    theirs, freed = dict(original.model.named_parameters()), 0
    for name, mine in pruned.items():
        twin = theirs.get(in_original(name, original.blocks_path, kept))
        if twin is not None and not mine.requires_grad and _same(twin, mine):
            if twin.data_ptr() != mine.data_ptr():
                freed += twin.numel() * twin.element_size()
            twin.data = mine.data
    return freed


def same_blocks(
    original: Decoder, pruned: Decoder, parameters: Mapping[str, nn.Parameter], depth: int, kept: Sequence[int]
) -> str | None:
    """Why the first `depth` blocks do not compute the same in both models to the bit; None where they do.

    Args:
        original: on any device.
        pruned: as it was before adapters came; none lies in these blocks.
        parameters: see `share_tensors`; those around the blocks are compared as well, unless they are trained.
        depth: blocks that are compared.
        kept: index in the original of every block of the pruned model; the first `depth` are the first ones there too.

    Returns:
        One clause, such as "'model.layers.0.mlp.up_proj.weight' is bfloat16 in the original and uint8 here".
    """
    ways = [getattr(d.config, "_attn_implementation", None) for d in (original, pruned)]
    if ways[0] != ways[1]:
        return f"attention is computed as {ways[0]} in the original and as {ways[1]} here"
    theirs = dict(original.model.named_parameters())
    pairs: list[tuple[str, torch.Tensor | None, torch.Tensor | None]] = [
        (name, theirs.get(in_original(name, original.blocks_path, kept)), mine)
        for name, mine in parameters.items()
        if not name.startswith(f"{original.blocks_path}.") and not mine.requires_grad
    ]
    for layer in range(depth):
        one, two = (d.blocks[layer].state_dict() for d in (original, pruned))
        pairs += [
            (f"{original.block_prefix(layer)}{name}", one.get(name), two.get(name))
            for name in sorted(one.keys() | two)
        ]
    for name, first, second in pairs:
        if first is None or second is None:
            return f"'{name}' is in one of them alone"
        if first.dtype != second.dtype:
            kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in (first, second)]
            return f"'{name}' is {kinds[0]} in the original and {kinds[1]} here"
        if not _same(first, second):
            return f"'{name}' holds other numbers"
    return None


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    if (one.dtype, one.shape, one.device) != (two.dtype, two.shape, two.device):
        return False
    return one.data_ptr() == two.data_ptr() or torch.equal(one, two)
