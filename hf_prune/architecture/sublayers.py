"""The two parts of a block: what mixes tokens (attention), and the MLP; and how one of them is silenced."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from hf_prune.architecture.decoder import Decoder, parameter_bytes
from hf_prune.errors import ArchitectureError
from hf_prune.units import Part

# Names of the child modules of a block.
_ATTENTION = ("self_attn", "linear_attn", "attn", "attention", "self_attention", "conv")
_MLP = ("mlp", "ffn", "feed_forward", "block_sparse_moe")


def part_module(block: nn.Module, part: Part) -> nn.Module | None:
    """The module of a block that is its attention, or its MLP; None where there is none."""
    names = _ATTENTION if part == "attention" else _MLP
    return next((child for name, child in block.named_children() if name in names), None)


def has_part(block: nn.Module, part: Part) -> bool:
    """Whether a block has a part that can be silenced; it is a "block" itself."""
    return part == "block" or part_module(block, part) is not None


def part_sizes(decoder: Decoder) -> dict[Part, dict[str, tuple[int, ...]]]:
    """What attention and MLP of each block weigh, by "parameters" and "bytes"; 0 where there is none to silence."""
    found: dict[Part, dict[str, tuple[int, ...]]] = {}
    for part in ("attention", "mlp"):
        modules = [part_module(block, part) for block in decoder.blocks]  # type: ignore[arg-type]
        found[part] = {  # type: ignore[index]
            "parameters": tuple(0 if m is None else sum(p.numel() for p in m.parameters()) for m in modules),
            "bytes": tuple(0 if m is None else parameter_bytes(m) for m in modules),
        }
    return found


@contextmanager
def silenced(block: nn.Module, parts: Collection[Part]) -> Iterator[None]:
    """Let parts of a block write nothing into the residual stream.

    Args:
        block: of the model.
        parts: "attention", "mlp".

    Raises:
        ArchitectureError: the block has no such part.
    """
    with ExitStack() as stack:
        for part in parts:
            module = part_module(block, part)
            if module is None:
                raise ArchitectureError(f"a {type(block).__name__} has no {part} that could go alone")
            stack.callback(module.register_forward_hook(_zero).remove)
        yield


def _zero(_module: nn.Module, _given: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)
