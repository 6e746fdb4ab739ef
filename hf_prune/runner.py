"""The block walker: batches through the blocks one by one, observers look on, nothing is kept.

The model's own forward runs once a batch with every block replaced by a stub that notes how it is called (masks,
position embeddings, per layer kind) and hands its input on. That costs the embedding alone, and yields the exact call
of every block. The walker then makes those calls itself, so that it decides the order, what is skipped and where the
hidden states rest between two blocks.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from hf_prune.architecture import Decoder
from hf_prune.architecture.decoder import first_device
from hf_prune.errors import ArchitectureError, MeasureError
from hf_prune.precision import fast_arithmetic
from hf_prune.progress import tqdm
from hf_prune.samples import Batch


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
    """Looks on while hidden states pass through the blocks, and adds to running sums."""

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

    def result(self) -> dict[str, Any]:
        """What was found, once all batches have passed."""
        ...


@dataclass(frozen=True)
class Call:
    """How the model calls one block: everything but the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keyword: bool  # whether the hidden states come as the keyword `hidden_states`


class Walker:
    """Runs batches through the blocks of a decoder that is in memory.

    Args:
        decoder: the model; it is put in eval mode while walking.

    Raises:
        ArchitectureError: the model does more between two blocks than hand the hidden states on.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._tuples = self._probe()

    def walk(self, batches: Iterable[Batch], observers: Sequence[Observer], total: int | None = None) -> float:
        """Send every batch through all blocks, once.

        Args:
            batches: on any device.
            observers: called after each block.
            total: number of batches, for the progress bar; no bar when None.

        Returns:
            Seconds taken.

        Raises:
            MeasureError: hidden states are NaN or infinite; names the first such block.
        """
        started = time.perf_counter()
        model = self.decoder.model
        with evaluating(model), fast_arithmetic(model), torch.inference_mode():
            for number, batch in enumerate(tqdm(batches, "measuring", total, unit="batch", disable=total is None)):
                for layer, inputs, outputs, mask in self.steps(batch):
                    _check_finite(inputs, outputs, mask, layer, number, self.decoder.name)
                    place = Place(layer, self.decoder.num_layers, number)
                    for observer in observers:
                        observer.see(place, inputs, outputs, mask)
        return time.perf_counter() - started

    def steps(self, batch: Batch) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """One batch through all blocks: (layer, inputs, outputs, mask) after each block."""
        hidden, calls = self.calls(batch)
        for layer, (block, call) in enumerate(zip(self.decoder.blocks, calls, strict=True)):
            outputs = first(run_block(block, call, hidden))
            yield layer, hidden, outputs, batch.attention_mask.to(outputs.device)
            hidden = outputs

    def calls(self, batch: Batch) -> tuple[torch.Tensor, list[Call]]:
        """The hidden states entering block 0, and how each block is called."""
        batch = batch.to(first_device(self.decoder.model))
        calls: list[Call] = []
        entering: list[torch.Tensor] = []

        def stub(*args: Any, **kwargs: Any) -> Any:
            keyword = not args
            hidden = kwargs.pop("hidden_states") if keyword else args[0]
            if not entering:
                entering.append(hidden)
            calls.append(Call(args[1:], kwargs, keyword))
            return (hidden,) if self._tuples else hidden

        with _replaced_forwards(self.decoder.blocks, stub):
            self._forward(batch)
        if len(calls) != self.decoder.num_layers:
            raise ArchitectureError(
                f"'{self.decoder.name}' calls {len(calls)} blocks in one forward; expected {self.decoder.num_layers}"
            )
        return entering[0], calls

    def _forward(self, batch: Batch) -> None:
        self.decoder.base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)

    def _probe(self) -> bool:
        """Whether blocks return tuples; also proves that walking gives what the model computes."""
        device = first_device(self.decoder.model)
        ids = torch.arange(1, 4, device=device).reshape(1, 3)
        batch = Batch(ids, torch.ones_like(ids))
        seen: list[Any] = []
        last = self.decoder.blocks[-1]
        handle = last.register_forward_hook(lambda _module, _args, output: seen.append(output))
        try:
            with evaluating(self.decoder.model), torch.inference_mode():
                self._forward(batch)
                handle.remove()
                self._tuples = bool(seen) and isinstance(seen[0], tuple)
                *_, (_, _, walked, _) = self.steps(batch)
        finally:
            handle.remove()
        expected = first(seen[0])
        if not torch.equal(torch.nan_to_num(expected), torch.nan_to_num(walked)):
            raise ArchitectureError(
                f"'{self.decoder.name}' ({type(self.decoder.model).__name__}) changes the hidden states between two "
                "blocks; only models that hand them from block to block can be measured"
            )
        return self._tuples


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode and put back the mode that each of its modules was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _replaced_forwards(blocks: nn.ModuleList, stub: Callable[..., Any]) -> Iterator[None]:
    # The forward of each block is replaced, not the block: the model reads attributes of its blocks in between.
    saved = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.__dict__["forward"] = stub
        yield
    finally:
        for block, forward in zip(blocks, saved, strict=True):
            block.__dict__.pop("forward")
            if forward is not None:
                block.__dict__["forward"] = forward


def run_block(block: nn.Module, call: Call, hidden: torch.Tensor) -> Any:
    """Call a block as its model would."""
    if call.keyword:
        return block(hidden_states=hidden, **call.kwargs)
    return block(hidden, *call.args, **call.kwargs)


def first(output: Any) -> torch.Tensor:
    """The hidden states in what a block returns."""
    return output[0] if isinstance(output, tuple) else output


def _check_finite(
    inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor, layer: int, batch: int, name: str
) -> None:
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
