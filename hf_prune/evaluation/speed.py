"""How fast a model reads and writes, and how much memory it takes to do so."""

import ctypes
import gc
import inspect
import os
import statistics
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import psutil
import torch
from transformers import PreTrainedModel

from hf_prune.architecture.decoder import first_device
from hf_prune.evaluation.scoring import max_positions
from hf_prune.records import Rate, Speed
from hf_prune.runner import evaluating

_SAMPLING_SECONDS = 0.001


RUNS = 5
"""Counted runs, each time that a model is timed."""


@dataclass(frozen=True)
class Run:
    """Seconds that one run took.

    Attributes:
        prefill: of reading the prompts.
        decode: of writing after them.
    """

    prefill: float
    decode: float


def speed(
    model: PreTrainedModel, *, prompt_tokens: int, new_tokens: int, batch: int = 1, runs: int = RUNS, seed: int = 0
) -> Speed:
    """Time one model by itself; see `timed`. Two models compare only where they took turns: see `timing`.

    Args:
        model: the causal LM; put in eval mode, and back.
        prompt_tokens: length of each prompt.
        new_tokens: cached passes a run; with the prompt clipped to the model's limit.
        batch: sequences at once.
        runs: counted runs.
        seed: of the prompts.

    Returns:
        Tokens per second of all sequences together, and the lengths as used.
    """
    prompt_tokens, new_tokens = fit_lengths(model, prompt_tokens, new_tokens)
    found = timed(model, prompt_tokens=prompt_tokens, new_tokens=new_tokens, batch=batch, runs=runs, seed=seed)
    return speed_of(found, prompt_tokens=prompt_tokens, new_tokens=new_tokens, batch=batch)


@torch.inference_mode()
def timed(
    model: PreTrainedModel,
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch: int,
    runs: int = RUNS,
    warm_up: int = 1,
    seed: int = 0,
) -> list[Run]:
    """Time reading a prompt (prefill) and writing after it (decode), as generation does both.

    Prefill is one forward pass with a fresh cache and the logits of the last position only; decode is one cached pass
    for each new token, the likeliest one fed back. Prompts are random token ids: what they say does not matter to how
    long they take, except that a mixture of experts spreads them more evenly than text.

    Args:
        model: the causal LM; put in eval mode, and back.
        prompt_tokens: as from `fit_lengths`.
        new_tokens: as from `fit_lengths`.
        batch: sequences at once.
        runs: counted runs.
        warm_up: runs before, uncounted.
        seed: of the prompts.
    """
    ids = _prompts(model, batch, prompt_tokens, seed)
    with evaluating(model):
        return [_run(model, ids, new_tokens) for _ in range(warm_up + runs)][warm_up:]


def speed_of(runs: Sequence[Run], *, prompt_tokens: int, new_tokens: int, batch: int, rounds: int = 1) -> Speed:
    """The record of some runs of one model."""
    return Speed(
        prefill=rate([batch * prompt_tokens / run.prefill for run in runs]),
        decode=rate([batch * new_tokens / run.decode for run in runs]),
        batch=batch,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        runs=len(runs),
        rounds=rounds,
    )


@torch.inference_mode()
def peak_memory(
    model: PreTrainedModel, *, weight_bytes: int, prompt_tokens: int, new_tokens: int, batch: int = 1, seed: int = 0
) -> int:
    """The most memory that prefill and decode take: the weights, and what comes and goes beside them.

    Args:
        model: the causal LM; put in eval mode, and back.
        weight_bytes: of its weights.
        prompt_tokens: as in `speed`.
        new_tokens: as in `speed`.
        batch: as in `speed`.
        seed: as in `speed`.

    Returns:
        `weight_bytes` plus `growth` of one run after an uncounted one.
    """
    prompt_tokens, new_tokens = fit_lengths(model, prompt_tokens, new_tokens)
    ids = _prompts(model, batch, prompt_tokens, seed)
    with evaluating(model):
        _run(model, ids, new_tokens)
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        return weight_bytes + growth(lambda: _run(model, ids, new_tokens), devices)


def growth(work: Callable[[], Any], gpus: Collection[torch.device] = ()) -> int:
    """Bytes in use at the peak of some work, above those in use before it.

    With GPUs this is what torch's allocator handed out on them, each at its own peak. Otherwise it is the process's
    resident set, looked at every millisecond, after free memory was handed back to the system (so that what earlier
    work left behind is not reused unseen).
    """
    gc.collect()
    if gpus:
        for gpu in gpus:
            torch.cuda.synchronize(gpu)
            torch.cuda.reset_peak_memory_stats(gpu)
        allocated = sum(torch.cuda.memory_allocated(gpu) for gpu in gpus)
        work()
        return sum(torch.cuda.max_memory_allocated(gpu) for gpu in gpus) - allocated
    _release_free_memory()
    process = psutil.Process()
    before = highest = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while True:
            highest = max(highest, process.memory_info().rss)
            if done.wait(_SAMPLING_SECONDS):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(highest, process.memory_info().rss) - before


def fit_lengths(model: PreTrainedModel, prompt_tokens: int, new_tokens: int) -> tuple[int, int]:
    """Prompt and new tokens that the model's limit leaves room for; at most half of it is for new ones."""
    limit = max_positions(model)
    if limit is None:
        return prompt_tokens, new_tokens
    new_tokens = min(new_tokens, max(1, limit // 2))
    return max(1, min(prompt_tokens, limit - new_tokens)), new_tokens


def _prompts(model: PreTrainedModel, batch: int, length: int, seed: int) -> torch.Tensor:
    vocabulary = len(next(model.get_input_embeddings().parameters()))
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (batch, length), generator=generator).to(first_device(model))


def _run(model: PreTrainedModel, ids: torch.Tensor, new_tokens: int) -> Run:
    # Around an adapted model lies another, which does not tell what its forward takes.
    model = cast(Any, model).get_base_model() if hasattr(model, "peft_config") else model
    last: dict[str, Any] = (
        {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    )
    start = now(ids.device)
    output = model(input_ids=ids, use_cache=True, **last)
    # State-space models call their cache so.
    cache = "past_key_values" if "past_key_values" in output else "cache_params"
    token = output.logits[:, -1:].argmax(-1)
    middle = now(ids.device)
    for _ in range(new_tokens):
        output = model(input_ids=token.to(ids.device), use_cache=True, **{cache: output[cache]}, **last)
        token = output.logits[:, -1:].argmax(-1)
    return Run(middle - start, now(ids.device) - middle)


def now(device: torch.device) -> float:
    """Seconds of a clock, read when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def rate(values: Sequence[float]) -> Rate:
    """Median and extremes."""
    return Rate(statistics.median(values), min(values), max(values))


def _release_free_memory() -> None:
    """Hand the C library's free memory back to the system, where the library can (glibc)."""
    if os.name == "posix" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
