"""Which machine and which versions: every measured figure names them."""

import importlib.metadata
import platform
from pathlib import Path

import torch

import hf_prune
from hf_prune.precision import faster_dtype
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


def versions() -> dict[str, str]:
    """Versions of this package, Python, and what it computes with, as far as installed."""
    found = {"hf_prune": hf_prune.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe(model: torch.nn.Module, device: torch.device | None = None) -> Environment:
    """The environment of a figure measured on `model`.

    Args:
        model: what was measured.
        device: where it computed; where its weights are when None.
    """
    parameter = next(model.parameters())
    device = device or parameter.device
    dtype = str(parameter.dtype).removeprefix("torch.")
    if faster_dtype(device, parameter.dtype) != parameter.dtype:
        dtype += ", losses computed in float32"  # see `precision`; speeds are those of the weights as they are
    return Environment(hardware=hardware(device), versions=versions(), dtype=dtype, device=device.type)
