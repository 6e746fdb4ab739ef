"""What to do where training runs out of memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hf_prune.config import HealingConfig
from hf_prune.errors import PruneError


@contextmanager
def saying_what_to_lower(config: HealingConfig, *, quantized: bool) -> Iterator[None]:
    """Turn a lack of memory into an error that names the settings that lower it.

    Args:
        config: resolved.
        quantized: whether the weights are in 4 bits already.

    Raises:
        PruneError: the memory of the device or of the machine was too small.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        ways = []
        if config.micro_batch_size != 1:
            ways.append(f"lower healing.micro_batch_size ({config.micro_batch_size})")
        ways.append(f"lower healing.max_length ({config.max_length})")
        if not config.recompute:
            ways.append("set healing.recompute")
        if not quantized:
            ways.append("set healing.quantize='nf4'")
        raise PruneError(
            f"out of memory while training ({str(error).strip().splitlines()[0][:200] or 'no more is known'}); "
            f"{', or '.join(ways)}"
        ) from error


def _is_lack_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # What the CPU's allocator raises is a RuntimeError as any other.
    return "allocate memory" in str(error) or "out of memory" in str(error).lower()
