"""Blocks are merged into the one before them, weight by weight."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import nn

from hf_prune.architecture.writes import check_floating
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.fitting.task import Fitted, Task, drop
from hf_prune.records import Operation, ranges
from hf_prune.registry import fitted

Mode = Literal["mean", "weighted", "sum", "copy_top"]

Merge = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""The same weight of all blocks that become one, float32, the one that stays first -> what it becomes."""


@fitted(
    "merge",
    title="Merge the blocks that go into the one before them",
    url="https://arxiv.org/abs/2402.11187",
    needs="weights",
)
def merge(task: Task, *, mode: Mode = "sum", shares: Sequence[float] = ()) -> Fitted:
    """LaCo and Sliding Layer Merging: blocks s … s+n become block s, and n blocks go.

    The blocks that go are those of the plan; the one that stays is the one in front of them, or, where they begin at
    block 0, the one behind them. Linear maps and all other weights are merged; norms keep the gains that they have in
    the block that stays. With θ_s of that block:

    - "sum": θ_s + Σ (θ_k - θ_s), as both papers write it (LaCo equation 2);
    - "copy_top": θ of the topmost block, which is what the code that both released computes: it subtracts the running
      sum in place of θ_s, and so the sum telescopes. It nearly is dropping the lower blocks;
    - "mean": of all blocks; "weighted": with `shares`.

    Neither paper's search for windows is done here: which blocks go is the planner's business.

    Args:
        task: what goes of which model.
        mode: how blocks become one.
        shares: for "weighted", one number a block that becomes one, lowest block first; they are divided by their sum.

    Raises:
        ConfigError: no such mode, or `shares` do not fit it or the blocks.
        ArchitectureError: blocks that would become one differ in kind.
        CheckpointError: the weights are quantized.
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"mode={mode!r}; expected one of: {', '.join(get_args(Mode))}")
    if (mode == "weighted") != bool(shares):
        raise ConfigError(f"mode={mode!r} with shares={list(shares)}; shares belong to 'weighted', one number a block")
    layers: list[int] = []
    tensors: dict[str, torch.Tensor] = {}
    notes: list[str] = []
    for window in task.windows():
        stays = window.start - 1 if window.start else window.stop
        members = sorted((stays, *window.layers))
        if stays in layers:
            raise ConfigError(
                f"layer {stays} of '{task.decoder.name}' would take in layers {ranges(window.layers)} and those from "
                "0 on as well; let block 0 stay (protect_first=1), or choose other layers"
            )
        _check_alike(task, members)
        how = _merge(mode, shares, members, stays)
        blocks = [task.decoder.blocks[layer] for layer in (stays, *(m for m in members if m != stays))]
        gains = _of_norms(blocks[0])
        for name, _ in blocks[0].named_parameters():
            if name not in gains:
                values = [block.get_parameter(name).detach().float().cpu() for block in blocks]
                tensors[f"{len(layers)}.{name}"] = how(values)
        layers.append(stays)
        notes.append(f"Layers {ranges(window.layers)} were merged into layer {stays} ({mode}).")
    return Fitted((Operation("replace", tuple(layers)), drop(task.layers)), tensors, tuple(notes))


def _merge(mode: Mode, shares: Sequence[float], members: Sequence[int], stays: int) -> Merge:
    if mode == "sum":
        return lambda values: values[0] + sum(value - values[0] for value in values[1:])
    if mode == "copy_top":
        top = len(members) - 1 if members[-1] != stays else 0
        return lambda values: values[top].clone()
    if mode == "mean":
        return lambda values: torch.stack(list(values)).mean(0)
    if len(shares) != len(members) or min(shares) < 0 or sum(shares) <= 0:
        raise ConfigError(
            f"shares={list(shares)} for layers {ranges(tuple(members))}, which become one; expected {len(members)} "
            "numbers, none below 0, lowest layer first"
        )
    by_member = dict(zip(members, (share / sum(shares) for share in shares), strict=True))
    ordered = [by_member[stays], *(by_member[member] for member in members if member != stays)]
    return lambda values: sum((s * v for s, v in zip(ordered, values, strict=True)), torch.zeros_like(values[0]))


def _check_alike(task: Task, members: Sequence[int]) -> None:
    kinds = {}
    for layer in members:
        check_floating(task.decoder, layer)
        kinds[layer] = _kind(task.decoder.blocks[layer])
    first = members[0]
    for layer, kind in kinds.items():
        if kind != kinds[first]:
            differing = sorted(name for name, _ in set(kind) ^ set(kinds[first]))
            raise ArchitectureError(
                f"blocks {first} and {layer} of '{task.decoder.name}' cannot become one: they differ in kind "
                f"({', '.join(differing[:3])}). Choose blocks of one kind, or take surgery 'drop'"
            )


def _kind(block: nn.Module) -> tuple[tuple[str, str], ...]:
    modules = [(name, type(module).__name__) for name, module in block.named_modules()]
    return (*modules, *((name, str(tuple(parameter.shape))) for name, parameter in block.named_parameters()))


def _of_norms(block: nn.Module) -> set[str]:
    """Names of the gains and biases of norms."""
    return {
        f"{path}.{name}"
        for path, module in block.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False)
    }
