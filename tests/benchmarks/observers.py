"""What all measures of one pass cost together: one walk with all of them looking on, beside a walk with none.

Llama-3.2-1B shapes with random bf16 weights. The memory is what the process grew by above the walk without observers;
what any of them must hold at least is the hidden states of one batch at all layers.
"""

import gc
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from hf_prune.evaluation.speed import growth
from hf_prune.observing import Observer
from hf_prune.registry import measure
from hf_prune.runner import Walker
from hf_prune.samples import Batch, batches

from .measure import Shape, build

RUNS = 3


def main(small: bool = False, shape: Shape = Shape()) -> dict[str, Any]:  # noqa: B008 (frozen)
    """Time and weigh each measure alone, and all at once.

    Args:
        small: two layers and a few tokens, which proves that it runs.
        shape: what is timed.
    """
    shape = Shape(2, 8, 1) if small else shape
    decoder = build(layers=2 if small else 16)
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, 4096, (shape.length,), generator=generator) for _ in range(shape.sequences)]
    work = list(batches(sequences, shape.batch))
    names = [entry.name for entry in measure if entry.needs == "pass"]
    one = work[0].input_ids.numel() * decoder.config.hidden_size * 2
    walker = Walker(decoder)
    walker.walk(work[:1])  # warm-up
    return {
        "tokens": shape.sequences * shape.length,
        "layers": decoder.num_layers,
        "bytes of one batch's states at all layers": one * (decoder.num_layers + 1),
        "each alone": {name: _cost(walker, work, [name]) for name in names},
        "all at once": _cost(walker, work, names),
    }


def _cost(walker: Walker, work: Sequence[Batch], names: Sequence[str]) -> dict[str, float]:
    """Time over that of a walk without observers, in pairs, and bytes that the process grows by beyond that walk's."""
    ratios = []
    for _ in range(RUNS):
        bare = walker.walk(work)
        gc.collect()
        ratios.append(walker.walk(work, _observers(names)) / bare)
    without = growth(lambda: walker.walk(work[:1]))
    with_all = growth(lambda: walker.walk(work[:1], _observers(names)))
    return {
        "time over a bare walk (median of pairs)": round(statistics.median(ratios), 2),
        "memory above it, bytes": max(0, with_all - without),
    }


def _observers(names: Sequence[str]) -> list[Observer]:
    return [measure.get(name).function() for name in names]
