"""Block by block: each is pruned by the inputs that the pruned blocks before it send."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from hf_prune.activation_store import ActivationStore
from hf_prune.block_calls import KeptCalls, first, run_block
from hf_prune.fitting.task import Task
from hf_prune.observing import Place
from hf_prune.progress import tqdm
from hf_prune.runner import Walker, evaluating
from hf_prune.samples import batches, by_length
from hf_prune.sparsity.maps import LinearMap
from hf_prune.sparsity.norms import InputNorms

Choose = Callable[[LinearMap, torch.Tensor], torch.Tensor]
"""(map, norms of its inputs) -> (outputs, inputs) bool: which of its weights stay."""


def prune_in_order(task: Task, maps: Sequence[LinearMap], choose: Choose) -> list[torch.Tensor]:
    """Choose what stays of each map, behind blocks that are pruned already (Wanda, arXiv:2306.11695, section 3).

    Every block runs twice: whole, while the inputs of its maps are looked at, and pruned, which gives what enters the
    next. Within a block all inputs are those of before it is pruned, as in the released code. The model stays as it
    is.

    Args:
        task: model and text.
        maps: of all blocks, in order.
        choose: decides.

    Returns:
        Of each map (outputs, inputs) bool on the CPU, which weights stay.

    Raises:
        MeasureError: inputs are NaN or infinite, or no token enters a map.
    """
    walker = Walker(task.decoder, scratch=task.scratch)
    norms, store = InputNorms(maps), ActivationStore(folder=task.scratch)
    calls, real, masks = KeptCalls(store), [], []
    with evaluating(task.decoder.model), torch.inference_mode():
        for number, batch in enumerate(batches(by_length(task.sequences), task.batch_size)):
            store[number], each = walker.calls(batch)
            calls.keep(number, each)
            real.append(batch.attention_mask)

        def run(layer: int, number: int) -> torch.Tensor:
            block = task.decoder.blocks[layer]
            device = next(block.parameters()).device
            return first(run_block(block, calls.get(number, layer, device), store[number].to(device)))

        for layer in tqdm(range(task.decoder.num_layers), "pruning", disable=not task.progress, unit="block"):
            for number, mask in enumerate(real):
                with norms.around(layer, task.decoder.blocks[layer]):
                    outputs = run(layer, number)
                    norms.see(Place(layer, task.decoder.num_layers, number), outputs, outputs, mask)
            here = [each for each in maps if each.layer == layer]
            chosen = [choose(each, norms.of(each)).cpu() for each in here]
            masks += chosen
            with _pruned(here, chosen):
                for number in range(len(real)):
                    outputs = run(layer, number)
                    if outputs.dtype != store[number].dtype:  # some models go on in float32 behind their first block
                        del store[number]
                    store[number] = outputs
    return masks


@contextmanager
def _pruned(maps: Sequence[LinearMap], masks: Sequence[torch.Tensor]) -> Iterator[None]:
    """Zero what does not stay, for as long as the context lasts."""
    whole = [each.weight.detach().clone() for each in maps]
    try:
        for each, keep in zip(maps, masks, strict=True):
            each.weight.masked_fill_(~each.as_matrix(keep).to(each.weight.device), 0)
        yield
    finally:
        for each, values in zip(maps, whole, strict=True):
            each.weight.copy_(values)
