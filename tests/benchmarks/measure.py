"""What measuring costs beside a bare forward of the same tokens through the same blocks, no head on either side.

Llama-3.2-1B shapes with random bf16 weights; A B A B ... with the ratio pair by pair. The floor is the bare forward
itself: 2 x parameters of the blocks x tokens floating point operations, which both sides do.
"""

import gc
import statistics
import time
from dataclasses import dataclass

import psutil
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.architecture.decoder import first_device
from hf_prune.measures.similarity import PairwiseAngles
from hf_prune.observing import Place
from hf_prune.runner import Walker
from hf_prune.samples import Batch, batches

RUNS = 7


@dataclass(frozen=True)
class Shape:
    """What is timed: sequences, their length, and how many go at once."""

    sequences: int = 4
    length: int = 256
    batch: int = 2


def build(layers: int = 16) -> Decoder:
    """Llama-3.2-1B's shapes; a small vocabulary, because no head runs."""
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=4096,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    return decoder_of(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval())


def bare(decoder: Decoder, work: list[Batch]) -> float:
    """Seconds of the base model's own forward."""
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in work:
            batch = batch.to(first_device(decoder.model))
            decoder.base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    return time.perf_counter() - started


def held(observer: PairwiseAngles) -> int:
    """Bytes of the tensors that an observer keeps."""
    kept = [value for value in vars(observer).values() if isinstance(value, torch.Tensor)]
    kept += [t for states in observer._states.values() for t in states]
    return sum(t.numel() * t.element_size() for t in kept)


class Watching(PairwiseAngles):
    """The observer itself, noting the most bytes it ever held."""

    most = 0

    def see(self, at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> None:
        super().see(at, inputs, outputs, mask)
        self.most = max(self.most, held(self))


def main(shape: Shape = Shape()) -> dict[str, object]:  # noqa: B008 (frozen)
    """Time both sides and return the figures."""
    decoder = build()
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, 4096, (shape.length,), generator=generator) for _ in range(shape.sequences)]
    work = list(batches(sequences, shape.batch))
    walker = Walker(decoder)
    bare(decoder, work[:1])  # warm-up
    walker.walk(work[:1], [PairwiseAngles()])
    pairs = []
    for _ in range(RUNS):
        observer = Watching()
        gc.collect()
        pairs.append((walker.walk(work, [observer]), bare(decoder, work)))
    ratios = sorted(a / b for a, b in pairs)
    return {
        "tokens": shape.sequences * shape.length,
        "measure seconds (median)": round(statistics.median(a for a, _ in pairs), 3),
        "bare forward seconds (median)": round(statistics.median(b for _, b in pairs), 3),
        "ratio (median of pairs)": round(statistics.median(ratios), 4),
        "ratio (min, max)": (round(ratios[0], 4), round(ratios[-1], 4)),
        "bytes held by the observer (most)": observer.most,
        "memory of the process": psutil.Process().memory_info().rss,
    }
