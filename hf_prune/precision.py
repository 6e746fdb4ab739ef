"""Arithmetic in float32 for half-precision weights, exactly, where the processor is slow in half precision."""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn

_WATCHED = 0.05
"""Seconds over which products are timed at least: longer than the system gives a busy processor to someone else."""

_ROOM = 1.2
"""Free memory there must be, in sizes of the float32 copy."""


@functools.cache
def faster_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in with weights of `dtype`: float32 where the processor is slow in half precision.

    Some processors multiply bfloat16 hundreds of times slower than float32; timing one small product tells. On GPUs,
    and for float32 and float64, it is `dtype` itself.
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return dtype
    times: list[tuple[float, float]] = []
    until = time.perf_counter() + _WATCHED
    while len(times) < 3 or time.perf_counter() < until:
        times.append((_product_seconds(dtype), _product_seconds(torch.float32)))
    half, full = map(min, zip(*times, strict=True))
    return dtype if half < full else torch.float32


def _product_seconds(dtype: torch.dtype, width: int = 256) -> float:
    factor = torch.full((width, width), 0.5, dtype=dtype)
    started = time.perf_counter()
    factor @ factor
    return time.perf_counter() - started


@contextmanager
def fast_arithmetic(model: nn.Module) -> Iterator[None]:
    """Let a model compute in float32 for a while, where that is the faster one and memory has room for it.

    Each weight is replaced by its float32 copy, which holds the same number, and put back afterwards: the very tensor
    that was there, so that what else shares it never notices. Quantized models, and models on GPUs, are left alone.

    Args:
        model: with or without adapters; not to be trained or saved meanwhile.
    """
    first: Any = next(model.parameters(), None)
    half = [t for t in _tensors(model) if t.dtype in (torch.bfloat16, torch.float16)]
    if first is None or not half or _quantized(model) or _fast(half[0]) or not _fits(half):
        yield
        return
    kept = [(tensor, tensor.data) for tensor in half]
    try:
        with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode could not be trained on later
            for tensor, data in kept:
                tensor.data = data.float()
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


@contextmanager
def joined_arithmetic(model: nn.Module) -> Iterator[None]:
    """Let a model compute in half precision for a while, where weights in float32 are trained beside frozen halves.

    Products of the one with the other are undefined otherwise. Models with adapters see to that themselves.

    Args:
        model: with or without adapters.
    """
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    frozen = [p for p in model.parameters() if not p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
    if torch.float32 not in trained or not frozen or hasattr(model, "peft_config"):
        yield
        return
    with torch.autocast(frozen[0].device.type, dtype=frozen[0].dtype):
        yield


def cast(module: nn.Module, dtype: torch.dtype, wanted: torch.dtype) -> list[torch.Tensor]:
    """Turn the tensors of one dtype into another, and leave those that are kept in a third (some norms, buffers).

    Returns:
        The parameters and buffers that were changed, in place; empty where both dtypes are one.
    """
    if dtype == wanted:
        return []
    changed = [tensor for tensor in _tensors(module) if tensor.dtype == dtype]
    for tensor in changed:
        tensor.data = tensor.data.to(wanted)
    return changed


def _fast(tensor: torch.Tensor) -> bool:
    return faster_dtype(tensor.device, tensor.dtype) == tensor.dtype


def _fits(tensors: list[torch.Tensor]) -> bool:
    return _ROOM * sum(4 * tensor.numel() for tensor in tensors) < psutil.virtual_memory().available


def _quantized(model: nn.Module) -> bool:
    return any(type(module).__module__.startswith("bitsandbytes.") for module in model.modules()) or bool(
        getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None)
    )


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, shared ones once, those on the meta device left out."""
    unique = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return [tensor for tensor in unique.values() if not tensor.is_meta]
