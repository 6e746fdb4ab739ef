"""Zero single weights of all linear maps, those of the lowest scores: no shape changes, nothing stands in."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_prune.errors import ConfigError, MeasureError
from hf_prune.fitting.task import Fitted, Task
from hf_prune.records import Operation
from hf_prune.registry import fitted
from hf_prune.runner import Walker
from hf_prune.samples import batches, by_length
from hf_prune.sparsity.in_order import prune_in_order
from hf_prune.sparsity.maps import LinearMap, linear_maps
from hf_prune.sparsity.masks import count_of, counts_below, keep_by_group, keep_by_map, keep_by_row, packed
from hf_prune.sparsity.norms import InputNorms
from hf_prune.sparsity.options import SparsityOptions
from hf_prune.sparsity.scores import lamp, magnitude, wanda
from hf_prune.sparsity.shares import kept_by_outliers, outlier_share


@fitted(
    "sparsify",
    title="Zero the weights of the lowest scores",
    url="https://arxiv.org/abs/2306.11695",
    cuts="weights",
    needs="text",
)
def sparsify(
    task: Task,
    *,
    scores: str = "wanda",
    allocation: str = "uniform",
    pattern: str = "unstructured",
    multiple: float = 5.0,
    spread: float = 0.08,
    inputs: str | None = None,
) -> Fitted:
    """Zero a share of the weights of all linear maps of the blocks (Wanda, OWL, LAMP, magnitude).

    Wanda compares the weights of each output (row) of a map, magnitude those of a map, and one threshold ("global")
    those of all maps. A share of a map is rounded down to whole weights.

    Args:
        task: model, share and text.
        scores: "wanda" (|W_ij| times the norm of its input), "magnitude", or "lamp" (w^2 over the sum of all w^2 of
            its map that are no smaller).
        allocation: "uniform", the same share of each map; "owl", less from layers where more Wanda scores are
            outliers; "global", one threshold for all maps.
        pattern: "unstructured", "2:4" or "4:8" along the inputs of a map.
        multiple: M of OWL: outliers are above M times the mean score of their layer.
        spread: lambda of OWL: shares of two layers differ by at most twice as much.
        inputs: of Wanda: "pruned", what pruned blocks before send (the paper's), "dense", what the whole model sends;
            None is "pruned" where maps are pruned one by one.

    Raises:
        ConfigError: an option or the share means nothing, or they contradict each other.
        ArchitectureError: the model holds fused experts, or is quantized, or a width is no multiple of the pattern.
        MeasureError: weights, or what enters the maps, are NaN or infinite.
    """
    options = SparsityOptions(scores, allocation, pattern, multiple, spread, inputs)  # type: ignore[arg-type]
    if task.sparsity is None:
        raise ConfigError("surgery 'sparsify' zeroes a share of the weights; the plan names none. Give sparsity")
    maps = linear_maps(task.decoder)
    _check(maps, options, task.decoder.name)
    chooser = _Chooser(maps, options, task.sparsity, task.decoder.num_layers)
    norms = None
    if options.reads_text and not (options.in_order and options.allocation == "uniform"):
        norms = _norms(task, maps)
    notes: tuple[str, ...] = ()
    if options.allocation == "global":
        masks = chooser.under_one_threshold(norms)
    else:
        shares = (task.sparsity,) * task.decoder.num_layers
        if options.allocation == "owl":
            assert norms is not None
            shares, notes = chooser.by_outliers(norms)

        def choose(each: LinearMap, of_inputs: torch.Tensor | None) -> torch.Tensor:
            return chooser.of_map(each, of_inputs, shares[each.layer])

        if options.in_order:
            masks = prune_in_order(task, maps, choose)
        else:
            masks = [choose(each, None if norms is None else norms.of(each)).cpu() for each in maps]
    layers = tuple(range(task.decoder.num_layers))
    return Fitted(
        (Operation("mask", layers),),
        {f"{each.layer}.{each.name}": packed(each.as_matrix(keep)) for each, keep in zip(maps, masks, strict=True)},
        (*_counted(maps, masks, task.sparsity), *notes),
    )


def _check(maps: Sequence[LinearMap], options: SparsityOptions, name: str) -> None:
    for each in maps:
        if not torch.isfinite(each.weight).all():
            raise MeasureError(f"{each} of '{name}' holds NaN or infinite weights; expected finite ones")
        inputs = each.matrix.shape[1]
        if options.group is not None and inputs % options.group[1]:
            raise ConfigError(
                f"pattern={options.pattern!r}: {each} of '{name}' has {inputs} inputs; expected a multiple of "
                f"{options.group[1]}. Take pattern='unstructured'"
            )


def _norms(task: Task, maps: Sequence[LinearMap]) -> InputNorms:
    """The inputs of all maps of the whole model, in one pass."""
    norms = InputNorms(maps)
    work = list(batches(by_length(task.sequences), task.batch_size))
    Walker(task.decoder, scratch=task.scratch).walk(work, [norms], len(work) if task.progress else None)
    return norms


@dataclass(frozen=True)
class _Chooser:
    """Decides which weights stay.

    Attributes:
        maps: of all blocks.
        options: how to choose.
        sparsity: share that goes.
        depth: blocks that there are.
    """

    maps: Sequence[LinearMap]
    options: SparsityOptions
    sparsity: float
    depth: int

    def scores(self, each: LinearMap, norms: torch.Tensor | None) -> torch.Tensor:
        """(outputs, inputs) float64 of one map."""
        if self.options.scores == "wanda":
            assert norms is not None
            return wanda(each.matrix, norms)
        return lamp(each.matrix) if self.options.scores == "lamp" else magnitude(each.matrix)

    def of_map(self, each: LinearMap, norms: torch.Tensor | None, share: float) -> torch.Tensor:
        """Which weights of one map stay, (outputs, inputs) bool."""
        found = self.scores(each, norms)
        if self.options.group is not None:
            return keep_by_group(found, *self.options.group)
        keep = keep_by_row if self.options.scores == "wanda" else keep_by_map
        return keep(found, count_of(share, found.numel()))

    def by_outliers(self, norms: InputNorms) -> tuple[tuple[float, ...], tuple[str, ...]]:
        """The share of each layer that goes, by OWL, and a sentence on the outliers."""
        outliers, weights = [], []
        for layer in range(self.depth):
            here = [each for each in self.maps if each.layer == layer]
            found = [wanda(each.matrix, norms.of(each)) for each in here]
            outliers.append(outlier_share(found, self.options.multiple))
            weights.append(sum(each.weight.numel() for each in here))
        kept = kept_by_outliers(outliers, self.sparsity, self.options.spread, weights)
        note = (
            f"Of the Wanda scores of a layer, {min(outliers):.3g} to {max(outliers):.3g} % are outliers, above "
            f"{self.options.multiple:g} times their mean; layers with more of them lose less."
        )
        return tuple(1 - share for share in kept), (note,)

    def under_one_threshold(self, norms: InputNorms | None) -> list[torch.Tensor]:
        """Which weights of each map stay where the scores of all maps are compared."""
        every = [self.scores(each, None if norms is None else norms.of(each)).float() for each in self.maps]
        counts = counts_below(every, count_of(self.sparsity, sum(each.numel() for each in every)))
        if self.options.scores == "lamp":
            # Within a map LAMP ranks as magnitude does, whose digits are not rounded away.
            every = [magnitude(each.matrix) for each in self.maps]
        return [keep_by_map(each, count).cpu() for each, count in zip(every, counts, strict=True)]


def _counted(maps: Sequence[LinearMap], masks: Sequence[torch.Tensor], asked: float) -> tuple[str, ...]:
    """What is zero in the end, those that were before included."""
    zeros: dict[int, int] = {}
    weights: dict[int, int] = {}
    empty = []
    for each, keep in zip(maps, masks, strict=True):
        left = int((keep & (each.matrix != 0).cpu()).sum())
        zeros[each.layer] = zeros.get(each.layer, 0) + keep.numel() - left
        weights[each.layer] = weights.get(each.layer, 0) + keep.numel()
        if not left:
            empty.append(str(each))
    total, gone = sum(weights.values()), sum(zeros.values())
    of_layers = ", ".join(f"{100 * zeros[layer] / weights[layer]:.1f}" for layer in weights)
    notes = [
        f"Of {total:,} weights of the linear maps of {len(weights)} blocks, {gone:,} are zero ({gone / total:.2%}; "
        f"{asked:.2%} were asked for); of each layer, in %: {of_layers}."
    ]
    if empty:
        notes.append(f"{len(empty)} linear maps keep no weight at all, such as {empty[0]}.")
    return tuple(notes)
