"""The block walker: batches through the blocks one by one, observers look on, nothing is kept.

The model's own forward runs once a batch with every block replaced by a stub that notes how it is called (masks,
position embeddings, per layer kind) and hands its input on. That costs the embedding alone, and yields the exact call
of every block. The walker then makes those calls itself, so that it decides the order, what is skipped and where the
hidden states rest between two blocks.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from hf_prune.activation_store import ActivationStore
from hf_prune.architecture import Decoder
from hf_prune.block_calls import Call, KeptCalls, first, replaced_forwards, run_block
from hf_prune.block_weights import BlockWeights, ResidentWeights
from hf_prune.errors import ArchitectureError, ConfigError, MeasureError
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
    """Looks on while hidden states pass through the blocks, and adds to running sums.

    One that needs no more than the first blocks says so in an attribute `last_block`, the index of the last of them.
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


def _states_budget(weights: BlockWeights) -> int | None:
    if weights.states_budget is None and weights.device.type == "cuda":
        return torch.cuda.mem_get_info(weights.device)[0] // 4
    return weights.states_budget


def _last_needed(observers: Sequence[Observer], depth: int) -> int:
    return min(
        depth - 1, max((getattr(observer, "last_block", depth - 1) for observer in observers), default=depth - 1)
    )


def _checked(cut: Collection[int], depth: int, name: str) -> frozenset[int]:
    removed = frozenset(cut)
    if not removed <= set(range(depth)) or len(removed) == depth:
        raise ConfigError(
            f"a cut of '{name}' removes the blocks {sorted(removed)}; expected some of 0 to {depth - 1}, not all"
        )
    return removed


