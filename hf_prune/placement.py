"""Where a model is put, and in which dtype: what people say, as transformers takes it."""

from typing import Any

import torch

from hf_prune import loading
from hf_prune.errors import ConfigError

SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
"""Words that spread a model over the devices that are there."""


def load_kwargs(dtype: str | torch.dtype, device_map: Any, trust_remote_code: bool) -> dict[str, Any]:
    """Arguments of `loading.load_model`: the GPU is taken where there is one and nothing else was asked for.

    Raises:
        ConfigError: there is no such dtype or device.
    """
    if isinstance(device_map, str) and device_map not in SPREAD:
        _check_device(device_map)
    return {
        "dtype": loading.dtype_of(dtype) if isinstance(dtype, str) else dtype,
        "device_map": "auto" if device_map is None and torch.cuda.is_available() else device_map,
        "trust_remote_code": trust_remote_code,
    }


def device_of(device_map: Any) -> torch.device | None:
    """Where a model begins that is loaded so; None where only loading it tells.

    Args:
        device_map: from `load_kwargs`.
    """
    if device_map is None:
        return torch.device("cpu")
    if isinstance(device_map, str) and device_map not in SPREAD:
        return torch.device(device_map)
    return torch.device("cuda", 0) if device_map == "auto" and torch.cuda.is_available() else None


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device '{name}'; expected cpu, cuda, cuda:N, mps, or auto") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device '{name}': {torch.cuda.device_count()} GPUs can be used here; leave it out, or take cpu"
        )
