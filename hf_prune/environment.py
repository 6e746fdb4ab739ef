"""Which machine and which versions: every measured figure names them."""

import functools
import importlib.metadata
import platform
import time
from pathlib import Path

import torch

import hf_prune
from hf_prune.records import Environment

_PACKAGES = (
    "torch",
    "transformers",
    "huggingface_hub",
    "datasets",
    "peft",
    "bitsandbytes",
    "accelerate",
    "safetensors",
)


def hardware(device: torch.device | str = "cpu") -> str:
    """The processor or GPU in words."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple {platform.machine()} GPU"
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def faster_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in with weights of `dtype`: float32 where the processor is slow in half precision.

    Some processors multiply bfloat16 hundreds of times slower than float32; timing one small product tells. On GPUs,
    and for float32 and float64, it is `dtype` itself.
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return dtype
    return dtype if _product_seconds(dtype) < _product_seconds(torch.float32) else torch.float32


def _product_seconds(dtype: torch.dtype, width: int = 256, runs: int = 3) -> float:
    factor = torch.full((width, width), 0.5, dtype=dtype)
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        factor @ factor
        times.append(time.perf_counter() - started)
    return min(times)


def versions() -> dict[str, str]:
    """Versions of this package, Python, and what it computes with, as far as installed."""
    found = {"hf_prune": hf_prune.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe(model: torch.nn.Module) -> Environment:
    """The environment of a figure measured on `model`."""
    parameter = next(model.parameters())
    return Environment(
        hardware=hardware(parameter.device),
        versions=versions(),
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=parameter.device.type,
    )
