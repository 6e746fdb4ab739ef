"""What peers take to measure what we measure: the same model, the same tokens, the same distances.

Their ways are stated anew here, as their programs go about it:

- PruneMe runs the whole model for each batch, asks for all hidden states, and so keeps them beside cache and logits;
  it compares blocks n apart, for one n a run. The state of the last block is one behind the final norm.
- short-transformers runs the whole model sample by sample, copies what leaves each block, and compares all pairs, one
  number at a time.

Extra memory is the most that was held at once beside the model: resident bytes on a processor (what the system has
handed out), allocated ones on a GPU.
"""

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.measures.similarity import PairwiseAngles
from hf_prune.runner import Walker
from hf_prune.samples import Batch, batches, by_length

RUNS = 3
Distances = dict[tuple[int, int], float]
"""(first block removed, blocks removed) to the distance across them."""


@dataclass(frozen=True)
class Shape:
    """What is timed: a Llama, and a text of equally long sequences."""

    layers: int = 12
    width: int = 1024
    vocabulary: int = 32000
    sequences: int = 4
    length: int = 96
    batch: int = 2
    device: str = "cpu"
    dtype: str = "float32"


@dataclass(frozen=True)
class Taken:
    """What one way took: seconds, bytes beside the model, and the distances that it found."""

    seconds: float
    memory: int
    found: Distances


