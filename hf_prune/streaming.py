"""When a model is not loaded as a whole: measured block by block, cut file to file."""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.block_weights import BlockWeights
from hf_prune.distributed import local_processes
from hf_prune.errors import ConfigError
from hf_prune.memory import free_memory
from hf_prune.memory_budget import MaxMemory, budget_of, streamed
from hf_prune.models import Models
from hf_prune.placement import SPREAD
from hf_prune.records import Plan

logger = logging.getLogger(__name__)

_SMALL = 0.25
_ROOM = 1.2
"""Free memory that loading a model takes, in sizes of its weights."""


def check_bound(max_memory: MaxMemory | None, quantized: bool, name: str) -> None:
    """Refuse, before any work, a bound that cannot be kept.

    Args:
        max_memory: what may be used of each device.
        quantized: whether the weights are quantized.
        name: what the model is called in errors.

    Raises:
        ConfigError: it is no bound, or the weights are quantized.
    """
    if budget_of(max_memory) and quantized:
        raise ConfigError(
            f"'{name}' holds quantized weights, which mean something only together: it is loaded as a whole, and its "
            f"memory cannot be bounded (--memory-budget, max_memory={dict(max_memory or {})}). Leave the bound out, "
            "or take the unquantized model that it was made from"
        )


def must_stream(models: Models) -> bool:
    """Whether the original may not, or cannot, be in memory as a whole: memory was bounded, or has no room for it."""
    if not models.untouched or models.quantized:
        return False
    return models.max_memory is not None or not _fits(models.sizes().total_bytes, models.kwargs["device_map"])


def has_room(size: int, max_memory: MaxMemory | None, device_map: Any) -> bool:
    """Whether a model of `size` bytes may be, and can be, in memory as a whole."""
    return max_memory is None and _fits(size, device_map)


def check_room(models: Models, doing: str, instead: str) -> None:
    """Refuse, before any work, what needs a model as a whole that must not be in memory as one.

    Args:
        models: whose original it is.
        doing: what needs it.
        instead: what to do instead.

    Raises:
        ConfigError: the model cannot be loaded.
    """
    if must_stream(models):
        size, device_map = models.sizes().total_bytes, models.kwargs["device_map"]
        check_size(size, models.source.ref.id, models.max_memory, device_map, doing, instead)


def check_size(size: int, name: str, max_memory: MaxMemory | None, device_map: Any, doing: str, instead: str) -> None:
    """Refuse what needs a model of `size` bytes in memory, where memory is bounded or too small; see `check_room`."""
    if max_memory is not None:
        raise ConfigError(
            f"{doing} needs all of '{name}' in memory ({size / 1e9:.2f} GB), and memory is bounded (--memory-budget, "
            f"max_memory={dict(max_memory)}); {instead}, or leave the bound out"
        )
    if not _fits(size, device_map):
        raise ConfigError(
            f"{doing} needs all of '{name}' in memory ({size / 1e9:.1f} GB, and a fifth more to load it); "
            f"{_free(device_map) / 1e9:.1f} GB are free. {instead[0].upper()}{instead[1:]}, or take a larger machine"
        )


def walkable(
    models: Models, sequences: Sequence[torch.Tensor], batch_size: int
) -> tuple[Decoder, BlockWeights | None]:
    """The original, to be measured: in memory, or a skeleton and the weights that are read into it block by block.

    Args:
        models: whose original it is.
        sequences: what it will be measured on, which tells the memory that it takes.
        batch_size: of them at once.

    Returns:
        The model; where its weights are, None for memory.

    Raises:
        ConfigError: memory is bounded so tightly that not even a block fits; names the smallest bound that would do.
        CheckpointError: the checkpoint is broken, or does not fit its config.
    """
    if not must_stream(models):
        return decoder_of(models.original(), models.source.ref.id), None
    models.fetch()
    logger.info("'%s' is measured block by block: it is not loaded as a whole", models.source.ref.id)
    return streamed(
        models.source,
        dtype=models.kwargs["dtype"],
        trust_remote_code=models.kwargs["trust_remote_code"],
        device=_device(models.kwargs["device_map"]),
        max_memory=models.max_memory,
        batch_size=min(batch_size, len(sequences)),
        max_length=max(map(len, sequences)),
        samples=len(sequences),
    )


def cuts_files(models: Models, plan: Plan) -> bool:
    """Whether a plan is carried out from file to file: nothing has loaded the model, and nothing has to."""
    return models.untouched and not models.quantized and plan.slicing is None


def is_small(models: Models) -> bool:
    """Whether loading the original takes little of what is free, so that a stronger check may load it."""
    return models.max_memory is None and models.sizes().total_bytes < _SMALL * _free("cpu")


def _device(device_map: Any) -> torch.device:
    """Where blocks are computed: the device that was named, or the first GPU where any may be taken."""
    if isinstance(device_map, str | torch.device | int) and device_map not in SPREAD:
        return torch.device(device_map)
    return torch.device("cuda" if device_map is not None and torch.cuda.is_available() else "cpu")


def _fits(size: int, device_map: Any) -> bool:
    return _ROOM * size < _free(device_map)


def _free(device_map: Any) -> int:
    """Bytes that loading can count on: of the GPU that was named, else of main memory and of GPUs to spread over."""
    free = free_memory() // local_processes()  # which load at once
    if device_map is None or not torch.cuda.is_available():
        return free
    if isinstance(device_map, str | torch.device | int) and device_map not in SPREAD:
        device = torch.device(device_map)
        return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free
    return free + sum(torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count()))
