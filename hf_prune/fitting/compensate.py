"""A scalar makes up for the magnitude that the blocks which go would have added."""

from collections.abc import Mapping

import torch

from hf_prune.architecture.writes import Writes, check_floating, check_scale_free, writes_of
from hf_prune.fitting.seams import Magnitudes, check_text, factors, walk
from hf_prune.fitting.task import Fitted, Task, drop
from hf_prune.records import Operation, ranges
from hf_prune.registry import fitted


@fitted(
    "compensate",
    title="Drop, and rescale what later blocks write to the magnitude that is left",
    url="https://arxiv.org/abs/2507.18212",
    needs="text",
)
def compensate(task: Task) -> Fitted:
    """Prune&Comp: where blocks s … s+n-1 go, the stream should come out of the seam α times as large.

    α = E|h_(s+n)| / E|h_s|, the ratio of the mean absolute values over all real tokens and channels, both measured on
    the original in one pass. No code was released; the paper states the ratio of magnitudes, and how it averages over
    channels is our reading.

    The paper multiplies the embeddings and all writes in front of the seam by α, which breaks models whose embeddings
    are tied to the head, and leaves out learned positions. We divide all writes BEHIND the seam by α instead: every
    state behind it is that of the paper divided by α, which the norm in front of each sublayer and of the head undoes
    (up to its eps, whose share grows by α²). Several windows multiply: what stands behind all of them is divided by
    the product. A window with no block behind it needs nothing at all.

    Where a norm follows each sublayer, its gains are divided; where none stands in front of the MLP (OLMo 2), what
    the MLP reads is multiplied by α. Both are exact as well.

    Args:
        task: what goes of which model.

    Raises:
        ArchitectureError: which weights write into the stream is not known of the architecture, or the magnitude of
            the stream matters to it.
        CheckpointError: the weights are quantized.
        ConfigError: there is no text.
        MeasureError: the stream is zero at a seam.
    """
    check_scale_free(task.decoder)
    check_text(task, "compensate")
    windows = task.windows()
    behind = [i for i in range(windows[0].stop, task.decoder.num_layers) if i not in task.layers]
    writes = {layer: writes_of(task.decoder, layer) for layer in behind}
    for layer in behind:
        check_floating(task.decoder, layer)
    seen = Magnitudes()
    walk(task, [task.sequences], [seen])
    found = factors(seen.result()["magnitudes"], windows, task.decoder.name)
    notes = tuple(
        f"The residual stream is {factor:.4f} times as large behind layers {ranges(window.layers)} as in front of "
        "them"
        + (
            ": what later blocks write is divided by that."
            if any(layer >= window.stop for layer in behind)
            else "; no block comes behind them, and the last norm makes up for it."
        )
        for window, factor in zip(windows, found, strict=True)
    )
    products = {layer: _product(found, [w.stop <= layer for w in windows]) for layer in behind}
    scales, tensors, replaced = _rescale(task, writes, products)
    return Fitted((*scales, *replaced, drop(task.layers)), tensors, notes)


def _product(found: tuple[float, ...], counts: list[bool]) -> float:
    product = 1.0
    for factor, count in zip(found, counts, strict=True):
        product *= factor if count else 1.0
    return product


def _rescale(
    task: Task, writes: Mapping[int, Writes], products: Mapping[int, float]
) -> tuple[list[Operation], dict[str, torch.Tensor], list[Operation]]:
    """Operations that divide what each block writes by its factor.

    Returns:
        Those that multiply weights; tensors that stand in where multiplying would not do; the operation that puts
        them there, if any.
    """
    groups: dict[tuple[float, tuple[str, ...]], list[int]] = {}
    tensors: dict[str, torch.Tensor] = {}
    shifted = [layer for layer in writes if writes[layer].offset]
    for layer, found in writes.items():
        if found.reads:
            groups.setdefault((products[layer], found.reads), []).append(layer)
        if not found.offset:
            groups.setdefault((1 / products[layer], found.all), []).append(layer)
            continue
        for name in found.all:
            gains = task.decoder.blocks[layer].get_parameter(name).detach().cpu().double()
            # A norm that acts as 1 + w: (1 + w') = (1 + w) / α.
            moved = (gains + found.offset) / products[layer] - found.offset
            tensors[f"{shifted.index(layer)}.{name}"] = moved.float()
    scales = [
        Operation("scale", tuple(layers), {"weights": list(names), "factor": factor})
        for (factor, names), layers in groups.items()
    ]
    return scales, tensors, [Operation("replace", tuple(shifted))] if shifted else []