def build(shape: Shape) -> Decoder:
    """A random Llama."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 64,
        num_key_value_heads=shape.width // 64,
        max_position_embeddings=4096,
        dtype=getattr(torch, shape.dtype),
    )
    torch.manual_seed(0)
    with torch.device(shape.device):
        model = LlamaForCausalLM(config).to(getattr(torch, shape.dtype)).eval()
    nn.init.uniform_(model.model.norm.weight, 0.5, 1.5)  # ones would only scale, and no angle would tell
    return decoder_of(model)


def ours(decoder: Decoder, work: Sequence[Batch]) -> Distances:
    """All windows in one pass."""
    observer = PairwiseAngles()
    Walker(decoder).walk(work, [observer])
    table = observer.result()["distances"]
    depth = decoder.num_layers
    return {(start, n): table[start][start + n] for n in range(1, depth) for start in range(depth - n + 1)}


def prune_me(decoder: Decoder, work: Sequence[Batch], sizes: Sequence[int]) -> Distances:
    """One run of the model for each n; windows that start at block 0 are not looked at."""
    found: Distances = {}
    for n in sizes:
        sums = [0.0] * (decoder.num_layers - n)
        for batch in work:
            batch = batch.to(decoder.model.device)
            with torch.no_grad():
                out = decoder.model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
            rows, last = torch.arange(len(batch.input_ids)), batch.attention_mask.sum(1) - 1
            states = [hidden[rows, last] for hidden in out.hidden_states[1:]]
            for i in range(len(sums)):
                cosines = nn.functional.cosine_similarity(states[i], states[i + n]).clamp(-1, 1)
                sums[i] += float((cosines.acos() / math.pi).mean())
        found |= {(i + 1, n): total / len(work) for i, total in enumerate(sums)}
    return found


def short_transformers(decoder: Decoder, work: Sequence[Batch]) -> Distances:
    """Sample by sample, all pairs by single numbers; states are those before and behind each block."""
    depth, found, samples = decoder.num_layers, {}, 0
    states: list[torch.Tensor] = []

    def before(_block: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        states.append(args[0].clone().cpu())

    def behind(_block: nn.Module, _args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        states.append(output.clone().cpu())

    hooks = [decoder.blocks[0].register_forward_pre_hook(before)]
    hooks += [block.register_forward_hook(behind) for block in decoder.blocks]
    for ids in (row[: int(mask.sum())] for b in work for row, mask in zip(b.input_ids, b.attention_mask, strict=True)):
        states.clear()
        with torch.no_grad():
            decoder.model(ids[None].to(decoder.model.device))
        for n in range(1, depth):
            for start in range(depth - n + 1):
                cosine = nn.functional.cosine_similarity(states[start][0, -1], states[start + n][0, -1], dim=0)
                angle = math.acos(max(-1.0, min(1.0, cosine.item()))) / math.pi
                found[start, n] = found.get((start, n), 0.0) + angle
        samples += 1
    for hook in hooks:
        hook.remove()
    return {window: total / samples for window, total in found.items()}


def taken(way: Callable[[], Distances], device: str) -> Taken:
    """Time one way, and note its peak memory."""
    gc.collect()
    held = _reset_peak(device)
    started = time.perf_counter()
    found = way()
    return Taken(time.perf_counter() - started, _peak(device) - held, found)


def main(shape: Shape = Shape(), runs: int = RUNS) -> dict[str, Any]:  # noqa: B008 (frozen)
    """Time all ways in turns and return the figures."""
    decoder = build(shape)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(shape.vocabulary, (shape.length,), generator=generator) for _ in range(shape.sequences)]
    work = list(batches(texts, shape.batch))
    n = shape.layers // 4
    ways: dict[str, Callable[[], Distances]] = {
        "hf_prune": lambda: ours(decoder, work),
        "PruneMe": lambda: prune_me(decoder, work, [n]),
        "short-transformers": lambda: short_transformers(decoder, work),
    }
    ways["hf_prune"]()  # warm-up
    timed: dict[str, list[Taken]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            timed[name].append(taken(way, shape.device))
    whole = taken(lambda: prune_me(decoder, work, range(1, shape.layers)), shape.device)
    base = timed["hf_prune"]
    # Ours and short-transformers' find all n in the run that finds one.
    every = {name: [whole] if name == "PruneMe" else results for name, results in timed.items()}
    model = f"{shape.layers} layers, {shape.width} wide, vocabulary of {shape.vocabulary}"
    return {
        "model": f"{model}, {shape.dtype}, {shape.device}",
        "tokens": shape.sequences * shape.length,
        "runs": runs,
        "one n": {name: _row(results, base) for name, results in timed.items()},
        "all n": {name: _row(results, base) for name, results in every.items()},
        "largest difference from ours": {
            "PruneMe": _difference(whole.found, base[0].found, lambda start, size: start + size < shape.layers),
            "PruneMe, windows that end at the last block": _difference(
                whole.found, base[0].found, lambda start, size: start + size == shape.layers
            ),
            "short-transformers": _difference(timed["short-transformers"][0].found, base[0].found),
        },
        "sorted by length": sorting(decoder, shape, runs),
    }


def sorting(decoder: Decoder, shape: Shape, runs: int) -> dict[str, Any]:
    """What sorting by length before padding gains: lengths are log-normal, as those of web text."""
    generator = torch.Generator().manual_seed(0)
    size = 2 * shape.batch
    spread = torch.empty(4 * size).log_normal_(math.log(shape.length / 4), 0.8, generator=generator)
    lengths = spread.long().clamp(8, 2 * shape.length).tolist()
    texts = [torch.randint(shape.vocabulary, (length,), generator=generator) for length in lengths]
    orders = {"as given": list(batches(texts, size)), "sorted": list(batches(by_length(texts), size))}
    seconds = {
        name: statistics.median(taken(lambda: ours(decoder, work), shape.device).seconds for _ in range(runs))  # noqa: B023
        for name, work in orders.items()
    }
    return {
        "tokens": sum(lengths),
        "pads": {name: sum(b.input_ids.numel() for b in work) - sum(lengths) for name, work in orders.items()},
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "as given over sorted": round(seconds["as given"] / seconds["sorted"], 3),
    }


def _row(results: Sequence[Taken], base: Sequence[Taken]) -> dict[str, float]:
    seconds, memory = (statistics.median(getattr(r, key) for r in results) for key in ("seconds", "memory"))
    least_seconds, least_memory = (statistics.median(getattr(r, key) for r in base) for key in ("seconds", "memory"))
    return {
        "seconds": round(seconds, 3),
        "extra MB": round(memory / 1e6, 1),
        "seconds over ours": round(seconds / least_seconds, 2),
        "memory over ours": round(memory / least_memory, 2),
    }


def _difference(
    theirs: Distances, found: Distances, which: Callable[[int, int], bool] = lambda start, size: True
) -> float:
    return max(abs(value - found[window]) for window, value in theirs.items() if which(*window))


def _reset_peak(device: str) -> int:
    """Let the peak count from here; returns what is held now, in bytes."""
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, or it would hide what is taken next
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device != "cpu" else _resident("VmHWM")


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
