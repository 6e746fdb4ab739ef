"""Measuring a checkpoint far larger than memory, beside the larger of its two floors.

A checkpoint of random bf16 weights (Llama-7B shapes: 13.5 GB) is measured by `hf-prune measure --memory-budget 4GB` in
a process that a memory cgroup holds to the same 4 GB, from a cold page cache, on 64 x 512 tokens. What can't be left
out is reading the files once from the disk, and computing the blocks on those tokens: the first is timed on the same
files, the second on one block in memory, called with the same batches in the same dtype and multiplied, because all
blocks have the same shapes; before and after the measuring, because machines differ from minute to minute. Whoever
does both at the same time needs the larger one.
"""

import random
import string
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import LlamaModel

from hf_prune.cli.app import app
from hf_prune.measures import similarity  # noqa: F401 (the registry would import it while the clock runs)
from hf_prune.precision import faster_dtype
from hf_prune.records import Scores

from .checkpoints import SEVEN_B, Shapes, checkpoint
from .costs import cold, memory_limit, read_seconds, run_child, weights_of

_TEXT = 20 * 2**14
"""Characters: twenty sections of a text, each of which is a whole number of sequences."""


def main(
    shapes: Shapes = SEVEN_B,
    *,
    sequences: int = 64,
    length: int = 512,
    batch: int = 8,
    memory: int = 4 * 10**9,
    folder: Path | None = None,
    scratch: Path | None = None,
) -> dict[str, Any]:
    """Measure under the limit, and time both floors.

    Args:
        shapes: of the model.
        sequences: of text.
        length: of each, a power of two.
        batch: sequences at once.
        memory: bytes of the budget and of the cgroup.
        folder: a checkpoint of these shapes; made and deleted when None.
        scratch: folder with room for the checkpoint.
    """
    with ExitStack() as stack:
        source = folder or stack.enter_context(checkpoint(shapes, scratch))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf-prune-bench-", dir=scratch)))
        text = work / "text.txt"
        text.write_text("".join(random.Random(0).choices(string.ascii_letters, k=_TEXT)))
        files = weights_of(source)
        shape = (sequences, length, batch)
        floors = [block_seconds(shapes, source, *shape)]
        reading = read_seconds(files)
        limit = stack.enter_context(memory_limit(memory))
        cold(files)
        arguments = {
            "folder": str(source),
            "text": str(text),
            "output": str(work / "scores"),
            "samples": sequences,
            "length": length,
            "batch": batch,
            "memory": memory,
        }
        cost = run_child("streamed_measure:measure", arguments, limit=limit)
        floors.append(block_seconds(shapes, source, *shape))
    measured, asked = cost.result["tokens"], sequences * length
    # The last section of the text may end before a sequence is full; the floor is that of the tokens measured.
    computing = shapes.layers * sum(floors) / len(floors) * measured / asked
    if not 0.99 * asked <= measured <= asked:
        raise RuntimeError(f"{measured} tokens were measured; the floor is that of {asked}")
    if cost.read < shapes.layers * shapes.block_bytes:
        raise RuntimeError(f"{cost.read} of {shapes.bytes} bytes were read: the blocks were mapped, not streamed")
    return {
        "model": shapes.describe(),
        "tokens": cost.result["tokens"],
        "sequences at once": batch,
        "compute dtype": str(faster_dtype(torch.device("cpu"), torch.bfloat16)).removeprefix("torch."),
        "seconds": round(cost.wall, 2),
        "seconds of the walk alone": round(cost.result["seconds"], 2),
        "floor, reading (seconds)": round(reading, 2),
        "reading (GB/s)": round(shapes.bytes / reading / 1e9, 2),
        "floor, computing (seconds)": round(computing, 2),
        "one block (seconds, before and after)": [round(seconds, 3) for seconds in floors],
        "computing (GFLOP/s)": round(shapes.block_bytes * sequences * length / (sum(floors) / len(floors)) / 1e9),
        "ratio": round(cost.wall / max(reading, computing), 3),
        "ratio of the walk alone": round(cost.result["seconds"] / max(reading, computing), 3),
        "memory": {
            "limit": memory,
            "enforced by": limit.kind,
            "peak resident": cost.peak,
            "resident after imports": cost.imports,
            "peak of the cgroup, page cache included": cost.limited,
        },
        "bytes": {"of the weights": shapes.bytes, "read": cost.read, "read from the disk": cost.from_disk},
    }


def measure(folder: str, text: str, output: str, samples: int, length: int, batch: int, memory: int) -> dict[str, Any]:
    """What `hf-prune measure` does; run in a child process."""
    command = f"measure {folder} --output {output} --dataset {text} --samples {samples} --max-length {length}"
    more = f"--batch-size {batch} --memory-budget {memory // 10**6}MB --quiet"
    app([*command.split(), *more.split()], standalone_mode=False)
    scores = Scores.load(Path(output))
    return {"seconds": scores.seconds, "tokens": scores.data.tokens}


def block_seconds(shapes: Shapes, folder: Path, sequences: int, length: int, batch: int) -> float:
    """Seconds that the first block takes for all batches, its weights in memory; after one batch to warm up.

    The model around it, which calls it as the whole model would, is left out of the time.
    """
    dtype = faster_dtype(torch.device("cpu"), torch.bfloat16)
    with torch.device("meta"):
        model = LlamaModel(shapes.config(layers=1)).to(torch.bfloat16)
    wanted = {name: name.removeprefix("model.") for name in (*shapes.block(0), "model.norm.weight")}
    loaded = {own: tensor.to(dtype) for own, tensor in _tensors(folder, wanted).items()}
    # Which rows of the embedding are looked up makes no difference to the block.
    loaded["embed_tokens.weight"] = (torch.randn(256, shapes.hidden) * 0.02).to(dtype)
    model.embed_tokens = torch.nn.Embedding(256, shapes.hidden, device="meta")
    model.load_state_dict(loaded, assign=True)
    model.rotary_emb = type(model.rotary_emb)(model.config)  # its table is a buffer that no file holds
    model.eval()
    times: list[float] = []
    block = model.layers[0]
    block.register_forward_pre_hook(lambda *_: times.append(-time.perf_counter()))
    block.register_forward_hook(lambda *_: times.append(times.pop() + time.perf_counter()))
    ids = torch.randint(256, (sequences, length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for group in (ids[:batch], *ids.split(batch)):
            model(input_ids=group, attention_mask=torch.ones_like(group), use_cache=False)
    return sum(times[1:])


def _tensors(folder: Path, names: dict[str, str]) -> dict[str, torch.Tensor]:
    found = {}
    for path in weights_of(folder):
        with safe_open(path, framework="pt") as file:
            for name in names.keys() & set(file.keys()):
                found[names[name]] = file.get_tensor(name)
    return found
