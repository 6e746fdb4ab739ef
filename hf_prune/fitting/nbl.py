"""A linear map of the stream stands in for attention."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_prune.architecture.writes import check_floating
from hf_prune.block_calls import first
from hf_prune.errors import MeasureError
from hf_prune.fitting.replaceme import check_tokens
from hf_prune.fitting.seams import check_text, in_batches, split, walk
from hf_prune.fitting.task import Fitted, Task
from hf_prune.joint_moments import JointMoments, best_map, left_over
from hf_prune.observing import Place
from hf_prune.patching.families import check_attention_left, check_patchable
from hf_prune.records import Operation
from hf_prune.registry import fitted


@fitted(
    "nbl",
    title="A linear map of the stream, solved for, in the place of attention",
    url="https://arxiv.org/abs/2505.21077",
    needs="text",
    unit="attention",
)
def nbl(task: Task, *, held_out: float = 0.2, min_tokens_per_width: int = 10) -> Fitted:
    """Neural Block Linearization: attention(norm x) becomes W x + b, W = C_YX C_XX⁻¹, b = μ_Y - W μ_X (section 3.1).

    x is the stream that enters the block and y what its attention adds, over all real tokens; the norm goes with the
    attention, as in the released code's scripts (`layer_drop_norm`). Moments are float64 and taken on the original in
    one pass: no map sees what the others leave undone. Directions in which x does not vary map to zero; the released
    code inverts C_XX whatever its rank. Held-out text tells what the map leaves over, and decides nothing.

    Args:
        task: whose attentions go of which model.
        held_out: share of the calibration samples that judge, the last ones.
        min_tokens_per_width: tokens that are fitted to, for each channel of the stream, at least.

    Raises:
        ConfigError: there is too little text; names how much would do.
        ArchitectureError: there is no modeling code for such models of this family, or no attention would be left.
        CheckpointError: the weights are quantized.
        MeasureError: hidden states are not finite.
    """
    check_text(task, "nbl")
    check_patchable(task.decoder.config, task.decoder.name)
    check_attention_left(task.decoder.num_layers, task.layers, task.decoder.name)
    for layer in task.layers:
        check_floating(task.decoder, layer)
    fit, judge = split(task.sequences, held_out, "nbl")
    check_tokens(task, fit, min_tokens_per_width, "nbl")
    seen = AttentionMoments(task.layers, len(in_batches(task, fit)))
    walk(task, [fit, judge], [seen])
    tensors: dict[str, torch.Tensor] = {}
    notes = []
    for number, layer in enumerate(task.layers):
        moments = seen.fitted_to[layer]
        if not torch.isfinite(moments.table).all():
            raise MeasureError(
                f"the hidden states at the attention of block {layer} of '{task.decoder.name}' are not finite. Try "
                "another --dtype (bfloat16 or float32 instead of float16), or check the weights of that block"
            )
        weight, bias = best_map(moments)
        tensors |= {f"{number}.weight": weight.float().cpu(), f"{number}.bias": bias.float().cpu()}
        rest = left_over(seen.held_out[layer], weight, bias)
        notes.append(
            f"A linear map stands in for the attention of layer {layer}: on held-out text it gets {rest:.1%} of the "
            "square of what that wrote wrong, where leaving it out would get 100 %."
        )
    return Fitted((Operation("linearize", task.layers),), tensors, tuple(notes))


class AttentionMoments:
    """Joint moments of the stream that enters some blocks and of what their attention adds.

    Args:
        layers: 0-based numbers of the blocks.
        fit: number of batches that are fitted to; the others judge.
    """

    def __init__(self, layers: Sequence[int], fit: int) -> None:
        self.last_block = max(layers)
        self.fitted_to: dict[int, JointMoments] = {}
        self.held_out: dict[int, JointMoments] = {}
        self._layers, self._fit = frozenset(layers), fit
        self._added: torch.Tensor | None = None

    @contextmanager
    def around(self, layer: int, block: nn.Module) -> Iterator[None]:
        """Catch what the attention of a block adds."""
        if layer not in self._layers:
            yield
            return

        def catch(_module: nn.Module, _given: Any, output: Any) -> None:
            self._added = first(output)

        handle = block.get_submodule("self_attn").register_forward_hook(catch)
        try:
            yield
        finally:
            handle.remove()

    def see(self, at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> None:
        """Add one batch's tokens to the layer's sums."""
        if at.layer not in self._layers:
            return
        assert self._added is not None
        added, self._added = self._added, None
        groups = self.fitted_to if at.batch < self._fit else self.held_out
        moments = groups.setdefault(at.layer, JointMoments.zeros(outputs.shape[-1], outputs.device))
        moments.add(*(states[mask.bool().to(states.device)] for states in (inputs, added)))

    def sums(self) -> list[torch.Tensor]:
        """(2 width + 1, 2 width + 1) of each block, those that are fitted to first; see `JointMoments`."""
        return [moments.table for group in (self.fitted_to, self.held_out) for moments in group.values()]

    def result(self) -> dict[str, Any]:
        """Nothing: see `fitted_to` and `held_out`."""
        return {}
