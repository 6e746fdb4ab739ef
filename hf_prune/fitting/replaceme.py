"""A linear map, folded into the MLP in front of the blocks that go, stands in for them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from hf_prune.architecture import Decoder
from hf_prune.architecture.writes import check_floating, writes_of
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.fitting.seams import Seams, check_behind_a_block, check_text, in_batches, split, walk
from hf_prune.fitting.solve import Moments, Solution, fold, solve
from hf_prune.fitting.task import Fitted, Task, Window, drop
from hf_prune.records import Operation, ranges
from hf_prune.registry import fitted

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@fitted(
    "replaceme",
    title="Drop, and fold the linear map that comes closest into the MLP before (least squares)",
    url="https://arxiv.org/abs/2505.02819",
    needs="text",
)
def replaceme(
    task: Task,
    *,
    strengths: Sequence[float] = STRENGTHS,
    held_out: float = 0.2,
    min_tokens_per_width: int = 10,
) -> Fitted:
    """ReplaceMe by least squares: T = argmin ‖M T + Y - h_(s+n)‖² (section 3.2), W_down <- Tᵀ W_down.

    Blocks s … s+n-1 go; M is what the MLP of block s-1 writes, Y = h_s - M the rest of the stream in front of them.
    The released code solves the plain normal equations, over padded tokens too; here pads are left out, the ridge
    draws T to the identity, and held-out text decides on its strength and on whether the map is used at all: where
    dropping alone is no worse there, that is done. Sums are float64.

    Each of several windows is fitted on the original, in the one pass: none sees what the others leave undone.

    Args:
        task: what goes of which model.
        strengths: ridges to choose among, in units of the mean eigenvalue of MᵀM.
        held_out: share of the calibration samples that decide, the last ones.
        min_tokens_per_width: tokens that are fitted to, for each channel of the stream, at least.

    Raises:
        ConfigError: block 0 goes, or there is too little text; names how much would do.
        ArchitectureError: the MLP in front has no single output that is added to the stream as it is; names why.
        CheckpointError: the weights are quantized.
    """
    if not strengths or min(strengths) <= 0:
        raise ConfigError(f"strengths={list(strengths)}; expected numbers above 0, such as {list(STRENGTHS)}")
    check_foldable(task, "replaceme")
    fit, decide = split(task.sequences, held_out, "replaceme")
    check_tokens(task, fit, min_tokens_per_width, "replaceme")
    seen = SeamMoments(task.decoder, task.windows(), len(in_batches(task, fit)))
    walk(task, [fit, decide], [seen])
    found = [solve(*seen.of(window), strengths) for window in task.windows()]
    notes = tuple(_note(window, solution) for window, solution in zip(task.windows(), found, strict=True))
    return folded(task, [solution.change for solution in found], notes)


def _note(window: Window, found: Solution) -> str:
    gone, tried = ranges(window.layers), f"{found.error:.4g} on held-out text, {found.dropped:.4g} without it"
    if found.change is None:
        return (
            f"A linear map in place of layers {gone} was fitted, NOT used: the squared error at the seam is {tried}."
        )
    return (
        f"A linear map stands in for layers {gone}, folded into the MLP of layer {window.start - 1}: the squared "
        f"error at the seam is {tried} (ridge {found.strength:g})."
    )


def check_foldable(task: Task, surgery: str) -> None:
    """Refuse, before any work, what cannot be folded; see `replaceme`.

    Args:
        task: what goes of which model.
        surgery: what is fitted, for the error.

    Raises:
        ConfigError: block 0 goes, or there is no text.
        ArchitectureError: there is no place to fold into.
        CheckpointError: the weights are quantized.
    """
    check_text(task, surgery)
    check_behind_a_block(task, surgery)
    for window in task.windows():
        layer = window.start - 1
        writes = writes_of(task.decoder, layer)
        check_floating(task.decoder, layer)
        if writes.projection is None:
            raise ArchitectureError(
                f"surgery '{surgery}' folds a linear map into the output of the MLP of block {layer}, and in "
                f"'{task.decoder.name}' (model_type '{task.decoder.config.model_type}') {writes.why_none}. Take "
                "surgery 'compensate' or 'drop'"
            )


def check_tokens(task: Task, fit: Sequence[torch.Tensor], each: int, surgery: str) -> None:
    """Refuse a map of width² numbers that is fitted to too few tokens: held-out error is then worse than dropping.

    Args:
        task: what goes of which model.
        fit: sequences that are fitted to.
        each: tokens that each channel takes.
        surgery: what is fitted, for the error.

    Raises:
        ConfigError: there are fewer; names how many samples would do.
    """
    width, tokens = task.decoder.config.hidden_size, sum(map(len, fit))
    if tokens < each * width:
        enough = math.ceil(len(task.sequences) * each * width / tokens)
        raise ConfigError(
            f"surgery '{surgery}' fits a map of {width} x {width} numbers to {tokens} tokens of {len(fit)} samples "
            f"(the others are held out); expected at least {each} x {width} = {each * width} tokens. Take about "
            f"{enough} samples of this length (--samples), longer ones (--max-length), or surgery 'compensate'"
        )


def folded(task: Task, changes: Sequence[torch.Tensor | None], notes: tuple[str, ...]) -> Fitted:
    """The answer, with the maps folded into weights and biases.

    Args:
        task: what goes of which model.
        changes: of each window, Δ = T - I as (width, width) float64; None where it is dropped alone.
        notes: on what was found.
    """
    layers: list[int] = []
    tensors: dict[str, torch.Tensor] = {}
    for window, change in zip(task.windows(), changes, strict=True):
        if change is None:
            continue
        layer = window.start - 1
        name = writes_of(task.decoder, layer).projection
        assert name is not None
        module = task.decoder.blocks[layer].get_submodule(name)
        for leaf, parameter in module.named_parameters():
            tensors[f"{len(layers)}.{name}.{leaf}"] = fold(parameter, change, transposed=isinstance(module, Conv1D))
        layers.append(layer)
    replaced = [Operation("replace", tuple(layers))] if layers else []
    dtype = str(next(task.decoder.blocks[task.windows()[0].start - 1].parameters()).dtype).removeprefix("torch.")
    if layers and dtype not in ("float32", "float64"):
        notes = (*notes, f"These errors are those of the maps as they were fitted, before rounding to {dtype}.")
    return Fitted((*replaced, drop(task.layers)), tensors, notes)


class SeamMoments(Seams):
    """What least squares needs, of the batches that are fitted to and of those that are held out.

    Args:
        decoder: the model.
        windows: see `Seams`.
        first_held_out: index of the first batch that is held out; all behind it are.
    """

    def __init__(self, decoder: Decoder, windows: Sequence[Window], first_held_out: int) -> None:
        super().__init__(decoder, windows)
        self._first = first_held_out
        self._sums: dict[tuple[int, bool], Moments] = {}

    def seam(
        self, window: Window, batch: int, written: torch.Tensor, before: torch.Tensor, behind: torch.Tensor
    ) -> None:
        """Add one batch's products."""
        # Metal has no float64.
        device = torch.device("cpu") if written.device.type == "mps" else written.device
        m, missing = written.to(device).double(), behind.to(device).double() - before.to(device).double()
        key = window.start, batch >= self._first
        self._sums.setdefault(key, Moments.zeros(m.shape[1], device)).add(m, missing)

    def of(self, window: Window) -> tuple[Moments, Moments]:
        """Those that are fitted to, and the held-out ones."""
        return self._sums[window.start, False], self._sums[window.start, True]

    def sums(self) -> list[torch.Tensor]:
        """None: this observer runs in one process."""
        return []

    def result(self) -> dict[str, Any]:
        """Nothing: see `of`."""
        return {}
