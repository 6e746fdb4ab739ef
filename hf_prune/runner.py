"""The block walker: batches through the blocks one by one, observers look on, nothing is kept.

The model's own forward runs once a batch with every block replaced by a stub that notes how it is called (masks,
position embeddings, per layer kind) and hands its input on. That costs the embedding alone, and yields the exact call
of every block. The walker then makes those calls itself, so that it decides the order, what is skipped and where the
hidden states rest between two blocks.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_prune.activation_store import ActivationStore
from hf_prune.architecture import Decoder
from hf_prune.architecture.sublayers import silenced
from hf_prune.block_calls import Call, KeptCalls, first, replaced_forwards, run_block
from hf_prune.block_weights import BlockWeights, ResidentWeights
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.observing import Leave, Observer, Place, check_finite, last_needed, looking_in
from hf_prune.progress import tqdm
from hf_prune.samples import Batch
from hf_prune.tries import Branching, Removed, branchings
from hf_prune.units import Unit, as_cut


def _states_budget(weights: BlockWeights) -> int | None:
    if weights.states_budget is None and weights.device.type == "cuda":
        return torch.cuda.mem_get_info(weights.device)[0] // 4
    return weights.states_budget


def _checked(cut: Collection[int | Unit], depth: int, name: str) -> frozenset[Unit]:
    removed = as_cut(cut)
    if not {unit.layer for unit in removed} <= set(range(depth)):
        raise ConfigError(
            f"a cut of '{name}' removes {', '.join(map(str, sorted(removed)))}; expected some of blocks 0 to "
            f"{depth - 1}"
        )
    return removed


@dataclass(frozen=True)
class _Passing:
    """A batch on its way, and how every block is called with it."""

    number: int
    calls: Sequence[Call]
    mask: torch.Tensor


@dataclass(frozen=True)
class _Looked:
    """Who looks at which branch, and who is told of the ends of the others."""

    observers: Sequence[Observer]
    index: int
    leave: Leave | None

    def at(self, tree: Branching) -> Sequence[Observer]:
        return self.observers if self.index in tree.members else ()


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
        self.tuples = self._probe() if self._weights.all_at_once else self._probe_with_stubs()

    def walk(
        self,
        batches: Iterable[Batch],
        observers: Sequence[Observer] = (),
        total: int | None = None,
        *,
        cuts: Sequence[Collection[int | Unit]] = (),
        leave: Leave | None = None,
        seen: Collection[int | Unit] = (),
    ) -> float:
        """Send every batch through the blocks, once; through each of some cut models besides.

        Each cut is a branch of hidden states that passes the removed blocks by. Branches are one as long as they have
        passed by the same blocks: hidden states before the first difference are never computed twice.

        Args:
            batches: on any device.
            observers: called after each block of the whole model. Where each says in `last_block` which block is the
                last that it needs, those behind are neither read nor run.
            total: number of batches, for the progress bar; no bar when None.
            cuts: what each cut removes: blocks, by index, or parts of them. Where all blocks go, the embeddings enter
                the last norm.
            leave: told what enters the last norm, for each cut and each batch (one batch after the other, and within
                one the first cut first, the others in any order); needed with cuts.
            seen: what the model that the observers look at lacks; nothing of the whole one. They are not shown
                blocks that are gone.

        Returns:
            Seconds taken.

        Raises:
            ConfigError: a cut names a block that is not there.
            MeasureError: hidden states of the whole model are NaN or infinite; names the first such block. Those of
                cut models may be: that is for `leave` to judge.
            OutputError: the disk has no room for hidden states.
        """
        started = time.perf_counter()
        weights, depth = self._weights, self.decoder.num_layers
        removed = [_checked(cut, depth, self.decoder.name) for cut in cuts]
        shown = _checked(seen, depth, self.decoder.name)
        needed = depth if cuts else last_needed(observers, depth) + 1
        # What memory is left is shared by all who keep hidden states.
        keepers = [observer.keep_in for observer in observers if hasattr(observer, "keep_in")]
        bound = weights.states_budget
        for keep_in in keepers:
            keep_in(self._scratch, None if bound is None else bound // (1 + len(keepers)))
        with evaluating(self.decoder.model), weights.computing(), torch.inference_mode():
            if weights.all_at_once:
                # The model that is looked at is one more branch, the last one.
                tree = branchings([*removed, *([shown] if observers or not removed else [])], needed)
                looked = _Looked(observers, len(removed), leave)
                for number, batch in enumerate(tqdm(batches, "measuring", total, unit="batch", disable=total is None)):
                    hidden, calls = self.calls(batch)
                    mask = batch.attention_mask.to(weights.device)
                    self._on(tree, 0, hidden, _Passing(number, calls, mask), looked)
            else:
                budget = _states_budget(weights)
                store = ActivationStore(None if budget is None else budget // (1 + len(keepers)), self._scratch)
                self._by_block(batches, store, observers, needed, total is not None, removed, leave, shown)
        return time.perf_counter() - started

    def _on(self, tree: Branching, layer: int, hidden: torch.Tensor, batch: "_Passing", looked: "_Looked") -> None:
        """One branch on to its end; where it divides, one of its parts after the other."""
        for gone in tree.shared:
            hidden = self._through(layer, gone, hidden, batch, looked.at(tree))
            layer += 1
        if tree.ends:
            for index in tree.members:
                if index != looked.index:
                    assert looked.leave is not None, "cuts without leave"
                    looked.leave(index, batch.number, hidden, batch.mask)
        for gone, rest in tree.branches:
            self._on(rest, layer + 1, self._through(layer, gone, hidden, batch, looked.at(rest)), batch, looked)

    def _through(
        self, layer: int, gone: Removed, hidden: torch.Tensor, batch: "_Passing", looking: Sequence[Observer]
    ) -> torch.Tensor:
        if gone.whole:
            return hidden
        block = self.decoder.blocks[layer]
        with looking_in(looking, layer, block), silenced(block, gone.parts):
            outputs = first(run_block(block, batch.calls[layer], hidden))
        if looking:
            place = Place(layer, self.decoder.num_layers, batch.number)
            self._show(looking, place, hidden, outputs, batch.mask.to(outputs.device))
        return outputs

    def _by_block(
        self,
        batches: Iterable[Batch],
        store: ActivationStore,
        observers: Sequence[Observer],
        needed: int,
        bar: bool,
        cuts: Sequence[frozenset[Unit]],
        leave: Leave | None,
        shown: frozenset[Unit],
    ) -> None:
        weights, depth = self._weights, self.decoder.num_layers
        calls, masks, none = KeptCalls(store), [], frozenset[Unit]()
        wanted = [*cuts, *([shown] if observers or not cuts else [])]
        with weights.surroundings():
            for number, batch in enumerate(batches):
                store[number, none], kept = self.calls(batch)
                calls.keep(number, kept)
                masks.append(batch.attention_mask.to(weights.device))
        branches = {none}
        with closing(weights.blocks(range(needed))) as blocks:
            for layer, block in tqdm(blocks, "measuring", needed, unit="block", disable=not bar):
                # What each cut has removed so far tells its branch.
                behind = {frozenset(unit for unit in cut if unit.layer <= layer) for cut in wanted}
                watched = frozenset(unit for unit in shown if unit.layer <= layer)
                for number, mask in enumerate(masks):
                    for branch in branches:
                        after = [more for more in behind if {unit for unit in more if unit.layer < layer} == branch]
                        after.sort(key=lambda more: more == branch)  # its own key last: that overwrites `before`
                        before = store[number, branch].to(weights.device)
                        for more in after:
                            outputs, gone = before, Removed.at(layer, more)
                            looking = observers if more == watched and not gone.whole else ()
                            if not gone.whole:
                                call = calls.get(number, layer, weights.device)
                                with looking_in(looking, layer, block), silenced(block, gone.parts):
                                    outputs = first(run_block(block, call, before))
                            if looking:
                                self._show(looking, Place(layer, depth, number), before, outputs, mask)
                            # Some models go on in float32 behind their first block.
                            if more is after[-1] and (more != branch or outputs.dtype != before.dtype):
                                del store[number, branch]
                            store[number, more] = outputs
                branches = behind
        for number, mask in enumerate(masks):
            for index, cut in enumerate(cuts):
                assert leave is not None, "cuts without leave"
                leave(index, number, store[number, cut], mask)

    def _show(
        self, observers: Sequence[Observer], at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor
    ) -> None:
        check_finite(inputs, outputs, mask, at.layer, at.batch, self.decoder.name)
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
            return (hidden,) if self.tuples else hidden

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
                self.tuples = bool(seen) and isinstance(seen[0], tuple)
                *_, (_, _, walked, _) = self.steps(batch)
        finally:
            handle.remove()
        expected = first(seen[0])
        if not torch.equal(torch.nan_to_num(expected), torch.nan_to_num(walked)):
            raise self._acts_between()
        return self.tuples

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
