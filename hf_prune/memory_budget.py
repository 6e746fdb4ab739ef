"""How much memory a streamed measure takes, before it takes it: a budget is obeyed, or refused with what would do."""

import ctypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from hf_prune.architecture import Decoder
from hf_prune.block_weights import StreamedWeights
from hf_prune.errors import ConfigError
from hf_prune.loading import Source
from hf_prune.skeleton import skeleton

MaxMemory = Mapping[int | str, int | str]
"""Bytes that may be used of each device, as accelerate's `max_memory`: {"cpu": "4GB", 0: "10GB"}."""

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?b|)\s*", re.IGNORECASE)

_LATER = 200_000_000
"""Bytes of code that a process reads in when it first computes, and of memory that its allocator keeps."""

_LARGE = 2**20
"""Bytes from which on memory is given back as soon as it is free, where it is bounded."""

_EXPERTS = 8
"""Experts that a token goes through, where the config does not say."""

_CUDA_CONTEXT = 600_000_000
"""Bytes that CUDA takes of a GPU before any tensor is there."""


def parse_memory(value: int | str) -> int:
    """Bytes from "4GB" (10^9, as huggingface_hub counts), "4GiB" (2^30), or a number.

    Raises:
        ConfigError: it is no size.
    """
    found = _MEMORY.fullmatch(str(value)) if type(value) in (int, str) else None
    unit = found[2].upper() if found is not None else "none"
    if found is None or unit not in _UNITS or (size := int(float(found[1]) * _UNITS[unit])) <= 0:
        raise ConfigError(f"memory budget {value!r}; expected a size such as 4GB, 512MB, 4GiB, or a number of bytes")
    return size


def budget_of(max_memory: MaxMemory | None) -> dict[int | str, int]:
    """Bytes of each device that is bounded: "cpu", or the number of a GPU.

    Raises:
        ConfigError: another key, or a value that is no size.
    """
    found: dict[int | str, int] = {}
    for key, value in (max_memory or {}).items():
        if key != "cpu" and (not isinstance(key, int) or isinstance(key, bool) or key < 0):
            raise ConfigError(f"max_memory names {key!r}; expected 'cpu' or the number of a GPU, such as 0")
        found[key] = parse_memory(value)
    return found


@dataclass(frozen=True)
class Need:
    """Bytes that a streamed measure needs on the device that computes, beside the hidden states that wait.

    Attributes:
        process: held before it starts, and by code that is read in when it runs.
        weights: of the blocks that are there at once, and of what lies around the blocks.
        workspace: of one batch in one block.
        observers: kept by a measure until its end.
    """

    process: int
    weights: int
    workspace: int
    observers: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.process + self.weights + self.workspace + self.observers


def needed(
    decoder: Decoder, weights: StreamedWeights, *, batch_size: int, max_length: int, samples: int, process: int
) -> Need:
    """What a streamed measure needs at most.

    Args:
        decoder: the skeleton.
        weights: reads its blocks.
        batch_size: sequences at once.
        max_length: tokens of the longest sequence.
        samples: sequences in all.
        process: bytes that the process holds already on the device that computes.
    """
    config: Any = decoder.config
    width, depth = config.hidden_size, decoder.num_layers
    itemsize = 4 if weights.copies else decoder.model.dtype.itemsize
    tokens = batch_size * max_length
    experts = getattr(config, "num_experts_per_tok", None) or _EXPERTS
    workspace = tokens * max(_numbers_a_token(decoder.blocks[i], experts) for i in _kinds(decoder)) * itemsize
    workspace += tokens * width * (8 * itemsize + 8)  # the stream itself, on its way from and to the store, and norms
    workspace += _attention_bytes(config, batch_size, max_length)
    last_tokens = (depth + 1) * width * (samples * itemsize + batch_size * 5 * 8)
    doubles = max_length * width * 6 * 8
    return Need(process + _LATER, sum(weights.bytes_held()), workspace, last_tokens + doubles)


def _kinds(decoder: Decoder) -> list[int]:
    """One block of each kind: of as many parameters as no block before it."""
    sizes = {sum(p.numel() for p in block.parameters()): layer for layer, block in enumerate(decoder.blocks)}
    return list(sizes.values())


