"""How the time of measuring grows with layers, width, tokens and the number of n, and where that bends.

Random Llamas in the dtype that the processor computes fastest. One thing grows at a time, by doubling; the exponent is
the slope of log time over log size: 1 means twice the size takes twice the time. Theory says 1 for layers and for
tokens as long as sequences keep their length, 2 for width, and between 1 and 2 for the length of a sequence, where
attention takes over from the products. Small sizes fall below, where time does not depend on the size at all. All n
come from one pass, so that their exponent is 0 but for rounding.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaForCausalLM

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.measures.similarity import PairwiseAngles
from hf_prune.planners.window import window
from hf_prune.precision import faster_dtype
from hf_prune.runner import Walker
from hf_prune.samples import Batch
from tests.making import asked, scores

from .checkpoints import Shapes

RUNS = 3
_VOCABULARY = 512


@dataclass(frozen=True)
class Size:
    """What is measured: a model, and a text."""

    layers: int = 4
    width: int = 512
    sequences: int = 4
    length: int = 256


SIZES: dict[str, list[Size]] = {
    "layers": [Size(layers=count) for count in (2, 4, 8, 16, 32)],
    "width": [Size(width=width) for width in (64, 128, 256, 512, 1024, 2048)],
    "tokens, in sequences of 256": [Size(sequences=count) for count in (1, 2, 4, 8, 16, 32)],
    "tokens, in one sequence": [Size(sequences=1, length=length) for length in (64, 128, 256, 512, 1024, 2048, 4096)],
}
"""What is measured, by what grows."""

_GROWING: dict[str, Callable[[Size], int]] = {
    "layers": lambda size: size.layers,
    "width": lambda size: size.width,
    "tokens, in sequences of 256": lambda size: size.sequences * size.length,
    "tokens, in one sequence": lambda size: size.length,
}


def main(
    runs: int = RUNS,
    sizes: Mapping[str, Sequence[Size]] = SIZES,
    windows: Size = Size(layers=32, width=256),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Measure all sizes and fit the exponents.

    Args:
        runs: of each size; the fastest counts.
        sizes: as `SIZES`.
        windows: the model for which more and more n are chosen.
    """
    return {
        "dtype": str(_dtype()).removeprefix("torch."),
        "runs": runs,
        **{name: _grown(sizes[name], of, runs) for name, of in _GROWING.items()},
        "number of n": _numbers_of_n(windows, runs),
    }


def exponents(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """The slope of log time over log size: of all together by least squares, and between neighbours.

    Returns:
        The slopes, and where they bend: the sizes from which on a slope stays within 0.25 of the last one, where that
        is not all of them.
    """
    x, y = [math.log(size) for size in sizes], [math.log(second) for second in seconds]
    between = [(d - c) / (b - a) for (a, b), (c, d) in zip(itertools.pairwise(x), itertools.pairwise(y), strict=True)]
    steady = len(between) - 1
    while steady and abs(between[steady - 1] - between[-1]) <= 0.25:
        steady -= 1
    return {
        "exponent": round(statistics.linear_regression(x, y).slope, 2),
        "exponents between neighbours": [round(slope, 2) for slope in between],
        "bends at": sizes[steady] if steady else None,
    }


def _grown(sizes: Sequence[Size], of: Callable[[Size], int], runs: int) -> dict[str, Any]:
    grown = [of(size) for size in sizes]
    seconds = []
    for size in sizes:
        walker, work = Walker(_model(size)), _text(size)
        walker.walk(work, [PairwiseAngles()])
        seconds.append(min(walker.walk(work, [PairwiseAngles()]) for _ in range(runs)))
    return {"size": grown, "seconds": [round(second, 4) for second in seconds], **exponents(grown, seconds)}


def _numbers_of_n(size: Size, runs: int) -> dict[str, Any]:
    """Seconds of the pass and of choosing the best window of each of the first 1, 2, 4, ... n."""
    walker, work = Walker(_model(size)), _text(size)
    counts = [2**power for power in range(size.layers.bit_length() - 1)] + [size.layers - 1]

    def chosen(count: int) -> float:
        started = time.perf_counter()
        observer = PairwiseAngles()
        walker.walk(work, [observer])
        found = observer.result()
        record = scores(found["distances"], found["standard_errors"])
        for number in range(1, count + 1):
            window(asked(record, number, range(size.layers)))
        return time.perf_counter() - started

    chosen(1)
    seconds = [min(chosen(count) for _ in range(runs)) for count in counts]
    return {"size": counts, "seconds": [round(second, 4) for second in seconds], **exponents(counts, seconds)}


def _model(size: Size) -> Decoder:
    shapes = Shapes(size.width, 3 * size.width, size.layers, max(1, size.width // 64), _VOCABULARY)
    torch.manual_seed(0)
    return decoder_of(LlamaForCausalLM(shapes.config()).to(_dtype()).eval())


def _text(size: Size) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(_VOCABULARY, (size.sequences, size.length), generator=generator)
    return [Batch(group, torch.ones_like(group)) for group in ids.split(4)]


def _dtype() -> torch.dtype:
    return faster_dtype(torch.device("cpu"), torch.bfloat16)