class Walker:
    """Runs batches through the blocks of a decoder: in memory batch by batch, else block by block.

    Args:
        decoder: the model; it is put in eval mode while walking.
        weights: where the weights of its blocks are; in memory when None.
        scratch: folder for the hidden states that memory has no room for, see `ActivationStore`.

    Raises:
        ArchitectureError: the model does more between two blocks than hand the hidden states on.
    """

    def __init__(self, decoder: Decoder, weights: BlockWeights | None = None, scratch: Path | None = None) -> None:
        self.decoder = decoder
        self._weights = ResidentWeights(decoder) if weights is None else weights
        self._scratch = scratch
        self._tuples = self._probe() if self._weights.all_at_once else self._probe_with_stubs()

    def walk(
        self,
        batches: Iterable[Batch],
        observers: Sequence[Observer] = (),
        total: int | None = None,
        *,
        cuts: Sequence[Collection[int]] = (),
        leave: Leave | None = None,
    ) -> float:
        """Send every batch through the blocks, once; through each of a few cut models besides.

        Each cut is a branch of hidden states that passes the removed blocks by. Branches are one as long as they have
        passed by the same blocks, and so cost nothing before their first removed block.

        Args:
            batches: on any device.
            observers: called after each block of the whole model. Where each says in `last_block` which block is the
                last that it needs, those behind are neither read nor run.
            total: number of batches, for the progress bar; no bar when None.
            cuts: the blocks that each cut removes.
            leave: told what enters the last norm, for each cut and each batch; needed with cuts.

        Returns:
            Seconds taken.

        Raises:
            ConfigError: a cut names a block that is not there, or leaves none.
            MeasureError: hidden states of the whole model are NaN or infinite; names the first such block. Those of
                cut models may be: that is for `leave` to judge.
            OutputError: the disk has no room for hidden states.
        """
        started = time.perf_counter()
        weights, depth = self._weights, self.decoder.num_layers
        removed = [_checked(cut, depth, self.decoder.name) for cut in cuts]
        needed = depth if cuts else _last_needed(observers, depth) + 1
        with evaluating(self.decoder.model), weights.computing(), torch.inference_mode():
            if weights.all_at_once and not cuts:
                for number, batch in enumerate(tqdm(batches, "measuring", total, unit="batch", disable=total is None)):
                    for layer, inputs, outputs, mask in self.steps(batch, needed):
                        self._show(observers, Place(layer, depth, number), inputs, outputs, mask)
            else:
                self._by_block(batches, observers, needed, total is not None, removed, leave)
        return time.perf_counter() - started

    def _by_block(
        self,
        batches: Iterable[Batch],
        observers: Sequence[Observer],
        needed: int,
        bar: bool,
        cuts: Sequence[frozenset[int]],
        leave: Leave | None,
    ) -> None:
        weights, depth = self._weights, self.decoder.num_layers
        store = ActivationStore(_states_budget(weights), self._scratch)
        calls, masks, whole = KeptCalls(store), [], frozenset[int]()
        with weights.surroundings():
            for number, batch in enumerate(batches):
                store[number, whole], kept = self.calls(batch)
                calls.keep(number, kept)
                masks.append(batch.attention_mask.to(weights.device))
        branches = {whole}
        with closing(weights.blocks(range(needed))) as blocks:
            for layer, block in tqdm(blocks, "measuring", needed, unit="block", disable=not bar):
                # What each cut has removed so far tells its branch.
                behind = {frozenset(i for i in cut if i <= layer) for cut in cuts} | ({whole} if observers else set())
                for number, mask in enumerate(masks):
                    for branch in branches:
                        if branch | {layer} in behind:
                            store.branch((number, branch), (number, branch | {layer}))
                        if branch not in behind:
                            del store[number, branch]
                            continue
                        inputs = store[number, branch].to(weights.device)
                        outputs = first(run_block(block, calls.get(number, layer, weights.device), inputs))
                        if not branch and observers:
                            self._show(observers, Place(layer, depth, number), inputs, outputs, mask)
                        if outputs.dtype != inputs.dtype:  # some models go on in float32 behind their first block
                            del store[number, branch]
                        store[number, branch] = outputs
                branches = behind
        for index, cut in enumerate(cuts):
            for number, mask in enumerate(masks):
                assert leave is not None, "cuts without leave"
                leave(index, number, store[number, cut], mask)

    def _show(
        self, observers: Sequence[Observer], at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor
    ) -> None:
        _check_finite(inputs, outputs, mask, at.layer, at.batch, self.decoder.name)
        for observer in observers:
            observer.see(at, inputs, outputs, mask)

    def steps(
        self, batch: Batch, needed: int | None = None
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """One batch through the first `needed` blocks, or all: (layer, inputs, outputs, mask) after each block."""
        hidden, calls = self.calls(batch)
        for layer, (block, call) in enumerate(zip(self.decoder.blocks[:needed], calls[:needed], strict=True)):
            outputs = first(run_block(block, call, hidden))
            yield layer, hidden, outputs, batch.attention_mask.to(outputs.device)
            hidden = outputs

    def calls(self, batch: Batch) -> tuple[torch.Tensor, list[Call]]:
        """The hidden states entering block 0, and how each block is called."""
        calls: list[Call] = []
        entering: list[torch.Tensor] = []

        def stub(call: Call, hidden: torch.Tensor) -> Any:
            if not entering:
                entering.append(hidden)
            calls.append(call)
            return (hidden,) if self._tuples else hidden

        with replaced_forwards(self.decoder.blocks, stub):
            self._forward(batch.to(self._weights.device))
        if len(calls) != self.decoder.num_layers:
            raise ArchitectureError(
                f"'{self.decoder.name}' calls {len(calls)} blocks in one forward; expected {self.decoder.num_layers}"
            )
        return entering[0], calls

    def _forward(self, batch: Batch) -> None:
        self.decoder.base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)

    def _probe(self) -> bool:
        """Whether blocks return tuples; also proves that walking gives what the model computes."""
        batch = self._probing()
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
            raise self._acts_between()
        return self._tuples

    def _probe_with_stubs(self) -> bool:
        """The same without a block in memory: the model must hand on, untouched, whatever a block returns."""
        model = self.decoder.model
        with evaluating(model), self._weights.computing(), torch.inference_mode(), self._weights.surroundings():
            for tuples in (True, False):
                broken = self._hand_on(tuples)
                if broken is None:
                    return tuples
        raise self._acts_between() from broken

    def _hand_on(self, tuples: bool) -> Exception | None:
        returned: list[torch.Tensor] = []

        def stub(_call: Call, hidden: Any) -> Any:
            if returned and not (isinstance(hidden, torch.Tensor) and torch.equal(hidden, returned[-1])):
                raise _NotHandedOnError
            returned.append(torch.full_like(hidden, len(returned) + 1))
            return (returned[-1],) if tuples else returned[-1]

        try:
            with replaced_forwards(self.decoder.blocks, stub):
                self._forward(self._probing())
        except (_NotHandedOnError, AttributeError, IndexError, TypeError) as error:  # a tuple is no tensor
            return error
        return None

    def _probing(self) -> Batch:
        ids = torch.arange(1, 4, device=self._weights.device).reshape(1, 3)
        return Batch(ids, torch.ones_like(ids))

    def _acts_between(self) -> ArchitectureError:
        return ArchitectureError(
            f"'{self.decoder.name}' ({type(self.decoder.model).__name__}) changes the hidden states between two "
            "blocks; only models that hand them from block to block can be measured"
        )


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


class _NotHandedOnError(Exception):
    """A block does not get what the one before it returned."""


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
