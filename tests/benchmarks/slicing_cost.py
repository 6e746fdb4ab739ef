"""What slicing costs, and what a sliced model saves: seconds by kind of work, peak memory, tokens per second.

A random Llama of about 1 B parameters (hidden 2048, 16 layers), 64 x 1024 tokens. The floor of the time is what cannot
be left out: one forward of each block, one Gram product at each point, one rotation of each weight, the eigenvectors;
each is given as floating point operations beside its seconds.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_prune.architecture import decoder_of
from hf_prune.evaluation.speed import speed
from hf_prune.precision import faster_dtype
from hf_prune.slicing import fold, slicer
from hf_prune.slicing.budget import make_budget
from hf_prune.slicing.modeling.sliced import SlicedBlock
from hf_prune.slicing.moments import SecondMoment
from hf_prune.slicing.options import SliceOptions
from hf_prune.slicing.read_costs import costs_of_config, count_parameters
from hf_prune.slicing.slicer import Settings, slice_model

SHARE = 0.25


def build(layers: int) -> Any:
    """Llama-3.2-1B's shapes, untied, with a smaller vocabulary so that the blocks are what is measured."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    dtype = faster_dtype(torch.device("cpu"), torch.bfloat16)
    return decoder_of(AutoModelForCausalLM.from_config(config, dtype=dtype).eval(), "random-1b")


class Clock:
    """Adds up the seconds that functions take, each without those it calls that are timed as well."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.processor: Counter[str] = Counter()
        self._inside: list[float] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            started, used = time.perf_counter(), time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.perf_counter() - started
                self.processor[name] += time.process_time() - used
                self.seconds[name] += taken - self._inside.pop()
                if self._inside:
                    self._inside[-1] += taken

        return call


def main(layers: int = 16, sequences: int = 64, length: int = 1024) -> dict[str, Any]:
    """Slice it, and time both models."""
    decoder = build(layers)
    width, tokens = decoder.config.hidden_size, sequences * length
    budget = make_budget(
        costs_of_config(decoder.config, "random-1b"),
        name="random-1b",
        model_type="llama",
        sparsity=SHARE,
        of="width",
        options=SliceOptions(),
    )
    widths = budget.points((int(width * (1 - SHARE)) // 8 * 8,) * layers)
    generator = torch.Generator().manual_seed(0)
    text = [torch.randint(0, 32000, (length,), generator=generator) for _ in range(sequences)]
    clock, before = Clock(), psutil.Process().memory_info().rss
    patched = (
        (SlicedBlock, "run", "forwards of the blocks"),
        (SecondMoment, "add", "Gram sums"),
        (slicer, "principal_basis", "eigenvectors"),
        (fold, "times", "weights rotated in float64"),
        (slicer.Walker, "calls", "embeddings and masks"),
    )
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in patched]
    for (owner, name, kind), (_, _, function) in zip(patched, originals, strict=True):
        setattr(owner, name, clock.timed(kind, function))
    started = time.perf_counter()
    sliced: Any = slice_model(decoder, widths, text, Settings(batch_size=4), progress=True)
    total = time.perf_counter() - started
    for owner, name, function in originals:
        setattr(owner, name, function)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    points = 2 * layers + 1
    blocks = sum(p.numel() for p in decoder.blocks.parameters())
    rates = speeds(decoder.model, sliced)
    return {
        "tokens": tokens,
        "parameters": {"dense": count_parameters(decoder.model), "sliced": count_parameters(sliced)},
        "dtype": str(decoder.model.dtype),
        "seconds": {"all": round(total, 1), **{k: round(v, 1) for k, v in clock.seconds.most_common()}},
        "processor seconds": {k: round(v, 1) for k, v in clock.processor.most_common()},
        "seconds, rest (changes of basis, store)": round(total - sum(clock.seconds.values()), 1),
        "floor, operations": {
            "forwards": 2 * tokens * blocks,
            "Gram sums": 2 * tokens * width**2 * points,
            "weights (float64)": 2 * (blocks + 2 * 32000 * width) * width,
        },
        "bytes": {"before slicing": before, "peak": peak, "of it dense weights": _bytes(decoder.model)},
        "tokens per second": rates,
    }


def speeds(dense: Any, sliced: Any, pairs: int = 4) -> dict[str, Any]:
    """Tokens per second of the sliced model over those of the dense one, pair by pair."""
    ratios: dict[str, list[float]] = {"prefill": [], "decode": []}
    for _ in range(pairs):
        one, two = (speed(model, prompt_tokens=256, new_tokens=8, runs=2) for model in (dense, sliced))
        for kind, found in ratios.items():
            found.append(getattr(two, kind).median / getattr(one, kind).median)
    return {
        f"{kind}, sliced / dense (median, min, max)": [round(f(found), 3) for f in (statistics.median, min, max)]
        for kind, found in ratios.items()
    }


def _bytes(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--sequences", type=int, default=64)
    given = parser.parse_args()
    from hf_prune import serial

    sys.stdout.write(json.dumps(serial.to_dict(main(given.layers, given.sequences)), indent=2) + "\n")
