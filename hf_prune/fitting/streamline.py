"""One block is trained to do what it and the blocks that go did together."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from hf_prune.activation_store import ActivationStore
from hf_prune.architecture.writes import check_floating
from hf_prune.block_calls import Call, KeptCalls, first, run_block
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.fitting.seams import check_behind_a_block, check_text, in_batches, split
from hf_prune.fitting.task import Fitted, Task, Window, drop
from hf_prune.progress import tqdm
from hf_prune.records import Operation, ranges
from hf_prune.registry import fitted
from hf_prune.runner import Walker, evaluating

_CLIP = 5.0
_BETAS = (0.9, 0.95)
_DECAY = 1e-3


@fitted(
    "streamline",
    title="Drop, and train the block before to do what it and they did",
    url="https://arxiv.org/abs/2403.19135",
    needs="text",
)
def streamline(
    task: Task,
    *,
    epochs: int = 10,
    learning_rate: float = 2e-4,
    final_learning_rate: float = 5e-5,
    held_out: float = 0.2,
) -> Fitted:
    """LLM-Streamline (Layer, trained by mean squared error): n+1 blocks are replaced by one that starts as the first.

    Where blocks s+1 … s+n go, block s is trained to map h_s to h_(s+n+1): the loss is the mean squared difference,
    over tokens and channels. AdamW with betas 0.9 and 0.95, weight decay 1e-3, gradients clipped to norm 5, a cosine
    from `learning_rate` to `final_learning_rate`, as in the released code; the paper trains on 30 000 documents and
    more, here it is the calibration text, several times. Weights are float32 while they are trained; no other block is
    touched. Held-out text decides whether the trained block is used, in the dtype that the model has; else block s
    stays as it was.

    Each of several windows is trained on the original's states.

    Args:
        task: what goes of which model.
        epochs: passes over the calibration text.
        learning_rate: at the start.
        final_learning_rate: at the end.
        held_out: share of the calibration samples that decide, the last ones.

    Raises:
        ConfigError: block 0 goes, there is no text, or an option is out of range.
        CheckpointError: the weights are quantized.
        MeasureError: hidden states, or the loss, are not finite.
        OutputError: the disk has no room for hidden states.
    """
    if epochs < 1 or not 0 < final_learning_rate <= learning_rate:
        raise ConfigError(
            f"epochs={epochs}, learning_rate={learning_rate}, final_learning_rate={final_learning_rate}; expected at "
            "least 1, and rates above 0 of which the final one is no higher"
        )
    check_text(task, "streamline")
    check_behind_a_block(task, "streamline")
    for window in task.windows():
        check_floating(task.decoder, window.start - 1)
    groups = split(task.sequences, held_out, "streamline")
    layers: list[int] = []
    tensors: dict[str, torch.Tensor] = {}
    notes: list[str] = []
    for window in task.windows():
        fit, decide = _states(task, window, groups)
        block = copy.deepcopy(task.decoder.blocks[window.start - 1]).float().eval().requires_grad_(True)
        dropped = _error(block, decide)
        if not math.isfinite(dropped):
            raise MeasureError(
                f"the hidden states in front of block {window.start} or behind block {window.stop - 1} of "
                f"'{task.decoder.name}' are not finite: their squared difference is {dropped}. Try another --dtype "
                "(bfloat16 or float32 instead of float16), or check the weights of those blocks"
            )
        if dropped > 0:
            _train(block, fit, task, window, epochs, learning_rate, final_learning_rate)
            _round(block, task.decoder.blocks[window.start - 1])
        error = _error(block, decide)
        gone, tried = ranges(window.layers), f"{error:.4g} on held-out text, {dropped:.4g} before training"
        if error < dropped:
            tensors |= {f"{len(layers)}.{name}": p.detach().cpu() for name, p in block.named_parameters()}
            layers.append(window.start - 1)
            notes.append(
                f"Layer {window.start - 1} was trained to do what layers {gone} did as well: the mean squared error "
                f"behind them is {tried}."
            )
        else:
            notes.append(
                f"Layer {window.start - 1} was trained to do what layers {gone} did, and the result is NOT used: the "
                f"mean squared error behind them is {tried}."
            )
    replaced = [Operation("replace", tuple(layers))] if layers else []
    return Fitted((*replaced, drop(task.layers)), tensors, tuple(notes))


@dataclass(frozen=True)
class _Seen:
    """Batches as they enter the block that is trained, and as they should leave it."""

    store: ActivationStore
    calls: KeptCalls
    masks: tuple[torch.Tensor, ...]
    numbers: tuple[int, ...]

    def get(self, number: int, device: torch.device) -> tuple[torch.Tensor, Call, torch.Tensor, torch.Tensor]:
        """Hidden states, how the block is called, what should come out, and the mask, in float32."""
        call = self.calls.get(number, 0, device)
        args, kwargs = tree_map(_float, (call.args, call.kwargs))
        return (
            _float(self.store[number, "in"].to(device)),
            Call(args, kwargs, call.keyword),
            _float(self.store[number, "out"].to(device)),
            self.masks[number].to(device),
        )


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _states(task: Task, window: Window, groups: Sequence[Sequence[torch.Tensor]]) -> list[_Seen]:
    """What passes the window in the original, one for each group of sequences."""
    decoder, walker = task.decoder, Walker(task.decoder, scratch=task.scratch)
    store = ActivationStore(folder=task.scratch)
    calls, masks, numbers = KeptCalls(store), list[torch.Tensor](), list[tuple[int, ...]]()
    # Not in inference mode: its tensors cannot be trained on.
    with evaluating(decoder.model), torch.no_grad():
        for group in groups:
            start = len(masks)
            for batch in in_batches(task, group):
                hidden, asked = walker.calls(batch)
                for layer in range(window.stop):
                    if layer == window.start - 1:
                        store[len(masks), "in"] = hidden
                        calls.keep(len(masks), [asked[layer]])
                    hidden = first(run_block(decoder.blocks[layer], asked[layer], hidden))
                store[len(masks), "out"] = hidden
                masks.append(batch.attention_mask)
            numbers.append(tuple(range(start, len(masks))))
    return [_Seen(store, calls, tuple(masks), some) for some in numbers]


def _error(block: nn.Module, seen: _Seen) -> float:
    """Mean squared error over all real tokens and channels."""
    total, count = 0.0, 0
    with torch.no_grad():
        for number in seen.numbers:
            squares = _squares(block, seen, number)
            total, count = total + float(squares.sum(-1).cpu().double().sum()), count + squares.numel()
    return total / count


def _squares(block: nn.Module, seen: _Seen, number: int) -> torch.Tensor:
    hidden, call, wanted, mask = seen.get(number, next(block.parameters()).device)
    return (first(run_block(block, call, hidden)) - wanted)[mask.bool()].square()


@torch.no_grad()
def _round(block: nn.Module, model: nn.Module) -> None:
    """Leave the block only the digits that the model's dtype has: half precision may swallow what training changed."""
    for name, parameter in block.named_parameters():
        parameter.copy_(parameter.to(model.get_parameter(name).dtype))


def _train(block: nn.Module, seen: _Seen, task: Task, window: Window, epochs: int, rate: float, final: float) -> None:
    optimizer = torch.optim.AdamW(block.parameters(), lr=rate, betas=_BETAS, weight_decay=_DECAY)
    generator = torch.Generator().manual_seed(task.seed)
    steps = epochs * len(seen.numbers)
    done = 0
    with tqdm(desc=f"training layer {window.start - 1}", total=steps, unit="step", disable=not task.progress) as bar:
        for _ in range(epochs):
            for turn in torch.randperm(len(seen.numbers), generator=generator).tolist():
                for group in optimizer.param_groups:
                    group["lr"] = final + (rate - final) * (1 + math.cos(math.pi * done / steps)) / 2
                loss = _squares(block, seen, seen.numbers[turn]).mean()
                if not torch.isfinite(loss):
                    raise MeasureError(
                        f"training layer {window.start - 1} of '{task.decoder.name}' has come to a loss of "
                        f"{float(loss)} in step {done}; expected a finite number. Lower learning_rate "
                        f"({rate}), or take surgery 'compensate' or 'drop'"
                    )
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(block.parameters(), _CLIP)
                optimizer.step()
                done += 1
                bar.update()
