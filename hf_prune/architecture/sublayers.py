"""The two parts of a block: what mixes tokens (attention), and the MLP; and how one of them is silenced."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from hf_prune.architecture.decoder import Decoder, parameter_bytes
from hf_prune.architecture.families import FAMILIES
from hf_prune.architecture.writes import outputs_of, parameters_of
from hf_prune.errors import ArchitectureError
from hf_prune.units import Part

# Names of the child modules of a block.
_ATTENTION = ("self_attn", "linear_attn", "attn", "attention", "self_attention", "conv")
_MLP = ("mlp", "ffn", "feed_forward", "block_sparse_moe")

# OPT's MLP is no module: these two of its blocks are.
_LOOSE_MLP = ("fc1", "fc2")

# Norms between a part and the residual stream, which have to leave nothing of nothing.
_BEHIND = {
    "attention": ("post_self_attn_layernorm",),
    "mlp": ("post_feedforward_layernorm", "post_mlp_layernorm"),
}

# What else than (hidden states, attention weights) a part answers with.
_ALONE = ("linear_attn", "conv", *_MLP)
_PAIRS = ("GptOssMLP",)

_STOCK = {f"transformers.models.{t.removesuffix('_text')}" for family in FAMILIES for t in family.model_types}


def part_module(block: nn.Module, part: Part) -> nn.Module | None:
    """The module of a block that is its attention, or its MLP; None where there is no such module (OPT's MLP)."""
    names = _ATTENTION if part == "attention" else _MLP
    return next((child for name, child in block.named_children() if name in names), None)


def part_modules(block: nn.Module, part: Part) -> dict[str, nn.Module]:
    """The child modules of a block that a part is made of, by name; none where there is no such part."""
    names = {"block": (), "attention": _ATTENTION, "mlp": (*_MLP, *_LOOSE_MLP)}[part]
    return {name: child for name, child in block.named_children() if name in names}


def write_parameters(block: nn.Module, part: Part) -> list[str]:
    """The weights and biases by which a part writes into the residual stream: all zero, it writes exactly nothing.

    Args:
        block: of a model.
        part: "attention" or "mlp".

    Returns:
        Dotted names in the block, of all experts where it has some.

    Raises:
        ArchitectureError: the block has no such part, it cannot go alone, or its weights are quantized; names why.
    """
    kind = type(block).__name__
    outputs = outputs_of(block, part)
    if not outputs:
        made_of = ", ".join(name for name, _ in block.named_children())
        raise ArchitectureError(f"a {kind} has no {part} that could go alone: it is made of {made_of}")
    names = parameters_of(block, outputs)
    # Packed weights go by other names, or are no floating numbers.
    stored = [block.get_parameter(name) for name in names]
    lost = [name for name in outputs if not any(n == name or n == f"{name}.weight" for n in names)]
    if lost or any(not p.is_floating_point() or p.dtype.itemsize < 2 for p in stored):
        raise ArchitectureError(
            f"the {part} of a {kind} writes by quantized weights ({', '.join(lost or names)}), which cannot be "
            "silenced; prune the unquantized model that it was made from, then quantize the result"
        )
    for name in _BEHIND[part]:
        if getattr(getattr(block, name, None), "bias", None) is not None:
            raise ArchitectureError(
                f"behind the {part} of a {kind} stands a norm with a bias ('{name}'), which writes into the residual "
                f"stream whatever the {part} does; it cannot go alone"
            )
    return list(names)


def has_part(block: nn.Module, part: Part) -> bool:
    """Whether a block has a part that can be silenced; it is a "block" itself."""
    if part == "block":
        return True
    try:
        return bool(write_parameters(block, part))
    except ArchitectureError:
        return False


def why_no_part(decoder: Decoder, part: Part) -> str:
    """Why no block of a model has a part that can be silenced; empty where one has."""
    reasons = []
    for block in decoder.blocks:
        try:
            write_parameters(block, part)
        except ArchitectureError as error:
            reasons.append(str(error))
        else:
            return ""
    return reasons[0]


def part_sizes(decoder: Decoder, flops: Mapping[str, int] | None = None) -> dict[Part, dict[str, tuple[int, ...]]]:
    """What attention and MLP of each block weigh; 0 where there is none to silence.

    Args:
        decoder: the model.
        flops: of every module, by its dotted path in the model; see `evaluation.flops.module_flops`.

    Returns:
        For "attention" and "mlp", by "parameters" and "bytes", and by "flops" where these are given.
    """
    found: dict[Part, dict[str, tuple[int, ...]]] = {}
    parts: tuple[Part, ...] = ("attention", "mlp")
    for part in parts:
        rows = [part_modules(block, part) if has_part(block, part) else {} for block in decoder.blocks]
        found[part] = {
            "parameters": tuple(sum(p.numel() for m in row.values() for p in m.parameters()) for row in rows),
            "bytes": tuple(sum(parameter_bytes(m) for m in row.values()) for row in rows),
        }
        if flops is not None:
            found[part]["flops"] = tuple(
                sum(flops.get(decoder.block_prefix(layer) + name, 0) for name in row) for layer, row in enumerate(rows)
            )
    return found


@contextmanager
def silenced(block: nn.Module, parts: Collection[Part]) -> Iterator[None]:
    """Let parts of a block write nothing into the residual stream, as if their `write_parameters` were zero.

    Parts of families that the tests hold to it are not computed at all, so that hooks in them see nothing.

    Args:
        block: of the model.
        parts: "attention", "mlp".

    Raises:
        ArchitectureError: the block has no such part, or it cannot go alone; names why.
    """
    with ExitStack() as stack:
        for part in parts:
            names = write_parameters(block, part)
            module = part_module(block, part)
            if module is not None and _stock(block):
                stack.enter_context(_answering(module, _nothing(block, module, block.get_parameter(names[0]).dtype)))
                continue
            for name in outputs_of(block, part):
                writer = _module_at(block, name) or block.get_submodule(name.rpartition(".")[0])
                stack.callback(writer.register_forward_hook(_zero).remove)
        yield


def _stock(block: nn.Module) -> bool:
    return type(block).__module__.rpartition(".")[0] in _STOCK


def _nothing(block: nn.Module, module: nn.Module, dtype: torch.dtype) -> Callable[..., Any]:
    """What a module answers whose part writes nothing; the residual stream, where it adds that itself (BLOOM, MPT)."""
    places = list(inspect.signature(type(module).forward).parameters)[1:]
    adds = "residual" in places
    (name,) = (name for name, child in block.named_children() if child is module)
    alone = name in _ALONE and type(module).__name__ not in _PAIRS

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(places, args, strict=False)) | kwargs
        answer = given["residual"] if adds else torch.zeros_like(given[places[0]], dtype=dtype)
        return answer if alone else (answer, None)

    return forward


@contextmanager
def _answering(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if own is not None:
            module.__dict__["forward"] = own


def _module_at(block: nn.Module, name: str) -> nn.Module | None:
    return dict(block.named_modules()).get(name)


def _zero(_module: nn.Module, _given: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)
