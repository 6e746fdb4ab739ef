"""On a GPU: measuring an 8 B model resident and streamed, how fast weights get there, and healing.

Random bf16 weights of Llama-3-8B's shapes, on the disk of the machine with the GPU. Resident measuring takes turns
with a bare forward of the same blocks. Streamed measuring runs twice on a warm page cache: on one sequence, where
moving the weights is what takes the time and is held against the ceiling, copies from pinned memory; and on the whole
text, held against the resident walk. Healing is LoRA on the blocks, its tokens a second those of the training loop.
"""

import dataclasses
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.config import HealingConfig
from hf_prune.healing import heal, resolve
from hf_prune.loading import Source, load_model, locate
from hf_prune.measures.similarity import PairwiseAngles
from hf_prune.memory_budget import streamed
from hf_prune.runner import Walker
from hf_prune.samples import Batch, batches
from tests.evaluation.text import samples_of

from .checkpoints import EIGHT_B, Shapes, checkpoint
from .costs import read_seconds, weights_of

RUNS = 5


def main(
    shapes: Shapes = EIGHT_B,
    *,
    sequences: int = 64,
    length: int = 512,
    batch: int = 8,
    steps: int = 10,
    device: str = "cuda",
    scratch: Path | None = None,
) -> dict[str, Any]:
    """Measure and heal.

    Args:
        shapes: of the model.
        sequences: of text.
        length: of each.
        batch: sequences at once.
        steps: optimizer steps of healing, of `batch` sequences each.
        device: where blocks compute.
        scratch: folder with room for the checkpoint and its adapters.
    """
    where = torch.device(device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 256, (sequences, length), generator=generator)
    work = list(batches(list(ids), batch))
    with checkpoint(shapes, scratch) as folder, tempfile.TemporaryDirectory(dir=scratch) as run:
        source, _ = locate(folder)
        found = {"model": shapes.describe(), "tokens": ids.numel(), "sequences at once": batch}
        found["resident"] = resident(source, work, where)
        gc.collect()
        found["streamed"] = stream(source, work, shapes, where, found["resident"]["seconds (median)"])
        found["healing"] = healing(folder, ids, shapes, batch, steps, where, Path(run))
    return found


def resident(source: Source, work: list[Batch], device: torch.device) -> dict[str, Any]:
    """The whole model in memory: the walk in turns with its bare forward."""
    decoder = decoder_of(load_model(source, device_map=str(device)))
    walker = Walker(decoder)

    def walk() -> None:
        walker.walk(work, [PairwiseAngles()])

    walk()
    _bare(decoder, work)
    before = _peak(device)
    pairs = [(_seconds(walk, device), _seconds(lambda: _bare(decoder, work), device)) for _ in range(RUNS)]
    ratios = [walked / bare for walked, bare in pairs]
    return {
        "seconds (median)": round(statistics.median(walked for walked, _ in pairs), 4),
        "over a bare forward (median, min, max)": [round(f(ratios), 3) for f in (statistics.median, min, max)],
        "memory": {"weights": before, "peak": _peak(device)},
    }


def stream(source: Source, work: list[Batch], shapes: Shapes, device: torch.device, whole: float) -> dict[str, Any]:
    """One block in memory at a time, from a warm page cache; and the ceilings of reading and of copying."""
    assert source.folder is not None
    files = weights_of(source.folder)
    cold = read_seconds(files)
    size = {"batch_size": len(work[0].input_ids), "max_length": work[0].input_ids.shape[1]}

    def walk(batches: list[Batch]) -> float:
        decoder, weights = streamed(source, device=device, samples=sum(len(b.input_ids) for b in batches), **size)
        walker = Walker(decoder, weights)
        return _seconds(lambda: walker.walk(batches, [PairwiseAngles()]), device)

    first = Batch(work[0].input_ids[:1], work[0].attention_mask[:1])
    walk([first])
    before = _peak(device, reset=True)
    moving, everything = min(walk([first]) for _ in range(3)), walk(work)
    blocks = shapes.layers * shapes.block_bytes
    ceiling = copy_rate(device, shapes.block_bytes)
    return {
        "seconds": round(everything, 3),
        "over resident": round(everything / whole, 2),
        "seconds of one sequence": round(moving, 3),
        "weights moved (GB/s)": round(blocks / moving / 1e9, 2),
        "copies from pinned memory (GB/s)": round(ceiling / 1e9, 2),
        "moved over that ceiling": round(blocks / moving / ceiling, 3),
        "reading the files from the disk (GB/s)": round(shapes.bytes / cold / 1e9, 2),
        "memory": {"before": before, "peak": _peak(device)},
    }


def copy_rate(device: torch.device, size: int, runs: int = 5) -> float:
    """Bytes a second from pinned memory to the device, a block's bytes at a time."""
    source = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty(size, dtype=torch.uint8, device=device)
    return size / min(_seconds(lambda: target.copy_(source, non_blocking=True), device) for _ in range(runs + 1))


def healing(
    folder: Path, ids: torch.Tensor, shapes: Shapes, batch: int, steps: int, device: torch.device, run: Path
) -> dict[str, Any]:
    """LoRA on bf16 weights, some steps of it."""
    wanted = HealingConfig(quantize="none", steps=steps, batch_size=batch, tokens=steps * batch * ids.shape[1])
    config = resolve(
        dataclasses.replace(wanted, max_length=ids.shape[1]),
        recipe="uidl",
        base_model="random",
        limit=4096,
        parameters=shapes.bytes // 2,
        device=device,
    )
    held_out = samples_of(list(ids[:2]))
    before = _peak(device, reset=True)
    record = heal(
        folder,
        samples_of(list(ids[2:])),
        held_out,
        config,
        run_folder=run,
        base_model="random",
        device=device,
        progress=False,
    ).record
    return {
        "tokens": record.tokens,
        "tokens/s": round(record.tokens / record.seconds, 1),
        "trained parameters": record.trained_parameters,
        "rank": config.rank,
        "memory": {"before": before, "peak": _peak(device)},
    }


@torch.inference_mode()
def _bare(decoder: Decoder, work: list[Batch]) -> None:
    for batch in work:
        batch = batch.to(decoder.model.device)
        decoder.base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device, *, reset: bool = False) -> int | None:
    """Most bytes allocated on a GPU so far, or since the last reset, after which it is what is allocated now."""
    if device.type != "cuda":
        return None
    if reset:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.max_memory_allocated(device)