def _numbers_a_token(block: nn.Module, experts: int) -> int:
    """Numbers that a block holds for each token at once, at most: twice what its products give.

    Args:
        block: of the skeleton.
        experts: that each token goes through.
    """
    given = 0
    for module in block.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 2:
                out = getattr(module, "out_features", None) or getattr(module, "nf", None) or max(parameter.shape)
                given += out
            elif parameter.ndim == 3:  # experts, one behind the other
                given += experts * max(parameter.shape[1:])
    return 2 * given


def _attention_bytes(config: Any, batch_size: int, length: int) -> int:
    """Of masks; where attention has all its scores there at once, of those too; of the states of a recurrent block."""
    square = batch_size * length * length
    heads = getattr(config, "num_attention_heads", 0) or 0
    states = getattr(config, "state_size", 0) * (getattr(config, "intermediate_size", 0) or 0)
    scores = 3 * 4 * square * heads if _has_all_scores(config) else 0
    return 2 * 4 * square + scores + 4 * 4 * batch_size * length * states


def _has_all_scores(config: Any) -> bool:
    """Whether attention is eager, or asks of sdpa what its kernels without scores can't do."""
    eager = getattr(config, "_attn_implementation", "eager") == "eager"
    latent = getattr(config, "v_head_dim", None)  # values narrower than queries and keys
    narrower = latent is not None and latent != config.qk_nope_head_dim + config.qk_rope_head_dim
    return eager or narrower or bool(getattr(config, "alibi", False))  # whose mask is one of each head


def streamed(
    source: Source,
    *,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    device: torch.device | str = "cpu",
    max_memory: MaxMemory | None = None,
    batch_size: int,
    max_length: int,
    samples: int,
) -> tuple[Decoder, StreamedWeights]:
    """A checkpoint ready to be measured block by block, within a budget of memory.

    Args:
        source: where it is.
        dtype: of the weights, as in `loading.load_model`.
        trust_remote_code: whether code from the repo may run.
        device: where blocks compute.
        max_memory: bytes that may be used of each device; those that it does not name are not bounded.
        batch_size: sequences at once.
        max_length: tokens of the longest sequence.
        samples: sequences in all.

    Returns:
        The skeleton, and the weights: what `measure_model` takes.

    Raises:
        ConfigError: the budget is no size, or too small; names the smallest that would do.
        CheckpointError: the checkpoint is broken, quantized, or does not fit its config.
        ArchitectureError: the model cannot lose blocks.
    """
    assert source.folder is not None
    budget, device = budget_of(max_memory), torch.device(device)
    decoder = skeleton(source, dtype=dtype, trust_remote_code=trust_remote_code, device=device)
    weights = StreamedWeights(decoder, Path(source.folder), device)
    process = psutil.Process().memory_info().rss
    on_gpu = device.type == "cuda"
    here = _CUDA_CONTEXT if on_gpu else process
    need = needed(decoder, weights, batch_size=batch_size, max_length=max_length, samples=samples, process=here)
    if "cpu" in budget:
        weights.files.drops_behind = True
        _give_back_at_once()
    computes = (device.index or 0) if on_gpu else "cpu"
    if computes in budget:
        weights.states_budget = _left(budget[computes], need, computes, source.ref.id)
    if on_gpu and "cpu" in budget:
        host = Need(process + _LATER, weights.bytes_held()[0], 0, 0)  # pinned twins of the buffers
        _left(budget["cpu"], host, "cpu", source.ref.id)
    return decoder, weights


def _give_back_at_once() -> None:
    """Stop glibc's allocator from keeping what is free: a small tensor that stays would pin large ones before it."""
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(-3, _LARGE)  # M_MMAP_THRESHOLD; it costs a few percent of the time, and nothing where there is no bound


def _left(limit: int, need: Need, device: int | str, name: str) -> int:
    """Bytes that are left for hidden states."""
    if need.total <= limit:
        return limit - need.total
    parts = {
        "the process": need.process,
        "the weights of the blocks at work": need.weights,
        "one batch": need.workspace,
        "the measure": need.observers,
    }
    listed = ", ".join(f"{size / 1e6:.0f} MB for {what}" for what, size in parts.items() if size)
    given = f"{limit / 1e9:.2f} GB" if limit >= 10**7 else f"{limit:,} bytes"
    smaller = need.process + need.weights < limit
    hint = ". A smaller batch size (--batch-size) or length (--max-length) needs less" if smaller else ""
    raise ConfigError(
        f"the memory budget of {given} for '{device}' is too small to measure '{name}' block by block; expected at "
        f"least {-(-need.total // 10**7) / 100:.2f} GB ({listed}){hint}"
    )
