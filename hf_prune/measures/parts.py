"""How much attention and MLP of each block change the residual stream."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from hf_prune.architecture.sublayers import has_part, part_modules, silenced
from hf_prune.block_calls import first
from hf_prune.measures.influence import turned
from hf_prune.measures.means import TokenSums, Value, add_samples, spans
from hf_prune.observing import Place
from hf_prune.registry import measure
from hf_prune.units import Part

PARTS: tuple[Part, Part] = ("attention", "mlp")


@measure(
    "sublayer_cosine",
    title="How far attention and MLP of each block turn the residual stream",
    url="https://arxiv.org/abs/2406.15786",
    needs="pass",
    scores=("attention", "mlp"),
)
def sublayer_cosine(*, skip_first: bool = False) -> "PartMeans":
    """1 - E cos(x, x + f(norm x)) of attention and of MLP, in [0, 2] (LLM-Drop).

    x is what the part reads of the residual stream: where MLP comes behind attention, it is what attention has left
    there. Each block runs twice (three times where both of its parts read the same), once without its MLP.

    Args:
        skip_first: leave out the first token of each sample, where many models keep a huge activation.
    """
    return PartMeans(turned, skip_first)


class PartMeans:
    """Running mean of a number of each token, for attention and MLP of each layer.

    What stands in the stream between the two is taken from the block itself, exactly and whatever the family: the
    block runs once more with its MLP silenced, and that output is what the MLP was added to. Where the MLP reads the
    same with attention silenced, both read the block's input (parallel blocks: GPT-J, GPT-NeoX, Falcon, ...). The MLP
    then starts from that input too, and what it makes of it is the output of the block with attention silenced. Which
    of the two it is shows in the bits of what the MLP reads, in the first batch where attention writes something.

    Blocks that the observer is never shown, and parts that a block does not have or that cannot be told from the rest
    of it, have no mean.

    Args:
        value: see `Value`; given the states that a part reads from, and those with what it adds.
        skip_first: leave out the first real token of each sample.
    """

    most_runs = 1 + len(PARTS)

    def __init__(self, value: Value, skip_first: bool = False) -> None:
        self._value, self._skip = value, bool(skip_first)
        self._seen = {part: TokenSums(0) for part in PARTS}
        self._parallel: dict[int, bool] = {}
        self._inside: dict[Part, tuple[torch.Tensor, torch.Tensor]] = {}
        self._runs = torch.zeros(2, dtype=torch.float64)  # blocks that were shown, and how often they ran

    @contextmanager
    def around(self, layer: int, block: nn.Module) -> Iterator[None]:
        """Let the block run again, with one of its parts silenced, right after each run."""
        read: list[torch.Tensor] = []

        def reads(_module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
            read.append(_hidden(args, kwargs))

        def ran(_block: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
            self._inside = self._between(layer, block, args, kwargs, first(output), read)

        with ExitStack() as stack:
            for mlp in list(part_modules(block, "mlp").values())[:1]:
                stack.callback(mlp.register_forward_pre_hook(reads, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(ran, with_kwargs=True).remove)
            yield

    def _between(
        self,
        layer: int,
        block: nn.Module,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        output: torch.Tensor,
        read: list[torch.Tensor],
    ) -> dict[Part, tuple[torch.Tensor, torch.Tensor]]:
        """What each part that is there reads from, and what it makes of it."""
        hidden = _hidden(args, kwargs)

        def without(part: Part) -> torch.Tensor:
            self._runs[1] += 1
            with silenced(block, [part]):
                return first(block.forward(*args, **kwargs))  # not the call: that would come back here

        self._runs += 1
        there = [part for part in PARTS if has_part(block, part)]
        if len(there) < len(PARTS):
            # Where the block is that part alone; else what is between it and the rest is not known.
            return {part: (hidden, output) for part in there if _equal(without(part), hidden)}
        middle, parallel = without("mlp"), self._parallel.get(layer)
        alone = output if parallel is False else without("attention")
        if parallel is None and not _equal(middle, hidden):  # else both are the same, and tell nothing
            self._parallel[layer] = parallel = _equal(read[0], read[-1])
        return {"attention": (hidden, middle), "mlp": (hidden, alone) if parallel else (middle, output)}

    def see(self, at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> None:
        """Add one batch's numbers to the layer's sums.

        Raises:
            MeasureError: a sample has no token to measure.
        """
        chosen = spans(mask, skip_first=self._skip)
        inside, self._inside = self._inside, {}
        for part, sums in self._seen.items():
            if not len(sums.table):
                self._seen[part] = sums = TokenSums(at.depth)
            if part in inside:
                add_samples(sums, at.layer, self._value, *inside[part], chosen)

    def sums(self) -> list[torch.Tensor]:
        """(layers, 5) of attention and of MLP, see `TokenSums`; blocks that were shown, and runs of blocks."""
        return [*(sums.table for sums in self._seen.values()), self._runs]

    def result(self) -> dict[str, Any]:
        """`importances` and `importance_errors` of attention and MLP, number of `samples`, and `forwards`."""
        assert self._runs[0], "no batch was seen"
        return {
            "importances": {part: sums.listed(sums.means()) for part, sums in self._seen.items()},
            "importance_errors": {part: sums.listed(sums.errors()) for part, sums in self._seen.items()},
            "samples": max(sums.samples for sums in self._seen.values()),
            "forwards": float(self._runs[1] / self._runs[0]),
        }


def _equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    return one.dtype == two.dtype and torch.equal(one, two.to(one.device))


def _hidden(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states among what a block or its MLP is given."""
    found: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return found
